"""What a study will run: how far each run is, and what is left of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from heapq import heapreplace
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table

from reproduce.cells import Cell, Study
from reproduce.checkpoint import Stop
from reproduce.cost import ASSUMPTIONS, Cost, Kind, kind, learned, size
from reproduce.device import Device
from reproduce.rows import Row
from reproduce.run import describe
from reproduce.store import RunStore
from reproduce.timing import duration
from reproduce.train import epochs_kept


class Standing(NamedTuple):
    """How far one run is."""

    cell: Cell
    seed: int
    row: Row | None
    kept: int | None
    """Whole epochs in its checkpoint; None where there is none."""

    @property
    def state(self) -> str:
        """``to train``, ``begun``, ``failed`` or ``done``."""
        if self.row is not None:
            return "failed" if "failed" in self.row else "done"
        return "to train" if self.kept is None else "begun"

    @property
    def left(self) -> int:
        """Epochs to train; none where there is a row, be it that of a failure."""
        return 0 if self.row else self.cell.recipe.epochs - (self.kept or 0)

    @property
    def line(self) -> str:
        """For people, with the ids of cell and run."""
        cell, state = self.cell, self.state
        if state == "begun":
            state = f"begun: {self.kept} of {cell.recipe.epochs} epochs"
        if self.row and state == "failed":
            state = f"failed: {self.row['failed']}"
        return f"{describe(cell, self.seed)}  {state}  {cell.run_id(self.seed)}"


class Plan(NamedTuple):
    """Every run of a study, and the rows of older recipes, which do not count."""

    study: Study
    runs: list[Standing]
    stale: list[Row]

    @property
    def missing(self) -> list[Standing]:
        """What is left to train."""
        return [run for run in self.runs if run.left]

    @property
    def cells(self) -> list[Cell]:
        """Of what is left to train, each once."""
        return list(dict.fromkeys(run.cell for run in self.missing))

    def seconds(self, costs: Mapping[Kind, Cost | None], device: Device, places: int = 1) -> float:
        """Until all is trained that fits on the device, each place taking the next when free."""
        ends = [0.0] * places
        for run in self.missing:
            if cost := costs[kind(run.cell)]:
                heapreplace(ends, ends[0] + run.left * cost.epoch(run.cell, device))
        return max(ends)

    def estimate(self, costs: Mapping[Kind, Cost | None], device: Device) -> str:
        """What is left and how long it takes, for people."""
        time = duration(self.seconds(costs, device))
        return (
            f"{len(self.missing)} runs to train, about {time} on {device.torch} ({device.hardware})"
        )

    def shared_estimate(
        self, costs: Mapping[Kind, Cost | None], device: Device, gpus: int, cells_per_gpu: int
    ) -> str:
        """The same for many cells at once, with what it assumes."""
        shared = device.shared(cells_per_gpu)
        time = duration(self.seconds(costs, shared, gpus * cells_per_gpu))
        return (
            f"about {time} on {gpus} GPUs with {cells_per_gpu} cells each, assumed, not measured:"
            f" each GPU like {device.torch} here, each cell as fast as one alone on it, with its"
            f" share of the cores"
        )


def read_plan(study: Study, seeds: Sequence[int], out: Path, ledger: Path | None = None) -> Plan:
    """How far every run is in ``out`` and ``ledger``, as ``run_study`` takes them.

    Raises:
        DamagedRowsError, CheckpointError, OSError: if rows or a checkpoint cannot be read.
    """
    wanted = [(cell, seed) for seed in seeds for cell in study.cells]
    if not out.exists() and not (ledger and ledger.exists()):  # a store would make both
        return Plan(study, [Standing(cell, seed, None, None) for cell, seed in wanted], [])
    store = RunStore(out, study.name, print, ledger)
    rows = store.rows()
    runs = []
    for cell, seed in wanted:
        row, kept = rows.get(cell.run_id(seed)), None
        if row is None and store.started(cell.run_id(seed)):
            kept = epochs_kept(store.checkpoint(cell.run_id(seed), 0, Stop()))
        runs.append(Standing(cell, seed, row, kept))
    stale = [row for row in rows.values() if study.outdates(row["configuration"])]
    return Plan(study, runs, stale)


def make_table(plan: Plan, costs: Mapping[Kind, Cost | None], device: Device) -> Table:
    """One line for each model on one dataset: how many of its runs are how far, what is left."""
    table = Table(
        box=box.SIMPLE,
        padding=0,  # for 80 columns
        caption=ASSUMPTIONS,
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("dataset", overflow="fold")
    for column in ("runs", "done", "begun", "failed", "stale", "GB", "images\n/s", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    for group in plan.study.groups():
        of_group = plan._replace(
            study=group,
            runs=[run for run in plan.runs if run.cell in group.cells],
            stale=[row for row in plan.stale if _is_of(group.cells[0], row)],
        )
        first, states = group.cells[0], [run.state for run in of_group.runs]
        speed, left = "-", "-"
        if of_group.missing:
            cost = costs[kind(first)]
            speed = f"{1 / cost.image(device):,.0f}" if cost else "too large"
            left = duration(of_group.seconds(costs, device)) if cost else "-"
        table.add_row(
            first.model.label,
            first.dataset,
            str(len(states)),
            *(str(states.count(state)) for state in ("done", "begun", "failed")),
            str(len(of_group.stale)),
            f"{size(learned(first)).memory / 1e9:.2f}",
            speed,
            left,
        )
    return table


def _is_of(cell: Cell, row: Row) -> bool:
    """Whether it is a row of the same model on the same dataset."""
    wanted = (asdict(cell.model), cell.dataset)
    return (row["configuration"]["model"], row["configuration"]["dataset"]) == wanted
