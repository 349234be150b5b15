"""The algorithm again, slow and obvious, in numpy and exact fractions.

It shares no code with any implementation, and is what the clauses compare with.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Shapes = Mapping[str, Sequence[int]]


def prototype_length(numel: int, ratio: float) -> int:
    """One more than the whole part of numel times the ratio, at most numel."""
    return min(numel, int(Fraction(repr(float(ratio))) * numel) + 1)


def kept(numel: int, density: float) -> int:
    """The density, rounded to 12 decimals, of numel, rounded up; at least one."""
    exact = Fraction(round(density * 10**12), 10**12) * numel
    return max(1, math.ceil(exact))


def groups(shapes: Shapes, strategy: str) -> dict[str, list[str]]:
    """Names of the weights that share a prototype, group by group."""
    members: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        key = {"mask": name, "one_layer": str(tuple(shape)), "mp": "", "rp": ""}[strategy]
        members.setdefault(key, []).append(name)
    return members


def lengths(shapes: Shapes, strategy: str, ratio: float) -> list[int]:
    """Lengths of the prototypes, shortest first."""
    return sorted(
        prototype_length(max(math.prod(shapes[name]) for name in names), ratio)
        for names in groups(shapes, strategy).values()
    )


def giver(shapes: Shapes) -> str:
    """The largest weight, the first of equals."""
    largest = max(math.prod(shape) for shape in shapes.values())
    return next(name for name, shape in shapes.items() if math.prod(shape) == largest)


def fill(values: Sequence[float], shape: Sequence[int]) -> Array:
    """Element i, row by row, takes ``values[i mod L]``."""
    flat = [values[i % len(values)] for i in range(math.prod(shape))]
    return np.array(flat, dtype=np.float64).reshape(tuple(shape))


def mask(scores: Array, density: float) -> Array:
    """1 for the largest |score|; of equals the later ones; NaN as infinite."""
    magnitude = [math.inf if math.isnan(s) else abs(s) for s in scores.ravel().tolist()]
    ranked = sorted(
        range(len(magnitude)), key=lambda i: magnitude[i]
    )  # of equals the earlier first
    flat = np.ones(len(magnitude))
    flat[ranked[: len(magnitude) - kept(len(magnitude), density)]] = 0.0
    return flat.reshape(scores.shape)


def score_gradient(weight_gradient: Array, weight: Array, scores: Array) -> Array:
    """Straight-through: the gradient of the masked weight, times weight and sign of the score."""
    signs = np.where(np.isfinite(scores), np.sign(scores), 0.0)
    return weight_gradient * weight * signs


def linear_weight_gradient(x: Array, upstream: Array) -> Array:
    """Gradient of ``sum(upstream * (x @ weight.T))`` with respect to the weight."""
    gradient = np.zeros((upstream.shape[1], x.shape[1]))
    for example in range(x.shape[0]):
        gradient += np.outer(upstream[example], x[example])
    return gradient


def conv_weight_gradient(x: Array, upstream: Array, kernel: int) -> Array:
    """The same for a 2-D convolution with stride 1 and no padding."""
    batch, channels, _, _ = x.shape
    _, filters, height, width = upstream.shape
    gradient = np.zeros((filters, channels, kernel, kernel))
    for n, f, c, i, j in np.ndindex(batch, filters, channels, kernel, kernel):
        patch = x[n, c, i : i + height, j : j + width]
        gradient[f, c, i, j] += np.sum(patch * upstream[n, f])
    return gradient


def unique_values(shapes: Shapes, strategy: str, ratio: float) -> int:
    """Distinct values by index: how many (prototype, index) pairs the weights read."""
    read = set()
    for key, names in groups(shapes, strategy).items():
        length = prototype_length(max(math.prod(shapes[name]) for name in names), ratio)
        for name in names:
            read |= {(key, i % length) for i in range(math.prod(shapes[name]))}
    return len(read)
