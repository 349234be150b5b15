"""The mask: a score per weight is learned, and each layer keeps the largest |score|s."""

import math

import torch
from torch import Tensor

from pemn_ref.checks import (
    Density,
    Shapes,
    Tensors,
    check_fraction,
    check_same,
    check_shapes,
    each_density,
)
from pemn_ref.prototype import fan_in, random_stream


def init_scores(shapes: Shapes, *, seed: int) -> dict[str, Tensor]:
    """Draw the scores: Kaiming uniform with a = sqrt(5), layer by layer (released code).

    Returns name -> scores of the weight's shape, float32 on the CPU, uniform within
    ``±1 / sqrt(fan_in)``. The global random state is not used or changed.

    Raises:
        ValueError: if ``shapes`` is empty, a weight has no elements or ``seed`` is not an int.

    >>> scores = init_scores({"fc.weight": (10, 16)}, seed=0)["fc.weight"]
    >>> scores.shape, bool(scores.abs().max() <= 1 / 4)
    (torch.Size([10, 16]), True)
    """
    check_shapes(shapes)
    generator = random_stream("scores", seed)
    scores = {}
    for name, shape in shapes.items():
        uniform = torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")
        scores[name] = (2 * uniform - 1) / math.sqrt(fan_in(shape))
    return scores


def kept(numel: int, density: float) -> int:
    """How many weights a layer keeps: ``max(1, ceil(density * numel))``.

    The density is rounded to 12 decimals and the rest is done in integers (ours). Floating point
    sometimes keeps one weight too many, as the released code does. Integers also compile. For
    example, 2 / 3 is rounded up, so a layer of 3 weights keeps all 3.

    Raises:
        ValueError: if ``numel`` is not positive or ``density`` lies outside (0, 1].

    >>> kept(90, 0.3), kept(90, 0.31), kept(3, 0.5), kept(5, 1e-9)
    (27, 28, 2, 1)
    """
    if numel < 1:
        raise ValueError(f"numel must be at least 1, got {numel!r}")
    check_fraction("density", density)
    trillion = 10**12
    share = round(float(density) * trillion)
    return max(1, (share * numel + trillion - 1) // trillion)  # the quotient, rounded up


def score_mask(scores: Tensor, *, density: float) -> Tensor:
    """The mask of one layer: 1 for the ``kept`` largest |score|, else 0 (paper, section 3).

    Among equal scores, the earlier ones (row-major) are dropped first; NaN counts as infinite.
    Returns a tensor of the shape, dtype and device of ``scores``, every value exactly 0.0 or 1.0.

    The gradient is straight-through: it reaches every score, kept or dropped, as if the mask were
    |score|. So it is the mask's gradient times ``sign(score)``. A non-finite score gets 0.

    Raises:
        ValueError: if ``scores`` is empty or not of a real floating dtype, or ``density`` lies
            outside (0, 1].

    >>> score_mask(torch.tensor([3.0, -4.0, 0.0, 1.0]), density=0.5)
    tensor([1., 1., 0., 0.])
    """
    if not scores.is_floating_point():
        raise ValueError(f"scores must be of a real floating dtype, got {scores.dtype}")
    magnitude = scores.detach().abs().flatten()
    magnitude = torch.where(magnitude.isnan(), math.inf, magnitude)  # a sort ranks NaN above inf
    order = magnitude.argsort(stable=True)  # ascending, ties by index
    dropped = order[: scores.numel() - kept(scores.numel(), density)]
    mask = torch.ones_like(magnitude).scatter(0, dropped, 0).reshape(scores.shape)

    # Straight-through by algebra: this adds exactly 0 to the mask, and |score| to its graph. An
    # autograd.Function silently returned all-zero gradients under compile with func.grad.
    finite = torch.where(scores.isfinite(), scores, 0).abs()  # inf - inf would be NaN
    return mask + (finite - finite.detach())


def apply_mask(weights: Tensors, scores: Tensors, *, density: Density) -> dict[str, Tensor]:
    """Weights times masks, layer by layer (paper, section 3).

    Returns name -> masked weight, of the shape, dtype and device of the weight. ``density`` is one
    fraction for all layers, or a mapping with one for each (ours; the paper has one).

    Gradients flow straight-through to the scores, and to weights that require one (the filled ones
    do not).

    Raises:
        ValueError: if weights and scores differ in names or shapes, or ``density`` lies outside
            (0, 1] or has other names.

    >>> weights = {"fc.weight": torch.tensor([[1.0, -2.0]])}
    >>> apply_mask(weights, {"fc.weight": torch.tensor([[0.1, -0.2]])}, density=0.5)
    {'fc.weight': tensor([[ 0., -2.]])}
    """
    check_same("scores do not fit the weights", scores, weights)
    each = each_density(density, weights)
    return {
        name: weight * score_mask(scores[name], density=each[name]).to(weight.dtype)
        for name, weight in weights.items()
    }
