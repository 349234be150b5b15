"""The same functions with few launches: layers of equal size are masked together.

``apply_mask`` and ``masked_forward`` give the reference's bits, gradients too. Use this module in
place of ``pemn_ref`` where launches take longer than what they compute, as on a GPU; read
``masks.py`` for the algorithm:

    from pemn_ref import fast as pemn

Layers that are masked together share a part of the graph. So the scores of a layer that forward
does not use get a gradient of zeros, where the reference gives None: an optimizer then decays them.
Two layers cannot be differentiated one after the other without ``retain_graph``, and forward cannot
change a masked weight in place.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pemn_ref import (
    State,
    Storage,
    Strategy,
    fill_weights,
    init,
    init_scores,
    kept,
    make_prototype,
    mask,
    maskable_shapes,
    materialize,
    mp,
    one_layer,
    prototype_length,
    rp,
    storage,
)
from pemn_ref.checks import Density, Tensors, check_model, check_same, each_density
from pemn_ref.forward import by_place

__all__ = [  # all that the package has: this module stands for it
    "State",
    "Storage",
    "Strategy",
    "apply_mask",
    "fill_weights",
    "init",
    "init_scores",
    "kept",
    "make_prototype",
    "mask",
    "maskable_shapes",
    "masked_forward",
    "materialize",
    "mp",
    "one_layer",
    "prototype_length",
    "rp",
    "score_mask",
    "storage",
]


def score_mask(scores: Tensor, *, density: float) -> Tensor:
    """The mask of one layer, as ``pemn_ref.score_mask`` gives it (paper, section 3).

    Takes scores of any shape and real floating dtype; returns both as they are.

    Raises:
        ValueError: if ``scores`` is empty or not of a real floating dtype, or ``density`` lies
            outside (0, 1].

    >>> score_mask(torch.tensor([3.0, -4.0, 0.0, 1.0]), density=0.5)
    tensor([1., 1., 0., 0.])
    """
    return _masks(scores.reshape(1, -1), density).reshape(scores.shape)


def _masks(scores: Tensor, density: float) -> Tensor:
    """Masks of ``(layers, n)`` scores, each row by its own threshold: a sort costs more."""
    if not scores.is_floating_point():
        raise ValueError(f"scores must be of a real floating dtype, got {scores.dtype}")
    number = kept(scores.shape[1], density)
    magnitude = scores.detach().abs().nan_to_num(math.inf, math.inf)
    smallest_kept = magnitude.topk(number, sorted=False).values.amin(1, keepdim=True)
    large = magnitude >= smallest_kept
    tied = magnitude == smallest_kept
    surplus = large.sum(1, keepdim=True) - number
    keep = large ^ (tied & (tied.cumsum(1) <= surplus))  # drop the first `surplus` ties
    finite = scores.masked_fill(magnitude == math.inf, 0).abs()
    return keep.to(scores.dtype) + (finite - finite.detach())


def _stacks(tensor: Tensor) -> bool:
    """Whether torch stacks it: not under an autocast to the other half precision."""
    device = tensor.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return True
    halves = {torch.float16, torch.bfloat16} - {torch.get_autocast_dtype(device)}
    return tensor.dtype not in halves


def apply_mask(weights: Tensors, scores: Tensors, *, density: Density) -> dict[str, Tensor]:
    """Weights times masks, as ``pemn_ref.apply_mask`` gives them (paper, section 3).

    Returns name -> masked weight, of the shape, dtype and device of the weight. Gradients are the
    reference's, to scores and weights. Layers in another memory format than the usual one are
    masked one by one, and so are layers of float16 or bfloat16 under an autocast to the other one,
    where torch refuses to stack them.

    Raises:
        ValueError: if names or shapes of the two differ, ``density`` lies outside (0, 1], or has
            other names.

    >>> weights = {"fc.weight": torch.tensor([[1.0, -2.0]])}
    >>> apply_mask(weights, {"fc.weight": torch.tensor([[0.1, -0.2]])}, density=0.5)
    {'fc.weight': tensor([[ 0., -2.]])}
    """
    check_same("scores do not fit the weights", scores, weights)
    each = each_density(density, weights)
    masked: dict[str, Tensor] = {}
    groups: dict[object, list[str]] = {}
    for name, weight in weights.items():
        layer = scores[name]
        stacks = _stacks(weight) and _stacks(layer)
        if weight.is_contiguous() and layer.is_contiguous() and stacks:
            kind = weight.numel(), weight.dtype, layer.dtype, layer.device, each[name]
            groups.setdefault(kind, []).append(name)
        else:
            masked[name] = weight * score_mask(layer, density=each[name]).to(weight.dtype)
    for names in groups.values():
        masks = _masks(torch.stack([scores[name].flatten() for name in names]), each[names[0]])
        values = torch.stack([weights[name].flatten() for name in names])
        for name, row in zip(names, (values * masks.to(values.dtype)).unbind(), strict=True):
            masked[name] = row.view(weights[name].shape)
    return {name: masked[name] for name in weights}


def masked_forward(
    model: nn.Module,
    weights: Tensors,
    scores: Tensors,
    rest: Tensors,
    buffers: Tensors,
    /,
    *inputs: Any,
    density: Density,
    **kwargs: Any,
) -> Any:
    """``model(*inputs, **kwargs)`` with every maskable weight masked (paper, section 3).

    As ``pemn_ref.masked_forward``, whose limits it has.

    Raises:
        ValueError: if names or shapes do not match the model, or ``density`` is outside (0, 1].

    >>> from pemn_ref import init, rp
    >>> model = nn.Linear(4, 2)
    >>> masked_forward(model, *init(model, rp(0.5), seed=0), torch.ones(3, 4), density=0.5).shape
    torch.Size([3, 2])
    """
    check_model(model, weights, rest, buffers)
    masked = apply_mask(weights, scores, density=density)
    tensors = by_place(model, {**masked, **rest, **buffers})
    return functional_call(model, tensors, inputs, kwargs, tie_weights=False)
