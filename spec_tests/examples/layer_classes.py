"""PEMN with layer classes, as researchers write it, and the adapter that lets the suite judge it.

The first half is such an implementation: subclasses of ``nn.Conv2d`` and ``nn.Linear`` that hold
their scores, and a function that puts them into a model. The second half translates the contract.
"""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional


def largest(scores: Tensor, density: float) -> Tensor:
    """1 for the kept scores, with a straight-through gradient."""
    count = max(1, math.ceil(round(density * scores.numel(), 9)))
    order = scores.detach().abs().flatten().argsort(stable=True)
    mask = torch.zeros(scores.numel(), dtype=scores.dtype)
    mask[order[-count:]] = 1
    size = scores.abs()
    straight_through: Tensor = mask.view(scores.shape) + (size - size.detach())
    return straight_through


class MaskedConv2d(nn.Conv2d):
    """A convolution with frozen weights and learned scores."""

    scores: nn.Parameter
    density: float

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Conv2d``."""
        return self._conv_forward(x, self.weight * largest(self.scores, self.density), self.bias)


class MaskedLinear(nn.Linear):
    """A linear layer with frozen weights and learned scores."""

    scores: nn.Parameter
    density: float

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Linear``."""
        return functional.linear(x, self.weight * largest(self.scores, self.density), self.bias)


KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: MaskedConv2d, nn.Linear: MaskedLinear}


def with_masks(model: nn.Module, density: float) -> nn.Module:
    """A copy of the model whose layers are masked ones."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in KINDS:
            module.__class__ = KINDS[type(module)]
            module.scores = nn.Parameter(torch.zeros(module.get_parameter("weight").shape))
            module.density = density  # type: ignore[assignment]
    return model


# --- The adapter: the names of the contract, in terms of the above ------------------------------

__version__ = "1.0"


class State(NamedTuple):
    """The four parts that the contract asks for."""

    weights: dict[str, Tensor]
    scores: dict[str, Tensor]
    rest: dict[str, Tensor]
    buffers: dict[str, Tensor]


def score_mask(scores: Tensor, *, density: float) -> Tensor:
    """Translate a name."""
    return largest(scores, density)


def apply_mask(weights: Any, scores: Any, *, density: float) -> dict[str, Tensor]:
    """Translate from one layer to a dict of them."""
    return {name: w * largest(scores[name], density).to(w.dtype) for name, w in weights.items()}


def maskable_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The weights of the layers that would be replaced."""
    return {
        f"{path}.weight" if path else "weight": module.weight.shape
        for path, module in model.named_modules()
        if type(module) in KINDS
    }


def masked_forward(
    model: nn.Module, weights: Any, scores: Any, rest: Any, buffers: Any, *inputs: Any,
    density: float, **kwargs: Any,
) -> Any:  # fmt: skip
    """Run the model with layer classes, its tensors replaced by those passed."""
    names = {name.removesuffix("weight") + "scores": s for name, s in scores.items()}
    tensors = {**weights, **names, **rest, **buffers}
    return functional_call(with_masks(model, density), tensors, inputs, kwargs)
