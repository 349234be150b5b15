"""Each point of the check can fail: for each of them something is broken, and it says so."""

import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from msgspec import structs
from torch import Tensor

import pemn_ref as pemn
from reproduce.data.batches import Batch
from reproduce.data.datasets import load
from reproduce.data.images import Images
from reproduce.data.root import MissingDataError
from reproduce.preflight import check as points
from reproduce.preflight import cost, trials
from reproduce.preflight.cost import learned, size
from reproduce.preflight.plan import read_plan
from reproduce.preflight.trials import TrialError, compare_numbers, stop_and_resume, train_briefly
from reproduce.rows.row import Epoch, append_row
from reproduce.runs.store import RunStore
from reproduce.study.cells import Cell, ConvMixer, Study
from reproduce.study.recipes import CONVMIXER
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.tests.invented import failed_row_of, row_of, write_rows
from reproduce.training.checkpoint import Stop
from reproduce.training.device import Device, open_device
from reproduce.training.program import PROGRAM
from reproduce.training.run import Skipped
from reproduce.training.step import Trial, training_step

CPU = open_device("cpu")
DIGITS = STUDIES["digits"].chosen()
TINY = Cell(
    "cifar10",
    ConvMixer(depth=1, width=8, patch=4, kernel=3),
    "rp",
    0.1,
    0.5,
    CONVMIXER.changed(batch=8, augmentation="crop-flip"),
)


class Fast(Device):
    """Claims that it can train cells of the paper."""

    @property
    def slow(self) -> bool:
        return False


class Rounding(Device):
    """Rounds to the ten bits of TensorFloat-32."""

    def put(self, batch: Batch) -> Batch:
        x, y = super().put(batch)
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32), y


class Wrong(Device):
    def put(self, batch: Batch) -> Batch:
        x, y = super().put(batch)
        return x.flip(3), y


class Undefined(Device):
    def put(self, batch: Batch) -> Batch:
        x, y = super().put(batch)
        return x * torch.nan, y


class NotRepeating(Device):
    @property
    def repeats(self) -> bool:
        return False


class Full(Device):
    def free_memory(self) -> int:
        return 1000


class Counting(Fast):
    """Measures its memory, and has just enough of it."""

    def free_memory(self) -> int:
        return 70_000 + size(learned(TINY), bfloat16=False).images

    def peak_memory(self, run: Callable[[], object]) -> int | None:
        run()
        return 70_000


class Overfull(Counting):
    def peak_memory(self, run: Callable[[], object]) -> int | None:
        return 70_001


class TooSmall(Counting):
    def peak_memory(self, run: Callable[[], object]) -> int | None:
        raise torch.OutOfMemoryError


def like(kind: type[Device]) -> Device:
    return kind(**vars(CPU))


def test_cpu_computes_what_float64_does() -> None:
    said = compare_numbers(DIGITS.cells, CPU)
    for family in ("convmixer", "resnet", "vit"):
        assert f"{family} float32" in said
        assert f"{family} bfloat16" in said


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Rounding, r"convmixer float32 \de-04"),
        (Wrong, "convmixer float32"),
        (Undefined, "convmixer float32 nan nan"),
    ],
)
def test_other_numbers_are_not_trusted(kind: type[Device], named: str) -> None:
    with pytest.raises(TrialError, match=rf"{named}.*do not trust this device"):
        compare_numbers(DIGITS.cells, like(kind))


def test_score_gradients_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    results = trials._results

    def half(network: Any, x: Tensor, y: Tensor) -> list[Tensor]:
        logits, *gradients = results(network, x, y)
        return [logits, *(g if g.dtype == torch.float64 else g / 2 for g in gradients)]

    monkeypatch.setattr(trials, "_results", half)
    with pytest.raises(TrialError, match=r"float32 \de-0\d 5e-01"):
        compare_numbers(DIGITS.cells, CPU)


@pytest.mark.parametrize("numel", [100, 128 * 128])  # in the small cells too, at full size only
def test_a_mask_of_other_bits_is_not_trusted(monkeypatch: pytest.MonkeyPatch, numel: int) -> None:
    score_mask = pemn.score_mask

    def one_wrong(scores: Tensor, *, density: float) -> Tensor:
        mask = score_mask(scores, density=density)
        if scores.dtype == torch.float32 and scores.numel() >= numel:
            mask.view(-1)[0] = 1 - mask.view(-1)[0]
        return mask

    monkeypatch.setattr(pemn, "score_mask", one_wrong)
    full_size = replace(TINY, model=replace(TINY.model, width=128))
    with pytest.raises(TrialError, match=r"the mask of \S+ in \S+ differs from the CPU's"):
        compare_numbers([full_size], CPU)


def test_loss_falls_in_every_family(tmp_path: Path) -> None:
    said = train_briefly(DIGITS.cells, {}, CPU, tmp_path)
    assert [part.split()[0] for part in said.split(": ")[1].split(", ")] == [
        *("convmixer-d2-w32", "resnet8", "vit-d2-w32")
    ]


@pytest.mark.parametrize(
    ("learning_rate", "named"),
    [(0.0, "the loss does not fall, convmixer"), (float("inf"), "the loss is nan in epoch 1")],
)
def test_a_loss_that_does_not_fall_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learning_rate: float, named: str
) -> None:
    recipe = DIGITS.cells[3].recipe.changed(learning_rate=learning_rate)
    monkeypatch.setattr(trials, "SMALL", [replace(DIGITS.cells[3], recipe=recipe)])
    with pytest.raises(TrialError, match=named):
        train_briefly(DIGITS.cells, {}, CPU, tmp_path)


def test_memory_that_is_too_small_to_train_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "train_run", lambda *_: Skipped("the memory is too small"))
    with pytest.raises(TrialError, match="memory is too small for convmixer"):
        train_briefly(DIGITS.cells, {}, CPU, tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_a_fast_device_trains_the_cells_themselves_on_their_data_if_that_is_there(
    tmp_path: Path, there: bool
) -> None:
    labels = torch.arange(100) % 10
    grey = (25 * labels)[:, None, None, None].expand(-1, 3, 32, 32)
    some = Images(grey.to(torch.uint8), labels)
    images = {"cifar10": (some, some)} if there else {}
    said = train_briefly([TINY], images, like(Fast), tmp_path)
    assert f"convmixer-d1-w8 on {'cifar10' if there else 'digits'} " in said


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    said = stop_and_resume(CPU.torch, tmp_path)
    assert said == "stopped after epoch 2, resumed to epoch 10, with the same bits"


@pytest.mark.parametrize(
    ("number", "instead", "named"),
    [
        (2, "", "stopped without a checkpoint: do not stop runs there"),
        (3, "import sys; sys.exit('out of luck')", "exit code 1: out of luck: do not stop"),
    ],
)
def test_a_run_that_cannot_be_stopped_or_resumed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, instead: str, named: str
) -> None:
    run, calls = subprocess.run, count(1)

    def start(command: list[str], **how: Any) -> Any:
        other = next(calls) == number
        return run([command[0], "-c", instead] if other else command, **how)

    monkeypatch.setattr(subprocess, "run", start)
    with pytest.raises(TrialError, match=named):
        stop_and_resume(CPU.torch, tmp_path)


@pytest.mark.parametrize(
    ("changed", "network", "named"),
    [
        ({}, b"bits", None),
        ({"seconds": 9.0, "images_per_second": 9.0}, b"bits", None),
        ({"held_out": 400}, b"bits", "row or network"),
        ({}, b"other", "row or network"),
        ({"history": [Epoch(1.0, 0.5, 2.1)]}, b"bits", "was not resumed"),
        ({"history": [Epoch(0.9, 0.5, 2.0)]}, b"bits", "was not resumed"),
    ],
)
def test_a_run_that_does_not_go_on_as_it_was_is_said(
    tmp_path: Path, changed: dict[str, Any], network: bytes, named: str | None
) -> None:
    row = row_of(DIGITS.shortened(1).cells[0])
    run, kept = row.run, row.history
    other = structs.replace(row, **changed)
    whole, parts = (RunStore(tmp_path / name, "digits", print) for name in ("whole", "parts"))
    for store, what, content in ((whole, row, b"bits"), (parts, other, network)):
        append_row(store.path, what)
        store.file(run).parent.mkdir()
        store.file(run).write_bytes(content)
    if named is None:
        trials.compare_runs(parts, whole, run, kept, CPU)
    else:
        with pytest.raises(TrialError, match=named):
            trials.compare_runs(parts, whole, run, kept, CPU)
    if named != "was not resumed":
        trials.compare_runs(parts, whole, run, kept, like(NotRepeating))


@pytest.mark.parametrize("kind", [Device, Counting])
def test_the_largest_cell_fits(kind: type[Device]) -> None:
    larger = replace(TINY, model=replace(TINY.model, width=16))
    said = points._try_largest([TINY, larger, TINY], like(kind), 1)
    assert said.startswith("convmixer-d1-w16 on cifar10 needs 0.")


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Full, "convmixer-d1-w8 on cifar10 needs .* are free: choose a smaller"),
        (Overfull, "convmixer-d1-w8 on cifar10 needs .* are free: choose a smaller"),
        (TooSmall, "convmixer-d1-w8 on cifar10 does not fit in .*: choose a smaller"),
    ],
)
def test_memory_that_does_not_suffice_is_said(kind: type[Device], named: str) -> None:
    with pytest.raises(TrialError, match=named):
        points._try_largest([TINY], like(kind), 1)


def test_memory_is_measured_with_the_last_batch_of_an_epoch_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is smaller: a recorded step for whole batches leaves it no memory to share."""
    seen: list[int] = []

    def noting(*args: Any, **options: Any) -> Trial:
        trial = training_step(*args, **options)
        forward = trial.step.forward

        def note(batch: Batch) -> Tensor:
            seen.append(len(batch[1]))
            return forward(batch)

        monkeypatch.setattr(trial.step, "forward", note)
        return trial

    monkeypatch.setattr(points, "training_step", noting)
    odd = replace(TINY, recipe=TINY.recipe.changed(batch=12))
    points._try_largest([odd], like(Counting), 1)
    assert seen == [12, 12, 12, 50_000 % 12]


def test_memory_must_suffice_for_all_that_train_together() -> None:
    with pytest.raises(TrialError, match=r"needs 0.28 GB for each of 2, 0.28 GB are free: choose"):
        points._try_largest([TINY], like(Counting), 2)


def test_disk_must_hold_every_file_and_two_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = read_plan(DIGITS, [0, 1], tmp_path)
    each = size(learned(DIGITS.cells[0]), bfloat16=False)
    needed = 18 * each.file + 2 * (each.state + each.optimizer)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert "needed" in points._count_disk(plan, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(TrialError, match="make room, or name another folder with --out"):
        points._count_disk(plan, tmp_path)


def test_data_that_is_missing_is_a_warning_unless_all_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_digits(name: str, root: Path | None) -> object:
        if name == "digits":
            return load(name)
        raise MissingDataError(f"{name} is damaged")

    monkeypatch.setattr(points, "load", only_digits)
    said: list[str] = []
    images: dict[str, Any] = {}
    cells = [TINY, DIGITS.cells[0]]
    assert points._load_data(cells, None, images, said.append) == "digits"
    assert list(images) == ["digits"]
    assert said == ["warning  data: all runs on cifar10 will be skipped: cifar10 is damaged"]
    with pytest.raises(TrialError, match="no dataset can be loaded"):
        points._load_data([TINY], None, {}, said.append)


def test_every_point_is_a_line_and_one_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "stop_and_resume", lambda *_: "so it does")
    monkeypatch.setattr(points, "train_briefly", lambda *_: "so it does")
    plan = read_plan(DIGITS, [0], tmp_path)
    lines: list[str] = []
    assert points.check(plan, CPU.torch, None, tmp_path, lines.append)
    names = ["data", "disk", "resuming", "numbers", "training", "memory", "time"]
    assert [line.split(":")[0].split() for line in lines] == [["ok", name] for name in names]
    assert "9 of 9 runs to train, about" in lines[-1]
    assert "convmixer-d2-w32 on digits" in lines[-1]

    def fail(*_: object) -> str:
        raise RuntimeError("CUDA error:\n no kernel")

    def stumble(*_: object) -> str:
        raise AssertionError

    monkeypatch.setattr(points, "compare_numbers", fail)
    monkeypatch.setattr(points, "train_briefly", stumble)
    lines.clear()
    assert not points.check(plan, CPU.torch, None, tmp_path, lines.append)
    assert lines[3] == "FAILED   numbers: CUDA error: no kernel"
    assert lines[4] == "FAILED   training: AssertionError()"
    assert [line.split()[0] for line in lines] == [*["ok"] * 3, "FAILED", "FAILED", "ok", "ok"]
    assert not list(tmp_path.glob("check-*"))


def test_device_is_opened_after_the_processes_that_resume_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Slurm's EXCLUSIVE_PROCESS only one process may hold it."""
    order: list[str] = []

    def start(command: list[str], **_: object) -> object:
        order.append("process")
        raise TrialError

    def open_it(name: str) -> Device:
        order.append("opened")
        return open_device(name)

    monkeypatch.setattr(subprocess, "run", start)
    for module in (points, trials):
        monkeypatch.setattr(module, "open_device", open_it)
    monkeypatch.setattr(points, "train_briefly", lambda *_: "so it does")
    assert not points.check(read_plan(DIGITS, [0], tmp_path), CPU.torch, None, tmp_path, print)
    assert order == ["process", "opened"]


def test_device_that_does_not_open_fails_points_and_ends_in_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> Device:
        raise ValueError("cuda:0 cannot be opened: CUDA error: devices are busy")

    monkeypatch.setattr(points, "open_device", refuse)
    monkeypatch.setattr(points, "stop_and_resume", lambda *_: "so it does")
    lines: list[str] = []
    assert not points.check(
        read_plan(DIGITS, [0], tmp_path), CPU.torch, None, tmp_path, lines.append
    )
    failed = [line for line in lines if line.startswith("FAILED")]
    assert len(failed) == 4
    assert all("cannot be opened: CUDA error: devices are busy" in line for line in failed)


class Checks:
    """Counts checks, and returns the next of ``results``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
        self.results: list[bool] = []
        self.said: list[str] = []
        self.out = out
        monkeypatch.setattr(points, "check", lambda *_: self.results.pop(0))

    def once(self, study: Study = DIGITS, together: int = 1) -> bool:
        plan = read_plan(study, [0], self.out)
        return points.check_once(plan, CPU.torch, None, self.out, self.said.append, together)


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checks:
    return Checks(monkeypatch, tmp_path)


def test_a_good_check_is_made_once_for_a_folder_and_versions(
    checks: Checks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks.results = [False, True, True, True, True]
    assert not checks.once()
    assert checks.once()  # a failed check is not remembered
    assert checks.once()
    assert len(checks.results) == 3
    (file,) = tmp_path.glob("checked/*.json")
    assert checks.said == [f"ok       checked before, see {file}"]
    file.write_bytes(file.read_bytes()[:-1])
    assert checks.once()
    assert len(checks.results) == 2
    another = structs.replace(PROGRAM, commit="another")
    monkeypatch.setattr("reproduce.preflight.check.PROGRAM", another)
    assert checks.once()
    assert len(checks.results) == 1
    checks.out = tmp_path / "other"
    assert checks.once()
    assert not checks.results


def test_a_check_counts_for_the_models_that_it_looked_at(checks: Checks) -> None:
    digits = STUDIES["digits"]
    mp = digits.chosen(models=["convmixer"], strategies=["mp"])
    convmixer, resnet = (digits.chosen(models=[name]) for name in ("convmixer", "resnet"))
    both = digits.chosen(models=["convmixer", "resnet"])
    checks.results = [True] * 3
    for study, together, left in (
        *((mp, 1, 2), (convmixer, 1, 2)),
        *((resnet, 1, 1), (both, 1, 1), (mp, 1, 1)),
        *((mp, 2, 0), (mp, 2, 0)),
    ):
        assert checks.once(study, together)
        assert len(checks.results) == left


def test_a_process_waits_for_the_check_of_another_and_uses_it(
    checks: Checks, tmp_path: Path
) -> None:
    checks.results = [True]
    assert checks.once()
    (lock,) = tmp_path.glob("checked/*.lock")
    with ThreadPoolExecutor() as pool:
        with FileLock(lock):
            other = pool.submit(checks.once)
            while not checks.said:
                time.sleep(0.01)
            assert checks.said == ["another process is checking cpu: waiting for it"]
            assert not other.done()
        assert other.result()


@pytest.mark.parametrize(("good", "code"), [(True, 0), (False, 3)])
def test_exit_code_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, good: bool, code: int
) -> None:
    monkeypatch.setattr(points, "check", lambda *_: good)
    assert command("check", "--device", "cpu", "--out", tmp_path) == (code, "", "")


PAPER = ("run", "--all", "--model", "resnet32", "--strategy", "mp", "--device", "cpu", "--out")


def test_cells_of_the_paper_are_refused_on_a_cpu_and_nothing_is_measured_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    for module in (cost, points):
        monkeypatch.setattr(module, "training_step", never)
    out = tmp_path / "runs"
    code, output, errors = command(*PAPER, out)
    assert (code, output) == (2, "")
    assert errors.startswith("error: what is left to train (2 of 2 runs) is for a GPU")
    assert "--on-cpu" in errors
    assert "--study cifar10-small" in errors
    assert errors.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(("good", "code"), [(True, 3), (False, 2)])
def test_cells_of_the_paper_are_trained_after_a_check_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, good: bool, code: int
) -> None:
    def none(name: str, _: Path | None) -> None:
        raise MissingDataError(f"no {name}")

    monkeypatch.setattr(points, "check", lambda *_: good)
    monkeypatch.setattr("reproduce.runs.study.load", none)
    result, output, errors = command(*PAPER, tmp_path, "--on-cpu")
    assert result == code
    assert ("2 of 2 runs to train" in output) == good
    assert ("nothing is trained" in errors) == (not good)


def test_the_check_is_part_of_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    limits: list[float] = []

    def stopping(minutes: float) -> AbstractContextManager[Stop]:
        limits.append(minutes)
        return nullcontext(Stop())

    def check(*_: object) -> bool:
        time.sleep(0.6)
        return True

    def none(name: str, _: Path | None) -> None:
        raise MissingDataError(f"no {name}")

    monkeypatch.setattr(points, "check", check)
    monkeypatch.setattr("reproduce.runs.study.load", none)
    monkeypatch.setattr("reproduce.training.checkpoint.stopping", stopping)
    command(*PAPER, tmp_path, "--on-cpu", "--max-minutes", "5")
    assert 0 < limits[0] <= 4.99


def test_an_option_leaves_the_check_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    def none(name: str, _: Path | None) -> None:
        raise MissingDataError(f"no {name}")

    monkeypatch.setattr(points, "check", lambda *_: False)
    monkeypatch.setattr("reproduce.runs.study.load", none)
    code, output, _ = command(*PAPER, tmp_path, "--on-cpu", "--unchecked")
    assert code == 3
    assert "2 of 2 runs to train" in output


def test_nothing_is_checked_where_nothing_is_left(tmp_path: Path, command: Command) -> None:
    cells = STUDIES["paper"].chosen(models=["resnet32"], strategies=["mp"]).cells
    write_rows(tmp_path / "paper.jsonl", [failed_row_of(cell) for cell in cells])
    code, output, _ = command(*PAPER, tmp_path)
    assert code == 3
    assert "0 of 2 runs to train" in output
