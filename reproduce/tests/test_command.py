"""How the command ends where the machine does not go along: pipes, disks, memory, Ctrl-C."""

import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch

from reproduce.options import load_torch
from reproduce.tests.conftest import Command
from reproduce.tests.runs.test_run import UNDER_SIGINT

ONE = ("run", "--strategy", "mp", "--epochs", "1", "--seeds", "1", "--device", "cpu", "--out")


def start(*arguments: str | Path, path: str = "", **more: Any) -> "subprocess.Popen[str]":
    """The command in a process of its own; modules are looked for in ``path`` first."""
    return subprocess.Popen(
        [sys.executable, "-c", UNDER_SIGINT, *map(str, arguments)],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={"PYTHONPATH": f"{path}:{Path(__file__).parents[2]}"},
        **more,
    )


@pytest.mark.parametrize("arguments", [ONE, ("table", "--all", "--ledger")], ids=["run", "table"])
def test_standard_output_that_is_full_is_said_and_not_blamed_on_a_folder(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with (
        full.open("w", encoding="utf-8") as stdout,
        start(*arguments, tmp_path, stdout=stdout) as child,
    ):
        _, errors = child.communicate()
    assert child.returncode == 2
    why = "error: standard output cannot be written: [Errno 28] No space left on device\n"
    assert errors == why


@pytest.mark.parametrize("arguments", [ONE, ("table", "--all", "--ledger")], ids=["run", "table"])
def test_who_reads_no_further_ends_it_quietly(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """``| head -1``."""
    with start(*arguments, tmp_path, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        errors = child.stderr.read()
    assert (child.returncode, errors) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(("module", "codes"), [("typer", {-2}), ("torch", {130})])
def test_ctrl_c_while_modules_are_loaded_ends_it_without_a_traceback(
    tmp_path: Path, module: str, codes: set[int]
) -> None:
    interrupted = tmp_path / "modules" / f"{module}.py"
    interrupted.parent.mkdir()
    interrupted.write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n", encoding="utf-8"
    )
    with start(*ONE, tmp_path, path=str(interrupted.parent), stdout=subprocess.PIPE) as child:
        output, errors = child.communicate()
    assert child.returncode in codes
    assert (output, errors) == ("", "")


def test_help_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('loaded')", encoding="utf-8")
    with start("run", "--help", path=str(tmp_path), stdout=subprocess.PIPE) as child:
        child.communicate()
    assert child.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("run --density 0.3", "every masked cell keeps half of the weights"),
        ("run --density 0.3", "masked_forward takes a density"),
        ("run --ratio 0.1", "--strategy rp_1e-2"),
        ("run --lr 0.1", "reproduce/study/recipes.py"),
        ("run --model ConvMixer", "did you mean convmixer or convmixer-d2-w32?"),
        ("run --model resn", "did you mean resnet or resnet8?"),
        ("run --strategy MP", "did you mean mp?"),
        ("run --strategy rp_1e-9", "only dense, mask, one_layer, mp, rp_1e-1, rp, rp_1e-2"),
        ("plan --all --strategy x", "only dense, mask, one_layer, mp, rp_1e-1, rp, rp_1e-2"),
        ("run --dataset CIFAR10", "--study cifar10-small or paper or frontier-cifar10 has that"),
        ("run --study cifar10", "did you mean cifar10-small?"),
        ("plan --only 000000000000", "plan with one model and one dataset lists"),
        ("run digits", "--model, --strategy, --dataset and --only choose cells"),
        ("run --epoch 1", "--epochs"),
        ("train", "; see "),
        ("export", "export --help"),
        ("export 0 file --out nowhere", "no networks in nowhere: --out names the folder that run"),
    ],
)
def test_slips_are_one_line_that_says_what_to_do(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, errors = command(*arguments.split())
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert says in errors
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("terminal", "told"), [(True, "loading torch\n"), (False, "")])
def test_who_waits_for_torch_is_told_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, told: str
) -> None:
    class AtOnce(Timer):
        def start(self) -> None:
            self.function(*self.args, **self.kwargs)

    monkeypatch.setattr("reproduce.options.Timer", AtOnce)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    load_torch()
    assert capsys.readouterr().err == told


def too_much_for_torch(*_: object, **__: object) -> None:
    torch.empty(2**60, dtype=torch.uint8)


def too_much_for_python(*_: object, **__: object) -> None:
    bytearray(2**62)


@pytest.mark.parametrize("too_much", [too_much_for_torch, too_much_for_python])
def test_run_that_memory_is_too_small_for_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, too_much: Any
) -> None:
    monkeypatch.setattr("reproduce.training.run.make_network", too_much)
    code, output, errors = command(*ONE, tmp_path)
    assert (code, errors) == (3, "some runs failed or were skipped, as said above\n")
    assert "skipped: the memory of the device is too small" in output


@pytest.mark.parametrize("too_much", [too_much_for_torch, too_much_for_python])
def test_memory_that_is_too_small_for_images_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, too_much: Any
) -> None:
    monkeypatch.setattr("reproduce.runs.study.load", too_much)
    code, _, errors = command(*ONE, tmp_path)
    assert (code, errors) == (2, "error: not enough memory: choose less, or a larger machine\n")


@pytest.mark.parametrize("too_much", [too_much_for_torch, too_much_for_python])
def test_plan_says_that_a_cell_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, too_much: Any
) -> None:
    monkeypatch.setattr("reproduce.preflight.cost.training_step", too_much)
    code, output, _ = command("plan", "--device", "cpu", "--out", tmp_path / "none")
    assert code == 0
    assert "too large" in output


def test_folder_whose_name_is_no_utf8_is_as_good_as_another(
    tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "\udcff"
    code, output, errors = command(*ONE, out)
    assert (code, errors) == (0, "")
    assert f"figure: {tmp_path}/\\udcff/digits-" in output
    assert len((out / "digits.jsonl").read_bytes().splitlines()) == 1
