"""How a cell starts: the loss of its first steps, and what all of it would take at that pace."""

from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from reproduce.cells import Cell
from reproduce.checkpoint import Checkpoint, Stop, Stopped
from reproduce.data.datasets import load
from reproduce.device import Device
from reproduce.networks import make_network
from reproduce.rows import Row
from reproduce.run import held_out_batches, training_batches
from reproduce.timing import conditions
from reproduce.train import train


class _Recorder(Checkpoint):
    """Notes where training stands at each step, and stops it; writes nothing."""

    def __init__(self, steps: int) -> None:
        super().__init__(Path(), float("inf"), Stop())
        self.steps = steps
        self.notes: list[tuple[float, int, float]] = []

    def read(self) -> None:
        """There is nothing to go on from."""

    def after_step(self, content: Callable[[], dict[str, Any]]) -> None:
        """Note the sum of the losses, the images and the seconds of the epoch so far."""
        at = content()["position"]
        self.notes.append((float(at["loss"]), at["images"], at["seconds"]))
        if len(self.notes) == self.steps:
            raise Stopped(0)


def bench_start(cell: Cell, steps: int, device: Device, data: Path | None) -> Row:
    """The first so many steps of a cell with seed 0, by its own recipe and on its own images.

    The row holds the mean loss of each step's images, the images a second of training alone, and
    the hours that all epochs would take at that pace. ``data`` as ``data_root`` takes it.

    Raises:
        MissingDataError: if the images are not there and cannot be had.
    """
    images, test_images = load(cell.dataset, data)
    few = [test_images[i] for i in range(100)]  # no result: too early for one
    with closing(training_batches(cell, images, 0, device)) as batches, suppress(Stopped):
        recorder = _Recorder(min(steps, cell.recipe.epochs * len(batches)))
        train(
            *(make_network(cell, 0, device.torch), batches),
            *(held_out_batches(cell, few, device), cell.recipe),
            seed=0,
            device=device,
            checkpoint=recorder,
            on_epoch=lambda _: None,
        )
    losses, seen, seconds = [], 0, 0.0
    before = (0.0, 0, 0.0)
    for now in recorder.notes:
        if now[1] <= before[1]:
            before = (0.0, 0, 0.0)  # another epoch
        loss, number, time = (new - old for new, old in zip(now, before, strict=True))
        losses.append(round(loss / number, 4))
        seen, seconds, before = seen + int(number), seconds + time, now
    return {
        "cell": cell.id,
        "configuration": cell.configuration,
        "losses": losses,
        "images_per_second": round(seen / seconds, 1),
        "hours": round(cell.recipe.epochs * len(images) / (seen / seconds) / 3600, 1),
        **conditions(device.torch, device.hardware),
    }
