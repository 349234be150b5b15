"""G: what is trained, and by which gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from spec_tests import oracle
from spec_tests.clauses import clause
from spec_tests.draws import few, fractions, random_scores, score_tensors, seeds, special_values
from spec_tests.models import CASES, built, needs
from spec_tests.subject import pemn


def gradient(leaf: Tensor) -> oracle.Array:
    """What backward left on a leaf, in double precision."""
    assert leaf.grad is not None
    array: oracle.Array = leaf.grad.double().numpy()
    return array


@clause("G1")
@given(seed=seeds, density=fractions)
def test_straight_through_in_a_linear(seed: int, density: float) -> None:
    """Through a real linear every score, kept or dropped, gets dL/d(masked weight) * weight *
    sign(score).
    """
    x, upstream = random_scores((3, 5), seed, torch.float64), random_scores((3, 4), ~seed % 2**63)
    weight = random_scores((4, 5), seed // 2, torch.float64)
    scores = random_scores((4, 5), seed // 3, torch.float64).requires_grad_()
    masked = pemn.apply_mask({"weight": weight}, {"weight": scores}, density=density)
    (nn.functional.linear(x, masked["weight"]) * upstream).sum().backward()
    expected = oracle.score_gradient(
        oracle.linear_weight_gradient(x.numpy(), upstream.double().numpy()),
        weight.numpy(),
        scores.detach().numpy(),
    )
    np.testing.assert_allclose(gradient(scores), expected, rtol=1e-9, atol=1e-12)


@clause("G2")
@given(seed=seeds, density=fractions)
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
@given(scores=score_tensors(special_values), density=fractions, seed=seeds)
def test_gradient_at_special_scores(scores: Tensor, density: float, seed: int) -> None:
    """The gradient of the mask is sign(score), and 0 where the score is 0 or not finite."""
    scores.requires_grad_()
    upstream = random_scores(scores.shape, seed, scores.dtype)
    pemn.score_mask(scores, density=density).backward(upstream)
    values = scores.detach().double().numpy()
    expected = oracle.score_gradient(upstream.double().numpy(), np.ones_like(values), values)
    np.testing.assert_array_equal(gradient(scores), expected)


@clause("G4")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(seed=seeds)
def test_training_moves_scores_and_rest_only(case: str, seed: int) -> None:
    """A training step moves the scores and the rest; the filled weights get no gradient and keep
    their bits, and so does the prototype that they came from.
    """
    model = built(CASES[case].build, seed % 100)
    inputs = CASES[case].inputs(torch.Generator().manual_seed(seed % 2**32))
    needs(model, inputs)
    shapes, state = pemn.maskable_shapes(model), pemn.init(model, pemn.rp(0.1), seed=seed)
    prototype = pemn.make_prototype(shapes, pemn.rp(0.1), seed=seed)
    drawn = {group: values.clone() for group, values in prototype.items()}
    assert not any(w.requires_grad for w in state.weights.values())
    state = state._replace(weights=pemn.fill_weights(prototype, shapes, pemn.rp(0.1)))
    before = {name: weight.clone() for name, weight in state.weights.items()}
    trained = {**state.scores, **state.rest}
    start = {name: tensor.detach().clone() for name, tensor in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    pemn.masked_forward(model, *state, inputs, density=0.5).square().sum().backward()
    optimizer.step()
    assert not any(w.requires_grad or w.grad is not None for w in state.weights.values())
    assert all(torch.equal(state.weights[name], before[name]) for name in before)
    assert all(torch.equal(prototype[group], drawn[group]) for group in drawn)
    assert all(not torch.equal(state.scores[name], start[name]) for name in state.scores)
    assert any(not torch.equal(state.rest[name], start[name]) for name in state.rest)


@clause("G5")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(seed=seeds)
def test_rest_gets_plain_gradients(case: str, seed: int) -> None:
    """The rest gets the gradient that the plain module with the materialised weights gives it."""
    model = built(CASES[case].build, seed % 100).double()
    inputs = CASES[case].inputs(torch.Generator().manual_seed(seed % 2**32))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    needs(model, inputs)
    state = pemn.init(model, pemn.rp(0.1), seed=seed)
    plain = built(CASES[case].build, 0).double()
    plain.load_state_dict(pemn.materialize(model, state, density=0.5))
    plain(inputs).square().sum().backward()
    pemn.masked_forward(model, *state, inputs, density=0.5).square().sum().backward()
    expected = dict(plain.named_parameters())
    for name, tensor in state.rest.items():
        torch.testing.assert_close(tensor.grad, expected[name].grad, rtol=1e-9, atol=1e-12)


@clause("G6")
@given(seed=seeds, density=fractions)
def test_apply_mask_does_not_freeze_weights(seed: int, density: float) -> None:
    """Weights that want a gradient get it, times the mask: freezing is done by filling alone."""
    weight = random_scores((4, 5), seed, torch.float64).requires_grad_()
    scores = random_scores((4, 5), seed // 3, torch.float64)
    upstream = random_scores((4, 5), seed // 5, torch.float64)
    masked = pemn.apply_mask({"w": weight}, {"w": scores}, density=density)["w"]
    assert masked.requires_grad
    masked.backward(upstream)
    expected = upstream.numpy() * oracle.mask(scores.numpy(), density)
    np.testing.assert_array_equal(gradient(weight), expected)


@clause("G7")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(density=fractions, seed=seeds)
def test_network_trains_straight_through(case: str, density: float, seed: int) -> None:
    """In a whole network, step after step, every score gets the gradient that its weight has in the
    plain module with the materialised weights, times weight and sign of the score.
    """
    model = built(CASES[case].build, seed % 100).double().eval()
    inputs = CASES[case].inputs(torch.Generator().manual_seed(seed % 2**32))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    needs(model, inputs)
    state = pemn.init(model, pemn.rp(0.1), seed=seed)
    for _ in range(2):
        model.load_state_dict(pemn.materialize(model, state, density=density))
        model.zero_grad()
        model(inputs).square().sum().backward()
        pemn.masked_forward(model, *state, inputs, density=density).square().sum().backward()
        for name, scores in state.scores.items():
            plain = model.get_parameter(name).grad
            assert plain is not None
            expected = plain * state.weights[name] * scores.detach().sign()
            torch.testing.assert_close(scores.grad, expected, rtol=1e-9, atol=1e-12)
            with torch.no_grad():
                scores.copy_(scores.flip(0))
            scores.grad = None
