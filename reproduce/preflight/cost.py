"""What training a cell costs: memory is counted, time is measured on the device at hand."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reproduce.bench.launches import Kept, count_forward, storages
from reproduce.bench.steps import augmentation
from reproduce.bench.timing import fastest
from reproduce.data.datasets import DATASETS
from reproduce.memory import out_of_memory
from reproduce.study.cells import Cell
from reproduce.training.device import Device
from reproduce.training.networks import make_network
from reproduce.training.step import make_optimizer, training_step

PROCESS = 1.6
"""On a CPU a process took up to this many times the memory of the counted tensors."""
ASSUMPTIONS = (
    "Times come from the fastest of three steps that learn a mask (no other cell takes longer) and"
    " from augmenting noise, as if nothing else ran; a held-out image takes a third of a step."
    f" Memory is that of tensors; a process on a CPU takes up to {PROCESS} times as much."
)


def learned(cell: Cell) -> Cell:
    """The cell with this model, dataset and recipe that learns a mask: no other costs more."""
    return replace(cell, strategy="mp", ratio=None, density=0.5)


class Size(NamedTuple):
    """Bytes that training takes, at the recipe's batch size."""

    state: int
    """The network, and the module it was made from."""
    gradients: int
    optimizer: int
    activations: int
    """What the backward pass needs of a batch, plus two gradients as large as the largest part."""
    images: int
    """Those to train on, uint8 unless already normalised, and the held-out ones, float32."""
    file: int
    """On disk, not in memory: that of a dense network, which is the largest."""

    @property
    def memory(self) -> int:
        """All bytes in memory during training."""
        return sum(self) - self.file


@cache
def size(cell: Cell, *, bfloat16: bool) -> Size:
    """Count over tensors that have shapes but no values, so nothing is computed.

    ``bfloat16`` is the device's, and stands for a GPU: activations are then those of mixed
    precision. Without it everything is float32, and attention weights are kept, too.
    """
    dataset, meta = DATASETS[cell.dataset], torch.device("meta")
    network = make_network(cell, 0, meta)
    shape = cell.recipe.batch, dataset.channels, dataset.size, dataset.size
    images = torch.empty(shape, device=meta)
    labels = torch.empty(len(images), dtype=torch.long, device=meta)
    plain = network.model.state_dict(keep_vars=True)
    own = [*plain.values(), *network.tensors.values()]
    if bfloat16:
        _, _, activations = count_forward(cell)
    else:
        kept = Kept()
        with kept:
            cross_entropy(network.logits(images), labels)
        activations = kept.beside(own)
    optimizer = make_optimizer(cell.recipe, network.trained, fused=False)
    for tensor in network.trained:
        tensor.grad = torch.empty_like(tensor)
    optimizer.step()
    moments = [value for of_one in optimizer.state.values() for value in of_one.values()]
    return Size(
        state=sum(storage.nbytes() for storage in storages(own).values()),
        gradients=sum(tensor.nbytes for tensor in network.trained),
        optimizer=sum(value.nbytes for value in moments if isinstance(value, Tensor)),
        activations=sum(activations) + 2 * max(activations),
        images=dataset.test * images[0].nbytes
        + dataset.train * images[0].numel() * (1 if dataset.mean else 4),
        file=network.storage.dense_bits // 8,
    )


class Cost(NamedTuple):
    """Seconds for each training image."""

    step: float
    augmentation: float

    @property
    def image(self) -> float:
        """Both, since they run one after the other on the device."""
        return self.step + self.augmentation

    def epoch(self, cell: Cell) -> float:
        """Seconds of an epoch of the cell, including its evaluation."""
        dataset = DATASETS[cell.dataset]
        return dataset.train * self.image + dataset.test * self.step / 3


Kind = tuple[object, int]


def kind(cell: Cell) -> Kind:
    """The key under which cells cost the same: model and image size."""
    return cell.model, DATASETS[cell.dataset].size


def measure(
    cells: Iterable[Cell], device: Device, say: Callable[[str], object]
) -> dict[Kind, Cost | None]:
    """The cost of each kind of cell; None if it does not fit in the device's memory.

    Each is announced before it is measured, since that takes a while on a CPU.
    """
    costs: dict[Kind, Cost | None] = {}
    for cell in cells:
        if kind(cell) not in costs:
            say(f"measuring a step of {cell.model.label} on {cell.dataset}")
            try:
                costs[kind(cell)] = _measure(learned(cell), device)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                costs[kind(cell)] = None
    return costs


def _measure(cell: Cell, device: Device) -> Cost:
    def seconds(batch: int) -> float:
        step = training_step(cell, batch, device, compiled=False)
        return fastest(step, times=3, synchronize=device.synchronize)

    batch, few, more = cell.recipe.batch, 2, 8
    if device.slow:
        # Part of a step does not depend on the number of images: masks, optimizer.
        low, high = seconds(few), seconds(more)
        image = max(high - low, 0) / (more - few)
        step = image + (high - more * image) / batch
    else:
        step = seconds(batch) / batch
    augmented = augmentation(cell, batch, device)
    return Cost(step, fastest(augmented, times=3, synchronize=device.synchronize) / batch)
