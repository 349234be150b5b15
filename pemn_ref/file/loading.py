"""Reading a file, as a masked network or as a dense one."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor, nn

from pemn_ref.checks import Tensors, check_same
from pemn_ref.file.bits import unpack_masks
from pemn_ref.file.header import (
    Info,
    check_values,
    checksum_of,
    need,
    read_header,
    without_values,
)
from pemn_ref.file.names import stored_names
from pemn_ref.fill import fill_weights
from pemn_ref.forward import maskable_shapes
from pemn_ref.state import State


class FileError(ValueError):
    """A file is not a compressed model, is damaged, or belongs to another model (our format).

    >>> inspect(__file__)
    Traceback (most recent call last):
    pemn_ref.file.loading.FileError: ...loading.py: the header would end at byte ... of ...
    """


def inspect(path: str | os.PathLike[str]) -> Info:
    """Read the header alone (our format). The checksum of the file is not verified.

    ``storage(info.shapes, info.strategy, [*info.rest.values(), *info.buffers.values()])`` counts
    what the model costs.

    Raises:
        FileError: if the header is not valid, or does not fit the length of the file.
        OSError: if the file cannot be opened or read.

    >>> import tempfile
    >>> from pemn_ref import init, rp
    >>> from pemn_ref.file import save
    >>> path, model = Path(tempfile.mkdtemp()) / "linear.safetensors", nn.Linear(64, 10)
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5, tag="seed 0")
    >>> inspect(path).strategy
    Strategy(name='rp', ratio=0.1)
    """
    with _errors_of(path), _opened(path) as file:
        return _header(file)


def load(path: str | os.PathLike[str], model: nn.Module) -> tuple[State, Info]:
    """Load a file as the state of a masked ``model``, and what it says about itself (our format).

    The state is like one from ``init``, in the dtype, device and memory format of the model. Its
    scores are the masks, 0 and 1, which ``score_mask`` maps onto themselves. For inference only: a
    score of 0 gets no gradient, so training cannot change the mask (HOW_TO.md shows how to train
    on). Non-persistent buffers are copied from the model.

    Raises:
        FileError: if the file is not whole and valid, or belongs to another model (the message has
            the first name, shape, tie or dtype that differs), or has a value too large for the
            model's dtype.
        OSError: if the file cannot be opened or read.

    >>> import tempfile
    >>> from pemn_ref import init, rp
    >>> from pemn_ref.file import save
    >>> path, model = Path(tempfile.mkdtemp()) / "linear.safetensors", nn.Linear(64, 10)
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5, tag="seed 0")
    >>> state, info = load(path, model)
    >>> state.scores["weight"].unique(), info.density
    (tensor([0., 1.], grad_fn=...), 0.5)
    """
    rest = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    maskable = maskable_shapes(model)
    tied, stored = stored_names(model)
    persistent = {name: buffers[name] for name in buffers if name in stored}

    def like(own: Tensor, values: Tensor) -> Tensor:
        return torch.empty_like(own).copy_(values)

    def cast(name: str, own: Tensor, values: Tensor) -> Tensor:
        floating = own.is_floating_point()
        need(floating == values.is_floating_point(), f"{name} is {values.dtype}, not {own.dtype}")
        new = values.to(own.dtype)
        fits = new.isfinite() == values.isfinite() if floating else new.to(values.dtype) == values
        need(bool(fits.all()), f"{name} is too large for the model's {own.dtype}")
        return like(own, new)

    state = State({}, {}, {}, {})
    with _errors_of(path):
        info, tensors = _content(path)
        weights = {n: torch.empty(shape, device="meta") for n, shape in info.shapes.items()}
        masked = {name: rest.pop(name) for name in maskable if name in weights}
        check_same("the weights do not fit the model", weights, masked)
        check_same("the rest does not fit the model", info.rest, rest)
        check_same("the buffers do not fit the model", info.buffers, persistent)
        need(info.tied == tied, f"the ties do not fit the model: {info.tied}, not {tied}")
        for name, mask in unpack_masks(info, tensors["masks"]):
            prototype = _prototype(info, tensors, name)
            weight = fill_weights(prototype, {name: info.shapes[name]}, info.strategy)[name]
            state.weights[name] = cast(name, masked[name], weight)
            state.scores[name] = like(masked[name], mask).requires_grad_()
        for name, parameter in rest.items():
            values = cast(name, parameter, tensors[f"rest/{name}"])
            state.rest[name] = values.requires_grad_(parameter.requires_grad)
        for name, buffer in buffers.items():
            if name in persistent:
                state.buffers[name] = cast(name, buffer, tensors[f"buffers/{name}"])
            else:
                state.buffers[name] = like(buffer, buffer)
    return state, info


def load_dense(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Load a file as a dense ``state_dict``, without the model (our format).

    It equals the result of ``materialize`` bit for bit, on the CPU, in the dtypes of the file. A
    tied tensor appears under each of its names. A module's extra state is not in the file. If a
    hook renames entries of the model's ``state_dict``, a tensor appears under both names, its own
    and the hook's.

    Raises:
        FileError: if the file is not whole and valid.
        OSError: if it cannot be opened or read.

    >>> import tempfile
    >>> from pemn_ref import init, rp
    >>> from pemn_ref.file import save
    >>> path, model = Path(tempfile.mkdtemp()) / "linear.safetensors", nn.Linear(64, 10)
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5, tag="seed 0")
    >>> {name: tensor.count_nonzero() for name, tensor in load_dense(path).items()}
    {'weight': tensor(320), 'bias': tensor(10)}
    """
    with _errors_of(path):
        info, tensors = _content(path)
        dense = {}
        for name, mask in unpack_masks(info, tensors["masks"]):
            ((_, values),) = _prototype(info, tensors, name).items()
            # fill_weights times the mask, in place: twice as fast. Short rows would be slow.
            row = values.repeat(4096 // len(values) + 1)
            dense[name] = mask.to(row.dtype)
            weight = dense[name].flatten()
            whole = len(weight) // len(row) * len(row)
            weight[:whole].view(-1, len(row)).mul_(row)
            weight[whole:].mul_(row[: len(weight) - whole])
        dense |= {name: tensors[f"rest/{name}"].clone() for name in info.rest}
        dense |= {name: tensors[f"buffers/{name}"].clone() for name in info.buffers}
        # Not copied: a file with many names for one weight could take any amount of memory.
        return dense | {name: dense[first] for name, first in info.tied.items()}


def _prototype(info: Info, tensors: Tensors, name: str) -> dict[str, Tensor]:
    """Group -> the prototype that fills this weight."""
    group = info.strategy.group(name, info.shapes[name])
    return {group: tensors[f"prototype/{group}"]}


def _content(path: str | os.PathLike[str]) -> tuple[Info, dict[str, Tensor]]:
    """Everything in a file, its checksum verified."""
    with _opened(path) as file:
        info = _header(file)
        metas = without_values(info)
        data = bytearray(sum(meta.nbytes for meta in metas.values()))
        file.readinto(data)
    need(checksum_of(info, data) == info.sha256, "the checksum does not match: the file is damaged")
    pieces = torch.frombuffer(data, dtype=torch.uint8).split([m.nbytes for m in metas.values()])
    tensors = {}
    for (name, meta), values in zip(metas.items(), pieces, strict=True):
        need(
            meta.dtype != torch.bool or not (values > 1).any(), f"{name} is BOOL with bytes above 1"
        )
        tensors[name] = values.view(meta.dtype).reshape(meta.shape)
        check_values(name, tensors[name])
    return info, tensors


def _header(file: BufferedReader) -> Info:
    """``read_header``; JSON of another structure, and shapes that torch refuses, are ValueErrors.

    It proves every size, so that a RuntimeError afterwards, such as full memory, is not the file's.
    """
    try:
        return read_header(file)
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError) as error:
        raise ValueError(f"not a compressed model: {error!r}") from error


def _opened(path: str | os.PathLike[str]) -> BufferedReader:
    # Checked before opening, since opening a FIFO waits for a writer.
    need(stat.S_ISREG(Path(path).stat().st_mode), "not a regular file")
    return Path(path).open("rb")


@contextmanager
def _errors_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every ValueError into one that names the file."""
    try:
        yield
    except ValueError as error:
        # The message can quote names from the file: escaped, they cannot steer a terminal.
        said = str(error).encode("unicode_escape").decode()
        raise FileError(f"{os.fspath(path)}: {said}") from None
