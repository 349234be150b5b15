"""Rows as ``run`` writes them, of runs that never were."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from msgspec import UNSET, structs

from reproduce.rows.row import Epoch, Failed, Hardware, Measured, Row, Storage, Versions, line_of
from reproduce.study.cells import Cell

STORAGE = Storage(weights=4096, unique=1024, paper=0.25, whole=0.125, bits=700, dense_bits=800)
CONDITIONS = {
    "device": "cpu",
    "hardware": Hardware("an abacus", threads=3),
    "versions": Versions(python="3.0", torch="0.0", torchvision="0.1", pemn_ref="0.2"),
    "commit": "0" * 40,
}


def row_of(cell: Cell, seed: int = 0, accuracy: float = 0.5, **more: Any) -> Measured:
    """A finished run: this accuracy after the last epoch, a hundredth more at the best.

    (But where the last is the only one.)
    """
    accuracies = [accuracy + 0.01] * (cell.recipe.epochs - 1) + [accuracy]
    row = Measured(
        run=cell.run_id(seed),
        cell=cell.id,
        seed=seed,
        configuration=cell.configuration,
        accuracy_last=accuracy,
        accuracy_best=max(accuracies),
        held_out=500,
        trained_on=1297,
        data="0123456789abcdef" * 4,
        history=[Epoch(1.0, one, 2.0) for one in accuracies],
        storage=UNSET if cell.family else STORAGE,
        bytes=90,
        seconds=1800.0,
        images_per_second=100.0,
        **CONDITIONS,  # type: ignore[arg-type]
    )
    return structs.replace(row, **more)


def failed_row_of(cell: Cell, seed: int = 0) -> Failed:
    """A run without a result."""
    return Failed(
        run=cell.run_id(seed),
        cell=cell.id,
        seed=seed,
        configuration=cell.configuration,
        failed="the loss is nan",
        **CONDITIONS,  # type: ignore[arg-type]
    )


def rows_of(cells: Iterable[Cell], accuracies: Sequence[float]) -> list[Row]:
    """These last accuracies, one a seed, in every cell, each with twice the values of the last."""
    return [
        row_of(cell, seed, accuracy, storage=structs.replace(STORAGE, unique=2**place))
        for place, cell in enumerate(cells)
        for seed, accuracy in enumerate(accuracies)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """As a file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(line_of, rows)))
