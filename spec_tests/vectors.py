"""Makes the conformance vectors of the file format: ``python -m spec_tests.vectors``.

No random stream has a part in them, so that they are the same everywhere. The invalid ones are
valid ones with one change, sealed anew: their checksum is right unless that is what is wrong.
"""

import hashlib
import json
import struct
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from spec_tests.models import Tied
from spec_tests.subject import pemn
from spec_tests.vector_reader import compact, read

FOLDER = Path(__file__).parent / "vectors"


class Small(nn.Module):
    """Two linears of one shape and another one, every kind of buffer, a scalar, an empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.third = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("bias", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("nothing", torch.empty(0, 2))
        self.register_buffer("scratch", torch.ones(2), persistent=False)


def dimensions_64() -> nn.Module:
    """A linear layer, and a buffer of as many dimensions as there can be."""
    model = nn.Linear(3, 4)
    model.register_buffer("deep", torch.ones(2, *63 * [1]))
    return model


def state_of(model: nn.Module, strategy: Any, masked: Collection[str] = ()) -> Any:
    """A state whose values are a pattern: exact in float16 and bfloat16, alike in all versions."""
    maskable = pemn.maskable_shapes(model)
    shapes = {name: maskable[name] for name in masked or maskable}
    drawn = pemn.make_prototype(shapes, strategy, seed=0)
    state = pemn.init(model, strategy, seed=0, shapes=shapes)
    some = next(iter(state.weights.values()))
    prototype = {group: (torch.arange(len(v)) - 5.5).to(some) / 4 for group, v in drawn.items()}
    state.weights.update(pemn.fill_weights(prototype, shapes, strategy))
    with torch.no_grad():
        for tensor in [*state.scores.values(), *state.rest.values()]:
            tensor.copy_((torch.arange(tensor.numel()) * 37 % 23 - 11.25).view(tensor.shape) / 8)
    return state


class Valid(NamedTuple):
    """A model and how to save it."""

    what: str
    model: Callable[[], nn.Module]
    strategy: Callable[[], Any]
    options: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple has no mutable state
    masked: tuple[str, ...] = ()
    """Which weights are; all, where none is named."""


BY_LAYER = {"first": 0.2, "second": 1.0, "third": 0.5}

VALID = {
    "mask": Valid("a prototype for every weight", Small, lambda: pemn.mask),
    "one_layer": Valid("a prototype for every shape", Small, lambda: pemn.one_layer),
    "mp": Valid("one prototype, 30 weights in 4 bytes", Small, lambda: pemn.mp),
    "rp": Valid("a prototype of 4 values, ratio 0.3", Small, lambda: pemn.rp(0.3)),
    "rp_constant": Valid("a single value, ratio 1e-05", Small, lambda: pemn.rp(1e-5)),
    "whole_bytes": Valid("64 weights in 8 bytes", lambda: nn.Linear(8, 8), lambda: pemn.rp(0.5)),
    "all_kept": Valid("density 1.0", Small, lambda: pemn.mp, {"density": 1.0}),
    "one_kept": Valid("density 1e-09: one of each", Small, lambda: pemn.mp, {"density": 1e-9}),
    "part": Valid("a layer left out", Small, lambda: pemn.rp(0.3),
                  masked=("first.weight", "third.weight")),
    "by_layer": Valid("version 2: a density for each layer", Small, lambda: pemn.mp,
                      {"density": {f"{n}.weight": d for n, d in BY_LAYER.items()}}),
    "tag": Valid("a tag of quotes, controls and an emoji", Small, lambda: pemn.mp,
                 {"tag": '"sha256":"' + 64 * "0" + '"\\\n\x01\x7f\u2028\N{GRINNING FACE}'}),
    "half": Valid("the rest rounded to float16", Small, lambda: pemn.mp, {"half": True}),
    "bfloat16": Valid("all in bfloat16", lambda: Small().bfloat16(), lambda: pemn.rp(0.3)),
    "float64": Valid("all in float64", lambda: Small().double(), lambda: pemn.rp(0.3)),
    "dimensions_64": Valid("a buffer of 64 dimensions", dimensions_64, lambda: pemn.rp(0.3)),
    "tied": Valid("two tensors with two names each", Tied, lambda: pemn.mp),
}  # fmt: skip


def valid(name: str) -> bytes:
    """The bytes of a valid vector."""
    made = VALID[name]
    model, strategy = made.model(), made.strategy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        options = {"density": 0.5, **made.options}
        pemn.save(path, model, state_of(model, strategy, made.masked), strategy, **options)
        return path.read_bytes()


class Parts:
    """A file taken apart, to be changed and put together again, whether it is right or not."""

    def __init__(self, data: bytes) -> None:
        (length,) = struct.unpack("<Q", data[:8])
        self.header: Any = json.loads(data[8 : 8 + length])
        self.said: Any = json.loads(self.header.pop("__metadata__")["pemn"])
        self.body = bytearray(data[8 + length :])

    def at(self, name: str) -> int:
        """The first byte of a tensor, in the body."""
        first: int = self.header[name]["data_offsets"][0]
        return first

    def again(self, order: list[str] | None = None) -> "Parts":
        """The offsets, as the order and the lengths of the tensors have them."""
        entries, body = self.header, bytes(self.body)
        self.header, self.body = {}, bytearray()
        for name in order or entries:
            begin, end = entries[name]["data_offsets"]
            offsets = [len(self.body), len(self.body) + end - begin]
            self.header[name] = {**entries[name], "data_offsets": offsets}
            self.body += body[begin:end]
        return self

    def insert(self, name: str, dtype: str, shape: list[int], values: bytes) -> None:
        """Another tensor, where it belongs."""
        offsets = [len(self.body), len(self.body) + len(values)]
        self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        self.body += values
        order = ["I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"]
        self.again(sorted(self.header, key=lambda n: (order.index(self.header[n]["dtype"]), n)))

    def sealed(
        self,
        edit_text: Callable[[str], str] = lambda text: text,
        edit_header: Callable[[str], str] = lambda header: header,
    ) -> bytes:
        """The bytes, with the right checksum after the edits of the JSON."""
        self.said["sha256"] = "0" * 64
        header = {"__metadata__": {"pemn": edit_text(compact(self.said))}, **self.header}
        return seal(edit_header(compact(header)).encode(), self.body)


def seal(header: bytes, body: bytes | bytearray) -> bytes:
    """Header and body as a file, the first 64 zeros replaced by the checksum."""
    header += b" " * (-len(header) % 8)
    data = struct.pack("<Q", len(header)) + header + body
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


INVALID: dict[str, tuple[str, Callable[[], bytes]]] = {}


def invalid(what: str, base: str = "rp") -> Callable[[Callable[[Parts], Any]], None]:
    """Add an invalid vector: bytes, or the changed parts, of a valid one."""

    def add(change: Callable[[Parts], Any]) -> None:
        def make() -> bytes:
            parts = Parts(valid(base))
            made = change(parts)
            return made if isinstance(made, bytes) else parts.sealed()

        INVALID[change.__name__] = what, make

    return add


def edited(what: str, old: str, new: str, name: str) -> None:
    """Add a vector in which a piece of the metadata's text is another."""

    def change(parts: Parts) -> bytes:
        def edit(text: str) -> str:
            assert old in text, (old, text)
            return text.replace(old, new, 1)

        return parts.sealed(edit)

    change.__name__ = name
    invalid(what)(change)


def reentered(what: str, tensor: str, key: str, value: Any, name: str) -> None:
    """Add a vector in which one item of a tensor's entry is another."""

    def change(parts: Parts) -> None:
        parts.header[tensor][key] = value

    change.__name__ = name
    invalid(what)(change)


# --- Damage: the checksum does not fit, or there is no whole header ------------------------------

INVALID["empty"] = "no bytes", lambda: b""
INVALID["seven_bytes"] = "no whole length", lambda: b"\x02" + bytes(6)
INVALID["header_too_long"] = (
    "a header of more bytes than the file",
    lambda: b"\x03" + bytes(7) + b"{}",
)
INVALID["header_huge"] = "a header of 2^64 - 1 bytes", lambda: 8 * b"\xff" + b"{}"
INVALID["header_no_json"] = "a header that is no JSON", lambda: seal(b"{]", b"")
INVALID["header_list"] = "a header that is a list", lambda: seal(b"[]", b"")
INVALID["header_no_utf8"] = "a header that is not UTF-8", lambda: seal(b'{"\xff":0}', b"")
INVALID["header_deep"] = "lists in lists, 5,000 deep", lambda: seal(5000 * b"[" + 5000 * b"]", b"")
INVALID["ordinary"] = (
    "an ordinary safetensors file",
    lambda: seal(
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"a",
    ),
)
INVALID["truncated"] = "the last byte is missing", lambda: valid("rp")[:-1]
INVALID["longer"] = "one byte more", lambda: valid("rp") + b"\0"


@invalid("one bit of the masks is another")
def flipped_mask(parts: Parts) -> bytes:
    data = bytearray(parts.sealed())
    data[len(data) - len(parts.body) + parts.at("masks")] ^= 1
    return bytes(data)


@invalid("one letter of the metadata is another")
def flipped_metadata(parts: Parts) -> bytes:
    return valid("rp").replace(b"first.weight", b"fjrst.weight")


# --- The header -----------------------------------------------------------------------------------


@invalid("no metadata")
def no_metadata(parts: Parts) -> bytes:
    return seal(compact(parts.header).encode(), parts.body)


@invalid("a second key in the metadata of the container")
def second_key(parts: Parts) -> bytes:
    return parts.sealed(edit_header=lambda text: text.replace('"},', '","format":"pt"},', 1))


@invalid("eight spaces more after the header")
def more_spaces(parts: Parts) -> bytes:
    return parts.sealed(edit_header=lambda text: text + " " * (-len(text) % 8 + 8))


@invalid("a space within the header")
def space_in_header(parts: Parts) -> bytes:
    return parts.sealed(edit_header=lambda text: text.replace(":", ": ", 1))


@invalid("an escape where none is needed")
def needless_escape(parts: Parts) -> bytes:
    return parts.sealed(edit_header=lambda text: text.replace("rest/", "rest\\/", 1))


@invalid("the entry of a tensor without elements twice, with two shapes")
def twice_in_header(parts: Parts) -> bytes:
    entry = compact({"buffers/nothing": parts.header["buffers/nothing"]})[1:-1]
    other = entry.replace("[0,2]", "[2,0]")
    return parts.sealed(edit_header=lambda text: text.replace(entry, f"{other},{entry}"))


@invalid("no masks")
def no_masks(parts: Parts) -> None:
    del parts.header["masks"]
    parts.again()


@invalid("a tensor of another kind")
def unknown_part(parts: Parts) -> None:
    parts.insert("scores/first.weight", "F32", [1], bytes(4))


@invalid("two tensors of one dtype not in the order of their names")
def other_order(parts: Parts) -> None:
    parts.again([*reversed(parts.header)])


@invalid("two tensors share their bytes")
def overlap(parts: Parts) -> None:
    parts.header["rest/third.bias"]["data_offsets"] = parts.header["prototype/all"]["data_offsets"]


@invalid("four bytes belong to no tensor")
def gap(parts: Parts) -> None:
    parts.insert("rest/zzz", "F32", [1], bytes(4))
    del parts.header["rest/zzz"]


reentered("a dtype that there is not", "masks", "dtype", "F4", "unknown_dtype")
reentered("complex numbers", "prototype/all", "dtype", "C64", "complex_dtype")
reentered("a shape of other length", "prototype/all", "shape", [5], "other_length")
reentered("a shape that overflows", "rest/third.bias", "shape", [2**33, 2**33], "huge_shape")
reentered("a shape of 0 that overflows", "buffers/nothing", "shape", [2**62, 0, 8], "huge_nothing")
reentered("a shape of 0 and of 2^63 bytes", "buffers/nothing", "shape", [2**61, 0], "large_nothing")
reentered("a shape of 65 sizes", "rest/third.bias", "shape", [4, *64 * [1]], "dimensions_65")
reentered("a size beyond 64 bits", "rest/third.bias", "shape", [2**70], "huge_size")
reentered("a negative size", "rest/third.bias", "shape", [-2, -2], "negative_shape")
reentered("a size that is true", "masks", "shape", [True], "size_true")
reentered("a size that is a float", "rest/third.bias", "shape", [4.0], "size_float")
reentered("a shape that is no list", "rest/third.bias", "shape", 4, "shape_number")
reentered("a list as a size", "rest/third.bias", "shape", [[0], 10**8], "size_list")
reentered("offsets beyond 64 bits", "masks", "data_offsets", [2**64, 2**64 + 4], "huge_offsets")
reentered("offsets that run backwards", "masks", "data_offsets", [4, 0], "backward_offsets")


# --- The metadata ---------------------------------------------------------------------------------

edited("a checksum in capitals", 64 * "0", 64 * "A", "checksum_upper")
edited("a checksum too short", 64 * "0", "0", "checksum_short")
edited("version 3", '"version":1', '"version":3', "version_3")
edited("version 2 with one density", '"version":1', '"version":2', "version_2")
edited("version 1 with many densities", '"density":0.5', '"density":{"weight":0.5}', "many_in_1")
edited("version true", '"version":1', '"version":true', "version_true")
edited("no version", '"version":1,', "", "no_version")
edited("an unknown strategy", '"rp"', '"padding"', "unknown_strategy")
edited("a strategy without ratio with one", '"rp"', '"mp"', "ratio_of_mp")
edited("ratio 0", '"ratio":0.3', '"ratio":0.0', "ratio_0")
edited("a ratio that gives another length", '"ratio":0.3', '"ratio":0.4', "other_ratio")
edited("a ratio that is text", '"ratio":0.3', '"ratio":"0.3"', "ratio_text")
edited("a ratio with a needless digit", '"ratio":0.3', '"ratio":0.30', "ratio_digits")


def layered(what: str, name: str, **density: Any) -> None:
    """Add a vector of version 2 in which the densities are others."""

    def change(parts: Parts) -> None:
        parts.said["density"] = {f"{layer}.weight": value for layer, value in density.items()}

    change.__name__ = name
    invalid(what, "by_layer")(change)


layered("a density is missing", "densities_lack", first=0.2, second=1.0)
layered("a density too many", "densities_more", first=0.2, second=1.0, third=0.5, fourth=0.5)
layered("densities in another order", "densities_turned", third=0.5, second=1.0, first=0.2)
layered("a density above 1", "densities_above_1", first=0.2, second=1.5, third=0.5)
layered("a density that its mask has not", "densities_other", first=0.9, second=1.0, third=0.5)
edited("density above 1", '"density":0.5', '"density":1.5', "density_above_1")
edited("density not a number", '"density":0.5', '"density":NaN', "density_nan")
edited("density infinite", '"density":0.5', '"density":1e999', "density_infinite")
edited("a density that the masks do not have", '"density":0.5', '"density":0.25', "other_density")
edited("a tag that is a number", '"tag":""', '"tag":0', "tag_number")
edited("half a character in the tag", '"tag":""', r'"tag":"\ud800"', "tag_surrogate")
edited("a key more", '"tag":""', '"tag":"","more":""', "key_more")
edited("a key twice", '"tag":""', '"tag":"another","tag":""', "key_twice")
edited("a space", '"tag":""', '"tag": ""', "space_in_metadata")
edited("a name that is a number", '"second.weight"', "7", "name_number")
edited("a name that is null", '"second.weight"', "null", "name_null")
edited("no shapes", '[["first.weight",[3,3]]', "[", "shapes_broken")
edited("a shape that overflows", "[4,3]", "[4611686018427387904,3]", "weight_huge")
edited("a weight of 65 dimensions", "[4,3]", f"[4,3{63 * ',1'}]", "weight_dimensions_65")
edited("2^40 weights", "[4,3]", "[1048576,1048576]", "weight_large")
edited("a weight of negative size", "[4,3]", "[-4,-3]", "weight_negative")
edited("a weight without elements", "[4,3]", "[4,0]", "weight_empty")
edited("a weight twice", '"second.weight"', '"first.weight"', "weight_twice")
edited("a weight that is rest too", '"second.weight"', '"scale"', "weight_and_rest")
edited("tied to a tensor that is not there", "{}", '{"a":"b"}', "tied_to_nothing")
edited("a second name that is a first one", "{}", '{"scale":"first.bias"}', "tied_over")
edited("tied that is a list", "{}", '[["a","scale"]]', "tied_list")


@invalid("metadata that are a list")
def metadata_list(parts: Parts) -> bytes:
    return parts.sealed(lambda text: f"[{text}]")


@invalid("metadata that are no text")
def metadata_object(parts: Parts) -> bytes:
    header = {"__metadata__": {"pemn": parts.said}, **parts.header}
    return seal(compact(header).encode(), parts.body)


# --- The tensors ----------------------------------------------------------------------------------


@invalid("a buffer that has the name of a parameter")
def buffer_and_rest(parts: Parts) -> None:
    parts.insert("buffers/scale", "F32", [1], bytes(4))


@invalid("no prototype")
def no_prototype(parts: Parts) -> None:
    del parts.header["prototype/all"]
    parts.again()


@invalid("a prototype too many")
def prototype_more(parts: Parts) -> None:
    parts.insert("prototype/other", "F32", [1], bytes(4))


@invalid("a prototype one value longer")
def prototype_longer(parts: Parts) -> None:
    del parts.header["prototype/all"]
    parts.insert("prototype/all", "F32", [5], bytes(20))


@invalid("a prototype of integers")
def prototype_integers(parts: Parts) -> None:
    del parts.header["prototype/all"]
    parts.insert("prototype/all", "I32", [4], bytes(16))


@invalid("masks one byte longer")
def masks_longer(parts: Parts) -> None:
    values = bytes(parts.body[parts.at("masks") :][:4])
    del parts.header["masks"]
    parts.insert("masks", "U8", [5], values + b"\0")


@invalid("a bit more in the first mask")
def mask_one_more(parts: Parts) -> None:
    first = parts.at("masks")
    parts.body[first] |= parts.body[first] + 1


@invalid("a bit after the last mask")
def bit_after_last(parts: Parts) -> None:
    parts.body[parts.at("masks") + 3] |= 0x80


@invalid("an infinite value in the prototype")
def prototype_infinite(parts: Parts) -> None:
    first = parts.at("prototype/all")
    parts.body[first : first + 4] = struct.pack("<f", float("inf"))


@invalid("a value in the rest that is not a number")
def rest_nan(parts: Parts) -> None:
    first = parts.at("rest/third.bias")
    parts.body[first : first + 4] = struct.pack("<f", float("nan"))


@invalid("a bool that is 2")
def bool_2(parts: Parts) -> None:
    parts.body[parts.at("buffers/flags")] = 2


def index() -> dict[str, Any]:
    """What each file is, and what is in the valid ones: every name with its shape and values."""
    contents = {}
    for name, made in VALID.items():
        _, tensors = read((FOLDER / "valid" / f"{name}.safetensors").read_bytes())
        dense = {
            n: {"shape": [*t.shape], "values": [str(v) for v in t.ravel().tolist()]}
            for n, t in sorted(tensors.items())
        }
        contents[name] = {"what": made.what, "dense": dense}
    return {"valid": contents, "invalid": {name: what for name, (what, _) in INVALID.items()}}


def main() -> None:
    """Write all of them."""
    for kind, makers in (
        ("valid", {name: lambda name=name: valid(name) for name in VALID}),
        ("invalid", {name: make for name, (_, make) in INVALID.items()}),
    ):
        (FOLDER / kind).mkdir(parents=True, exist_ok=True)
        for name, make in makers.items():
            (FOLDER / kind / f"{name}.safetensors").write_bytes(make())
    (FOLDER / "index.json").write_text(json.dumps(index(), indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
