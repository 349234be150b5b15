"""Training what a study asks for and is not measured yet: one row for each cell and seed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress

from reproduce.data.datasets import load
from reproduce.data.images import Images
from reproduce.data.root import MissingDataError
from reproduce.rows.row import Failed, Row
from reproduce.runs.store import RunStore
from reproduce.study.cells import Cell, Study
from reproduce.training.checkpoint import Stop
from reproduce.training.device import Device
from reproduce.training.run import Skipped, describe, train_run

Run = tuple[Cell, int]
"""A cell and a seed."""
Result = tuple[Cell, int, Row | Skipped]
"""A run with its row, or why it was skipped."""
TAKEN = Skipped("another process is training it, or has finished it")


class Work(NamedTuple):
    """What a study has still to train, and with what."""

    runs: Sequence[Run]
    images: Mapping[str, tuple[Images, Images]]
    """By dataset."""
    store: RunStore
    stop: Stop
    every: float
    """Seconds from one checkpoint to the next."""
    console: Console


Train = Callable[[Work], Iterator[Result]]
"""How work is done: here, one run after the other, or as tasks of a cluster."""


def run_study(
    study: Study,
    seeds: Sequence[int],
    out: Path,
    train: Train,
    data: Path | None,
    console: Console,
    *,
    stop: Stop,
    ledger: Path | None = None,
    every: float = 120,
) -> list[Row]:
    """Train every cell with every seed; all rows of the study's folder, other cells' among them.

    ``out`` and ``ledger`` are those of a ``RunStore``, ``data`` as ``data_root`` takes it. A run
    that has a row is not trained again; one that has a checkpoint, written ``every`` so many
    seconds, is resumed. Seed by seed, so that a study that is stopped early has seen every cell. A
    run is skipped, for another day, where its images are missing, the device's memory is too small
    or another process trains it; one whose loss is not finite gets a row that says so.

    Raises:
        Stopped: if asked to stop, after a checkpoint.
        CheckpointError: if a checkpoint cannot be resumed.
        OSError: if rows or checkpoints cannot be read or written.
    """
    for group in study.groups():
        console.print(group.title)
    store = RunStore(out, study.name, console.print, ledger)
    rows = store.rows()
    wanted = [(cell, seed) for seed in seeds for cell in study.cells]
    missing = [(cell, seed) for cell, seed in wanted if cell.run_id(seed) not in rows]
    for cell, seed in wanted:
        if cell.run_id(seed) in rows:
            store.drop(cell.run_id(seed))
    follows = "; a line follows as each ends" if missing else ""
    console.print(f"{len(missing):,} of {len(wanted):,} runs to train{follows}")
    if len(missing) < len(wanted):
        console.print(f"the others are in {store.path} already and are not trained again")
    for row in rows.values():
        if study.outdates(row.configuration):
            console.print(f"{row.run} is stale: of an older recipe, and not counted")
    images: dict[str, tuple[Images, Images]] = {}
    for dataset in dict.fromkeys(cell.dataset for cell, _ in missing):
        console.print(f"reading {dataset}")
        try:
            images[dataset] = load(dataset, data)
        except MissingDataError as error:
            console.print(f"skipped, all runs on {dataset}: {error}")
    missing = [(cell, seed) for cell, seed in missing if cell.dataset in images]
    results = train(Work(missing, images, store, stop, every, console))
    for number, (cell, seed, result) in enumerate(results, start=1):
        if not isinstance(result, Skipped):
            store.finish(result)
        console.print(
            f"{number:3d}/{len(missing)}  {describe(cell, seed)}  {_outcome(result)}"
            f"  {cell.run_id(seed)}"
        )
    console.print(f"rows: {store.path}")
    return [*store.rows().values()]


def train_here(device: Device, work: Work) -> Iterator[Result]:
    """One run after the other, each claimed until the next is asked for."""
    runs, images, store, stop, every, console = work
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(cell.recipe.epochs for cell, _ in runs))
        for cell, seed in runs:
            progress.update(task, description=describe(cell, seed))
            run = cell.run_id(seed)
            with store.claim(run) as ours:
                if not ours:
                    yield cell, seed, TAKEN
                    continue
                result = train_run(
                    cell,
                    seed,
                    images[cell.dataset],
                    device,
                    store.checkpoint(cell, seed, every, stop),
                    store.file(run),
                    lambda _: progress.advance(task),
                )
                yield cell, seed, result


def _outcome(result: Row | Skipped) -> str:
    """For people."""
    if isinstance(result, Skipped):
        return f"skipped: {result.reason}"
    if isinstance(result, Failed):
        return f"failed: {result.failed}"
    text = (
        f"{100 * result.accuracy_last:5.1f} %  {result.seconds:.1f} s"
        f"  {result.images_per_second:,.0f} images/s"
    )
    return f"{text}  WARNING: {result.warning}" if result.warning else text
