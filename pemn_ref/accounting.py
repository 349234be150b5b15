"""What a masked network costs to store: by the paper's accounting, and for the whole model."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from pemn_ref.checks import Shapes
from pemn_ref.prototype import Strategy, prototype_groups


class Storage(NamedTuple):
    """Sizes of a masked network (paper, section 4; the whole model is our addition).

    A compression is the fraction of the dense size that is saved.

    >>> from pemn_ref import mp
    >>> cost = storage({"fc.weight": (10, 64)}, mp)
    >>> cost.weights, cost.unique, cost.bits == 640 + 32 * 640, cost.dense_bits == 32 * 640
    (640, 640, True, True)
    """

    weights: int
    """N: maskable weights, one mask bit each."""
    unique: int
    """U: values in the prototypes, 32 bits each."""
    paper: float
    """Compression by the paper's accounting: ``1 - (N + 32 U) / (32 N)``, of maskable weights."""
    whole: float | None
    """Compression of the whole model, ``1 - bits / dense_bits``; None if only shapes were given."""
    bits: int
    """Masks, prototypes and the other tensors that were given."""
    dense_bits: int
    """The dense float32 weights and the other tensors that were given."""


def storage(shapes: Shapes, strategy: Strategy, others: Iterable[Tensor] | None = None) -> Storage:
    """Count the bits that a masked network needs (paper, section 4; ``others`` is our addition).

    ``others`` are the tensors stored beside the masked weights, each at its own width: the rest and
    the persistent buffers. The paper leaves them out of both sides. Without them the size of the
    whole model is unknown, and ``whole`` is None.

    Raises:
        ValueError: if ``shapes`` is empty, a weight has no elements or ``strategy`` is not
            a Strategy.

    >>> from pemn_ref import rp
    >>> storage({"a": (64, 64, 3, 3), "fc": (10, 64)}, rp(1e-2))[:3]
    (37504, 369, 0.9589...)
    """
    unique = sum(length for length, _ in prototype_groups(shapes, strategy).values())
    weights = sum(math.prod(shape) for shape in shapes.values())
    counted = masked_storage(weights, unique, others or ())
    return counted if others is not None else counted._replace(whole=None)


def masked_storage(weights: int, unique: int, others: Iterable[Tensor]) -> Storage:
    """Like ``storage``, from counts: one mask bit per weight, 32 bits per unique value (ours).

    It also counts a pruned network, whose ``unique`` values are the weights it keeps.
    """
    other_bits = sum(8 * tensor.element_size() * tensor.numel() for tensor in others)
    bits = weights + 32 * unique
    dense_bits = 32 * weights
    return Storage(
        weights=weights,
        unique=unique,
        paper=1 - bits / dense_bits,
        whole=1 - (bits + other_bits) / (dense_bits + other_bits),
        bits=bits + other_bits,
        dense_bits=dense_bits + other_bits,
    )
