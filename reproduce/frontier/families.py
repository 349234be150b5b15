"""Ways to spend few bits a weight: each is one function from learned tensors to weights.

A function passes all that the network's file must hold through ``keep``, with the code by which it
is stored. In training ``keep`` gives it back as it is, gradient and all; a writer takes it down; a
reader gives back what a file holds, whatever it is passed. So the network that is trained, its file
and the network that is read come from the same few lines.

Gradients are straight-through (``_through``): a stored value moves as if it were the learned one.
The magnitude of signs is free: the Kaiming value of each layer's own shape (``gain``).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pemn_ref import fill_weights, kept, make_prototype, rp
from pemn_ref.checks import Shapes, Tensors
from pemn_ref.fast import score_mask
from pemn_ref.prototype import fan_in, prototype_groups


class Code(NamedTuple):
    """How whole numbers are stored: entropy-coded, by how often each is expected."""

    values: tuple[int, ...]
    """All that there are, ascending."""
    chances: tuple[float, ...]


Keep = Callable[[Tensor, Code | torch.dtype], Tensor]
"""A tensor and how it is stored, by a code or as numbers of a dtype -> the tensor to go on with."""


class Choice(NamedTuple):
    """What a family is applied to."""

    shapes: Shapes
    """Of the weights."""
    ratio: float
    """Of a prototype or tile to the longest it could be; 1 where nothing is cut. Of signs that are
    not learned 0: each weight has one of its own, and a seed is stored in their stead."""
    density: float
    """Of each mask."""


def first_tensors(family: "Family", choice: Choice, *, seed: int) -> dict[str, Tensor]:
    """What stands beside the scores: ``prototype`` or ``seed``, and ``NAME scale`` of ones."""
    tensors = {"seed": torch.tensor([seed])}
    if choice.ratio:
        tensors = {"prototype": make_prototype(choice.shapes, rp(choice.ratio), seed=seed)["all"]}
    if family.scaled:
        for name, shape in choice.shapes.items():
            tensors[f"{name} scale"] = torch.ones(shape[0], *[1] * (len(shape) - 1))
    return tensors


def make_weights(family: "Family", learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Name -> weight. ``learned`` are the scores, by name, and what ``first_tensors`` gives."""
    weights = family.weights(learned, choice, keep)
    if not family.scaled:
        return weights
    return {n: w * keep(_half(learned[f"{n} scale"]), torch.float16) for n, w in weights.items()}


def gain(shape: Sequence[int]) -> float:
    """The Kaiming standard deviation of a layer of this shape, sqrt(2 / fan_in)."""
    return math.sqrt(2 / fan_in(shape))


def prototype_masks(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """PEMN: masks over a vector of random values, which the file holds as float32."""
    filled = _fill(keep(learned["prototype"], torch.float32), choice)
    return {name: weight * _mask(learned[name], choice, keep) for name, weight in filled.items()}


def rescaled_masks(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """PEMN, the vector in each layer as large as if it were drawn for that layer's own fan-in."""
    ((_, giver),) = prototype_groups(choice.shapes, rp(choice.ratio)).values()
    factor = {name: gain(shape) / gain(choice.shapes[giver]) for name, shape in _each(choice)}
    masked = prototype_masks(learned, choice, keep)
    return {name: weight * factor[name] for name, weight in masked.items()}


def signed_masks(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Masks over signed constants: signs that are not learned, and no other value."""
    filled = _random_signs(learned, choice, keep)
    return {n: gain(w.shape) * w * _mask(learned[n], choice, keep) for n, w in filled.items()}


def signs(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Learned signs, nothing masked."""
    return {n: gain(shape) * keep(_sign(learned[n]), SIGNS) for n, shape in _each(choice)}


def tiled_signs(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Learned signs for the first part of a layer, ``ratio`` of it, repeated over the rest."""
    weights = {}
    for name, shape in _each(choice):
        tile = learned[name].flatten()[: math.ceil(choice.ratio * shape.numel())]
        index = torch.arange(shape.numel(), device=tile.device) % len(tile)
        whole = keep(_sign(tile), SIGNS)[index]
        weights[name] = gain(shape) * whole.view(shape)
    return weights


def ternary(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Learned signs of the largest |scores| of a layer; the others are zero."""
    weights = {}
    for name, shape in _each(choice):
        share = kept(shape.numel(), choice.density) / shape.numel()
        mask = score_mask(learned[name], density=choice.density)
        weights[name] = gain(shape) * keep(_trits(mask, learned[name]), _ternary(share))
    return weights


def global_masks(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Signed constants, the masks by a ranking over all layers."""
    filled = _random_signs(learned, choice, keep)
    ranked = _ranked(learned, choice, keep)
    return {
        name: gain(weight.shape) * weight * keep(ranked[name][0], _masks(ranked[name][1]))
        for name, weight in filled.items()
    }


def global_ternary(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """As ``ternary``, the masks by a ranking over all layers."""
    return {
        name: gain(mask.shape) * keep(_trits(mask, learned[name]), _ternary(share))
        for name, (mask, share) in _ranked(learned, choice, keep).items()
    }


def half_frozen(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Learned signs of every other weight; between them signs that are not learned."""
    filled = _random_signs(learned, choice, keep)
    weights = {}
    for name, weight in filled.items():
        mixed = weight.flatten().clone()
        mixed[::2] = keep(_sign(learned[name].flatten()[::2]), SIGNS)
        weights[name] = gain(weight.shape) * mixed.view(weight.shape)
    return weights


def float32(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Ordinary weights."""
    return {name: keep(learned[name], torch.float32) for name in choice.shapes}


def float16(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Ordinary weights, rounded to float16."""
    return {name: keep(_half(learned[name]), torch.float16) for name in choice.shapes}


def int8(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Ordinary weights in 255 levels for each output channel, by torch's fake quantisation."""
    weights = {}
    for name, shape in _each(choice):
        rows = learned[name].flatten(1)
        largest = rows.detach().abs().amax(1, keepdim=True).clamp(min=1e-3)
        step = keep(_half(largest / 126.9), torch.float16)  # so that rounding it clips none
        ones = torch.ones(len(rows), device=rows.device)
        zeros = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
        level = torch.fake_quantize_per_channel_affine(rows / step, ones, zeros, 0, -127, 127)
        weights[name] = (keep(level, LEVELS) * step).view(shape)
    return weights


def pruned(learned: Tensors, choice: Choice, keep: Keep) -> Tensors:
    """Ordinary weights in float16, in each layer the largest; the others are zero."""
    weights = {}
    for name, weight in learned.items():
        if name in choice.shapes:
            there = _mask(weight, choice, keep).bool()
            values = keep(_half(weight.detach())[there], torch.float16)
            weights[name] = _through(torch.zeros_like(weight).masked_scatter(there, values), weight)
    return weights


SIGNS = Code((-1, 1), (0.5, 0.5))
LEVELS = Code((*range(-127, 128),), (1 / 255,) * 255)


def _masks(share: float) -> Code:
    """Of masks with that share of ones."""
    return Code((0, 1), (1 - share, share))


def _ternary(share: float) -> Code:
    """Of signs with that share of others than zero."""
    return Code((-1, 0, 1), (share / 2, 1 - share, share / 2))


def _mask(score: Tensor, choice: Choice, keep: Keep) -> Tensor:
    share = kept(score.numel(), choice.density) / score.numel()
    return keep(score_mask(score, density=choice.density), _masks(share))


def _ranked(learned: Tensors, choice: Choice, keep: Keep) -> dict[str, tuple[Tensor, float]]:
    """Name -> mask by a ranking of all scores, and its share of ones.

    Scores are ranked in units of where each layer's began, and their gradient is in these, too. How
    many each layer keeps is in the file. No share is 0 or 1, which the coder would refuse.
    """
    scores = [learned[n].flatten() * math.sqrt(fan_in(shape)) for n, shape in _each(choice)]
    masks = score_mask(torch.cat(scores), density=choice.density).split([*map(len, scores)])
    counts = keep(torch.stack([mask.detach().sum() for mask in masks]), torch.int32).tolist()
    return {
        name: (mask.view(shape), min(max(count, 0.5), len(mask) - 0.5) / len(mask))
        for (name, shape), mask, count in zip(_each(choice), masks, counts, strict=True)
    }


def _fill(prototype: Tensor, choice: Choice) -> dict[str, Tensor]:
    return fill_weights({"all": prototype}, choice.shapes, rp(choice.ratio))


def _random_signs(learned: Tensors, choice: Choice, keep: Keep) -> dict[str, Tensor]:
    """Of each weight: those of a prototype, or by a seed.

    SHAKE-256 is a standard, so that the seed gives the same signs for ever; the random streams of
    torch promise that for no other version.
    """
    if choice.ratio:
        return _fill(keep(learned["prototype"].sign(), SIGNS), choice)
    seed = keep(learned["seed"], torch.int64)
    sizes = [shape.numel() for _, shape in _each(choice)]
    drawn = hashlib.shake_256(f"signs {int(seed)}".encode()).digest(-(-sum(sizes) // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8))[: sum(sizes)]
    signs = torch.from_numpy(2 * bits.astype(np.float32) - 1).to(seed.device).split(sizes)
    return {n: part.view(shape) for (n, shape), part in zip(_each(choice), signs, strict=True)}


def _each(choice: Choice) -> list[tuple[str, torch.Size]]:
    return [(name, torch.Size(shape)) for name, shape in choice.shapes.items()]


def _trits(mask: Tensor, score: Tensor) -> Tensor:
    return _through(mask.detach() * score.sign(), score)


def _sign(score: Tensor) -> Tensor:
    return _through(torch.where(score >= 0, 1.0, -1.0), score)


def _half(values: Tensor) -> Tensor:
    return _through(values.detach().half().float(), values)


def _through(stored: Tensor, learned: Tensor) -> Tensor:
    """The first's values, which are added exactly 0, with the gradient of the second."""
    return stored + (learned - learned.detach())


class Family(NamedTuple):
    """A way to store weights."""

    weights: Callable[[Tensors, Choice, Keep], Tensors]
    scaled: bool = False
    """Whether each output channel has a learned factor, in float16."""
    trained: bool = True
    """Whether the scores are."""


FAMILIES = {
    "mp": Family(prototype_masks),
    "rp": Family(prototype_masks),
    "control": Family(prototype_masks, trained=False),
    "rescaled": Family(rescaled_masks),
    "signed": Family(signed_masks),
    "signed-scaled": Family(signed_masks, scaled=True),
    "global": Family(global_masks),
    "global-scaled": Family(global_masks, scaled=True),
    "signs": Family(signs),
    "scaled": Family(signs, scaled=True),
    "tiled": Family(tiled_signs),
    "frozen": Family(half_frozen),
    "ternary": Family(ternary),
    "global-ternary": Family(global_ternary),
    "pruned": Family(pruned),
    "int8": Family(int8),
    "float16": Family(float16),
    "float32": Family(float32),
}
