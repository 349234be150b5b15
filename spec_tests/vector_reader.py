"""A reader of compressed models written from ``pemn_ref/file/FORMAT.md`` alone, in numpy."""

import hashlib
import json
import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np

# numpy has no bfloat16: its 16 bits are read as the upper half of a float32.
TYPES = {"I64": "<i8", "F64": "<f8", "F32": "<f4", "I32": "<i4", "BF16": "<u2", "F16": "<f2"}
TYPES |= {"I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "u1"}
FLOATS = {"F64", "F32", "BF16", "F16"}


def read(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata, and the dense tensors by name. Anything that is not right is an exception."""
    (length,) = struct.unpack("<Q", data[:8])
    assert length <= 100_000_000
    header = json.loads(data[8 : 8 + length].decode())
    said = json.loads(header["__metadata__"]["pemn"])
    keys = ["version", "sha256", "strategy", "ratio", "density", "shapes", "tied", "tag"]
    assert [*said] == keys
    version, ratio, density = said["version"], said["ratio"], said["density"]
    assert [type(v) for v in (version, ratio, said["tag"])] == [int, float, str]
    assert version == (2 if type(density) is dict else 1)
    assert 0 < ratio <= 1
    densities = [*density.values()] if version == 2 else [density]
    assert all(type(value) is float and 0 < value <= 1 for value in densities)
    assert said["strategy"] in ("mask", "one_layer", "mp", "rp")
    assert ratio == 1 or said["strategy"] == "rp"

    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    order = sorted(entries, key=lambda name: ([*TYPES].index(entries[name]["dtype"]), name))
    again: dict[str, Any] = {"__metadata__": {"pemn": compact(said)}}
    tensors, at = {}, 0
    for name in order:
        dtype, shape = entries[name]["dtype"], entries[name]["shape"]
        assert all(type(size) is int and size >= 0 for size in shape)
        assert len(shape) <= 64
        end = at + math.prod(shape) * np.dtype(TYPES[dtype]).itemsize
        again[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        values = np.frombuffer(data[8 + length :][at:end], TYPES[dtype]).reshape(shape)
        bf16 = (values.astype("<u4") << 16).view("<f4") if dtype == "BF16" else values
        tensors[name] = bf16
        assert dtype != "BOOL" or values.max(initial=0) <= 1
        assert name.startswith("buffers/") or np.isfinite(bf16).all()
        at = end
    text = compact(again).encode()
    assert data[8 : 8 + length] == text + b" " * (-len(text) % 8)
    assert len(data) == 8 + length + at
    digest = said["sha256"].encode()
    assert hashlib.sha256(data.replace(digest, b"0" * 64, 1)).hexdigest().encode() == digest
    return said, dense(said, tensors, {name: entries[name]["dtype"] for name in order})


def dense(said: Any, tensors: dict[str, Any], dtypes: dict[str, str]) -> dict[str, Any]:
    """Fill the prototypes in, mask them, and give every tensor its names."""
    shapes = {name: tuple(sizes) for name, sizes in said["shapes"]}
    assert len(shapes) == len(said["shapes"]) > 0
    assert all(type(name) is str for name in shapes)
    assert all(type(size) is int and size > 0 for shape in shapes.values() for size in shape)
    assert max(map(len, shapes.values())) <= 64
    groups: dict[str, int] = {}
    of = {}
    for name, shape in shapes.items():
        joined = "x".join(map(str, shape))
        of[name] = {"mask": name, "one_layer": joined}.get(said["strategy"], "all")
        groups[of[name]] = max(groups.get(of[name], 0), math.prod(shape))
    lengths = {
        f"prototype/{group}": min(m, math.floor(m * Fraction(str(said["ratio"]))) + 1)
        for group, m in groups.items()
    }
    prototypes = {name: values for name, values in tensors.items() if name.startswith("prototype/")}
    assert {name: values.shape for name, values in prototypes.items()} == {
        name: (length,) for name, length in lengths.items()
    }
    assert {dtypes[name] for name in prototypes} <= FLOATS
    weights = sum(math.prod(shape) for shape in shapes.values())
    masks = tensors["masks"]
    assert (dtypes["masks"], *masks.shape) == ("U8", -(-weights // 8))
    bits = np.unpackbits(masks, bitorder="little")
    assert not bits[weights:].any()
    density = said["density"]
    each = density if said["version"] == 2 else dict.fromkeys(shapes, density)
    assert [*each] == [*shapes]
    out: dict[str, Any] = {}
    for name, shape in shapes.items():
        mask, bits = bits[: math.prod(shape)], bits[math.prod(shape) :]
        assert mask.sum() == max(1, -(-round(each[name] * 10**12) * len(mask) // 10**12))
        filled = np.resize(tensors[f"prototype/{of[name]}"], len(mask))
        out[name] = (filled * mask.astype(filled.dtype)).reshape(shape)
    for name in tensors.keys() - prototypes.keys() - {"masks"}:
        part, _, inner = name.partition("/")
        assert part in ("rest", "buffers")
        assert inner not in out
        out[inner] = tensors[name]
    tied = {second: out[first] for second, first in said["tied"].items()}
    assert not tied.keys() & out.keys()
    return out | tied


def compact(value: Any) -> str:
    """JSON without spaces, escaping only what must be."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
