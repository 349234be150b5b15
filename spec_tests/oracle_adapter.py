"""The numpy oracle as an implementation of prototype, fill, mask and storage; it has no gradients.

``python -m spec_tests run --impl spec_tests.oracle_adapter --clause 'P*,F*,M*,S*'``
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spec_tests import oracle
from spec_tests.contract import Density, Shapes, Tensors

prototype_length = oracle.prototype_length
kept = oracle.kept


class Strategy(NamedTuple):
    """A strategy as the oracle takes it."""

    name: str
    ratio: float = 1.0


mask, one_layer, mp = Strategy("mask"), Strategy("one_layer"), Strategy("mp")


def rp(ratio: float) -> Strategy:
    """The strategy with a ratio."""
    return Strategy("rp", ratio)


def _stream(name: str, seed: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{name}/{seed}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def make_prototype(shapes: Shapes, strategy: Strategy, *, seed: int) -> dict[str, Tensor]:
    """Group -> values, group by group, each drawn whole and cut."""
    stream = _stream("prototype", seed)
    prototype = {}
    for group, names in oracle.groups(shapes, strategy.name).items():
        members = {name: shapes[name] for name in names}
        shape = shapes[oracle.giver(members)]
        values = stream.normal(0, math.sqrt(2 / math.prod(shape[1:])), math.prod(shape))
        length = oracle.prototype_length(math.prod(shape), strategy.ratio)
        prototype[group] = torch.from_numpy(values[:length]).float()
    return prototype


def init_scores(shapes: Shapes, *, seed: int) -> dict[str, Tensor]:
    """Name -> scores, uniform within 1 / sqrt(fan_in)."""
    stream = _stream("scores", seed)
    scores = {}
    for name, shape in shapes.items():
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        drawn = torch.from_numpy(stream.uniform(-bound, bound, tuple(shape))).float()
        scores[name] = drawn.clamp(-bound, bound)
    return scores


def fill_weights(prototype: Tensors, shapes: Shapes, strategy: Strategy) -> dict[str, Tensor]:
    """Name -> weight, value by value."""
    weights = {}
    for group, names in oracle.groups(shapes, strategy.name).items():
        values = prototype[group].detach()
        for name in names:
            filled = oracle.fill(values.double().tolist(), shapes[name])
            weights[name] = torch.from_numpy(filled).to(values.dtype)
    return {name: weights[name] for name in shapes}


def score_mask(scores: Tensor, *, density: float) -> Tensor:
    """The mask, without gradient."""
    return torch.from_numpy(oracle.mask(scores.double().numpy(), density)).to(scores.dtype)


def apply_mask(weights: Tensors, scores: Tensors, *, density: Density) -> dict[str, Tensor]:
    """Name -> masked weight, without gradient."""
    each = density if isinstance(density, Mapping) else dict.fromkeys(weights, density)
    for name in weights.keys() ^ each.keys():
        raise ValueError(f"no density for each weight and no other: {name}")
    return {
        name: weight * score_mask(scores[name], density=each[name]).to(weight.dtype)
        for name, weight in weights.items()
    }


class Storage(NamedTuple):
    """Sizes as the contract names them."""

    weights: int
    unique: int
    paper: float
    whole: float | None
    bits: int
    dense_bits: int


def storage(shapes: Shapes, strategy: Strategy, others: Iterable[Tensor] | None = None) -> Storage:
    """Both accountings, from the counted values."""
    weights = sum(math.prod(shape) for shape in shapes.values())
    unique = oracle.unique_values(shapes, strategy.name, strategy.ratio)
    more = sum(8 * tensor.element_size() * tensor.numel() for tensor in others or ())
    masked, dense = weights + 32 * unique, 32 * weights
    return Storage(
        weights,
        unique,
        1 - masked / dense,
        None if others is None else 1 - (masked + more) / (dense + more),
        masked + more,
        dense + more,
    )
