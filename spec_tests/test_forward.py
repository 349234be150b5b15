"""W: a masked network runs, trains and materialises as the plain module does."""

import copy
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from spec_tests.clauses import clause
from spec_tests.draws import MODES, Network, dtypes, few, networks, random_states
from spec_tests.models import (
    CASES,
    Awkward,
    Called,
    Renamed,
    Twice,
    assert_alike,
    assert_equals_plain,
    assert_straight_through,
    built,
    close_for,
    model_in,
    needs,
    network_in,
    plain_of,
    put_into,
    same_draws,
    untouched,
    with_copies,
    with_second_names,
)
from spec_tests.subject import pemn


@clause("W1")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_maskable_weights(case: str, context: Network) -> None:
    """The weights of all convolutions and linears, the classifier too, and attention's input
    projections are maskable, tied weights once. All else is rest. Both are in the order of
    named_parameters().
    """
    context, expected = context.of(case), CASES[case].maskable
    model, _ = model_in(context, case)
    attention, _ = model_in(context, "attention")
    beside = nn.ModuleList([model, attention])
    of_both = [f"0.{n}" for n in expected] + [f"1.{n}" for n in CASES["attention"].maskable]
    for mode in MODES.values():
        with mode():
            shapes = pemn.maskable_shapes(model)
            assert list(pemn.maskable_shapes(beside)) == of_both
        assert tuple(shapes) == expected
    parameters = dict(model.named_parameters())
    assert all(shapes[name] == parameters[name].shape for name in shapes)
    state = pemn.init(model, context.strategy.value, seed=context.seed)
    assert set(state.weights) == set(state.scores) == set(shapes)
    assert set(state.rest) == set(parameters) - set(shapes)
    assert set(state.buffers) == {name for name, _ in model.named_buffers()}
    for mode in MODES.values():
        with mode():
            assert tuple(pemn.maskable_shapes(with_second_names(model))) == expected


class Own(nn.Conv2d):
    """A convolution of somebody's own."""


@clause("W9")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_maskable_is_what_a_module_is(case: str, context: Network) -> None:
    """Convolutions of every kind and padding are maskable, as are subclasses of the layers, and,
    once, a projection that attention uses twice. No other weight of two dimensions or more is.
    """
    context = context.of(case)
    model, _ = model_in(context, case)
    shared = nn.MultiheadAttention(4, 2, kdim=4, vdim=3)
    shared.k_proj_weight = shared.q_proj_weight
    others = [nn.Embedding(3, 2), nn.LayerNorm((2, 3)), nn.Bilinear(2, 2, 2)]
    alone = nn.Sequential(Own(1, 1, 1), *others).train(context.train)
    beside = nn.ModuleList([alone, shared, model]).train(context.train)
    names = ["0.0.weight", "1.q_proj_weight", "1.v_proj_weight", "1.out_proj.weight"]
    for mode in MODES.values():
        with mode():
            assert list(pemn.maskable_shapes(alone)) == ["0.weight"]
            assert len(pemn.maskable_shapes(shared)) == 3
            found = list(pemn.maskable_shapes(beside))
            assert found == names + [f"2.{name}" for name in CASES[case].maskable]
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
    """Output and buffers equal those of the plain module with the masked weights and the rest, in
    training and in evaluation, whatever the model's own tensors are, and in a second call.
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
    """Model, inputs, weights, scores and rest stay as they are, and, but for dropout, so does the
    global random state. In training, batch-norm statistics move in the buffers passed; in
    evaluation not even those.
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
            with MODES[context.mode]():
                out = pemn.masked_forward(model, *state, inputs, density=context.density)
            if out.requires_grad:
                out.sum().backward()
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
    strategy, seed = context.strategy.value, context.seed
    with MODES[context.mode_of_init()]():
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


def assert_materialized(context: Network, model: nn.Module, state: Any) -> Any:
    """The state_dict is that of the plain module, and free of gradients. Returns both."""
    expected = dict(plain_of(model, state, context.density).state_dict())
    for mode in (MODES[context.mode], MODES["autocast"]):
        with mode():
            dense = pemn.materialize(model, state, density=context.density)
        assert not any(isinstance(t, Tensor) and t.requires_grad for t in dense.values())
        assert list(dense) == list(expected)
        torch.testing.assert_close(dense, expected, rtol=0, atol=0)
    return dense, expected


@clause("W5")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks, dtype=dtypes)
def test_materialize(case: str, context: Network, dtype: torch.dtype) -> None:
    """The materialised state_dict is that of the plain module with the masked weights and the rest:
    keys, tied names too, values and dtypes; it is free of the state's memory and of gradients.
    """
    context = context.of(case).finite()._replace(dtype=dtype)
    model = with_second_names(model_in(context, case)[0])
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    dense, expected = assert_materialized(context, model, state)
    for tensors in state:
        for tensor in tensors.values():
            tensor.detach().zero_()
    torch.testing.assert_close(dense, expected, rtol=0, atol=0)


@clause("W6")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks)
def test_arguments_reach_the_model(case: str, context: Network) -> None:
    """Positional and keyword arguments, of whatever name but density, reach the model's forward.
    What it returns, once its hooks have seen it, is returned, with its gradient.
    """
    context = context.of(case)
    part, x = model_in(context, case)
    for mode in ("as usual", "autocast"):
        with MODES[mode]():
            needs(part, x)
    model = Called(part).train(context.train)
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    y = torch.full_like(x, 0.5) if x.is_floating_point() else torch.zeros_like(x)
    names = ("weights", "scores", "rest", "buffers", "model", "state", "inputs", "kwargs", "strict")
    by = {name: float(i) for i, name in enumerate(names, start=2)}
    plain = plain_of(model, state, context.density).requires_grad_()
    for mode in ("as usual", "autocast", context.mode):
        with same_draws(mode):
            got = pemn.masked_forward(model, *state, x, y, density=context.density, **by)
        with same_draws(mode):
            expected = plain(x, y, **by)
        torch.testing.assert_close(got, expected, **close_for(model, mode))
        assert_alike(model, dict(state.buffers), dict(plain.named_buffers()), mode)
        if mode == "as usual":
            got["out"].square().mean().backward()
            expected["out"].square().mean().backward()
            assert_straight_through(model, state, plain)


@clause("W7", "SHOULD")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks, dtype=dtypes)
def test_memory_format_and_frozen_rest(case: str, context: Network, dtype: torch.dtype) -> None:
    """init keeps a model's memory format, and what is frozen in the rest stays frozen. The scores
    are trained, even those of a frozen weight.
    """
    context = context.of(case)._replace(dtype=dtype)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    model, _ = model_in(context, case)
    for own in model.parameters():
        if own.ndim in formats:
            own.data = own.data.contiguous(memory_format=formats[own.ndim])
    with MODES[context.mode_of_init()]():
        state = pemn.init(model, context.strategy.value, seed=context.seed)
    for name, scores in state.scores.items():
        assert scores.requires_grad
        if scores.ndim in formats:
            for tensor in (scores, state.weights[name]):
                assert tensor.is_contiguous(memory_format=formats[scores.ndim])
    for name, tensor in state.rest.items():
        assert tensor.requires_grad == model.get_parameter(name).requires_grad


HOOKED = {
    "awkward": Awkward,
    "other names": lambda: Renamed(copied=False),
    "other names for copies": lambda: Renamed(copied=True),
}


@clause("W8", "SHOULD")
@pytest.mark.parametrize("case", sorted([*CASES, *HOOKED]))
@few()
@given(context=networks, dtype=dtypes)
def test_materialize_goes_by_name(case: str, context: Network, dtype: torch.dtype) -> None:
    """A model is materialised even if its state_dict is made of copies or has other names, as with
    hooks and wrappers, or has extra state: tied tensors under each name, the extra state as it is.
    """
    context = context.of(case).finite()._replace(dtype=dtype)
    model = (
        built(HOOKED[case], 0)
        if case in HOOKED
        else with_copies(with_second_names(model_in(context, case)[0]))
    )
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    dense, _ = assert_materialized(context, model, state)
    if not case.startswith("other names"):
        model.load_state_dict(dense)


@clause("W10")
@pytest.mark.parametrize("case", sorted(CASES))
@few()
@given(context=networks, dtype=dtypes)
def test_init_and_materialize_modify_nothing(
    case: str, context: Network, dtype: torch.dtype
) -> None:
    """init and materialize leave model, state and the global random states as they are."""
    context = context.of(case).finite()._replace(dtype=dtype)
    model, _ = model_in(context, case)
    frozen = [p.requires_grad for p in model.parameters()]
    with untouched(model), torch.random.fork_rng(devices=[]):
        torch.rand(1)  # so that it is not as any seed has it
        random = random_states()
        with MODES[context.mode_of_init()]():
            state = pemn.init(model, context.strategy.value, seed=context.seed)
        assert random_states() == random
        state = put_into(context, state)
        parts = copy.deepcopy([*map(dict, state)])
        for mode in (MODES[context.mode], MODES["autocast"]):
            with mode():
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
@pytest.mark.parametrize("case", sorted([*HELD, *CASES]))
@few()
@given(context=networks)
def test_model_holds_the_same_objects(case: str, context: Network) -> None:
    """After a call every attribute of the model holds the same tensor as before, even if a module
    or tensor has several names, forward sets a buffer that was None, or forward raises. A second
    call works.
    """
    context = context.of(case)
    density = context.density
    if case in HELD:
        model = built(HELD[case], 0).double().train(context.train)
        inputs = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
        modes = (context.mode, "autocast")
    else:
        model, inputs = model_in(context, case)
        needs(model, inputs)
        model = Twice(model).train(context.train)
        modes = (context.mode, "as usual")
    state = put_into(context, pemn.init(model, context.strategy.value, seed=context.seed))
    with untouched(model):
        for mode in map(MODES.__getitem__, modes):
            with mode():
                out = pemn.masked_forward(model, *state, inputs, density=density)
            if out.requires_grad:
                out.sum().backward()
            with mode(), pytest.raises(TypeError):
                pemn.masked_forward(model, *state, inputs, inputs, density=density)
        finite = state._replace(scores={n: s.detach().sign() for n, s in state.scores.items()})
        pemn.materialize(model, finite, density=density)


@clause("W12", "SHOULD")
@pytest.mark.parametrize("case", sorted(c for c in CASES if len(CASES[c].maskable) > 1))
@few()
@given(context=networks)
def test_layers_left_out(case: str, context: Network) -> None:
    """init masks the shapes that it is given, a subset of the model's, filled as if they were
    alone. All other parameters are rest, which runs, trains and is materialised. Other shapes are
    refused.
    """
    context = context.of(case)
    model, inputs = model_in(context, case)
    needs(model, inputs)
    shapes, seed, strategy = pemn.maskable_shapes(model), context.seed, context.strategy.value
    largest = max(shapes, key=lambda name: shapes[name].numel())
    # What the prototype of the others depends on, if anything does.
    out = largest if context.strategy.name in ("mp", "rp") else next(iter(shapes))
    some = {name: shapes[name] for name in reversed(shapes) if name != out}
    with MODES[context.mode_of_init()]():
        state = pemn.init(model, strategy, seed=seed, shapes=some)
    assert list(state.weights) == list(state.scores) == [name for name in shapes if name in some]
    assert set(state.rest) == {name for name, _ in model.named_parameters()} - set(some)
    assert torch.equal(state.rest[out], model.get_parameter(out))
    in_order = {name: shapes[name] for name in shapes if name in some}
    filled = pemn.fill_weights(
        pemn.make_prototype(in_order, strategy, seed=seed), in_order, strategy
    )
    assert all(torch.equal(w, filled[n].to(w.dtype)) for n, w in state.weights.items())
    state = put_into(context, state)
    plain = plain_of(model, state, context.density)
    assert_equals_plain(model, state, inputs, context.density, plain, context.mode)
    pemn.masked_forward(model, *state, inputs, density=0.5).square().sum().backward()
    assert (state.rest[out].grad is not None) == state.rest[out].requires_grad
    for wrong in ({**some, "other.weight": (2, 2)}, {**some, out: (1, 1)}):
        with pytest.raises(ValueError, match=re.escape([*wrong][-1])):
            pemn.init(model, strategy, seed=seed, shapes=wrong)
