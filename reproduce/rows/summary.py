"""What the rows say of each cell, and how sure it is."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from msgspec import UNSET
from scipy.special import stdtrit  # type: ignore[import-untyped]

from reproduce.rows.row import Measured, Row, Storage
from reproduce.study.cells import Cell


class Summary(NamedTuple):
    """All seeds of one cell. Accuracies are percentages of the held-out images."""

    cell: Cell
    last: list[float]
    """After the last epoch: the result. Empty where nothing is measured."""
    best: list[float]
    """Of the epoch that is best on the same images, which the paper reports."""
    failed: int
    """Seeds without a result."""
    held_out: int
    """Images; 0 where nothing is measured."""
    storage: Storage | None
    """None where nothing is measured, and of the byte frontier."""
    bytes: int | None
    """Of the file on disk; None also in rows from before there were files."""


def summarise(cells: Iterable[Cell], rows: Sequence[Row]) -> list[Summary]:
    """One summary for each of the cells, in their order; rows of other cells are not counted.

    The order of the rows makes no difference.
    """
    by_cell: dict[str, list[Row]] = {}
    for row in rows:
        by_cell.setdefault(row.cell, []).append(row)
    summaries = []
    for cell in cells:
        mine = sorted(by_cell.get(cell.id, []), key=lambda row: row.seed)
        done = [row for row in mine if isinstance(row, Measured)]
        summaries.append(
            Summary(
                cell,
                [100 * row.accuracy_last for row in done],
                [100 * row.accuracy_best for row in done],
                len(mine) - len(done),
                done[0].held_out if done else 0,
                done[0].storage if done and done[0].storage is not UNSET else None,
                done[-1].bytes if done and done[-1].bytes is not UNSET else None,
            )
        )
    return summaries


def measured(cells: Iterable[Cell], rows: Sequence[Row]) -> list[Summary]:
    """The summaries of those that have a result."""
    return [summary for summary in summarise(cells, rows) if summary.last]


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean, by Student's t; None of fewer than two.

    >>> interval([90.0, 92.0, 97.0]).__round__(2)
    8.96
    """
    if len(values) < 2:
        return None
    return float(stdtrit(len(values) - 1, 0.975) * stdev(values) / len(values) ** 0.5)


def images_error(accuracy: float, images: int) -> float:
    """Standard error of a percentage from so many images: seeds do not average it away.

    >>> round(images_error(97.5, 500), 2)
    0.7
    """
    return float((accuracy * (100 - accuracy) / images) ** 0.5)


def mean(values: Sequence[float]) -> float | None:
    """None of none."""
    return fmean(values) if values else None
