"""X: the same under every transform of torch: vmap, func, compile, autocast, memory formats."""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, jvp, vmap

from spec_tests.clauses import clause
from spec_tests.draws import (
    KINDS,
    LARGE,
    MODES,
    Network,
    Shapes,
    dtypes,
    few,
    fractions,
    kinds,
    layers,
    networks,
    random_scores,
    seeds,
    special,
    tiny_layers,
    under,
)
from spec_tests.models import (
    CASES,
    Called,
    Twice,
    assert_alike,
    assert_equals_plain,
    assert_straight_through,
    built,
    model_in,
    needs,
    oracle_mask,
    plain_of,
    put_into,
    same_draws,
    sign,
    untouched,
)
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


# Those that vmap can take: it refuses dropout and what looks at values.
TAKEN = ("bare", "deep", "normed", "single")


def loss_of(
    model: nn.Module, state: Any, x: Tensor, density: float = 0.5
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Scores -> a loss of the masked network."""

    def loss(scores: dict[str, Tensor]) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in state.buffers.items()}
        out: Tensor = pemn.masked_forward(
            model, state.weights, scores, state.rest, buffers, x, density=density
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
@given(
    scores=layers(of={**KINDS, "special": special}),
    seed=seeds,
    density=fractions,
    lying=st.sampled_from([0, -1]),
)
@example(random_scores(LARGE[0], 0), 0, 0.5, 0)
def test_vmap_over_masks(scores: Tensor, seed: int, density: float, lying: int) -> None:
    """Masks of scores stacked under vmap, nested too, equal those made one by one; masked weights
    and gradients do, too.
    """
    mask = partial(pemn.score_mask, density=density)
    rows = [scores, scores.flip(0)]
    stacked = torch.stack(rows, lying).movedim(lying, 0)
    one_by_one = torch.stack([mask(row) for row in rows])
    assert torch.equal(vmap(mask)(stacked), one_by_one)
    if scores.numel() < 100:
        nested = vmap(vmap(mask))(torch.stack([stacked, stacked.flip(0)]))
        assert torch.equal(nested, torch.stack([one_by_one, one_by_one.flip(0)]))
    weight, upstream = (random_scores(scores.shape, seed ^ i, scores.dtype) for i in (1, 2))
    weights = {"first": weight.flip(-1), "layer": weight}
    first = random_scores(scores.shape, seed ^ 3, scores.dtype)

    def apply(layer: Tensor) -> Any:
        masked = pemn.apply_mask(weights, {"first": first, "layer": layer}, density=density)
        return torch.stack([masked["layer"], masked["first"]])

    assert torch.equal(vmap(apply)(stacked), torch.stack([apply(row) for row in rows]))
    expected = torch.stack([upstream * weight * sign(row) for row in rows])
    gradients = vmap(grad(lambda layer: (apply(layer)[0] * upstream).sum()))(stacked)
    assert torch.equal(gradients, expected)
    stacked = stacked.detach().requires_grad_()
    vmap(apply)(stacked)[:, 0].backward(upstream.expand(2, *upstream.shape))
    assert stacked.grad is not None
    assert torch.equal(stacked.grad, expected)


@clause("X2", "SHOULD")
@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("train", [True, False])
@few()
@given(context=networks)
def test_vmap_over_networks(case: str, train: bool, context: Network) -> None:
    """Networks with stacked scores and buffers run under vmap as they do one by one, and move their
    batch-norm statistics alike.
    """
    context = context.of(case)._replace(train=train)
    part, x = model_in(context, case)
    model = (Called if context.seed % 2 else lambda part: Twice(Called(part)))(part).train(train)
    strategy, density = context.strategy.value, context.density
    states = [
        put_into(context, pemn.init(model, strategy, seed=context.seed ^ i)) for i in range(3)
    ]
    scores = {n: torch.stack([s.scores[n].detach() for s in states]) for n in states[0].scores}
    buffers = {n: torch.stack([s.buffers[n] for s in states]) for n in states[0].buffers}

    def run(scores: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Any = (x, x)) -> Any:
        first = states[0]
        return pemn.masked_forward(
            model, first.weights, scores, first.rest, buffers, *inputs, density=density, weights=3.0
        )["out"]

    with MODES[context.mode](), untouched(model):
        one_by_one = torch.stack([run(s.scores, s.buffers) for s in states])
        together = vmap(run)(scores, buffers)
        assert_alike(model, together, one_by_one)
        with pytest.raises(IndexError):
            vmap(lambda s, b: run(s, b, ()))(scores, buffers)
    leaves = [t for t in (*states[0].rest.values(), *states[0].weights.values()) if t.requires_grad]
    # Not in training, where a norm cancels a bias, nor where rounding adds up over many layers.
    exact = all(leaf.dtype == torch.float64 for leaf in leaves)
    if leaves and one_by_one.requires_grad and exact and not train:
        got, expected = (
            torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
            for out in (together, one_by_one)
        )
        assert_alike(model, dict(enumerate(got)), dict(enumerate(expected)))
    for name, stacked in buffers.items():
        assert_alike(model, stacked, torch.stack([s.buffers[name] for s in states]))


@clause("X3", "SHOULD")
@pytest.mark.parametrize("case", TAKEN)
@few()
@given(context=networks)
def test_func_grad(case: str, context: Network) -> None:
    """torch.func.grad and jacrev, alone and under vmap, give the gradients of backward, and in
    every layer one that is not zero.
    """
    kinds = ("large", "tied", "positive", "negative", "normal")
    # In training the statistics would have to be stacked, as in X2.
    context = context.of(case)._replace(train=False, through=False, kinds=kinds)
    model, x = model_in(context, case)
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    loss = loss_of(model, state, x, context.density)
    loss(state.scores).backward()
    expected = {name: s.grad for name, s in state.scores.items()}
    scores = {name: s.detach() for name, s in state.scores.items()}
    if context.density >= 0.5:
        assert_some_everywhere(expected)
    assert_alike(model, grad(loss)(scores), expected)
    assert_alike(model, jacrev(loss)(scores), expected)
    stacked = {name: torch.stack([s, -s]) for name, s in scores.items()}
    both = vmap(grad(loss))(stacked)
    assert_alike(model, {name: g[0] for name, g in both.items()}, expected)
    assert_alike(model, {n: g[1] for n, g in both.items()}, {n: -g for n, g in expected.items()})


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
    """The masked loss compiled with fullgraph equals eager, and so do its gradients by backward, by
    func.grad compiled and, in evaluation, by vmap of func.grad compiled. They are not zero.
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
@given(scores=layers(), seed=seeds, density=fractions)
@under(MODES)
def test_forward_mode_and_second_derivatives(scores: Tensor, seed: int, density: float) -> None:
    """jvp gives weight * sign(score) * tangent; a second derivative is that of the loss in the
    masked weights, times the squares of the weights.
    """
    weight, tangent = (random_scores(scores.shape, seed ^ i, scores.dtype) for i in (1, 2))

    def masked(scores: Tensor) -> Tensor:
        out: Tensor = pemn.apply_mask({"w": weight}, {"w": scores}, density=density)["w"]
        return out

    value, derivative = jvp(masked, (scores,), (tangent,))[:2]
    assert torch.equal(value, masked(scores))
    assert torch.equal(derivative, weight * (sign(scores) * tangent))
    if scores.numel() < 30 and scores.dtype == torch.float64:
        second = hessian(lambda s: (masked(s) ** 3).sum())(scores).reshape(2 * [scores.numel()])
        curvature = 6 * weight * oracle_mask(scores, density) * (weight * sign(scores)).square()
        assert_close(second, torch.diag(curvature.flatten()))


@clause("X7", "SHOULD")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_bfloat16_autocast(case: str, context: Network) -> None:
    """Under bfloat16 autocast output and gradients are those of the plain module under the same,
    and masks stay exact.
    """
    context = context.of(case)
    model, inputs = model_in(context, case)
    with MODES["autocast"]():
        needs(model, inputs)
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    for density in (1 - context.density / 2, context.density):
        plain = plain_of(model, state, density).requires_grad_()
        assert_equals_plain(model, state, inputs, density, plain, "autocast")
    with same_draws("autocast"):
        got = pemn.masked_forward(model, *state, inputs, density=density)
    with same_draws("autocast"):
        expected = plain(inputs)
        for scores in state.scores.values():
            mask = pemn.score_mask(scores, density=density)
            assert torch.equal(mask, oracle_mask(scores, density))
    assert got.dtype == expected.dtype
    got.float().square().mean().backward()
    expected.float().square().mean().backward()
    assert_straight_through(model, state, plain, "autocast")


@clause("X8", "SHOULD")
@given(
    seed=seeds,
    density=fractions,
    dtype=dtypes,
    of=dtypes,
    kind=kinds,
    size=st.sampled_from([(2, 2, 2, 1), (4, 3, 2, 2), (3, 3, 3, 3, 1), (25, 17, 5, 5)]),
    beside=tiny_layers(),
)
@under(MODES)
def test_channels_last(
    seed: int,
    density: float,
    dtype: torch.dtype,
    of: torch.dtype,
    kind: str,
    size: tuple[int, ...],
    beside: Shapes,
) -> None:
    """With model and input in channels_last the output is that of contiguous ones, and keeps the
    memory format as the plain module does; masked weights keep it, stacked under vmap, too.
    """
    memory_format = torch.channels_last if len(size) == 4 else torch.channels_last_3d
    weights, scores = (
        {n: random_scores(s, seed ^ i, d) for n, s in {**beside, "w": torch.Size(size)}.items()}
        for i, d in enumerate((dtype, of))
    )
    scores["w"] = KINDS[kind](scores["w"])
    contiguous = pemn.apply_mask(weights, scores, density=density)["w"]
    weights["w"] = weights["w"].contiguous(memory_format=memory_format)
    scores["w"] = scores["w"].contiguous(memory_format=memory_format)

    def apply(weight: Tensor, layer: Tensor) -> Any:
        two = {**weights, "w": weight}, {**scores, "w": layer}
        return pemn.apply_mask(*two, density=density)["w"]

    if torch.is_grad_enabled():
        weights["w"].requires_grad_(seed % 3 > 0)
        scores["w"].requires_grad_(seed % 3 > 1)
    masked = apply(weights["w"], scores["w"])
    assert torch.equal(masked, contiguous)
    assert masked.is_contiguous(memory_format=memory_format)
    rows = [weights["w"][None].expand(2, *size).clone(), scores["w"][None].expand(2, *size).clone()]
    assert all(row[0].is_contiguous(memory_format=memory_format) for row in rows)
    assert vmap(apply)(*rows)[1].is_contiguous(memory_format=memory_format)


@clause("X9", "SHOULD")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_weights_are_differentiable(case: str, context: Network) -> None:
    """A network is differentiable in inputs, filled weights and rest, too: the gradients are those
    of the plain module, in small networks in double precision also those of gradcheck.
    """
    context = context.of(case)._replace(through=True)
    model, inputs = model_in(context, case)
    needs(model, inputs)
    second = [torch.zeros_like(inputs)] if context.seed % 3 else []
    if second:
        model = Called(model).train(context.train)
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    for scores in state.scores.values():
        scores.requires_grad_(context.trained)
    plain = plain_of(model, state, context.density).requires_grad_()
    both = []
    for run in (partial(pemn.masked_forward, model, *state, density=context.density), plain):
        x = inputs.clone().requires_grad_(inputs.is_floating_point())
        with same_draws("float64 by default" if context.seed % 2 else "as usual"):
            out = run(x, *second)
            (out["out"] if second else out).square().mean().backward()
        both.append(x.grad)
    assert_alike(model, both[0], both[1])
    assert_straight_through(model, state, plain)
    if case == "bare":
        assert torch.autograd.gradcheck(*in_double(context._replace(density=0.5), case))


def in_double(context: Network, case: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The masked network of inputs, weights and rest, and values for these."""
    model, x = model_in(context._replace(dtype=torch.float64), case)
    state = pemn.init(model, context.strategy.value, seed=context.seed)
    parts = {**state.weights, **state.rest}

    def run(x: Tensor, *values: Tensor) -> Tensor:
        tensors = dict(zip(parts, values, strict=True))
        weights = {name: tensors[name] for name in state.weights}
        rest = {name: tensors[name] for name in state.rest}
        buffers = {name: buffer.clone() for name, buffer in state.buffers.items()}
        scores = {name: s.detach() for name, s in state.scores.items()}
        out: Tensor = pemn.masked_forward(
            model, weights, scores, rest, buffers, x, density=context.density
        )
        return out

    return run, [t.detach().clone().requires_grad_() for t in (x, *parts.values())]


@clause("X10", "SHOULD")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_meta_device(case: str, context: Network) -> None:
    """On the meta device, shapes, storage, init and forward need no values and no other device."""
    context = context.of(case)
    real, at_hand = model_in(context, case)
    model, inputs = model_in(context, case, "meta")
    assert pemn.maskable_shapes(model) == pemn.maskable_shapes(real)
    with MODES[context.mode_of_init()]():
        state = pemn.init(model, context.strategy.value, seed=context.seed)
    assert {t.device.type for part in state for t in part.values()} == {"meta"}
    with MODES[context.mode]():
        out = pemn.masked_forward(model, *state, inputs, density=context.density)
    assert out.shape == real(at_hand).shape
    assert out.device.type == "meta"
    others = [*state.rest.values(), *state.buffers.values()]
    shapes = pemn.maskable_shapes(model)
    assert bool(others) == (
        pemn.storage(shapes, pemn.mp, others).bits > pemn.storage(shapes, pemn.mp).bits
    )


@clause("X11", "SHOULD")
@pytest.mark.parametrize("no_grad", [True, False])
@few()
@given(context=networks)
def test_attention_fast_path(no_grad: bool, context: Network) -> None:
    """In evaluation attention takes torch's fused path without gradients and the plain one with
    them. On either the output is that of the plain module.
    """
    context = context.of(f"without gradients: {no_grad}")._replace(train=False)
    model, inputs = model_in(context, "attention")
    with torch.set_grad_enabled(not no_grad):
        needs(model, inputs)
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    plain, mode = plain_of(model, state, context.density), "no_grad" if no_grad else "as usual"
    assert_equals_plain(model, state, inputs, context.density, plain, mode)
