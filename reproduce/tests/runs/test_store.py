"""The folder of runs, whatever happens to the processes that use it."""

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

from reproduce.rows.row import Row
from reproduce.runs.store import RunStore
from reproduce.tests.runs.test_run import full_disk
from reproduce.training.checkpoint import Stop, Stopped

RUNS = ("a-1", "a-10", *(f"b-{seed}" for seed in range(8)))  # one begins as another
PROCESSES = range(3)


class Killed(BaseException):
    """What ends a process in the middle of a call."""


def row_of(run: str) -> Row:
    return {"run": run, "text": "é" * 40}


def kill_as_it_finishes(store: RunStore, row: Row, cut: int) -> None:
    """Leave all as a kill in ``append_row`` would, when all but ``cut`` bytes were on the disk."""

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

    A process that is killed leaves its files as they are and its lock free.
    """

    @initialize()
    def empty(self) -> None:
        self.tmp = TemporaryDirectory()
        self.moves = self.steps = 0
        self.rows: set[str] = set()
        self.kept: dict[str, int] = {}  # the checkpoint, which is a number here
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
    @rule(runs=st.lists(st.sampled_from(RUNS), min_size=2, max_size=4))
    def start(self, runs: list[str]) -> None:
        """The processes that have nothing to do ask for these, one after the other."""
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
        content = self.stores[process].checkpoint(run, 0, Stop()).read()
        assert content == ({"step": self.kept[run]} if run in self.kept else None)
        assert self.stores[process].started(run) == (run in self.kept)

    holder = precondition(lambda self: self.held)

    @holder
    @rule(stop=st.booleans())
    def step(self, stop: bool) -> None:
        """Each process takes one, and stops there if it was asked to."""
        self.steps += 1
        content = {"step": self.steps}
        for process, (run, _) in [*self.held.items()]:
            checkpoint = self.stores[process].checkpoint(run, 0, Stop(code=143 if stop else None))
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
        self.stores[process].finish(row_of(run))
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
        length = len(json.dumps(row_of(run)) + "\n")
        cut = data.draw(st.sampled_from([0, 1, 2, 20, length - 1, length]))
        kill_as_it_finishes(self.stores[process], row_of(run), cut)
        self.let_go(process)
        if cut <= 1:  # all but the end of the line, at most
            self.rows.add(run)

    @holder
    @rule(process=st.sampled_from(PROCESSES))
    def look(self, process: int) -> None:
        assert self.stores[process].rows() == {run: row_of(run) for run in self.rows}
        assert not [run for run in self.rows if self.stores[process].started(run)]

    @holder
    @rule()
    def copy(self) -> None:
        """All goes on in a copy of the folder; the processes stay with the first."""
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
                assert self.stores[0].checkpoint(run, 0, Stop()).read() == {"step": step}


Folder.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
test_folder_through_any_history = Folder.TestCase


def test_torn_row_of_another_process_takes_no_row_with_it(tmp_path: Path) -> None:
    one, two = (RunStore(tmp_path, "study", lambda _: None) for _ in range(2))
    with two.claim("b-1") as ours:
        assert ours
        with one.claim("a-1"):
            kill_as_it_finishes(one, row_of("a-1"), cut=20)
        two.finish(row_of("b-1"))
    assert one.rows() == {"b-1": row_of("b-1")}


def test_checkpoint_goes_with_the_row_even_if_the_process_was_killed_between(
    tmp_path: Path,
) -> None:
    store = RunStore(tmp_path, "study", lambda _: None)
    store.checkpoint("a-1", 0, Stop()).after_step(lambda: {"step": 1})
    kill_as_it_finishes(store, row_of("a-1"), cut=0)
    assert store.started("a-1")
    assert store.rows() == {"a-1": row_of("a-1")}
    assert not store.started("a-1")


def test_folders_that_share_a_ledger_add_each_row_once(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    stores = [RunStore(tmp_path / out, "study", lambda _: None, ledger) for out in ("one", "two")]
    for store in stores:
        store.finish(row_of("a-1"))
    assert len(stores[0].path.read_bytes().splitlines()) == 1
    # They wait for each other, or a line that one adds would be torn to the other.
    with stores[0]._lock, pytest.raises(Timeout):
        stores[1]._lock.acquire(timeout=0)


def test_row_that_cannot_be_written_leaves_the_checkpoint(tmp_path: Path) -> None:
    store = RunStore(tmp_path, "study", lambda _: None)
    store.finish(row_of("a-1"))
    store.checkpoint("b-1", 0, Stop()).after_step(lambda: {"step": 1})
    for room in (0, 20):
        with full_disk(store.path.stat().st_size + room), pytest.raises(OSError, match="large"):
            store.finish(row_of("b-1"))
        assert store.started("b-1")
        assert store.rows() == {"a-1": row_of("a-1")}
    store.finish(row_of("b-1"))
    assert store.rows() == {run: row_of(run) for run in ("a-1", "b-1")}
    assert not store.started("b-1")
