"""Trained networks as files: ``run`` writes one for each row, the other commands read them.

A masked network is a compressed file of pemn_ref whose tag says which cell it is and with which
seed; a dense or pruned one is an ordinary safetensors file, with the zeros.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes

import pemn_ref as pemn
from pemn_ref.atomic import write
from pemn_ref.file import FileError, inspect, load, load_dense, save
from reproduce.study.cells import Cell
from reproduce.training.networks import Network, make_model, masked_network


class UnknownRunError(Exception):
    """No file of a run of that name: one line that says which there are."""


def run_file(out: Path, run: str) -> Path:
    """Where the network of a run lies in the folder ``out``."""
    return out / "files" / f"{run}.safetensors"


def write_network(path: Path, network: Network, cell: Cell, seed: int) -> None:
    """Write a trained network of the cell; an old file is replaced by a whole one or not at all."""
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
