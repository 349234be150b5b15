"""Writing a masked network as a file."""

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

    The file has one mask bit per weight in place of the scores, and the prototypes, by value, in
    place of the weights. Non-persistent buffers are left out. ``tag`` is free text, such as seed
    and recipe. ``half`` rounds the floats of the rest to float16. The same state gives the same
    bytes. An old file is replaced by a whole new one or not at all.

    Raises:
        ValueError: if the state does not fit the model; a buffer is also a parameter, or persistent
            only under its second name; ``strategy`` is not a Strategy, or is a subclass; the
            weights were not filled from prototypes of ``strategy``; weights that share a prototype
            differ in dtype; a score, prototype or rest is not finite, or the rest is too large for
            ``half``; a dtype is not in the format; a tensor has more than 64 dimensions, or the
            header more than 100,000,000 bytes; ``tag`` is not a str, or has lone surrogates;
            ``density`` lies outside (0, 1] or does not have the names of the masked weights.
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
    named = type(strategy) is Strategy  # a reader does not know how a subclass groups
    need(named, f"a file needs the strategy mask, one_layer, mp or rp(ratio), got {strategy!r}")
    each = each_density(density, shapes)
    masks = [score_mask(state.scores[name].detach(), density=each[name]) for name in shapes]
    rest = {**state.rest}
    for name, tensor in state.rest.items():
        if half and tensor.is_floating_point():
            rest[name] = tensor.half()
            fits = not (rest[name].isinf() & tensor.double().isfinite()).any()
            need(fits, f"rest/{name} has values too large for float16: save it without half")
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
    """The prototypes that the weights were filled from: the beginning of each group's giver."""
    prototype: dict[str, Tensor] = {}
    for group, (length, giver) in prototype_groups(shapes, strategy).items():
        prototype[group] = weights[giver].detach().flatten()[:length]
    for name, weight in weights.items():
        filled = fill_weights(prototype, {name: weight.shape}, strategy)[name]
        need(
            filled.dtype == weight.dtype,
            f"{name} has dtype {weight.dtype}, but the largest weight of its prototype has"
            f" {filled.dtype}: in a file, weights that share a prototype share a dtype",
        )
        need(
            torch.equal(_bytes(filled), _bytes(weight)),
            f"{name} is not filled from the prototype of {strategy}: pass the weights as init made"
            " them, and the strategy they were made with",
        )
    return prototype


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().contiguous().view(torch.uint8)
