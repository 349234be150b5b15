"""A masked network becomes a file."""

import os
import re

import torch
from torch import Tensor, nn

from pemn_ref.atomic import write
from pemn_ref.checks import (
    Density,
    Shapes,
    Tensors,
    check_finite,
    check_model,
    check_same,
    each_density,
)
from pemn_ref.file.bits import pack_masks
from pemn_ref.file.header import Info, check_values, checksum_of, make_header, need, stored_tensors
from pemn_ref.file.names import stored_names
from pemn_ref.fill import fill_weights
from pemn_ref.forward import maskable_shapes
from pemn_ref.masks import score_mask
from pemn_ref.prototype import Strategy, prototype_groups
from pemn_ref.state import State


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    state: State,
    strategy: Strategy,
    *,
    density: Density,
    tag: str = "",
    half: bool = False,
) -> None:
    """Write a masked network as one file (paper, section 4; the format is ours).

    Of the scores only the masks are stored, a bit for each weight; of the weights only the
    prototypes, by value; non-persistent buffers stay with the model. ``tag`` is free text: the seed
    and the recipe, say. With ``half`` the floats of the rest are rounded to float16. The same state
    gives the same bytes. An old file is replaced by a whole new one or not at all.

    Raises:
        ValueError: if the state does not fit the model, ``strategy`` is not a Strategy or is a
            subclass of it, the weights are not a prototype of ``strategy`` filled in, those that
            share a prototype differ in dtype, a score, prototype or rest is not finite, a dtype is
            not one of the format, a tensor has more than 64 dimensions, the header more than
            100,000,000 bytes, ``tag`` is not a str without lone surrogates, or ``density`` lies
            outside (0, 1] or has other names than the masked weights.
        OSError: as ``pemn_ref.atomic.write``.

    >>> import pathlib, tempfile
    >>> from pemn_ref import init, rp
    >>> model = nn.Linear(64, 10)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "linear.safetensors"
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5)
    >>> header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    >>> path.stat().st_size - header == 640 / 8 + 4 * 65 + 4 * 10
    True
    """
    whole = isinstance(tag, str) and not re.search(r"[\ud800-\udfff]", tag)
    need(whole, f"tag must be a str without lone surrogates, got {tag!r}")
    shapes = {n: shape for n, shape in maskable_shapes(model).items() if n in state.weights}
    masked = {name: model.get_parameter(name) for name in shapes}
    check_model(model, state.weights, state.rest, state.buffers)
    check_same("the weights do not fit the model", state.weights, masked)
    check_same("the scores do not fit the model", state.scores, masked)
    check_finite(state.scores)
    named = type(strategy) is Strategy  # a subclass groups in ways that a reader does not know
    need(named, f"strategy must be mask, one_layer, mp or rp(ratio) in a file, got {strategy!r}")
    each = each_density(density, shapes)
    masks = [score_mask(state.scores[name].detach(), density=each[name]) for name in shapes]
    rest = {n: t.half() if half and t.is_floating_point() else t for n, t in state.rest.items()}
    tied, stored = stored_names(model)
    info = Info(
        strategy=strategy,
        density=density,
        shapes=shapes,
        prototype=_recovered(state.weights, shapes, strategy),
        rest=rest,
        buffers={name: tensor for name, tensor in state.buffers.items() if name in stored},
        tied=tied,
        tag=tag,
        sha256="",
    )
    tensors = stored_tensors(info, pack_masks(masks))
    for name, tensor in tensors.items():
        check_values(name, tensor)
    content = torch.cat([_bytes(tensor).cpu() for tensor in tensors.values()])
    data = bytearray(len(content))
    torch.frombuffer(data, dtype=torch.uint8).copy_(content)
    write(path, make_header(info._replace(sha256=checksum_of(info, data))), data)


def _recovered(weights: Tensors, shapes: Shapes, strategy: Strategy) -> dict[str, Tensor]:
    """The prototypes that the weights were filled from: the beginning of each group's largest."""
    prototype: dict[str, Tensor] = {}
    for group, (length, giver) in prototype_groups(shapes, strategy).items():
        prototype[group] = weights[giver].detach().flatten()[:length]
    for name, weight in weights.items():
        filled = fill_weights(prototype, {name: weight.shape}, strategy)[name]
        need(
            filled.dtype == weight.dtype,
            f"{name} has dtype {weight.dtype} and the largest weight of its prototype"
            f" {filled.dtype}: a file holds weights of one prototype in one dtype only",
        )
        need(
            torch.equal(_bytes(filled), _bytes(weight)),
            f"{name} is not filled from the prototype of {strategy}: give the weights as init made"
            " them, and the strategy that they were made with",
        )
    return prototype


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().contiguous().view(torch.uint8)
