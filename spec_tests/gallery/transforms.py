"""X: mistakes that show under a transform of torch."""

from typing import Any

import torch
from torch import Tensor, nn

from spec_tests.gallery.mask import straight_through
from spec_tests.gallery.mistakes import mistake


@mistake("X1", "the threshold is read as a Python number")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    ranks = scores.detach().flatten().abs()
    number = right.kept(len(ranks), density)
    return straight_through(ranks >= ranks.topk(number).values[-1].item(), scores)


@mistake("X2", "masked weights are written into tensors made beforehand")
def apply_mask(right: Any, weights: Any, scores: Any, *, density: float) -> Any:
    masked = right.apply_mask(weights, scores, density=density)
    return {name: torch.empty(m.shape, dtype=m.dtype).copy_(m) for name, m in masked.items()}


class EdgePopup(torch.autograd.Function):
    """The mask as a custom function: right in eager mode, and it even has a rule for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, mask: Tensor) -> Tensor:
        return mask.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.saved_tensors[0].sign(), None


@mistake("X3", "a shortcut for scores that are all zero")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    if scores.abs().max() == 0:
        return scores
    return right.score_mask(scores, density=density)


@mistake("X4", "a branch on the values of the scores")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    clean = scores.nan_to_num() if scores.isnan().any() else scores
    return right.score_mask(clean, density=density)


@mistake("X6", "a custom autograd function: no forward mode")
@mistake("X5", "a custom autograd function: no gradient when compiled")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    return EdgePopup.apply(scores, right.score_mask(scores.detach(), density=density))


@mistake("X7", "scores are rounded to bfloat16 under autocast")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    if torch.is_autocast_enabled("cpu"):
        return right.score_mask(scores.bfloat16(), density=density).to(scores.dtype)
    return right.score_mask(scores, density=density)


@mistake("X8", "masked weights are made contiguous")
def apply_mask(right: Any, weights: Any, scores: Any, *, density: float) -> Any:
    masked = right.apply_mask(weights, scores, density=density)
    return {name: weight.contiguous() for name, weight in masked.items()}


@mistake("X9", "weights are detached before the forward")
def masked_forward(right: Any, model: Any, weights: Any, /, *args: Any, **kw: Any) -> Any:
    frozen = {name: weight.detach() for name, weight in weights.items()}
    return right.masked_forward(model, frozen, *args, **kw)


@mistake("X10", "weights and scores stay on the CPU where they were drawn")
def init(right: Any, model: nn.Module, strategy: Any, *, seed: int) -> Any:
    shapes = right.maskable_shapes(model)
    prototype = right.make_prototype(shapes, strategy, seed=seed)
    return right.init(model, strategy, seed=seed)._replace(
        weights=right.fill_weights(prototype, shapes, strategy),
        scores=right.init_scores(shapes, seed=seed),
    )


@mistake("X11", "the mask is left out where no gradient is wanted")
def apply_mask(right: Any, weights: Any, scores: Any, *, density: float) -> Any:
    if not torch.is_grad_enabled():
        return dict(weights)
    return right.apply_mask(weights, scores, density=density)
