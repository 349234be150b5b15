"""One step of the training loop alone, for what measures or counts it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reproduce.data.datasets import DATASETS
from reproduce.study.cells import Cell
from reproduce.training.device import Device
from reproduce.training.loop import make_optimizer
from reproduce.training.networks import make_network


def training_step(
    cell: Cell, batch: int, device: Device, *, compiled: bool
) -> Callable[[], object]:
    """One step of the training loop on images that are there already."""
    network = make_network(cell, 0, device.torch)
    optimizer = make_optimizer(cell.recipe, network.trained)
    dataset = DATASETS[cell.dataset]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, dataset.channels, dataset.size, dataset.size, generator=generator)
    labels = torch.randint(dataset.classes, (batch,), generator=generator)
    x, y = device.put((images, labels))
    network.model.train()
    logits: Callable[[Tensor], Tensor] = network.logits
    if compiled:
        logits = torch.compile(logits)

    def step() -> None:
        with device.mixed_precision():
            loss = cross_entropy(logits(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
