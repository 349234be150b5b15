"""W: a masked network runs, trains and materialises as the plain module does."""

import copy
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from spec_tests.clauses import clause
from spec_tests.draws import (
    MODES,
    Drawn,
    Network,
    dtypes,
    few,
    networks,
    random_states,
    seeds,
    strategies,
)
from spec_tests.models import (
    CASES,
    Awkward,
    Convolutions,
    Renamed,
    assert_equals_plain,
    built,
    model_in,
    needs,
    network_in,
    plain_of,
    put_into,
    untouched,
)
from spec_tests.subject import pemn


@clause("W1")
@pytest.mark.parametrize("case", sorted(CASES))
def test_maskable_weights(case: str) -> None:
    """Maskable are the weights of all convolutions and linears, the classifier too, and attention's
    input projections; tied weights once; all else is rest; in the order of named_parameters().
    """
    model = built(CASES[case].build, 0)
    for mode in MODES.values():
        with mode():
            shapes = pemn.maskable_shapes(model)
        assert tuple(shapes) == CASES[case].maskable
    parameters = dict(model.named_parameters())
    assert all(shapes[name] == parameters[name].shape for name in shapes)
    state = pemn.init(model, pemn.mp, seed=0)
    assert set(state.weights) == set(state.scores) == set(shapes)
    assert set(state.rest) == set(parameters) - set(shapes)
    assert set(state.buffers) == {name for name, _ in model.named_buffers()}


class Own(nn.Conv2d):
    """A convolution of somebody's own."""


@clause("W9")
@pytest.mark.parametrize("train", [True, False])
def test_maskable_is_what_a_module_is(train: bool) -> None:
    """Convolutions of every kind and padding are maskable, subclasses of the layers too, as is a
    projection that attention uses twice, once; no other weight of two dimensions or more is.
    """
    shared = nn.MultiheadAttention(4, 2, kdim=4, vdim=3)
    shared.k_proj_weight = shared.q_proj_weight
    others = [nn.Embedding(3, 2), nn.LayerNorm((2, 3)), nn.Bilinear(2, 2, 2)]
    names = ["0.weight", "4.q_proj_weight", "4.v_proj_weight", "4.out_proj.weight"]
    model = nn.Sequential(Own(1, 1, 1), *others, shared).train(train)
    assert list(pemn.maskable_shapes(model)) == names
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        for padding in ("zeros", "reflect", "replicate", "circular"):
            assert [*pemn.maskable_shapes(kind(2, 3, 1, padding_mode=padding))] == ["weight"]
    for turned in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        assert [*pemn.maskable_shapes(turned(2, 3, 1))] == ["weight"]


@clause("W2")
@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("train", [True, False])
@few()
@given(context=networks)
def test_equals_the_plain_module(case: str, train: bool, context: Network) -> None:
    """Output and buffers are those of the plain module with the masked weights and the rest, in
    training and in evaluation, whatever the model's own tensors are; a second call's too.
    """
    context = context.of(case)._replace(train=train)
    model, state, inputs = network_in(context, case)
    plain = plain_of(model, state, context.density)
    for _ in range(2):
        assert_equals_plain(model, state, inputs, context.density, plain, context.mode)
    other = 0.5 if context.density != 0.5 else 0.25
    assert_equals_plain(model, state, inputs, other, plain_of(model, state, other), context.mode)


@clause("W3")
@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("train", [True, False])
@few()
@given(context=networks)
def test_modifies_nothing(case: str, train: bool, context: Network) -> None:
    """Model, inputs, weights, scores, rest and, but for dropout, global random state stay as they
    are; in training batch-norm statistics move in the buffers passed, in evaluation not even those.
    """
    context = context.of(case)._replace(train=train)
    model, state, inputs = network_in(context, case)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    before: list[Any] = copy.deepcopy([inputs, *map(dict, state)])
    random_state, passed = torch.get_rng_state(), dict(state.buffers)
    gradients = [p.requires_grad for p in model.parameters()]
    with untouched(model):
        for _ in range(2):
            pemn.masked_forward(model, *state, inputs, density=context.density).sum().backward()
    now: list[Any] = [inputs, *map(dict, state)]
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.testing.assert_close(now[:-1], before[:-1], rtol=0, atol=0)
    moved = {n for n, b in state.buffers.items() if not torch.equal(b, before[-1][n])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert moved == {n for n in state.buffers if train and n.endswith(statistics)}
    assert all(buffer is passed[name] for name, buffer in state.buffers.items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == gradients


@clause("W4")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks, dtype=dtypes)
def test_init_is_its_parts(case: str, context: Network, dtype: torch.dtype) -> None:
    """init(seed) equals make_prototype, fill_weights and init_scores with that seed; rest and
    buffers are copies of the model's; all are leaves in the dtype of their parameter.
    """
    context = context.of(case)
    model = model_in(context, case)[0].to(dtype)
    # The tensors of inference mode are no leaves to be trained.
    mode = MODES["autocast" if context.mode == "inference_mode" else context.mode]
    strategy, seed = context.strategy.value, context.seed
    with mode():
        shapes = pemn.maskable_shapes(model)
        state = pemn.init(model, strategy, seed=seed)
    assert tuple(shapes) == CASES[case].maskable
    prototype = pemn.make_prototype(shapes, strategy, seed=seed)
    weights = pemn.fill_weights(prototype, shapes, strategy)
    scores = pemn.init_scores(shapes, seed=seed)
    for name, parameter in model.named_parameters():
        parts = (state.weights, state.scores, state.rest)
        tensors = [part[name] for part in parts if name in part]
        assert all(t.is_leaf and t.dtype == parameter.dtype for t in tensors)
        if name in shapes:
            assert torch.equal(state.weights[name], weights[name].to(parameter.dtype))
            assert torch.equal(state.scores[name], scores[name].to(parameter.dtype))
            assert state.scores[name].requires_grad
            assert not state.weights[name].requires_grad
        else:
            assert torch.equal(state.rest[name], parameter)
            assert state.rest[name].requires_grad == parameter.requires_grad
            assert state.rest[name].data_ptr() != parameter.data_ptr()
    for name, buffer in model.named_buffers():
        assert torch.equal(state.buffers[name], buffer)
        assert state.buffers[name].data_ptr() != buffer.data_ptr()


def weights_trained(state: Any) -> Any:
    """The state with weights that want a gradient, and scores that do not."""
    return state._replace(
        weights={n: w.requires_grad_() for n, w in state.weights.items()},
        scores={n: s.detach() for n, s in state.scores.items()},
    )


@clause("W5")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks, dtype=dtypes)
def test_materialize(case: str, context: Network, dtype: torch.dtype) -> None:
    """The materialised state_dict is that of the plain module with the masked weights and the rest:
    keys, tied names too, values and dtypes; it is free of the state's memory and of gradients.
    """
    context = context.of(case).finite()._replace(dtype=dtype)
    model, _ = model_in(context, case)
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    state = weights_trained(state) if context.frozen else state
    expected = dict(plain_of(model, state, context.density).state_dict())
    for mode in (MODES[context.mode], MODES["autocast"]):
        with mode():
            dense = pemn.materialize(model, state, density=context.density)
        assert not any(t.requires_grad for t in dense.values())
        torch.testing.assert_close(dense, expected, rtol=0, atol=0)
    for tensors in state:
        for tensor in tensors.values():
            tensor.detach().zero_()
    torch.testing.assert_close(dense, expected, rtol=0, atol=0)


@clause("W6")
def test_arguments_reach_the_model() -> None:
    """Positional and keyword arguments, of whatever name but density, are those of the model's
    forward; so is what it returns, once its hooks have seen it, and its gradient.
    """

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor, y: Tensor, **by: float) -> dict[str, Any]:
            return {"out": self.linear(x + y) * by.get("weights", 1.0), "by": by}

    model = built(Scaled, 0)
    model.register_forward_hook(lambda part, given, output: {**output, "out": output["out"] + 1})
    model.register_forward_pre_hook(lambda part, given: (given[0], 2 * given[1]))
    state = pemn.init(model, pemn.mp, seed=0)
    x, y = torch.ones(1, 3), torch.tensor([[1.0, 2.0, 3.0]])
    names = ("weights", "scores", "rest", "buffers", "model", "state", "inputs", "kwargs", "strict")
    by = {name: float(i) for i, name in enumerate(names, start=2)}
    got = pemn.masked_forward(model, *state, x, y, density=0.5, **by)
    plain = plain_of(model, state, 0.5)
    expected = plain(x, y, **by)
    torch.testing.assert_close(got, expected)
    got["out"].sum().backward()
    expected["out"].sum().backward()
    scores, gradient = state.scores["linear.weight"], plain.get_parameter("linear.weight").grad
    straight = gradient * state.weights["linear.weight"] * scores.detach().sign()
    torch.testing.assert_close(scores.grad, straight)


@clause("W7", "SHOULD")
@few()
@given(strategy=strategies(), seed=seeds)
def test_memory_format_and_frozen_rest(strategy: Drawn, seed: int) -> None:
    """init keeps a model's memory format, and frozen what was frozen of the rest; the scores are
    trained, even those of a frozen weight.
    """
    model = built(Convolutions, 0)
    model.stem.to(memory_format=torch.channels_last)
    model.norm.requires_grad_(False)
    model.stem.requires_grad_(False)
    state = pemn.init(model, strategy.value, seed=seed)
    assert state.scores["stem.weight"].requires_grad
    for part in (state.weights, state.scores):
        assert part["stem.weight"].is_contiguous(memory_format=torch.channels_last)
        assert not part["stem.weight"].is_contiguous()
    assert not state.rest["norm.weight"].requires_grad
    assert state.rest["norm_last.weight"].requires_grad


@clause("W8", "SHOULD")
def test_materialize_goes_by_name() -> None:
    """A model whose state_dict is made of copies, or has other names, as hooks and wrappers do, or
    has extra state, is materialised too, tied tensors under each name, the extra state as it is.
    """
    model = built(Awkward, 0)
    state = pemn.init(model, pemn.mp, seed=0)
    state.buffers["norm.running_mean"] += 1  # not the model's own any more
    dense = pemn.materialize(model, state, density=0.5)
    masked = pemn.apply_mask(state.weights, state.scores, density=0.5)
    expected = {**masked, **state.rest, **state.buffers}
    expected |= {"again.weight": masked["in/out.weight"]}
    expected |= {"norm.twin": state.buffers["norm.running_mean"]}
    assert list(dense) == list(model.state_dict())
    assert all(torch.equal(dense[name], expected[name]) for name in expected)
    model.load_state_dict(dense)
    for copied in (False, True):
        model = built(lambda: Renamed(copied), 0)  # noqa: B023
        state = pemn.init(model, pemn.mp, seed=0)
        dense = pemn.materialize(model, state, density=0.5)
        masked = pemn.apply_mask(state.weights, state.scores, density=0.5)
        assert list(dense) == ["weight", "bias"]
        assert torch.equal(dense["weight"], masked["wrapped.weight"])


@clause("W10")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_init_and_materialize_modify_nothing(case: str, context: Network) -> None:
    """init and materialize leave model, state and the global random states as they are."""
    context = context.of(case).finite()
    model, _ = model_in(context, case)
    frozen = [p.requires_grad for p in model.parameters()]
    with untouched(model), torch.random.fork_rng(devices=[]):
        torch.rand(1)  # so that it is not as any seed has it
        random = random_states()
        state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
        state = weights_trained(state) if context.frozen else state
        parts = copy.deepcopy([*map(dict, state)])
        with MODES[context.mode]():
            for _ in range(2):
                pemn.materialize(model, state, density=context.density)
        assert random_states() == random
    torch.testing.assert_close([*map(dict, state)], parts, rtol=0, atol=0)
    assert [p.requires_grad for p in model.parameters()] == frozen


def repeated() -> nn.Module:
    """A linear layer that stands twice in a Sequential."""
    linear = nn.Linear(4, 4)
    return nn.Sequential(linear, nn.ReLU(), linear)


def repeated_norm() -> nn.Module:
    """A batch-norm that stands twice."""
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(nn.Linear(4, 4), norm, norm)


def tied() -> nn.Module:
    """One weight in two linears, the one buffer of two batch-norms."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[2].weight = model[0].weight
    model[3].running_mean = model[1].running_mean
    return model


def aliased(names: int) -> nn.Module:
    """A block under several names, of which the last is used last."""

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
            for number in range(names):
                self.add_module(f"block{number}", block)

        def forward(self, x: Tensor) -> Any:
            for block in [*self._modules.values()]:
                x = block(x) if block else x
            return x

    return Aliased()


class Late(nn.Module):
    """A buffer that is None until forward sets it."""

    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", None)

    def forward(self, x: Tensor) -> Any:
        if self.scale is None:
            self.scale = torch.full((4,), 2.0, dtype=x.dtype)
        return self.linear(x) * self.scale


HELD = {
    "a module twice in a Sequential": repeated,
    "batch-norm twice": repeated_norm,
    "tied tensors": tied,
    "a block with two names": lambda: aliased(2),
    "a block with three names": lambda: aliased(3),
    "a buffer that forward sets": Late,
}


@clause("W11")
@pytest.mark.parametrize("shape", HELD)
@pytest.mark.parametrize("train", [True, False])
@few()
@given(context=networks)
def test_model_holds_the_same_objects(shape: str, train: bool, context: Network) -> None:
    """Every attribute of the model holds the same tensor afterwards, also where a module or tensor
    has several names, forward sets a buffer that was None, or forward raises; a second call works.
    """
    context, density = context.of(shape).finite(), context.density
    model = built(HELD[shape], 0).double().train(train)
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    inputs = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    with untouched(model):
        for _ in range(2):
            pemn.masked_forward(model, *state, inputs, density=density).sum().backward()
        with pytest.raises(RuntimeError):
            pemn.masked_forward(model, *state, inputs[:, 1:], density=density)
        pemn.materialize(model, state, density=density)


@clause("W12", "SHOULD")
@pytest.mark.parametrize("case", sorted(c for c in CASES if len(CASES[c].maskable) > 1))
def test_layers_left_out(case: str) -> None:
    """init masks the shapes that it is given, a part of the model's, filled as alone in it; all
    other parameters are rest, which runs, trains and is materialised; other shapes are refused.
    """
    model, inputs = (
        built(CASES[case].build, 0),
        CASES[case].inputs(torch.Generator().manual_seed(0)),
    )
    needs(model, inputs)
    shapes = pemn.maskable_shapes(model)
    largest = max(shapes, key=lambda name: shapes[name].numel())
    some = {name: shapes[name] for name in reversed(shapes) if name != largest}
    state = pemn.init(model, pemn.rp(0.1), seed=3, shapes=some)
    assert list(state.weights) == list(state.scores) == [name for name in shapes if name in some]
    assert set(state.rest) == {name for name, _ in model.named_parameters()} - set(some)
    assert torch.equal(state.rest[largest], model.get_parameter(largest))
    in_order = {name: shapes[name] for name in shapes if name in some}
    prototype = pemn.make_prototype(in_order, pemn.rp(0.1), seed=3)
    filled = pemn.fill_weights(prototype, in_order, pemn.rp(0.1))
    assert all(torch.equal(state.weights[name], filled[name]) for name in some)
    assert_equals_plain(model, state, inputs, 0.5, plain_of(model, state, 0.5))
    pemn.masked_forward(model, *state, inputs, density=0.5).square().sum().backward()
    assert state.rest[largest].grad is not None
    for wrong in ({**some, "other.weight": (2, 2)}, {**some, largest: (1, 1)}):
        with pytest.raises(ValueError, match=re.escape([*wrong][-1])):
            pemn.init(model, pemn.mp, seed=0, shapes=wrong)
