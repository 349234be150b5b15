"""X: the same under every transform of torch: vmap, func, compile, autocast, memory formats."""

import copy
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, jvp, vmap

from spec_tests import oracle
from spec_tests.clauses import clause
from spec_tests.draws import (
    DTYPES,
    KINDS,
    Drawn,
    Network,
    few,
    fractions,
    networks,
    random_scores,
    seeds,
    strategies,
)
from spec_tests.models import CASES, Convolutions, built, needs
from spec_tests.subject import pemn

# aot_eager traces forward and backward but needs no compiler; inductor is for the long profile.
PROFILE = settings.get_current_profile_name()
BACKEND = "inductor" if PROFILE == "thorough" and shutil.which("g++") else "aot_eager"
# Compiling and forward mode load parts of torch that warn of what the user has not done.
quiet = pytest.mark.filterwarnings("ignore")


def small(seed: int) -> nn.Module:
    """A network that vmap can take: convolution, batch-norm, linear, in double precision."""
    return built(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2, bias=False),
            nn.BatchNorm2d(3),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(12, 4),
        ),
        seed,
    ).double()


def loss_of(model: nn.Module, state: Any, x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """Scores -> a loss of the masked network."""

    def loss(scores: dict[str, Tensor]) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in state.buffers.items()}
        out: Tensor = pemn.masked_forward(
            model, state.weights, scores, state.rest, buffers, x, density=0.5
        )
        return out.square().sum()

    return loss


def assert_close(got: Any, expected: Any) -> None:
    """Equal but for the last bits of double precision."""
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def assert_some_everywhere(gradients: dict[str, Tensor]) -> None:
    """A gradient reaches every layer."""
    assert all(bool((g != 0).any()) for g in gradients.values()), "an all-zero gradient"


@clause("X1", "SHOULD")
@given(seed=seeds, density=fractions, dtype=st.sampled_from(DTYPES), tied=st.booleans())
def test_vmap_over_masks(seed: int, density: float, dtype: torch.dtype, tied: bool) -> None:
    """Masks of scores stacked under vmap, nested too, equal those made one by one."""
    scores = random_scores((2, 3, 4, 5), seed, dtype)
    scores = scores.round() if tied else scores
    mask = partial(pemn.score_mask, density=density)
    one_by_one = torch.stack([torch.stack([mask(s) for s in row]) for row in scores])
    assert torch.equal(vmap(vmap(mask))(scores), one_by_one)
    weights = random_scores((4, 5), seed // 2, dtype)
    apply = partial(pemn.apply_mask, {"w": weights}, density=density)
    together = vmap(apply)({"w": scores[0]})["w"]
    assert torch.equal(together, torch.stack([apply({"w": s})["w"] for s in scores[0]]))


@clause("X2", "SHOULD")
@pytest.mark.parametrize("train", [True, False])
@few()
@given(seed=seeds)
def test_vmap_over_networks(seed: int, train: bool) -> None:
    """Networks whose scores and buffers are stacked run under vmap as one by one, and move their
    batch-norm statistics alike.
    """
    model = small(seed % 100).train(train)
    states = [pemn.init(model, pemn.rp(0.1), seed=seed + i) for i in range(3)]
    x = random_scores((4, 2, 3, 3), seed, torch.float64)
    scores = {n: torch.stack([s.scores[n].detach() for s in states]) for n in states[0].scores}
    buffers = {n: torch.stack([s.buffers[n] for s in states]) for n in states[0].buffers}

    def run(scores: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
        first = states[0]
        return pemn.masked_forward(
            model, first.weights, scores, first.rest, buffers, x, density=0.5
        )

    together = vmap(run)(scores, buffers)
    assert_close(together, torch.stack([run(s.scores, s.buffers) for s in states]))
    for name, stacked in buffers.items():
        assert_close(stacked, torch.stack([s.buffers[name] for s in states]))


@clause("X3", "SHOULD")
@few()
@given(seed=seeds)
def test_func_grad(seed: int) -> None:
    """torch.func.grad and jacrev, alone and under vmap, give the gradients of backward, and some in
    every layer.
    """
    model = small(seed % 100).eval()
    state = pemn.init(model, pemn.rp(0.1), seed=seed)
    loss = loss_of(model, state, random_scores((4, 2, 3, 3), seed, torch.float64))
    loss(state.scores).backward()
    expected = {name: s.grad for name, s in state.scores.items()}
    scores = {name: s.detach() for name, s in state.scores.items()}
    assert_some_everywhere(expected)
    assert_close(grad(loss)(scores), expected)
    assert_close(jacrev(loss)(scores), expected)
    stacked = {name: torch.stack([s, -s]) for name, s in scores.items()}
    both = vmap(grad(loss))(stacked)
    assert_close({name: g[0] for name, g in both.items()}, expected)
    assert_close({name: g[1] for name, g in both.items()}, {n: -g for n, g in expected.items()})


@clause("X4", "SHOULD")
@quiet
def test_compiled_masks() -> None:
    """torch.compile with fullgraph gives masks and masked weights to the bit, at any density."""
    torch.compiler.reset()  # of what other implementations compiled
    scores = random_scores((6, 5, 3, 3), 0).to(memory_format=torch.channels_last)
    tied = torch.tensor([1.0, -1.0, float("nan"), float("inf"), 0.0, 1.0])
    compiled: Any = torch.compile(pemn.score_mask, backend=BACKEND, fullgraph=True)
    apply: Any = torch.compile(pemn.apply_mask, backend=BACKEND, fullgraph=True)
    for density in (0.5, 0.3, 1.0, 0.07):
        for drawn in (scores, tied):
            mask = pemn.score_mask(drawn, density=density)
            assert torch.equal(compiled(drawn, density=density), mask)
        weights = {"w": scores.flip(0)}
        got = apply(weights, {"w": scores}, density=density)["w"]
        assert torch.equal(got, pemn.apply_mask(weights, {"w": scores}, density=density)["w"])


@clause("X5", "SHOULD")
@quiet
@pytest.mark.parametrize("train", [True, False])
def test_compiled_loss(train: bool) -> None:
    """The masked loss compiled with fullgraph, and its gradients by backward, by func.grad compiled
    and, in evaluation, by vmap of func.grad compiled, are those of eager, and not zero.
    """
    torch.compiler.reset()
    model = small(0).train(train)
    state = pemn.init(model, pemn.rp(0.1), seed=0)
    loss = loss_of(model, state, random_scores((4, 2, 3, 3), 0, torch.float64))
    scores = {name: s.detach() for name, s in state.scores.items()}
    expected = grad(loss)(scores)
    assert_some_everywhere(expected)
    compiled = partial(torch.compile, backend=BACKEND, fullgraph=True)
    value = compiled(loss)(state.scores)
    assert_close(value.detach(), loss(scores))
    value.backward()
    assert_close({name: s.grad for name, s in state.scores.items()}, expected)
    assert_close(compiled(grad(loss))(scores), expected)
    if not train:  # in training the statistics would have to be stacked, as in X2
        stacked = {name: torch.stack([s, s]) for name, s in scores.items()}
        both = compiled(vmap(grad(loss)))(stacked)
        assert_close({name: g[1] for name, g in both.items()}, expected)


@clause("X6", "SHOULD")
@quiet
@given(seed=seeds, density=fractions)
def test_forward_mode_and_second_derivatives(seed: int, density: float) -> None:
    """jvp gives weight * sign(score) * tangent; a second derivative is that of the loss in the
    masked weights, times the squares of the weights.
    """
    weight, scores, tangent = (random_scores((3, 4), seed // k, torch.float64) for k in (1, 2, 3))

    def masked(scores: Tensor) -> Tensor:
        out: Tensor = pemn.apply_mask({"w": weight}, {"w": scores}, density=density)["w"]
        return out

    value, derivative = jvp(masked, (scores,), (tangent,))[:2]
    assert torch.equal(value, masked(scores))
    assert_close(derivative, weight * scores.sign() * tangent)
    second = hessian(lambda s: (masked(s) ** 3).sum())(scores).reshape(12, 12)
    mask = torch.from_numpy(oracle.mask(scores.numpy(), density))
    curvature = 6 * weight * mask * weight.square() * scores.sign().square()
    assert_close(second, torch.diag(curvature.flatten()))


@clause("X7", "SHOULD")
@pytest.mark.parametrize("case", sorted(CASES))
def test_bfloat16_autocast(case: str) -> None:
    """Under bfloat16 autocast output and gradients are those of the plain module under the same,
    and masks stay exact.
    """
    model = built(CASES[case].build, 0).eval()
    inputs = CASES[case].inputs(torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        needs(model, inputs)
    state = pemn.init(model, pemn.rp(0.1), seed=0)
    plain = copy.deepcopy(model)
    plain.load_state_dict(pemn.materialize(model, state, density=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        got = pemn.masked_forward(model, *state, inputs, density=0.5)
        expected = plain(inputs)
        for scores in state.scores.values():
            assert set(pemn.score_mask(scores, density=0.5).unique().tolist()) <= {0.0, 1.0}
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected)
    got.float().sum().backward()
    expected.float().sum().backward()
    parameters = dict(plain.named_parameters())
    for name, tensor in state.rest.items():
        torch.testing.assert_close(tensor.grad, parameters[name].grad)
    assert all(s.grad is not None and s.grad.dtype == s.dtype for s in state.scores.values())


@clause("X8", "SHOULD")
@few()
@given(context=networks)
def test_channels_last(context: Network) -> None:
    """With model and input in channels_last the output is that of contiguous ones, and keeps the
    memory format as the plain module does.
    """
    model = built(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 0).double()
    x = random_scores((2, 3, 6, 5), 0, torch.float64)
    make, strategy, seed = KINDS[context.kind], context.strategy.value, context.seed

    def state_of(model: nn.Module) -> Any:
        state = pemn.init(model, strategy, seed=seed)
        return state._replace(scores={n: make(s.detach()) for n, s in state.scores.items()})

    density = context.density
    contiguous = pemn.masked_forward(model, *state_of(model), x, density=density)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    state = state_of(model)
    got = pemn.masked_forward(model, *state, x, density=density)
    assert_close(got, contiguous)
    assert got.is_contiguous(memory_format=torch.channels_last)
    masked = pemn.apply_mask(state.weights, state.scores, density=density)["0.weight"]
    assert masked.is_contiguous(memory_format=torch.channels_last)


@clause("X9", "SHOULD")
def test_gradcheck() -> None:
    """Numerical derivatives in double precision agree for inputs, filled weights and rest."""
    model = small(0)
    state = pemn.init(model, pemn.rp(0.1), seed=0)
    x = random_scores((2, 2, 3, 3), 0, torch.float64).requires_grad_()
    parts = {**state.weights, **state.rest}

    def run(x: Tensor, *values: Tensor) -> Tensor:
        tensors = dict(zip(parts, values, strict=True))
        weights = {name: tensors[name] for name in state.weights}
        rest = {name: tensors[name] for name in state.rest}
        buffers = {name: buffer.clone() for name, buffer in state.buffers.items()}
        scores = {name: s.detach() for name, s in state.scores.items()}
        out: Tensor = pemn.masked_forward(model, weights, scores, rest, buffers, x, density=0.5)
        return out

    values = [t.detach().clone().requires_grad_() for t in parts.values()]
    assert torch.autograd.gradcheck(run, [x, *values])


@clause("X10", "SHOULD")
@few()
@given(seed=seeds, strategy=strategies())
def test_meta_device(seed: int, strategy: Drawn) -> None:
    """On the meta device shapes, storage, init and forward need no values and no other device."""
    with torch.device("meta"):
        model = Convolutions()
    assert pemn.maskable_shapes(model) == pemn.maskable_shapes(Convolutions())
    state = pemn.init(model, strategy.value, seed=seed)
    assert {t.device.type for part in state for t in part.values()} == {"meta"}
    out = pemn.masked_forward(model, *state, torch.ones(2, 3, 6, 6, device="meta"), density=0.5)
    assert out.shape == (2, 3)
    assert out.device.type == "meta"
    others = [*state.rest.values(), *state.buffers.values()]
    shapes = pemn.maskable_shapes(model)
    assert pemn.storage(shapes, pemn.mp, others).bits > pemn.storage(shapes, pemn.mp).bits


@clause("X11", "SHOULD")
@pytest.mark.parametrize("no_grad", [True, False])
def test_attention_fast_path(no_grad: bool) -> None:
    """In evaluation attention takes torch's fused path without gradients, the plain one with them;
    the output is that of the plain module on either.
    """
    model = built(CASES["attention"].build, 0).eval()
    inputs = CASES["attention"].inputs(torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(not no_grad):
        needs(model, inputs)
    state = pemn.init(model, pemn.rp(0.1), seed=0)
    plain = copy.deepcopy(model)
    plain.load_state_dict(pemn.materialize(model, state, density=0.5))
    with torch.set_grad_enabled(not no_grad):
        got = pemn.masked_forward(model, *state, inputs, density=0.5)
        expected = plain(inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)
