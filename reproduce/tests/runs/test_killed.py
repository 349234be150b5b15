"""Real processes that are killed, interrupted or work side by side, and what they leave.

They are forked from a server that has loaded torch, so each starts in a fraction of a second.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from itertools import count
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reproduce.__main__ import main
from reproduce.data.images import Images
from reproduce.report.console import console
from reproduce.runs.store import RunStore
from reproduce.runs.study import run_study, train_here
from reproduce.study.cells import Cell, Study
from reproduce.study.recipes import CONVMIXER
from reproduce.study.studies import STUDIES
from reproduce.tests.runs.test_run import times_aside
from reproduce.tests.training.test_checkpoint import augmented
from reproduce.tests.training.test_loop import CONVMIXERS
from reproduce.training.checkpoint import Checkpoint, Stop
from reproduce.training.device import open_device

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])

Start = Callable[..., BaseProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a process, which calls a function of this module."""
    children: list[BaseProcess] = []

    def start(function: Callable[..., None], *arguments: object) -> BaseProcess:
        log = tmp_path / f"log {len(children)}"
        children.append(CONTEXT.Process(target=begin, args=(log, function, arguments)))
        children[-1].start()
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.join()


def begin(log: Path, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Start as from a shell: own process group, Ctrl-C works, output in ``log.1``, ``log.2``."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (1, 2):
        with Path(f"{log}.{stream}").open("wb") as file:
            os.dup2(file.fileno(), stream)
    cast(TextIOWrapper, sys.stdout).reconfigure(errors="replace")  # as main does
    torch.set_num_threads(1)
    function(*arguments)


def logs(tmp_path: Path, stream: int) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob(f"log *.{stream}"))]


def exit_code(child: BaseProcess) -> int | None:
    """The exit code, once the process has ended; None if it hangs."""
    child.join(20)
    return child.exitcode


def wait_for(path: Path, child: BaseProcess) -> None:
    while not path.exists():
        assert child.is_alive()
        time.sleep(0.005)


def study(*cells: Cell, epochs: int, batch: int) -> Study:
    recipe = CONVMIXER.changed(epochs=epochs, batch=batch, augmentation="plain")
    cells = tuple(replace(cell, recipe=recipe) for cell in cells)
    return Study("tiny", "A tiny {model}", cells, (), (), seeds=1, threads=1)


RP = next(cell for cell in CONVMIXERS if cell.name == "rp_1e-2")
CONTROL = next(cell for cell in CONVMIXERS if cell.name == "control")


def train(
    out: Path,
    study: Study,
    seeds: int = 1,
    dies_at: int | None = None,
    calls: tuple[str, ...] = ("fsync",),
    barrier: Barrier | None = None,
) -> None:
    """``run_study`` with a checkpoint at each step.

    Calls that change the disk are counted. Instead of call number ``dies_at`` the process kills
    itself; if that call is ``fsync``, half of the file is written.
    """
    number = count(1)

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any) -> Any:
            if next(number) == dies_at:
                if call is fsync:
                    (file,) = arguments
                    os.ftruncate(file, os.fstat(file).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return instead

    fsync = os.fsync
    patch = pytest.MonkeyPatch()
    for name in calls:
        patch.setattr(os, name, dying(getattr(os, name)))
    if barrier:
        barrier.wait()
    here = partial(train_here, open_device("cpu"))
    run_study(study, range(seeds), out, here, None, console(), stop=Stop(), every=0)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (out / "tiny.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def same(out: Path, whole: Path) -> None:
    """The only run has the same row and network in both, and no earlier process left anything."""
    (row,) = rows_of(out)
    assert times_aside([row]) == times_aside(rows_of(whole))
    name = f"files/{row['run']}.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not [*out.glob("*/*.part")]
    assert not [*out.glob("checkpoints/*")]


def written(path: Path) -> int | None:
    """The identity of the file, which differs after each write."""
    return path.stat().st_ino if path.exists() else None


def finished(child: BaseProcess) -> bool:
    """Whether the process ended by itself; otherwise it was killed."""
    code = exit_code(child)
    assert code in (0, -signal.SIGKILL)
    return code == 0


KILLS = 20
LIFE = 12
"""In this checkpoint a process kills itself if nothing killed it before, so none finishes."""


def test_run_that_is_killed_at_random_ends_as_one_that_is_not(tmp_path: Path, start: Start) -> None:
    tiny = study(RP, epochs=-(-KILLS * LIFE // 21) + 1, batch=64)  # 21 steps each
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert finished(start(train, whole, tiny))

    random = Random(0)
    (cell,) = tiny.cells
    path = out / "checkpoints" / f"{cell.run_id(0)}.pt"
    checkpoint = Checkpoint(path, cell, 0, 0, Stop())
    parts: set[Path] = set()
    position = (0, 0)
    for number in range(KILLS):
        if number % 3 == 0:  # in a write
            child = start(train, out, tiny, 1, random.randint(1, LIFE))
        else:
            before = written(checkpoint.path)
            child = start(train, out, tiny, 1, LIFE)
            if number % 3 == 1:  # while it trains
                while child.is_alive() and written(checkpoint.path) == before:
                    time.sleep(0.001)
                time.sleep(random.uniform(0, 0.05))
            else:  # at any moment at all
                time.sleep(random.uniform(0, 0.3))
            child.kill()
        assert not finished(child)
        parts |= {*checkpoint.path.parent.glob("*.part")}
        content = checkpoint.read()
        if content is not None:
            reached = len(content["position"]["history"]), content["position"]["step"]
            assert reached >= position
            position = reached
    assert len(parts) >= KILLS // 3  # at least this many were killed during a write

    assert finished(start(train, out, tiny))
    same(out, whole)
    assert not [*out.glob("*.damaged")]


def test_run_that_is_killed_at_any_write_ends_as_one_that_is_not(
    tmp_path: Path, start: Start
) -> None:
    tiny = study(RP, epochs=1, batch=700)  # 2 steps
    calls = ("fsync", "replace", "unlink")
    assert finished(start(train, tmp_path / "whole", tiny))
    for number in count(1):
        out = tmp_path / str(number)
        if finished(start(train, out, tiny, 1, number, calls)):
            break
        assert finished(start(train, out, tiny))
        same(out, tmp_path / "whole")
    assert number > 8  # two calls for each checkpoint and the network, then row and last unlink


def test_processes_in_one_folder_train_each_run_once(tmp_path: Path, start: Start) -> None:
    tiny = study(RP, CONTROL, epochs=2, batch=64)
    barrier = CONTEXT.Barrier(2)
    out = tmp_path / "out"
    children = [start(train, out, tiny, 2, None, (), barrier) for _ in range(2)]
    assert all(finished(child) for child in children)
    runs = sorted(cell.run_id(seed) for cell in tiny.cells for seed in range(2))
    assert sorted(row["run"] for row in rows_of(out)) == runs
    lines = [line.split() for log in logs(tmp_path, 1) for line in log.splitlines()]
    assert sorted(words[-1] for words in lines if "images/s" in words) == runs
    assert not [*out.glob("checkpoints/*")]


def hold(out: Path, mark: Path) -> None:
    """Claim a run and hang."""
    with RunStore(out, "tiny", print).claim("a-1") as ours:
        assert ours
        mark.touch()
        time.sleep(600)


def test_lock_dies_with_its_process(tmp_path: Path, start: Start) -> None:
    mark = tmp_path / "mark"
    child = start(hold, tmp_path, mark)
    wait_for(mark, child)
    store = RunStore(tmp_path, "tiny", print)
    with store.claim("a-1") as ours:
        assert not ours
    with store.claim("a-2") as ours:
        assert ours
    child.kill()
    child.join()
    with store.claim("a-1") as ours:
        assert ours


def run_of_hours() -> tuple[Cell, tuple[Images, Images]]:
    """A cell whose training takes hours, and its images."""
    cell, images = augmented()
    return replace(cell, recipe=cell.recipe.changed(epochs=100_000)), images


def command(out: Path, mark: Path, seconds: float = 0, arguments: tuple[str, ...] = ()) -> None:
    """``python -m reproduce run`` on a run of hours; each step makes ``mark`` and takes longer."""
    cell, images = run_of_hours()

    def marking(logits: Tensor, labels: Tensor) -> Tensor:
        mark.touch()
        time.sleep(seconds)
        return cross_entropy(logits, labels)

    patch = pytest.MonkeyPatch()
    tiny = Study("tiny", "A tiny {model}", (cell,), (), (), seeds=1, threads=1)
    patch.setitem(STUDIES, "tiny", tiny)
    patch.setattr("reproduce.runs.study.load", lambda *_: images)
    patch.setattr("reproduce.training.step.cross_entropy", marking)
    device = ("--device", "cpu")
    sys.argv = ["reproduce", "run", "--study", "tiny", "--out", str(out), *device, *arguments]
    sys.exit(main())


def steps_of(out: Path) -> int:
    """How many steps the only checkpoint has done."""
    (path,) = out.glob("checkpoints/*")
    content = Checkpoint(path, run_of_hours()[0], 0, 0, Stop()).read()
    assert content is not None
    return 3 * len(content["position"]["history"]) + int(content["position"]["step"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_at_a_checkpoint(tmp_path: Path, start: Start, number: int, code: int) -> None:
    out, mark = tmp_path / "out", tmp_path / "mark"
    child = start(command, out, mark)
    wait_for(mark, child)
    assert child.pid is not None
    os.kill(child.pid, number)
    errors = f"stopped: all is kept in {out}, the same command goes on there\n"
    assert (exit_code(child), logs(tmp_path, 2)) == (code, [errors])

    steps = steps_of(out)
    child = start(command, out, mark, 0, ("--max-minutes", "0"))
    assert exit_code(child) == 4
    assert steps_of(out) == steps + 1


def test_second_ctrl_c_ends_at_once(tmp_path: Path, start: Start) -> None:
    mark = tmp_path / "mark"
    child = start(command, tmp_path / "out", mark, 600)
    wait_for(mark, child)
    assert child.pid is not None
    for pause in (0.5, 10, 10, 10, 10):  # two signals close together may arrive as one
        os.kill(child.pid, signal.SIGINT)
        child.join(pause)
        if not child.is_alive():
            break
    assert pause > 0.5
    assert child.exitcode == 130
    assert not [*tmp_path.glob("out/checkpoints/*")]
