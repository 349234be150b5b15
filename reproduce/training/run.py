"""One run: from a cell and a seed to a row and a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec import UNSET, UnsetType, structs

from reproduce.data.augment import make_augmentation
from reproduce.data.batches import Batch, TrainingBatches, evaluation_batches
from reproduce.data.datasets import DATASETS, load
from reproduce.data.images import Images, digest
from reproduce.memory import out_of_memory
from reproduce.rows.row import Epoch, Failed, Hardware, Measured, Row, Storage
from reproduce.study.cells import Cell
from reproduce.study.studies import CANARY, CANARY_BAND
from reproduce.training.checkpoint import Checkpoint
from reproduce.training.device import Device
from reproduce.training.files import read_network, read_stored, write_network
from reproduce.training.loop import accuracy, train
from reproduce.training.networks import Network, make_network
from reproduce.training.program import PROGRAM

_EVALUATION_BATCH = 500


class Skipped(NamedTuple):
    """Why a run has no row: it is left for another day, or for another machine."""

    reason: str


def describe(cell: Cell, seed: int) -> str:
    """A run for people."""
    return f"{cell.model.label}  {cell.dataset}  {cell.name:9}  seed {seed}"


def train_run(
    cell: Cell,
    seed: int,
    images: tuple[Images, Images],
    device: Device,
    checkpoint: Checkpoint,
    file: Path,
    on_epoch: Callable[[list[Epoch]], object],
) -> Row | Skipped:
    """Train one cell with one seed and write its network to ``file``; its row comes after that.

    Accuracies are fractions of the held-out images. The row of a loss that is not finite has
    ``failed`` instead. The run is skipped where the memory of the device is too small.

    Raises:
        Stopped, CheckpointError, OSError: as ``train``.
    """
    train_images, test_images = images
    try:
        network = make_network(cell, seed, device.torch)
        history = train(
            network,
            training_batches(cell, train_images, seed, device),
            held_out_batches(cell, test_images, device),
            cell.recipe,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        )
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return Skipped("the memory of the device is too small")
    except FloatingPointError as error:
        return Failed(
            run=cell.run_id(seed),
            cell=cell.id,
            seed=seed,
            configuration=cell.configuration,
            failed=str(error),
            **_conditions(device, checkpoint),
        )
    file.parent.mkdir(exist_ok=True)
    write_network(file, network, cell, seed)
    if cell.family is not None:  # the result is that of the file
        _, last, _ = score_file(file, device, test_images)
        history[-1] = structs.replace(history[-1], accuracy=last)
    accuracies = [epoch.accuracy for epoch in history]
    seconds = sum(epoch.seconds for epoch in history)  # of training alone, interruptions aside
    warning: str | UnsetType = UNSET
    if cell == CANARY and not CANARY_BAND[0] <= 100 * max(accuracies) <= CANARY_BAND[1]:
        warning = (
            f"the best epoch of the canary has {100 * max(accuracies):.2f} %, not"
            f" {CANARY_BAND[0]} to {CANARY_BAND[1]} %: mistrust all other numbers until this is"
            " understood"
        )
    return Measured(
        run=cell.run_id(seed),
        cell=cell.id,
        seed=seed,
        configuration=cell.configuration,
        warning=warning,
        accuracy_last=accuracies[-1],
        accuracy_best=max(accuracies),
        held_out=len(test_images),
        trained_on=len(train_images),
        data=digest(*images),
        history=history,
        storage=UNSET if cell.family else Storage(**network.storage._asdict()),
        bytes=file.stat().st_size,
        seconds=round(seconds, 3),
        images_per_second=round(len(train_images) * len(history) / seconds, 1),
        **_conditions(device, checkpoint),
    )


def _conditions(device: Device, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the numbers were measured with."""
    return {
        "device": str(device.torch),
        "hardware": Hardware(device.hardware, torch.get_num_threads()),
        "versions": PROGRAM.versions,
        "commit": PROGRAM.commit,
        "earlier": [each for each in checkpoint.programs if each != PROGRAM] or UNSET,
    }


def evaluate_file(
    path: Path, device: Device, data: Path | None, say: Callable[[str], None]
) -> tuple[str, float, int]:
    """Strategy of a compressed network, its accuracy, on how many images; ``data`` as above.

    What is measured is said first.

    Raises:
        FileError: if it is not a whole and valid file of a cell.
        MissingDataError: if the images are not there and cannot be had.
        OSError: if the file cannot be read.
    """
    network, cell = read_network(path, device.torch)
    say(f"measuring {cell.name} of {cell.model.label} on {cell.dataset}")
    return _measure(network, cell, load(cell.dataset, data)[1], device)


def score_file(path: Path, device: Device, source: Images | Path | None) -> tuple[str, float, int]:
    """As ``evaluate_file``, of a network of the byte frontier; or on images that are there already.

    Raises:
        FileError, MissingDataError, OSError: as ``evaluate_file``.
    """
    network, cell = read_stored(path, device.torch)
    images = source if isinstance(source, Images) else load(cell.dataset, source)[1]
    return _measure(network, cell, images, device)


def _measure(
    network: Network, cell: Cell, images: Images, device: Device
) -> tuple[str, float, int]:
    return cell.name, accuracy(network, held_out_batches(cell, images, device)), len(images)


def training_batches(cell: Cell, images: Images, seed: int, device: Device) -> TrainingBatches:
    """What a network of the cell is trained on: the images are put on the device once."""
    augmentation = make_augmentation(cell.recipe.augmentation, DATASETS[cell.dataset], device.torch)
    images = images.to(device.torch)
    return TrainingBatches(images, augmentation, seed=seed, batch=cell.recipe.batch)


def held_out_batches(cell: Cell, images: Images, device: Device) -> list[Batch]:
    """What a network of the cell is measured on, put on the device once."""
    plain = make_augmentation("plain", DATASETS[cell.dataset], device.torch)
    batches = evaluation_batches(images.to(device.torch), plain, batch=_EVALUATION_BATCH)
    return [device.put(batch) for batch in batches]
