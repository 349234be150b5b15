"""PEMN with layer classes, as researchers write it, and the adapter that lets the suite judge it.

``python -m spec_tests run --impl layer_classes --known layer_classes.known``
"""

import copy
import math
from collections import namedtuple
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional


class Kept(torch.autograd.Function):
    """1 for the scores that are kept, else 0; backward as if it were their magnitude."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(scores)
        order = scores.abs().nan_to_num(math.inf, math.inf).flatten().argsort(stable=True)
        mask = torch.zeros(scores.numel(), dtype=scores.dtype)
        mask[order[-count:]] = 1
        return mask.view(scores.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (scores,) = ctx.saved_tensors
        return gradient * torch.where(scores.isfinite(), scores, 0).sign(), None


class MaskedConv2d(nn.Conv2d):
    """A convolution with a frozen weight and a learned mask."""

    scores: nn.Parameter
    count: int

    def forward(self, x: Tensor) -> Any:
        return self._conv_forward(x, self.weight * Kept.apply(self.scores, self.count), self.bias)


class MaskedLinear(nn.Linear):
    """A linear layer with a frozen weight and a learned mask."""

    scores: nn.Parameter
    count: int

    def forward(self, x: Tensor) -> Any:
        return functional.linear(x, self.weight * Kept.apply(self.scores, self.count), self.bias)


MASKED: dict[type, type] = {nn.Conv2d: MaskedConv2d, nn.Linear: MaskedLinear}


def with_masks(model: nn.Module, density: float) -> nn.Module:
    """A copy of the model with masked layers instead of plain ones."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in MASKED:
            layer: Any = module
            layer.__class__ = MASKED[type(module)]
            layer.scores = nn.Parameter(torch.zeros_like(layer.weight))
            layer.count = kept(layer.weight.numel(), density)
    return model


def kept(numel: int, density: float) -> int:
    """How many weights of a layer are kept."""
    return max(1, math.ceil(Decimal(round(density * 10**12)) / 10**12 * numel))


def prototype_length(numel: int, ratio: float) -> int:
    """How many values fill the layers, the ratio taken as it is written."""
    return min(numel, int(Decimal(repr(ratio)) * numel) + 1)


def random_vector(shape: Sequence[int], stream: torch.Generator) -> Tensor:
    """Values for a layer of the shape, Kaiming normal."""
    values = torch.randn(math.prod(shape), generator=stream, dtype=torch.float32)
    return values * math.sqrt(2 / math.prod(shape[1:]))


def tiled(values: Tensor, shape: Sequence[int]) -> Tensor:
    """The values over and over, until the layer is full."""
    numel = math.prod(shape)
    return values.detach().repeat(-(-numel // len(values)))[:numel].view(*shape)


# The adapter: the names of the contract, for the suite. It tells tensors by their names, where the
# classes above hold them as attributes; kept and prototype_length are what it asks for already.

__version__ = "1.0"
Shapes = Mapping[str, Sequence[int]]
Tensors = dict[str, Tensor]


class Sharing(NamedTuple):
    """A strategy; the suite takes any value for it and only hands it back."""

    kind: str
    ratio: float = 1.0

    def group(self, name: str, shape: Sequence[int]) -> str:
        return {"mask": name, "one_layer": str(tuple(shape))}.get(self.kind, "all")


mask, one_layer, mp = Sharing("mask"), Sharing("one_layer"), Sharing("mp")


def rp(ratio: float) -> Sharing:
    return Sharing("rp", ratio)


def make_prototype(shapes: Shapes, strategy: Sharing, *, seed: int) -> Tensors:
    stream = torch.Generator().manual_seed(seed)
    largest: dict[str, Sequence[int]] = {}
    for name, shape in shapes.items():
        group = strategy.group(name, shape)
        largest[group] = max(largest.get(group, shape), shape, key=math.prod)
    drawn = {group: random_vector(shape, stream) for group, shape in largest.items()}
    return {
        g: values[: prototype_length(len(values), strategy.ratio)] for g, values in drawn.items()
    }


def fill_weights(prototype: Tensors, shapes: Shapes, strategy: Sharing) -> Tensors:
    return {n: tiled(prototype[strategy.group(n, shape)], shape) for n, shape in shapes.items()}


def init_scores(shapes: Shapes, *, seed: int) -> Tensors:
    stream = torch.Generator().manual_seed(~seed)  # not the one of the prototype
    scores = {}
    for name, shape in shapes.items():
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        drawn = torch.empty(*shape, dtype=torch.float32)
        scores[name] = drawn.uniform_(-bound, bound, generator=stream)
    return scores


def score_mask(scores: Tensor, *, density: float) -> Any:
    return Kept.apply(scores, kept(scores.numel(), density))


def apply_mask(weights: Tensors, scores: Tensors, *, density: float) -> Tensors:
    return {n: w * score_mask(scores[n], density=density).to(w.dtype) for n, w in weights.items()}


def maskable_shapes(model: nn.Module) -> dict[str, torch.Size]:
    layers = {path: layer for path, layer in model.named_modules() if type(layer) in MASKED}
    return {
        f"{path}.weight".lstrip("."): layer.get_parameter("weight").shape
        for path, layer in layers.items()
    }


State = namedtuple("State", "weights scores rest buffers")


def init(model: nn.Module, strategy: Sharing, *, seed: int) -> State:
    shapes = maskable_shapes(model)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = fill_weights(make_prototype(shapes, strategy, seed=seed), shapes, strategy)
    scores = init_scores(shapes, seed=seed)
    return State(
        {n: w.to(own[n].dtype) for n, w in weights.items()},
        {n: s.to(own[n].dtype).requires_grad_() for n, s in scores.items()},
        {n: p.requires_grad_() for n, p in own.items() if n not in shapes},
        {n: b.clone() for n, b in model.named_buffers()},
    )


def masked_forward(model: nn.Module, /, *args: Any, density: float, **kwargs: Any) -> Any:
    weights, scores, rest, buffers, *inputs = args
    attributes = {name.removesuffix("weight") + "scores": s for name, s in scores.items()}
    tensors = {**weights, **attributes, **rest, **buffers}
    return functional_call(with_masks(model, density), tensors, tuple(inputs), kwargs)


def materialize(model: nn.Module, state: State, *, density: float) -> Tensors:
    masked = apply_mask(state.weights, state.scores, density=density)
    tensors = {**masked, **state.rest, **state.buffers}
    return {name: tensors[name].detach().clone() for name in model.state_dict()}
