"""Running any ``nn.Module``, unmodified, with masked weights."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from pemn_ref.checks import Density, Tensors, check_model
from pemn_ref.masks import apply_mask


def maskable_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Name -> shape of every maskable weight, in the order of ``model.named_parameters()``.

    Maskable are the ``weight`` of every convolution (any dimension, grouped, transposed) and
    ``nn.Linear``, the classifier included, and the input projections of ``nn.MultiheadAttention``.
    A tied weight appears once, and is maskable if any of its users is. Everything else is *rest*
    (released code, extended to any model).

    Raises:
        ValueError: if a maskable weight is lazy, computed by a parametrization (such as spectral
            norm), or not of a real floating dtype; or if a submodule with parameters is scripted,
            which hides its layers.

    >>> maskable_shapes(nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.Linear(8, 2)))
    {'0.weight': torch.Size([8, 3, 5, 5]), '2.weight': torch.Size([2, 8])}
    """
    maskable = set()
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters()):
            raise ValueError(f"{path or 'the model'} is scripted: pass the module it was made from")
        for attribute in _maskable_attributes(module):
            # Not getattr: it would compute the weight of a parametrization.
            weight = dict(module.named_parameters(remove_duplicate=False)).get(attribute)
            name = f"{path}.{attribute}".removeprefix(".")
            if weight is None:
                raise ValueError(f"{name} is computed: remove its parametrization first")
            if nn.parameter.is_lazy(weight):
                raise ValueError(f"{name} is lazy: call the model once first")
            if not weight.is_floating_point():
                raise ValueError(f"{name} must be of a real floating dtype, got {weight.dtype}")
            maskable.add(weight)
    return {name: p.shape for name, p in model.named_parameters() if p in maskable}


def _maskable_attributes(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        if module._qkv_same_embed_dim:
            return ("in_proj_weight",)
        return ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    return ()


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

    The model is not changed. In training mode batch-norm statistics are updated in ``buffers``, in
    place, exactly as a plain module updates its own; nothing else is modified. ``density`` is as in
    ``apply_mask``; all other keywords go to the model. The four parts of a ``State`` are separate
    arguments because ``torch.func`` maps and differentiates by argument.

    Limits. A module that *rebinds* a buffer (``self.n = self.n + 1``) loses that update. A weight
    that forward reads from anywhere but its module's attribute (a list, say) runs unmasked.
    Activation checkpointing inside the model recomputes after this call, with the model's own
    weights, and gives wrong gradients; it leaves no trace on the model, so nothing can detect it.
    Checkpoint the whole call instead. During the call the model holds the masked weights, so two
    threads must not share one: give each a ``copy.deepcopy``. ``DistributedDataParallel`` does not
    see these tensors: average their gradients yourself.

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


def by_place(model: nn.Module, tensors: Tensors) -> dict[str, Any]:
    """Attribute of the model -> its tensor, as ``places`` maps them."""
    return {place: name and tensors[name] for place, name in places(model).items()}


def places(model: nn.Module) -> dict[str, str | None]:
    """Each attribute that can hold a tensor -> the name of its tensor in a state.

    A tensor that two modules share appears twice, once for each. A module with two names appears
    once: ``functional_call`` would swap its tensors twice, and put the wrong one back. An attribute
    that is None maps to None, so a tensor that forward stores there does not stay in the model.
    """
    parameters = {own: name for name, own in model.named_parameters()}
    buffers = {own: name for name, own in model.named_buffers()}
    return {
        f"{path}.{attribute}".removeprefix("."): None if own is None else names[own]
        for path, module in model.named_modules()
        for held, names in ((module._parameters, parameters), (module._buffers, buffers))
        for attribute, own in held.items()
    }
