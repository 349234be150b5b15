"""G: mistakes in gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from spec_tests.gallery.mistakes import mistake


@mistake("G1", "gradient to the kept weights only")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    mask = right.score_mask(scores, density=density)
    return mask.detach() * mask


@mistake("G1", "sign of the score forgotten")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    return right.score_mask(scores, density=density).detach() + (scores - scores.detach())


@mistake("G2", "gradient of the weight forgotten: the raw mask gradient")
def apply_mask(right: Any, weights: Any, scores: Any, *, density: float) -> Any:
    masks = {name: right.score_mask(s, density=density) for name, s in scores.items()}
    return {
        name: weight * mask.detach() + (mask - mask.detach())
        for (name, weight), mask in zip(weights.items(), masks.values(), strict=True)
    }


@mistake("G3", "the sign of a score of 0 taken as 1")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    finite = torch.where(scores.isfinite(), scores, 0)
    sign = torch.where(finite >= 0, 1.0, -1.0).to(scores.dtype)
    through = sign * (finite - finite.detach())
    return right.score_mask(scores, density=density).detach() + through


@mistake("G4", "filled weights are trained")
def init(right: Any, model: Any, strategy: Any, *, seed: int) -> Any:
    state = right.init(model, strategy, seed=seed)
    for weight in state.weights.values():
        weight.requires_grad_()
    return state


@mistake("G5", "rest is not trained")
def masked_forward(right: Any, model: Any, w: Any, s: Any, r: Any, /, *args: Any, **kw: Any) -> Any:
    frozen = {name: tensor.detach() for name, tensor in r.items()}
    return right.masked_forward(model, w, s, frozen, *args, **kw)


@mistake("G6", "apply_mask detaches the weights")
def apply_mask(right: Any, weights: Any, scores: Any, *, density: float) -> Any:
    frozen = {name: weight.detach() for name, weight in weights.items()}
    return right.apply_mask(frozen, scores, density=density)


def forward_with(
    change: Callable[[Tensor, Tensor], Tensor],
    right: Any,
    model: Any,
    w: Any,
    s: Any,
    r: Any,
    b: Any,
    /,
    *args: Any,
    density: float,
    **kw: Any,
) -> Any:
    """The masked forward, all else right, with what ``change`` makes of scores and their mask."""
    masks = {name: right.score_mask(scores, density=density) for name, scores in s.items()}
    masked = {n: weight * change(s[n], masks[n]).to(weight.dtype) for n, weight in w.items()}
    return functional_call(model, {**masked, **r, **b}, args, kw)


@mistake("G7", "the network, not apply_mask, trains kept weights only")
def masked_forward(*args: Any, density: float, **kw: Any) -> Any:
    return forward_with(lambda scores, mask: mask.detach() * mask, *args, density=density, **kw)


@mistake("G7", "the network, not apply_mask, forgets the sign of the score")
def masked_forward(*args: Any, density: float, **kw: Any) -> Any:
    def change(scores: Tensor, mask: Tensor) -> Tensor:
        return mask.detach() + scores - scores.detach()

    return forward_with(change, *args, density=density, **kw)


@mistake("G7", "the network, not apply_mask, keeps its first masks")
def masked_forward(*args: Any, density: float, **kw: Any) -> Any:
    def change(scores: Tensor, mask: Tensor) -> Tensor:
        first: Tensor = vars(scores).setdefault("mask", mask.detach())
        return first + (mask - mask.detach())

    return forward_with(change, *args, density=density, **kw)


@mistake("G8", "layers of more than 10,000 weights train the kept ones only")
def apply_mask(right: Any, weights: Any, scores: Any, *, density: float) -> Any:
    masked = right.apply_mask(weights, scores, density=density)
    for name, weight in weights.items():
        if weight.numel() > 10_000:
            mask = right.score_mask(scores[name], density=density).to(weight.dtype)
            masked[name] = weight * mask * mask.detach()
    return masked
