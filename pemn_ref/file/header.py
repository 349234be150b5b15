"""What a file holds, and the header that says so, made and read.

A reader builds anew, from what it understood, the header that a writer would have made.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from pemn_ref.checks import Density, check_fraction, each_density
from pemn_ref.prototype import Strategy, prototype_groups

VERSIONS = (1, 2)  # of one density for all weights, and of one for each
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


class Info(NamedTuple):
    """What a file says of itself (our format), as ``inspect`` and ``load`` return it.

    Its tensors are on the device ``meta``: they have shapes and dtypes, those of the file, and no
    values.

    >>> import pathlib, tempfile
    >>> from pemn_ref import init, rp
    >>> from pemn_ref.file import inspect, save
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "linear.safetensors"
    >>> model = torch.nn.Linear(64, 10)
    >>> save(path, model, init(model, rp(0.1), seed=0), rp(0.1), density=0.5, tag="seed 0")
    >>> info = inspect(path)
    >>> info.density, info.tag, info.shapes, info.prototype["all"].shape
    (0.5, 'seed 0', {'weight': torch.Size([10, 64])}, torch.Size([65]))
    """

    strategy: Strategy
    density: Density
    shapes: dict[str, torch.Size]
    """Of the masked weights, in the order of their masks."""
    prototype: dict[str, Tensor]
    rest: dict[str, Tensor]
    buffers: dict[str, Tensor]
    """The persistent ones."""
    tied: dict[str, str]
    """Second name of a tensor -> the name that it is stored under."""
    tag: str
    sha256: str


def need(condition: bool, otherwise: str) -> None:
    """Raise a ValueError that says ``otherwise`` unless the condition holds."""
    if not condition:
        raise ValueError(otherwise)


def stored_tensors(info: Info, masks: Tensor) -> dict[str, Tensor]:
    """All tensors of a file in their order."""
    parts = {"prototype": info.prototype, "rest": info.rest, "buffers": info.buffers}
    tensors = {f"{part}/{n}": tensor for part in parts for n, tensor in parts[part].items()}
    for name, tensor in tensors.items():
        known = tensor.dtype in ORDER
        need(known, f"{name} has dtype {tensor.dtype}: not one of {[*DTYPES]}")
        floating = tensor.is_floating_point() or not name.startswith("prototype/")
        need(floating, f"{name} has dtype {tensor.dtype}: a prototype is of floats")
        area = math.prod(size or 1 for size in tensor.shape) * tensor.itemsize
        need(area < 2**63, f"{name} is too large")  # also where it has a 0
    tensors["masks"] = masks
    for name, shape in [*info.shapes.items(), *((n, t.shape) for n, t in tensors.items())]:
        fits = len(shape) <= MAX_DIMENSIONS
        need(fits, f"{name} has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    return dict(sorted(tensors.items(), key=lambda item: (ORDER.index(item[1].dtype), item[0])))


def without_values(info: Info) -> dict[str, Tensor]:
    """The same on the device ``meta``, masks included."""
    weights = sum(shape.numel() for shape in info.shapes.values())
    whole_bytes = (weights + 7) // 8
    return stored_tensors(info, torch.empty(whole_bytes, dtype=torch.uint8, device="meta"))


def check_values(name: str, tensor: Tensor) -> None:
    """Prototypes and rest are finite."""
    if name.startswith(("prototype/", "rest/")):  # a buffer may be infinite: an attention mask
        need(bool(tensor.isfinite().all()), f"{name} has values that are not finite")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def make_header(info: Info) -> bytes:
    """The beginning of the file, up to the first byte of a tensor."""
    each = {name: float(value) for name, value in each_density(info.density, info.shapes).items()}
    one = not isinstance(info.density, Mapping)
    metadata = {
        "version": VERSIONS[0] if one else VERSIONS[1],
        "sha256": info.sha256,
        "strategy": info.strategy.name,
        "ratio": float(info.strategy.ratio),
        "density": next(iter(each.values())) if one else each,
        "shapes": [[name, [*shape]] for name, shape in info.shapes.items()],
        "tied": info.tied,
        "tag": info.tag,
    }
    header: dict[str, object] = {"__metadata__": {"pemn": _json(metadata)}}
    end = 0
    for name, tensor in without_values(info).items():
        start, end = end, end + tensor.nbytes
        dtype = [*DTYPES][ORDER.index(tensor.dtype)]
        header[name] = {"dtype": dtype, "shape": [*tensor.shape], "data_offsets": [start, end]}
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)
    check_length(len(text))
    return len(text).to_bytes(8, "little") + text


def check_length(length: int) -> None:
    """A header is not longer than the format allows."""
    need(length <= MAX_HEADER, f"a header of {length} bytes, more than {MAX_HEADER}")


def checksum_of(info: Info, data: bytearray) -> str:
    """The checksum of a file: with zeros where it will stand."""
    checksum = hashlib.sha256(make_header(info._replace(sha256=64 * "0")))
    checksum.update(data)
    return checksum.hexdigest()


def _object(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    kind = type(value).__name__
    need(isinstance(value, dict), f"the header has a JSON {kind} where an object belongs")
    return value


def _density(said: Any) -> Density:
    if isinstance(said, dict):
        return {name: float(value) for name, value in said.items()}
    return float(said)


def read_header(file: BinaryIO) -> Info:
    """What the header at the beginning of the file says, once it is the header of exactly that."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    need(8 + length <= size, f"the header would end at byte {8 + length} of {size}")
    check_length(length)
    text = file.read(length)
    header = _object(text.decode())
    metadata = header.pop("__metadata__", {})
    need("pemn" in metadata, "an ordinary safetensors file, not a compressed model")
    said = _object(metadata["pemn"])
    need(bool(re.fullmatch("[0-9a-f]{64}", said["sha256"])), f"no checksum: {said['sha256']}")
    need(said["version"] in VERSIONS, f"version {said['version']}: this reads {VERSIONS}")
    parts: dict[str, dict[str, Tensor]] = {"prototype": {}, "rest": {}, "buffers": {}}
    del header["masks"]
    for name, entry in header.items():
        part, _, inner = name.partition("/")
        shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
        parts[part][inner] = torch.empty(shape, dtype=dtype, device="meta")
    info = Info(
        strategy=Strategy(said["strategy"], float(said["ratio"])),
        density=_density(said["density"]),
        shapes={name: torch.empty(sizes, device="meta").shape for name, sizes in said["shapes"]},
        **parts,
        tied=dict(said["tied"]),
        tag=str(said["tag"]),
        sha256=str(said["sha256"]),
    )
    for density in each_density(info.density, info.shapes).values():
        check_fraction("density", density)
    groups = prototype_groups(info.shapes, info.strategy).items()
    need(
        {group: values.shape for group, values in info.prototype.items()}
        == {group: (length,) for group, (length, _) in groups},
        "the prototypes are not those of the strategy and the shapes",
    )
    names = [*info.shapes, *info.rest, *info.buffers]
    need(len({*names, *info.tied}) == len(names) + len(info.tied), "a name is given twice")
    need(set(info.tied.values()) <= set(names), f"tied to what is not there: {info.tied}")
    need(make_header(info)[8:] == text, "the header is not the one that these contents have")
    end = 8 + length + sum(tensor.nbytes for tensor in without_values(info).values())
    need(end == size, f"the tensors end at byte {end} of {size}")
    return info
