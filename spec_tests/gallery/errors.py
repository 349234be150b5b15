"""E: bad input that is accepted."""

from typing import Any

import torch
from torch import Tensor, nn

from spec_tests.gallery.mistakes import Rebound, mistake, rebinds


@mistake("E1", "densities are clipped into [0, 1]")
def kept(right: Any, numel: int, density: float) -> Any:
    return right.kept(numel, min(max(density, 1e-9), 1))


@mistake("E2", "ratios are clipped to 1")
def prototype_length(right: Any, numel: int, ratio: float) -> Any:
    return right.prototype_length(numel, min(ratio, 1.0))


@rebinds("E3", "any name is a strategy")
def _(right: Any) -> Rebound:
    right.Strategy.__post_init__ = lambda strategy: None
    return {}


@mistake("E5", "a model with nothing to mask is accepted")
@mistake("E4", "empty layers are accepted")
def check_shapes(right: Any, shapes: Any) -> None:
    pass


@mistake("E6", "a computed weight is silently rest")
def maskable_shapes(right: Any, model: Any) -> Any:
    return {
        f"{path}.weight": module.weight.shape
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and "weight" in dict(module.named_parameters())
    }


@mistake("E6", "the layers of a scripted part are silently rest")
def maskable_shapes(right: Any, model: nn.Module) -> Any:
    try:
        return right.maskable_shapes(model)
    except ValueError as error:
        if "scripted" not in str(error):
            raise
        return {}


@mistake("E7", "non-finite scores are materialised")
def check_finite(right: Any, scores: Any) -> None:
    pass


@rebinds("E8", "missing tensors are silently the model's own")
def _(right: Any) -> Rebound:
    def by_place(model: nn.Module, tensors: Any) -> Any:
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return right.by_place(model, own | tensors)

    return {"check_same": lambda what, got, want: None, "by_place": by_place}


@mistake("E9", "any seed is hashed")
def random_stream(right: Any, name: str, seed: int) -> Any:
    return torch.Generator().manual_seed(hash((name, seed)))


@mistake("E10", "an unusable prototype fills with whatever it has")
def fill_weights(right: Any, prototype: Any, shapes: Any, strategy: Any) -> Any:
    values = prototype.get("all", torch.zeros(1)).flatten()
    values = values if len(values) else torch.zeros(1)
    return right.fill_weights({"all": values}, shapes, strategy)


@mistake("E11", "scores of any dtype are ranked")
def score_mask(right: Any, scores: Tensor, *, density: float) -> Any:
    return right.score_mask(
        scores if scores.is_floating_point() else scores.float(), density=density
    )
