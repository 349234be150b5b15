"""One step of the training loop on its own, to be measured or counted."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reproduce.data.datasets import DATASETS
from reproduce.study.cells import Cell
from reproduce.training.device import Device
from reproduce.training.loop import make_optimizer
from reproduce.training.networks import Network, make_network


class Step:
    """One step of the training loop, on ready-made images: call it, or ``forward`` alone."""

    def __init__(self, cell: Cell, network: Network, batch: int, device: Device) -> None:
        self.network, self.device = network, device
        self.logits: Callable[[Tensor], Tensor] = network.logits
        self.optimizer = make_optimizer(cell.recipe, network.trained, fused=device.fused)
        dataset = DATASETS[cell.dataset]
        generator = torch.Generator().manual_seed(0)
        shape = batch, dataset.channels, dataset.size, dataset.size
        images = torch.randn(shape, generator=generator)
        labels = torch.randint(dataset.classes, (batch,), generator=generator)
        self.images, self.labels = device.put((images, labels))
        network.model.train()

    def forward(self) -> Tensor:
        """Return the loss."""
        with self.device.mixed_precision():
            return cross_entropy(self.logits(self.images), self.labels)

    def __call__(self) -> None:
        """Do the whole step."""
        loss = self.forward()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def training_step(cell: Cell, batch: int, device: Device, *, compiled: bool) -> Step:
    """Make a step with the cell's own network, its forward pass ``compiled`` or not."""
    step = Step(cell, make_network(cell, 0, device.torch), batch, device)
    if compiled:
        step.logits = torch.compile(step.logits)
    return step
