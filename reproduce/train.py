"""One training loop for every cell. It does not know which strategy it trains."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pemn_ref.prototype import random_stream
from reproduce.cells import Recipe
from reproduce.data import Split
from reproduce.networks import Network


class Epoch(NamedTuple):
    """What one epoch gave: mean training loss, accuracy on the held-out images (a fraction)."""

    loss: float
    accuracy: float


def rate(recipe: Recipe, progress: float) -> float:
    """The learning rate at ``progress`` (0 to 1) through the run.

    Piecewise linear: 0, the highest at 2/5, a twentieth of it at 4/5, 0 at the end.
    """
    highest = recipe.learning_rate
    return float(np.interp(progress, [0, 2 / 5, 4 / 5, 1], [0, highest, highest / 20, 0]))


def train(
    network: Network,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], object],
) -> list[Epoch]:
    """Train ``network`` in place and measure it after each epoch.

    The order of the images is a function of seed and epoch alone. The rate is set at each step, to
    that of the step's end, as the released code has it.

    Raises:
        FloatingPointError: if the loss of an epoch is not finite.
    """
    optimizer = torch.optim.AdamW(network.trained, weight_decay=recipe.weight_decay)
    images, labels = split.train_images, split.train_labels
    history = []
    for epoch in range(recipe.epochs):
        network.model.train()
        order = torch.randperm(len(labels), generator=random_stream(f"order {epoch}", seed))
        batches = order.split(recipe.batch)
        total = torch.zeros(())
        for step, batch in enumerate(batches, start=1):
            progress = (epoch + step / len(batches)) / recipe.epochs
            for group in optimizer.param_groups:
                group["lr"] = rate(recipe, progress)
            loss = cross_entropy(network.logits(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        mean = float(total) / len(labels)
        if not np.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} in epoch {epoch + 1}")
        history.append(Epoch(mean, accuracy(network, split.test_images, split.test_labels)))
        on_epoch(history[-1])
    return history


@torch.no_grad()
def accuracy(network: Network, images: Tensor, labels: Tensor) -> float:
    """The fraction of images whose largest logit is that of their label."""
    network.model.eval()
    correct = sum(
        int((network.logits(x).argmax(dim=1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return correct / len(labels)
