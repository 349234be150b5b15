"""Running any ``nn.Module``, unmodified, with masked weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pemn_ref.checks import check_model
from pemn_ref.masks import apply_mask


def maskable_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Name -> shape of every maskable weight, in the order of ``model.named_parameters()``.

    Maskable are the ``weight`` of every convolution (any dimension, grouped, transposed) and
    ``nn.Linear``, the classifier included, and the input projections of ``nn.MultiheadAttention``.
    A tied weight appears once, and is maskable if any of its users is. All else is *rest* (released
    code, made for any model).

    Raises:
        ValueError: if such a weight is not a plain parameter of real floating dtype: lazy,
            computed by a parametrization (spectral norm and the like), of integers or complex.

    >>> maskable_shapes(nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.Linear(8, 2)))
    {'0.weight': torch.Size([8, 3, 5, 5]), '2.weight': torch.Size([2, 8])}
    """
    maskable = set()
    for path, module in model.named_modules():
        for attribute in _maskable_attributes(module):
            # Not getattr, which computes the weight of a parametrization.
            weight = dict(module.named_parameters(remove_duplicate=False)).get(attribute)
            if weight is None or nn.parameter.is_lazy(weight) or not weight.is_floating_point():
                name = f"{path}.{attribute}".removeprefix(".")
                raise ValueError(f"{name} must be a plain real parameter, not lazy or computed")
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
    weights: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    /,
    *inputs: Any,
    density: float,
    **kwargs: Any,
) -> Any:
    """``model(*inputs, **kwargs)`` with every maskable weight masked (paper, section 3).

    The model stays as it is. In training mode batch-norm statistics move in ``buffers``, in place,
    exactly as a plain module's would; nothing else is modified. All keywords but ``density`` go to
    the model. Limits: a module that *rebinds* a buffer (``self.n = self.n + 1``) loses that update;
    activation checkpointing inside the model recomputes outside of this call and gives wrong
    gradients; a wrapper that averages gradients over processes does not see these.

    Raises:
        ValueError: if names or shapes do not match the model, or ``density`` is outside (0, 1].

    >>> from pemn_ref import init, rp
    >>> model = nn.Linear(4, 2)
    >>> masked_forward(model, *init(model, rp(0.5), seed=0), torch.ones(3, 4), density=0.5).shape
    torch.Size([3, 2])
    """
    check_model(model, weights, rest, buffers)
    masked = apply_mask(weights, scores, density=density)
    return functional_call(model, {**masked, **rest, **buffers}, inputs, kwargs)
