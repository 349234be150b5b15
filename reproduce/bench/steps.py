"""What steps cost, as ratios: masked against dense, masks alone, augmentation."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import pemn_ref as pemn
from pemn_ref.prototype import random_stream
from reproduce.bench.timing import Ratio, compare
from reproduce.data.datasets import DATASETS
from reproduce.data.images import Images
from reproduce.study.cells import Cell
from reproduce.study.studies import STUDIES
from reproduce.training.device import Device
from reproduce.training.networks import make_model
from reproduce.training.run import training_batches
from reproduce.training.step import Trial, training_step

CELLS = (
    STUDIES["paper"]
    .chosen(
        models=["convmixer-d6-w256", "resnet32", "vit-d6-w256"],
        strategies=["mp"],
        datasets=["cifar10"],
    )
    .cells
)


def sorted_mask(scores: Tensor, density: float) -> Tensor:
    """Mask a layer by sorting all of it, as the released code does."""
    order = scores.detach().abs().flatten().argsort()
    mask = torch.ones(scores.numel(), device=scores.device)
    mask[order[: scores.numel() - pemn.kept(scores.numel(), density)]] = 0
    magnitude = scores.abs()
    return mask.reshape(scores.shape) + (magnitude - magnitude.detach())


def plain_step(cell: Cell, batch: int, device: Device) -> Trial:
    """A step whose masks are made by the reference, layer by layer."""
    trial = training_step(cell, batch, device, compiled=False)
    network, density = trial.step.network, cell.density
    state = network.state
    assert state is not None
    assert density is not None
    trial.step.logits = lambda images: pemn.masked_forward(
        network.model, *state, images, density=density
    )
    return trial


def augmentation(cell: Cell, batch: int, device: Device) -> Callable[[], object]:
    """A function that makes one batch, of random bytes: they cost as much as photographs."""
    dataset, stream = DATASETS[cell.dataset], random_stream("noise", 0)
    shape = batch, dataset.channels, dataset.size, dataset.size
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=stream)
    images = Images(pixels, torch.zeros(batch, dtype=torch.long))
    batches = training_batches(cell, images, 0, device)
    return lambda: list(batches.epoch(0))


def bench_steps(
    device: Device, *, batch: int, compiled: bool, pairs: int = 10, seconds: float = 2
) -> Iterator[Ratio]:
    """Yield all ratios, one after the other; with ``compiled`` those of compiled steps, too.

    Steps make masks as training does, by ``pemn_ref.fast``; one ratio has the reference's masks.
    """
    timed = partial(compare, pairs=pairs, seconds=seconds, synchronize=device.synchronize)
    modes = (False, True) if compiled else (False,)
    for cell in CELLS:
        dense = replace(cell, strategy="dense", density=None)
        for mode in modes:
            yield timed(
                f"{cell.model.label}: step masked / dense{', compiled' if mode else ''}",
                training_step(cell, batch, device, compiled=mode),
                training_step(dense, batch, device, compiled=mode),
            )
        yield timed(
            f"{cell.model.label}: step masked by the reference / dense",
            plain_step(cell, batch, device),
            training_step(dense, batch, device, compiled=False),
        )

    for cell in CELLS:
        drawn = pemn.init_scores(pemn.maskable_shapes(make_model(cell, 0)), seed=0)
        scores = [s.to(device.torch).requires_grad_() for s in drawn.values()]

        def by(make: Callable[[Tensor], Tensor], scores: list[Tensor] = scores) -> None:
            torch.autograd.backward([make(s).sum() for s in scores])

        yield timed(
            f"{cell.model.label}: masks with gradient / as in the released code",
            lambda: by(partial(pemn.score_mask, density=0.5)),
            lambda: by(partial(sorted_mask, density=0.5)),
        )

    for cell in CELLS:
        yield timed(
            f"{cell.model.label}: a batch augmented / step masked",
            augmentation(cell, batch, device),
            training_step(cell, batch, device, compiled=False),
        )
