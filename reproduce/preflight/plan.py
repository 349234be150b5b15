"""What a study will run: how far each run is, and what is left to train."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from reproduce.preflight.cost import ASSUMPTIONS, Cost, Kind, kind, learned, size
from reproduce.report import console
from reproduce.report.console import duration
from reproduce.rows.row import Epoch, Failed, Row
from reproduce.runs.store import RunStore
from reproduce.study.cells import Cell, Study
from reproduce.training.checkpoint import Stop
from reproduce.training.device import Device
from reproduce.training.loop import epochs_kept
from reproduce.training.run import describe


class Standing(NamedTuple):
    """How far one run is."""

    cell: Cell
    seed: int
    row: Row | None
    kept: list[Epoch] | None
    """Whole epochs in its checkpoint; None if there is no checkpoint."""

    @property
    def state(self) -> str:
        """``to train``, ``begun``, ``failed`` or ``done``."""
        if self.row is not None:
            return "failed" if isinstance(self.row, Failed) else "done"
        return "to train" if self.kept is None else "begun"

    @property
    def left(self) -> int:
        """Epochs left to train; 0 if there is a row, even that of a failure."""
        return 0 if self.row else self.cell.recipe.epochs - len(self.kept or [])

    @property
    def line(self) -> str:
        """One line for people, with the ids of cell and run."""
        cell, state = self.cell, self.state
        if self.kept is not None:
            state = f"begun: {len(self.kept)} of {cell.recipe.epochs} epochs"
        if self.kept:
            last = self.kept[-1]
            state += f" (loss {last.loss:.3f}, {100 * last.accuracy:.1f} %)"
        if isinstance(self.row, Failed):
            state = f"failed: {self.row.failed}"
        return f"{describe(cell, self.seed)}  {state}  {cell.run_id(self.seed)}"


class Plan(NamedTuple):
    """Every run of a study, and the rows of older recipes (stale), which do not count."""

    study: Study
    runs: list[Standing]
    stale: list[Row]

    @property
    def missing(self) -> list[Standing]:
        """The runs that are left to train."""
        return [run for run in self.runs if run.left]

    @property
    def cells(self) -> list[Cell]:
        """The cells of the runs left to train, each once."""
        return list(dict.fromkeys(run.cell for run in self.missing))

    def seconds(self, costs: Mapping[Kind, Cost | None]) -> float:
        """Seconds to train every run left that fits on the device, one after the other."""
        return sum(
            run.left * cost.epoch(run.cell)
            for run in self.missing
            if (cost := costs[kind(run.cell)])
        )

    def estimate(self, costs: Mapping[Kind, Cost | None], device: Device) -> str:
        """How many runs are left and how long they take, for people."""
        time = duration(self.seconds(costs))
        where = f"{device.torch} ({device.hardware})"
        return f"{len(self.missing):,} of {len(self.runs):,} runs to train, about {time} on {where}"


def read_plan(study: Study, seeds: Sequence[int], out: Path, ledger: Path | None = None) -> Plan:
    """Find out how far every run is; ``out`` and ``ledger`` are as for ``run_study``.

    Raises:
        CheckpointError, OSError: if rows or a checkpoint cannot be read.
    """
    wanted = [(cell, seed) for seed in seeds for cell in study.cells]
    if not out.exists() and not (ledger and ledger.exists()):  # a store would create both
        return Plan(study, [Standing(cell, seed, None, None) for cell, seed in wanted], [])
    store = RunStore(out, study.name, console.console().print, ledger)
    rows = store.rows()
    runs = []
    for cell, seed in wanted:
        row, kept = rows.get(cell.run_id(seed)), None
        if row is None and store.started(cell.run_id(seed)):
            kept = epochs_kept(store.checkpoint(cell, seed, 0, Stop()))
        runs.append(Standing(cell, seed, row, kept))
    stale = [row for row in rows.values() if study.outdates(row.configuration)]
    return Plan(study, runs, stale)


def make_table(plan: Plan, costs: Mapping[Kind, Cost | None], *, bfloat16: bool) -> Table:
    """One line for each model and dataset: how far its runs are, and what is left.

    ``bfloat16`` is as for ``size``.
    """
    table = console.table(caption=ASSUMPTIONS, padding=0)  # for 80 columns
    table.add_column("model", no_wrap=True)
    table.add_column("dataset", overflow="fold")
    for column in ("runs", "done", "begun", "failed", "stale", "GB", "images\n/s", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    for group in plan.study.groups():
        of_group = plan._replace(
            runs=[run for run in plan.runs if run.cell in group.cells],
            stale=[row for row in plan.stale if _is_of(group.cells[0], row)],
        )
        first, states = group.cells[0], [run.state for run in of_group.runs]
        speed, left = "-", "-"
        if of_group.missing:
            cost = costs[kind(first)]
            speed = f"{1 / cost.image:,.0f}" if cost else "too large"
            left = duration(of_group.seconds(costs)) if cost else "-"
        table.add_row(
            first.model.label,
            first.dataset,
            f"{len(states):,}",
            *(f"{states.count(state):,}" for state in ("done", "begun", "failed")),
            f"{len(of_group.stale):,}",
            f"{size(learned(first), bfloat16=bfloat16).memory / 1e9:.2f}",
            speed,
            left,
        )
    return table


def _is_of(cell: Cell, row: Row) -> bool:
    """Whether ``row`` has the model and dataset of ``cell``."""
    wanted = (asdict(cell.model), cell.dataset)
    return (row.configuration["model"], row.configuration["dataset"]) == wanted
