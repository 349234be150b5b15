"""F: mistakes in filling weights."""

import math
from typing import Any

import torch

from spec_tests.gallery.mistakes import Rebound, mistake, rebinds


@mistake("F1", "filling goes on where the layer before stopped")
def fill_weights(right: Any, prototype: Any, shapes: Any, strategy: Any) -> Any:
    start, weights = 0, {}
    for name, shape in shapes.items():
        values = prototype[strategy.group(name, shape)].detach()
        index = torch.arange(start, start + math.prod(shape)) % len(values)
        weights[name] = values[index].reshape(tuple(shape))
        start += math.prod(shape)
    return weights


@mistake("F1", "filled column by column")
def fill_weights(right: Any, prototype: Any, shapes: Any, strategy: Any) -> Any:
    turned = {name: tuple(reversed(shape)) for name, shape in shapes.items()}
    if strategy.name == "one_layer":
        return right.fill_weights(prototype, shapes, strategy)
    weights = right.fill_weights(prototype, turned, strategy)
    return {name: w.permute(*reversed(range(w.ndim))) for name, w in weights.items()}


@mistake("F1", "values rescaled to each layer's own fan-in")
def fill_weights(right: Any, prototype: Any, shapes: Any, strategy: Any) -> Any:
    weights = right.fill_weights(prototype, shapes, strategy)
    return {n: w / math.sqrt(math.prod(shapes[n][1:])) for n, w in weights.items()}


@mistake("F2", "mp pads the rest of a shorter layer with zeros")
def fill_weights(right: Any, prototype: Any, shapes: Any, strategy: Any) -> Any:
    weights = right.fill_weights(prototype, shapes, strategy)
    for weight in weights.values():
        if strategy.name == "mp":
            weight.view(-1)[weight.numel() // 2 :] = 0
    return weights


@mistake("F3", "noise added to every tile of the prototype")
def fill_weights(right: Any, prototype: Any, shapes: Any, strategy: Any) -> Any:
    weights = right.fill_weights(prototype, shapes, strategy)
    return {n: w + 1e-3 * torch.arange(w.numel()).reshape(w.shape) for n, w in weights.items()}


@rebinds("F4", "one_layer over convolutions only, as the released code")
def _(right: Any) -> Rebound:
    def group(strategy: Any, name: str, shape: Any) -> str:
        linear = strategy.name == "one_layer" and len(shape) == 2
        return name if linear else original(strategy, name, shape)

    original = right.Strategy.group
    right.Strategy.group = group
    return {}


@rebinds("F4", "one_layer by number of elements instead of shape")
def _(right: Any) -> Rebound:
    def group(strategy: Any, name: str, shape: Any) -> str:
        count = math.prod(shape)
        return str(count) if strategy.name == "one_layer" else original(strategy, name, shape)

    original = right.Strategy.group
    right.Strategy.group = group
    return {}


@mistake("F5", "gradient reaches the prototype")
def fill_weights(right: Any, prototype: Any, shapes: Any, strategy: Any) -> Any:
    return {
        name: prototype[strategy.group(name, shape)][
            torch.arange(math.prod(shape)) % len(prototype[strategy.group(name, shape)])
        ].reshape(tuple(shape))
        for name, shape in shapes.items()
    }


@mistake("F5", "filled weights are views of the prototype")
def fill_weights(right: Any, prototype: Any, shapes: Any, strategy: Any) -> Any:
    weights = right.fill_weights(prototype, shapes, strategy)
    for name, shape in shapes.items():
        values = prototype[strategy.group(name, shape)].detach()
        if len(values) >= math.prod(shape):
            weights[name] = values[: math.prod(shape)].view(tuple(shape))
    return weights
