"""A resumed run ends like one that was never stopped; a checkpoint is whole or refused."""

import hashlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec import structs

from reproduce.data.datasets import load
from reproduce.data.images import Images
from reproduce.rows.row import Program
from reproduce.study.cells import Cell
from reproduce.tests.runs.test_run import full_disk, times_aside
from reproduce.tests.training.test_loop import CELLS
from reproduce.training.checkpoint import Checkpoint, CheckpointError, Stop, Stopped
from reproduce.training.device import open_device
from reproduce.training.program import PROGRAM
from reproduce.training.run import Skipped, train_run

DEVICE = open_device("cpu")
EPOCHS, STEPS = 2, 3
NAMES = [
    *("convmixer-dense", "convmixer-rp_1e-2", "convmixer-control"),
    *("convmixer-prune_random_90", "convmixer-prune_minimum_90"),
    *("resnet-dense", "resnet-rp_1e-2"),  # SGD with momentum
    *("vit-dense", "vit-rp_1e-2"),  # dropout
]
BY_NAME = {
    f"{cell.model.family}-{cell.name}": replace(cell, recipe=cell.recipe.changed(epochs=EPOCHS))
    for cell in CELLS
}
CELL = BY_NAME["resnet-rp_1e-2"]
Images2 = tuple[Images, Images]


def digits() -> Images2:
    """Three batches of 50 to train on, the last one smaller, and 50 images to measure."""
    train_images, test_images = load("digits")
    return train_images[:140], test_images[:50]


def augmented() -> tuple[Cell, Images2]:
    """A ViT cell with dropout, and noise that it augments, in three batches."""
    stream = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (22, 3, 32, 32), dtype=torch.uint8, generator=stream)
    images = Images(noise, torch.arange(22) % 10)
    cell = BY_NAME["vit-rp_1e-2"]
    recipe = cell.recipe.changed(batch=8, augmentation="vit")
    return replace(cell, dataset="cifar10", recipe=recipe), (images, images[:5])


class StopAfter(Stop):
    """Asks to stop once, at the end of step number ``steps``."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    @property
    def asked(self) -> bool:
        self.steps -= 1
        if self.steps == 0:
            self.code = 130
        return self.code is not None


class Run:
    """One run in its own folder, with its network and its checkpoint."""

    def __init__(self, out: Path, cell: Cell, images: Images2, seed: int = 0) -> None:
        self.cell, self.images, self.seed = cell, images, seed
        self.file, self.checkpoint = out / "files" / "one.safetensors", out / "one.pt"
        out.mkdir()

    def go_on(self, stop: Stop | None = None, every: float = 60) -> dict[str, Any]:
        """Start or resume, train to the end or the stop, and return the row without times."""
        checkpoint = Checkpoint(self.checkpoint, self.cell, self.seed, every, stop or Stop())
        images, file = self.images, self.file
        row = train_run(self.cell, self.seed, images, DEVICE, checkpoint, file, lambda _: None)
        assert not isinstance(row, Skipped)
        return times_aside([msgspec.to_builtins(row)])[0]

    def stopped(self, stop: Stop) -> None:
        with pytest.raises(Stopped) as caught:
            self.go_on(stop)
        assert caught.value.code == stop.code

    @property
    def steps(self) -> int:
        """How many steps the checkpoint has done."""
        content = Checkpoint(self.checkpoint, self.cell, self.seed, 60, Stop()).read()
        assert content is not None
        return STEPS * len(content["position"]["history"]) + int(content["position"]["step"])


def same_after_a_stop_at_every_step(whole: Run, pieces: Run) -> None:
    """Resume for one step at a time, across the ends of epochs; the result is the same."""
    row = whole.go_on()
    assert len(row["history"]) == EPOCHS
    for step in range(1, EPOCHS * STEPS + 1):
        pieces.stopped(Stop(code=143))
        assert pieces.steps == step
    assert pieces.go_on() == row
    assert pieces.file.read_bytes() == whole.file.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_run_that_is_stopped_at_every_step_ends_as_one_that_is_not(
    tmp_path: Path, name: str
) -> None:
    runs = [Run(tmp_path / which, BY_NAME[name], digits()) for which in ("whole", "pieces")]
    same_after_a_stop_at_every_step(*runs)


@pytest.mark.parametrize("name", NAMES)
def test_run_that_is_stopped_once_ends_as_one_that_is_not(tmp_path: Path, name: str) -> None:
    whole = Run(tmp_path / "whole", BY_NAME[name], digits())
    row = whole.go_on()
    for step in range(1, EPOCHS * STEPS + 1):
        two = Run(tmp_path / f"stopped {step}", BY_NAME[name], digits())
        two.stopped(StopAfter(step))
        assert two.steps == step
        assert two.go_on() == row
        assert two.file.read_bytes() == whole.file.read_bytes()


def test_so_does_one_whose_images_are_augmented(tmp_path: Path) -> None:
    runs = [Run(tmp_path / which, *augmented()) for which in ("whole", "pieces")]
    same_after_a_stop_at_every_step(*runs)


def test_run_goes_on_in_a_copy_of_its_folder(tmp_path: Path) -> None:
    one = Run(tmp_path / "one", CELL, digits())
    one.stopped(StopAfter(4))
    other = Run(tmp_path / "other", CELL, digits())
    shutil.copytree(tmp_path / "one", tmp_path / "other", dirs_exist_ok=True)
    other.stopped(StopAfter(1))
    assert (one.steps, other.steps) == (4, 5)
    assert other.go_on() == one.go_on()
    assert other.file.read_bytes() == one.file.read_bytes()


def test_checkpoint_is_written_where_it_is_time(tmp_path: Path) -> None:
    for every, expected in ((60, False), (0, True)):
        run = Run(tmp_path / str(every), CELL, digits())
        run.go_on(every=every)
        assert run.checkpoint.exists() == expected
    assert run.steps == EPOCHS * STEPS


def test_time_limit_stops_with_its_own_code(tmp_path: Path) -> None:
    stop = Stop(deadline=0)
    Run(tmp_path / "run", CELL, digits()).stopped(stop)
    assert stop.code == 4


@pytest.fixture
def half(tmp_path: Path) -> Run:
    """A run that was stopped in the middle of its second epoch."""
    run = Run(tmp_path / "half", CELL, digits())
    run.stopped(StopAfter(STEPS + 1))
    return run


def refused(run: Run, why: str) -> None:
    """The checkpoint is refused in one line that names it, and stays as it is."""
    before = run.checkpoint.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        run.go_on(StopAfter(1))  # this would write a new one
    message = str(caught.value)
    assert message.startswith(f"{run.checkpoint} {why}")
    assert message.endswith(": remove it to start the run from the beginning")
    assert "\n" not in message
    assert run.checkpoint.read_bytes() == before


def test_truncated_checkpoint_is_refused(half: Run) -> None:
    content = half.checkpoint.read_bytes()
    for length in (0, 1, 31, 32, 33, len(content) // 2, len(content) - 1):
        half.checkpoint.write_bytes(content[:length])
        refused(half, "is damaged")


def test_checkpoint_with_a_flipped_bit_is_refused(half: Run) -> None:
    content = half.checkpoint.read_bytes()
    for place in range(0, len(content), len(content) // 50):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        half.checkpoint.write_bytes(flipped)
        refused(half, "is damaged")


def write_whole(path: Path, content: object) -> None:
    """Write a checkpoint whose checksum is right."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    saved = buffer.getvalue()
    path.write_bytes(hashlib.sha256(saved).digest() + saved)


@pytest.mark.parametrize("which", ["seed", "strategy"])
def test_checkpoint_of_another_run_is_refused_before_any_training(
    half: Run, tmp_path: Path, which: str
) -> None:
    cell, seed = (CELL, 1) if which == "seed" else (BY_NAME["resnet-dense"], 0)
    other = Run(tmp_path / "other", cell, half.images, seed)
    half.checkpoint.rename(other.checkpoint)
    refused(other, f"belongs to the run {half.cell.run_id(0)!r}, not to {cell.run_id(seed)}")


def test_checkpoint_of_another_configuration_is_refused(half: Run) -> None:
    """Even if it names the right run."""
    digest = hashlib.sha256().digest_size
    whole = torch.load(io.BytesIO(half.checkpoint.read_bytes()[digest:]), weights_only=True)
    whole["configuration"]["ratio"] = 0.5
    write_whole(half.checkpoint, whole)
    refused(half, "belongs to the run")


def test_row_names_all_code_that_trained_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", CELL, digits())
    others = [
        Program(commit="0" * 40, versions=structs.replace(PROGRAM.versions, torch="0.1")),
        Program(commit=None, versions=PROGRAM.versions),
    ]
    for other in (others[0], others[1], others[0]):  # the first twice
        monkeypatch.setattr("reproduce.training.checkpoint.PROGRAM", other)
        run.stopped(StopAfter(1))
    monkeypatch.undo()
    run.stopped(StopAfter(1))
    row = run.go_on()
    assert row["earlier"] == msgspec.to_builtins(others[::-1])
    assert (row["commit"], row["versions"]) == (
        PROGRAM.commit,
        msgspec.to_builtins(PROGRAM.versions),
    )


def test_row_of_a_run_that_the_same_code_resumed_is_as_of_one_in_one_piece(half: Run) -> None:
    assert "earlier" not in half.go_on()


def test_checkpoint_of_an_earlier_format_is_refused(half: Run) -> None:
    """Earlier checkpoints did not name their run."""
    write_whole(half.checkpoint, Checkpoint(half.checkpoint, half.cell, 0, 0, Stop()).read())
    refused(half, "was not written by this version of the program")


def test_checkpoint_of_another_version_is_refused(half: Run) -> None:
    checkpoint = Checkpoint(half.checkpoint, half.cell, 0, 0, Stop())
    content = checkpoint.read()
    assert content is not None
    tensors, position = content["tensors"], content["position"]
    name, tensor = next(item for item in tensors.items() if item[1].dim() == 4)
    fewer = {other: tensors[other] for other in tensors if other != name}
    groups = content["optimizer"]["param_groups"]
    for other in (
        {"tensors": tensors},
        content | {"tensors": fewer},
        content | {"tensors": tensors | {"new": tensor}},
        content | {"tensors": tensors | {name: tensor[:1]}},  # would broadcast silently
        content | {"tensors": tensors | {name: tensor.mT[:, :, :1]}},
        content | {"optimizer": content["optimizer"] | {"param_groups": groups * 2}},
        content | {"position": {key: position[key] for key in position if key != "step"}},
        content | {"position": position | {"new": 1}},
        content | {"position": position | {"history": [(1.0, 0.5)]}},
    ):
        checkpoint.after_step(lambda other=other: other)  # type: ignore[misc]
        refused(half, "was not written by this version of the program")


def test_checkpoint_stays_where_the_disk_is_full(half: Run) -> None:
    before = half.checkpoint.read_bytes()
    with full_disk(len(before) // 2), pytest.raises(OSError, match="large"):
        half.go_on(every=0)
    assert half.checkpoint.read_bytes() == before
    assert [*half.checkpoint.parent.iterdir()] == [half.checkpoint]
    assert half.go_on()["accuracy_last"] > 0


def test_network_that_cannot_be_written_leaves_the_checkpoint(half: Run) -> None:
    before = half.checkpoint.read_bytes()
    with full_disk(1000), pytest.raises(OSError, match="large"):
        half.go_on()
    assert half.checkpoint.read_bytes() == before
    assert not [*half.file.parent.iterdir()]
    assert half.go_on()["accuracy_last"] > 0
