"""Trained networks as files: ``run`` writes one for each row, the other commands read them.

A masked network is a compressed file of pemn_ref whose tag says which cell it is and with which
seed; a dense or pruned one is an ordinary safetensors file, with the zeros.
"""

import json
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from safetensors.torch import save as to_bytes

import pemn_ref as pemn
from pemn_ref.atomic import write
from pemn_ref.file import FileError, Info, inspect, load, load_dense, save
from reproduce.cells import Cell
from reproduce.networks import Network, make_model, masked_network


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
    there = sorted(run_file(out, run).parent.glob("*.safetensors"))
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


def make_tables(path: Path) -> list[Table]:
    """What a compressed file holds, layer by layer, and its size by the three accountings.

    Raises:
        FileError: if the header is not that of a compressed file.
        OSError: if it cannot be read.
    """
    info = inspect(path)
    return [_layers(info), _totals(info, path.stat().st_size)]


def _table(*columns: str, title: str | None, caption: str) -> Table:
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _layers(info: Info) -> Table:
    ratio = f", ratio {info.strategy.ratio}" if info.strategy.name == "rp" else ""
    table = _table(
        *("layer", "shape", "kept", "bits"),
        title=f"{info.strategy.name}{ratio}, density {info.density}",
        caption=f"tag: {info.tag!r}" if info.tag else "no tag",
    )

    def add(name: str, shape: torch.Size, kept: str, bits: int) -> None:
        name = name.encode("unicode_escape").decode()  # the file's: it must not steer a terminal
        table.add_row(name, "x".join(map(str, shape)) or "1", kept, f"{bits:,}")

    for name, shape in info.shapes.items():
        kept = pemn.kept(shape.numel(), info.density)
        add(name, shape, f"{kept:,}", shape.numel())
    table.add_section()
    parts = {"prototype": info.prototype, "rest": info.rest, "buffer": info.buffers}
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            add(f"{part} {name}", tensor.shape, "", 8 * tensor.nbytes)
    return table


def _totals(info: Info, size: int) -> Table:
    others = [*info.rest.values(), *info.buffers.values()]
    cost = pemn.storage(info.shapes, info.strategy, others)
    table = _table(
        *("accounting", "bits", "of dense", "saved %"),
        title=None,
        caption=(
            "paper: a bit for each weight of a layer and 32 for each value of a prototype, against"
            " 32 for each weight; it leaves out the rest (normalisation, biases, ...) and the"
            " buffers; whole model: with these; on disk: all of this file, so with its header too,"
            " against the tensors of a dense file without one"
        ),
    )
    for name, bits, dense in (
        ("paper", cost.weights + 32 * cost.unique, 32 * cost.weights),
        ("whole model", cost.bits, cost.dense_bits),
        (f"on disk ({size:,} bytes)", 8 * size, cost.dense_bits),
    ):
        table.add_row(name, f"{bits:,}", f"{dense:,}", f"{100 * (1 - bits / dense):.2f}")
    return table
