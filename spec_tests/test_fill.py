"""F: where the value of each weight comes from."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from spec_tests import oracle
from spec_tests.clauses import clause
from spec_tests.draws import (
    DTYPES,
    MODES,
    MORE_THAN_16_BITS,
    Drawn,
    Shapes,
    repeated_shape_sets,
    seeds,
    shape_sets,
    strategies,
    under,
)
from spec_tests.subject import pemn


def numbered(shapes: Shapes, strategy: Drawn) -> dict[str, Tensor]:
    """Weights filled from prototypes that number their values 0, 1, 2, ... all through."""
    prototype = pemn.make_prototype(shapes, strategy.value, seed=0)
    start = 0
    for group, values in prototype.items():
        prototype[group] = torch.arange(start, start + len(values))
        start += len(values)
    filled: dict[str, Tensor] = pemn.fill_weights(prototype, shapes, strategy.value)
    return filled


@clause("F1")
@given(shapes=st.one_of(shape_sets, repeated_shape_sets()), strategy=strategies())
@example({"a.weight": MORE_THAN_16_BITS, "b.weight": torch.Size([7, 3])}, Drawn("mask"))
@example({"a.weight": torch.Size([3, 5])}, Drawn("mask"))
@example({"a.weight": MORE_THAN_16_BITS, "b.weight": torch.Size([7, 3])}, Drawn("rp", 0.57))
@under(MODES)
def test_index_formula(shapes: Shapes, strategy: Drawn) -> None:
    """Element i of a layer, in row-major order, takes prototype[i mod L]. Every layer starts at
    offset 0, under every strategy.
    """
    weights = numbered(shapes, strategy)
    assert set(weights) == set(shapes)
    for names in oracle.groups(shapes, strategy.name).values():
        (length,) = oracle.lengths({n: shapes[n] for n in names}, "rp", strategy.ratio)
        first = weights[names[0]].flatten()[0]
        for name in names:
            assert weights[name].shape == shapes[name]
            expected = torch.from_numpy(oracle.fill(range(length), shapes[name]))
            assert torch.equal(weights[name], expected.long() + first)


@clause("F2")
@given(shapes=st.one_of(shape_sets, repeated_shape_sets()), strategy=strategies())
@example({"a.weight": torch.Size([1, 1])}, Drawn("mp"))
@example({"a.weight": torch.Size([4, 5])}, Drawn("mp"))
@example({"a.weight": torch.Size([40, 5])}, Drawn("rp", 1e-5))  # one value
@example({"a.weight": torch.Size([4, 5]), "b.weight": torch.Size([4, 5])}, Drawn("rp", 1.0))
@under(MODES)
def test_unique_by_index(shapes: Shapes, strategy: Drawn) -> None:
    """By index the weights hold exactly this many distinct values: mask all, one_layer the sum over
    distinct shapes, mp those of the largest weight, rp those of its prototype.
    """
    name, ratio = strategy
    weights = numbered(shapes, strategy)
    distinct = torch.cat([w.flatten() for w in weights.values()]).unique().numel()
    assert distinct == oracle.unique_values(shapes, name, ratio)


@clause("F3")
@given(shapes=st.one_of(shape_sets, repeated_shape_sets()), strategy=strategies(), seed=seeds)
@example({"a.weight": torch.Size([8, 5])}, Drawn("rp", 0.1), 0)
@under(MODES)
def test_unique_by_value(shapes: Shapes, strategy: Drawn, seed: int) -> None:
    """By value the filled weights hold at most as many distinct numbers as by index."""
    name, ratio = strategy
    prototype = pemn.make_prototype(shapes, strategy.value, seed=seed)
    weights = pemn.fill_weights(prototype, shapes, strategy.value)
    distinct = torch.cat([w.flatten() for w in weights.values()]).unique().numel()
    assert distinct <= oracle.unique_values(shapes, name, ratio)


@clause("F4")
@given(shapes=repeated_shape_sets(), seed=seeds)
@example({"a.weight": torch.Size([11, 2]), "b.weight": torch.Size([1, 12])}, 0)  # the same digits
@under(MODES)
def test_one_layer_shares_by_shape(shapes: Shapes, seed: int) -> None:
    """Under one_layer, weights of equal shape are equal, linear ones too. Weights of different
    shapes are not, even where numel agrees.
    """
    shapes = {**shapes, "in.weight": torch.Size([6, 4]), "out.weight": torch.Size([6, 4])}
    weights = numbered(shapes, Drawn("one_layer"))
    for a, left in weights.items():
        for b, right in weights.items():
            shared = set(left.flatten().tolist()) & set(right.flatten().tolist())
            assert torch.equal(left, right) if shapes[a] == shapes[b] else not shared


@clause("F5")
@given(shapes=shape_sets, strategy=strategies(), seed=seeds, dtype=st.sampled_from(DTYPES))
@example({"a.weight": torch.Size([4, 5])}, Drawn("rp", 0.005), 0, torch.float32)
@example({"a.weight": torch.Size([4, 5])}, Drawn("rp", 0.005), 1, torch.float32)
@under(MODES)
def test_filled_weights_are_frozen_copies(
    shapes: Shapes, strategy: Drawn, seed: int, dtype: torch.dtype
) -> None:
    """Filling detaches, keeps the dtype and copies: changing one weight changes no other."""
    drawn = pemn.make_prototype(shapes, strategy.value, seed=seed)
    wanted = torch.is_grad_enabled()
    prototype = {g: v.to(dtype).requires_grad_(wanted) for g, v in drawn.items()}
    before = {group: values.detach().clone() for group, values in prototype.items()}
    weights = pemn.fill_weights(prototype, shapes, strategy.value)
    for name, weight in weights.items():
        assert not weight.requires_grad
        assert weight.dtype == dtype
        others = {n: w.clone() for n, w in weights.items() if n != name}
        weight.zero_()
        assert all(torch.equal(weights[n], w) for n, w in others.items())
    assert all(torch.equal(prototype[group], values) for group, values in before.items())
