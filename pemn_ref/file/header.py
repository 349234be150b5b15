"""What a file holds, and its header: how it is made and read.

A reader rebuilds, from what it understood, the header a writer would have made, and compares.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from pemn_ref.checks import Density, check_same, each_density
from pemn_ref.prototype import Strategy, prototype_groups

VERSIONS = (1, 2)  # one density for all weights; one for each
# In the order of a file: the widest first, so that every value is aligned.
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
MAX_HEADER = 100_000_000  # bytes, as in safetensors: a reader allocates them before it can check
MAX_DIMENSIONS = 64  # the limit of torch and numpy


class Info(NamedTuple):
    """What a file says about itself (our format); ``inspect`` and ``load`` return it.

    Its tensors are on the device ``meta``: they have the shapes and dtypes in the file, and no
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
    """Shapes of the masked weights, in the order of their masks."""
    prototype: dict[str, Tensor]
    rest: dict[str, Tensor]
    buffers: dict[str, Tensor]
    """The persistent ones."""
    tied: dict[str, str]
    """Second name of a tied tensor -> the name under which it is stored."""
    tag: str
    sha256: str


def need(condition: bool, otherwise: str) -> None:
    """Raise a ValueError that says ``otherwise`` unless the condition holds."""
    if not condition:
        raise ValueError(otherwise)


def stored_tensors(info: Info, masks: Tensor) -> dict[str, Tensor]:
    """All tensors of a file, in the order of the file."""
    parts = {"prototype": info.prototype, "rest": info.rest, "buffers": info.buffers}
    tensors = {f"{part}/{n}": tensor for part in parts for n, tensor in parts[part].items()}
    for name, tensor in tensors.items():
        known = tensor.dtype in ORDER
        need(known, f"{name} has dtype {tensor.dtype}, a file only has {', '.join(DTYPES)}")
        floating = tensor.is_floating_point() or not name.startswith("prototype/")
        need(floating, f"{name} has dtype {tensor.dtype}: a prototype must be floating-point")
        area = math.prod(size or 1 for size in tensor.shape) * tensor.itemsize
        need(area < 2**63, f"{name} is too large: {tuple(tensor.shape)}")  # even where a size is 0
    tensors["masks"] = masks
    for name, shape in [*info.shapes.items(), *((n, t.shape) for n, t in tensors.items())]:
        fits = len(shape) <= MAX_DIMENSIONS
        need(fits, f"{name} has {len(shape)} dimensions, a file allows {MAX_DIMENSIONS}")
    return dict(sorted(tensors.items(), key=lambda item: (ORDER.index(item[1].dtype), item[0])))


def without_values(info: Info) -> dict[str, Tensor]:
    """The same tensors, masks included, on the device ``meta``."""
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
    """The beginning of a file, up to the first byte of a tensor."""
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
    """A header is no longer than the format allows."""
    need(length <= MAX_HEADER, f"the header has {length} bytes, a file allows {MAX_HEADER}")


def checksum_of(info: Info, data: bytearray) -> str:
    """The checksum of a file, computed with zeros in its own place."""
    checksum = hashlib.sha256(make_header(info._replace(sha256=64 * "0")))
    checksum.update(data)
    return checksum.hexdigest()


def _object(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    kind = type(value).__name__
    need(isinstance(value, dict), f"the header has a JSON {kind} where it needs an object")
    return value


def _density(said: Any) -> Density:
    if isinstance(said, dict):
        return {name: float(value) for name, value in said.items()}
    return float(said)


def read_header(file: BinaryIO) -> Info:
    """What the header says; refused unless a writer would have made exactly this header."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    need(8 + length <= size, f"the header would end at byte {8 + length} of {size}")
    check_length(length)
    text = file.read(length)
    header = _object(text.decode())
    metadata = header.pop("__metadata__", {})
    need("pemn" in metadata, "an ordinary safetensors file, not a compressed model")
    said = _object(metadata["pemn"])
    need(
        bool(re.fullmatch("[0-9a-f]{64}", said["sha256"])),
        f"sha256 is not 64 hex digits: {said['sha256']}",
    )
    need(said["version"] in VERSIONS, f"version {said['version']} is not one of {VERSIONS}")
    parts: dict[str, dict[str, Tensor]] = {"prototype": {}, "rest": {}, "buffers": {}}
    del header["masks"]
    for name, entry in header.items():
        part, _, inner = name.partition("/")
        shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
        parts[part][inner] = torch.empty(shape, dtype=dtype, device="meta")
    info = Info(
        strategy=Strategy(said["strategy"], float(said["ratio"])),
        density=_density(said["density"]),
        shapes={
            str(name): torch.empty(sizes, device="meta").shape for name, sizes in said["shapes"]
        },
        **parts,
        tied=dict(said["tied"]),
        tag=str(said["tag"]),
        sha256=str(said["sha256"]),
    )
    each_density(info.density, info.shapes)  # raises for anything but fractions of these weights
    groups = prototype_groups(info.shapes, info.strategy).items()
    lengths = {group: torch.empty(length, device="meta") for group, (length, _) in groups}
    check_same("the prototypes do not fit the strategy", info.prototype, lengths)
    names = [*info.shapes, *info.rest, *info.buffers]
    twice = [name for name, times in Counter([*names, *info.tied]).items() if times > 1]
    need(not twice, f"a name appears twice: {', '.join(twice)}")
    need(
        set(info.tied.values()) <= set(names),
        f"tied to a name that is not in the file: {info.tied}",
    )
    need(make_header(info)[8:] == text, "the header is not what a writer makes of these contents")
    end = 8 + length + sum(tensor.nbytes for tensor in without_values(info).values())
    need(end == size, f"the tensors end at byte {end} of {size}")
    return info
