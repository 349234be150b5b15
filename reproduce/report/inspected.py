"""What a compressed file holds, for people: ``python -m reproduce inspect``."""

from pathlib import Path

import torch
from rich.table import Table

import pemn_ref as pemn
from pemn_ref.checks import each_density
from pemn_ref.file import Info, inspect
from reproduce.report import console
from reproduce.training.files import describe_file


def make_tables(path: Path) -> list[Table]:
    """The size of a compressed file by the three accountings, and what it holds, layer by layer.

    Raises:
        FileError: if the header is not that of a compressed file.
        OSError: if it cannot be read.
    """
    info = inspect(path)
    return [_totals(info, path), _layers(info)]


def _table(*columns: str, title: str | None, caption: str) -> Table:
    table = console.table(title=title, caption=caption)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _layers(info: Info) -> Table:
    tag = f"tag: {info.tag!r}" if info.tag else "no tag"
    table = _table("layer", "shape", "kept", "bits", title=None, caption=tag)

    def add(name: str, shape: torch.Size, kept: str, bits: int) -> None:
        table.add_row(name, "x".join(f"{size:,}" for size in shape) or "1", kept, f"{bits:,}")

    each = each_density(info.density, info.shapes)
    for name, shape in info.shapes.items():
        kept = pemn.kept(shape.numel(), each[name])
        add(name, shape, f"{kept:,}", shape.numel())
    table.add_section()
    parts = {"prototype": info.prototype, "rest": info.rest, "buffer": info.buffers}
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            add(f"{part} {name}", tensor.shape, "", 8 * tensor.nbytes)
    return table


def _totals(info: Info, path: Path) -> Table:
    size = path.stat().st_size
    others = [*info.rest.values(), *info.buffers.values()]
    cost = pemn.storage(info.shapes, info.strategy, others)
    table = _table(
        "accounting",
        "bits",
        "of dense",
        "saved %",
        title=f"{path.name}: {describe_file(path)}",
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
