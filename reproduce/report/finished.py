"""What ``run`` shows when it ends: the tables of what was asked for, and the figures."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from reproduce.report import frontier
from reproduce.report.figures import draw_figures
from reproduce.report.tables import show
from reproduce.rows.row import Measured, Row
from reproduce.study.cells import Cell, Group, Study

_VARIED = {"strategy": None, "ratio": None, "density": None}
"""What the cells of one figure differ in."""


def show_finished(
    console: Console, study: Study, seeds: Sequence[int], rows: Sequence[Row], out: Path
) -> bool:
    """Print tables and draw figures of a study into ``out``; whether each of its runs has a result.

    Raises:
        OSError: if ``out`` cannot be written.
    """
    wanted = {cell.run_id(seed) for cell in study.cells for seed in seeds}
    measured = [row for row in rows if row.run in wanted]
    complete = sum(isinstance(row, Measured) for row in measured) == len(wanted)
    if any(cell.family for cell in study.cells):
        frontier.show_finished(console, study, measured, rows, out)
        return complete
    trained = {row.cell for row in measured}
    groups = [group for group in study.groups() if trained & {cell.id for cell in group.cells}]
    show(console, groups, measured)
    for picture in draw_figures([_with_others(group, rows) for group in groups], rows, out):
        console.print(f"figure: {picture}")
    return complete


def _with_others(group: Group, rows: Sequence[Row]) -> Group:
    """The group with all of its cells that have a row, so that a narrower run's figure has them."""
    alike = [{**cell.configuration, **_VARIED} for cell in group.cells]
    others = {
        row.cell: Cell.configured(row.configuration)
        for row in sorted(rows, key=lambda row: row.run)  # the same picture in any order
        if {**row.configuration, **_VARIED} in alike
    }
    return group._replace(cells=tuple(({c.id: c for c in group.cells} | others).values()))
