"""One training loop for every cell. It does not know which strategy it trains."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from pemn_ref.checks import check_same
from pemn_ref.prototype import random_stream
from reproduce.data.batches import Batch, TrainingBatches
from reproduce.rows.row import Epoch
from reproduce.study.recipes import Recipe
from reproduce.training.checkpoint import Checkpoint
from reproduce.training.device import Device
from reproduce.training.networks import Network
from reproduce.training.step import Step


def rate(recipe: Recipe, progress: float) -> float:
    """The learning rate of the step that ends at ``progress`` (above 0, up to 1) through the run.

    ``piecewise`` is linear from 0 to the highest rate at 2/5, a twentieth of it at 4/5 and 0 at the
    end. ``cosine`` is half a cosine from the highest rate to 0. ``steps`` takes a tenth of the
    highest rate after 1/2 and a hundredth after 3/4.
    """
    highest = recipe.learning_rate
    match recipe.schedule:
        case "piecewise":
            return float(np.interp(progress, [0, 2 / 5, 4 / 5, 1], [0, highest, highest / 20, 0]))
        case "cosine":
            return highest * (1 + math.cos(math.pi * progress)) / 2
        case "steps":
            return highest / 10.0 ** ((progress > 1 / 2) + (progress > 3 / 4))


@dataclass
class _Position:
    """How far training is: everything that changes besides network and optimizer."""

    loss: Tensor
    """Summed over the images so far of the current epoch, which follows those in ``history``."""
    images: int
    step: int
    seconds: float
    history: list[Epoch]


def train(
    network: Network,
    batches: TrainingBatches,
    held_out: Sequence[Batch],
    recipe: Recipe,
    *,
    seed: int,
    device: Device,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[list[Epoch]], object],
) -> list[Epoch]:
    """Train ``network`` in place and measure it on ``held_out`` after each epoch.

    Both are on ``device``. ``on_epoch`` is called with the epochs so far. If the ``checkpoint`` was
    written, training resumes from it. That changes no result and needs no generator state, since
    every random choice is a function of seed, epoch and step alone. Each step uses the learning
    rate of its end, as in the released code. Within an epoch no value is read, so the host never
    waits for the device.

    Raises:
        FloatingPointError: if the loss of an epoch, or the network after the last, is not finite.
        Stopped, CheckpointError, OSError: as ``Checkpoint``.
    """
    step = Step(recipe, network, device)
    optimizer = step.optimizer
    at = _Position(torch.zeros((), device=device.torch), images=0, step=0, seconds=0.0, history=[])
    if checkpoint:
        _resume(checkpoint, network, optimizer, at)
    for epoch in range(len(at.history), recipe.epochs):
        start = time.perf_counter() - at.seconds
        network.model.train()
        with device.own_stream():
            for batch in batches.epoch(epoch, at.step):
                x, y = device.put(batch)
                at.step += 1
                progress = (epoch + at.step / len(batches)) / recipe.epochs
                for group in optimizer.param_groups:
                    group["lr"] = rate(recipe, progress)
                device.draw_from(random_stream(f"dropout {epoch} {at.step}", seed))
                at.loss += step((x, y)) * len(y)
                at.images += len(y)
                at.seconds = time.perf_counter() - start
                if checkpoint:
                    checkpoint.after_step(lambda: _content(network, optimizer, at))
        mean = float(at.loss) / at.images
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} in epoch {epoch + 1}")
        seconds = time.perf_counter() - start
        at.history.append(Epoch(mean, accuracy(network, held_out), seconds))
        at.loss.zero_()
        at.images, at.step, at.seconds = 0, 0, 0.0
        on_epoch(at.history)
    if not all(bool(tensor.isfinite().all()) for tensor in network.tensors.values()):
        raise FloatingPointError("the network is not finite after its last step")
    return at.history


def _content(network: Network, optimizer: torch.optim.Optimizer, at: _Position) -> dict[str, Any]:
    tensors = {name: tensor.detach() for name, tensor in network.tensors.items()}
    position = {**vars(at), "history": [*map(structs.astuple, at.history)]}
    return {"tensors": tensors, "optimizer": optimizer.state_dict(), "position": position}


def epochs_kept(checkpoint: Checkpoint) -> list[Epoch]:
    """The whole epochs in a checkpoint; none if it was never written.

    Raises:
        CheckpointError, OSError: as ``train``.
    """
    content = checkpoint.read()
    return _position(checkpoint, content).history if content else []


def _position(checkpoint: Checkpoint, content: dict[str, Any]) -> _Position:
    with checkpoint.of_this_version():
        history = [Epoch(*epoch) for epoch in content["position"]["history"]]
        return _Position(**{**content["position"], "history": history})


@torch.no_grad()
def _resume(
    checkpoint: Checkpoint, network: Network, optimizer: torch.optim.Optimizer, at: _Position
) -> None:
    """Restore network, optimizer and position from the checkpoint, if it was written."""
    content = checkpoint.read()
    if content is None:
        return
    position = _position(checkpoint, content)
    with checkpoint.of_this_version():
        check_same("the tensors do not fit", content["tensors"], network.tensors)
        optimizer.load_state_dict(content["optimizer"])
    for name, tensor in network.tensors.items():
        tensor.copy_(content["tensors"][name])
    position.loss = at.loss.copy_(position.loss)
    vars(at).update(vars(position))


@torch.no_grad()
def accuracy(network: Network, batches: Iterable[Batch]) -> float:
    """The fraction of images whose largest logit is that of their label.

    Not in bfloat16: it has eight bits, so the two largest logits are too often equal.
    """
    network.model.eval()
    hits = [network.logits(x).argmax(dim=1) == y for x, y in batches]
    return float(torch.cat(hits).double().mean())
