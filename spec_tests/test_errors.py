"""E: bad input gets one ValueError that names the value."""

import math
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from spec_tests.clauses import clause
from spec_tests.draws import seeds
from spec_tests.models import Convolutions, built
from spec_tests.subject import pemn

outside = st.one_of(
    st.sampled_from([0, -0.0, math.nan, math.inf, -math.inf, math.nextafter(1, 2), 50]),
    st.floats(max_value=0),
    st.floats(min_value=1, exclude_min=True),
)
SHAPES = {"fc.weight": torch.Size([4, 5])}


def refuses(call: Callable[[], Any], *named: object) -> None:
    """The call raises ValueError and its message holds each of the things to be named."""
    with pytest.raises((ValueError, RuntimeError), match=r"\S") as error:
        call()
    assert isinstance(error.value, ValueError), f"not a ValueError: {error.value!r}"
    for thing in named:
        assert re.search(re.escape(str(thing)), str(error.value)), error.value


def linear_state(**changes: dict[str, Tensor]) -> tuple[nn.Module, Any]:
    """A linear layer and a state for it, parts of it changed."""
    model = built(lambda: nn.Linear(5, 4), 0)
    return model, pemn.init(model, pemn.mp, seed=0)._replace(**changes)


def traced() -> Any:
    """A linear layer of which torch has recorded the operations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and used
        return torch.jit.trace(nn.Linear(4, 2), torch.ones(1, 4))


@clause("E1", "SHOULD")
@given(density=outside)
def test_density_outside(density: float) -> None:
    """A density outside (0, 1] is refused wherever one is taken, and named."""
    model, state = linear_state()
    x = torch.ones(1, 5)
    for call in (
        lambda: pemn.kept(10, density),
        lambda: pemn.score_mask(torch.ones(3), density=density),
        lambda: pemn.apply_mask(state.weights, state.scores, density=density),
        lambda: pemn.masked_forward(model, *state, x, density=density),
        lambda: pemn.materialize(model, state, density=density),
    ):
        refuses(call, "density", density)


@clause("E2", "SHOULD")
@given(ratio=outside)
def test_ratio_outside(ratio: float) -> None:
    """A ratio outside (0, 1] is refused, and named."""
    refuses(lambda: pemn.rp(ratio), "ratio", ratio)
    refuses(lambda: pemn.prototype_length(10, ratio), "ratio", ratio)


@clause("E3", "SHOULD")
def test_unknown_strategy() -> None:
    """An unknown strategy is refused, and so is a ratio where none belongs, and a name in place of
    a strategy.
    """
    prototype = pemn.make_prototype(SHAPES, pemn.mp, seed=0)
    refuses(lambda: pemn.make_prototype(SHAPES, "mp", seed=0), "mp")
    refuses(lambda: pemn.fill_weights(prototype, SHAPES, "mp"), "mp")
    refuses(lambda: pemn.Strategy("padding"), "padding", "one_layer")
    refuses(lambda: pemn.Strategy("mp", 0.1), "mp", 0.1)


@clause("E4", "SHOULD")
@given(dimensions=st.lists(st.integers(0, 3), min_size=1, max_size=3), at=st.integers(0, 2))
def test_empty_layers(dimensions: list[int], at: int) -> None:
    """A layer without weights is refused and named, and so is an empty set of shapes."""
    dimensions.insert(min(at, len(dimensions)), 0)
    shapes = {**SHAPES, "empty.weight": torch.Size(dimensions)}
    refuses(lambda: pemn.make_prototype(shapes, pemn.mp, seed=0), "empty.weight")
    refuses(lambda: pemn.init_scores(shapes, seed=0), "empty.weight")
    refuses(lambda: pemn.storage(shapes, pemn.mp), "empty.weight")
    prototype = pemn.make_prototype(SHAPES, pemn.mp, seed=0)
    refuses(lambda: pemn.fill_weights(prototype, shapes, pemn.mp), "empty.weight")
    refuses(lambda: pemn.score_mask(torch.zeros(dimensions), density=0.5))
    refuses(lambda: pemn.prototype_length(0, 0.5))
    refuses(lambda: pemn.make_prototype({}, pemn.mp, seed=0))


@clause("E5", "SHOULD")
def test_nothing_to_mask() -> None:
    """A model without a maskable weight is refused."""
    refuses(lambda: pemn.init(nn.LSTM(3, 4), pemn.mp, seed=0))


@clause("E6", "SHOULD")
def test_weights_that_are_not_plain_parameters() -> None:
    """A maskable weight that is computed, lazy or in a scripted part is refused and named, not
    silently made rest.
    """
    spectral = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)))
    lazy = nn.Sequential(nn.ReLU(), nn.LazyConv2d(8, 3))
    attention = nn.MultiheadAttention(4, 2)
    nn.utils.parametrizations.weight_norm(attention, "in_proj_weight")
    refuses(lambda: pemn.maskable_shapes(spectral), "0.weight")
    refuses(lambda: pemn.maskable_shapes(lazy), "1.weight")
    refuses(lambda: pemn.maskable_shapes(attention), "in_proj_weight")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and used
        scripted = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Sequential(nn.Linear(4, 2))))
        harmless = nn.Sequential(nn.Linear(4, 2), torch.jit.script(nn.ReLU()))
    refuses(lambda: pemn.maskable_shapes(scripted), "1 is scripted")
    refuses(lambda: pemn.maskable_shapes(traced()), "scripted")
    assert list(pemn.maskable_shapes(harmless)) == ["0.weight"]


@clause("E7", "SHOULD")
@given(seed=seeds, value=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_non_finite_scores(seed: int, value: float) -> None:
    """Where values can be read, a non-finite score is refused and its layer named."""
    model, state = linear_state()
    state.scores["weight"].detach().view(-1)[seed % 20] = value
    refuses(lambda: pemn.materialize(model, state, density=0.5), "weight")


@clause("E8", "SHOULD")
@pytest.mark.parametrize("part", ["weights", "scores", "rest", "buffers"])
def test_state_of_another_model(part: str) -> None:
    """A state is refused, and the tensor named, if it lacks a tensor of the model, has one more or
    one of another shape, or has one in two of its parts.
    """
    model = built(Convolutions, 0)
    state = pemn.init(model, pemn.mp, seed=0)
    tensors = getattr(state, part)
    name = next(name for name, tensor in tensors.items() if tensor.ndim)
    x = torch.ones(2, 3, 6, 6)
    less = {n: t for n, t in tensors.items() if n != name}
    overlap = state._replace(rest={**state.rest, "stem.weight": state.weights["stem.weight"]})
    refuses(lambda: pemn.masked_forward(model, *overlap, x, density=0.5), "stem.weight")
    refuses(lambda: pemn.materialize(model, overlap, density=0.5), "stem.weight")
    for wrong in (less, {**tensors, "other": tensors[name]}, {**tensors, name: torch.ones(2, 2)}):
        broken = state._replace(**{part: wrong})
        named = "other" if "other" in wrong else name
        refuses(lambda: pemn.masked_forward(model, *broken, x, density=0.5), named)  # noqa: B023
        refuses(lambda: pemn.materialize(model, broken, density=0.5), named)  # noqa: B023


@clause("E9", "SHOULD")
@pytest.mark.parametrize("seed", [1.0, "1", None])
def test_seed_is_an_int(seed: Any) -> None:
    """A seed that is not an int is refused and named: 1.0 would silently be another stream."""
    refuses(lambda: pemn.make_prototype(SHAPES, pemn.mp, seed=seed), "seed", repr(seed))
    refuses(lambda: pemn.init_scores(SHAPES, seed=seed), "seed", repr(seed))


@clause("E10", "SHOULD")
def test_unusable_prototype() -> None:
    """A prototype that is missing, empty or not one-dimensional is refused."""
    (group,) = pemn.make_prototype(SHAPES, pemn.mp, seed=0)
    for wrong in ({}, {group: torch.ones(0)}, {group: torch.ones(2, 2)}):
        refuses(lambda: pemn.fill_weights(wrong, SHAPES, pemn.mp))  # noqa: B023


@clause("E11", "SHOULD")
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.complex64])
def test_scores_are_real_floats(dtype: torch.dtype) -> None:
    """Scores that are not real floats are refused and their dtype named: they have no gradient, or
    no order.
    """
    refuses(lambda: pemn.score_mask(torch.ones(4, dtype=dtype), density=0.5), dtype)


# --- The reference's own: what its messages say -------------------------------------------------


def forward_with(**changes: dict[str, Tensor]) -> Any:
    """A masked linear layer, run with a state of which parts are changed."""
    model, state = linear_state(**changes)
    return pemn.masked_forward(model, *state, torch.ones(1, 5), density=0.5)


WEIGHT = {"weight": torch.ones(2)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pemn.kept(3, 2), "density must be a number in (0, 1], got 2"),
        (lambda: pemn.kept(0, 0.5), "numel must be at least 1, got 0"),
        (lambda: pemn.prototype_length(3, 2), "ratio must be a number in (0, 1], got 2"),
        (lambda: pemn.prototype_length(0, 0.5), "numel must be at least 1, got 0"),
        (lambda: pemn.rp(2), "ratio must be a number in (0, 1], got 2"),
        (
            lambda: pemn.init_scores({}, seed=0),
            "nothing to mask: there is no convolution, linear or attention weight",
        ),
        (
            lambda: pemn.fill_weights({}, SHAPES, pemn.mp),
            "fc.weight needs the prototype 'all', got only []",
        ),
        (
            lambda: pemn.fill_weights({"all": torch.ones(0)}, SHAPES, pemn.mp),
            "prototype 'all' must be 1-D and not empty, got shape (0,)",
        ),
        (
            lambda: pemn.maskable_shapes(nn.LazyLinear(3)),
            "weight is lazy: call the model once first",
        ),
        (
            lambda: pemn.maskable_shapes(nn.Linear(3, 3, dtype=torch.complex64)),
            "weight must be of a real floating dtype, got torch.complex64",
        ),
        (
            lambda: pemn.maskable_shapes(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))),
            "weight is computed: remove its parametrization first",
        ),
        (
            lambda: pemn.init(nn.Linear(3, 3), pemn.mp, seed=0, shapes={"weight": (3, 4)}),
            "shapes must be a subset of maskable_shapes(model), which has weight of shape (3, 3),"
            " not (3, 4)",
        ),
        (
            lambda: pemn.init(nn.Linear(3, 3), pemn.mp, seed=0, shapes={"bias": (3,)}),
            "shapes must be a subset of maskable_shapes(model), which has no bias",
        ),
        (
            lambda: pemn.apply_mask(WEIGHT, WEIGHT, density={0: 0.5}),  # type: ignore[dict-item]
            "density must have one value for each masked weight: 0 is not masked",
        ),
        (
            lambda: pemn.kept(3, 10**400),
            f"density must be a number in (0, 1], got {10**400}",
        ),
        (
            lambda: pemn.rp(Fraction(1, 10**400)),  # type: ignore[arg-type]
            f"ratio must be a number in (0, 1], got {Fraction(1, 10**400)!r}",
        ),
        (
            lambda: pemn.maskable_shapes(traced()),
            "the model is scripted: pass the module it was made from",
        ),
        (
            lambda: pemn.apply_mask(WEIGHT, WEIGHT, density={}),
            "density must have one value for each masked weight: weight is missing",
        ),
        (
            lambda: pemn.apply_mask(WEIGHT, WEIGHT, density={"weight": 0.5, "bias": 0.5}),
            "density must have one value for each masked weight: bias is not masked",
        ),
        (lambda: forward_with(scores={}), "scores do not fit the weights: weight is missing"),
        (lambda: forward_with(rest={}), "the state does not fit the model: bias is missing"),
        (
            lambda: forward_with(buffers={"count": torch.ones(1)}),
            "the buffers do not fit the model (if its forward resizes them, call it once before"
            " init): count is not expected",
        ),
    ],
)
def test_message(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
