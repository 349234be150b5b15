"""What the clauses draw, and in which contexts: in one table. And the profiles.

A clause takes its contexts from here, so that it has all of them: ``under`` for the modes of torch,
``shape`` and what is made of it for layers, ``KINDS`` and ``LAYOUTS`` for scores, ``networks`` for
whole networks. ``python -m spec_tests contexts`` shows which contexts each clause reaches.
"""

import functools
import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from spec_tests.subject import pemn

# No explanation of failures: with many of them it takes longer than all else.
settings.register_profile(
    "ci",
    max_examples=50,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
# For a run of the suite per mutant: few examples, none made smaller once one has failed, and no
# failure because the machine is slow.
settings.register_profile(
    "mutation",
    settings.get_profile("ci"),
    max_examples=20,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
# For implementations that compile anew for each shape; what is drawn then is in ``or_fixed``.
settings.register_profile(
    "fixed",
    settings.get_profile("ci"),
    max_examples=10,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
for name, examples in {"random": 50, "thorough": 500}.items():
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        print_blob=True,
        phases=settings.get_profile("ci").phases,
    )


Some = TypeVar("Some")


def few() -> settings:
    """A tenth of the profile's examples, for properties that build whole networks."""
    profile = settings.default
    assert profile is not None
    return settings(max_examples=profile.max_examples // 10)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of this dtype for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


Test = TypeVar("Test", bound=Callable[..., Any])
Modes = dict[str, Callable[[], AbstractContextManager[Any]]]


@contextmanager
def autocast_and(mode: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Autocast, no gradients and float64 by default, all at once."""
    with torch.autocast("cpu", torch.bfloat16), default_dtype(torch.float64), mode():
        yield


FULL_PRECISION: Modes = {
    "as usual": nullcontext,
    "float64 by default": lambda: default_dtype(torch.float64),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
MODES: Modes = {
    **FULL_PRECISION,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast, no_grad, float64 by default": lambda: autocast_and(torch.no_grad),
    "autocast, inference_mode, float64 by default": lambda: autocast_and(torch.inference_mode),
}
WITH_GRADIENT: Modes = {
    name: MODES[name] for name in ("as usual", "float64 by default", "autocast")
}


def under(modes: Modes, every: bool = False) -> Callable[[Test], Test]:
    """Run each example of a clause in one of the modes of torch, the same each time it is tried.

    Or in every one, where that is quick.
    """

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            chosen = zlib.crc32(repr((args, kwargs)).encode()) % len(modes)
            for i, (name, mode) in enumerate(modes.items()):
                if every or i == chosen:
                    try:
                        with mode():
                            test(*args, **kwargs)
                    except Exception as error:
                        if i > 0:
                            error.add_note(f"The example ran in this mode of torch: {name}")
                        raise

        return call  # type: ignore[return-value]

    return decorate


def or_fixed(
    strategy: st.SearchStrategy[Some], fixed: st.SearchStrategy[Some]
) -> st.SearchStrategy[Some]:
    """What the first strategy draws, but in the profile ``fixed`` the second, of a few sizes."""
    return st.none().flatmap(
        lambda _: fixed if settings.get_current_profile_name() == "fixed" else strategy
    )


Shapes = dict[str, torch.Size]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
seeds = st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 2**16), st.integers(2**32, 2**63 - 1))
dtypes = st.sampled_from(DTYPES)

# As people write them: a few decimals; and any float, which is also a decimal.
fractions = st.one_of(
    st.sampled_from([1.0, 0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 0.29, 0.07, 0.57]),
    st.integers(1, 999).map(lambda k: k / 1000),
    st.floats(1e-6, 1.0),
)

# Numbers of weights, odd ones too, of which a fraction is whole but for floating point.
whole = st.tuples(
    st.sampled_from([3, 7, 10, 25, 100, 125, 625, 1000]),
    st.integers(1, 3) | st.integers(1, 10**4),
    st.floats(0, 1),
).map(lambda drawn: (drawn[0] * drawn[1], max(1, round(drawn[0] * drawn[2])) / drawn[0]))

LARGE = [
    (121, 101),
    (301, 5, 7),
    (25, 17, 5, 5),
    (1203, 1, 3, 3),
    (125, 85, 1, 1),
    (13, 7, 5, 5, 5),
]
fixed_shape = st.sampled_from([torch.Size(sizes) for sizes in ((4, 5), (5, 4), (3, 2, 2, 2))])
small_shape = or_fixed(
    st.lists(st.integers(1, 7), min_size=2, max_size=4).map(torch.Size), fixed_shape
)
any_shape = st.one_of(
    small_shape,
    st.lists(st.integers(1, 3), min_size=5, max_size=5).map(torch.Size),  # of a Conv3d
    # Depthwise and pointwise; more than 1,000 weights, and more than 10,000 of every rank.
    st.sampled_from([(6, 1, 3, 3), (5, 4, 1, 1), (8, 1, 3), (6, 1, 2, 1, 3)]).map(torch.Size),
    st.sampled_from([(30, 10, 3, 3), *LARGE]).map(torch.Size),
)
shape = or_fixed(any_shape, fixed_shape)
MORE_THAN_16_BITS = torch.Size([300, 225])
"""Weights that an index or a counter of 16 bits does not hold."""


def named(drawn: Sequence[torch.Size]) -> Shapes:
    """The shapes under the names of layers."""
    return {f"layer{i}.weight": shape for i, shape in enumerate(drawn)}


SMALL = [(2, 2), (5, 4), (3, 3), (4, 5), (6, 1, 3, 3), (5, 4, 1, 1), (8, 1, 3), (4, 3, 2)]
SMALL += [(3, 2, 2, 3), (6, 1, 2, 1, 3), (3, 2, 2, 1, 2)]
every_rank = st.sampled_from(LARGE).map(
    lambda large: named([torch.Size(sizes) for sizes in (*SMALL, large, *SMALL)])
)
"""More than 20 layers of every rank, a large one among them, some of equal shapes."""
shape_sets = st.one_of(
    st.lists(shape, min_size=1, max_size=6).map(named),
    or_fixed(every_rank, st.just(named([torch.Size((4, 5))]))),
)


@st.composite
def tiny_layers(draw: st.DrawFn) -> Shapes:
    """A few or many layers of less than a hundred weights each, of every rank, to stand beside."""
    size = st.lists(st.integers(1, 3), min_size=2, max_size=4) | st.just([2, 1, 2, 1, 2])
    drawn = draw(st.lists(size, max_size=4) | st.lists(size, min_size=20, max_size=22))
    return {f"tiny{i}.weight": torch.Size(sizes) for i, sizes in enumerate(drawn)}


@st.composite
def repeated_shape_sets(draw: st.DrawFn) -> Shapes:
    """Shape sets in which shapes come twice, also transposed: equal numel, another shape."""
    drawn = draw(st.lists(shape, min_size=1, max_size=3))
    again = draw(st.lists(st.sampled_from(drawn), max_size=3))
    turned = [torch.Size(reversed(shape)) for shape in draw(st.permutations(drawn))]
    return named(drawn + again + turned)


class Drawn(NamedTuple):
    """A strategy by its name and ratio, independent of the implementation that is judged."""

    name: str
    ratio: float = 1.0

    @property
    def value(self) -> Any:
        """The implementation's value for it."""
        return pemn.rp(self.ratio) if self.name == "rp" else getattr(pemn, self.name)


@st.composite
def strategies(draw: st.DrawFn) -> Drawn:
    """Any strategy, rp with any ratio."""
    name = draw(st.sampled_from(["mask", "one_layer", "mp", "rp", "rp"]))
    ratios = st.sampled_from([0.005, 0.009]) | fractions
    return Drawn(name, draw(ratios)) if name == "rp" else Drawn(name)


def reshaped(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """The values in the most square two-dimensional shape that holds them all."""
    rows = next(r for r in range(math.isqrt(len(values)), 0, -1) if len(values) % r == 0)
    return torch.tensor(values, dtype=dtype).reshape(rows, -1)


# Few distinct values, so that ties are the rule; the special ones of every width.
tied_values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0])
special_values = st.sampled_from(
    [math.inf, -math.inf, math.nan, 0.0, -0.0, 5.9e-8, -5.9e-8, 65504.0, -65504.0, 1.0, -1.0]
)
# Short and long significands: only the long ones show a mask that is not exact.
plain_values = st.one_of(st.floats(-100, 100, width=16), st.floats(-1, 1))


@st.composite
def score_tensors(
    draw: st.DrawFn, values: st.SearchStrategy[float] = plain_values, max_size: int = 40
) -> Tensor:
    """A two-dimensional tensor of scores in one of the floating dtypes."""
    any_number = st.lists(values, min_size=1, max_size=max_size)
    drawn = draw(or_fixed(any_number, st.lists(values, min_size=12, max_size=12)))
    return reshaped(drawn, draw(dtypes))


def random_scores(size: Sequence[int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal scores of a shape, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(size), generator=generator, dtype=torch.float64).to(dtype)


def mixed(scores: Tensor) -> Tensor:
    """Some of the scores rounded, so that there are ties and zeros, some near the largest."""
    which = (1000 * scores.abs().double()).long() % 4
    huge = scores * (torch.finfo(scores.dtype).max / 16)
    return torch.where(which == 0, (4 * scores).round() / 4, torch.where(which == 1, huge, scores))


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda scores: scores,
    "large": lambda scores: 50 * scores,
    "tied": lambda scores: (4 * scores).round() / 4,
    "mixed": mixed,
    "positive": lambda scores: mixed(scores).abs() + 0.01,
    "negative": lambda scores: -mixed(scores).abs() - 0.01,
    "zeros": lambda scores: mixed(scores).clamp(min=0),
    "equal": lambda scores: torch.full_like(scores, scores.flatten()[0].item()),
    "all zero": lambda scores: torch.zeros_like(scores),
    "infinite": lambda scores: torch.where(
        scores.abs() > scores.abs().max() / 2, scores.sign() * math.inf, scores
    ),
}
"""What normal scores are made into."""


def special(scores: Tensor) -> Tensor:
    """The scores, but a third NaN, infinite, 0 or at the ends of their dtype's range."""
    info = torch.finfo(scores.dtype)
    ends = [math.nan, math.inf, -math.inf, 0.0, -0.0, info.max, -info.max, info.max / 2, 1.0]
    which = (scores.abs().double() * 1000).long() % (3 * len(ends))
    values = torch.tensor(ends, dtype=torch.float64).to(scores.dtype)
    return torch.where(which < len(ends), values[which % len(ends)], scores)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor.contiguous(),
    "transposed": lambda tensor: tensor.transpose(0, -1).contiguous().transpose(0, -1),
    "channels last": lambda tensor: (
        tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.ndim > 1 else tensor
    ),
    "part of another": lambda tensor: tensor.repeat_interleave(2, -1)[..., 1::2],
}
"""How a tensor of the same values lies in memory."""
kinds, layouts = st.sampled_from([*KINDS]), st.sampled_from([*LAYOUTS])


Kinds = Mapping[str, Callable[[Tensor], Tensor]]


@st.composite
def layers(
    draw: st.DrawFn, size: st.SearchStrategy[torch.Size] = shape, of: Kinds = KINDS
) -> Tensor:
    """Scores of a layer of any shape, dtype, kind and layout."""
    scores = random_scores(draw(size), draw(seeds), draw(dtypes))
    return LAYOUTS[draw(layouts)](of[draw(st.sampled_from([*of]))](scores))


class Layers(NamedTuple):
    """Weights and scores of several layers, by name."""

    weights: dict[str, Tensor]
    scores: dict[str, Tensor]


@st.composite
def many_layers(draw: st.DrawFn, sizes: st.SearchStrategy[Shapes] = shape_sets) -> Layers:
    """Layers, one after the other of another kind and layout; weights and scores of two dtypes."""
    shapes, seed = draw(sizes), draw(seeds)
    dtype, of = draw(dtypes), draw(dtypes)
    turn = draw(st.integers(0, len(KINDS) - 1))
    weights, scores = {}, {}
    for i, (name, size) in enumerate(shapes.items()):
        weights[name] = random_scores(size, seed + i, dtype)
        make, lie = nth(KINDS, turn + i), nth(LAYOUTS, turn + i)
        layer = make(random_scores(size, seed + len(shapes) + i, of))
        scores[name] = lie(layer * 10 ** min(i, 4))
    return Layers(weights, scores)


def nth(table: Mapping[str, Some], number: int) -> Some:
    """An entry of a table, from the first on again after the last."""
    return [*table.values()][number % len(table)]


class Network(NamedTuple):
    """The context of a whole network; ``models.network_in`` builds it."""

    seed: int
    strategy: Drawn
    density: float
    train: bool
    dtype: torch.dtype
    mode: str
    """The mode of torch, of ``FULL_PRECISION``."""
    trained: bool
    """The state is not as ``init`` made it: its rest and buffers are not the model's."""
    kinds: tuple[str, ...]
    """Those of the layers' scores, one after the other."""
    layouts: tuple[str, ...]
    """And how the tensors lie in memory."""
    frozen: str
    """Which parameters do not want a gradient, nor their tensors in the rest: all, some or none."""
    through: bool
    """It is the weights that want a gradient, and not the scores."""
    apart: bool
    """Scores of every second layer are of another dtype than its weight."""

    def of(self, case: str) -> "Network":
        """Another context for each case: Hypothesis, derandomised, draws the same for all."""
        turn = zlib.crc32(case.encode())
        names = ("mask", "one_layer", "mp", "rp")
        name = names[(names.index(self.strategy.name) + turn) % 4]
        ratio = max(1e-6, self.strategy.ratio ** (1 + turn % 3)) if name == "rp" else 1.0
        return self._replace(
            seed=self.seed ^ turn % 2**16 ^ turn % 3 << 40,
            strategy=Drawn(name, 0.005 if name == "rp" and turn % 5 == 0 else ratio),
            density=1.0 if turn % 7 == 0 else max(1e-6, self.density ** (1 + turn % 3)),
            train=self.train ^ bool(turn & 4),
            dtype=turned((torch.float64, torch.float32, torch.bfloat16), self.dtype, turn // 32),
            mode=turned([*FULL_PRECISION], self.mode, turn),
            trained=self.trained ^ bool(turn & 8),
            kinds=rotated(self.kinds, turn),
            layouts=rotated(self.layouts, turn),
            frozen=turned(("all", "some", "none"), self.frozen, turn // 16),
            through=self.through ^ bool(turn & 16),
            apart=self.apart ^ bool(turn & 32),
        )

    def mode_of_init(self) -> str:
        """The mode for ``init``: what is made in inference mode cannot be trained."""
        return "autocast" if self.mode == "inference_mode" else self.mode

    def finite(self) -> "Network":
        """With finite scores, for what refuses others."""
        return self._replace(kinds=tuple(kind for kind in self.kinds if kind != "infinite"))


def turned(values: Sequence[Some], value: Some, by: int) -> Some:
    """The value so many places further on."""
    return values[(values.index(value) + by) % len(values)]


def rotated(names: Sequence[str], by: int) -> tuple[str, ...]:
    """All of the names, beginning so many places further on."""
    return (*names[by % len(names) :], *names[: by % len(names)])


networks = st.builds(
    Network,
    seed=seeds,
    strategy=strategies(),
    density=fractions,
    train=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    mode=st.sampled_from([*FULL_PRECISION]),
    trained=st.booleans(),
    kinds=kinds.map(lambda kind: rotated([*KINDS], [*KINDS].index(kind))),
    layouts=layouts.map(lambda layout: rotated([*LAYOUTS], [*LAYOUTS].index(layout))),
    frozen=st.sampled_from(["all", "some", "none"]),
    through=st.booleans(),
    apart=st.booleans(),
)


def random_states() -> dict[str, int]:
    """A checksum of each: how two long lists differ takes pytest seconds to explain."""
    numpys: Any = np.random.get_state(legacy=False)
    states = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": {**numpys["state"], "key": numpys["state"]["key"].tolist()},
        "python": random.getstate(),
    }
    return {name: zlib.crc32(repr(state).encode()) for name, state in states.items()}
