"""Gated mistakes: each mistake of the gallery, applied only where a condition on the call holds.

It measures whether the clauses draw the contexts in which code can be wrong. ``python -m spec_tests
contexts`` shows which gates hold in which clauses, ``gates`` how many of the gated mistakes are
caught, and writes GATES.md. The reasons in it are written here, as ``HOLDS_NOWHERE`` and ``ALIKE``.
"""

import functools
import inspect
import json
import multiprocessing
import platform
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pemn_ref.atomic import write
from spec_tests.clauses import Clause, all_clauses
from spec_tests.document import measured as red_of
from spec_tests.gallery import GALLERY, Mistake, failure
from spec_tests.gallery.mistakes import Rebound
from spec_tests.plugin import as_json

SUMMARY = Path(__file__).parent / "GATES.md"
MEASURED = Path(__file__).parent / "gates.json"
GROUPS = "PFMGWXS"  # not files and errors, which have contexts of their own
# Slow stock models; and a call that is compiled, or in another process, cannot be looked at.
LEFT_OUT = {"W20", "X4", "X5", "P14"}
UNSEEN = {"X5", "P14"}  # mistakes that show nowhere else
BY_LAYER = {"apply_mask", "fill_weights", "init_scores"}
"""What returns layer by layer: there only the layers for which a gate of layers holds are wrong."""


class Layer(NamedTuple):
    """One layer of a call, as far as its arguments tell."""

    shape: tuple[int, ...]
    weight: Tensor | None
    score: Tensor | None
    place: int | None
    """None where the function sees one layer alone."""
    among: int


class Call:
    """The arguments of a call, by what they mean; what it does not have is None."""

    def __init__(self, arguments: Mapping[str, Any], seen: "Seen") -> None:
        get, state = arguments.get, arguments.get("state")
        self.seen = seen
        self.model = get("model") if isinstance(get("model"), nn.Module) else None
        self.strategy = get("strategy") if hasattr(get("strategy"), "ratio") else get("self")
        self.seed, self.density, self.ratio = get("seed"), get("density"), get("ratio")
        self.inputs, self.kwargs = get("inputs"), get("kwargs")
        self.rest = get("rest", getattr(state, "rest", None))
        self.buffers = get("buffers", getattr(state, "buffers", None))
        self.weights = get("weights", getattr(state, "weights", None))
        self.scores = get("scores", getattr(state, "scores", None))
        self.numel, self.shapes = get("numel"), get("shapes")
        self.alone = isinstance(self.scores, Tensor) or "shape" in arguments or bool(self.numel)
        if isinstance(self.scores, Tensor):
            self.scores = {"": self.scores}
        if "shape" in arguments:
            self.shapes = {"": arguments["shape"]}
        if self.ratio is None:
            self.ratio = getattr(self.strategy, "ratio", None)

    @functools.cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers, from shapes, scores or the model."""
        shapes: Any = self.shapes
        if shapes is None and self.scores:
            shapes = {name: scores.shape for name, scores in self.scores.items()}
        if shapes is None and self.numel is not None:
            shapes = {"": (self.numel,)}
        if shapes is None and self.model is not None:
            shapes = {
                f"{path}.weight": part.weight.shape
                for path, part in self.model.named_modules()
                if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)
            }
        return {
            name: Layer(
                tuple(shape),
                (self.weights or {}).get(name),
                (self.scores or {}).get(name),
                None if self.alone else i,
                len(shapes),
            )
            for i, (name, shape) in enumerate((shapes or {}).items())
        }


class Seen:
    """Which objects were there in a call before."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}

    def again(self, thing: Any) -> bool:
        """Whether this one was; from now on it was."""
        known = self.objects.get(id(thing)) is thing
        self.objects[id(thing)] = thing
        return known


class Gate(NamedTuple):
    """A condition on a call, or on each of its layers; None where the arguments do not tell."""

    text: str
    holds: Callable[[Any], Any]
    of_layers: bool

    def names(self, call: Call) -> dict[str, Any]:
        """Layer -> answer."""
        return {name: self.holds(layer) for name, layer in call.layers.items()}

    def ask(self, call: Call) -> bool | None:
        """Whether it holds for the call, or for any of its layers."""
        try:
            answers = [self.holds(call)] if not self.of_layers else [*self.names(call).values()]
            told = [bool(answer) for answer in answers if answer is not None]
        except (AttributeError, TypeError, RuntimeError, ValueError):
            return None  # arguments that are wrong by design, or without values
        return any(told) if told else None


def of(get: Callable[[Any], Any], test: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The test of what ``get`` finds, None where it finds nothing."""

    def holds(asked: Any) -> Any:
        found = get(asked)
        return None if found is None else test(found)

    return holds


def part(name: str, test: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The test of one part of a call or layer."""
    return of(lambda asked: getattr(asked, name), test)


def without_values(tensor: Tensor) -> bool:
    """Under a transform of torch.func, or on the meta device."""
    functorch: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return functorch or tensor.device.type == "meta"


def values(test: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    """The test of a layer's scores, where they have values."""
    return of(
        lambda layer: (
            None if layer.score is None or without_values(layer.score) else layer.score.detach()
        ),
        test,
    )


def own(which: str) -> Callable[[Any], Any]:
    """Whether a part of the state differs from the model's own."""

    def holds(call: Call) -> Any:
        tensors = getattr(call, which)
        if call.model is None or tensors is None or any(map(without_values, tensors.values())):
            return None
        have = dict(
            getattr(call.model, f"named_{'buffers' if which == 'buffers' else 'parameters'}")()
        )
        return any(n in have and not torch.equal(t, have[n]) for n, t in tensors.items())

    return holds


def is_named(name: str, strategy: Any) -> bool:
    """Whether it is this strategy."""
    return bool(strategy.name == name)


def has_axes(count: int, layer: Layer) -> bool | None:
    """Whether it has as many; where only the number of weights is known, nothing tells."""
    told = layer.score is not None or len(layer.shape) > 1
    return len(layer.shape) == count if told else None


def is_of(dtype: torch.dtype, tensor: Tensor) -> bool:
    """Whether it is of this dtype."""
    return tensor.dtype == dtype


OF_CALLS: dict[str, Callable[[Any], Any]] = {
    "gradients enabled": lambda call: torch.is_grad_enabled(),
    "no_grad": lambda call: not torch.is_grad_enabled() and not torch.is_inference_mode_enabled(),
    "inference_mode": lambda call: torch.is_inference_mode_enabled(),
    "autocast": lambda call: torch.is_autocast_enabled("cpu"),
    "float64 by default": lambda call: torch.get_default_dtype() == torch.float64,
    "training": part("model", lambda model: model.training),
    "evaluation": part("model", lambda model: not model.training),
    "a grouped convolution": part(
        "model", lambda model: any(getattr(m, "groups", 1) > 1 for m in model.modules())
    ),
    "a convolution in a circle": part(
        "model",
        lambda model: any(getattr(m, "padding_mode", "") == "circular" for m in model.modules()),
    ),
    "a hook of a part": part(
        "model", lambda model: any(m._forward_pre_hooks for m in [*model.modules()][1:])
    ),
    "several dtypes": part("model", lambda model: len({p.dtype for p in model.parameters()}) > 1),
    "no buffers": part("model", lambda model: not [*model.buffers()]),
    "no rest": part("rest", lambda rest: not rest),
    "a frozen parameter": part(
        "model", lambda model: any(not p.requires_grad for p in model.parameters())
    ),
    "tied parameters": part(
        "model",
        lambda model: (
            len([*model.parameters()]) < len([*model.named_parameters(remove_duplicate=False)])
        ),
    ),
    "a dropout that drops": part(
        "model",
        lambda model: any(
            isinstance(m, nn.Dropout) and m.p and m.training for m in model.modules()
        ),
    ),
    "rest is not the model's own": own("rest"),
    "buffers are not the model's own": own("buffers"),
    "rest wants no gradient": part(
        "rest", lambda rest: bool(rest) and not any(t.requires_grad for t in rest.values())
    ),
    "several inputs or keywords": lambda call: (
        None if call.inputs is None else len(call.inputs) > 1 or bool(call.kwargs)
    ),
    "batch of one": part("inputs", lambda inputs: len(inputs[0]) == 1),
    "second call with the same model": lambda call: (
        None if call.model is None else call.seen.again(call.model)
    ),
    "second call with the same scores": lambda call: (
        None if not call.scores else call.seen.again(next(iter(call.scores.values())))
    ),
    **{
        f"strategy {name}": part("strategy", functools.partial(is_named, name))
        for name in ("mask", "one_layer", "mp", "rp")
    },
    "ratio < 0.01": part("ratio", lambda ratio: ratio < 0.01),
    "seed < 2**16": part("seed", lambda seed: 0 <= seed < 2**16),
    "seed >= 2**16": part("seed", lambda seed: seed >= 2**16),
    "seed >= 2**32": part("seed", lambda seed: seed >= 2**32),
    "odd seed": part("seed", lambda seed: seed % 2 == 1),
    "density != 0.5": part("density", lambda density: density != 0.5),
    "density > 0.5": part("density", lambda density: density > 0.5),
    "density 1": part("density", lambda density: density == 1),
    "density < 0.01": part("density", lambda density: density < 0.01),
    "vmap": part(
        "scores", lambda scores: any(map(torch._C._functorch.is_batchedtensor, scores.values()))
    ),
}
OF_LAYERS: dict[str, Callable[[Any], Any]] = {
    "numel < 10": lambda layer: torch.Size(layer.shape).numel() < 10,
    "numel > 100": lambda layer: torch.Size(layer.shape).numel() > 100,
    "numel > 1,000": lambda layer: torch.Size(layer.shape).numel() > 1000,
    "numel > 10,000": lambda layer: torch.Size(layer.shape).numel() > 10_000,
    "odd numel": lambda layer: torch.Size(layer.shape).numel() % 2 == 1,
    **{f"{axes} dimensions": functools.partial(has_axes, axes) for axes in (2, 3, 4, 5)},
    "depthwise: one channel in": lambda layer: (
        None if len(layer.shape) < 3 else layer.shape[1] == 1 and layer.shape[0] > 1
    ),
    "1x1 kernel": lambda layer: None if len(layer.shape) < 3 else set(layer.shape[2:]) == {1},
    "first layer": part("place", lambda place: place == 0),
    "last layer": lambda layer: None if layer.place is None else layer.place == layer.among - 1,
    "the only layer": lambda layer: None if layer.place is None else layer.among == 1,
    "more than 20 layers": lambda layer: None if layer.place is None else layer.among > 20,
    **{
        str(dtype).removeprefix("torch."): part("score", functools.partial(is_of, dtype))
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    },
    "weight and score of different dtypes": lambda layer: (
        None
        if layer.weight is None or layer.score is None
        else layer.weight.dtype != layer.score.dtype
    ),
    "scores not contiguous": part("score", lambda score: not score.is_contiguous()),
    "scores channels_last": part(
        "score",
        lambda score: (
            score.ndim == 4
            and not score.is_contiguous()
            and score.is_contiguous(memory_format=torch.channels_last)
        ),
    ),
    "scores want no gradient": part("score", lambda score: not score.requires_grad),
    "scores want a gradient": part("score", lambda score: score.requires_grad),
    "weight wants a gradient": part("weight", lambda weight: weight.requires_grad),
    "scores all positive": values(lambda scores: (scores > 0).all()),
    "scores all negative": values(lambda scores: (scores < 0).all()),
    "a negative score": values(lambda scores: (scores < 0).any()),
    "a score of 0": values(lambda scores: (scores == 0).any()),
    "a score that is not finite": values(lambda scores: (~scores.isfinite()).any()),
    "scores all equal": values(lambda s: s.numel() > 1 and (s == s.flatten()[0]).all()),
    "scores tied": values(lambda scores: scores.abs().unique().numel() < scores.numel()),
    "scores > 1": values(lambda scores: scores.abs().max() > 1),
}
GATES = {
    text: Gate(text, holds, gates is OF_LAYERS)
    for gates in (OF_CALLS, OF_LAYERS)
    for text, holds in gates.items()
}


def gated(original: Any, wrong: Any, gate: Gate, name: str, told: Counter[str]) -> Any:
    """``original``, but ``wrong`` where the gate holds; ``told`` counts how often, and differently.

    Under torch.compile no call is looked at, and the original runs.
    """
    signature, seen = inspect.signature(original), Seen()

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(*args, **kwargs)
        try:
            the_call = Call(signature.bind(*args, **kwargs).arguments, seen)
        except TypeError:
            return original(*args, **kwargs)
        if not gate.ask(the_call):
            return original(*args, **kwargs)
        told["held"] += 1
        bad = wrong(*args, **kwargs)
        if not (gate.of_layers and name in BY_LAYER):
            return bad
        answers = gate.names(the_call)
        if all(answers.values()):
            return bad
        good = original(*args, **kwargs)
        return {n: bad[n] if answers.get(n) and n in bad else good[n] for n in good}

    return call


def rewired(make: Callable[[Any], Rebound], right: Any, wrap: Callable[..., Any]) -> Rebound:
    """What ``make`` rebinds, also methods of Strategy, each handed through ``wrap``."""
    before = dict(vars(right.Strategy))
    rebound = make(right)
    for name, value in {**vars(right.Strategy)}.items():
        if callable(value) and before.get(name) is not value:
            setattr(right.Strategy, name, wrap(before[name], value, name))
    return {n: wrap(getattr(right, n), value, n) for n, value in rebound.items()}


def behind(mistake: Mistake, gate: Gate, told: Counter[str]) -> Mistake:
    """The mistake where the gate holds."""

    def make(right: Any) -> Rebound:
        return rewired(mistake.rebound, right, lambda o, w, n: gated(o, w, gate, n, told))

    return mistake._replace(text=f"{mistake.text}, only: {gate.text}", rebound=make)


def replaced(mistake: Mistake) -> set[str]:
    """The functions that a mistake replaces."""
    names: set[str] = set()

    def wrap(_: Any, wrong: Any, name: str) -> Any:
        names.add(name)
        return wrong

    mistake._replace(rebound=lambda right: rewired(mistake.rebound, right, wrap)).build()
    return names


Table = dict[tuple[str, str], dict[str, bool]]
"""(function, gate) -> clause -> whether the gate held there; missing where no call told."""


def table() -> Table:
    """One run of each clause on the reference, watched."""
    names = {name for mistake in mistakes() for name in replaced(mistake)}
    cells: Table = defaultdict(dict)
    clause = ""

    def watched(original: Any, name: str) -> Any:
        signature, seen = inspect.signature(original), {text: Seen() for text in GATES}

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                try:
                    arguments = signature.bind(*args, **kwargs).arguments
                except TypeError:
                    return original(*args, **kwargs)
                the_call = Call(arguments, Seen())
                for text, gate in GATES.items():
                    if not cells[name, text].get(clause):
                        the_call.seen = seen[text]
                        held = gate.ask(the_call)
                        if held is not None:
                            cells[name, text][clause] = held
            return original(*args, **kwargs)

        return call

    def make(right: Any) -> Rebound:
        methods = {name for name in names if name in vars(right.Strategy)}
        for name in methods:
            setattr(right.Strategy, name, watched(vars(right.Strategy)[name], name))
        return {n: watched(getattr(right, n), n) for n in names - methods}

    for identifier, stated in clauses().items():
        clause = identifier
        error = attempt(stated, Mistake("", "", make))
        assert error is None, f"{identifier} is red on the reference that is watched: {error!r}"
    return {cell: row for cell, row in cells.items() if row}


def mistakes() -> list[Mistake]:
    """Those of the gallery that are gated."""
    return [m for m in GALLERY if m.clause[0] in GROUPS and m.clause not in UNSEEN]


def clauses() -> dict[str, Clause]:
    """The clauses that gated mistakes are shown to."""
    every = all_clauses()
    return {n: every[n] for n in every if n[0] in GROUPS and n not in LEFT_OUT}


def attempt(clause: Clause, mistake: Mistake) -> BaseException | None:
    """What fails, None also where the machine cannot run the clause."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return failure(clause, mistake.build())
    except pytest.skip.Exception:
        return None


# Cells in which a gate holds in no clause, each with the reason; "*" stands for any function.
HOLDS_NOWHERE: dict[tuple[str, str], str] = {
    ("init", "inference_mode"): "what is made in inference mode cannot be trained",
    ("masked_forward", "float16"): "a CPU has no float16 for some of the layers",
    ("materialize", "vmap"): "a state_dict is not made under a transform",
    ("materialize", "a score that is not finite"): "refused (E7)",
}


class Alike(NamedTuple):
    """Pairs that no call can tell from the right function: patterns of mistakes, and gates."""

    mistakes: tuple[str, ...]
    gates: tuple[str, ...]
    reason: str


NO_GRADIENT = ("no_grad", "inference_mode", "scores want no gradient")
OF_FINITE = ("scores all positive", "scores all negative", "scores all equal", "scores > 1")
OF_VALUES = (*OF_FINITE, "a negative score", "a score of 0", "scores tied")
ALIKE = (
    Alike(
        ("P2: ratio of *", "P6: rp drawn *"),
        ("strategy mask", "strategy one_layer", "strategy mp"),
        "the mistake affects only rp",
    ),
    Alike(
        ("F2: mp pads *",),
        ("strategy mask", "strategy one_layer", "strategy rp", "ratio < 0.01"),
        "the mistake affects only mp",
    ),
    Alike(("F1: filled column *",), ("strategy one_layer",), "the mistake leaves one_layer out"),
    Alike(
        ("F4: *",),
        ("strategy mask", "strategy mp", "strategy rp", "ratio < 0.01"),
        "the mistake affects only one_layer",
    ),
    Alike(
        ("F4: one_layer over convolutions *",),
        ("3 dimensions", "4 dimensions", "5 dimensions", "depthwise*", "1x1 kernel"),
        "the mistake affects only layers of two dimensions",
    ),
    Alike(
        ("P12: *", "P13: *", "P4: one standard *"),
        ("strategy mp", "strategy rp", "ratio < 0.01", "the only layer"),
        "there is one prototype; it is drawn with the seed itself, and has one standard deviation",
    ),
    Alike(
        ("P2: ratio of *", "P3: prototype from *", "P10: one mask *", "M8: *", "M10: *"),
        ("the only layer",),
        "there is no other layer to be mixed up with",
    ),
    Alike(
        ("F1: filling goes on *",),
        ("the only layer", "first layer"),
        "there is no layer before it",
    ),
    Alike(
        ("F5: gradient *", "G1: gradient *", "G2: *", "G3: *", "G7: *kept weights only"),
        NO_GRADIENT,
        "there is no gradient to be wrong",
    ),
    Alike(
        ("G5: *", "G6: *", "G8: *", "X9: *"),
        ("no_grad", "inference_mode"),
        "there is no gradient to be wrong",
    ),
    Alike(("G5: *",), ("rest wants no gradient", "no rest"), "there is no gradient to be wrong"),
    Alike(
        ("G1: gradient *", "G7: *kept weights only", "G8: *"),
        ("density 1",),
        "all weights are kept",
    ),
    Alike(
        ("M1: the released *", "M1: rounded *", "M2: *", "M3: keeps *", "M4: *", "M8: *"),
        ("density 1",),
        "all weights are kept",
    ),
    Alike(
        ("M5: ranked *", "W2: the mask *", "W5: mat*", "W10: *the state", "W20: *", "X11: *"),
        ("density 1",),
        "all weights are kept",
    ),
    Alike(
        ("M10: *",),
        ("density 1", "density > 0.5", "density < 0.01", "density != 0.5"),
        "the gate asks for a density of all layers, which is then that of the first",
    ),
    Alike(
        ("G1: sign *", "G7: *sign of the score", "M3: keeps *"),
        ("scores all positive",),
        "a score and its magnitude are the same",
    ),
    Alike(
        ("G3: *",),
        ("scores all positive", "scores all negative"),
        "there is no score of 0",
    ),
    Alike(
        ("M5: NaN *", "X4: *"),
        OF_FINITE,
        "the gate does not hold where there is a NaN, nor can it look at scores under a transform",
    ),
    Alike(("M3: keeps *", "M5: ranked *", "X7: *"), ("scores all equal",), "all of them are tied"),
    Alike(
        ("X3: *",),
        (*OF_FINITE[:2], "scores > 1", "a negative score", "a score that is not finite"),
        "there is a score that is not 0, and under a transform the gate cannot look at it",
    ),
    Alike(
        ("X6: *",),
        OF_VALUES,
        "it shows only under a transform, where the gate cannot look at the scores",
    ),
    Alike(("X7: *",), ("bfloat16",), "the scores are already bfloat16"),
    Alike(
        ("M4: ties are counted *",),
        ("float32", "float64"),
        "it takes a layer of 2**24 tied weights, which no clause has the time for",
    ),
    Alike(
        ("M9: *", "G7: *first masks"),
        ("vmap",),
        "a tensor under vmap is a new object in each call, so that nothing is remembered",
    ),
    Alike(("M4: ties are counted *",), ("numel < 10",), "every dtype can count so few"),
    Alike(
        ("M1: the released *",),
        ("density < 0.01",),
        "1 - density is so near to 1 that its rounding never reaches the product",
    ),
    Alike(("M9: a mask is kept *",), ("density 1",), "all weights are kept"),
    Alike(("P10: *",), ("last layer",), "the mask for all layers of a shape is the last one's own"),
    Alike(("P3: *",), ("strategy one_layer",), "the first and the last of a shape are drawn alike"),
    Alike(
        ("G8: *",), ("numel < 10",), "the mistake affects only layers of more than 10,000 weights"
    ),
    Alike(
        ("X8: *",),
        ("2 dimensions", "3 dimensions", "depthwise*", "1x1 kernel"),
        "channels_last exists only for 4 and 5 dimensions, and changes no order where one of them"
        " is 1",
    ),
    Alike(
        ("W2: buffers *",),
        ("evaluation", "no buffers"),
        "no buffer would move",
    ),
    Alike(
        ("W2: the mask *", "W3: statistics move in eval*"),
        ("training",),
        "the mistaken code is right there",
    ),
    Alike(
        ("W2: the mask *", "W3: statistics move in eval*"),
        ("a dropout that drops",),
        "dropout drops only in training, where the mistaken code is right",
    ),
    Alike(("W3: statistics move in new *",), ("no buffers",), "there are no buffers"),
    Alike(("X11: *",), ("gradients enabled",), "the mistake acts only with gradients disabled"),
)


def nowhere(cells: Table) -> dict[tuple[str, str], str | None]:
    """Cells whose gate holds in no clause -> the reason, None where there is none."""
    return {
        (name, gate): HOLDS_NOWHERE.get((name, gate), HOLDS_NOWHERE.get(("*", gate)))
        for (name, gate), row in cells.items()
        if not any(row.values())
    }


def contexts() -> int:
    """Print which gate holds in which clauses for which function; 1 if one holds nowhere."""
    cells = table()
    empty = nowhere(cells)
    for (name, gate), row in sorted(cells.items()):
        held = " ".join(clause for clause, holds in row.items() if holds)
        print(f"{name}, {gate}: {held or empty[name, gate] or 'NOWHERE, and without a reason'}")
    lost = [cell for cell, reason in empty.items() if reason is None]
    print(f"{len(cells)} cells, {len(empty)} nowhere, {len(lost)} of them without a reason")
    return int(bool(lost))


def pairs(cells: Table) -> dict[tuple[str, str], list[str]]:
    """Mistake and gate -> the clauses in which the gate holds, the likeliest to catch it first.

    All pairs whose gate holds somewhere, in a random order that is always the same. Where no call
    can tell, the likeliest alone: they would show a reason that is wrong.
    """
    found, red = {}, red_of()
    for mistake in mistakes():
        functions = replaced(mistake)
        for gate in GATES:
            held = {c for f in functions for c, holds in cells.get((f, gate), {}).items() if holds}
            if held:
                likely = [mistake.clause, *red.get(mistake.named, "").split()]
                order = [c for c in likely if c in held]
                if reason_of(f"{mistake.named} | {gate}") is None:
                    order += [c for c in clauses() if c in held and c not in order]
                found[mistake.named, gate] = order
    shuffled = sorted(found)
    random.Random(0).shuffle(shuffled)
    return {pair: found[pair] for pair in shuffled}


def outcome(asked: tuple[tuple[str, str], list[str]]) -> tuple[str, str]:
    """A pair, as in ``gates.json``, and the clause that catches it: empty if it survives."""
    (text, gate), names = asked
    (mistake,) = (m for m in mistakes() if m.named == text)
    told: Counter[str] = Counter()
    stated = clauses()
    for name in names:
        error = attempt(stated[name], behind(mistake, GATES[gate], told))
        # A mistake that crashes of itself shows nothing, as in the gallery.
        caught = (AssertionError, pytest.fail.Exception)
        if isinstance(error, (*caught, RuntimeError) if name[0] == "X" else caught):
            return f"{text} | {gate}", name
    return f"{text} | {gate}", ""


def gates(everything: bool, sample: int | None) -> int:
    """Measure pairs that were not yet, all or one a cell, and write GATES.md; 1 if under 99 %.

    It goes on where it was stopped; after a change of clauses remove ``gates.json``. A sample is
    measured anew and nothing written: 1 if one survives that is not recorded as a survivor.
    """
    asked = pairs(table())
    chosen = ([*asked] if everything else one_a_cell(asked))[:sample]
    before = measured()
    known = {} if sample else dict(before)
    left = [(pair, asked[pair]) for pair in chosen if " | ".join(pair) not in known]
    with multiprocessing.get_context("fork").Pool() as pool:
        for pair, caught in pool.imap_unordered(outcome, left):
            known[pair] = caught
            print(f"{pair}: {caught or 'survived'}", flush=True)
            if not sample:
                write(MEASURED, as_json(dict(sorted(known.items()))))
                write(SUMMARY, summary(len(asked), known).encode())
    lost = [pair for pair, caught in known.items() if not caught and reason_of(pair) is None]
    print(f"{len(known)} pairs, {len(lost)} of them survived without a reason")
    if sample:
        return int(any(before.get(pair) != "" for pair in lost))
    return int(100 * len(lost) > len(known))


def one_a_cell(asked: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first pair of each function and gate."""
    functions = {mistake.named: min(replaced(mistake)) for mistake in mistakes()}
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for text, gate in asked:
        first.setdefault((functions[text], gate), (text, gate))
    return [*first.values()]


def measured() -> dict[str, str]:
    """Pair -> the clause that caught it, empty for one that survived."""
    if not MEASURED.exists():
        return {}
    known: dict[str, str] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return known


def reason_of(pair: str) -> str | None:
    """Why no call can tell the pair from the right function, if none can."""
    text, _, gate = pair.rpartition(" | ")

    def fits(name: str, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return next((a.reason for a in ALIKE if fits(text, a.mistakes) and fits(gate, a.gates)), None)


def summary(count: int, known: dict[str, str]) -> str:
    """The page."""
    survivors = [pair for pair, caught in known.items() if not caught]
    reasons = defaultdict(list)
    for pair in survivors:
        reasons[reason_of(pair) or "No reason: a hole"].append(pair)
    differ = len(known) - sum(reason_of(pair) is not None for pair in survivors)
    caught = len(known) - len(survivors)
    used = ", ".join(f"{name} {version(name)}" for name in ("torch", "hypothesis"))
    lines = [
        "# Gated mistakes",
        "",
        "Written by `python -m spec_tests gates`, except for the reasons, which are in `gates.py`: "
        f"{date.today()}, {used}, Python {platform.python_version()}. A mistake of the gallery "
        "(clauses P, F, M, G, W, X and S) is applied only where a gate, a condition on the call, "
        "holds. Left out are the clauses " + ", ".join(sorted(LEFT_OUT)) + ".",
        "",
        "| pairs | |",
        "|---|---:|",
        f"| whose gate holds in some clause | {count} |",
        f"| measured, the first in a random order with a fixed seed | {len(known)} |",
        f"| that no call can tell from the right function | {len(known) - differ} |",
        f"| of the others caught | {caught} of {differ} ({100 * caught / max(differ, 1):.1f} %) |",
        "",
    ]
    if len(known) < count:
        lines += ["Not all pairs were measured: `--all` was not run to its end.", ""]
    lines.append("## Survivors")
    for reason, found in reasons.items():
        lines += ["", f"**{reason}** ({len(found)})", "", *(f"- {pair}" for pair in found)]
    lines += ["", "## Gates that hold in no clause", ""]
    lines += [f"- {name}, {gate}: {why}" for (name, gate), why in HOLDS_NOWHERE.items()]
    return "\n".join([*lines, ""])
