"""Everything a masked network is made of, and the way back to an ordinary dense one."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pemn_ref.checks import Density, Shapes, check_finite, check_model
from pemn_ref.fill import fill_weights
from pemn_ref.forward import by_place, maskable_shapes
from pemn_ref.masks import apply_mask, init_scores
from pemn_ref.prototype import Strategy, make_prototype


class State(NamedTuple):
    """The tensors of a masked network, each under its name in the model (our grouping).

    ``weights`` are filled from the prototype and frozen. ``scores``, one per weight, and ``rest``
    (normalisation, biases and everything else that is not masked) are trained. ``buffers`` are the
    model's. Shapes, dtypes and devices are the model's, too.

    >>> from pemn_ref import rp
    >>> weights, scores, rest, buffers = init(nn.Linear(4, 2), rp(0.5), seed=0)
    >>> weights["weight"].requires_grad, scores["weight"].requires_grad, rest["bias"].shape
    (False, True, torch.Size([2]))
    """

    weights: dict[str, Tensor]
    scores: dict[str, Tensor]
    rest: dict[str, Tensor]
    buffers: dict[str, Tensor]


def init(model: nn.Module, strategy: Strategy, *, seed: int, shapes: Shapes | None = None) -> State:
    """A masked network for ``model``: ``make_prototype``, ``fill_weights`` and ``init_scores``.

    This is where the paper's section 3 starts. How a seed becomes random streams is ours.

    Weights and scores take the device, dtype and memory format of the parameter they replace; rest
    and buffers are copies of the model's. Scores require a gradient, even where the parameter is
    frozen; in the rest, what is frozen stays frozen. All tensors are new leaves. Move the model to
    its device first: ``.to()`` makes other tensors, which an optimizer over these does not see.

    ``shapes``, a subset of ``maskable_shapes(model)``, names the weights to mask. The others become
    rest and are trained as usual (ours; the paper masks all).

    Raises:
        ValueError: if there is nothing to mask, ``shapes`` has a weight that is not maskable or has
            another shape, a maskable weight is empty or not a plain parameter, ``strategy`` is not
            a Strategy, or ``seed`` is not an int.

    >>> from pemn_ref import rp
    >>> state = init(nn.Linear(4, 2), rp(0.5), seed=0)
    >>> [(part, list(tensors)) for part, tensors in state._asdict().items()]
    [('weights', ['weight']), ('scores', ['weight']), ('rest', ['bias']), ('buffers', [])]
    """
    maskable = maskable_shapes(model)
    for name, shape in (shapes or {}).items():
        if tuple(shape) != (own := maskable.get(name)):
            has = f"{name} of shape {tuple(own)}, not {tuple(shape)}" if own else f"no {name}"
            raise ValueError(f"shapes must be a subset of maskable_shapes(model), which has {has}")
    shapes = {n: shape for n, shape in maskable.items() if shapes is None or n in shapes}
    filled = fill_weights(make_prototype(shapes, strategy, seed=seed), shapes, strategy)
    scores = init_scores(shapes, seed=seed)
    parameters = dict(model.named_parameters())

    def like_parameter(name: str, values: Tensor) -> Tensor:
        return torch.empty_like(parameters[name]).copy_(values)

    return State(
        weights={name: like_parameter(name, filled[name]) for name in shapes},
        scores={name: like_parameter(name, scores[name]).requires_grad_() for name in shapes},
        rest={
            name: parameter.detach().clone().requires_grad_(parameter.requires_grad)
            for name, parameter in parameters.items()
            if name not in shapes
        },
        buffers={name: buffer.detach().clone() for name, buffer in model.named_buffers()},
    )


def materialize(model: nn.Module, state: State, *, density: Density) -> dict[str, Any]:
    """The ordinary dense ``state_dict`` of a masked network, for ``model.load_state_dict`` (ours).

    It is what ``model.state_dict()`` would return with these tensors in the model: a tied weight
    under each of its names, no non-persistent buffers, hooks applied, extra state as the model has
    it. The tensors are copies, without gradient. During the call the model holds them, so two
    threads must not share it.

    Raises:
        ValueError: if the state does not match the model, a score is not finite, or ``density``
            lies outside (0, 1].

    >>> from pemn_ref import rp
    >>> model = nn.Linear(4, 2)
    >>> dense = materialize(model, init(model, rp(0.5), seed=0), density=0.5)
    >>> int((dense["weight"] != 0).sum())
    4
    """
    check_model(model, state.weights, state.rest, state.buffers)
    check_finite(state.scores)
    masked = apply_mask(state.weights, state.scores, density=density)
    tensors = {**masked, **state.rest, **state.buffers}
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    placed = {f"model.{place}": copy for place, copy in by_place(model, copies).items()}
    dense: dict[str, Any] = functional_call(_StateDict(model), placed, tie_weights=False)
    return dense


class _StateDict(nn.Module):
    """Returns its model's ``state_dict`` from forward, for ``functional_call`` to swap tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> dict[str, Any]:
        return self.model.state_dict()
