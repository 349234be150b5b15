"""What a training step asks of a GPU, counted without one: launches, arithmetic, bytes.

The step is the training loop's, at full size, on tensors that have shapes but no values. They claim
to be on a GPU, and PyTorch treats them that way, up to the launch.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from reproduce.data.augment import make_augmentation
from reproduce.data.batches import TrainingBatches
from reproduce.data.datasets import Dataset
from reproduce.data.images import Images
from reproduce.study.cells import Cell
from reproduce.study.recipes import Recipe
from reproduce.training.device import Device
from reproduce.training.networks import make_model, network_of
from reproduce.training.step import Trial, make_trial

# They launch no kernel although they are not views.
_FREE = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# Their result or its shape depends on values, so the host waits for them.
_WAITING = {"_local_scalar_dense", "masked_select", "nonzero", "_unique2", "unique_dim"}
_INDEXING = {"index", "index_put", "index_put_", "_unsafe_index"}
# How many tensors one launch updates, by the number of lists (ATen's MultiTensorApply).
_AT_ONCE = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


class LeftDeviceError(RuntimeError):
    """The host would wait for the device, or a tensor is on another device."""


class Launches(TorchDispatchMode):
    """Count kernels by operation, and the bytes they read and write, on ``device``.

    An operation is one kernel, except: a view or an empty tensor is none, ``topk`` of 20,000 values
    or more is 21, ``cumsum`` is 3, and a list of tensors as many as it takes to pass them all.

    Raises, inside:
        LeftDeviceError: if an operation makes the host wait, or has a tensor on another device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.by_operation: Counter[str] = Counter()
        self.bytes = 0

    @property
    def kernels(self) -> int:
        """The number of all kernels."""
        return self.by_operation.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "prim":  # it asks for the device of a tensor
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        _look_whether_it_waits(name, args)
        # Fused operations return nothing, and some of them do not run without values.
        result = None if name.startswith("_fused_") else func(*args, **(kwargs or {}))
        tensors = [*given, *(t for t in tree_leaves(result) if isinstance(t, Tensor))]
        elsewhere = {str(t.device) for t in tensors if t.device != self.device}
        if elsewhere:
            raise LeftDeviceError(
                f"{name} has tensors on {', '.join(elsewhere)}, all must be on {self.device}"
            )
        if not func.is_view and name not in _FREE and tensors:
            self.by_operation[name] += _kernels(name, args)
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return result


def _look_whether_it_waits(name: str, args: tuple[Any, ...]) -> None:
    indices = args[1] if name in _INDEXING else ()
    if name in _WAITING or any(i is not None and i.dtype in _MASKS for i in indices):
        raise LeftDeviceError(f"{name} makes the host wait for the device")


_MASKS = torch.bool, torch.uint8


def _kernels(name: str, args: tuple[Any, ...]) -> int:
    if name.startswith(("_foreach_", "_fused_")):
        lists = [part for part in args if isinstance(part, list | tuple) and part]
        lists = [part for part in lists if isinstance(part[0], Tensor)]
        many = 4 if "adam" in name else min(len(lists), 5)  # its steps are not a list of their own
        return math.ceil(len(lists[0]) / _AT_ONCE[many])
    if name == "topk":
        return 21 if args[0].shape[-1] >= 20_000 else 1
    return {"cumsum": 3}.get(name, 1)


def storages(tensors: Iterable[Tensor]) -> dict[int, UntypedStorage]:
    """The storages of the tensors, each once."""
    return {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}


class Kept(saved_tensors_hooks):
    """A context that records what is kept for the backward pass."""

    def __init__(self) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self._storages: dict[int, UntypedStorage] = {}

    def _keep(self, tensor: Tensor) -> Tensor:
        self._storages.update(storages([tensor]))
        return tensor

    def beside(self, tensors: Iterable[Tensor]) -> list[int]:
        """Bytes of each recorded storage that does not belong to ``tensors``."""
        others = storages(tensors)
        return [storage.nbytes() for key, storage in self._storages.items() if key not in others]


class Counts(NamedTuple):
    """What one training step asks of a GPU."""

    forward: int
    """Kernels launched; the next two count kernels, too."""
    backward: int
    optimizer: int
    flops: int
    """Of matrix products and convolutions: three times those of the forward pass."""
    bytes: int
    """Read and written by all kernels: forward in mixed precision, backward scaled to match."""
    activations: int
    """Bytes kept for the backward pass."""

    @property
    def launches(self) -> int:
        """All kernels."""
        return self.forward + self.backward + self.optimizer


class _Fake(Device):
    """A device that need not exist; mixed precision works although PyTorch finds no GPU."""

    def mixed_precision(self) -> AbstractContextManager[Any]:  # type: ignore[override]
        return _autocast(self.torch.type) if self.bfloat16 else nullcontext()


@contextmanager
def _autocast(kind: str) -> Iterator[None]:
    before = torch.get_autocast_dtype(kind)
    torch.set_autocast_dtype(kind, torch.bfloat16)
    torch.set_autocast_enabled(kind, True)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, False)
        torch.set_autocast_dtype(kind, before)
        torch.clear_autocast_cache()


class FlashAttention(TorchFunctionMode):
    """Use the GPU's attention kernel, which PyTorch otherwise picks only if it finds a GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            return _flash(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


_flash = torch.ops.aten._scaled_dot_product_flash_attention


GPU = _Fake(torch.device("cuda", 0), "none", bfloat16=True)
# Without a GPU the autograd engine refuses tensors that claim to be on cuda (torch 2.14).
_OTHER = _Fake(torch.device("lazy", 0), "none", bfloat16=False)


def fake_step(cell: Cell, device: Device) -> Trial:
    """The step of a cell on a device that need not exist; call it inside ``FakeTensorMode``."""
    with device.torch:
        model = make_model(cell, 0)
    return make_trial(cell, network_of(cell, model, 0), cell.recipe.batch, device)


@cache
def count_forward(cell: Cell) -> tuple[Launches, int, list[int]]:
    """Count the forward pass of a training step: kernels, FLOPs, bytes of each storage kept.

    Raises:
        LeftDeviceError, RuntimeError: as ``count``.
    """
    with FakeTensorMode(), FlashAttention():
        trial = fake_step(cell, GPU)
        trial.forward()  # the first call makes masks that never change
        kept, arithmetic, launches = Kept(), FlopCounterMode(display=False), Launches(GPU.torch)
        with kept, arithmetic, launches:
            trial.forward()
        return (
            launches,
            arithmetic.get_total_flops(),
            kept.beside(trial.step.network.tensors.values()),
        )


def _count_backward(cell: Cell) -> tuple[Launches, Launches]:
    """Count the forward and the backward pass, in float32."""
    alone = torch.autograd.set_multithreading_enabled(False)
    with FakeTensorMode(), FlashAttention(), alone:
        trial = fake_step(cell, _OTHER)
        forward, backward = Launches(_OTHER.torch), Launches(_OTHER.torch)
        with forward:
            loss = trial.forward()
        with backward:
            loss.backward()
    return forward, backward


def _count_optimizer(cell: Cell) -> Launches:
    with FakeTensorMode():
        trial = fake_step(cell, GPU)
        for tensor in trial.step.network.trained:
            tensor.grad = torch.empty_like(tensor)
        for _ in range(2):  # the first step creates the optimizer's state
            launches = Launches(GPU.torch)
            with launches:
                trial.step.optimizer.step()
    return launches


@cache
def count_augmentation(recipe: Recipe, dataset: Dataset) -> Launches:
    """Count the launches that pick and augment a batch of images.

    Raises:
        LeftDeviceError, RuntimeError: as ``count``.
    """
    with FakeTensorMode():
        augmentation = make_augmentation(recipe.augmentation, dataset, GPU.torch)
        shape = 2 * recipe.batch, dataset.channels, dataset.size, dataset.size
        pixels = torch.zeros(shape, dtype=torch.uint8, device=GPU.torch)
        labels = torch.zeros(len(pixels), dtype=torch.long, device=GPU.torch)
        images = Images(pixels, labels)
        batches = TrainingBatches(images, augmentation, seed=0, batch=recipe.batch).epoch(0)
        next(batches)  # the first batch of an epoch also sends order and numbers to the device
        launches = Launches(GPU.torch)
        with launches:
            next(batches)
    return launches


@cache
def count(cell: Cell) -> Counts:
    """Count the training step of a cell at its batch size, without computing a value.

    Raises:
        LeftDeviceError: as ``Launches``.
        RuntimeError: if this PyTorch does not know the device cuda at all.
    """
    forward, flops, kept = count_forward(cell)
    full, backward = _count_backward(cell)
    optimizer = _count_optimizer(cell)
    casts = forward.by_operation["_to_copy"]  # each has a counterpart in the backward pass
    shorter = forward.bytes / full.bytes
    return Counts(
        forward.kernels,
        backward.kernels + casts,
        optimizer.kernels,
        3 * flops,
        forward.bytes + round(shorter * backward.bytes) + optimizer.bytes,
        sum(kept),
    )
