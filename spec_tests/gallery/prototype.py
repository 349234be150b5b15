"""P: mistakes in prototype and scores."""

import math
from typing import Any

import numpy as np
import torch

from spec_tests.gallery.mistakes import mistake


@mistake("P1", "prototype length without the + 1")
def prototype_length(right: Any, numel: int, ratio: float) -> Any:
    return max(1, right.prototype_length(numel, ratio) - 1)


@mistake("P1", "ratio multiplied in binary floating point")
def prototype_length(right: Any, numel: int, ratio: float) -> Any:
    return min(numel, math.floor(numel * ratio) + 1)


@mistake("P2", "ratio of all weights instead of the largest layer")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    if strategy.name != "rp":
        return right.make_prototype(shapes, strategy, seed=seed)
    everything = sum(math.prod(shape) for shape in shapes.values())
    ((group, values),) = right.make_prototype(shapes, right.mp, seed=seed).items()
    length = right.prototype_length(everything, strategy.ratio)
    return {group: values.repeat(-(-length // len(values)))[:length]}


@mistake("P3", "prototype from the last of the largest layers")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    return right.make_prototype(dict(reversed(shapes.items())), strategy, seed=seed)


@mistake("P3", "gain 1 instead of sqrt(2)")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    drawn = right.make_prototype(shapes, strategy, seed=seed)
    return {group: values / math.sqrt(2) for group, values in drawn.items()}


@mistake("P4", "one standard deviation for all prototypes")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    drawn = right.make_prototype(shapes, strategy, seed=seed)
    std = max(values.std() for values in drawn.values())
    return {group: values * std / values.std() for group, values in drawn.items()}


@mistake("P5", "neighbouring seeds share a stream")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    return right.make_prototype(shapes, strategy, seed=seed // 2)


@mistake("P5", "eight bits of the seed are used")
def random_stream(right: Any, name: str, seed: int) -> Any:
    return right.random_stream(name, seed % 256)


@mistake("P6", "rp drawn afresh at its own length instead of cut from mp")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    drawn = right.make_prototype(shapes, strategy, seed=seed)
    if strategy.name == "rp":
        generator = torch.Generator().manual_seed(seed)
        drawn = {g: torch.randn(len(v), generator=generator) for g, v in drawn.items()}
    return drawn


@mistake("P7", "one random stream for prototype and scores")
def random_stream(right: Any, name: str, seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


@mistake("P8", "seeds the global random state")
def init_scores(right: Any, shapes: Any, *, seed: int) -> Any:
    torch.manual_seed(seed)
    return {name: torch.rand(shape) for name, shape in shapes.items()}


@mistake("P8", "seeds numpy's global random state")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    np.random.seed(seed % 2**32)
    return right.make_prototype(shapes, strategy, seed=seed)


@mistake("P9", "scores drawn normal")
def init_scores(right: Any, shapes: Any, *, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        for name, shape in shapes.items()
    }


@mistake("P10", "one mask for all layers of a shape")
def init_scores(right: Any, shapes: Any, *, seed: int) -> Any:
    scores = right.init_scores(shapes, seed=seed)
    shared = {tuple(shapes[name]): values for name, values in scores.items()}
    return {name: shared[tuple(shape)] for name, shape in shapes.items()}


@mistake("P12", "the stream begins anew for every prototype")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    drawn = {}
    for group, (length, giver) in right.prototype_groups(shapes, strategy).items():
        alone = right.make_prototype({giver: shapes[giver]}, right.mp, seed=seed)
        drawn[group] = alone["all"][:length]
    return drawn


@mistake("P13", "every prototype is drawn with the next seed")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    drawn = {}
    for i, (group, (length, giver)) in enumerate(right.prototype_groups(shapes, strategy).items()):
        alone = right.make_prototype({giver: shapes[giver]}, right.mp, seed=seed + i)
        drawn[group] = alone["all"][:length]
    return drawn


@mistake("P14", "the stream of a seed is told by hash, which differs by process")
def random_stream(right: Any, name: str, seed: int) -> Any:
    return torch.Generator().manual_seed(hash((name, seed)) % 2**63)


@mistake("P11", "drawn on the default device")
def init_scores(right: Any, shapes: Any, *, seed: int) -> Any:
    drawn = right.init_scores(shapes, seed=seed)
    return {name: scores.to(torch.empty(0).device) for name, scores in drawn.items()}


@mistake("P11", "drawn in the default dtype")
def make_prototype(right: Any, shapes: Any, strategy: Any, *, seed: int) -> Any:
    drawn = right.make_prototype(shapes, strategy, seed=seed)
    return {group: values.to(torch.get_default_dtype()) for group, values in drawn.items()}
