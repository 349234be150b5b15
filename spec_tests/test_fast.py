"""The fast path has the bits of the reference; ``--impl pemn_ref.fast`` judges its clauses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pemn_ref as pemn
from pemn_ref import fast
from spec_tests.draws import DTYPES, random_scores
from spec_tests.models import CASES, Called, built


def layers(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Layers of equal and other sizes; scores with ties, NaN, infinity, other layout and dtype."""
    shapes = {"a": (4, 3, 2, 2), "b": (8, 6), "c": (6, 8), "d": (5,), "e": (4, 3, 2, 2)}
    weights = {n: random_scores(shape, i, dtype) for i, (n, shape) in enumerate(shapes.items())}
    scores = {n: random_scores(w.shape, i + 9, dtype) for i, (n, w) in enumerate(weights.items())}
    scores["b"] = scores["b"].round()
    scores["c"].view(-1)[:5] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0])
    scores["d"] = scores["d"].double()
    scores["e"] = scores["e"].to(torch.float64, memory_format=torch.channels_last)
    return weights, {name: values.requires_grad_() for name, values in scores.items()}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.3, 1.0, {"a": 0.1, "b": 0.5, "c": 0.5, "d": 1.0, "e": 0.1}])
def test_masks_and_gradients_have_the_bits_of_the_reference(
    dtype: torch.dtype, density: float | dict[str, float], autocast: torch.dtype | None
) -> None:
    weights, scores = layers(dtype)
    upstream = [random_scores(w.shape, 99, dtype) for w in weights.values()]
    results = []
    for make in (pemn.apply_mask, fast.apply_mask):
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            masked = make(weights, scores, density=density)
        assert list(masked) == list(weights)
        gradients = torch.autograd.grad([*masked.values()], [*scores.values()], upstream)
        results.append([*masked.values(), *gradients])
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("case", sorted(CASES))
def test_networks_have_the_bits_of_the_reference(case: str) -> None:
    model = Called(built(CASES[case].build, 0)).eval()
    state = pemn.init(model, pemn.rp(0.1), seed=0)
    inputs = CASES[case].inputs(torch.Generator().manual_seed(0))
    call = (*state, inputs, torch.zeros_like(inputs))
    expected = pemn.masked_forward(model, *call, density=0.5, weights=2.0)
    got = fast.masked_forward(model, *call, density=0.5, weights=2.0)
    assert torch.equal(got["out"], expected["out"])
    assert got["by"] == expected["by"] == {"weights": 2.0}


def test_a_device_without_autocast() -> None:
    half = {"a": torch.ones(4, 3, dtype=torch.float16, device="meta")}
    assert fast.apply_mask(half, half, density=0.5)["a"].shape == (4, 3)


def test_layer_that_is_not_used_has_a_gradient_of_zeros() -> None:
    """As the module says; the reference gives none."""
    for one in (pemn, fast):
        weights = {name: torch.ones(2, 3) for name in "ab"}
        scores = {name: random_scores((2, 3), 0).requires_grad_() for name in "ab"}
        one.apply_mask(weights, scores, density=0.5)["a"].sum().backward()
        gradient = scores["b"].grad
        assert (gradient is None) == (one is pemn)
        assert gradient is None or not gradient.any()


@pytest.mark.parametrize("density", [[0.5], {"a": [0.5]}, {0: 0.5}, math.nan])
def test_density_that_is_none_is_refused_as_by_the_reference(density: Any) -> None:
    weights = {"a": torch.ones(2)}
    messages = []
    for one in (pemn, fast):
        with pytest.raises(ValueError, match="density") as error:
            one.apply_mask(weights, weights, density=density)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_scores_that_do_not_fit_the_weights() -> None:
    with pytest.raises(ValueError, match=r"^scores do not fit the weights: a is missing$"):
        fast.apply_mask({"a": torch.ones(2)}, {}, density=0.5)


def test_mask_of_one_layer() -> None:
    scores = random_scores((3, 5), 0)
    assert torch.equal(fast.score_mask(scores, density=0.4), pemn.score_mask(scores, density=0.4))
    with pytest.raises(ValueError, match="int64"):
        fast.score_mask(torch.ones(3, dtype=torch.int64), density=0.5)


def test_it_stands_for_the_package() -> None:
    assert sorted(fast.__all__) == sorted(pemn.__all__)
    assert all(hasattr(fast, name) for name in pemn.__all__)
