"""Training what a study asks for and is not measured yet: one row for each cell and seed."""

import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress

import pemn_ref as pemn
from reproduce.cells import Cell, Study
from reproduce.checkpoint import Checkpoint, Stop
from reproduce.data.augment import make_transform
from reproduce.data.batches import Batch, Images, TrainingBatches, Transform, evaluation_batches
from reproduce.data.datasets import DATASETS, load
from reproduce.data.root import MissingDataError
from reproduce.device import Device
from reproduce.figures import draw_figures
from reproduce.files import read_network, write_network
from reproduce.networks import make_network
from reproduce.rows import Row
from reproduce.store import RunStore
from reproduce.studies import CANARY, CANARY_BAND
from reproduce.tables import show
from reproduce.train import Epoch, accuracy, train

if TYPE_CHECKING:
    from reproduce.cluster import Cluster

_EVALUATION_BATCH = 500

Run = tuple[Cell, int]
"""A cell and a seed."""
Result = tuple[Cell, int, Row | str | None]
"""A run with its row, or why it was skipped; None is for a device whose memory is too small."""
_VARIED = {"strategy": None, "ratio": None, "density": None}
"""What the cells of one figure differ in."""
TAKEN = "another process trains it, or has"


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


def run_study(
    study: Study,
    seeds: Sequence[int],
    out: Path,
    device: "Device | Cluster",
    data: Path | None,
    *,
    stop: Stop,
    ledger: Path | None = None,
    every: float = 120,
) -> bool:
    """Train every cell with every seed, print tables, draw figures; True if every run has a result.

    ``out`` and ``ledger`` are those of a ``RunStore``, ``data`` as ``data_root`` takes it. A run
    that has a row is not trained again; one that has a checkpoint, written ``every`` so many
    seconds, goes on from there. Seed by seed, so that a study that is stopped early has seen every
    cell. A run is skipped, for another day, where its images are missing, the device's memory is
    too small or another process trains it; one whose loss is not finite gets a row that says so.

    Raises:
        Stopped: if asked to stop, after a checkpoint.
        CheckpointError: if a checkpoint cannot be gone on from.
        DamagedRowsError, OSError: if rows or checkpoints cannot be read or written.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for group in study.groups():
        console.print(group.title)
    store = RunStore(out, study.name, console.print, ledger)
    rows = store.rows()
    wanted = [(cell, seed) for seed in seeds for cell in study.cells]
    missing = [(cell, seed) for cell, seed in wanted if cell.run_id(seed) not in rows]
    console.print(
        f"{len(missing)} runs to train; {len(wanted) - len(missing)} of {len(wanted)}"
        f" are in {store.path} already and are not trained again"
    )
    for row in rows.values():
        if study.outdates(row["configuration"]):
            console.print(f"{row['run']} is stale: of an older recipe, and not counted")
    images: dict[str, tuple[Images, Images]] = {}
    for dataset in dict.fromkeys(cell.dataset for cell, _ in missing):
        try:
            images[dataset] = load(dataset, data)
        except MissingDataError as error:
            console.print(f"skipped, all runs on {dataset}: {error}")
    missing = [(cell, seed) for cell, seed in missing if cell.dataset in images]
    work = Work(missing, images, store, stop, every, console)
    results = _train_here(device, work) if isinstance(device, Device) else device.train(work)
    for number, (cell, seed, result) in enumerate(results, start=1):
        if isinstance(result, dict):
            store.finish(result)
        console.print(
            f"{number:3d}/{len(missing)}  {describe(cell, seed)}  {_outcome(result)}"
            f"  {cell.run_id(seed)}"
        )
    rows = store.rows()
    measured = [rows[run] for cell, seed in wanted if (run := cell.run_id(seed)) in rows]
    complete = [row for row in measured if "failed" not in row]
    console.print(f"rows: {store.path}")
    trained = {row["cell"] for row in measured}
    groups = [group for group in study.groups() if trained & {cell.id for cell in group.cells}]
    show(console, groups, measured)
    everything = list(rows.values())
    for picture in draw_figures([_with_others(g, everything) for g in groups], everything, out):
        console.print(f"figure: {picture}")
    return len(complete) == len(wanted)


def _with_others(group: Study, rows: Sequence[Row]) -> Study:
    """The group with all of its cells that have a row, so that a narrower run's figure has them."""
    alike = [{**cell.configuration, **_VARIED} for cell in group.cells]
    others = {
        row["cell"]: Cell.configured(row["configuration"])
        for row in rows
        if {**row["configuration"], **_VARIED} in alike
    }
    return replace(group, cells=tuple(({c.id: c for c in group.cells} | others).values()))


def describe(cell: Cell, seed: int) -> str:
    """A run for people."""
    return f"{cell.model.label}  {cell.dataset}  {cell.name:9}  seed {seed}"


def _train_here(device: Device, work: Work) -> Iterator[Result]:
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
                result: Row | str | None
                try:
                    result = train_run(
                        *(cell, seed, images[cell.dataset], device),
                        store.checkpoint(run, every, stop),
                        store.file(run),
                        lambda _: progress.advance(task),
                    )
                except MissingDataError as error:
                    result = str(error)
                yield cell, seed, result


def _outcome(result: Row | str | None) -> str:
    """For people."""
    if result is None:
        result = "the memory of the device is too small"
    if isinstance(result, str):
        return f"skipped: {result}"
    if "failed" in result:
        return f"failed: {result['failed']}"
    text = (
        f"{100 * result['accuracy_last']:5.1f} %  {result['seconds']:.1f} s"
        f"  {result['images_per_second']:,.0f} images/s"
    )
    return f"{text}  WARNING: {result['warning']}" if "warning" in result else text


def train_run(
    cell: Cell,
    seed: int,
    images: tuple[Images, Images],
    device: Device,
    checkpoint: Checkpoint,
    file: Path,
    on_epoch: Callable[[list[Epoch]], object],
) -> Row | None:
    """Train one cell with one seed and write its network to ``file``; its row comes after that.

    Accuracies are fractions of the held-out images. The row of a loss that is not finite has
    ``failed`` instead; there is none where the memory of the device is too small.

    Raises:
        Stopped, CheckpointError, OSError: as ``train``.
        MissingDataError: if an image cannot be decoded.
    """
    train_images, test_images = images
    row: Row = {
        "run": cell.run_id(seed),
        "cell": cell.id,
        "seed": seed,
        "configuration": cell.configuration,
    }
    try:
        with closing(training_batches(cell, train_images, seed, device)) as batches:
            held_out = held_out_batches(cell, test_images, device)
            network = make_network(cell, seed, device.torch)
            history = train(
                *(network, batches, held_out, cell.recipe),
                seed=seed,
                device=device,
                checkpoint=checkpoint,
                on_epoch=on_epoch,
            )
    except torch.OutOfMemoryError:
        return None
    except FloatingPointError as error:
        return {**row, "failed": str(error), **_conditions(device)}
    accuracies = [epoch.accuracy for epoch in history]
    seconds = sum(epoch.seconds for epoch in history)  # of training alone, interruptions aside
    if cell == CANARY and not CANARY_BAND[0] <= 100 * max(accuracies) <= CANARY_BAND[1]:
        row["warning"] = (
            f"the best epoch of the canary has {100 * max(accuracies):.2f} %, not"
            f" {CANARY_BAND[0]} to {CANARY_BAND[1]} %: mistrust all other numbers until this is"
            " understood"
        )
    file.parent.mkdir(exist_ok=True)
    write_network(file, network, cell, seed)
    return {
        **row,
        "accuracy_last": accuracies[-1],
        "accuracy_best": max(accuracies),
        "held_out": len(test_images),
        "history": [epoch._asdict() for epoch in history],
        "storage": network.storage._asdict(),
        "bytes": file.stat().st_size,
        "seconds": round(seconds, 3),
        "images_per_second": round(len(train_images) * len(history) / seconds, 1),
        **_conditions(device),
    }


def _conditions(device: Device) -> Row:
    """What the numbers were measured with."""
    return {
        "device": str(device.torch),
        "hardware": {"name": device.hardware, "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "pemn_ref": pemn.__version__,
        },
        "commit": COMMIT,
    }


def _commit() -> str | None:
    """Of this checkout, with ``-dirty`` if it was changed; None where installed."""
    here = Path(__file__).parents[1]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


COMMIT = _commit()
"""Of the code as it was loaded, whatever the checkout is when a run ends."""


def evaluate_file(path: Path, device: Device, data: Path | None) -> tuple[str, float, int]:
    """Strategy of a compressed network, its accuracy, on how many images; ``data`` as above.

    Raises:
        FileError: if it is not a whole and valid file of a cell.
        MissingDataError: if the images are not there and cannot be had.
        OSError: if the file cannot be read.
    """
    network, cell = read_network(path, device.torch)
    _, images = load(cell.dataset, data)
    return cell.name, accuracy(network, held_out_batches(cell, images, device)), len(images)


def training_batches(cell: Cell, images: Images, seed: int, device: Device) -> TrainingBatches:
    """What a network of the cell is trained on; to be closed."""
    transform = make_transform(cell.recipe.augmentation, DATASETS[cell.dataset])
    return TrainingBatches(
        *(images, transform),
        seed=seed,
        batch=cell.recipe.batch,
        workers=_workers(transform, device),
        pinned=device.pinned,
    )


def held_out_batches(cell: Cell, images: Images, device: Device) -> list[Batch]:
    """What a network of the cell is measured on, put on the device once."""
    plain = make_transform("plain", DATASETS[cell.dataset])
    workers = _workers(plain, device)
    evaluation = evaluation_batches(images, plain, batch=_EVALUATION_BATCH, workers=workers)
    with closing(evaluation):
        return [device.put(batch) for batch in evaluation]


def _workers(transform: Transform | None, device: Device) -> int:
    """None for images that are tensors already: they are faster taken than sent."""
    return device.workers if transform else 0
