"""One step of the training loop: a batch's loss, its gradients, the optimizer."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reproduce.data.batches import Batch
from reproduce.data.datasets import DATASETS
from reproduce.study.cells import Cell
from reproduce.study.recipes import Recipe
from reproduce.training.device import Device
from reproduce.training.networks import Network, make_network


def make_optimizer(
    recipe: Recipe, tensors: Iterable[Tensor], *, fused: bool
) -> torch.optim.Optimizer:
    """The optimizer of a recipe, with all tensors in one group; ``fused`` is the device's."""
    lr, decay = recipe.learning_rate, recipe.weight_decay
    match recipe.optimizer:
        case "adamw":
            return torch.optim.AdamW(tensors, lr, weight_decay=decay, fused=fused)
        case "adam":
            return torch.optim.Adam(tensors, lr, weight_decay=decay, fused=fused)
        case "sgd":
            momentum = recipe.momentum
            return torch.optim.SGD(tensors, lr, momentum, weight_decay=decay, fused=fused)


class Step:
    """The step that trains ``network``: call it with a batch to get the loss before the step."""

    def __init__(self, recipe: Recipe, network: Network, device: Device) -> None:
        self.network, self.device = network, device
        self.logits = network.logits
        self.optimizer = make_optimizer(recipe, network.trained, fused=device.fused)
        self._run = device.runner(network.trained, record=network.recordable)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss."""
        images, labels = batch
        with self.device.mixed_precision():
            return cross_entropy(self.logits(images), labels)

    def _gradients(self, batch: Batch) -> Tensor:
        loss = self.forward(batch)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def __call__(self, batch: Batch) -> Tensor:
        """Do the whole step."""
        loss = self._run(self._gradients, batch)
        self.optimizer.step()
        return loss


@dataclass(frozen=True)
class Trial:
    """A step and the batch that it repeats, to be measured or counted."""

    step: Step
    batch: Batch

    def __call__(self) -> None:
        """Do the whole step."""
        self.step(self.batch)

    def forward(self) -> Tensor:
        """Return the loss."""
        return self.step.forward(self.batch)


def make_trial(cell: Cell, network: Network, batch: int, device: Device) -> Trial:
    """A step of a network of the cell, on ``batch`` images of noise."""
    dataset = DATASETS[cell.dataset]
    generator = torch.Generator().manual_seed(0)
    shape = batch, dataset.channels, dataset.size, dataset.size
    images = torch.randn(shape, generator=generator)
    labels = torch.randint(dataset.classes, (batch,), generator=generator)
    network.model.train()
    return Trial(Step(cell.recipe, network, device), device.put((images, labels)))


def training_step(cell: Cell, batch: int, device: Device, *, compiled: bool) -> Trial:
    """A step of the cell's own network, its forward pass ``compiled`` or not."""
    trial = make_trial(cell, make_network(cell, 0, device.torch), batch, device)
    if compiled:
        trial.step.logits = torch.compile(trial.step.logits)
    return trial
