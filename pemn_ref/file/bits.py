"""The masks in a file: one stream of bits."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pemn_ref.checks import each_density
from pemn_ref.file.header import Info, need
from pemn_ref.masks import kept

# Eight bools are eight bytes of 0 or 1. Read as one (little-endian) integer and multiplied by this
# one, byte k lands in bit 56 + k. No two terms of the product share a bit, so nothing carries.
GATHER = sum(1 << (56 - 7 * k) for k in range(8))
# For every byte: its eight bools as one integer, and how many are true.
BITS = (torch.arange(256, device="cpu")[:, None] >> torch.arange(8, device="cpu")) % 2 == 1
SPREAD, ONES = BITS.view(torch.int64).flatten(), BITS.sum(1)


def pack(mask: Tensor) -> Tensor:
    """Pack eight values into a byte (our format): bools ``(8 n,)`` to uint8 ``(n,)``.

    Value i becomes bit ``i mod 8`` of byte ``i // 8``; bit 0 is the least significant.

    >>> pack(torch.tensor([True, False, True] + 5 * [False]))
    tensor([5], dtype=torch.uint8)
    """
    return (mask.view(torch.int64) * GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """Unpack the bits of every byte (our format): uint8 ``(n,)`` to bools ``(8 n,)``.

    >>> unpack(torch.tensor([5], dtype=torch.uint8)).int()
    tensor([1, 0, 1, 0, 0, 0, 0, 0], dtype=torch.int32)
    """
    return SPREAD.index_select(0, packed.int()).view(torch.bool)


def pack_masks(masks: Iterable[Tensor]) -> Tensor:
    """All masks, of 0 and 1, as one stream: uint8 on the CPU, padded with zero bits."""
    bools = [mask.flatten().bool().cpu() for mask in masks]
    spare = -sum(map(len, bools)) % 8
    return pack(torch.cat([*bools, torch.zeros(spare, dtype=torch.bool, device="cpu")]))


def unpack_masks(info: Info, packed: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and mask of one layer after the other; uint8, since bools become floats more slowly.

    Raises:
        ValueError: if a mask does not keep as many weights as the density says, or a padding bit
            is set.
    """
    start, each = 0, each_density(info.density, info.shapes)
    for name, shape in info.shapes.items():
        end = start + shape.numel()
        touched = packed[start // 8 : (end + 7) // 8]
        before, mask, after = unpack(touched).split([start % 8, shape.numel(), -end % 8])
        ones = int(touched.bincount(minlength=256) @ ONES - before.sum() - after.sum())
        number = kept(shape.numel(), each[name])
        need(ones == number, f"the mask of {name} keeps {ones} weights, not {number}")
        yield name, mask.view(torch.uint8).reshape(shape)
        start = end
    need(not after.any(), "padding bits after the last mask are set")
