"""P: the prototype and the scores, as they are drawn."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from spec_tests import oracle
from spec_tests.clauses import clause
from spec_tests.draws import (
    MODES,
    Drawn,
    Shapes,
    default_dtype,
    fractions,
    random_states,
    repeated_shape_sets,
    seeds,
    shape_sets,
    strategies,
    tiny_layers,
    under,
    whole,
)
from spec_tests.elsewhere import digest, digest_elsewhere
from spec_tests.subject import pemn

# Large enough to tell distributions apart: the bounds below are at least five standard errors, so
# that random seeds do not fail by chance. Two layers are the largest, with different fan-in.
LONG = {
    "large.weight": torch.Size((100, 20, 2, 5)),
    "small.weight": torch.Size((20, 9)),
    "equal.weight": torch.Size((50, 400)),
}
# Layers of every rank, depthwise and pointwise too.
RANKS = {
    **LONG,
    "depth.weight": torch.Size((300, 1, 3, 3)),
    "point.weight": torch.Size((60, 40, 1, 1)),
    "line.weight": torch.Size((41, 9, 7)),
    "volume.weight": torch.Size((30, 4, 3, 3, 3)),
}


@st.composite
def ranks(draw: st.DrawFn, min_size: int = 1) -> Shapes:
    """Some of these layers, in any order, tiny ones before or behind them."""
    names = draw(st.lists(st.sampled_from([*RANKS]), min_size=min_size, max_size=4, unique=True))
    some, tiny = {name: RANKS[name] for name in names}, draw(tiny_layers())
    return {**some, **tiny} if draw(st.booleans()) else {**tiny, **some}


def distance(values: Tensor, cdf: np.ufunc) -> float:
    """Kolmogorov-Smirnov distance to a distribution, in units of 1 / sqrt(n)."""
    ordered = np.sort(values.double().numpy().ravel())
    expected = np.asarray(cdf(ordered), dtype=float)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    gap = max(np.max(expected - steps[:-1]), np.max(steps[1:] - expected))
    return float(gap * math.sqrt(len(ordered)))


def assert_normal(values: Tensor, std: float) -> None:
    """Mean 0, the given standard deviation, and the shape of a normal distribution.

    Almost no value twice, and some beyond three standard deviations. Few values say nothing: the
    bounds are those of many.
    """
    count = values.numel()
    if count < 20:
        return
    assert len(values.unique()) > 0.99 * count - 1
    assert count < 20_000 or values.abs().max() > 3 * std
    assert abs(values.double().std() / std - 1) < 6 / math.sqrt(2 * count)
    assert abs(values.double().mean()) < 6 * std / math.sqrt(count)
    normal = np.frompyfunc(lambda x: 0.5 * (1 + math.erf(x / std / math.sqrt(2))), 1, 1)
    assert distance(values, normal) < 3  # by chance: 3e-8


@clause("P1")
@given(drawn=st.one_of(st.tuples(st.integers(1, 10**7), fractions), whole))
@example((100, 0.29))  # 28.999999999999996 in floating point
@example((10_000, 0.57))  # 5699.999999999999
@example((625, 0.0048))  # 2.9999999999999996
@example((10_400, 0.57))  # 5927.999999999999
@example((65_536, 1e-5))
@example((1, 1.0))
@under(MODES, every=True)
def test_length_is_floor_plus_one(drawn: tuple[int, float]) -> None:
    """A prototype has min(n, floor(n * ratio) + 1) values, the ratio read as a decimal."""
    numel, ratio = drawn
    assert pemn.prototype_length(numel, ratio) == oracle.prototype_length(numel, ratio)


@clause("P2")
@given(shapes=st.one_of(shape_sets, repeated_shape_sets()), strategy=strategies(), seed=seeds)
@example(LONG, Drawn("rp", 1e-2), 0)  # 201 of the largest, 402 of all
@under(MODES)
def test_one_prototype_per_group(shapes: Shapes, strategy: Drawn, seed: int) -> None:
    """mask has one prototype per weight, one_layer one per shape, mp and rp a single one. Each has
    the length for the largest weight that it fills, and all are finite float32 on the CPU without
    gradient.
    """
    name, ratio = strategy
    prototype = pemn.make_prototype(shapes, strategy.value, seed=seed)
    assert sorted(v.numel() for v in prototype.values()) == oracle.lengths(shapes, name, ratio)
    for values in prototype.values():
        assert values.ndim == 1
        assert values.dtype == torch.float32
        assert values.device.type == "cpu"
        assert not values.requires_grad
        assert values.isfinite().all()


@clause("P3")
@given(seed=seeds, largest=st.sampled_from([*RANKS.values()]), tiny=tiny_layers())
@under(MODES)
def test_values_are_kaiming_normal_of_the_largest(
    seed: int, largest: torch.Size, tiny: Shapes
) -> None:
    """The values of mp are normal with std sqrt(2 / fan_in) of the first largest weight, whatever
    its rank.
    """
    equal = torch.Size((largest.numel(), 1))
    for shapes in (
        {"large.weight": largest, **tiny},
        {**tiny, "large.weight": largest, "equal.weight": equal},
        {"large.weight": largest, "equal.weight": equal, **tiny},
    ):
        assert oracle.giver(shapes) == "large.weight"
        for strategy in (pemn.mp, pemn.rp(0.009)):
            (values,) = pemn.make_prototype(shapes, strategy, seed=seed).values()
            assert_normal(values, std=math.sqrt(2 / math.prod(largest[1:])))


@clause("P4")
@given(seed=seeds, shapes=ranks())
@under(MODES)
def test_own_values_are_kaiming_normal_of_their_layer(seed: int, shapes: Shapes) -> None:
    """Under mask and one_layer, a layer's values are normal with std sqrt(2 / fan_in) of that
    layer.
    """
    for strategy in (pemn.mask, pemn.one_layer):
        prototype = pemn.make_prototype(shapes, strategy, seed=seed)
        weights = pemn.fill_weights(prototype, shapes, strategy)
        for name in RANKS.keys() & shapes.keys():
            assert_normal(weights[name], std=math.sqrt(2 / math.prod(shapes[name][1:])))


@clause("P5", "SHOULD")
@given(
    shapes=st.one_of(shape_sets, repeated_shape_sets()),
    strategy=strategies(),
    seed=seeds,
    bits=st.lists(st.integers(1, 31), min_size=1, max_size=2).map(lambda drawn: [0, *drawn]),
)
@example({"a.weight": torch.Size([4, 5])}, Drawn("mask"), 2**40 + 5, range(32))
@example({"a.weight": torch.Size([4, 5])}, Drawn("rp", 0.1), 0, range(32))
@under(MODES)
def test_seed_decides(shapes: Shapes, strategy: Drawn, seed: int, bits: Sequence[int]) -> None:
    """The same seed gives the same bits of prototypes and scores. Another seed gives other values,
    whichever of its lower 32 bits differs.
    """

    def drawn(seed: int) -> list[Tensor]:
        prototype = pemn.make_prototype(shapes, strategy.value, seed=seed)
        return [*prototype.values(), *pemn.init_scores(shapes, seed=seed).values()]

    first = drawn(seed)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(seed), strict=True))
    for bit in bits:
        other = drawn(seed ^ 1 << bit)
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@clause("P6")
@given(shapes=shape_sets, ratio=fractions, seed=seeds)
@under(MODES)
def test_rp_is_a_prefix_of_mp(shapes: Shapes, ratio: float, seed: int) -> None:
    """The prototype of rp is a prefix of mp's at the same seed, and at ratio 1 all of it."""
    (longest,) = pemn.make_prototype(shapes, pemn.mp, seed=seed).values()
    (values,) = pemn.make_prototype(shapes, pemn.rp(ratio), seed=seed).values()
    assert torch.equal(values, longest[: len(values)])
    (whole,) = pemn.make_prototype(shapes, pemn.rp(1.0), seed=seed).values()
    assert torch.equal(whole, longest)


@clause("P7", "SHOULD")
@given(seed=seeds, shapes=ranks())
@under(MODES)
def test_weights_and_scores_are_independent(seed: int, shapes: Shapes) -> None:
    """At one seed, the weight and the score of a position are independent, and so are their
    magnitudes.
    """
    strategy = pemn.mask
    weights = pemn.fill_weights(pemn.make_prototype(shapes, strategy, seed=seed), shapes, strategy)
    scores = pemn.init_scores(shapes, seed=seed)
    for name in RANKS.keys() & shapes.keys():
        pair = torch.stack([weights[name].flatten(), scores[name].flatten()]).double()
        for both in (pair, pair.abs()):
            correlation = torch.corrcoef(both)[0, 1]
            assert abs(correlation) < 6 / math.sqrt(pair.shape[1])


@clause("P8", "SHOULD")
@given(shapes=shape_sets, strategy=strategies(), seed=seeds)
@under(MODES)
def test_global_random_state_is_untouched(shapes: Shapes, strategy: Drawn, seed: int) -> None:
    """Drawing neither uses nor changes the caller's global random state, torch's or another."""
    results = []
    for state in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            before = random_states()
            prototype = pemn.make_prototype(shapes, strategy.value, seed=seed)
            scores = pemn.init_scores(shapes, seed=seed)
            assert random_states() == before
        results.append([*prototype.values(), *scores.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@clause("P9")
@given(seed=seeds, shapes=ranks())
@under(MODES)
def test_scores_are_uniform(seed: int, shapes: Shapes) -> None:
    """Scores are uniform within ±1 / sqrt(fan_in) of their own layer."""
    scores = pemn.init_scores(shapes, seed=seed)
    for name in RANKS.keys() & shapes.keys():
        bound = 1 / math.sqrt(math.prod(shapes[name][1:]))
        assert scores[name].abs().max() <= bound
        assert len(scores[name].unique()) > 0.99 * scores[name].numel() - 1
        uniform = np.frompyfunc(lambda x, bound=bound: (x + bound) / (2 * bound), 1, 1)
        assert distance(scores[name], uniform) < 3


@clause("P10")
@given(repeated=repeated_shape_sets(), tiny=tiny_layers(), seed=seeds)
@under(MODES)
def test_every_weight_has_scores_of_its_own(repeated: Shapes, tiny: Shapes, seed: int) -> None:
    """Every weight has finite float32 scores of its shape, drawn separately even where shapes
    agree.
    """
    shapes = {**repeated, **tiny}
    scores = pemn.init_scores(shapes, seed=seed)
    assert {name: s.shape for name, s in scores.items()} == shapes
    assert {s.dtype for s in scores.values()} == {torch.float32}
    assert all(s.isfinite().all() for s in scores.values())
    drawn = [s.flatten() for s in scores.values()]
    for i, a in enumerate(drawn):
        assert all(not torch.equal(a, b) for b in drawn[:i])


@clause("P12")
@given(seed=seeds, shapes=ranks(min_size=2))
@under(MODES)
def test_prototypes_are_drawn_apart(seed: int, shapes: Shapes) -> None:
    """The prototypes of two groups are independent."""
    first = next(name for name in shapes if name in RANKS)
    shapes = {**shapes, "twin.weight": shapes[first]}
    for strategy in ("mask", "one_layer"):
        drawn = [*pemn.make_prototype(shapes, Drawn(strategy).value, seed=seed).values()]
        assert len(drawn) == len(oracle.groups(shapes, strategy))
        for a, b in combinations([values for values in drawn if len(values) > 100], 2):
            pair = torch.stack([values[: min(len(a), len(b))] for values in (a, b)]).double()
            assert abs(torch.corrcoef(pair)[0, 1]) < 6 / math.sqrt(pair.shape[1])


@clause("P13", "SHOULD")
@given(seed=seeds, shapes=ranks(min_size=2))
@under(MODES)
def test_neighbouring_seeds_share_no_stream(seed: int, shapes: Shapes) -> None:
    """What neighbouring seeds draw is independent, for every layer and group: no group draws with
    seed + i.
    """
    for draw in (
        partial(pemn.make_prototype, shapes, pemn.mask),
        partial(pemn.make_prototype, shapes, pemn.one_layer),
        partial(pemn.init_scores, shapes),
    ):
        near = range(seed & ~3, (seed & ~3) + 4)  # all of them below 2**63
        drawn = [d.flatten() for one in near for d in draw(seed=one).values() if d.numel() > 100]
        shortest = min(map(len, drawn))
        correlation = torch.corrcoef(torch.stack([d[:shortest] for d in drawn]).double())
        assert (correlation - torch.eye(len(drawn))).abs().max() < 6 / math.sqrt(shortest)


@clause("P14", "SHOULD", since="1.1")
def test_another_process_draws_the_same() -> None:
    """A seed gives the same bits in another process, with other string hashes and after other
    draws.
    """
    assert digest_elsewhere() == digest()


@clause("P11", "SHOULD")
@given(shapes=st.one_of(shape_sets, ranks()), strategy=strategies(), seed=seeds)
@under(MODES)
def test_defaults_do_not_matter(shapes: Shapes, strategy: Drawn, seed: int) -> None:
    """Prototype and scores are float32 on the CPU, whatever the default dtype and device."""

    def drawn() -> list[Tensor]:
        prototype = pemn.make_prototype(shapes, strategy.value, seed=seed)
        return [*prototype.values(), *pemn.init_scores(shapes, seed=seed).values()]

    with default_dtype(torch.float64), torch.device("meta"):
        tensors = drawn()
    assert {(t.device.type, t.dtype) for t in tensors} == {("cpu", torch.float32)}
    with default_dtype(torch.float32):
        assert all(torch.equal(a, b) for a, b in zip(tensors, drawn(), strict=True))
