"""Training what a study asks for and is not measured yet: one row for each cell and seed."""

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

import pemn_ref as pemn
from reproduce.cells import Cell, Study
from reproduce.data.augment import make_transform
from reproduce.data.batches import Batch, Images, TrainingBatches, evaluation_batches
from reproduce.data.datasets import DATASETS, load
from reproduce.device import Device
from reproduce.files import read_network, run_file, write_network
from reproduce.networks import make_network
from reproduce.report import draw_figure, make_table
from reproduce.rows import Row, append_row, read_rows
from reproduce.train import Epoch, accuracy, train

_EVALUATION_BATCH = 500


def run_study(
    study: Study, seeds: Sequence[int], out: Path, device: Device, data: Path | None
) -> None:
    """Train every cell with every seed, then print the table and draw the figure.

    Rows go to ``OUT/STUDY.jsonl``, networks to ``OUT/files``; a run that has a row there is not
    trained again. Seed by seed, so that a run that is stopped early has seen every cell. ``data``
    as ``data_root`` takes it.

    Raises:
        DamagedRowsError, OSError: if rows cannot be read or written.
        MissingDataError: if the images are not there and cannot be had.
        FloatingPointError: if a training ends in a loss that is not finite.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(study.title)
    path = out / f"{study.name}.jsonl"
    rows = {row["run"]: row for row in read_rows(path, console.print)}
    wanted = [(cell, seed) for seed in seeds for cell in study.cells]
    missing = [(cell, seed) for cell, seed in wanted if cell.run_id(seed) not in rows]
    console.print(
        f"{len(missing)} runs to train; {len(wanted) - len(missing)} of {len(wanted)}"
        f" are in {path} already and are not trained again"
    )
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(cell.recipe.epochs for cell, _ in missing))
        for number, (cell, seed) in enumerate(missing, start=1):
            progress.update(task, description=f"{cell.name}, seed {seed}")
            file = run_file(out, cell.run_id(seed))
            row = measure(cell, seed, device, data, file, lambda _: progress.advance(task))
            append_row(path, row)
            rows[row["run"]] = row
            console.print(
                f"{number:3d}/{len(missing)}  {cell.name:9}  seed {seed}"
                f"  {100 * row['accuracy_last']:5.1f} %  {row['seconds']:.1f} s"
                f"  {row['images_per_second']:,.0f} images/s  {row['run']}"
            )
    measured = [rows[cell.run_id(seed)] for cell, seed in wanted]
    console.print(make_table(study, measured), soft_wrap=False)
    console.print(f"rows: {path}")
    for picture in draw_figure(study, measured, out / study.name):
        console.print(f"figure: {picture}")


def measure(
    cell: Cell,
    seed: int,
    device: Device,
    data: Path | None,
    file: Path,
    on_epoch: Callable[[Epoch], object],
) -> Row:
    """Train one cell with one seed and write its network to ``file``, before there is a row.

    Accuracies are fractions of the held-out images.
    """
    start = time.perf_counter()
    train_images, test_images = load(cell.dataset, data)
    dataset, recipe = DATASETS[cell.dataset], cell.recipe
    transform = make_transform(recipe.augmentation, dataset)
    workers = device.workers if transform else 0  # tensors are faster taken than sent
    batches = TrainingBatches(
        train_images,
        transform,
        seed=seed,
        batch=recipe.batch,
        workers=workers,
        pinned=device.pinned,
    )
    held_out = held_out_batches(cell, test_images, device)
    network = make_network(cell, seed, device.torch)
    history = train(network, batches, held_out, recipe, seed=seed, device=device, on_epoch=on_epoch)
    accuracies = [epoch.accuracy for epoch in history]
    file.parent.mkdir(exist_ok=True)
    write_network(file, network, cell, seed)
    return {
        "run": cell.run_id(seed),
        "cell": cell.id,
        "seed": seed,
        "configuration": cell.configuration,
        "accuracy_last": accuracies[-1],
        "accuracy_best": max(accuracies),
        "held_out": len(test_images),
        "history": [epoch._asdict() for epoch in history],
        "storage": network.storage._asdict(),
        "bytes": file.stat().st_size,
        "seconds": round(time.perf_counter() - start, 3),
        "images_per_second": round(
            len(train_images) * len(history) / sum(epoch.seconds for epoch in history), 1
        ),
        "device": str(device.torch),
        "hardware": {"name": device.hardware, "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "pemn_ref": pemn.__version__,
        },
    }


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


def held_out_batches(cell: Cell, images: Images, device: Device) -> list[Batch]:
    """What a network of the cell is measured on, put on the device once."""
    plain = make_transform("plain", DATASETS[cell.dataset])
    workers = device.workers if plain else 0
    evaluation = evaluation_batches(images, plain, batch=_EVALUATION_BATCH, workers=workers)
    return [device.put(batch) for batch in evaluation]
