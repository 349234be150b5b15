"""M: mistakes in masks."""

import math
from typing import Any

import torch
from torch import Tensor

from spec_tests.gallery.mistakes import mistake


def straight_through(keep: Tensor, scores: Tensor) -> Tensor:
    """The mask of the scores from bools in a row, with the right gradient."""
    mask = keep.reshape(scores.shape).to(scores.dtype)
    finite = torch.where(scores.isfinite(), scores, 0).abs()
    return mask + (finite - finite.detach())


def last_of_sorted(ranks: Tensor, number: int) -> Tensor:
    """Bools of the ``number`` largest ranks, of equal ones the later."""
    keep = torch.zeros_like(ranks, dtype=torch.bool)
    keep[ranks.argsort(stable=True)[len(ranks) - number :]] = True
    return keep


@mistake("M1", "the released count: int((1 - density) * n) dropped")
def kept(right: Any, numel: int, density: float) -> Any:
    return numel - int((1 - density) * numel)


@mistake("M1", "density read as the fraction dropped")
def kept(right: Any, numel: int, density: float) -> Any:
    return numel - right.kept(numel, density)


@mistake("M1", "rounded up in floating point: 0.07 of 100 are 8")
def kept(right: Any, numel: int, density: float) -> Any:
    return max(1, math.ceil(density * numel))


@mistake("M2", "one weight too many")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    ranks = scores.detach().flatten().abs()
    number = min(len(ranks), right.kept(len(ranks), density) + 1)
    return straight_through(last_of_sorted(ranks, number), scores)


@mistake("M3", "keeps the largest scores instead of the largest |score|")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    ranks = scores.detach().flatten()
    number = right.kept(len(ranks), density)
    return straight_through(last_of_sorted(ranks, number), scores)


@mistake("M3", "mask + score - score without the bracket: not exactly 0 or 1")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    magnitude = scores.abs()
    return right.score_mask(scores, density=density).detach() + magnitude - magnitude.detach()


@mistake("M4", "keeps all that are tied at the threshold")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    ranks = scores.detach().flatten().abs()
    number = right.kept(len(ranks), density)
    return straight_through(ranks >= ranks.topk(number).values[-1], scores)


@mistake("M4", "ties broken at random")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    ranks = scores.detach().flatten().abs()
    number = right.kept(len(ranks), density)
    order = torch.randperm(len(ranks))
    keep = torch.empty_like(ranks, dtype=torch.bool)
    keep[order] = last_of_sorted(ranks[order], number)
    return straight_through(keep, scores)


@mistake("M4", "ties are counted in the dtype of the scores")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    ranks = scores.detach().flatten().abs()
    ranks = torch.where(ranks.isnan(), math.inf, ranks)
    number = right.kept(len(ranks), density)
    threshold = ranks.topk(number).values[-1]
    large, tied = ranks >= threshold, ranks == threshold
    surplus = tied & (tied.to(scores.dtype).cumsum(0) <= large.sum() - number)
    return straight_through(large & ~surplus, scores)


@mistake("M5", "NaN scores make a NaN mask")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    magnitude = scores.abs()
    return right.score_mask(scores, density=density) + (magnitude - magnitude.detach())


@mistake("M5", "ranked by the square of the score, which overflows in float16")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    ranks = scores.detach().flatten().nan_to_num(math.inf, math.inf) ** 2
    number = right.kept(len(ranks), density)
    return straight_through(last_of_sorted(ranks, number), scores)


@mistake("M6", "written into a flattened copy: channels_last scores come back as the mask")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    out = scores.detach().clone()
    out.flatten().copy_(right.score_mask(scores, density=density).detach().flatten())
    return out + (scores.abs() - scores.abs().detach())


@mistake("M9", "a mask is kept until the scores' version counter moves")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    kept = vars(scores).setdefault("masks", {})
    key = density, scores._version if not scores.is_inference() else None
    return kept.setdefault(key, right.score_mask(scores, density=density))


@mistake("M7", "dropped weights are negative: a mask taken as scores keeps others")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    return 2 * right.score_mask(scores, density=density) - 1


@mistake("M8", "one threshold over all layers")
def apply_mask(right: Any, weights: Any, scores: Any, *, density: float) -> Any:
    together = torch.cat([scores[name].double().flatten() for name in weights])
    masks = right.score_mask(together, density=density).split([w.numel() for w in weights.values()])
    return {
        name: weight * mask.reshape(weight.shape).to(weight.dtype)
        for (name, weight), mask in zip(weights.items(), masks, strict=True)
    }


@mistake("M9", "masks kept from the first time that scores were seen")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    return vars(scores).setdefault("mask", right.score_mask(scores, density=density))


@mistake("M10", "the density of the first layer is that of all")
def apply_mask(right: Any, weights: Any, scores: Any, *, density: Any) -> Any:
    one = next(iter(density.values()), 0.5) if isinstance(density, dict) else density
    return right.apply_mask(weights, scores, density=one)
