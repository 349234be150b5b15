"""G: what is trained, and by which gradient."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from spec_tests import oracle
from spec_tests.clauses import clause
from spec_tests.draws import (
    KINDS,
    LARGE,
    LAYOUTS,
    WITH_GRADIENT,
    Network,
    Shapes,
    few,
    fractions,
    layers,
    networks,
    random_scores,
    score_tensors,
    seeds,
    special_values,
    tiny_layers,
    under,
)
from spec_tests.models import (
    CASES,
    assert_straight_through,
    close_for,
    network_in,
    oracle_mask,
    plain_of,
    same_draws,
    sign,
)
from spec_tests.subject import pemn


def gradient(leaf: Tensor) -> oracle.Array:
    """What backward left on a leaf, in double precision."""
    assert leaf.grad is not None
    array: oracle.Array = leaf.grad.double().numpy()
    return array


@clause("G1")
@given(seed=seeds, density=fractions)
@under(WITH_GRADIENT)
def test_straight_through_in_a_linear(seed: int, density: float) -> None:
    """Through a real linear every score, kept or dropped, gets dL/d(masked weight) * weight *
    sign(score).
    """
    x, upstream = random_scores((3, 5), seed, torch.float64), random_scores((3, 4), ~seed % 2**63)
    weight = random_scores((4, 5), seed // 2, torch.float64)
    scores = random_scores((4, 5), seed // 3, torch.float64).requires_grad_()
    masked = pemn.apply_mask({"weight": weight}, {"weight": scores}, density=density)
    assert masked["weight"].requires_grad, "no gradient reaches the scores"
    (nn.functional.linear(x, masked["weight"]) * upstream).sum().backward()
    expected = oracle.score_gradient(
        oracle.linear_weight_gradient(x.numpy(), upstream.double().numpy()),
        weight.numpy(),
        scores.detach().numpy(),
    )
    np.testing.assert_allclose(gradient(scores), expected, rtol=1e-9, atol=1e-12)


@clause("G2")
@given(seed=seeds, density=fractions)
@under(WITH_GRADIENT)
def test_straight_through_in_a_convolution(seed: int, density: float) -> None:
    """The same through a real convolution, at scores in channels_last too."""
    x = random_scores((2, 3, 5, 4), seed, torch.float64)
    upstream = random_scores((2, 4, 4, 3), ~seed % 2**63, torch.float64)
    weight = random_scores((4, 3, 2, 2), seed // 2, torch.float64)
    plain = random_scores((4, 3, 2, 2), seed // 3, torch.float64)
    expected = oracle.score_gradient(
        oracle.conv_weight_gradient(x.numpy(), upstream.numpy(), kernel=2),
        weight.numpy(),
        plain.numpy(),
    )
    for scores in (plain.clone(), plain.to(memory_format=torch.channels_last)):
        scores.requires_grad_()
        masked = pemn.apply_mask({"weight": weight}, {"weight": scores}, density=density)
        (nn.functional.conv2d(x, masked["weight"]) * upstream).sum().backward()
        np.testing.assert_allclose(gradient(scores), expected, rtol=1e-9, atol=1e-12)


@clause("G3", "SHOULD")
@given(
    scores=st.one_of(score_tensors(special_values), layers()),
    density=fractions,
    seed=seeds,
)
@example(torch.tensor([[1e-30, -1e-30, 1.0]]), 0.5, 0)  # tiny, and not 0
@under(WITH_GRADIENT)
def test_gradient_at_special_scores(scores: Tensor, density: float, seed: int) -> None:
    """The gradient of the mask is sign(score), and 0 where the score is 0 or not finite; gradients
    of several calls add up.
    """
    scores.requires_grad_().grad = None  # an example's are those of an earlier call
    upstream = random_scores(scores.shape, seed, scores.dtype)
    values = scores.detach().double().numpy()
    expected = oracle.score_gradient(upstream.double().numpy(), np.ones_like(values), values)
    for calls in (1, 2):
        # The graph is kept: a mask from an earlier call would crash, and not be told.
        mask = pemn.score_mask(scores, density=density)
        assert mask.requires_grad, "no gradient reaches the scores"
        mask.backward(upstream, retain_graph=True)
        np.testing.assert_array_equal(gradient(scores), calls * expected)


@clause("G8")
@given(scores=layers(), density=fractions, seed=seeds, twice=st.booleans(), beside=tiny_layers())
@example(KINDS["tied"](random_scores(LARGE[1], 0)), 0.005, 1, False, {})
@example(random_scores(LARGE[3], 0), 0.5, 0, True, {})
@example(random_scores(LARGE[0], 0), 0.5, 3, True, {})
@example(LAYOUTS["channels last"](random_scores(LARGE[2], 0)), 0.5, 2, True, {})
@under(WITH_GRADIENT)
def test_straight_through_in_every_layer(
    scores: Tensor, density: float, seed: int, twice: bool, beside: Shapes
) -> None:
    """In a layer of any shape, dtype and layout, beside others, weights are masked and scores get
    the gradient times weight and sign of the score, by their values at the time of the call.
    """
    weight, upstream = (random_scores(scores.shape, seed + i, scores.dtype) for i in (1, 2))
    weights = {"first": torch.ones(2, 3), "layer": weight, "last": torch.ones(3, 2)}
    if seed % 2:
        last = {} if seed % 4 == 3 else {"last": torch.ones(3, 2)}
        weights = {"layer": weight.requires_grad_(), **last}
    weights |= {name: torch.ones(shape) for name, shape in beside.items()}
    of_all = {n: torch.ones(w.shape, requires_grad=True) for n, w in weights.items()}
    of_all["layer"] = scores.requires_grad_()
    for _ in range(2):
        scores.grad = None
        masked = pemn.apply_mask(weights, of_all, density=density)["layer"]
        assert torch.equal(masked, weight * oracle_mask(scores, density))
        masked.backward(upstream, retain_graph=True)
        assert scores.grad is not None
        assert torch.equal(scores.grad, upstream * weight.detach() * sign(scores))
        if twice:
            scores.data.copy_(-scores.data.flip(0))
        else:
            with torch.no_grad():
                scores.copy_(-scores.flip(0))


@clause("G4")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_training_moves_scores_and_rest_only(case: str, context: Network) -> None:
    """A training step moves the scores and the rest. The filled weights get no gradient and keep
    their bits, and so does the prototype that they came from.
    """
    # So that a gradient reaches every layer, and is large enough to move it.
    context = context.of(case)
    frozen = "some" if context.frozen == "some" else "none"
    alive = context._replace(frozen=frozen, kinds=("normal",), dtype=torch.float64, density=0.5)
    alive = alive._replace(through=False, apart=False)
    model, state, inputs = network_in(alive, case)
    seed, strategy = context.seed, context.strategy.value
    shapes = pemn.maskable_shapes(model)
    prototype = pemn.make_prototype(shapes, strategy, seed=seed)
    drawn = {group: values.clone() for group, values in prototype.items()}
    assert not any(w.requires_grad for w in state.weights.values())
    filled = pemn.fill_weights(prototype, shapes, strategy)
    state = state._replace(weights={n: w.to(state.weights[n].dtype) for n, w in filled.items()})
    before = {name: weight.clone() for name, weight in state.weights.items()}
    trained = {**state.scores, **{n: t for n, t in state.rest.items() if t.requires_grad}}
    start = {name: tensor.detach().clone() for name, tensor in trained.items()}
    # By the sign of the gradient, however small it has become behind many layers.
    optimizer = torch.optim.Rprop(trained.values(), lr=0.1)
    pemn.masked_forward(model, *state, inputs, density=0.5).square().sum().backward()
    optimizer.step()
    assert not any(w.requires_grad or w.grad is not None for w in state.weights.values())
    assert all(torch.equal(state.weights[name], before[name]) for name in before)
    assert all(torch.equal(prototype[group], drawn[group]) for group in drawn)
    assert all(not torch.equal(state.scores[name], start[name]) for name in state.scores)
    rest = trained.keys() - state.scores.keys()
    assert not rest or any(not torch.equal(state.rest[n], start[n]) for n in rest)


@clause("G5")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_rest_gets_plain_gradients(case: str, context: Network) -> None:
    """The rest gets the gradient that the plain module with the masked weights gives it."""
    context = context.of(case)
    context = context._replace(frozen="some" if context.frozen == "all" else context.frozen)
    model, state, inputs = network_in(context, case)
    plain = plain_of(model, state, context.density).requires_grad_()
    for mode in ("as usual", "float64 by default"):  # gradients of several calls add up
        with same_draws(mode):
            plain(inputs).square().mean().backward()
        with same_draws(mode):
            out = pemn.masked_forward(model, *state, inputs, density=context.density)
            out.square().mean().backward()
        for name, tensor in state.rest.items():
            expected = plain.get_parameter(name).grad if tensor.requires_grad else None
            torch.testing.assert_close(tensor.grad, expected, **close_for(model))


@clause("G6")
@given(scores=layers(), seed=seeds, density=fractions, trained=st.booleans())
@under(WITH_GRADIENT)
def test_apply_mask_does_not_freeze_weights(
    scores: Tensor, seed: int, density: float, trained: bool
) -> None:
    """Weights that require a gradient get it, times the mask: filling alone freezes them."""
    scores.requires_grad_(trained)
    weights = {n: random_scores(scores.shape, seed + i, scores.dtype) for i, n in enumerate("abc")}
    upstream = random_scores(scores.shape, seed // 5, scores.dtype)
    for name, weight in weights.items():
        weight.requires_grad_()
        of_all = dict.fromkeys(weights, scores)
        masked = pemn.apply_mask(weights, of_all, density=density)[name]
        assert masked.requires_grad
        masked.backward(upstream)
        assert weight.grad is not None
        assert torch.equal(weight.grad, upstream * oracle_mask(scores, density))


@clause("G7")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_network_trains_straight_through(case: str, context: Network) -> None:
    """In a whole network, step after step, every score gets the gradient that its weight has in the
    plain module with the masked weights, times weight and sign of the score.
    """
    context = context.of(case)._replace(through=False)
    model, state, inputs = network_in(context, case)
    for _ in range(2):
        plain = plain_of(model, state, context.density).requires_grad_()
        with same_draws():
            plain(inputs).square().mean().backward()
        with same_draws():
            out = pemn.masked_forward(model, *state, inputs, density=context.density)
            out.square().mean().backward()
        assert_straight_through(model, state._replace(rest={}), plain)
        for scores in state.scores.values():
            with torch.no_grad():
                scores.copy_(-scores.flip(0))
            scores.grad = None
