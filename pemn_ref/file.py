"""The compressed model on disk: a bit for every weight, the prototypes by value, and the rest.

FORMAT.md beside this module describes the bytes: a safetensors file, written and read here with
torch alone. A reader builds anew, from what it understood, the header that a writer would have
made; a file with any other header, or another checksum, is a :class:`FileError`.
"""

import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from pemn_ref.checks import check_finite, check_fraction, check_model, check_same
from pemn_ref.fill import fill_weights
from pemn_ref.forward import maskable_shapes
from pemn_ref.masks import kept, score_mask
from pemn_ref.prototype import Strategy, prototype_groups
from pemn_ref.state import State

VERSION = 1
# In the order in which a file holds them: the widest first, so that every value is aligned.
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
ORDER = [*DTYPES.values()]
MAX_HEADER = 100_000_000  # bytes, as in safetensors: memory asked for on the word of the file alone
MAX_DIMENSIONS = 64  # as torch and numpy have them


class FileError(ValueError):
    """A file that is no compressed model, is damaged, or belongs to another model (our format).

    >>> inspect(__file__)
    Traceback (most recent call last):
    pemn_ref.file.FileError: ...file.py: the header would end at byte ... of ...
    """


class Info(NamedTuple):
    """What a file says of itself (our format), as :func:`inspect` and :func:`load` return it.

    Its tensors are on the device ``meta``: they have shapes and dtypes, those of the file, and no
    values.

    >>> import tempfile
    >>> from pemn_ref import init, rp
    >>> path, model = Path(tempfile.mkdtemp()) / "linear.safetensors", nn.Linear(64, 10)
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5, tag="seed 0")
    >>> info = inspect(path)
    >>> info.density, info.tag, info.shapes, info.prototype["all"].shape
    (0.5, 'seed 0', {'weight': torch.Size([10, 64])}, torch.Size([65]))
    """

    strategy: Strategy
    density: float
    shapes: dict[str, torch.Size]
    """Of the maskable weights, in the order of their masks."""
    prototype: dict[str, Tensor]
    rest: dict[str, Tensor]
    buffers: dict[str, Tensor]
    """The persistent ones."""
    tied: dict[str, str]
    """Second name of a tensor -> the name that it is stored under."""
    tag: str
    sha256: str


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    state: State,
    strategy: Strategy,
    *,
    density: float,
    tag: str = "",
    half: bool = False,
) -> None:
    """Write a masked network as one file (paper, section 4; the format is ours).

    Of the scores only the masks are stored, a bit for each weight; of the weights only the
    prototypes, by value; non-persistent buffers stay with the model. ``tag`` is free text: the seed
    and the recipe, say. With ``half`` the floats of the rest are rounded to float16. The same state
    gives the same bytes. An old file is replaced by a whole new one or not at all.

    Raises:
        ValueError: if the state does not fit the model, the weights are not a prototype of
            ``strategy`` filled in, those that share a prototype differ in dtype, a score, prototype
            or rest is not finite, a dtype is not one of the format, a tensor has more than 64
            dimensions, the header more than 100,000,000 bytes, ``tag`` is not a str without lone
            surrogates, or ``density`` lies outside (0, 1].
        OSError: as :func:`write`.

    >>> import tempfile
    >>> from pemn_ref import init, rp
    >>> model = nn.Linear(64, 10)
    >>> path = Path(tempfile.mkdtemp()) / "linear.safetensors"
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5)
    >>> header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    >>> path.stat().st_size - header == 640 / 8 + 4 * 65 + 4 * 10
    True
    """
    whole = isinstance(tag, str) and not re.search(r"[\ud800-\udfff]", tag)
    _need(whole, f"tag must be a str without lone surrogates, got {tag!r}")
    shapes = maskable_shapes(model)
    maskable = {name: model.get_parameter(name) for name in shapes}
    check_model(model, state.weights, state.rest, state.buffers)
    check_same("the weights do not fit the model", state.weights, maskable)
    check_same("the scores do not fit the model", state.scores, maskable)
    check_finite(state.scores)
    scores = (state.scores[name].detach() for name in shapes)
    masks = [score_mask(layer, density=density).flatten().bool().cpu() for layer in scores]
    masks.append(torch.zeros(-sum(map(len, masks)) % 8, dtype=torch.bool, device="cpu"))
    rest = {n: t.half() if half and t.is_floating_point() else t for n, t in state.rest.items()}
    tied, stored = _names(model)
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
    tensors = _tensors(info, pack(torch.cat(masks)))
    for name, tensor in tensors.items():
        _check_values(name, tensor)
    content = torch.cat([_bytes(tensor).cpu() for tensor in tensors.values()])
    data = bytearray(len(content))
    torch.frombuffer(data, dtype=torch.uint8).copy_(content)
    write(path, _header(info._replace(sha256=_sha256(info, data))), data)


def inspect(path: str | os.PathLike[str]) -> Info:
    """What the header says (our format). Nothing else is read, so the checksum is not verified.

    ``storage(info.shapes, info.strategy, [*info.rest.values(), *info.buffers.values()])`` is the
    cost of the model by every accounting.

    Raises:
        FileError: if the header is not that of a compressed model, or of a file of this length.
        OSError: if the file cannot be opened or read.

    >>> import tempfile
    >>> from pemn_ref import init, rp
    >>> path, model = Path(tempfile.mkdtemp()) / "linear.safetensors", nn.Linear(64, 10)
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5, tag="seed 0")
    >>> inspect(path).strategy
    Strategy(name='rp', ratio=0.1)
    """
    with _errors_of(path), _opened(path) as file:
        return _info(file)


def load(path: str | os.PathLike[str], model: nn.Module) -> tuple[State, Info]:
    """The masked network for ``model``, and what the file says of it (our format).

    The state is one as ``init`` gives it, in the dtype, device and memory format of the model; its
    scores are the masks as 0 and 1, which ``score_mask`` maps onto themselves. It is there to be
    run: a score of 0 has no gradient, so that in training what is dropped would stay dropped.
    Non-persistent buffers are copies of the model's.

    Raises:
        FileError: if the file is not whole and valid, or is of another model: the first name,
            shape, tie or kind of dtype that differs is in the message; or if a value is too large
            for the model's dtype.
        OSError: if it cannot be opened or read.

    >>> import tempfile
    >>> from pemn_ref import init, rp
    >>> path, model = Path(tempfile.mkdtemp()) / "linear.safetensors", nn.Linear(64, 10)
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5, tag="seed 0")
    >>> state, info = load(path, model)
    >>> state.scores["weight"].unique(), info.density
    (tensor([0., 1.], grad_fn=...), 0.5)
    """
    own = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    maskable = {name: own.pop(name) for name in maskable_shapes(model)}
    tied, stored = _names(model)
    persistent = {name: buffers[name] for name in buffers if name in stored}

    def like(own: Tensor, values: Tensor) -> Tensor:
        return torch.empty_like(own).copy_(values)

    def finite(name: str, own: Tensor, values: Tensor) -> Tensor:
        cast = values.to(own.dtype)
        _need(bool(cast.isfinite().all()), f"{name} is too large for the model's {own.dtype}")
        return like(own, cast)

    state = State({}, {}, {}, {})
    with _errors_of(path):
        info, tensors = _content(path)
        weights = {n: torch.empty(shape, device="meta") for n, shape in info.shapes.items()}
        check_same("the weights are not those of the model", weights, maskable)
        check_same("the rest is not that of the model", info.rest, own)
        check_same("the buffers are not those of the model", info.buffers, persistent)
        _need(info.tied == tied, f"the ties are not those of the model: {info.tied}, not {tied}")
        for name, buffer in persistent.items():
            kinds = {buffer.is_floating_point(), info.buffers[name].is_floating_point()}
            _need(len(kinds) == 1, f"{name} is {info.buffers[name].dtype}, not {buffer.dtype}")
        for name, mask in _masks(info, tensors):
            prototype = _prototype(info, tensors, name)
            weight = fill_weights(prototype, {name: info.shapes[name]}, info.strategy)[name]
            state.weights[name] = finite(name, maskable[name], weight)
            state.scores[name] = like(maskable[name], mask).requires_grad_()
        for name, parameter in own.items():
            values = finite(name, parameter, tensors[f"rest/{name}"])
            state.rest[name] = values.requires_grad_(parameter.requires_grad)
    for name, buffer in buffers.items():
        state.buffers[name] = like(buffer, tensors.get(f"buffers/{name}", buffer))
    return state, info


def load_dense(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The dense ``state_dict`` from the file alone (our format), as ``materialize`` gives it.

    Bit for bit, on the CPU, in the dtypes of the file; a tied tensor is there under each of its
    names. Extra state of a module is not a tensor and not in the file. Where a hook renames the
    entries of the model's ``state_dict``, a tensor is there under both names, that of
    ``named_parameters`` or ``named_buffers`` and that of the hook.

    Raises:
        FileError: if the file is not whole and valid.
        OSError: if it cannot be opened or read.

    >>> import tempfile
    >>> from pemn_ref import init, rp
    >>> path, model = Path(tempfile.mkdtemp()) / "linear.safetensors", nn.Linear(64, 10)
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5, tag="seed 0")
    >>> {name: tensor.count_nonzero() for name, tensor in load_dense(path).items()}
    {'weight': tensor(320), 'bias': tensor(10)}
    """
    with _errors_of(path):
        info, tensors = _content(path)
        dense = {}
        for name, mask in _masks(info, tensors):
            ((_, values),) = _prototype(info, tensors, name).items()
            # fill_weights, times the mask, in place: that is twice as fast. Short rows are slow.
            row = values.repeat(-(-4096 // len(values)))
            dense[name] = mask.to(row.dtype)
            weight = dense[name].flatten()
            whole = len(weight) // len(row) * len(row)
            weight[:whole].view(-1, len(row)).mul_(row)
            weight[whole:].mul_(row[: len(weight) - whole])
        dense |= {name: tensors[f"rest/{name}"].clone() for name in info.rest}
        dense |= {name: tensors[f"buffers/{name}"].clone() for name in info.buffers}
        # Not a copy: a file with many names of one weight would take any amount of memory.
        return dense | {name: dense[first] for name, first in info.tied.items()}


# Eight bools are eight bytes of 0 or 1. Taken as one (little-endian) integer, the product with this
# one brings byte k to bit 56 + k; no other two of its summands meet, so that none carries.
GATHER = sum(1 << (56 - 7 * k) for k in range(8))
# Of every byte: its eight bools as one integer, and how many are true.
BITS = (torch.arange(256, device="cpu")[:, None] >> torch.arange(8, device="cpu")) % 2 == 1
SPREAD, ONES = BITS.view(torch.int64).flatten(), BITS.sum(1)


def pack(mask: Tensor) -> Tensor:
    """Eight values a byte (our format): uint8 of shape ``(n,)`` from bools of shape ``(8 n,)``.

    Value i is bit ``i mod 8``, the least significant being bit 0, of byte ``i // 8``.

    >>> pack(torch.tensor([True, False, True] + 5 * [False]))
    tensor([5], dtype=torch.uint8)
    """
    return (mask.view(torch.int64) * GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """The bits of every byte (our format): bools of shape ``(8 n,)`` from uint8 of shape ``(n,)``.

    >>> unpack(torch.tensor([5], dtype=torch.uint8)).int()
    tensor([1, 0, 1, 0, 0, 0, 0, 0], dtype=torch.int32)
    """
    return SPREAD.index_select(0, packed.int()).view(torch.bool)


def _prototype(info: Info, tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The prototype that fills a weight, under the name of its group."""
    group = info.strategy.group(name, info.shapes[name])
    return {group: tensors[f"prototype/{group}"]}


def _masks(info: Info, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Name and mask of one layer after the other, as uint8: bools become floats more slowly."""
    start = 0
    for name, shape in info.shapes.items():
        end = start + shape.numel()
        packed = tensors["masks"][start // 8 : -(-end // 8)]
        before, mask, after = unpack(packed).split([start % 8, shape.numel(), -end % 8])
        ones = int(packed.bincount(minlength=256) @ ONES - before.sum() - after.sum())
        number = kept(shape.numel(), info.density)
        _need(ones == number, f"the mask of {name} keeps {ones} weights, not {number}")
        yield name, mask.view(torch.uint8).reshape(shape)
        start = end
    _need(not after.any(), "bits are set after the last mask")


def _recovered(
    weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], strategy: Strategy
) -> dict[str, Tensor]:
    """The prototypes that the weights were filled from: the beginning of each group's largest."""
    prototype: dict[str, Tensor] = {}
    for group, (length, giver) in prototype_groups(shapes, strategy).items():
        prototype[group] = weights[giver].detach().flatten()[:length]
    for name, weight in weights.items():
        filled = fill_weights(prototype, {name: weight.shape}, strategy)[name]
        _need(
            filled.dtype == weight.dtype,
            f"{name} has dtype {weight.dtype} and the largest weight of its prototype"
            f" {filled.dtype}: a file holds weights of one prototype in one dtype only",
        )
        _need(
            torch.equal(_bytes(filled), _bytes(weight)),
            f"{name} is not filled from the prototype of {strategy}: give the weights as init made"
            " them, and the strategy that they were made with",
        )
    return prototype


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().contiguous().view(torch.uint8)


def _names(model: nn.Module) -> tuple[dict[str, str], set[str]]:
    """Second -> first name of tied tensors; and the first names of all in the state_dict."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    by_tensor = {id(tensor): name for name, tensor in reversed(named)}
    by_name = {name: by_tensor[id(tensor)] for name, tensor in named}
    names = {}
    for key, entry in model.state_dict(keep_vars=True).items():
        name = by_name.get(key, by_tensor.get(id(entry)))
        if name is not None:
            names[key] = name
        else:  # a hook's copy under another name; extra state is not stored
            extra = key.endswith("_extra_state") or not isinstance(entry, Tensor)
            _need(extra, f"{key} of the state_dict is no parameter and no buffer of the model")
    return {key: name for key, name in names.items() if key != name}, set(names.values())


def _tensors(info: Info, masks: Tensor) -> dict[str, Tensor]:
    """All tensors of a file in their order."""
    parts = {"prototype": info.prototype, "rest": info.rest, "buffers": info.buffers}
    tensors = {f"{part}/{n}": tensor for part in parts for n, tensor in parts[part].items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in ORDER:
            raise ValueError(f"{name} has dtype {tensor.dtype}: not one of {[*DTYPES]}")
        floating = tensor.is_floating_point() or not name.startswith("prototype/")
        _need(floating, f"{name} has dtype {tensor.dtype}: a prototype is of floats")
        area = math.prod(size or 1 for size in tensor.shape) * tensor.itemsize
        _need(area < 2**63, f"{name} is too large")  # also where it has a 0
    tensors["masks"] = masks
    for name, shape in [*info.shapes.items(), *((n, t.shape) for n, t in tensors.items())]:
        fits = len(shape) <= MAX_DIMENSIONS
        _need(fits, f"{name} has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    return dict(sorted(tensors.items(), key=lambda item: (ORDER.index(item[1].dtype), item[0])))


def _without_values(info: Info) -> dict[str, Tensor]:
    weights = sum(shape.numel() for shape in info.shapes.values())
    return _tensors(info, torch.empty(-(-weights // 8), dtype=torch.uint8, device="meta"))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _header(info: Info) -> bytes:
    """The beginning of the file, up to the first byte of a tensor."""
    metadata = {
        "version": VERSION,
        "sha256": info.sha256,
        "strategy": info.strategy.name,
        "ratio": float(info.strategy.ratio),
        "density": float(info.density),
        "shapes": [[name, [*shape]] for name, shape in info.shapes.items()],
        "tied": info.tied,
        "tag": info.tag,
    }
    header: dict[str, object] = {"__metadata__": {"pemn": _json(metadata)}}
    end = 0
    for name, tensor in _without_values(info).items():
        start, end = end, end + tensor.nbytes
        dtype = [*DTYPES][ORDER.index(tensor.dtype)]
        header[name] = {"dtype": dtype, "shape": [*tensor.shape], "data_offsets": [start, end]}
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)
    _check_length(len(text))
    return len(text).to_bytes(8, "little") + text


def _check_length(length: int) -> None:
    _need(length <= MAX_HEADER, f"a header of {length} bytes, more than {MAX_HEADER}")


def _sha256(info: Info, data: bytearray) -> str:
    """The checksum of a file: with zeros where it will stand."""
    checksum = hashlib.sha256(_header(info._replace(sha256=64 * "0")))
    checksum.update(data)
    return checksum.hexdigest()


def _object(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    kind = type(value).__name__
    _need(isinstance(value, dict), f"the header has a JSON {kind} where an object belongs")
    return value


def _info(file: BinaryIO) -> Info:
    """What the header at the beginning of the file says, once it is the header of exactly that."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    _need(8 + length <= size, f"the header would end at byte {8 + length} of {size}")
    _check_length(length)
    text = file.read(length)
    header = _object(text.decode())
    metadata = header.pop("__metadata__", {})
    _need("pemn" in metadata, "an ordinary safetensors file, not a compressed model")
    said = _object(metadata["pemn"])
    _need(bool(re.fullmatch("[0-9a-f]{64}", said["sha256"])), f"no checksum: {said['sha256']}")
    _need(said["version"] == VERSION, f"version {said['version']}: this reads version {VERSION}")
    parts: dict[str, dict[str, Tensor]] = {"prototype": {}, "rest": {}, "buffers": {}}
    del header["masks"]
    for name, entry in header.items():
        part, _, inner = name.partition("/")
        shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
        parts[part][inner] = torch.empty(shape, dtype=dtype, device="meta")
    info = Info(
        strategy=Strategy(said["strategy"], float(said["ratio"])),
        density=float(said["density"]),
        shapes={name: torch.empty(sizes, device="meta").shape for name, sizes in said["shapes"]},
        **parts,
        tied=dict(said["tied"]),
        tag=str(said["tag"]),
        sha256=str(said["sha256"]),
    )
    check_fraction("density", info.density)
    groups = prototype_groups(info.shapes, info.strategy).items()
    _need(
        {group: values.shape for group, values in info.prototype.items()}
        == {group: (length,) for group, (length, _) in groups},
        "the prototypes are not those of the strategy and the shapes",
    )
    names = [*info.shapes, *info.rest, *info.buffers]
    _need(len({*names, *info.tied}) == len(names) + len(info.tied), "a name is given twice")
    _need(set(info.tied.values()) <= set(names), f"tied to what is not there: {info.tied}")
    _need(_header(info)[8:] == text, "the header is not the one that these contents have")
    end = 8 + length + sum(tensor.nbytes for tensor in _without_values(info).values())
    _need(end == size, f"the tensors end at byte {end} of {size}")
    return info


def _content(path: str | os.PathLike[str]) -> tuple[Info, dict[str, Tensor]]:
    """All of a file, once its checksum has been found right."""
    with _opened(path) as file:
        info = _info(file)
        metas = _without_values(info)
        data = bytearray(sum(meta.nbytes for meta in metas.values()))
        file.readinto(data)
    _need(_sha256(info, data) == info.sha256, "the checksum is another one: the file is damaged")
    pieces = torch.frombuffer(data, dtype=torch.uint8).split([m.nbytes for m in metas.values()])
    tensors = {}
    for (name, meta), values in zip(metas.items(), pieces, strict=True):
        _need(meta.dtype != torch.bool or not (values > 1).any(), f"{name} has bytes above 1")
        tensors[name] = values.view(meta.dtype).reshape(meta.shape)
        _check_values(name, tensors[name])
    return info, tensors


def _check_values(name: str, tensor: Tensor) -> None:
    if name.startswith(("prototype/", "rest/")):  # a buffer may be infinite: an attention mask
        _need(bool(tensor.isfinite().all()), f"{name} has values that are not finite")


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _opened(path: str | os.PathLike[str]) -> BufferedReader:
    # Asked before it is opened, since to open a FIFO is to wait for a writer.
    _need(stat.S_ISREG(Path(path).stat().st_mode), "not a regular file")
    return Path(path).open("rb")


@contextmanager
def _errors_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make one error, which names the file, of all that its content can cause."""
    try:
        yield
    except ValueError as error:
        # It can hold names from the file, which must not steer a terminal, nor in a traceback.
        said = str(error).encode("unicode_escape").decode()
        raise FileError(f"{os.fspath(path)}: {said}") from None
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError) as error:
        # Other JSON than that of a header, and shapes that torch does not have.
        raise FileError(f"{os.fspath(path)} is not a compressed model: {error!r}") from error


def write(path: str | os.PathLike[str], *pieces: bytes | bytearray | memoryview) -> None:
    """Write beside and rename: at every moment there is the old file or the whole new one.

    The pieces, bytes, are written one after the other. The new file has the permissions of the old
    one; where ``path`` is a symbolic link, its target is replaced. Ours, and used wherever a file
    is written.

    Raises:
        OSError: if the file cannot be written, or ``path`` is a folder, device or FIFO; what was
            there stays as it is.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> write(path, b"old")
    >>> write(path, b"whole ", b"and new")
    >>> path.read_bytes()
    b'whole and new'
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(f"{target} is not a regular file: it is not replaced")
    # File systems hold names of 255 bytes, and a character has up to four.
    beside = target.with_name(f"{target.name[:60]}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            if mode is not None:
                beside.chmod(stat.S_IMODE(mode))
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
