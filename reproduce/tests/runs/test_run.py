"""The command as a person would run it, on a small real run."""

import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from reproduce.data.datasets import load
from reproduce.data.images import digest
from reproduce.rows.row import Epoch, Measured
from reproduce.study.recipes import RESNET
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.training.checkpoint import Checkpoint, Stop
from reproduce.training.device import open_device
from reproduce.training.program import PROGRAM
from reproduce.training.run import train_run

SMALL = ("--epochs", "1", "--seeds", "2", "--strategy", "rp_1e-2", "--strategy", "control")
DIGITS = STUDIES["digits"].chosen()
STUDY = DIGITS.chosen(strategies=["rp_1e-2", "control"]).shortened(1)
RUN_IDS = [cell.run_id(seed) for seed in (0, 1) for cell in STUDY.cells]

# python -m reproduce with Ctrl-C enabled, which a shell disables for background processes.
UNDER_SIGINT = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("reproduce", run_name="__main__", alter_sys=True)
"""


@dataclass
class RunCommand:
    """Runs ``python -m reproduce run`` in this process, with a folder of the test."""

    out: Path
    command: Command

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run; return exit code, standard output and standard error."""
        return self.command("run", "--device", "cpu", "--out", self.out, *arguments)

    def rows(self, study: str = "digits") -> list[dict[str, Any]]:
        """The contents of the file of rows."""
        lines = (self.out / f"{study}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def times_aside(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without their times, which never repeat."""
    return [
        {
            **row,
            "seconds": None,
            "images_per_second": None,
            "history": [{**epoch, "seconds": None} for epoch in row["history"]],
        }
        for row in rows
    ]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Inside, no file of this process can grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def command(tmp_path: Path, command: Command) -> RunCommand:
    return RunCommand(tmp_path / "out", command)


def test_rows_table_and_figure_are_made_once(command: RunCommand) -> None:
    code, output, errors = command(*SMALL)
    assert (code, errors) == (0, "")
    assert "demonstration, not a cell of the paper" in output
    assert "4 of 4 runs to train; a line" in output
    assert sorted(path.name for path in command.out.iterdir()) == [
        *("checkpoints", "digits-convmixer-d2-w32-1-epochs.png"),
        *("digits-convmixer-d2-w32-1-epochs.svg", "digits.jsonl", "files", "locks"),
    ]
    first = command.rows()
    assert [row["run"] for row in first] == RUN_IDS

    code, output, errors = command(*SMALL)
    assert (code, errors) == (0, "")
    assert "0 of 4 runs to train\n" in output
    assert command.rows() == first


def test_narrower_run_draws_what_the_fuller_one_measured_too(command: RunCommand) -> None:
    command(*SMALL)
    picture = command.out / "digits-convmixer-d2-w32-1-epochs.png"
    full = picture.read_bytes()
    picture.unlink()
    command("--epochs", "1", "--seeds", "1", "--strategy", "control")
    assert picture.read_bytes() == full


def test_row_says_what_was_measured_with_what(command: RunCommand) -> None:
    command(*SMALL)
    row = command.rows()[0]
    cell = STUDY.cells[0]
    assert (row["cell"], row["seed"], row["run"]) == (cell.id, 0, f"{cell.id}-0")
    assert row["configuration"] == cell.configuration
    assert row["configuration"]["recipe"]["epochs"] == len(row["history"]) == 1
    assert row["accuracy_last"] == row["accuracy_best"] == row["history"][-1]["accuracy"]
    assert (row["held_out"], row["trained_on"]) == (500, 1297)
    assert row["data"] == digest(*load("digits"))
    assert row["storage"]["unique"] == 11
    assert row["device"] == "cpu"
    assert row["hardware"]["threads"] == DIGITS.threads
    assert row["hardware"]["name"]
    assert sorted(row["versions"]) == ["pemn_ref", "python", "torch", "torchvision"]
    seconds = row["history"][0]["seconds"]
    assert row["seconds"] == round(seconds, 3) > 0
    assert row["images_per_second"] == pytest.approx(1297 / seconds, abs=0.06)


def test_row_has_the_commit_that_was_loaded_not_the_one_at_its_end(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(*_: object, **__: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess([], 0, stdout="another commit")

    monkeypatch.setattr(subprocess, "run", another)
    command(*SMALL)
    assert {row["commit"] for row in command.rows()} == {PROGRAM.commit} != {"another commit"}


def test_headline_is_the_last_epoch_and_the_best_stands_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = [Epoch(2.0, 0.5, seconds=1), Epoch(1.5, 0.75, 1), Epoch(1.0, 0.625, 2)]
    monkeypatch.setattr("reproduce.training.run.train", lambda *_, **__: history)
    file = tmp_path / "files" / "one.safetensors"
    cell = replace(STUDY.cells[0], recipe=STUDY.cells[0].recipe.changed(epochs=3))
    checkpoint = Checkpoint(tmp_path / "none.pt", cell, 0, 60, Stop())
    row = train_run(
        cell,
        0,
        load("digits"),
        open_device("cpu"),
        checkpoint,
        file,
        on_epoch=lambda _: None,
    )
    assert isinstance(row, Measured)
    assert (row.accuracy_last, row.accuracy_best) == (0.625, 0.75)
    assert row.history == history
    assert row.images_per_second == round(3 * 1297 / 4, 1)


def test_run_that_fails_is_in_the_table_and_in_no_figure(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr("reproduce.training.run.train", fails)
    code, output, errors = command("--epochs", "1", "--seeds", "1", "--strategy", "rp_1e-2")
    assert (code, errors) == (3, "some runs failed or were skipped, as said above\n")
    (line,) = (line for line in output.splitlines() if line.startswith(" rp_1e-2"))
    assert line.split()[:3] == ["rp_1e-2", "0/1", "failed"]
    assert not list(command.out.glob("*.png"))


def test_seeds_may_be_named(command: RunCommand) -> None:
    named = ("--seed", "20261126", "--seed", "0", "--seed", "20261126", "--seed", str(2**63 - 1))
    code, _, errors = command("--epochs", "1", "--strategy", "control", *named)
    assert (code, errors) == (0, "")
    assert [row["seed"] for row in command.rows()] == [20261126, 0, 2**63 - 1]


def test_same_command_gives_the_same_rows_times_aside(command: RunCommand) -> None:
    runs = []
    for name in ("one", "two"):
        command.out = command.out.with_name(name)
        command(*SMALL)
        runs.append(times_aside(command.rows()))
    assert runs[0] == runs[1]


def test_torn_row_is_moved_aside_and_trained_again(command: RunCommand) -> None:
    command(*SMALL)
    path = command.out / "digits.jsonl"
    whole = command.rows()
    path.write_bytes(path.read_bytes()[:-20])
    code, output, _ = command(*SMALL)
    assert code == 0
    assert "was torn" in output
    assert "1 of 4 runs to train" in output
    assert times_aside(command.rows()) == times_aside(whole)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_other_families_train_beside_the_first(command: RunCommand, family: str) -> None:
    code, output, errors = command("--model", family, "--epochs", "1", "--seeds", "1")
    assert (code, errors) == (0, "")
    assert f"a small {family} on 8x8 digits" in output.lower()
    names = [cell.name for cell in STUDIES["digits"].chosen(models=[family]).cells]
    rows = command.rows()
    assert [row["configuration"]["strategy"] for row in rows] == [
        name.removesuffix("_1e-2") for name in names
    ]
    assert {row["configuration"]["model"]["family"] for row in rows} == {family}
    label = STUDIES["digits"].chosen(models=[family]).cells[0].model.label
    assert (command.out / f"digits-{label}-1-epochs.png").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--strategy", "rp_1e-9"], "rp_1e-9"),
        (["--model", "vit", "--strategy", "one_layer"], "one_layer"),
        (["--study", "mnist"], "only digits, cifar10-small, paper"),
        (["--model", "lenet"], "convmixer, convmixer-d2-w32, resnet, resnet8, vit, vit-d2-w32"),
        (["--dataset", "mnist"], "only digits"),
        (["--only", "0123456789ab"], "no cell '0123456789ab'"),
        (["--study", "cifar10-small", "--model", "vit"], "only convmixer"),
        (["--device", "tpu"], "cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--seeds", "0"], "--seeds"),
        (["--seeds", "many"], "--seeds"),
        (["--seeds", "20261126"], "more than 1000: to train with the seed 20261126, give --seed"),
        (["--seeds", "9" * 4000], "more than 1000"),
        (["--seeds", "2", "--seed", "1"], "give one of them"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**63)], "--seed"),
        (["--epochs", "1" * 400], "--epochs"),
        (["--epochs", "0"], "--epochs"),
        (["--frobnicate"], "--frobnicate"),
        (["extra"], "extra"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command: RunCommand, arguments: list[str], named: str
) -> None:
    code, output, errors = command(*arguments)
    assert (code, output) == (2, "")
    assert named in errors
    assert errors.count("\n") == 1
    assert not command.out.exists()


def test_folder_that_cannot_be_is_one_line_and_exit_code_2(command: RunCommand) -> None:
    command.out.write_text("a file", encoding="utf-8")
    code, _, errors = command(*SMALL)
    assert code == 2
    assert str(command.out) in errors
    assert errors.count("\n") == 1


def test_lines_that_are_no_rows_are_said_and_left_and_nothing_else_is_touched(
    command: RunCommand,
) -> None:
    """Only checkpoints of this study's own runs with a row are deleted, whatever a line says."""
    command(*SMALL)
    path = command.out / "digits.jsonl"
    precious = command.out.with_name("model.pt")
    forged = {**command.rows()[0], "run": str(precious.with_suffix(""))}
    lines = path.read_bytes() + f"no row\n{json.dumps(forged)}\n".encode()
    path.write_bytes(lines)
    other, left = (command.out / "checkpoints" / f"{run}.pt" for run in ("0" * 12, RUN_IDS[0]))
    for kept in (precious, other, left):
        kept.write_text("precious", encoding="utf-8")
    plan = ("plan", "--device", "cpu", "--out", command.out, "--seeds", "1")
    code, output, errors = command.command(*plan)
    assert code == 0
    assert errors.splitlines() == [
        "measuring a step of convmixer-d2-w32 on digits",
        "counting memory",
    ]
    assert left.exists()
    code, more, errors = command(*SMALL)
    assert (code, errors) == (0, "")
    for said in (output, more):
        assert said.count(f"{path}, line 5 does not count: ") == 1
        assert said.count(f"{path}, line 6 does not count: ") == 1
    assert "at `$.run`" in more
    assert "0 of 4 runs to train\n" in more
    assert path.read_bytes() == lines
    assert (precious.exists(), other.exists(), left.exists()) == (True, True, False)


def test_ctrl_c_leaves_whole_rows_and_the_next_run_goes_on(command: RunCommand) -> None:
    arguments = ["--epochs", "20", "--strategy", "rp_1e-2", "--seeds", "3"]
    child = subprocess.Popen(
        [sys.executable, "-c", UNDER_SIGINT, "run", "--out", str(command.out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONUNBUFFERED": "1"},
        cwd=command.out.parent,
    )
    assert child.stdout is not None
    while "1/3" not in child.stdout.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate()
    assert child.returncode == 130
    assert errors.startswith("stopped: all is kept in")
    assert errors.count("\n") == 1
    done = len(command.rows())
    assert done in (1, 2)  # the second may have finished in the meantime
    assert not list(command.out.glob("*.damaged"))
    assert len(list(command.out.glob("checkpoints/*"))) == 1

    _, output, _ = command(*arguments)
    assert f"{3 - done} of 3 runs to train" in output
    assert not list(command.out.glob("checkpoints/*"))
    assert [row["seed"] for row in command.rows()] == [0, 1, 2]


def test_time_limit_stops_at_a_checkpoint_and_a_copy_goes_on_too(command: RunCommand) -> None:
    code, _, errors = command(*SMALL, "--max-minutes", "0")
    assert code == 4
    assert errors == f"stopped: all is kept in {command.out}, and the same command resumes it\n"
    assert command.rows() == []
    assert [path.stem for path in command.out.glob("checkpoints/*")] == RUN_IDS[:1]

    copy = shutil.copytree(command.out, command.out.with_name("copy"))
    rows = []
    for out in (command.out, copy, command.out.with_name("anew")):
        command.out = out
        assert command(*SMALL, "--max-minutes", "0")[0] == 4
        (path,) = out.glob("checkpoints/*")
        content = Checkpoint(path, STUDY.cells[0], 0, 60, Stop()).read()
        assert content is not None
        assert content["position"]["step"] == (1 if out.name == "anew" else 2)
        assert command(*SMALL)[0] == 0
        rows.append(times_aside(command.rows()))
    assert rows[0] == rows[1] == rows[2]


def test_damaged_checkpoint_is_one_line_and_exit_code_2(command: RunCommand) -> None:
    command(*SMALL, "--max-minutes", "0")
    (path,) = command.out.glob("checkpoints/*")
    damaged = path.read_bytes()[:-1]
    path.write_bytes(damaged)
    code, _, errors = command(*SMALL)
    assert code == 2
    assert errors == f"error: {path} is damaged: remove it to start the run from the beginning\n"
    assert path.read_bytes() == damaged
    path.unlink()
    assert command(*SMALL)[0] == 0


def test_full_disk_is_one_line_and_exit_code_2(command: RunCommand) -> None:
    command(*SMALL, "--max-minutes", "0")
    (path,) = command.out.glob("checkpoints/*")
    before = path.read_bytes()
    with full_disk(len(before) // 2):
        code, _, errors = command(*SMALL, "--max-minutes", "0")
    assert code == 2
    assert "File too large; name a folder that can be written with --out" in errors
    assert errors.count("\n") == 1
    assert [path] == [*command.out.glob("checkpoints/*")]
    assert path.read_bytes() == before
    assert command(*SMALL)[0] == 0


def test_other_errors_of_the_system_are_not_blamed_on_the_folder(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("reproduce.training.run.training_batches", fork)
    code, _, errors = command(*SMALL)
    assert (code, errors) == (2, "error: [Errno 12] Cannot allocate memory\n")


@pytest.mark.parametrize("option", ["--ledger", "--out"])
def test_folder_that_cannot_be_written_is_named_by_its_option(
    command: RunCommand, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, _, errors = command(*SMALL, option, str(tmp_path / "file" / "folder"))
    assert code == 2
    assert errors.endswith(f"; name a folder that can be written with {option}\n")


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (64, "the loss is nan in epoch 1"),
        (1297, "the network is not finite after its last step"),  # which no loss shows
    ],
)
def test_run_that_diverges_has_a_failed_row_and_the_next_goes_on(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch, batch: int, why: str
) -> None:
    first, second = STUDY.cells
    recipe = RESNET.changed(epochs=1, batch=batch, augmentation="plain", weight_decay=1e38)
    cells = (replace(first, recipe=recipe.changed(learning_rate=1e5)), second)
    monkeypatch.setitem(STUDIES, "digits", replace(STUDY, cells=cells, seeds=1))
    code, output, errors = command()
    assert (code, errors) == (3, "some runs failed or were skipped, as said above\n")
    assert f"failed: {why}" in output
    rows = command.rows()
    assert [row.get("failed") for row in rows] == [why, None]
    assert (rows[0]["cell"], rows[0]["device"]) == (cells[0].id, "cpu")
    assert [path.stem for path in command.out.glob("*/*.safetensors")] == [cells[1].run_id(0)]
    assert not [*command.out.glob("checkpoints/*")]
    table = [line for line in output.splitlines() if line.startswith((" rp", " cont"))]
    assert [(line.split()[0], "failed" in line) for line in table] == [
        *(("rp_1e-2", True), ("control", False))
    ]
    assert "figure: " in output

    code, output, _ = command()
    assert code == 3
    assert "0 of 2 runs to train" in output
    assert command.rows() == rows

    code, output, _ = command("--strategy", "rp_1e-2")
    assert code == 3
    assert "figure: " not in output


def test_runs_without_images_are_skipped_and_the_others_go_on(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = STUDY.cells
    cells = (replace(first, dataset="tiny-imagenet"), second)
    monkeypatch.setitem(STUDIES, "digits", replace(STUDY, cells=cells, datasets=(), seeds=2))
    empty = command.out.with_name("empty")
    code, output, errors = command("--data", str(empty))
    assert (code, errors) == (3, "some runs failed or were skipped, as said above\n")
    (line,) = [line for line in output.splitlines() if line.startswith("skipped")]
    assert line.startswith("skipped, all runs on tiny-imagenet: ")
    assert str(empty) in line
    assert [row["run"] for row in command.rows()] == [second.run_id(0), second.run_id(1)]
