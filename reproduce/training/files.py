"""Trained networks as files: ``run`` writes one for each row, the other commands read them.

A masked network is a compressed file of pemn_ref whose tag says which cell it is and with which
seed; a dense or pruned one is an ordinary safetensors file, with the zeros; one of the byte
frontier has a form of its own (``frontier.files``).
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

import pemn_ref as pemn
from pemn_ref.atomic import write
from pemn_ref.file import FileError, inspect, load, load_dense, save
from reproduce.frontier.families import Keep, make_weights
from reproduce.frontier.files import from_bytes, stored
from reproduce.frontier.files import to_bytes as frontier_bytes
from reproduce.study.cells import FRONTIER, KINDS, Cell
from reproduce.study.recipes import CONVMIXER
from reproduce.training.networks import (
    Network,
    choice_of,
    dense_network,
    make_model,
    make_network,
    masked_network,
)


class UnknownRunError(Exception):
    """No file of a run of that name: one line that says which there are."""


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
    tag = {"configuration": cell.configuration, "seed": seed}
    text = json.dumps(tag, sort_keys=True, separators=(",", ":"))
    save(path, network.model, network.state, cell.masking, density=cell.density, tag=text)


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
            f"{path}: the tag is not that of a cell, which run would write: {error!r}"
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
    return dense_network(empty.model.to(device)), cell


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


def export(out: Path, run: str, target: Path) -> None:
    """Copy the file of a run.

    Raises:
        UnknownRunError: if the folder holds none of that name.
        OSError: if it cannot be read or written.
    """
    there = sorted((out / "files").glob("*.safetensors"))
    known = {path.stem: path for path in there if path.is_file()}  # to read a FIFO is to wait
    if run not in known:
        raise UnknownRunError(
            f"no file of a run {run!r} in {out}, only {', '.join(known) or 'none at all'}"
        )
    write(target, known[run].read_bytes())


def materialize(path: Path, target: Path) -> None:
    """Write the dense ``state_dict`` of a compressed file as an ordinary safetensors file.

    Raises:
        FileError: if the file is not whole and valid, or is ``target`` itself.
        OSError: if it cannot be read or written.
    """
    dense = load_dense(path)
    for name in inspect(path).tied:
        dense[name] = dense[name].clone()  # safetensors stores no tensor twice
    if target.exists() and target.samefile(path):
        raise FileError(f"{target} is the compressed file itself: name another one to write")
    write(target, to_bytes(dense))
