"""C: the compressed model as a file."""

import json
import math
import os
import random
import re
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import traceback
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as by_safetensors
from torch import Tensor, nn

import pemn_ref
from spec_tests.clauses import EXAMPLES, clause
from spec_tests.draws import Drawn, few, fractions, random_scores, seeds, strategies
from spec_tests.models import CASES, Awkward, Renamed, built, untouched
from spec_tests.subject import pemn
from spec_tests.test_errors import refuses
from spec_tests.vector_reader import read
from spec_tests.vectors import FOLDER, INVALID, VALID, Parts, Small, state_of, valid

INDEX = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
cases = st.sampled_from(sorted(CASES))


def vector(kind: str, name: str) -> Path:
    """A file of the conformance vectors."""
    return FOLDER / kind / f"{name}.safetensors"


def with_file(data: bytes, call: Callable[[Path], Any]) -> Any:
    """What the call makes of a file with these bytes, which are right."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(data)
        return accepted(path, call)


def accepted(path: Path, call: Callable[[Path], Any]) -> Any:
    """What the call makes of a file that is right: to refuse it is a failure."""
    try:
        return call(path)
    except ValueError as error:
        return pytest.fail(f"a file that is right is refused: {error}")


def saved(*arguments: Any, **options: Any) -> bytes:
    """The bytes that ``save`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        pemn.save(path, *arguments, **options)
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        return path.read_bytes()


def network(case: str, strategy: Drawn, seed: int) -> tuple[nn.Module, Any]:
    """A model in channels_last, and a state for it with scores of the suite's own."""
    model = built(CASES[case].build, seed % 1000)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.to(memory_format=torch.channels_last)
    state = pemn.init(model, strategy.value, seed=seed)
    for name, scores in state.scores.items():
        like = torch.empty_like(scores)
        state.scores[name] = like.copy_(random_scores(scores.shape, seed)).requires_grad_()
    for name in state.buffers.keys() & model.state_dict().keys():
        state.buffers[name] += 1  # not the model's own any more
    return model, state


def bits(tensors: Any) -> dict[str, Any]:
    """Everything that there is to a dict of tensors, comparable with ``==``; of the values the
    digest, because of two long lists that differ pytest can look for the difference for hours.
    """
    return {
        name: (
            t.dtype,
            tuple(t.shape),
            sha256(t.detach().contiguous().flatten().view(torch.uint8).numpy()).hexdigest(),
        )
        for name, t in tensors.items()
    }


@clause("C1", "SHOULD")
@pytest.mark.parametrize("case", sorted(CASES))
@given(strategy=strategies(), density=fractions, seed=seeds)
@settings(few())
def test_round_trip(case: str, strategy: Drawn, density: float, seed: int) -> None:
    """A file gives back weights, rest and buffers to the bit, and the masks as scores of 0 and 1.
    It gives the same dense model, with the model and without, which a plain one loads.
    Non-persistent buffers are the model's.
    """
    model, state = network(case, strategy, seed)
    before = [bits(part) for part in state]
    data = saved(model, state, strategy.value, density=density, tag="a tag")
    assert [bits(part) for part in state] == before
    again, info = with_file(data, lambda path: pemn.load(path, model))
    for part in ("weights", "rest", "buffers"):
        assert bits(getattr(again, part)) == bits(getattr(state, part))
        assert list(getattr(again, part)) == list(getattr(state, part))
    for name, scores in again.scores.items():
        mask = pemn.score_mask(state.scores[name], density=density)
        assert torch.equal(scores, mask)
        assert torch.equal(pemn.score_mask(scores, density=density), mask)
        assert scores.requires_grad
    assert all(tensor.requires_grad for tensor in again.rest.values())
    dense = pemn.materialize(model, state, density=density)
    assert bits(pemn.materialize(model, again, density=info.density)) == bits(dense)
    read = with_file(data, pemn.load_dense)
    assert bits(read) == bits(dense)
    plain = CASES[case].build()
    plain.load_state_dict(read)
    assert bits(plain.state_dict()) == bits(dense)
    own = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert not own & {t.data_ptr() for part in again for t in part.values()}


@clause("C16", "SHOULD")
@pytest.mark.parametrize("case", sorted(c for c in CASES if len(CASES[c].maskable) > 1))
def test_layers_left_out_and_densities_by_layer(case: str) -> None:
    """A file holds a network that is masked in part, and one with a density for each layer, and
    gives both back. The header says which weights are masked, and at which density.
    """
    model = built(CASES[case].build, 0)
    some = dict([*pemn.maskable_shapes(model).items()][1:])
    density = {name: 0.1 + 0.8 * i / len(some) for i, name in enumerate(some)}
    state = pemn.init(model, pemn.rp(0.1), seed=0, shapes=some)
    for one in (0.3, density, dict(reversed(density.items()))):
        data = saved(model, state, pemn.rp(0.1), density=one)
        again, info = with_file(data, lambda path: pemn.load(path, model))
        assert (info.density, dict(info.shapes)) == (one, some)
        assert [list(part) for part in again] == [list(part) for part in state]
        assert bits(again.rest) == bits(state.rest)
        for name, scores in again.scores.items():
            own = one if isinstance(one, float) else one[name]
            assert torch.equal(scores, pemn.score_mask(state.scores[name], density=own))
        dense = pemn.materialize(model, state, density=one)
        assert bits(with_file(data, pemn.load_dense)) == bits(dense)
        _, arrays = read(data)
        assert arrays.keys() == dense.keys()
        assert all(np.array_equal(arrays[name], dense[name].numpy()) for name in dense)
    lacking = {name: density[name] for name in [*density][1:]}
    with pytest.raises(ValueError, match=re.escape(next(iter(density)))):
        saved(model, state, pemn.rp(0.1), density=lacking)


@clause("C2", "SHOULD")
@given(case=cases, strategy=strategies(), seed=seeds, density=st.one_of(st.just(0.5), fractions))
@settings(few())
def test_size(case: str, strategy: Drawn, seed: int, density: float) -> None:
    """In float32 a file has ceil(N / 8) + 4 U bytes, and those of rest, persistent buffers and
    header.
    """
    model, state = network(case, strategy, seed)
    data = saved(model, state, strategy.value, density=density)
    cost = pemn.storage(pemn.maskable_shapes(model), strategy.value)
    stored = {id(t) for t in model.state_dict(keep_vars=True).values()}
    buffers = [b for b in model.buffers() if id(b) in stored]
    others = sum(t.numel() * t.element_size() for t in [*state.rest.values(), *buffers])
    header = 8 + struct.unpack("<Q", data[:8])[0]
    assert len(data) == math.ceil(cost.weights / 8) + 4 * cost.unique + others + header


@clause("C3", "SHOULD")
@given(case=cases, strategy=strategies(), density=fractions, seed=seeds)
@settings(few())
def test_deterministic(case: str, strategy: Drawn, density: float, seed: int) -> None:
    """The same state gives the same bytes, and so does the state read back from them, whatever the
    default device.
    """
    model, state = network(case, strategy, seed)
    data = saved(model, state, strategy.value, density=density)
    with torch.device("meta"):
        assert saved(model, state, strategy.value, density=density) == data
        again, info = with_file(data, lambda path: pemn.load(path, model))
        dense = with_file(data, pemn.load_dense)
    assert saved(model, again, info.strategy, density=info.density) == data
    assert {tensor.device.type for tensor in dense.values()} == {"cpu"}


@clause("C4", "SHOULD")
def test_half() -> None:
    """On request the floats of the rest, and only they, are rounded to float16, and read back in
    the model's dtype; a value too large for it is refused.
    """
    model = Small()
    state = state_of(model, pemn.mp)
    state.rest["scale"].data.fill_(1 / 3)
    full = saved(model, state, pemn.mp, density=0.5)
    half = saved(model, state, pemn.mp, density=0.5, half=True)
    assert saved(model, state, pemn.mp, density=0.5) == full  # the state is as it was
    lengths = [len(d) - struct.unpack("<Q", d[:8])[0] for d in (full, half)]
    assert lengths[0] - lengths[1] == 2 * sum(t.numel() for t in state.rest.values())
    info = with_file(half, pemn.inspect)
    assert {t.dtype for t in info.rest.values()} == {torch.float16}
    again, _ = with_file(half, lambda path: pemn.load(path, model))
    assert bits(again.rest) == bits({n: t.half().float() for n, t in state.rest.items()})
    assert bits(again.buffers) == bits(state.buffers)
    assert bits(again.weights) == bits(state.weights)
    state.rest["scale"].data.fill_(1e6)
    refuses(lambda: saved(model, state, pemn.mp, density=0.5, half=True), "rest/scale")


@clause("C5", "SHOULD")
def test_only_what_a_file_can_hold() -> None:
    """What a file would not give back is refused, and named: weights that are not the strategy's
    prototype filled in, or that share one and differ in dtype, values that are not finite, an
    unknown dtype, more than 64 dimensions, a tag that is not text or has a lone surrogate, a
    density outside (0, 1], the state of another model, a model whose state_dict has copies under
    other names.
    """
    model = Small()
    state = state_of(model, pemn.mp)

    def refused(part: str, changes: dict[str, Tensor], named: str) -> None:
        other = state._replace(**{part: {**getattr(state, part), **changes}})
        refuses(lambda: saved(model, other, pemn.mp, density=0.5), named)

    changed = state.weights["second.weight"].clone()
    changed[0, 0] += 1
    refused("weights", {"second.weight": changed}, "second.weight")
    refused("weights", {"second.weight": state.weights["second.weight"].double()}, "second.weight")
    refuses(lambda: saved(model, state, pemn.rp(0.3), density=0.5), "first.weight", "rp")
    refused("scores", {"third.weight": torch.full((4, 3), math.nan)}, "third.weight")
    refused("scores", {"third.weight": torch.ones(3, 4)}, "third.weight")
    refused("rest", {"scale": torch.tensor(math.inf)}, "rest/scale")
    refused("rest", {"more": torch.ones(1)}, "more")
    refused("buffers", {"steps": torch.tensor(1j)}, "buffers/steps")
    integers = {name: weight.int() for name, weight in state.weights.items()}
    refused("weights", integers, "prototype/all")
    renamed = Renamed(copied=True)
    made = pemn.init(renamed, pemn.mp, seed=0)
    refuses(lambda: saved(renamed, made, pemn.mp, density=0.5), "weight")
    huge = linear_with(nothing=torch.empty(0, 2**61))
    refuses(lambda: saved(huge, pemn.init(huge, pemn.mp, seed=0), pemn.mp, density=0.5), "nothing")
    deep = linear_with(deep=torch.ones(65 * [1]))
    refuses(lambda: saved(deep, pemn.init(deep, pemn.mp, seed=0), pemn.mp, density=0.5), "deep", 65)
    mixed = nn.Sequential(nn.Linear(3, 3).bfloat16(), nn.Linear(3, 3))
    for strategy in (pemn.mp, pemn.one_layer, pemn.rp(0.3)):
        made = pemn.init(mixed, strategy, seed=0)
        call = partial(saved, mixed, made, strategy, density=0.5)
        refuses(call, "1.weight", "float32", "bfloat16")
    saved(mixed, pemn.init(mixed, pemn.mask, seed=0), pemn.mask, density=0.5)
    refuses(lambda: saved(model, state, pemn.mp, density=0.5, tag=1), "tag")
    refuses(lambda: saved(model, state, pemn.mp, density=0.5, tag="a\ud800"), "tag", r"'a\ud800'")
    refuses(lambda: saved(model, state, pemn.mp, density=1.5), "density", 1.5)
    own = state_of(model, pemn.mask)
    own.weights["third.weight"].fill_(math.nan)
    refuses(lambda: saved(model, own, pemn.mask, density=0.5), "prototype/third.weight")
    empty: Any = state._replace(weights={}, rest={**state.weights, **state.rest})
    refuses(lambda: saved(model, empty, pemn.mp, density=0.5), "first.weight")


@clause("C6", "SHOULD")
def test_another_model() -> None:
    """A model refuses the file of another one, even if only ties differ, or if its dtypes cannot
    hold the values. The message names the first difference.
    """
    path = vector("valid", "rp")
    fewer, larger, other = Small(), Small(), Small()
    fewer.scale = None  # type: ignore[assignment]
    refuses(lambda: pemn.load(path, fewer), "scale")
    fewer = Small()
    fewer.register_buffer("flags", torch.tensor([True, False]), persistent=False)
    refuses(lambda: pemn.load(path, fewer), "flags")
    larger.third = nn.Linear(3, 5)
    refuses(lambda: pemn.load(path, larger), "third.weight", (4, 3), (5, 3))
    other.fourth = nn.Linear(3, 3)
    refuses(lambda: pemn.load(path, other), "fourth.weight")
    refuses(lambda: pemn.load(path, nn.LSTM(3, 4)), "first.weight")

    def refused(own: nn.Module, state: Any, model: nn.Module, *named: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            pemn.save(path, own, state, pemn.mp, density=0.5)
            refuses(lambda: pemn.load(path, model), path.name, *named)

    three, tied = (nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))) for _ in range(2))
    three[2].weight, tied[2].weight = three[0].weight, tied[1].weight
    refused(three, pemn.init(three, pemn.mp, seed=0), tied, "2.weight", "0.weight", "1.weight")
    large = Small()
    large.scale.data.fill_(1e6)
    refused(large, pemn.init(large, pemn.mp, seed=0), Small().half(), "scale", "float16")
    large = Small()
    state = pemn.init(large, pemn.mp, seed=0)
    for weight in state.weights.values():
        weight.fill_(1e6)
    refused(large, state, Small().half(), "first.weight", "float16")
    half, whole = linear_with(b=torch.tensor(0.5)), linear_with(b=torch.tensor(1))
    refused(half, pemn.init(half, pemn.mp, seed=0), whole, "b", "float32", "int64")


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one accident in them."""
    a, b, c = sorted(draw.randrange(len(data) + 1) for _ in range(3))
    made = bytearray(data)
    match draw.randrange(6):
        case 0:
            for _ in range(draw.randint(2, 16)):
                made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
        case 1:
            made[a:] = data[b:c] + data[a:b] + data[c:]  # sections swapped
        case 2:
            made[a:b] = b""
        case 3:
            made[a:a] = data[b:c]
        case 4:
            made[a:b] = draw.randbytes(b - a)
        case _:
            lengths = [0, 1, len(data) - 8, len(data), 2**31, 2**63, 2**64 - 1, draw.randrange(999)]
            made[:8] = struct.pack("<Q", draw.choice(lengths))
    return bytes(made)


@clause("C7", "SHOULD")
def test_damage() -> None:
    """A damaged file is refused: with any bit flipped, cut at any byte, sections swapped, lost or
    repeated, another length.
    """
    data = vector("valid", "rp").read_bytes()
    draw = random.Random(0)
    flips = (
        data[:i] + bytes([data[i] ^ 1 << b]) + data[i + 1 :]
        for b in range(8)
        for i in range(len(data))
    )
    cuts = (data[:i] for i in range(len(data)))
    accidents = (damaged(data, draw) for _ in range(200 * examples()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.safetensors"
        for number, made in enumerate(d for some in (accidents, flips, cuts) for d in some):
            if made != data:
                overwrite(path, made)
                try:
                    pemn.load_dense(path)
                except ValueError:
                    EXAMPLES["C7"] += 1
                else:
                    pytest.fail(f"damaged file {number} is accepted")


def overwrite(path: Path, data: bytes) -> None:
    """Write in place: some file systems wait for the disk where a file is cut to nothing first."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.write(data)
        file.truncate()


def examples() -> int:
    """Examples of a property in this profile."""
    profile = settings.default
    assert profile is not None
    return profile.max_examples


NUMBERS = ["0", "1", "-1", "1.0", "2", "4", "1e999", "NaN", "9223372036854775807", 20 * "9"]
TOKENS = [*NUMBERS, "null", "true", "[]", "{}", "[1,1]", "[[", "}", '""', '"mp"', '"all"', '"U8"']


def forged(data: bytes, draw: random.Random) -> bytes:
    """A file made wrong on purpose, somewhere, with the right checksum."""
    parts = Parts(data)

    def edit(text: str) -> str:
        pieces = pieces_of(text)
        at = draw.randrange(len(pieces))
        kind = draw.randrange(4)
        if kind == 0:
            pieces[at] = draw.choice(TOKENS)
        elif kind == 1:
            pieces.insert(at, pieces[draw.randrange(len(pieces))])
        elif kind == 2:
            other = draw.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        else:
            pieces[at] = ""
        return "".join(pieces)

    kind = draw.randrange(4)
    names = list(parts.header)
    if kind == 0:
        return parts.sealed(edit_text=edit)
    if kind == 1:
        return parts.sealed(edit_header=edit)
    if kind == 2:
        one, other = draw.sample(names, 2)
        key = draw.choice(["dtype", "shape", "data_offsets"])
        entry, entry_2 = parts.header[one], parts.header[other]
        entry[key], entry_2[key] = entry_2[key], entry[key]
        return parts.sealed()
    parts.body[draw.randrange(len(parts.body))] = draw.randrange(256)
    return parts.sealed()


def pieces_of(text: str) -> list[str]:
    """JSON in pieces: strings, numbers and single characters."""
    pieces, at = [], 0
    while at < len(text):
        end = at + 1
        if text[at] == '"':
            while text[end : end + 1] not in ('"', ""):
                end += 2 if text[end] == "\\" else 1
            end += 1
        else:
            while text[at] in "-0123456789" and text[end : end + 1] in [*"0123456789.e-"]:
                end += 1
        pieces.append(text[at:end])
        at = end
    return pieces


def in_numpy(tensor: Tensor) -> Any:
    """The array as the reader gives it: bfloat16 as float32, bools as bytes."""
    return {torch.bfloat16: tensor.float(), torch.bool: tensor.byte()}.get(
        tensor.dtype, tensor
    ).numpy()


@clause("C8", "SHOULD")
@pytest.mark.parametrize("name", sorted(VALID))
def test_valid_vectors(name: str) -> None:
    """Every valid conformance vector is read as the index says."""
    dense = accepted(vector("valid", name), pemn.load_dense)
    expected = INDEX["valid"][name]["dense"]
    assert sorted(dense) == sorted(expected)
    for key, tensor in dense.items():
        assert list(tensor.shape) == expected[key]["shape"]
        assert [str(v) for v in in_numpy(tensor).ravel().tolist()] == expected[key]["values"]


# Invalid vectors in which only the values, or the checksum of all, are wrong.
RIGHT_HEADERS = {"flipped_mask", "flipped_metadata", "other_density", "mask_one_more"}
RIGHT_HEADERS |= {"densities_other", "bit_after_last", "prototype_infinite", "rest_nan", "bool_2"}


@clause("C9", "SHOULD")
@pytest.mark.parametrize("name", sorted(INVALID))
def test_invalid_vectors(name: str) -> None:
    """Every invalid conformance vector is refused, and the file is named; by its header alone where
    the header is what is wrong.
    """
    path = vector("invalid", name)
    for call in (pemn.load_dense, lambda path: pemn.load(path, Small())):
        refuses(lambda: call(path), name)  # noqa: B023
    if name not in RIGHT_HEADERS:
        refuses(lambda: pemn.inspect(path), name)


@clause("C10", "SHOULD")
@given(case=cases, strategy=strategies(), density=fractions, tag=st.text())
@settings(few())
def test_inspect(case: str, strategy: Drawn, density: float, tag: str) -> None:
    """The header alone says strategy, density, tag, the shapes in order, all other tensors: enough
    to count what the model costs.
    """
    model, state = network(case, strategy, 0)
    data = saved(model, state, strategy.value, density=density, tag=tag)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    info = with_file(data[:header] + bytes(len(data) - header), pemn.inspect)
    assert (info.strategy, info.density, info.tag) == (strategy.value, density, tag)
    assert list(info.shapes.items()) == list(pemn.maskable_shapes(model).items())
    others = [*info.rest.values(), *info.buffers.values()]
    cost = pemn.storage(info.shapes, info.strategy, others)
    masks = -(-cost.weights // 8) - cost.weights / 8
    assert len(data) - header == cost.bits / 8 + masks
    assert cost.unique == sum(len(values) for values in info.prototype.values())
    assert {t.device.type for t in [*others, *info.prototype.values()]} <= {"meta"}


@clause("C11", "SHOULD")
def test_forgery() -> None:
    """A file made wrong on purpose, with the right checksum, is refused, or it is read exactly as
    the independent reader of the format reads it.
    """
    draw = random.Random(0)
    bases = [vector("valid", name).read_bytes() for name in ("rp", "one_layer", "tied")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forged.safetensors"
        for _ in range(40 * examples()):
            data = forged(draw.choice(bases), draw)
            overwrite(path, data)
            try:
                _, expected = read(data)
            except Exception:
                with pytest.raises(ValueError, match=path.name):
                    pemn.load_dense(path)
            else:
                got = accepted(path, pemn.load_dense)
                assert {name: in_numpy(t).tobytes() for name, t in got.items()} == {
                    name: t.tobytes() for name, t in expected.items()
                }
            EXAMPLES["C11"] += 1


@clause("C12", "SHOULD")
@given(strategy=strategies(), density=fractions, seed=seeds)
@example(Drawn("rp", 0.1), 0.5, 0)
@settings(few())
def test_large_layers(strategy: Drawn, density: float, seed: int) -> None:
    """A layer of thousands of weights is read as it was written, whether its prototype is long or
    short.
    """
    model = built(lambda: nn.Linear(90, 100), 0)
    state = pemn.init(model, strategy.value, seed=seed)
    data = saved(model, state, strategy.value, density=density)
    dense = with_file(data, pemn.load_dense)
    assert bits(dense) == bits(pemn.materialize(model, state, density=density))


@clause("C13", "SHOULD")
def test_awkward_model() -> None:
    """The file has all tensors, and no extra state, of a model whose state_dict is made of copies,
    of tied tensors too, or has other names, as with hooks and wrappers; of one with extra state,
    names with a slash, or an empty tensor of huge shape; and of one whose only layer stands twice.
    """
    layer = nn.Linear(3, 3, bias=False)
    for model in (built(Awkward, 0), nn.Sequential(layer, layer)):
        state = pemn.init(model, pemn.mp, seed=0)
        data = saved(model, state, pemn.mp, density=0.5)
        dense = pemn.materialize(model, state, density=0.5)
        dense = {name: dense[name] for name in dense if not name.endswith("_extra_state")}
        assert bits(with_file(data, pemn.load_dense)) == bits(dense)
        again, _ = with_file(data, lambda path: pemn.load(path, model))  # noqa: B023
        assert bits(again.buffers) == bits(state.buffers)
    renamed = built(lambda: Renamed(copied=False), 0)
    state = pemn.init(renamed, pemn.mp, seed=0)
    read = with_file(saved(renamed, state, pemn.mp, density=0.5), pemn.load_dense)
    dense = pemn.materialize(renamed, state, density=0.5)
    assert bits({name: read[name] for name in dense}) == bits(dense)


@clause("C14", "SHOULD")
def test_longest_header() -> None:
    """A header of 100,000,000 bytes is written and read. A longer one is not written, and is
    refused before memory for it is allocated.
    """
    model = nn.Linear(3, 4)
    state = pemn.init(model, pemn.mp, seed=0)

    def tagged(bytes_: int) -> bytes:
        tag = bytes_ // 4 * "\N{GRINNING FACE}"
        return saved(model, state, pemn.mp, density=0.5, tag=tag)

    spare = 100_000_000 - struct.unpack("<Q", tagged(0)[:8])[0]
    data = tagged(spare)
    assert data[:8] == struct.pack("<Q", 100_000_000)
    assert len(with_file(data, pemn.inspect).tag) == spare // 4
    refuses(lambda: tagged(spare + 8), 100_000_008)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(struct.pack("<Q", 100_000_008))
        os.truncate(path, 8 + 100_000_008)  # a sparse file
        tracemalloc.start()
        refuses(lambda: pemn.inspect(path), path.name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1_000_000


@clause("C15", "SHOULD")
@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("train", [True, False])
@given(strategy=strategies(), density=fractions, seed=seeds)
@settings(few())
def test_model_stays_as_it_is(
    case: str, train: bool, strategy: Drawn, density: float, seed: int
) -> None:
    """Saving and reading leave the model as it is, in training and in evaluation: every attribute
    holds the same tensor, even if a module has several names.
    """
    model, state = network(case, strategy, seed)
    with untouched(model.train(train)):
        data = saved(model, state, strategy.value, density=density)
        with_file(data, lambda path: pemn.load(path, model))
        with_file(data, pemn.load_dense)


# --- The reference's own: how it writes, and the vectors themselves ------------------------------


@pytest.mark.parametrize("name", sorted(VALID))
def test_vectors_are_those_of_the_generator(name: str) -> None:
    assert vector("valid", name).read_bytes() == valid(name)


@pytest.mark.parametrize("name", sorted(INVALID))
def test_invalid_vectors_are_those_of_the_generator(name: str) -> None:
    assert vector("invalid", name).read_bytes() == INVALID[name][1]()
    assert INDEX["invalid"][name] == INVALID[name][0]


# Of every check of the file an example: a vector is refused for what is wrong with it.
MESSAGES = {
    "checksum_upper": f"sha256 is not 64 hex digits: {64 * 'A'}",
    "dimensions_65": "rest/third.bias has 65 dimensions, a file allows 64",
    "bit_after_last": "padding bits after the last mask are set",
    "bool_2": "buffers/flags is BOOL with bytes above 1",
    "density_above_1": "density must be a number in (0, 1], got 1.5",
    "flipped_mask": "the checksum does not match: the file is damaged",
    "header_list": "the header has a JSON list where it needs an object",
    "header_too_long": "the header would end at byte 11 of 10",
    "large_nothing": "buffers/nothing is too large: (2305843009213693952, 0)",
    "metadata_list": "the header has a JSON list where it needs an object",
    "name_number": "the header is not what a writer makes of these contents",
    "no_metadata": "an ordinary safetensors file, not a compressed model",
    "ordinary": "an ordinary safetensors file, not a compressed model",
    "mask_one_more": "the mask of first.weight keeps 6 weights, not 5",
    "other_length": "the prototypes do not fit the strategy: all has shape (5,), not (4,)",
    "rest_nan": "rest/third.bias has values that are not finite",
    "space_in_metadata": "the header is not what a writer makes of these contents",
    "tied_over": "a name appears twice: scale",
    "tied_to_nothing": "tied to a name that is not in the file: {'a': 'b'}",
    "truncated": "the tensors end at byte 966 of 965",
    "weight_dimensions_65": "third.weight has 65 dimensions, a file allows 64",
    "version_3": "version 3 is not one of (1, 2)",
}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_message(name: str) -> None:
    path = vector("invalid", name)
    with pytest.raises(ValueError, match=name) as error:
        pemn.load_dense(path)
    assert str(error.value) == f"{path}: {MESSAGES[name]}"


def linear_with(**buffers: Tensor) -> nn.Module:
    """A linear layer with buffers."""
    model = nn.Linear(5, 4)
    for name, tensor in buffers.items():
        model.register_buffer(name, tensor)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(6, 4), "the weights do not fit the model: weight has shape (4, 5), not"),
        (nn.Linear(5, 4, bias=False), "the rest does not fit the model: bias is not expected"),
        (linear_with(b=torch.ones(1)), "the buffers do not fit the model: b is missing"),
    ],
)
def test_message_of_load(model: nn.Module, message: str) -> None:
    own = nn.Linear(5, 4)
    data = saved(own, pemn.init(own, pemn.mp, seed=0), pemn.mp, density=0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {message}')}"):
            pemn.load(path, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": {}, "rest": {"weight": torch.ones(4, 5), "bias": torch.ones(4)}},
            "the scores do not fit the model: weight is not expected",
        ),
        ({"scores": {}}, "the scores do not fit the model: weight is missing"),
        (
            {"weights": {"weight": torch.ones(4, 5), "bias": torch.ones(4)}, "rest": {}},
            "the weights do not fit the model: bias is not expected",
        ),
        (
            {"rest": {"bias": torch.ones(4, dtype=torch.complex64)}},
            "rest/bias has dtype torch.complex64, a file only has I64, F64, F32, I32, BF16, F16, "
            "I16, I8, U8, BOOL",
        ),
        (
            {"weights": {"weight": torch.arange(20.0).reshape(4, 5)}},
            "weight is not filled from the prototype of Strategy(name='rp', ratio=0.1): pass the "
            "weights as init made them, and the strategy they were made with",
        ),
    ],
)
def test_message_of_save(changes: dict[str, dict[str, Tensor]], message: str) -> None:
    model = nn.Linear(5, 4)
    state = pemn.init(model, pemn.rp(0.1), seed=0)._replace(**changes)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        saved(model, state, pemn.rp(0.1), density=0.5)


def test_no_vector_is_left_over() -> None:
    for kind, names in (("valid", VALID), ("invalid", INVALID)):
        assert {p.stem for p in (FOLDER / kind).iterdir()} == set(names) == set(INDEX[kind])


@pytest.mark.parametrize("name", sorted(VALID))
def test_the_reader_reads(name: str) -> None:
    _, dense = read(vector("valid", name).read_bytes())
    expected = INDEX["valid"][name]["dense"]
    assert {n: [str(v) for v in t.ravel().tolist()] for n, t in dense.items()} == {
        n: entry["values"] for n, entry in expected.items()
    }


@pytest.mark.parametrize("name", sorted(INVALID))
def test_the_reader_refuses(name: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  of any kind: it is 40 lines
        read(vector("invalid", name).read_bytes())


@pytest.mark.parametrize("name", sorted(VALID))
def test_safetensors_writes_the_same_bytes(name: str) -> None:
    path = vector("valid", name)
    with safetensors.safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        assert by_safetensors(tensors, file.metadata()) == path.read_bytes()


@pytest.mark.parametrize("signalled", [False, True], ids=["an error", "a kill"])
def test_an_old_file_outlives_a_write_that_fails(tmp_path: Path, signalled: bool) -> None:
    """Stopped where all bytes are written and the name is not yet given; torch alone is needed."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    how = f"os.kill(os.getpid(), {int(signal.SIGKILL)})" if signalled else "1 / 0"
    program = (
        "import os, sys; sys.modules.update(dict.fromkeys(['numpy', 'safetensors']))\n"
        "import torch; from pemn_ref import file, init, mp\n"
        f"def stop(_): {how}\n"
        "os.fsync = stop; model = torch.nn.Linear(3, 4)\n"
        "file.save(sys.argv[1], model, init(model, mp, seed=0), mp, density=0.5)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert done.returncode == (-signal.SIGKILL if signalled else 1)
    assert signalled or b"ZeroDivisionError" in done.stderr
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1 + signalled  # a killed process cannot tidy up


def make_null(path: Path) -> None:
    """A device of its own: as root a mistake would replace that of the machine."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("makes a device, which is not allowed here")


@pytest.mark.parametrize("linked", [False, True], ids=["direct", "linked"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_null])
def test_what_is_no_regular_file_is_not_replaced(
    make: Callable[[Path], None], linked: bool, tmp_path: Path
) -> None:
    model, target, link = Small(), tmp_path / "target", tmp_path / "link"
    make(target)
    link.symlink_to(target)
    before = target.lstat()
    path = link if linked else target
    with pytest.raises(OSError, match="target is not a regular file"):
        pemn.save(path, model, state_of(model, pemn.mp), pemn.mp, density=0.5)
    assert (target.lstat().st_mode, target.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link"}


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    """In another process: if it hangs, it can be ended."""
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}: not a regular file$"):
        pemn.inspect(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    program = (
        "import sys, torch; from pemn_ref import file\n"
        "load = lambda path: file.load(path, torch.nn.Linear(3, 4))\n"
        "for call in (file.inspect, load, file.load_dense):\n"
        "    try: call(sys.argv[1])\n"
        "    except file.FileError as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "fifo")]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, encoding="utf-8")
    assert done.stdout == 3 * f"{tmp_path / 'fifo'}: not a regular file\n"


def test_a_loop_of_links_is_an_error_of_the_system(tmp_path: Path) -> None:
    model, loop = Small(), tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="loop"):
        pemn.save(loop, model, state_of(model, pemn.mp), pemn.mp, density=0.5)
    for read_it in (pemn.inspect, pemn.load_dense, lambda path: pemn.load(path, model)):
        with pytest.raises(OSError, match="loop"):
            read_it(loop)
    assert loop.is_symlink()
    assert [*tmp_path.iterdir()] == [loop]


@pytest.mark.parametrize("character", ["x", "\N{GRINNING FACE}"])
def test_a_name_may_be_as_long_as_the_file_system_allows(character: str, tmp_path: Path) -> None:
    model, most = Small(), os.pathconf(tmp_path, "PC_NAME_MAX")
    name = most // len(character.encode()) * character
    path = tmp_path / name
    for _ in range(2):  # a new file and an old one
        pemn.save(path, model, state_of(model, pemn.mp), pemn.mp, density=0.5)
    assert [*tmp_path.iterdir()] == [path]
    longer = tmp_path / (name + character)
    with pytest.raises(OSError, match="too long"):
        pemn.save(longer, model, state_of(model, pemn.mp), pemn.mp, density=0.5)


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444, 0o755], ids=oct)
@pytest.mark.parametrize("linked", [False, True], ids=["direct", "linked"])
def test_a_file_that_is_replaced_keeps_its_permissions(
    linked: bool, mode: int, tmp_path: Path
) -> None:
    model, target, link = Small(), tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(mode)
    link.symlink_to(target)
    path = link if linked else target
    pemn.save(path, model, state_of(model, pemn.mp), pemn.mp, density=0.5)
    assert target.stat().st_mode & 0o777 == mode
    assert link.is_symlink()
    assert target.read_bytes() == link.read_bytes() != b"old"


def test_entries_that_a_hook_renames_have_both_names() -> None:
    """As the docstring of ``load_dense`` says: the file alone does not tell which is left out."""
    model = Renamed(copied=False)
    state = pemn.init(model, pemn.mp, seed=0)
    dense = with_file(saved(model, state, pemn.mp, density=0.5), pemn.load_dense)
    assert dense.keys() == {"wrapped.weight", "wrapped.bias", "weight", "bias"}
    assert dense["weight"] is dense["wrapped.weight"]
    assert dense["bias"] is dense["wrapped.bias"]


def test_where_there_is_no_folder_the_error_is_that_of_opening(tmp_path: Path) -> None:
    model = Small()
    with pytest.raises(FileNotFoundError) as error:
        pemn.save(tmp_path / "no" / "file", model, state_of(model, pemn.mp), pemn.mp, density=0.5)
    assert error.value.__context__ is None  # not that of removing what was never made


def test_a_link_is_written_through(tmp_path: Path) -> None:
    model, link, target = Small(), tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    pemn.save(link, model, state_of(model, pemn.mp), pemn.mp, density=0.5)
    assert link.is_symlink()
    assert target.is_file()
    assert target.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    """The permissions that new files do not get."""
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("name", sorted(INVALID))
def test_memory_of_python_stays_a_small_multiple_of_the_file(name: str, tmp_path: Path) -> None:
    data = INVALID[name][1]()
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=path.name):
        pemn.load_dense(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * len(data) + 200_000


class ByKind(pemn_ref.Strategy):
    """Two prototypes of its own kind, as in CONTRIBUTING.md."""

    def group(self, name: str, shape: Sequence[int]) -> str:
        """The prototype of a weight."""
        return "linear" if len(shape) == 2 else "convolution"


def test_a_strategy_that_no_reader_knows_is_not_saved(tmp_path: Path) -> None:
    """Its file would name ``rp``, and be refused."""
    model, path, strategy = Small(), tmp_path / "model.safetensors", ByKind("rp", 0.5)
    with pytest.raises(ValueError, match=r"a file needs .*, got ByKind\(name='rp', ratio=0\.5\)"):
        pemn.save(path, model, state_of(model, strategy), strategy, density=0.5)
    assert not path.exists()


def test_values_take_the_dtype_of_the_model() -> None:
    model = Small().bfloat16()
    state, _ = pemn.load(vector("valid", "rp"), model)
    assert {t.dtype for part in state[:3] for t in part.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("value", "own", "message"),
    [
        (1e6, torch.float16, "t is too large for the model's torch.float16"),
        (300, torch.uint8, "t is too large for the model's torch.uint8"),
        (2, torch.bool, "t is too large for the model's torch.bool"),
        (0.7, torch.int32, "t is torch.float32, not torch.int32"),
    ],
)
@pytest.mark.parametrize("kind", ["rest", "buffer"])
def test_values_that_the_model_cannot_hold_are_refused(
    kind: str, value: float, own: torch.dtype, message: str, tmp_path: Path
) -> None:
    def model_with(tensor: Tensor) -> nn.Module:
        if kind == "buffer":
            return linear_with(t=tensor)
        model = nn.Linear(5, 4)
        model.t = nn.Parameter(tensor, requires_grad=False)
        return model

    path, model = tmp_path / "model.safetensors", model_with(torch.tensor([value]))
    pemn.save(path, model, pemn.init(model, pemn.mp, seed=0), pemn.mp, density=0.5)
    assert pemn.load_dense(path)["t"].item() == pytest.approx(value)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {message}')}$"):
        pemn.load(path, model_with(torch.zeros(1, dtype=own)))


def test_infinite_buffer_stays_infinite() -> None:
    model = linear_with(b=torch.tensor([-torch.inf, torch.nan]))
    data = saved(model, pemn.init(model, pemn.mp, seed=0), pemn.mp, density=0.5)
    state, _ = with_file(data, lambda path: pemn.load(path, model.half()))
    assert state.buffers["b"].isneginf().tolist() == [True, False]
    assert state.buffers["b"].isnan().tolist() == [False, True]


def test_rest_that_float16_cannot_hold_is_not_blamed_on_the_state() -> None:
    model = nn.Linear(3, 3)
    state = state_of(model, pemn.mp)
    state.rest["bias"].detach()[0] = 1e5
    saved(model, state, pemn.mp, density=0.5)
    message = "rest/bias has values too large for float16: save it without half"
    with pytest.raises(ValueError, match=f"^{message}$"):
        saved(model, state, pemn.mp, density=0.5, half=True)


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("parameter", "copy is a buffer and a parameter at once"),
        ("buffer", "own is not persistent, but is the same buffer as one that is"),
    ],
)
def test_tensor_that_a_file_cannot_name_is_refused(also: str, message: str) -> None:
    """Where ``materialize`` names it otherwise than its first name."""
    model, own = nn.Linear(3, 3), torch.ones(1)
    if also == "buffer":
        model.register_buffer("own", own, persistent=False)
    model.register_buffer("copy", model.bias if also == "parameter" else own)
    with pytest.raises(ValueError, match=f"^{message}$"):
        saved(model, state_of(model, pemn.mp), pemn.mp, density=0.5)


def test_full_memory_is_not_a_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    model = nn.Linear(3, 3)
    data = saved(model, state_of(model, pemn.mp), pemn.mp, density=0.5)
    monkeypatch.setattr("pemn_ref.file.loading.fill_weights", full)
    with pytest.raises(torch.OutOfMemoryError):
        with_file(data, lambda path: pemn.load(path, model))


def test_density_of_numpy_is_one_density() -> None:
    """In float32 0.1 of a million is 100,000, and what a file says of it, in float64, one more."""
    density: Any = np.float32(0.1)
    model = nn.Linear(1000, 1000)
    state = pemn.init(model, pemn.mp, seed=0)
    data = saved(model, state, pemn.mp, density=density)
    again, info = with_file(data, lambda path: pemn.load(path, model))
    dense = pemn.materialize(model, state, density=density)
    assert torch.equal(dense["weight"], again.weights["weight"] * again.scores["weight"])
    assert info.density == float(density)


def test_default_device_has_no_part(tmp_path: Path) -> None:
    """Neither one that is set before the import nor one that is set after it."""
    program = (
        "import sys, torch; torch.set_default_device('meta')\n"
        "from pemn_ref import file, init, materialize, mp\n"
        "with torch.device('cpu'): model = torch.nn.Linear(3, 3)\n"
        "state = init(model, mp, seed=0); file.save(sys.argv[1], model, state, mp, density=0.5)\n"
        "dense = materialize(model, file.load(sys.argv[1], model)[0], density=0.5)\n"
        "assert torch.equal(file.load_dense(sys.argv[1])['weight'], dense['weight'])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "model.safetensors")]
    subprocess.run(command, timeout=100, check=True)


def test_names_in_a_file_do_not_steer_a_terminal(tmp_path: Path) -> None:
    """Those in the message of an error; nor does the traceback hold them."""
    model, other, path = nn.Linear(3, 4), nn.Linear(3, 4), tmp_path / "model.safetensors"
    other.register_parameter("\x1b[2J\r\u202e", nn.Parameter(torch.ones(1)))
    pemn.save(path, other, state_of(other, pemn.mp), pemn.mp, density=0.5)
    with pytest.raises(ValueError, match="u202e is not expected") as caught:
        pemn.load(path, model)
    lines = traceback.format_exception(caught.value)
    assert all(line.isprintable() for text in lines for line in text.splitlines())
