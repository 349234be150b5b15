"""Trained networks as files: ``run`` writes one for each row, the other commands read them.

A masked network is a compressed file of pemn_ref whose tag says which cell it is and with which
seed; a dense or pruned one is an ordinary safetensors file, with the zeros; one of the byte
frontier has a form of its own (``frontier.files``).
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

import pemn_ref as pemn
from pemn_ref.atomic import write
from pemn_ref.file import FileError, Info, inspect, load, load_dense, save
from pemn_ref.file.header import make_header, without_values
from pemn_ref.file.names import stored_names
from pemn_ref.prototype import prototype_groups
from reproduce.frontier.families import Keep, make_weights
from reproduce.frontier.files import from_bytes, stored
from reproduce.frontier.files import to_bytes as frontier_bytes
from reproduce.study.cells import FRONTIER, KINDS, Cell, nearest
from reproduce.study.recipes import CONVMIXER
from reproduce.training.networks import (
    Network,
    choice_of,
    dense_network,
    make_model,
    make_network,
    masked_network,
    storage_of,
)


class UnknownRunError(Exception):
    """No file of a run of that name: one line that says what would help."""


def run_file(out: Path, run: str) -> Path:
    """Where the network of a run lies in the folder ``out``."""
    return out / "files" / f"{run}.safetensors"


def write_network(path: Path, network: Network, cell: Cell, seed: int) -> None:
    """Write a trained network of the cell; an old file is replaced by a whole one or not at all."""
    if cell.family is not None:
        write(path, frontier_bytes(_words(cell), lambda keep: _walk(network, cell, keep)))
        return
    if network.state is None or cell.masking is None or cell.density is None:
        dense = network.model.state_dict()
        if network.state is not None and cell.density is not None:
            dense = pemn.materialize(network.model, network.state, density=cell.density)
        write(path, to_bytes(dense))
        return
    tag = _tag(cell, seed)
    save(path, network.model, network.state, cell.masking, density=cell.density, tag=tag)


def _tag(cell: Cell, seed: int) -> str:
    tag = {"configuration": cell.configuration, "seed": seed}
    return json.dumps(tag, sort_keys=True, separators=(",", ":"))


@cache
def size_of(cell: Cell) -> tuple[pemn.Storage, int]:
    """What a network of the cell costs to store, and the bytes of its file: counted, not trained.

    (As with seed 0: where a seed has more digits, so has the tag of a masked network.)
    """
    model, dense = _plain(replace(cell, strategy="dense", ratio=None, density=None))
    masked = cell.masking is not None
    return storage_of(cell, model), _masked_size(cell, model) if masked else dense


@cache
def _plain(dense: Cell) -> tuple[nn.Module, int]:
    """The module of a dense cell, without values, and the bytes of its file."""
    with torch.device("meta"):
        model = make_model(dense, 0)
    tensors = {n: torch.empty_like(t, device="cpu") for n, t in model.state_dict().items()}
    return model, len(to_bytes(tensors))


def _masked_size(cell: Cell, model: nn.Module) -> int:
    """Bytes of the compressed file of a cell, by the shapes of its plain ``model``."""
    assert cell.masking is not None
    assert cell.density is not None
    shapes = pemn.maskable_shapes(model)
    groups = prototype_groups(shapes, cell.masking).items()
    tied, stored = stored_names(model)
    info = Info(
        strategy=cell.masking,
        density=cell.density,
        shapes=shapes,
        prototype={group: torch.empty(length, device="meta") for group, (length, _) in groups},
        rest={name: p for name, p in model.named_parameters() if name not in shapes},
        buffers={name: buffer for name, buffer in model.named_buffers() if name in stored},
        tied=tied,
        tag=_tag(cell, 0),
        sha256=64 * "0",
    )
    return len(make_header(info)) + sum(tensor.nbytes for tensor in without_values(info).values())


def read_network(path: Path, device: torch.device) -> tuple[Network, Cell]:
    """The network of a compressed file that ``run`` wrote, its model made from the tag.

    Raises:
        FileError: if the file is no whole and valid one, or its tag is not that of its cell.
        OSError: if it cannot be read.
    """
    info = inspect(path)
    try:
        tag = json.loads(info.tag)
        cell = Cell.configured(tag["configuration"])
        model = make_model(cell, tag["seed"]).to(device)
        if (info.strategy, info.density) != (cell.masking, cell.density):
            raise ValueError(f"it is of {cell.name}, the file is not")
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise FileError(
            f"{path} is no file that run wrote: its tag names no cell, so neither model nor images"
            " are known; a network of your own is read by pemn_ref.file.load(path, model) and"
            f" measured in your own code, as pemn_ref/HOW_TO.md shows ({error!r})"
        ) from error
    return masked_network(cell, model, load(path, model)[0]), cell


def read_stored(path: Path, device: torch.device) -> tuple[Network, Cell]:
    """The network of a file of the byte frontier as a plain module, which runs on ``device``.

    Nothing but the file decides its tensors. The cell has no recipe of its own: a file does not say
    how it was trained.

    Raises:
        FileError: if the file is no whole and valid one.
        OSError: if it cannot be read.
    """
    try:
        words, unpack = from_bytes(path.read_bytes())
        cell = _cell(words)
        empty = make_network(cell, 0, torch.device("cpu"))
        empty.model.load_state_dict(unpack(lambda keep: _walk(empty, cell, keep)))
    except (FileError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise FileError(f"{path}: {error}") from error
    return dense_network(cell, empty.model.to(device)), cell


def _walk(network: Network, cell: Cell, keep: Keep) -> dict[str, Tensor]:
    """The dense ``state_dict`` of a network of the byte frontier, all of it passed to ``keep``."""
    assert network.state is not None
    beside, scores, rest, buffers = network.state
    family, choice = choice_of(cell, network.model)
    with torch.no_grad():
        weights = make_weights(family, {**scores, **beside}, choice, keep)
        return stored(network.model, weights, {**rest, **buffers}, keep)


def _words(cell: Cell) -> str:
    """Of which network a file is: dataset, family of models and sizes, strategy, ratio, density."""
    sizes = asdict(cell.model)
    parts = [cell.dataset, sizes.pop("family"), *sizes.values()]
    ratio = {None: "0", 0.0: "seed"}.get(cell.ratio, cell.ratio)
    return " ".join(map(str, [*parts, cell.family, ratio, cell.density]))


def _cell(words: str) -> Cell:
    dataset, kind, *sizes, family, ratio, density = words.split(" ")
    model = KINDS[kind](*map(json.loads, sizes))
    number = 0.0 if ratio == "seed" else float(ratio) or None
    return Cell(dataset, model, f"{FRONTIER}{family}", number, float(density), CONVMIXER)


def export(out: Path, run: str, target: Path) -> str:
    """Copy the file of a run; what was written, for people.

    Raises:
        UnknownRunError: if the folder holds none of that name.
        OSError: if it cannot be read or written.
    """
    if not (out / "files").is_dir():
        raise UnknownRunError(
            f"no networks in {out}: --out names the folder that run wrote to, runs by default"
        )
    there = sorted((out / "files").glob("*.safetensors"))
    known = {path.stem: path for path in there if path.is_file()}  # to read a FIFO is to wait
    if run not in known:
        raise UnknownRunError(
            f"no file of a run {run!r} in {out}, where {len(known):,} are: their ids end the lines"
            f" of run, and are the names in {out / 'files'}{nearest(run, known)}"
        )
    content = known[run].read_bytes()
    write(target, content)
    try:
        what = describe_file(target)
    except FileError:
        what = "an ordinary safetensors file of a dense or pruned network"
        with suppress(FileError):
            what = f"a network of the byte frontier, for frontier score: {from_bytes(content)[0]}"
    return f"{target}: {target.stat().st_size:,} bytes, {what}"


def describe_file(path: Path) -> str:
    """What a compressed file holds, in a few words.

    Raises:
        FileError: if the header is not that of a compressed file.
        OSError: if it cannot be read.
    """
    info = inspect(path)
    density = "a density for each" if isinstance(info.density, Mapping) else info.density
    strategy = info.strategy
    ratio = f" with ratio {strategy.ratio}" if strategy.name == "rp" else ""
    weights = sum(shape.numel() for shape in info.shapes.values())
    values = sum(tensor.numel() for tensor in info.prototype.values())
    return (
        f"a compressed network: {weights:,} masked weights in {len(info.shapes)} layers,"
        f" {values:,} values by {strategy.name}{ratio}, density {density}"
    )


def materialize(path: Path, target: Path) -> str:
    """Write the dense ``state_dict`` of a compressed file as safetensors; what that is, for people.

    Raises:
        FileError: if the file is not whole and valid, or is ``target`` itself.
        OSError: if it cannot be read or written.
    """
    dense = load_dense(path)
    for name in inspect(path).tied:
        dense[name] = dense[name].clone()  # safetensors stores no tensor twice
    if target.exists() and target.samefile(path):
        raise FileError(f"{target} is the compressed file itself: name another one to write")
    content = to_bytes(dense)
    write(target, content)
    numbers = sum(tensor.numel() for tensor in dense.values())
    return (
        f"{target}: {len(content):,} bytes, an ordinary state_dict of {len(dense):,} tensors,"
        f" {numbers:,} numbers, for load_state_dict"
    )
