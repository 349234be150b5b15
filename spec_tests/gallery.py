"""Broken implementations, one realistic mistake each, that the clauses must tell from a right one.

A mistake is a function that gets the package ``right``, a fresh copy, and returns the names to
rebind in it, everywhere where they are used.
"""

import copy
import importlib
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import Phase, is_hypothesis_test, settings
from torch import nn
from torch.func import functional_call

from spec_tests.clauses import Clause
from spec_tests.subject import judging

Rebound = dict[str, Any]


class Mistake(NamedTuple):
    """What was done wrong, and the clause that is meant to catch it."""

    clause: str
    text: str
    make: Callable[[Any], Rebound]

    def build(self) -> ModuleType:
        """A copy of the reference with the mistake in it."""
        mine = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_reference(name)}
        try:
            package = importlib.import_module("pemn_ref")
            importlib.import_module("pemn_ref.file")  # which nothing else imports
            copies = [module for name, module in sys.modules.items() if _is_reference(name)]
        finally:
            # The whole copy, else a part that was not imported before would be taken for the right.
            for name in [*filter(_is_reference, sys.modules)]:
                del sys.modules[name]
            sys.modules.update(mine)
        rebound = self.make(_Originals(package))
        for name, value in rebound.items():
            users = [module for module in copies if hasattr(module, name)]
            assert users, f"{name} is not a name of the reference"
            for module in users:
                setattr(module, name, value)
        return package


def _is_reference(module: str) -> bool:
    return module == "pemn_ref" or module.startswith("pemn_ref.")


class _Originals:
    """The names of a package as they were, for a mistake to build on."""

    def __init__(self, package: ModuleType) -> None:
        self.__dict__.update(vars(package))


GALLERY: list[Mistake] = []


def mistake(clause: str, text: str) -> Callable[[Callable[[Any], Rebound]], None]:
    """Add a mistake to the gallery."""
    return lambda make: GALLERY.append(Mistake(clause, text, make))


@contextmanager
def _quickly(test: Any) -> Iterator[None]:
    """To find a mistake is enough here: the smallest example of it is for people."""
    if not is_hypothesis_test(test):
        yield
        return
    # A test that carries its settings cannot be given others in any public way.
    before = test._hypothesis_internal_use_settings
    test._hypothesis_internal_use_settings = settings(
        before,
        phases=[Phase.explicit, Phase.generate],
        report_multiple_bugs=False,
        derandomize=True,  # that a clause can fail is shown once and for all, not by luck
        database=None,
    )
    try:
        yield
    finally:
        test._hypothesis_internal_use_settings = before


def failure(clause: Clause, implementation: Any) -> BaseException | None:
    """What the clause's test, called with each of its parameters as by pytest, raises first.

    Where none fails, but some cannot run on this machine, the test that asks is skipped too.
    """
    skipped = None
    axes = [
        [{mark.args[0]: value} for value in mark.args[1]]
        for mark in getattr(clause.test, "pytestmark", [])
        if mark.name == "parametrize"
    ]
    with judging(implementation), _quickly(clause.test):
        for chosen in product(*axes):
            try:
                clause.test(**{name: value for one in chosen for name, value in one.items()})
            except pytest.skip.Exception as cannot:
                skipped = cannot
            except (Exception, pytest.fail.Exception) as error:
                return error
    if skipped is not None:
        raise skipped
    return None


def masks_by(right: Any, keep: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[..., Any]:
    """A score_mask with the right gradient that keeps what ``keep(scores, number)`` says."""

    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        flat = scores.detach().flatten()
        kept = keep(flat, right.kept(scores.numel(), density))
        mask = kept.reshape(scores.shape).to(scores.dtype)
        finite = torch.where(scores.isfinite(), scores, 0).abs()
        return mask + (finite - finite.detach())

    return score_mask


def last_of_sorted(ranks: torch.Tensor, number: int) -> torch.Tensor:
    """The mask of the ``number`` largest ranks, of equal ones the later."""
    mask = torch.zeros_like(ranks, dtype=torch.bool)
    mask[ranks.argsort(stable=True)[len(ranks) - number :]] = True
    return mask


# --- Prototype and scores -----------------------------------------------------------------------


@mistake("P1", "prototype length without the + 1")
def _(right: Any) -> Rebound:
    return {
        "prototype_length": lambda numel, ratio: max(1, right.prototype_length(numel, ratio) - 1)
    }


@mistake("P1", "ratio multiplied in binary floating point")
def _(right: Any) -> Rebound:
    return {"prototype_length": lambda numel, ratio: min(numel, math.floor(numel * ratio) + 1)}


@mistake("P2", "ratio of all weights instead of the largest layer")
def _(right: Any) -> Rebound:
    def make_prototype(shapes: Any, strategy: Any, *, seed: int) -> Any:
        if strategy.name != "rp":
            return right.make_prototype(shapes, strategy, seed=seed)
        everything = sum(math.prod(shape) for shape in shapes.values())
        ((group, values),) = right.make_prototype(shapes, right.mp, seed=seed).items()
        length = right.prototype_length(everything, strategy.ratio)
        return {group: values.repeat(-(-length // len(values)))[:length]}

    return {"make_prototype": make_prototype}


@mistake("P3", "prototype from the last of the largest layers")
def _(right: Any) -> Rebound:
    return {
        "make_prototype": lambda shapes, strategy, seed: right.make_prototype(
            dict(reversed(shapes.items())), strategy, seed=seed
        )
    }


@mistake("P3", "gain 1 instead of sqrt(2)")
def _(right: Any) -> Rebound:
    def make_prototype(shapes: Any, strategy: Any, *, seed: int) -> Any:
        drawn = right.make_prototype(shapes, strategy, seed=seed)
        return {group: values / math.sqrt(2) for group, values in drawn.items()}

    return {"make_prototype": make_prototype}


@mistake("P4", "one standard deviation for all prototypes")
def _(right: Any) -> Rebound:
    def make_prototype(shapes: Any, strategy: Any, *, seed: int) -> Any:
        drawn = right.make_prototype(shapes, strategy, seed=seed)
        std = max(values.std() for values in drawn.values())
        return {group: values * std / values.std() for group, values in drawn.items()}

    return {"make_prototype": make_prototype}


@mistake("P5", "neighbouring seeds share a stream")
def _(right: Any) -> Rebound:
    return {
        "make_prototype": lambda shapes, strategy, seed: right.make_prototype(
            shapes, strategy, seed=seed // 2
        )
    }


@mistake("P5", "eight bits of the seed are used")
def _(right: Any) -> Rebound:
    stream = right.prototype.random_stream
    return {"random_stream": lambda name, seed: stream(name, seed % 256)}


@mistake("P6", "rp drawn afresh at its own length instead of cut from mp")
def _(right: Any) -> Rebound:
    def make_prototype(shapes: Any, strategy: Any, *, seed: int) -> Any:
        drawn = right.make_prototype(shapes, strategy, seed=seed)
        if strategy.name == "rp":
            generator = torch.Generator().manual_seed(seed)
            drawn = {g: torch.randn(len(v), generator=generator) for g, v in drawn.items()}
        return drawn

    return {"make_prototype": make_prototype}


@mistake("P7", "one random stream for prototype and scores")
def _(right: Any) -> Rebound:
    return {"random_stream": lambda name, seed: torch.Generator().manual_seed(seed)}


@mistake("P8", "seeds the global random state")
def _(right: Any) -> Rebound:
    def init_scores(shapes: Any, *, seed: int) -> Any:
        torch.manual_seed(seed)
        return {name: torch.rand(shape) for name, shape in shapes.items()}

    return {"init_scores": init_scores}


@mistake("P8", "seeds numpy's global random state")
def _(right: Any) -> Rebound:
    def make_prototype(shapes: Any, strategy: Any, *, seed: int) -> Any:
        np.random.seed(seed % 2**32)
        return right.make_prototype(shapes, strategy, seed=seed)

    return {"make_prototype": make_prototype}


@mistake("P9", "scores drawn normal")
def _(right: Any) -> Rebound:
    def init_scores(shapes: Any, *, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
            for name, shape in shapes.items()
        }

    return {"init_scores": init_scores}


@mistake("P10", "one mask for all layers of a shape")
def _(right: Any) -> Rebound:
    def init_scores(shapes: Any, *, seed: int) -> Any:
        scores = right.init_scores(shapes, seed=seed)
        shared = {tuple(shapes[name]): values for name, values in scores.items()}
        return {name: shared[tuple(shape)] for name, shape in shapes.items()}

    return {"init_scores": init_scores}


@mistake("P12", "the stream begins anew for every prototype")
def _(right: Any) -> Rebound:
    def make_prototype(shapes: Any, strategy: Any, *, seed: int) -> Any:
        drawn = {}
        for group, (length, giver) in right.prototype.prototype_groups(shapes, strategy).items():
            alone = right.make_prototype({giver: shapes[giver]}, right.mp, seed=seed)
            drawn[group] = alone["all"][:length]
        return drawn

    return {"make_prototype": make_prototype}


@mistake("P11", "drawn on the default device")
def _(right: Any) -> Rebound:
    def init_scores(shapes: Any, *, seed: int) -> Any:
        drawn = right.init_scores(shapes, seed=seed)
        return {name: scores.to(torch.empty(0).device) for name, scores in drawn.items()}

    return {"init_scores": init_scores}


@mistake("P11", "drawn in the default dtype")
def _(right: Any) -> Rebound:
    def make_prototype(shapes: Any, strategy: Any, *, seed: int) -> Any:
        drawn = right.make_prototype(shapes, strategy, seed=seed)
        return {group: values.to(torch.get_default_dtype()) for group, values in drawn.items()}

    return {"make_prototype": make_prototype}


# --- Fill ---------------------------------------------------------------------------------------


@mistake("F1", "filling goes on where the layer before stopped")
def _(right: Any) -> Rebound:
    def fill_weights(prototype: Any, shapes: Any, strategy: Any) -> Any:
        start, weights = 0, {}
        for name, shape in shapes.items():
            values = prototype[strategy.group(name, shape)].detach()
            index = torch.arange(start, start + math.prod(shape)) % len(values)
            weights[name] = values[index].reshape(tuple(shape))
            start += math.prod(shape)
        return weights

    return {"fill_weights": fill_weights}


@mistake("F1", "filled column by column")
def _(right: Any) -> Rebound:
    def fill_weights(prototype: Any, shapes: Any, strategy: Any) -> Any:
        turned = {name: tuple(reversed(shape)) for name, shape in shapes.items()}
        if strategy.name == "one_layer":
            return right.fill_weights(prototype, shapes, strategy)
        weights = right.fill_weights(prototype, turned, strategy)
        return {name: w.permute(*reversed(range(w.ndim))) for name, w in weights.items()}

    return {"fill_weights": fill_weights}


@mistake("F1", "values rescaled to each layer's own fan-in")
def _(right: Any) -> Rebound:
    def fill_weights(prototype: Any, shapes: Any, strategy: Any) -> Any:
        weights = right.fill_weights(prototype, shapes, strategy)
        return {n: w / math.sqrt(math.prod(shapes[n][1:])) for n, w in weights.items()}

    return {"fill_weights": fill_weights}


@mistake("F2", "mp pads the rest of a shorter layer with zeros")
def _(right: Any) -> Rebound:
    def fill_weights(prototype: Any, shapes: Any, strategy: Any) -> Any:
        weights = right.fill_weights(prototype, shapes, strategy)
        for weight in weights.values():
            if strategy.name == "mp":
                weight.view(-1)[weight.numel() // 2 :] = 0
        return weights

    return {"fill_weights": fill_weights}


@mistake("F3", "noise added to every tile of the prototype")
def _(right: Any) -> Rebound:
    def fill_weights(prototype: Any, shapes: Any, strategy: Any) -> Any:
        weights = right.fill_weights(prototype, shapes, strategy)
        return {n: w + 1e-3 * torch.arange(w.numel()).reshape(w.shape) for n, w in weights.items()}

    return {"fill_weights": fill_weights}


@mistake("F4", "one_layer over convolutions only, as the released code")
def _(right: Any) -> Rebound:
    def group(strategy: Any, name: str, shape: Any) -> str:
        linear = strategy.name == "one_layer" and len(shape) == 2
        return name if linear else original(strategy, name, shape)

    original = right.Strategy.group
    right.Strategy.group = group
    return {}


@mistake("F4", "one_layer by number of elements instead of shape")
def _(right: Any) -> Rebound:
    def group(strategy: Any, name: str, shape: Any) -> str:
        count = math.prod(shape)
        return str(count) if strategy.name == "one_layer" else original(strategy, name, shape)

    original = right.Strategy.group
    right.Strategy.group = group
    return {}


@mistake("F5", "gradient reaches the prototype")
def _(right: Any) -> Rebound:
    def fill_weights(prototype: Any, shapes: Any, strategy: Any) -> Any:
        return {
            name: prototype[strategy.group(name, shape)][
                torch.arange(math.prod(shape)) % len(prototype[strategy.group(name, shape)])
            ].reshape(tuple(shape))
            for name, shape in shapes.items()
        }

    return {"fill_weights": fill_weights}


@mistake("F5", "filled weights are views of the prototype")
def _(right: Any) -> Rebound:
    def fill_weights(prototype: Any, shapes: Any, strategy: Any) -> Any:
        weights = right.fill_weights(prototype, shapes, strategy)
        for name, shape in shapes.items():
            values = prototype[strategy.group(name, shape)].detach()
            if len(values) >= math.prod(shape):
                weights[name] = values[: math.prod(shape)].view(tuple(shape))
        return weights

    return {"fill_weights": fill_weights}


# --- Mask ---------------------------------------------------------------------------------------


@mistake("M1", "the released count: int((1 - density) * n) dropped")
def _(right: Any) -> Rebound:
    return {"kept": lambda numel, density: numel - int((1 - density) * numel)}


@mistake("M1", "density read as the fraction dropped")
def _(right: Any) -> Rebound:
    return {"kept": lambda numel, density: numel - right.kept(numel, density)}


@mistake("M1", "rounded up in floating point: 0.07 of 100 are 8")
def _(right: Any) -> Rebound:
    return {"kept": lambda numel, density: max(1, math.ceil(density * numel))}


@mistake("M2", "one weight too many")
def _(right: Any) -> Rebound:
    return {
        "score_mask": masks_by(
            right, lambda s, number: last_of_sorted(s.abs(), min(len(s), number + 1))
        )
    }


@mistake("M3", "keeps the largest scores instead of the largest |score|")
def _(right: Any) -> Rebound:
    return {"score_mask": masks_by(right, last_of_sorted)}


@mistake("M3", "mask + score - score without the bracket: not exactly 0 or 1")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        magnitude = scores.abs()
        return right.score_mask(scores, density=density).detach() + magnitude - magnitude.detach()

    return {"score_mask": score_mask}


@mistake("M4", "keeps all that are tied at the threshold")
def _(right: Any) -> Rebound:
    return {
        "score_mask": masks_by(right, lambda s, number: s.abs() >= s.abs().topk(number).values[-1])
    }


@mistake("M4", "ties broken at random")
def _(right: Any) -> Rebound:
    def keep(scores: torch.Tensor, number: int) -> torch.Tensor:
        order = torch.randperm(len(scores))
        mask = torch.empty_like(scores, dtype=torch.bool)
        mask[order] = last_of_sorted(scores.abs()[order], number)
        return mask

    return {"score_mask": masks_by(right, keep)}


@mistake("M4", "ties are counted in the dtype of the scores")
def _(right: Any) -> Rebound:
    def keep(scores: torch.Tensor, number: int) -> torch.Tensor:
        magnitude = torch.where(scores.isnan(), math.inf, scores.abs())
        threshold = magnitude.topk(number).values[-1]
        large, tied = magnitude >= threshold, magnitude == threshold
        return large & ~(tied & (tied.to(scores.dtype).cumsum(0) <= large.sum() - number))

    return {"score_mask": masks_by(right, keep)}


@mistake("M5", "NaN scores make a NaN mask")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        magnitude = scores.abs()
        return right.score_mask(scores, density=density) + (magnitude - magnitude.detach())

    return {"score_mask": score_mask}


@mistake("M5", "ranked by the square of the score, which overflows in float16")
def _(right: Any) -> Rebound:
    return {
        "score_mask": masks_by(
            right, lambda s, number: last_of_sorted(s.nan_to_num(math.inf, math.inf) ** 2, number)
        )
    }


@mistake("M6", "written into a flattened copy: channels_last scores come back as the mask")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        out = scores.detach().clone()
        out.flatten().copy_(right.score_mask(scores, density=density).detach().flatten())
        return out + (scores.abs() - scores.abs().detach())

    return {"score_mask": score_mask}


@mistake("M7", "dropped weights are negative: a mask taken as scores keeps others")
def _(right: Any) -> Rebound:
    return {"score_mask": lambda scores, density: 2 * right.score_mask(scores, density=density) - 1}


@mistake("M8", "one threshold over all layers")
def _(right: Any) -> Rebound:
    def apply_mask(weights: Any, scores: Any, *, density: float) -> Any:
        together = torch.cat([scores[name].flatten() for name in weights])
        masks = right.score_mask(together, density=density).split(
            [w.numel() for w in weights.values()]
        )
        return {
            name: weight * mask.reshape(weight.shape)
            for (name, weight), mask in zip(weights.items(), masks, strict=True)
        }

    return {"apply_mask": apply_mask}


@mistake("M9", "masks kept from the first time that scores were seen")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        return vars(scores).setdefault("mask", right.score_mask(scores, density=density))

    return {"score_mask": score_mask}


# --- Gradient -----------------------------------------------------------------------------------


@mistake("G1", "gradient to the kept weights only")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        mask = right.score_mask(scores, density=density)
        return mask.detach() * mask

    return {"score_mask": score_mask}


@mistake("G1", "sign of the score forgotten")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        return right.score_mask(scores, density=density).detach() + (scores - scores.detach())

    return {"score_mask": score_mask}


@mistake("G2", "gradient of the weight forgotten: the raw mask gradient")
def _(right: Any) -> Rebound:
    def apply_mask(weights: Any, scores: Any, *, density: float) -> Any:
        masks = {name: right.score_mask(s, density=density) for name, s in scores.items()}
        return {
            name: weight * mask.detach() + (mask - mask.detach())
            for (name, weight), mask in zip(weights.items(), masks.values(), strict=True)
        }

    return {"apply_mask": apply_mask}


@mistake("G3", "the sign of a score of 0 taken as 1")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        finite = torch.where(scores.isfinite(), scores, 0)
        sign = torch.where(finite >= 0, 1.0, -1.0).to(scores.dtype)
        through = sign * (finite - finite.detach())
        return right.score_mask(scores, density=density).detach() + through

    return {"score_mask": score_mask}


@mistake("G4", "filled weights are trained")
def _(right: Any) -> Rebound:
    def init(model: Any, strategy: Any, *, seed: int) -> Any:
        state = right.init(model, strategy, seed=seed)
        for weight in state.weights.values():
            weight.requires_grad_()
        return state

    return {"init": init}


@mistake("G5", "rest is not trained")
def _(right: Any) -> Rebound:
    def masked_forward(model: Any, w: Any, s: Any, r: Any, *args: Any, **kw: Any) -> Any:
        frozen = {name: tensor.detach() for name, tensor in r.items()}
        return right.masked_forward(model, w, s, frozen, *args, **kw)

    return {"masked_forward": masked_forward}


@mistake("G6", "apply_mask detaches the weights")
def _(right: Any) -> Rebound:
    def apply_mask(weights: Any, scores: Any, *, density: float) -> Any:
        frozen = {name: weight.detach() for name, weight in weights.items()}
        return right.apply_mask(frozen, scores, density=density)

    return {"apply_mask": apply_mask}


def trained_with(right: Any, mask: Callable[[torch.Tensor, torch.Tensor], Any]) -> Rebound:
    """A masked_forward, all else right, with what ``mask`` makes of scores and their mask."""

    def masked_forward(
        model: Any, weights: Any, scores: Any, rest: Any, b: Any, *args: Any, density: float
    ) -> Any:
        masked = {
            name: weight * mask(scores[name], right.score_mask(scores[name], density=density))
            for name, weight in weights.items()
        }
        return functional_call(model, {**masked, **rest, **b}, args)

    return {"masked_forward": masked_forward}


@mistake("G7", "the network, not apply_mask, trains kept weights only")
def _(right: Any) -> Rebound:
    return trained_with(right, lambda scores, mask: mask.detach() * mask)


@mistake("G7", "the network, not apply_mask, forgets the sign of the score")
def _(right: Any) -> Rebound:
    return trained_with(right, lambda scores, mask: mask.detach() + scores - scores.detach())


@mistake("G7", "the network, not apply_mask, goes on with its first masks")
def _(right: Any) -> Rebound:
    def mask_of(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = vars(scores).setdefault("mask", mask.detach())
        return first + (mask - mask.detach())

    return trained_with(right, mask_of)


# --- Forward ------------------------------------------------------------------------------------


@mistake("W1", "classifier left unmasked")
def _(right: Any) -> Rebound:
    return {"maskable_shapes": lambda model: dict([*right.maskable_shapes(model).items()][:-1])}


@mistake("W1", "attention's input projections left unmasked")
def _(right: Any) -> Rebound:
    return {
        "maskable_shapes": lambda model: {
            name: shape
            for name, shape in right.maskable_shapes(model).items()
            if "proj_" not in name
        }
    }


@mistake("W1", "tied weight listed under each of its names")
def _(right: Any) -> Rebound:
    def maskable_shapes(model: nn.Module) -> Any:
        shapes = right.maskable_shapes(model)
        everything = dict(model.named_parameters(remove_duplicate=False))
        tied = {id(everything[name]) for name in shapes}
        return {name: p.shape for name, p in everything.items() if id(p) in tied}

    return {"maskable_shapes": maskable_shapes}


@mistake("W2", "buffers do not move in training")
def _(right: Any) -> Rebound:
    def masked_forward(
        model: Any, w: Any, s: Any, r: Any, buffers: Any, *args: Any, **kw: Any
    ) -> Any:
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        return right.masked_forward(model, w, s, r, copies, *args, **kw)

    return {"masked_forward": masked_forward}


@mistake("W2", "the mask is left out in evaluation")
def _(right: Any) -> Rebound:
    def masked_forward(
        model: Any, weights: Any, s: Any, rest: Any, b: Any, *args: Any, **kw: Any
    ) -> Any:
        if model.training:
            return right.masked_forward(model, weights, s, rest, b, *args, **kw)
        return functional_call(model, {**weights, **rest, **b}, args)

    return {"masked_forward": masked_forward}


@mistake("W3", "statistics move in evaluation too")
def _(right: Any) -> Rebound:
    def masked_forward(model: nn.Module, *args: Any, **kw: Any) -> Any:
        training = model.training
        try:
            return right.masked_forward(model.train(), *args, **kw)
        finally:
            model.train(training)

    return {"masked_forward": masked_forward}


@mistake("W3", "masked weights are loaded into the model")
def _(right: Any) -> Rebound:
    def masked_forward(model: nn.Module, *args: Any, density: float, **kw: Any) -> Any:
        state = right.State(*args[:4])
        model.load_state_dict(right.materialize(model, state, density=density))
        return right.masked_forward(model, *args, density=density, **kw)

    return {"masked_forward": masked_forward}


@mistake("W3", "the input is modified")
def _(right: Any) -> Rebound:
    def masked_forward(model: Any, w: Any, s: Any, r: Any, b: Any, x: Any, **kw: Any) -> Any:
        return right.masked_forward(model, w, s, r, b, x.mul_(1 if x.dtype == int else 0.5), **kw)

    return {"masked_forward": masked_forward}


@mistake("W3", "statistics move in new tensors, put into the dict of buffers")
def _(right: Any) -> Rebound:
    def masked_forward(
        model: Any, w: Any, s: Any, r: Any, buffers: Any, *args: Any, **kw: Any
    ) -> Any:
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        output = right.masked_forward(model, w, s, r, copies, *args, **kw)
        buffers.update(copies)
        return output

    return {"masked_forward": masked_forward}


@mistake("W4", "rest and buffers are the model's own tensors")
def _(right: Any) -> Rebound:
    def init(model: nn.Module, strategy: Any, *, seed: int) -> Any:
        state = right.init(model, strategy, seed=seed)
        own = dict(model.named_parameters())
        return state._replace(rest={name: own[name] for name in state.rest})

    return {"init": init}


@mistake("W4", "rest lies in the memory of the model")
def _(right: Any) -> Rebound:
    def init(model: nn.Module, strategy: Any, *, seed: int) -> Any:
        state = right.init(model, strategy, seed=seed)
        own = dict(model.named_parameters())
        return state._replace(rest={n: own[n].detach().requires_grad_() for n in state.rest})

    return {"init": init}


@mistake("W4", "scores are float32 whatever the model is")
def _(right: Any) -> Rebound:
    def init(model: nn.Module, strategy: Any, *, seed: int) -> Any:
        state = right.init(model, strategy, seed=seed)
        scores = {n: s.detach().float().requires_grad_() for n, s in state.scores.items()}
        return state._replace(scores=scores)

    return {"init": init}


@mistake("W5", "materialised weights without the mask")
def _(right: Any) -> Rebound:
    def materialize(model: Any, state: Any, *, density: float) -> Any:
        return {**right.materialize(model, state, density=density), **state.weights}

    return {"materialize": materialize}


@mistake("W5", "tied names are missing from the state_dict")
def _(right: Any) -> Rebound:
    def materialize(model: nn.Module, state: Any, *, density: float) -> Any:
        dense = right.materialize(model, state, density=density)
        names = {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
        return {name: tensor for name, tensor in dense.items() if name in names}

    return {"materialize": materialize}


@mistake("W6", "keyword arguments are dropped")
def _(right: Any) -> Rebound:
    return {
        "masked_forward": lambda model, *args, density, **kw: right.masked_forward(
            model, *args, density=density
        )
    }


@mistake("W6", "hooks of the model do not run")
def _(right: Any) -> Rebound:
    def masked_forward(model: nn.Module, *args: Any, **kw: Any) -> Any:
        bare = copy.copy(model)
        bare._forward_hooks = OrderedDict()
        return right.masked_forward(bare, *args, **kw)

    return {"masked_forward": masked_forward}


@mistake("W7", "channels_last is lost")
def _(right: Any) -> Rebound:
    def init(model: nn.Module, strategy: Any, *, seed: int) -> Any:
        state = right.init(model, strategy, seed=seed)
        return state._replace(weights={n: w.contiguous() for n, w in state.weights.items()})

    return {"init": init}


@mistake("W7", "scores of frozen weights are frozen")
def _(right: Any) -> Rebound:
    def init(model: nn.Module, strategy: Any, *, seed: int) -> Any:
        state = right.init(model, strategy, seed=seed)
        for name, scores in state.scores.items():
            scores.requires_grad_(model.get_parameter(name).requires_grad)
        return state

    return {"init": init}


@mistake("W8", "tensors of the state_dict are told by identity")
def _(right: Any) -> Rebound:
    def materialize(model: nn.Module, state: Any, *, density: float) -> Any:
        dense = right.materialize(model, state, density=density)
        own = {id(t) for t in [*model.parameters(), *model.buffers()]}
        entries = model.state_dict(keep_vars=True)
        return {key: dense[key] if id(entries[key]) in own else entries[key] for key in dense}

    return {"materialize": materialize}


@mistake("W8", "second names of tied tensors are the model's own")
def _(right: Any) -> Rebound:
    def materialize(model: nn.Module, state: Any, *, density: float) -> Any:
        dense = right.materialize(model, state, density=density)
        first = {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
        return {**dense, **{n: e for n, e in model.state_dict().items() if n not in first}}

    return {"materialize": materialize}


@mistake("W9", "every weight of two dimensions or more is maskable")
def _(right: Any) -> Rebound:
    return {
        "maskable_shapes": lambda model: {
            name: parameter.shape
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 and name.endswith("weight")
        }
    }


@mistake("W9", "subclasses of the layers are left unmasked")
def _(right: Any) -> Rebound:
    attributes = right.forward._maskable_attributes
    own = ("torch.nn.modules.conv", "torch.nn.modules.linear", "torch.nn.modules.activation")
    return {
        "_maskable_attributes": lambda module: (
            attributes(module) if type(module).__module__ in own else ()
        )
    }


@mistake("W10", "materialize leaves the masked weights in the state")
def _(right: Any) -> Rebound:
    def materialize(model: Any, state: Any, *, density: float) -> Any:
        dense = right.materialize(model, state, density=density)
        for name, weight in state.weights.items():
            weight.copy_(dense[name])
        return dense

    return {"materialize": materialize}


@mistake("W10", "materialize loads the model, too")
def _(right: Any) -> Rebound:
    def materialize(model: nn.Module, state: Any, *, density: float) -> Any:
        dense = right.materialize(model, state, density=density)
        model.load_state_dict(dense)
        return dense

    return {"materialize": materialize}


@mistake("W10", "init freezes the model")
def _(right: Any) -> Rebound:
    def init(model: nn.Module, strategy: Any, *, seed: int) -> Any:
        state = right.init(model, strategy, seed=seed)
        model.requires_grad_(False)
        return state

    return {"init": init}


@mistake("W10", "init seeds the global random state")
def _(right: Any) -> Rebound:
    def init(model: nn.Module, strategy: Any, *, seed: int) -> Any:
        torch.manual_seed(seed)
        return right.init(model, strategy, seed=seed)

    return {"init": init}


@mistake("W20", "the first convolution is run with a mask of its own for every channel")
def _(right: Any) -> Rebound:
    def apply_mask(weights: Any, scores: Any, *, density: float) -> Any:
        masked = right.apply_mask(weights, scores, density=density)
        first = next(iter(weights))
        rows = [right.score_mask(s, density=density) for s in scores[first]]
        return {**masked, first: weights[first] * torch.stack(rows)}

    def materialize(model: Any, state: Any, *, density: float) -> Any:
        return {
            **right.materialize(model, state, density=density),
            **right.apply_mask(state.weights, state.scores, density=density),
        }

    return {"apply_mask": apply_mask, "materialize": materialize}


@mistake("W11", "torch looks for the ties: a module with two names keeps masked weights")
def _(right: Any) -> Rebound:
    def masked_forward(
        model: Any, w: Any, s: Any, rest: Any, b: Any, *args: Any, density: float, **kw: Any
    ) -> Any:
        tensors = {**right.apply_mask(w, s, density=density), **rest, **b}
        return functional_call(model, tensors, args, kw)

    return {"masked_forward": masked_forward}


@mistake("W11", "the model is left with the masked weights where forward raises")
def _(right: Any) -> Rebound:
    def masked_forward(
        model: Any, w: Any, s: Any, rest: Any, b: Any, *args: Any, density: float, **kw: Any
    ) -> Any:
        tensors = {**right.apply_mask(w, s, density=density), **rest, **b}
        accessor = nn.utils._named_member_accessor.NamedMemberAccessor(model)
        own, _ = accessor.swap_tensors_dict(right.forward.by_place(model, {**tensors}, b))
        output = model(*args, **kw)
        accessor.swap_tensors_dict(own)
        return output

    return {"masked_forward": masked_forward}


# --- Transforms ---------------------------------------------------------------------------------


@mistake("X1", "the threshold is read as a Python number")
def _(right: Any) -> Rebound:
    def keep(scores: torch.Tensor, number: int) -> torch.Tensor:
        return scores.abs() >= scores.abs().topk(number).values[-1].item()

    return {"score_mask": masks_by(right, keep)}


@mistake("X2", "masked weights are written into tensors made beforehand")
def _(right: Any) -> Rebound:
    def apply_mask(weights: Any, scores: Any, *, density: float) -> Any:
        masked = right.apply_mask(weights, scores, density=density)
        return {name: torch.empty(m.shape, dtype=m.dtype).copy_(m) for name, m in masked.items()}

    return {"apply_mask": apply_mask}


class EdgePopup(torch.autograd.Function):
    """The mask as a custom function: right in eager mode, and it even has a rule for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient * ctx.saved_tensors[0].sign(), None


def through_a_function(right: Any) -> Rebound:
    """A score_mask whose gradient is that of a custom autograd function."""

    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        return EdgePopup.apply(scores, right.score_mask(scores.detach(), density=density))

    return {"score_mask": score_mask}


@mistake("X3", "a shortcut for scores that are all zero")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        if scores.abs().max() == 0:
            return scores
        return right.score_mask(scores, density=density)

    return {"score_mask": score_mask}


@mistake("X4", "a branch on the values of the scores")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        clean = scores.nan_to_num() if scores.isnan().any() else scores
        return right.score_mask(clean, density=density)

    return {"score_mask": score_mask}


@mistake("X5", "a custom autograd function: no gradient when compiled")
def _(right: Any) -> Rebound:
    return through_a_function(right)


@mistake("X6", "a custom autograd function: no forward mode")
def _(right: Any) -> Rebound:
    return through_a_function(right)


@mistake("X7", "scores are rounded to bfloat16 under autocast")
def _(right: Any) -> Rebound:
    def score_mask(scores: torch.Tensor, *, density: float) -> Any:
        if torch.is_autocast_enabled("cpu"):
            return right.score_mask(scores.bfloat16(), density=density).to(scores.dtype)
        return right.score_mask(scores, density=density)

    return {"score_mask": score_mask}


@mistake("X8", "masked weights are made contiguous")
def _(right: Any) -> Rebound:
    def apply_mask(weights: Any, scores: Any, *, density: float) -> Any:
        masked = right.apply_mask(weights, scores, density=density)
        return {name: weight.contiguous() for name, weight in masked.items()}

    return {"apply_mask": apply_mask}


@mistake("X9", "weights are detached before the forward")
def _(right: Any) -> Rebound:
    def masked_forward(model: Any, weights: Any, *args: Any, **kw: Any) -> Any:
        frozen = {name: weight.detach() for name, weight in weights.items()}
        return right.masked_forward(model, frozen, *args, **kw)

    return {"masked_forward": masked_forward}


@mistake("X10", "weights and scores stay on the CPU where they were drawn")
def _(right: Any) -> Rebound:
    def init(model: nn.Module, strategy: Any, *, seed: int) -> Any:
        shapes = right.maskable_shapes(model)
        prototype = right.make_prototype(shapes, strategy, seed=seed)
        return right.init(model, strategy, seed=seed)._replace(
            weights=right.fill_weights(prototype, shapes, strategy),
            scores=right.init_scores(shapes, seed=seed),
        )

    return {"init": init}


@mistake("X11", "the mask is left out where no gradient is wanted")
def _(right: Any) -> Rebound:
    def apply_mask(weights: Any, scores: Any, *, density: float) -> Any:
        if not torch.is_grad_enabled():
            return dict(weights)
        return right.apply_mask(weights, scores, density=density)

    return {"apply_mask": apply_mask}


# --- Storage ------------------------------------------------------------------------------------


def recounted(right: Any, change: Callable[[Any], Any]) -> Rebound:
    """A storage whose result is changed by a function."""

    def storage(shapes: Any, strategy: Any, others: Any = ()) -> Any:
        return change(right.storage(shapes, strategy, others))

    return {"storage": storage}


@mistake("S1", "bits counted as bytes")
def _(right: Any) -> Rebound:
    return recounted(right, lambda c: c._replace(paper=1 - (c.weights + 4 * c.unique / 32) / 32))


@mistake("S2", "unique values counted after masking: zero is one more")
def _(right: Any) -> Rebound:
    return recounted(right, lambda c: c._replace(unique=c.unique + 1))


@mistake("S3", "compression of the ratio alone, the rest of the layers counted as saved")
def _(right: Any) -> Rebound:
    return recounted(right, lambda c: c._replace(paper=c.unique / c.weights))


@mistake("S4", "batch-norm left out of the whole model")
def _(right: Any) -> Rebound:
    return {"storage": lambda shapes, strategy, others=(): right.storage(shapes, strategy)}


@mistake("S5", "every other tensor counted at 32 bits")
def _(right: Any) -> Rebound:
    return {
        "storage": lambda shapes, strategy, others=(): right.storage(
            shapes, strategy, [other.float() for other in others]
        )
    }


# --- The compressed file ------------------------------------------------------------------------


@mistake("C1", "bits are read from the most significant, and written from the least")
def _(right: Any) -> Rebound:
    unpack = right.file.unpack
    return {"unpack": lambda packed: unpack(packed).view(-1, 8).flip(1).flatten()}


@mistake("C1", "second names of tied tensors are forgotten")
def _(right: Any) -> Rebound:
    names = right.file.names.stored_names
    return {"stored_names": lambda model: ({}, names(model)[1])}


@mistake("C1", "the buffers are those of the model")
def _(right: Any) -> Rebound:
    load = right.file.load

    def load_all_but_buffers(path: Any, model: nn.Module) -> Any:
        state, info = load(path, model)
        return state._replace(buffers={n: b.clone() for n, b in model.named_buffers()}), info

    return {"load": load_all_but_buffers}


@mistake("C1", "bits are written in the order of memory")
def _(right: Any) -> Rebound:
    save = right.file.save

    def in_memory(scores: torch.Tensor) -> torch.Tensor:
        strides = scores.stride()
        order = sorted(range(scores.ndim), key=lambda axis: -strides[axis])
        return scores.permute(order).reshape(scores.shape)

    def save_so(path: Any, model: Any, state: Any, *args: Any, **kw: Any) -> None:
        scores = {name: in_memory(scores.detach()) for name, scores in state.scores.items()}
        save(path, model, state._replace(scores=scores), *args, **kw)

    return {"save": save_so}


@mistake("C1", "the rest that is loaded is frozen")
def _(right: Any) -> Rebound:
    load = right.file.load

    def load_frozen(path: Any, model: nn.Module) -> Any:
        state, info = load(path, model)
        return state._replace(rest={n: t.detach() for n, t in state.rest.items()}), info

    return {"load": load_frozen}


@mistake("C1", "saving turns the scores into masks")
def _(right: Any) -> Rebound:
    save = right.file.save

    def save_all(path: Any, model: Any, state: Any, *args: Any, density: float, **kw: Any) -> None:
        save(path, model, state, *args, density=density, **kw)
        for scores in state.scores.values():
            scores.detach().copy_(right.score_mask(scores.detach(), density=density))

    return {"save": save_all}


@mistake("C2", "the masks are followed by an empty byte")
def _(right: Any) -> Rebound:
    pack = right.file.pack
    return {"pack": lambda mask: nn.functional.pad(pack(mask), (0, 1))}


@mistake("C3", "the time is written into the tag")
def _(right: Any) -> Rebound:
    save = right.file.save
    return {"save": lambda *args, **kw: save(*args, **{**kw, "tag": f"{time.perf_counter_ns()}"})}


@mistake("C4", "half precision is asked for and not given")
def _(right: Any) -> Rebound:
    save = right.file.save
    return {"save": lambda *args, half=False, **kw: save(*args, **kw)}


@mistake("C4", "the rest of the state is rounded, too")
def _(right: Any) -> Rebound:
    save = right.file.save

    def save_half(
        path: Any, model: Any, state: Any, *args: Any, half: bool = False, **kw: Any
    ) -> None:
        save(path, model, state, *args, half=half, **kw)
        for tensor in state.rest.values() if half else ():
            tensor.detach().copy_(tensor.detach().half())

    return {"save": save_half}


@mistake("C5", "the weights are not compared with the prototype that is stored")
def _(right: Any) -> Rebound:
    return {"need": unchecked}


@mistake("C6", "what the file has and the model has not is left out")
def _(right: Any) -> Rebound:
    check_same = right.checks.check_same

    def check_known(what: str, got: Any, want: Any) -> None:
        check_same(what, {name: got[name] for name in got if name in want}, want)

    return {"check_same": check_known}


@mistake("C6", "ties are not compared")
def _(right: Any) -> Rebound:
    need = right.file.header.need
    return {"need": lambda true, otherwise: need(true or "ties" in otherwise, otherwise)}


@mistake("C6", "values that the model's dtype does not hold become infinite")
def _(right: Any) -> Rebound:
    need = right.file.header.need
    return {"need": lambda true, otherwise: need(true or "too large for" in otherwise, otherwise)}


@mistake("C7", "the checksum is not compared")
def _(right: Any) -> Rebound:
    need = right.file.header.need
    return {"need": lambda true, otherwise: need(true or "checksum" in otherwise, otherwise)}


@mistake("C8", "bits are written and read from the most significant")
def _(right: Any) -> Rebound:
    pack, unpack = right.file.pack, right.file.unpack
    return {
        "pack": lambda mask: pack(mask.view(-1, 8).flip(1).flatten()),
        "unpack": lambda packed: unpack(packed).view(-1, 8).flip(1).flatten(),
    }


@mistake("C9", "values that are not finite are read")
def _(right: Any) -> Rebound:
    return {"check_values": unchecked}


@mistake("C9", "shapes have any number of dimensions")
def _(right: Any) -> Rebound:
    return {"MAX_DIMENSIONS": 10**6}


@mistake("C10", "the shapes are sorted by name")
def _(right: Any) -> Rebound:
    inspect = right.file.inspect

    def sorted_shapes(path: Any) -> Any:
        info = inspect(path)
        return info._replace(shapes=dict(sorted(info.shapes.items())))

    return {"inspect": sorted_shapes}


@mistake("C11", "offsets, lengths and the order of the tensors are not looked at")
def _(right: Any) -> Rebound:
    need = right.file.header.need

    def unless_header(true: bool, otherwise: str) -> None:
        need(true or "header" in otherwise or "checksum" in otherwise, otherwise)

    return {"need": unless_header}


@mistake("C12", "of a long layer the first 4096 weights are read")
def _(right: Any) -> Rebound:
    load_dense = right.file.load_dense

    def beginnings(path: Any) -> Any:
        dense = load_dense(path)
        for tensor in dense.values():
            tensor.view(-1)[4096:] = 0
        return dense

    return {"load_dense": beginnings}


@mistake("C13", "persistent buffers are found by the tensors of the state_dict")
def _(right: Any) -> Rebound:
    names = right.file.names.stored_names

    def by_tensor(model: nn.Module) -> Any:
        entries = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        lost = {name for name, buffer in model.named_buffers() if id(buffer) not in entries}
        tied, stored = names(model)
        return tied, stored - lost

    return {"stored_names": by_tensor}


@mistake("C14", "a header is read however long it says it is")
def _(right: Any) -> Rebound:
    return {"check_length": unchecked}


# --- Errors -------------------------------------------------------------------------------------


def unchecked(*_: Any, **__: Any) -> None:
    """A check that finds nothing wrong."""


@mistake("E1", "densities are clipped into [0, 1]")
def _(right: Any) -> Rebound:
    return {"kept": lambda numel, density: right.kept(numel, min(max(density, 1e-9), 1))}


@mistake("E2", "ratios are clipped to 1")
def _(right: Any) -> Rebound:
    return {"prototype_length": lambda numel, ratio: right.prototype_length(numel, min(ratio, 1.0))}


@mistake("E3", "any name is a strategy")
def _(right: Any) -> Rebound:
    right.Strategy.__post_init__ = unchecked
    return {}


@mistake("E4", "empty layers are accepted")
def _(right: Any) -> Rebound:
    return {"check_shapes": unchecked}


@mistake("E5", "a model with nothing to mask is accepted")
def _(right: Any) -> Rebound:
    return {"check_shapes": unchecked}


@mistake("E6", "a computed weight is silently rest")
def _(right: Any) -> Rebound:
    kinds = (nn.Linear, nn.Conv2d)
    return {
        "maskable_shapes": lambda model: {
            f"{path}.weight": module.weight.shape
            for path, module in model.named_modules()
            if isinstance(module, kinds) and "weight" in dict(module.named_parameters())
        }
    }


@mistake("E6", "the layers of a scripted part are silently rest")
def _(right: Any) -> Rebound:
    def maskable_shapes(model: nn.Module) -> Any:
        try:
            return right.maskable_shapes(model)
        except ValueError as error:
            if "scripted" not in str(error):
                raise
            return {}

    return {"maskable_shapes": maskable_shapes}


@mistake("E7", "non-finite scores are materialised")
def _(right: Any) -> Rebound:
    return {"check_finite": unchecked}


@mistake("E8", "missing tensors are silently the model's own")
def _(right: Any) -> Rebound:
    by_place = right.forward.by_place

    def else_the_models_own(model: nn.Module, parameters: Any, buffers: Any) -> Any:
        own, own_buffers = dict(model.named_parameters()), dict(model.named_buffers())
        return by_place(model, {**own, **parameters}, {**own_buffers, **buffers})

    return {"check_same": unchecked, "by_place": else_the_models_own}


@mistake("E9", "any seed is hashed")
def _(right: Any) -> Rebound:
    return {"random_stream": lambda name, seed: torch.Generator().manual_seed(hash((name, seed)))}


@mistake("E10", "an unusable prototype fills with whatever it has")
def _(right: Any) -> Rebound:
    def fill_weights(prototype: Any, shapes: Any, strategy: Any) -> Any:
        values = prototype.get("all", torch.zeros(1)).flatten()
        values = values if len(values) else torch.zeros(1)
        return right.fill_weights({"all": values}, shapes, strategy)

    return {"fill_weights": fill_weights}


@mistake("E11", "scores of any dtype are ranked")
def _(right: Any) -> Rebound:
    return {
        "score_mask": lambda scores, density: right.score_mask(
            scores if scores.is_floating_point() else scores.float(), density=density
        )
    }
