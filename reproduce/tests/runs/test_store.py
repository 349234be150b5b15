"""The folder of runs stays right whatever happens to the processes that use it."""

import json
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from filelock import Timeout
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from reproduce.rows.row import Row, line_of
from reproduce.runs.store import RunStore
from reproduce.study.studies import STUDIES
from reproduce.tests.invented import row_of as invented
from reproduce.tests.runs.test_run import full_disk
from reproduce.training.checkpoint import Stop, Stopped

ONE, TWO = STUDIES["digits"].shortened(1).cells[:2]
SEEDS = (*range(4), 10)  # one run's id begins like another's
RUNS = {cell.run_id(seed): (cell, seed) for cell in (ONE, TWO) for seed in SEEDS}
ROWS = {run: invented(*of_run) for run, of_run in RUNS.items()}
A, B = ONE.run_id(1), TWO.run_id(1)
PROCESSES = range(3)


class Killed(BaseException):
    """Ends a process in the middle of a call."""


def kill_as_it_finishes(store: RunStore, row: Row, cut: int) -> None:
    """Act like a kill in ``append_row`` when all but ``cut`` bytes are on the disk."""

    def fsync(file: int) -> None:
        if os.fstat(file).st_ino == store.path.stat().st_ino:
            os.ftruncate(file, os.fstat(file).st_size - cut)
            raise Killed
        real(file)

    real = os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reproduce.rows.row.os.fsync", fsync)
        with pytest.raises(Killed):
            store.finish(row)


class Folder(RuleBasedStateMachine):
    """Three processes in one folder, and what must be in it.

    A killed process leaves its files as they are and releases its lock.
    """

    @initialize()
    def empty(self) -> None:
        self.tmp = TemporaryDirectory()
        self.moves = self.steps = 0
        self.rows: set[str] = set()
        self.kept: dict[str, int] = {}  # checkpoints, which are numbers here
        self.open_stores()

    def open_stores(self) -> None:
        self.out = Path(self.tmp.name) / str(self.moves)
        self.held: dict[int, tuple[str, AbstractContextManager[bool]]] = {}
        self.stores = [RunStore(self.out, "study", lambda _: None) for _ in PROCESSES]

    def teardown(self) -> None:
        if hasattr(self, "tmp"):
            for process in [*self.held]:
                self.let_go(process)
            self.tmp.cleanup()

    def parts(self) -> set[Path]:
        return {*self.out.glob("*/*.part")}

    def let_go(self, process: int) -> str:
        run, claim = self.held.pop(process)
        claim.__exit__(None, None, None)
        return run

    @precondition(lambda self: len(self.held) < len(PROCESSES))
    @rule(runs=st.lists(st.sampled_from([*ROWS]), min_size=2, max_size=4))
    def start(self, runs: list[str]) -> None:
        """Idle processes claim these runs, one after the other."""
        for run in runs:
            idle = {*PROCESSES} - {*self.held}
            if idle:
                self.claim(min(idle), run)

    def claim(self, process: int, run: str) -> None:
        others = {part for part in self.parts() if not part.name.startswith(f"{run}.")}
        claim = self.stores[process].claim(run)
        ours = claim.__enter__()
        claimed = {other for other, _ in self.held.values()}
        assert ours == (run not in claimed and run not in self.rows)
        if not ours:
            claim.__exit__(None, None, None)
            return
        self.held[process] = run, claim
        assert self.parts() == others
        content = self.stores[process].checkpoint(*RUNS[run], 0, Stop()).read()
        assert content == ({"step": self.kept[run]} if run in self.kept else None)
        assert self.stores[process].started(run) == (run in self.kept)

    holder = precondition(lambda self: self.held)

    @holder
    @rule(stop=st.booleans())
    def step(self, stop: bool) -> None:
        """Each process takes a step, and stops after it if asked to."""
        self.steps += 1
        content = {"step": self.steps}
        for process, (run, _) in [*self.held.items()]:
            asked = Stop(code=143 if stop else None)
            checkpoint = self.stores[process].checkpoint(*RUNS[run], 0, asked)
            try:
                checkpoint.after_step(lambda: content)
            except Stopped:
                self.let_go(process)
            self.kept[run] = self.steps

    @holder
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(sorted(self.held)))
        run, _ = self.held[process]
        self.stores[process].finish(ROWS[run])
        self.rows.add(self.let_go(process))
        assert not self.stores[process].started(run)

    @holder
    @rule(data=st.data(), torn=st.sampled_from(["", "checkpoints", "files"]))
    def kill(self, data: st.DataObject, torn: str) -> None:
        run = self.let_go(data.draw(st.sampled_from(sorted(self.held))))
        if torn:
            (self.out / torn).mkdir(exist_ok=True)
            suffix = "pt" if torn == "checkpoints" else "safetensors"
            (self.out / torn / f"{run}.{suffix}.{self.steps:08x}.part").write_bytes(b"half")

    @holder
    @rule(data=st.data())
    def kill_in_the_row(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(sorted(self.held)))
        run, _ = self.held[process]
        length = len(line_of(ROWS[run]))
        cut = data.draw(st.sampled_from([0, 1, 2, 20, length - 1, length]))
        kill_as_it_finishes(self.stores[process], ROWS[run], cut)
        self.let_go(process)
        if cut <= 1:  # at most the end of the line is missing
            self.rows.add(run)

    @holder
    @rule(process=st.sampled_from(PROCESSES))
    def look(self, process: int) -> None:
        assert self.stores[process].rows() == {run: ROWS[run] for run in self.rows}

    @holder
    @rule()
    def copy(self) -> None:
        """Continue in a copy of the folder; the processes stay with the first one."""
        for process in [*self.held]:
            self.let_go(process)
        before = self.out
        self.moves += 1
        shutil.copytree(before, Path(self.tmp.name) / str(self.moves))
        self.open_stores()

    @invariant()
    def every_row_is_there_once(self) -> None:
        path = self.out / "study.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line)["run"])
            except ValueError:
                assert line == lines[-1]
        assert sorted(found) == sorted(self.rows)

    @invariant()
    def checkpoint_is_there_until_the_row_is(self) -> None:
        for run, step in self.kept.items():
            if run not in self.rows:
                checkpoint = self.stores[0].checkpoint(*RUNS[run], 0, Stop())
                assert checkpoint.read() == {"step": step}


Folder.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
test_folder_through_any_history = Folder.TestCase


def test_torn_row_of_another_process_takes_no_row_with_it(tmp_path: Path) -> None:
    one, two = (RunStore(tmp_path, "study", lambda _: None) for _ in range(2))
    with two.claim(B) as ours:
        assert ours
        with one.claim(A):
            kill_as_it_finishes(one, ROWS[A], cut=20)
        two.finish(ROWS[B])
    assert one.rows() == {B: ROWS[B]}


def test_mark_of_a_process_that_died_is_swept_by_the_next_and_no_other(tmp_path: Path) -> None:
    store = RunStore(tmp_path, "study", lambda _: None)
    dead = tmp_path / "locks" / "driver-01234567.lock"
    dead.touch()
    with store.mark() as mark:
        for run in (A, B):
            with RunStore(tmp_path, "study", print).claim(run):
                assert (mark.exists(), dead.exists()) == (True, False)
    assert not mark.exists()


def test_what_is_said_of_a_line_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    store = RunStore(tmp_path, "study", said.append)
    store.path.write_text("no row\n", encoding="utf-8")
    with store.claim(A):
        store.finish(ROWS[A])
    assert store.rows() == {A: ROWS[A]}
    assert [line.startswith(f"{store.path}, line 1 does not count: ") for line in said] == [True]


def test_checkpoint_that_was_left_beside_a_row_is_dropped_by_its_run_alone(tmp_path: Path) -> None:
    store = RunStore(tmp_path, "study", lambda _: None)
    store.checkpoint(*RUNS[A], 0, Stop()).after_step(lambda: {"step": 1})
    kill_as_it_finishes(store, ROWS[A], cut=0)
    assert store.started(A)
    assert store.rows() == {A: ROWS[A]}
    assert store.started(A)
    store.drop(A)
    assert not store.started(A)


def test_folders_that_share_a_ledger_add_each_row_once(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    stores = [RunStore(tmp_path / out, "study", lambda _: None, ledger) for out in ("one", "two")]
    for store in stores:
        store.finish(ROWS[A])
    assert len(stores[0].path.read_bytes().splitlines()) == 1
    # They wait for each other; otherwise each could take the other's half-written line for torn.
    with stores[0]._lock, pytest.raises(Timeout):
        stores[1]._lock.acquire(timeout=0)


def test_row_that_cannot_be_written_leaves_the_checkpoint(tmp_path: Path) -> None:
    store = RunStore(tmp_path, "study", lambda _: None)
    store.finish(ROWS[A])
    store.checkpoint(*RUNS[B], 0, Stop()).after_step(lambda: {"step": 1})
    for room in (0, 20):
        with full_disk(store.path.stat().st_size + room), pytest.raises(OSError, match="large"):
            store.finish(ROWS[B])
        assert store.started(B)
        assert store.rows() == {A: ROWS[A]}
    store.finish(ROWS[B])
    assert store.rows() == {run: ROWS[run] for run in (A, B)}
    assert not store.started(B)
