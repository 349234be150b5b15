"""S: what a masked network costs to store."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spec_tests import oracle
from spec_tests.clauses import clause
from spec_tests.draws import (
    MODES,
    Drawn,
    Shapes,
    default_dtype,
    fractions,
    repeated_shape_sets,
    shape_sets,
    strategies,
    under,
)
from spec_tests.models import CASES, built
from spec_tests.subject import pemn


def resnet(blocks: int) -> dict[str, tuple[int, ...]]:
    """CIFAR ResNet with option-A shortcuts: stem, three stages of two-layer blocks, head."""
    layers: list[tuple[int, ...]] = [(16, 3, 3, 3)]
    before = 16
    for width in (16, 32, 64):
        for _ in range(blocks):
            layers += [(width, before, 3, 3), (width, width, 3, 3)]
            before = width
    return {f"layer{i}": shape for i, shape in enumerate([*layers, (10, 64)])}


def convmixer(depth: int) -> dict[str, tuple[int, ...]]:
    """ConvMixer of width 256: patch 2, depthwise of kernel 5 and pointwise a block, head."""
    layers = [(256, 3, 2, 2), *[(256, 1, 5, 5), (256, 256, 1, 1)] * depth, (10, 256)]
    return {f"layer{i}": shape for i, shape in enumerate(layers)}


# Model, N, then ratio (1 is mp) -> percent; the paper's figures agree within 0.16 point.
PAPER = [
    (resnet(5), 461_872, {1.0: 88.89, 1e-1: 96.08, 1e-2: 96.80}),
    (resnet(9), 848_944, {1.0: 92.53, 1e-1: 96.44, 1e-2: 96.83}),
    (convmixer(6), 437_248, {1e-1: 95.38, 1e-2: 96.73, 1e-3: 96.86}),
    (convmixer(8), 581_120, {1e-1: 95.75, 1e-2: 96.76, 1e-3: 96.86}),
]


@clause("S1")
def test_percentages_of_the_paper() -> None:
    """1 - (N + 32 U) / (32 N) gives the compressions that the paper plots, to 0.01 point."""
    for shapes, weights, percents in PAPER:
        for ratio, percent in percents.items():
            strategy = pemn.mp if ratio == 1 else pemn.rp(ratio)
            cost = pemn.storage(shapes, strategy)
            assert cost.weights == weights
            assert abs(100 * cost.paper - percent) < 0.01
        assert pemn.storage(shapes, pemn.mask).paper == pytest.approx(-1 / 32, abs=1e-12)


@clause("S2")
@given(shapes=st.one_of(shape_sets, repeated_shape_sets()), strategy=strategies())
@under(MODES)
def test_paper_accounting(shapes: Shapes, strategy: Drawn) -> None:
    """N counts the maskable weights, U the distinct values by index, zero not being one of them;
    bits = N + 32 U of 32 N.
    """
    name, ratio = strategy
    cost = pemn.storage(shapes, strategy.value)
    weights = sum(shape.numel() for shape in shapes.values())
    unique = oracle.unique_values(shapes, name, ratio)
    assert (cost.weights, cost.unique) == (weights, unique)
    assert (cost.bits, cost.dense_bits) == (weights + 32 * unique, 32 * weights)
    assert cost.paper == pytest.approx(1 - cost.bits / cost.dense_bits, abs=1e-12)


@clause("S3")
@given(shapes=shape_sets, ratios=st.tuples(fractions, fractions), extra=st.integers(1, 9))
@under(MODES)
def test_monotone(shapes: Shapes, ratios: tuple[float, float], extra: int) -> None:
    """A larger ratio never saves more; more weights beside the largest never save less."""
    low, high = (pemn.storage(shapes, pemn.rp(ratio)) for ratio in sorted(ratios))
    assert low.paper >= high.paper
    assert low.bits <= high.bits
    more = {**shapes, "more.weight": next(iter(shapes.values()))}
    assert (
        pemn.storage(more, pemn.rp(ratios[0])).paper
        >= pemn.storage(shapes, pemn.rp(ratios[0])).paper
    )


@clause("S4")
@given(case=st.sampled_from(sorted(CASES)), strategy=strategies())
@under(MODES)
def test_whole_model_accounting(case: str, strategy: Drawn) -> None:
    """The whole model counts masks, prototypes and every other stored tensor at its own width, on
    both sides: the sum over the real tensors.
    """
    with default_dtype(torch.float32):
        model = built(CASES[case].build, 0)
    tensors = dict(model.state_dict())
    weights = {name: tensors[name] for name in CASES[case].maskable}
    maskable = {id(p) for name, p in model.named_parameters() if name in weights}
    others = [
        tensor
        for tensor in model.state_dict(keep_vars=True).values()
        if id(tensor) not in maskable  # nor a second name of one
    ]
    shapes = {name: weight.shape for name, weight in weights.items()}
    cost = pemn.storage(shapes, strategy.value, iter(others))  # read once
    bytes_of_others = sum(len(t.detach().numpy().tobytes()) for t in others)
    prototype = pemn.make_prototype(shapes, strategy.value, seed=0)
    bytes_of_prototype = sum(len(values.numpy().tobytes()) for values in prototype.values())
    bytes_of_weights = sum(len(w.numpy().tobytes()) for w in weights.values())
    assert cost.bits == cost.weights + 8 * (bytes_of_prototype + bytes_of_others)
    assert cost.dense_bits == 8 * (bytes_of_weights + bytes_of_others)
    assert cost.whole == pytest.approx(1 - cost.bits / cost.dense_bits, abs=1e-12)
    assert cost.paper == pytest.approx(pemn.storage(shapes, strategy.value).paper, abs=1e-12)


@clause("S5")
@given(
    dtype=st.sampled_from([torch.int8, torch.int64, torch.float16, torch.float64, torch.bool]),
    shapes=shape_sets,
    drawn=strategies(),
)
@under(MODES)
def test_others_count_at_their_width(dtype: torch.dtype, shapes: Shapes, drawn: Drawn) -> None:
    """A buffer of any dtype costs its own width, in the masked and in the dense model."""
    other, strategy = torch.zeros(3, 7, dtype=dtype), drawn.value
    bare, with_other = pemn.storage(shapes, strategy), pemn.storage(shapes, strategy, [other])
    width = 8 * other.element_size()
    assert with_other.bits - bare.bits == with_other.dense_bits - bare.dense_bits == 21 * width


@clause("S6", "SHOULD")
@given(shapes=shape_sets, strategy=strategies())
@under(MODES)
def test_whole_model_is_not_known_from_shapes(shapes: Shapes, strategy: Drawn) -> None:
    """Without the other tensors nothing is said about the whole model; with an empty list it is
    what the paper counts.
    """
    assert pemn.storage(shapes, strategy.value).whole is None
    cost = pemn.storage(shapes, strategy.value, [])
    assert cost.whole == pytest.approx(cost.paper, abs=1e-12)
