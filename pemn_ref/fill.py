"""Filling: where the value of each weight comes from."""

import math

import torch
from torch import Tensor

from pemn_ref.checks import Shapes, Tensors
from pemn_ref.prototype import Strategy, prototype_groups


def fill_weights(prototype: Tensors, shapes: Shapes, strategy: Strategy) -> dict[str, Tensor]:
    """Tile the prototype into every weight: element i (row-major) takes ``prototype[i mod L]``.

    Every layer starts at the beginning of its prototype (paper, section 3). Returns name -> weight
    of that shape, in the dtype and on the device of the prototype, detached from its graph.

    Raises:
        ValueError: if a weight has no elements, ``strategy`` is not a Strategy, or a prototype is
            missing, empty or not 1-D.

    >>> from pemn_ref import rp
    >>> fill_weights({"all": torch.arange(3)}, {"fc.weight": (2, 4)}, rp(0.5))["fc.weight"]
    tensor([[0, 1, 2, 0],
            [1, 2, 0, 1]])
    """
    prototype_groups(shapes, strategy)  # raises for anything but a Strategy, and for empty weights
    weights = {}
    for name, shape in shapes.items():
        group = strategy.group(name, shape)
        if group not in prototype:
            raise ValueError(f"{name} needs the prototype {group!r}, got only {sorted(prototype)}")
        values = prototype[group].detach()
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(
                f"prototype {group!r} must be 1-D and not empty, got shape {tuple(values.shape)}"
            )
        index = torch.arange(math.prod(shape), device=values.device) % len(values)
        weights[name] = values[index].reshape(tuple(shape))
    return weights
