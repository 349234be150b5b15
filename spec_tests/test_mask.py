"""M: which weights are kept."""

import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from spec_tests import oracle
from spec_tests.clauses import clause
from spec_tests.draws import (
    DTYPES,
    Shapes,
    fractions,
    or_fixed,
    plain_values,
    random_scores,
    score_tensors,
    seeds,
    shape_sets,
    special_values,
    tied_values,
)
from spec_tests.subject import pemn

# Both are wrong in floating point: the released int((1 - density) * n) drops one too few, and
# ceil(density * n) keeps one too many.
TRUNCATED = [(90, 0.3), (10, 0.9), (100, 0.07), (1000, 0.33), (50, 0.14), (1, 1e-9)]


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
@given(numel=st.integers(1, 10**8), density=fractions)
@example(*TRUNCATED[0])
@example(*TRUNCATED[1])
@example(*TRUNCATED[2])
@example(*TRUNCATED[3])
@example(*TRUNCATED[4])
@example(*TRUNCATED[5])
def test_kept_count(numel: int, density: float) -> None:
    """Kept are ceil(density * n), the density rounded to 12 decimals, and at least one."""
    assert pemn.kept(numel, density) == oracle.kept(numel, density)


@clause("M2")
@given(numel=or_fixed(st.integers(1, 3000), st.just(100)), density=fractions, seed=seeds)
@example(*TRUNCATED[0], 0)
@example(*TRUNCATED[1], 0)
@example(*TRUNCATED[2], 0)
def test_mask_keeps_that_many(numel: int, density: float, seed: int) -> None:
    """A mask keeps exactly that many of its layer's weights."""
    mask = pemn.score_mask(random_scores([numel], seed), density=density)
    assert int(mask.sum()) == oracle.kept(numel, density)


@clause("M3")
@given(scores=score_tensors(plain_values), density=fractions)
@example(torch.tensor([0.3, -0.1]), 0.5)  # 1 + 0.3 - 0.3 is 0.99999994
def test_largest_magnitudes_are_kept(scores: Tensor, density: float) -> None:
    """Kept are the largest |score| of the layer, whatever the sign."""
    assert_keeps_largest(scores, density)


@clause("M4", "SHOULD")
@given(scores=score_tensors(tied_values), density=fractions)
@example(torch.ones(3, 4), 0.5)
@example(torch.zeros(5, 1), 0.3)
@example(-torch.ones(2, 3, dtype=torch.bfloat16), 0.9)
@example(torch.ones(1000, dtype=torch.bfloat16), 0.1)  # more ties than it counts
@example(torch.ones(5000, dtype=torch.float16), 0.1)
def test_ties_drop_the_earlier(scores: Tensor, density: float) -> None:
    """Of equal |score| the earlier in row-major order are dropped first."""
    assert_oracle_mask(scores, density)


@clause("M5", "SHOULD")
@given(scores=score_tensors(special_values), density=fractions)
@example(torch.tensor([[math.nan, math.inf, 1.0, -math.inf]]), 0.5)
@example(torch.tensor([5e-324, 1e-323, 0.0, 0.0], dtype=torch.float64), 0.5)
@example(torch.tensor([1e-45, 3e-45, 0.0, 0.0]), 0.25)
@example(torch.tensor([65504.0, 65472.0, 6e-8, 0.0], dtype=torch.float16), 0.25)
def test_special_values(scores: Tensor, density: float) -> None:
    """NaN ranks as infinite; infinite and the largest finite scores by their size, subnormal ones
    too, or as 0 all of them where the machine flushes them.
    """
    subnormal = scores.abs() < torch.finfo(scores.dtype).tiny
    assert_oracle_mask(scores, density, scores.where(~subnormal, 0))


@clause("M6")
@given(seed=seeds, density=fractions, dtype=st.sampled_from(DTYPES), tied=st.booleans())
def test_memory_format_does_not_matter(
    seed: int, density: float, dtype: torch.dtype, tied: bool
) -> None:
    """The mask of channels_last, transposed, strided and expanded scores is that of equal
    contiguous ones, exactly 0.0 or 1.0.
    """
    scores = random_scores((6, 4, 3, 2), seed, dtype)
    if tied:
        scores = scores.round()
    wide = random_scores((6, 4, 3, 4), seed, dtype)
    for layout in (
        scores.to(memory_format=torch.channels_last),
        scores.permute(3, 1, 0, 2),
        wide[:, ::2, :, 1:],
        scores[:, :1].expand(6, 4, 3, 2),
    ):
        assert_keeps_largest(layout, density)
        mask = pemn.score_mask(layout.contiguous(), density=density)
        assert torch.equal(pemn.score_mask(layout, density=density), mask)


@clause("M7")
@given(
    scores=score_tensors(st.one_of(plain_values, tied_values, special_values)), density=fractions
)
def test_mask_of_a_mask(scores: Tensor, density: float) -> None:
    """A mask taken as scores gives itself, so that a stored mask can stand for the scores."""
    mask = pemn.score_mask(scores, density=density)
    assert torch.equal(pemn.score_mask(mask, density=density), mask)


@clause("M8")
@given(shapes=shape_sets, seed=seeds, density=fractions, dtype=st.sampled_from(DTYPES))
def test_masks_are_per_layer(shapes: Shapes, seed: int, density: float, dtype: torch.dtype) -> None:
    """apply_mask multiplies each weight by the mask of its own scores: each layer keeps its share,
    however large the scores of another; dtype and shape stay the weight's.
    """
    weights = {n: random_scores(s, seed + i, dtype) for i, (n, s) in enumerate(shapes.items())}
    scores = {n: random_scores(s, seed - i) * 10**i for i, (n, s) in enumerate(shapes.items())}
    masked = pemn.apply_mask(weights, scores, density=density)
    assert set(masked) == set(shapes)
    for name, weight in weights.items():
        mask = torch.from_numpy(oracle.mask(scores[name].double().numpy(), density))
        assert masked[name].dtype == dtype
        assert torch.equal(masked[name], weight * mask.to(dtype))


@clause("M9")
@given(seed=seeds, density=fractions)
def test_mask_follows_the_scores(seed: int, density: float) -> None:
    """Masks are made from the scores as they are now, and making one changes no score."""
    scores = random_scores((5, 7), seed)
    before = scores.clone()
    pemn.score_mask(scores, density=density)
    assert torch.equal(scores, before)
    with torch.no_grad():
        scores.copy_(scores.flip(0))
    assert_oracle_mask(scores, density)
