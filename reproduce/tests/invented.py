"""Rows as ``run`` writes them, of runs that never were."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from reproduce.rows.row import Row
from reproduce.study.cells import Cell

STORAGE = {
    "weights": 4096,
    "unique": 1024,
    "paper": 0.25,
    "whole": 0.125,
    "bits": 700,
    "dense_bits": 800,
}


def row_of(cell: Cell, seed: int = 0, accuracy: float = 0.5, **more: object) -> Row:
    """A finished run: this accuracy after the last epoch, a hundredth more at the best."""
    return _begun(cell, seed) | {
        "accuracy_last": accuracy,
        "accuracy_best": accuracy + 0.01,
        "held_out": 500,
        "storage": STORAGE,
        "bytes": 90,
        "seconds": 1800.0,
        **more,
    }


def failed_row_of(cell: Cell, seed: int = 0) -> Row:
    """A run without a result."""
    return _begun(cell, seed) | {"failed": "the loss is nan"}


def _begun(cell: Cell, seed: int) -> Row:
    return {
        "run": cell.run_id(seed),
        "cell": cell.id,
        "seed": seed,
        "configuration": cell.configuration,
        "hardware": {"name": "an abacus", "threads": 3},
        "versions": {"torch": "0.0"},
    }


def rows_of(cells: Iterable[Cell], accuracies: Sequence[float]) -> list[Row]:
    """These last accuracies, one a seed, in every cell, each with twice the values of the last."""
    return [
        row_of(cell, seed, accuracy, storage={**STORAGE, "unique": 2**place})
        for place, cell in enumerate(cells)
        for seed, accuracy in enumerate(accuracies)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """As a file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
