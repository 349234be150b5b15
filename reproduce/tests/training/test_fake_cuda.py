"""The GPU code, tested without a GPU: nothing leaves the device, and the host never waits.

Tensors have shapes but no values. They claim to be on ``cuda:0``, and PyTorch treats them that way.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import finalize

import pytest
import torch
from torch import Tensor, UntypedStorage
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pemn_ref as pemn
from pemn_ref import fast
from reproduce.bench.cost_page import counts_of
from reproduce.bench.launches import (
    GPU,
    FlashAttention,
    Launches,
    LeftDeviceError,
    count,
    count_augmentation,
    count_forward,
    fake_step,
)
from reproduce.data.datasets import DATASETS
from reproduce.options import COST
from reproduce.preflight.cost import size
from reproduce.study.cells import Cell
from reproduce.study.recipes import CONVMIXER, RESNET, TINY_IMAGENET, VIT
from reproduce.study.studies import STUDIES
from reproduce.training.device import open_device
from reproduce.training.networks import make_model, make_network


def _why_not() -> str | None:
    """Why this PyTorch cannot pretend to have a GPU; None if it can."""
    try:
        with FakeTensorMode():
            torch.empty(2, 2, device="cuda:0").uniform_() @ torch.empty(2, 2, device="cuda:0")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return f"no fake GPU with torch {torch.__version__}: {error}"
    return None


_REASON = _why_not()
on_fake_gpu = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

FIRST = {"convmixer": "convmixer-d6-w256", "resnet": "resnet32", "vit": "vit-d6-w256"}
LABELS = ("convmixer-d6-w256", "convmixer-d8-w256", "vit-d6-w256", "resnet32", "resnet56")
# Each of these four handles masks differently. mask, one_layer and rp differ from mp only in the
# numbers drawn, and so does prune_random from prune_minimum, so one family suffices for the others.
KINDS = ("dense", "mp", "control", "prune_minimum_90")
OTHERS = ("mask", "one_layer", "rp_1e-2", "prune_random_90")
WAYS = [(label, kind) for label in FIRST.values() for kind in KINDS]
WAYS += [("resnet32", kind) for kind in OTHERS]


def cell_of(label: str, name: str) -> Cell:
    """A cell of the paper on CIFAR-10; pruned ones even if the paper prunes only other models."""
    mp = next(
        cell
        for cell in STUDIES["paper"].cells
        if (cell.dataset, cell.model.label, cell.name) == ("cifar10", label, "mp")
    )
    if name == "dense":
        return replace(mp, strategy="dense", density=None)
    if name.startswith("prune"):
        strategy, _, percent = name.rpartition("_")
        return replace(mp, strategy=strategy, density=1 - int(percent) / 100)
    if name.startswith("rp"):
        return replace(mp, strategy="rp", ratio=0.01)
    return replace(mp, strategy=name)


@on_fake_gpu
@pytest.mark.parametrize(("label", "name"), WAYS)
def test_step_stays_on_the_device_and_the_host_never_waits(label: str, name: str) -> None:
    counts = count(cell_of(label, name))
    assert min(counts) > 0
    assert counts.optimizer <= 4  # one launch takes a limited number of tensors


def test_optimizer_of_a_cpu_is_not_fused() -> None:
    """Otherwise the bits of rows would change."""
    assert not open_device("cpu").fused
    assert GPU.fused


def count_masks(cell: Cell) -> int:
    """Count the kernels that learning the masks adds to a training step, forward and backward."""
    meta = torch.device("meta")
    state = make_network(cell, 0, meta).state
    assert state is not None
    assert cell.density is not None
    launches = Launches(meta)
    with launches:
        masked = [*fast.apply_mask(state.weights, state.scores, density=cell.density).values()]
    upstream = [torch.empty_like(weight) for weight in masked]
    scores = [*state.scores.values()]
    with launches:
        torch.autograd.grad(masked, scores, upstream)
    return launches.kernels


MASKS = dict(zip(LABELS, (132, 132, 152, 216, 216), strict=True))


@pytest.mark.parametrize("label", LABELS)
def test_launches_of_learned_masks(label: str) -> None:
    assert count_masks(cell_of(label, "mp")) == MASKS[label]


@on_fake_gpu
def test_masks_that_never_change_are_not_made_in_a_step() -> None:
    dense, control, pruned = (
        count_forward(cell_of("resnet32", name))[0].by_operation
        for name in ("dense", "control", "prune_minimum_90")
    )
    layers = len(pemn.maskable_shapes(make_model(cell_of("resnet32", "mp"), 0)))
    assert control == dense
    assert pruned - dense == {"mul": layers}  # the trained weights times their masks


@on_fake_gpu
@pytest.mark.parametrize("label", FIRST.values())
def test_page_has_the_counts_of_this_version(label: str) -> None:
    """If not, ``python -m reproduce bench cost`` rewrites it."""
    assert f"\n| {counts_of(cell_of(label, 'mp'))} |" in COST.read_text(encoding="utf-8")


class Held(TorchDispatchMode):
    """Tracks the peak bytes held by tensors made inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: UntypedStorage) -> None:
        if id(storage) not in self._known:
            self._known.add(id(storage))
            finalize(storage, self._free, id(storage), storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.now -= size


@on_fake_gpu
@pytest.mark.parametrize("label", [*FIRST.values(), "convmixer-d8-w512", "vit-d8-w512"])
def test_memory_is_predicted_for_mixed_precision(label: str) -> None:
    cell = cell_of(label, "mp")
    with FakeTensorMode(), FlashAttention():
        trial = fake_step(cell, GPU)
        held = Held()
        with held:
            loss = trial.forward()
        assert loss.device == GPU.torch
    # The backward pass adds gradients of two feature maps, which the prediction includes.
    assert size(cell, bfloat16=True).activations == pytest.approx(held.peak, rel=0.2)


PLANTED: dict[str, Callable[[Tensor], object]] = {
    "a tensor": lambda logits: logits + torch.ones(10),
    "a tensor without dimensions": lambda logits: logits * torch.ones(()),
    "a copy": lambda logits: logits.cpu(),
    "item": lambda logits: logits[0, 0].item(),
    "if": lambda logits: bool(logits[0, 0] > 0),
    "nonzero": lambda logits: logits.nonzero(),
    "boolean indexing": lambda logits: logits[logits > 0],
    "boolean assignment": lambda logits: logits.clone().__setitem__(logits > 0, logits.detach()),
}


@on_fake_gpu
@pytest.mark.parametrize("planted", PLANTED)
def test_what_leaves_the_device_or_waits_is_found(planted: str) -> None:
    with FakeTensorMode():
        trial = fake_step(cell_of("resnet32", "dense"), GPU)
        logits = trial.step.logits
        with Launches(GPU.torch):
            trial.forward()

        def with_it(images: Tensor) -> Tensor:
            PLANTED[planted](logits(images))
            return logits(images)

        trial.step.logits = with_it
        with pytest.raises(LeftDeviceError), Launches(GPU.torch):
            trial.forward()


RECIPES = {
    "convmixer": (CONVMIXER, "cifar10"),
    "vit": (VIT, "cifar100"),
    "crop-flip": (RESNET, "cifar10"),
    "tiny-imagenet": (TINY_IMAGENET, "tiny-imagenet"),
}


@on_fake_gpu
@pytest.mark.parametrize("augmentation", RECIPES)
def test_augmentation_stays_on_the_device_and_the_host_never_waits(augmentation: str) -> None:
    recipe, dataset = RECIPES[augmentation]
    assert recipe.augmentation == augmentation
    assert count_augmentation(recipe, DATASETS[dataset]).kernels > 0
