"""W: mistakes in what is masked, in running it and in the way back to a dense model."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from spec_tests.gallery.mistakes import Rebound, mistake, rebinds


@mistake("W1", "classifier left unmasked")
def maskable_shapes(right: Any, model: Any) -> Any:
    return dict([*right.maskable_shapes(model).items()][:-1])


@mistake("W1", "attention's input projections left unmasked")
def maskable_shapes(right: Any, model: Any) -> Any:
    return {
        name: shape for name, shape in right.maskable_shapes(model).items() if "proj_" not in name
    }


@mistake("W1", "tied weight listed under each of its names")
def maskable_shapes(right: Any, model: nn.Module) -> Any:
    shapes = right.maskable_shapes(model)
    everything = dict(model.named_parameters(remove_duplicate=False))
    tied = {id(everything[name]) for name in shapes}
    return {name: p.shape for name, p in everything.items() if id(p) in tied}


@mistake("W2", "buffers do not move in training")
def masked_forward(
    right: Any, model: Any, w: Any, s: Any, r: Any, buffers: Any, /, *args: Any, **kw: Any
) -> Any:
    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    return right.masked_forward(model, w, s, r, copies, *args, **kw)


@mistake("W2", "the mask is left out in evaluation")
def masked_forward(
    right: Any, model: Any, w: Any, s: Any, r: Any, b: Any, /, *args: Any, density: float, **kw: Any
) -> Any:
    if model.training:
        return right.masked_forward(model, w, s, r, b, *args, density=density, **kw)
    return functional_call(model, {**w, **r, **b}, args, kw)


@mistake("W3", "statistics move in evaluation too")
def masked_forward(right: Any, model: nn.Module, /, *args: Any, **kw: Any) -> Any:
    training = model.training
    try:
        return right.masked_forward(model.train(), *args, **kw)
    finally:
        model.train(training)


@mistake("W3", "masked weights are loaded into the model")
def masked_forward(
    right: Any, model: Any, w: Any, s: Any, /, *args: Any, density: float, **kw: Any
) -> Any:
    model.load_state_dict(right.apply_mask(w, s, density=density), strict=False)
    return right.masked_forward(model, w, s, *args, density=density, **kw)


@mistake("W3", "the input is modified")
def masked_forward(
    right: Any, model: Any, w: Any, s: Any, r: Any, b: Any, x: Any, /, *more: Any, **kw: Any
) -> Any:
    x.mul_(0.5 if x.is_floating_point() else 1)
    return right.masked_forward(model, w, s, r, b, x, *more, **kw)


@mistake("W3", "statistics move in new tensors, put into the dict of buffers")
def masked_forward(
    right: Any, model: Any, w: Any, s: Any, r: Any, buffers: Any, /, *args: Any, **kw: Any
) -> Any:
    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    output = right.masked_forward(model, w, s, r, copies, *args, **kw)
    buffers.update(copies)
    return output


@mistake("W4", "rest and buffers are the model's own tensors")
def init(right: Any, model: nn.Module, strategy: Any, *, seed: int) -> Any:
    state = right.init(model, strategy, seed=seed)
    own = dict(model.named_parameters())
    return state._replace(rest={name: own[name] for name in state.rest})


@mistake("W4", "rest lies in the memory of the model")
def init(right: Any, model: nn.Module, strategy: Any, *, seed: int) -> Any:
    state = right.init(model, strategy, seed=seed)
    own = dict(model.named_parameters())
    return state._replace(rest={n: own[n].detach().requires_grad_() for n in state.rest})


@mistake("W4", "scores are float32 whatever the model is")
def init(right: Any, model: nn.Module, strategy: Any, *, seed: int) -> Any:
    state = right.init(model, strategy, seed=seed)
    scores = {n: s.detach().float().requires_grad_() for n, s in state.scores.items()}
    return state._replace(scores=scores)


@mistake("W5", "materialised weights without the mask")
def materialize(right: Any, model: Any, state: Any, *, density: float) -> Any:
    return {**right.materialize(model, state, density=density), **state.weights}


@mistake("W5", "tied names are missing from the state_dict")
def materialize(right: Any, model: nn.Module, state: Any, *, density: float) -> Any:
    dense = right.materialize(model, state, density=density)
    names = {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {name: tensor for name, tensor in dense.items() if name in names}


@mistake("W6", "keyword arguments are dropped")
def masked_forward(right: Any, model: Any, /, *args: Any, density: float, **kw: Any) -> Any:
    return right.masked_forward(model, *args, density=density)


@mistake("W6", "hooks of the model do not run")
def masked_forward(right: Any, model: nn.Module, /, *args: Any, **kw: Any) -> Any:
    bare = copy.copy(model)
    bare._forward_hooks = OrderedDict()
    return right.masked_forward(bare, *args, **kw)


@mistake("W7", "channels_last is lost")
def init(right: Any, model: nn.Module, strategy: Any, *, seed: int) -> Any:
    state = right.init(model, strategy, seed=seed)
    return state._replace(weights={n: w.contiguous() for n, w in state.weights.items()})


@mistake("W7", "scores of frozen weights are frozen")
def init(right: Any, model: nn.Module, strategy: Any, *, seed: int) -> Any:
    state = right.init(model, strategy, seed=seed)
    for name, scores in state.scores.items():
        scores.requires_grad_(model.get_parameter(name).requires_grad)
    return state


@mistake("W8", "tensors of the state_dict are told by identity")
def materialize(right: Any, model: nn.Module, state: Any, *, density: float) -> Any:
    dense = right.materialize(model, state, density=density)
    own = {id(t) for t in [*model.parameters(), *model.buffers()]}
    entries = model.state_dict(keep_vars=True)
    return {key: dense[key] if id(entries[key]) in own else entries[key] for key in dense}


@mistake("W8", "second names of tied tensors are the model's own")
def materialize(right: Any, model: nn.Module, state: Any, *, density: float) -> Any:
    dense = right.materialize(model, state, density=density)
    first = {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {**dense, **{n: e for n, e in model.state_dict().items() if n not in first}}


@mistake("W9", "every weight of two dimensions or more is maskable")
def maskable_shapes(right: Any, model: Any) -> Any:
    return {
        name: parameter.shape
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and name.endswith("weight")
    }


@mistake("W9", "subclasses of the layers are left unmasked")
def _maskable_attributes(right: Any, module: Any) -> Any:
    own = ("torch.nn.modules.conv", "torch.nn.modules.linear", "torch.nn.modules.activation")
    return right._maskable_attributes(module) if type(module).__module__ in own else ()


@mistake("W10", "materialize leaves the masked weights in the state")
def materialize(right: Any, model: Any, state: Any, *, density: float) -> Any:
    dense = right.materialize(model, state, density=density)
    for name, weight in state.weights.items():
        weight.detach().copy_(dense[name])
    return dense


@mistake("W10", "materialize loads the model, too")
def materialize(right: Any, model: nn.Module, state: Any, *, density: float) -> Any:
    dense = right.materialize(model, state, density=density)
    model.load_state_dict(dense)
    return dense


@mistake("W10", "init freezes the model")
def init(right: Any, model: nn.Module, strategy: Any, *, seed: int) -> Any:
    state = right.init(model, strategy, seed=seed)
    model.requires_grad_(False)
    return state


@mistake("W10", "init seeds the global random state")
def init(right: Any, model: nn.Module, strategy: Any, *, seed: int) -> Any:
    torch.manual_seed(seed)
    return right.init(model, strategy, seed=seed)


@mistake("W12", "the prototype is drawn for all layers, those left out too")
def init(right: Any, model: nn.Module, strategy: Any, *, seed: int, shapes: Any = None) -> Any:
    state = right.init(model, strategy, seed=seed, shapes=shapes)
    everything = right.init(model, strategy, seed=seed)
    return state._replace(weights={name: everything.weights[name] for name in state.weights})


@rebinds("W20", "the first convolution is run with a mask of its own for every channel")
def _(right: Any) -> Rebound:
    def apply_mask(weights: Any, scores: Any, *, density: float) -> Any:
        masked = right.apply_mask(weights, scores, density=density)
        first = next(iter(weights))
        rows = [right.score_mask(s, density=density) for s in scores[first]]
        return {**masked, first: weights[first] * torch.stack(rows)}

    def materialize(model: Any, state: Any, *, density: float) -> Any:
        return {
            **right.materialize(model, state, density=density),
            **right.apply_mask(state.weights, state.scores, density=density),
        }

    return {"apply_mask": apply_mask, "materialize": materialize}


@mistake("W11", "torch looks for the ties: a module with two names keeps masked weights")
def masked_forward(
    right: Any,
    model: Any,
    w: Any,
    s: Any,
    rest: Any,
    b: Any,
    /,
    *args: Any,
    density: float,
    **kw: Any,
) -> Any:
    tensors = {**right.apply_mask(w, s, density=density), **rest, **b}
    return functional_call(model, tensors, args, kw)


@mistake("W11", "the model is left with the masked weights where forward raises")
def masked_forward(
    right: Any,
    model: Any,
    w: Any,
    s: Any,
    rest: Any,
    b: Any,
    /,
    *args: Any,
    density: float,
    **kw: Any,
) -> Any:
    tensors = {**right.apply_mask(w, s, density=density), **rest, **b}
    accessor = nn.utils._named_member_accessor.NamedMemberAccessor(model)
    own, _ = accessor.swap_tensors_dict(right.by_place(model, tensors))
    output = model(*args, **kw)
    accessor.swap_tensors_dict(own)
    return output
