"""M: which weights are kept."""

import math
import re
from itertools import cycle

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from spec_tests import oracle
from spec_tests.clauses import clause
from spec_tests.draws import (
    KINDS,
    LAYOUTS,
    MODES,
    MORE_THAN_16_BITS,
    Layers,
    dtypes,
    fractions,
    kinds,
    layers,
    many_layers,
    or_fixed,
    plain_values,
    random_scores,
    score_tensors,
    seeds,
    special,
    special_values,
    tied_values,
    under,
    whole,
)
from spec_tests.subject import pemn

# Both are wrong in floating point: the released int((1 - density) * n) drops one too few, and
# ceil(density * n) keeps one too many.
TRUNCATED = [(90, 0.3), (10, 0.9), (100, 0.07), (1000, 0.33), (50, 0.14), (1, 1e-9)]
TRUNCATED += [(25, 0.56), (6000, 0.0085)]


def assert_oracle_mask(scores: Tensor, density: float, *alike: Tensor) -> None:
    """The mask has the scores' shape and dtype and is, to the bit, that of the oracle.

    ``alike`` are other scores, of which the mask would be right too.
    """
    mask = pemn.score_mask(scores, density=density)
    expected = [oracle.mask(s.double().numpy(), density).tolist() for s in (scores, *alike)]
    assert mask.shape == scores.shape
    assert mask.dtype == scores.dtype
    assert mask.tolist() in expected
    assert not mask.signbit().any()  # no negative zero either


def assert_keeps_largest(scores: Tensor, density: float) -> None:
    """The same, but of equal |score| it does not matter which are kept."""
    mask = pemn.score_mask(scores, density=density)
    kept, magnitude = mask == 1, scores.abs()
    assert mask.shape == scores.shape
    assert torch.equal(mask, kept.to(scores.dtype))
    assert not mask.signbit().any()
    assert int(kept.sum()) == oracle.kept(scores.numel(), density)
    assert kept.all() or magnitude[kept].min() >= magnitude[~kept].max()


@clause("M1")
@given(drawn=st.one_of(st.tuples(st.integers(1, 10**8), fractions), whole))
@example((10_000, 0.07))
@example((10**6, 0.29))
@example(TRUNCATED[0])
@example(TRUNCATED[1])
@example(TRUNCATED[2])
@example(TRUNCATED[3])
@example(TRUNCATED[4])
@example(TRUNCATED[5])
@example(TRUNCATED[6])
@example(TRUNCATED[7])
@example((10, 0.1 + 1e-13))
@example((73, 0.013698630137))  # 1 + 1e-12 weights
@under(MODES, every=True)
def test_kept_count(drawn: tuple[int, float]) -> None:
    """A layer keeps ceil(density * n) weights, the density rounded to 12 decimals, and at least
    one.
    """
    numel, density = drawn
    assert pemn.kept(numel, density) == oracle.kept(numel, density)


@clause("M2")
@given(
    scores=layers(or_fixed(st.integers(1, 3000), st.just(100)).map(lambda n: torch.Size([n]))),
    density=fractions,
)
@example(random_scores([90], 0), 0.3)
@example(random_scores([10], 0), 0.9)
@example(random_scores([100], 0), 0.07)
@example(random_scores(MORE_THAN_16_BITS, 0), 0.5)
@under(MODES)
def test_mask_keeps_that_many(scores: Tensor, density: float) -> None:
    """A mask keeps exactly that many of its layer's weights."""
    mask = pemn.score_mask(scores, density=density)
    assert int(mask.double().sum()) == oracle.kept(
        scores.numel(), density
    )  # bfloat16 counts to 256


@clause("M3")
@given(scores=st.one_of(score_tensors(plain_values), layers()), density=fractions)
@example(random_scores(MORE_THAN_16_BITS, 0), 0.5)
@example(torch.tensor([0.3, -0.1]), 0.5)  # 1 + 0.3 - 0.3 is 0.99999994
@under(MODES)
def test_largest_magnitudes_are_kept(scores: Tensor, density: float) -> None:
    """A layer keeps the weights with the largest |score|, whatever the sign."""
    assert_keeps_largest(scores, density)


@clause("M4", "SHOULD")
@given(scores=st.one_of(score_tensors(tied_values), layers()), density=fractions)
@example(torch.ones(MORE_THAN_16_BITS), 0.5)
@example(random_scores((80, 150), 0, torch.float16), 0.5)  # ties though none was meant
@example(torch.ones(3, 4), 0.5)
@example(torch.zeros(5, 1), 0.3)
@example(-torch.ones(2, 3, dtype=torch.bfloat16), 0.9)
@example(torch.ones(1000, dtype=torch.bfloat16), 0.1)  # more ties than it counts
@example(torch.ones(5000, dtype=torch.float16), 0.1)
@example(torch.ones((1000, 1, 1, 1), dtype=torch.bfloat16), 0.1)
@under(MODES)
def test_ties_drop_the_earlier(scores: Tensor, density: float) -> None:
    """Of equal |score| the earlier in row-major order are dropped first."""
    assert_oracle_mask(scores, density)


@clause("M5", "SHOULD")
@given(
    scores=st.one_of(score_tensors(special_values), layers(of={"special": special})),
    density=fractions,
)
@example(torch.tensor([[math.nan, math.inf, 1.0, -math.inf]]), 0.5)
@example(torch.tensor([5e-324, 1e-323, 0.0, 0.0], dtype=torch.float64), 0.5)
@example(torch.tensor([1e-45, 3e-45, 0.0, 0.0]), 0.25)
@example(torch.tensor([65504.0, 65472.0, 6e-8, 0.0], dtype=torch.float16), 0.25)
@under(MODES, every=True)
def test_special_values(scores: Tensor, density: float) -> None:
    """NaN ranks as infinite. Infinite and very large scores rank by their size, and so do subnormal
    ones, or all of them as 0 where the machine flushes them.
    """
    subnormal = scores.abs() < torch.finfo(scores.dtype).tiny
    assert_oracle_mask(scores, density, scores.where(~subnormal, 0))


@clause("M6")
@given(
    seed=seeds,
    density=fractions,
    dtype=dtypes,
    kind=kinds,
    size=st.sampled_from([(6, 4, 3, 2), (5, 3, 4), (4, 3, 2, 2, 3), (9, 20), (120, 100)]),
)
@under(MODES)
def test_memory_format_does_not_matter(
    seed: int, density: float, dtype: torch.dtype, kind: str, size: tuple[int, ...]
) -> None:
    """Scores in channels_last, transposed, strided or expanded, of any rank, have the mask of equal
    contiguous ones, exactly 0.0 or 1.0.
    """
    scores = KINDS[kind](random_scores(size, seed, dtype))
    wide = KINDS[kind](random_scores((*size[:-1], 2 * size[-1]), seed, dtype))
    laid = [lie(scores) for lie in LAYOUTS.values()]
    for layout in (*laid, scores.mT, wide[..., ::2], scores[:, :1].expand(size)):
        assert_oracle_mask(layout, density)


@clause("M7")
@given(
    scores=score_tensors(st.one_of(plain_values, tied_values, special_values)), density=fractions
)
@under(MODES, every=True)
def test_mask_of_a_mask(scores: Tensor, density: float) -> None:
    """A mask used as scores gives itself, so that a stored mask can stand for the scores."""
    mask = pemn.score_mask(scores, density=density)
    assert torch.equal(pemn.score_mask(mask, density=density), mask)


@clause("M8")
@given(layers=many_layers(), density=fractions)
@under(MODES)
def test_masks_are_per_layer(layers: Layers, density: float) -> None:
    """apply_mask multiplies each weight by the mask of its own scores. Each layer keeps its share,
    however large another's scores are; dtype and shape are the weight's, not the scores'.
    """
    weights, scores = layers
    for part in (density, 1 - density / 2, density):
        masked = pemn.apply_mask(weights, scores, density=part)
        assert set(masked) == set(weights)
        for name, weight in weights.items():
            mask = torch.from_numpy(oracle.mask(scores[name].double().numpy(), part))
            assert masked[name].dtype == weight.dtype
            assert torch.equal(masked[name], weight * mask.to(weight.dtype))


@clause("M9")
@given(scores=layers(), density=fractions)
@under(MODES)
def test_mask_follows_the_scores(scores: Tensor, density: float) -> None:
    """Masks follow the scores and the density as they are now, however they were changed, and
    making a mask changes no score.
    """
    before = scores.clone()
    pemn.score_mask(scores, density=density)
    assert torch.equal(scores, before)
    assert_oracle_mask(scores, 1 - density / 2)
    with torch.no_grad():
        scores.copy_(before.flip(0))
    assert_oracle_mask(scores, density)
    scores.data.copy_(before.flip(-1))  # which no version counter sees
    assert_oracle_mask(scores, density)


@clause("M10", "SHOULD")
@given(layers=many_layers(), drawn=st.lists(fractions, min_size=6, max_size=6))
@under(MODES)
def test_density_of_each_layer(layers: Layers, drawn: list[float]) -> None:
    """A density for each layer, by name and in any order, applies to that layer's mask. A mapping
    that lacks a layer or names another is refused, and the layer named.
    """
    weights, scores = layers
    density = dict(zip(reversed(weights), cycle(drawn), strict=False))
    masked = pemn.apply_mask(weights, scores, density=density)
    assert list(masked) == list(weights)
    for name, weight in weights.items():
        mask = pemn.score_mask(scores[name], density=density[name])
        assert torch.equal(masked[name], weight * mask.to(weight.dtype))
    for wrong in ({n: density[n] for n in [*density][1:]}, {**density, "other.weight": 0.5}):
        named = next(iter(density)) if "other.weight" not in wrong else "other.weight"
        with pytest.raises(ValueError, match=re.escape(named)):
            pemn.apply_mask(weights, scores, density=wrong)
