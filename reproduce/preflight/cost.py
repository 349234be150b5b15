"""What it costs to train a cell: memory is counted, time measured on the device at hand."""

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
from reproduce.training.loop import make_optimizer
from reproduce.training.networks import make_network
from reproduce.training.step import training_step

ASSUMPTIONS = (
    "Estimated from the fastest of three steps that learn a mask, which no other cell exceeds, as"
    " if nothing else ran, and from the augmentation of noise; a held-out image takes a third of a"
    " step. Memory: of tensors; a process on a CPU takes up to half more."
)


def learned(cell: Cell) -> Cell:
    """The cell of the same model, dataset and recipe that learns a mask: none costs more."""
    return replace(cell, strategy="mp", ratio=None, density=0.5)


class Size(NamedTuple):
    """Bytes that training takes, those of the recipe's batch among them."""

    state: int
    """Of the network, and of the module it was made from."""
    gradients: int
    optimizer: int
    activations: int
    """What the backward pass needs of a batch, and two gradients of the largest of it."""
    images: int
    """Those to train on, uint8 unless they come normalised, and the held-out ones, float32."""
    file: int
    """On disk, not in memory: of a dense network, which no other exceeds."""

    @property
    def memory(self) -> int:
        """While it trains."""
        return sum(self) - self.file


@cache
def size(cell: Cell, *, bfloat16: bool) -> Size:
    """Counted over tensors that have shapes and no values: nothing is computed.

    ``bfloat16`` is that of the device, and stands for a GPU: activations are those of mixed
    precision there. Without it all is float32, and the weights of the attention are kept.
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
    """Seconds that a training image takes."""

    step: float
    augmentation: float

    @property
    def image(self) -> float:
        """Both: one after the other, on the device."""
        return self.step + self.augmentation

    def epoch(self, cell: Cell) -> float:
        """Seconds of an epoch of the cell, its evaluation included."""
        dataset = DATASETS[cell.dataset]
        return dataset.train * self.image + dataset.test * self.step / 3


Kind = tuple[object, int]


def kind(cell: Cell) -> Kind:
    """Cells of one kind cost the same: they have model and image size in common."""
    return cell.model, DATASETS[cell.dataset].size


def measure(
    cells: Iterable[Cell], device: Device, say: Callable[[str], object]
) -> dict[Kind, Cost | None]:
    """The cost of each kind of cell; None where the memory of the device is too small.

    Each is said before it is measured: on a CPU that takes a while.
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
        # A part of every step is there for any number of images: masks, optimizer.
        low, high = seconds(few), seconds(more)
        image = max(high - low, 0) / (more - few)
        step = image + (high - more * image) / batch
    else:
        step = seconds(batch) / batch
    augmented = augmentation(cell, batch, device)
    return Cost(step, fastest(augmented, times=3, synchronize=device.synchronize) / batch)
