"""One training loop for every cell. It does not know which strategy it trains."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pemn_ref.prototype import random_stream
from reproduce.data.batches import Batch, TrainingBatches
from reproduce.device import Device
from reproduce.networks import Network
from reproduce.recipes import Recipe


class Epoch(NamedTuple):
    """What one epoch gave: mean training loss, accuracy on the held-out images (a fraction).

    ``seconds`` are those of training alone.
    """

    loss: float
    accuracy: float
    seconds: float


def rate(recipe: Recipe, progress: float) -> float:
    """The learning rate of the step that ends at ``progress`` (above 0, up to 1) through the run.

    ``piecewise`` linear: 0, the highest at 2/5, a twentieth of it at 4/5, 0 at the end; half a
    ``cosine`` from the highest to 0; or in ``steps``: a tenth after 1/2, a hundredth after 3/4.
    """
    highest = recipe.learning_rate
    match recipe.schedule:
        case "piecewise":
            return float(np.interp(progress, [0, 2 / 5, 4 / 5, 1], [0, highest, highest / 20, 0]))
        case "cosine":
            return highest * (1 + math.cos(math.pi * progress)) / 2
        case "steps":
            return highest / 10.0 ** ((progress > 1 / 2) + (progress > 3 / 4))


def make_optimizer(recipe: Recipe, tensors: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a recipe, all tensors in one group."""
    lr, decay = recipe.learning_rate, recipe.weight_decay
    match recipe.optimizer:
        case "adamw":
            return torch.optim.AdamW(tensors, lr, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(tensors, lr, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(tensors, lr, momentum=recipe.momentum, weight_decay=decay)


def train(
    network: Network,
    batches: TrainingBatches,
    held_out: Sequence[Batch],
    recipe: Recipe,
    *,
    seed: int,
    device: Device,
    on_epoch: Callable[[Epoch], object],
) -> list[Epoch]:
    """Train ``network`` in place and measure it on ``held_out`` after each epoch.

    Both are on ``device``. Every random choice is a function of seed and epoch alone. The rate is
    set at each step, to that of the step's end, as the released code has it. Within an epoch no
    value is read, so the device never waits for the host.

    Raises:
        FloatingPointError: if the loss of an epoch is not finite.
    """
    optimizer = make_optimizer(recipe, network.trained)
    history = []
    for epoch in range(recipe.epochs):
        start = time.perf_counter()
        network.model.train()
        total, images = torch.zeros((), device=device.torch), 0
        with device.drawing_from(random_stream(f"dropout {epoch}", seed)):
            for step, batch in enumerate(batches.epoch(epoch), start=1):
                x, y = device.put(batch)
                progress = (epoch + step / len(batches)) / recipe.epochs
                for group in optimizer.param_groups:
                    group["lr"] = rate(recipe, progress)
                with device.mixed_precision():
                    loss = cross_entropy(network.logits(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(y)
                images += len(y)
        mean = float(total) / images
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} in epoch {epoch + 1}")
        seconds = time.perf_counter() - start
        history.append(Epoch(mean, accuracy(network, held_out), seconds))
        on_epoch(history[-1])
    return history


@torch.no_grad()
def accuracy(network: Network, batches: Iterable[Batch]) -> float:
    """The fraction of images whose largest logit is that of their label, in full precision.

    (In bfloat16, which has eight bits, the largest two are too often equal.)
    """
    network.model.eval()
    hits = [network.logits(x).argmax(dim=1) == y for x, y in batches]
    return float(torch.cat(hits).double().mean())
