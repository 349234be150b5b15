"""Stopping training at any moment and resuming it: when to stop, and what is kept."""

import hashlib
import io
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from pemn_ref.atomic import write
from reproduce.rows.row import Program
from reproduce.study.cells import Cell
from reproduce.training.program import PROGRAM

OUT_OF_TIME = 4
"""Exit code after a time limit. (After a signal it is 128 plus the signal's number.)"""
_DIGEST = hashlib.sha256().digest_size


class CheckpointError(Exception):
    """A checkpoint cannot be resumed; the message, one line, says what to do."""


class Stopped(Exception):  # noqa: N818  not an error
    """Training was asked to stop and has written its checkpoint; ``code`` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Stop:
    """Whether to stop. Training asks only after a step, so that nothing is left half done."""

    deadline: float = float("inf")
    """In seconds of ``time.monotonic``."""
    code: int | None = None

    @property
    def asked(self) -> bool:
        """Whether to stop: after a signal, or once the deadline has passed."""
        if self.code is None and time.monotonic() > self.deadline:
            self.code = OUT_OF_TIME
        return self.code is not None


@contextmanager
def stopping(minutes: float | None = None) -> Iterator[Stop]:
    """Inside, SIGINT, SIGTERM or a time limit ask to stop; a second signal acts as usual."""
    stop = Stop() if minutes is None else Stop(time.monotonic() + 60 * minutes)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: object) -> None:
        stop.code = 128 + number
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()


@dataclass
class Checkpoint:
    """What is needed to resume one run, in one file that is complete at any moment.

    The file also names the run, its configuration, and the programs that have trained it.
    """

    path: Path
    cell: Cell
    seed: int
    every: float
    """Seconds between two checkpoints."""
    stop: Stop
    programs: list[Program] = field(default_factory=list)
    """The programs that had trained the run when the file was read, each once."""
    _last: float = field(default_factory=time.monotonic)

    def read(self) -> dict[str, Any] | None:
        """Return the content written last, on the CPU; None if there is no checkpoint.

        Raises:
            CheckpointError: if it is damaged, or was written for another run or by another version.
            OSError: if it cannot be read.
        """
        try:
            written = self.path.read_bytes()
        except FileNotFoundError:
            return None
        digest, saved = written[:_DIGEST], written[_DIGEST:]
        if hashlib.sha256(saved).digest() != digest:
            raise self._refused("is damaged")
        with self.of_this_version():
            found = torch.load(io.BytesIO(saved), "cpu", weights_only=True)
            run, configuration = found["run"], found["configuration"]
            programs = msgspec.convert(found["programs"], list[Program])
            content: dict[str, Any] = found["content"]
        if (run, configuration) != (self._run, self.cell.configuration):
            raise self._refused(f"belongs to the run {run!r}, not to {self._run}")
        self.programs = programs
        return content

    @property
    def _run(self) -> str:
        return self.cell.run_id(self.seed)

    def _refused(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {why}: remove it to start the run from the beginning")

    @contextmanager
    def of_this_version(self) -> Iterator[None]:
        """Inside, an error from missing or unexpected content means that another version wrote it.

        Raises:
            CheckpointError: in place of that error.
        """
        try:
            yield
        except (EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise self._refused(
                f"was not written by this version of the program ({error!r})"
            ) from error

    def after_step(self, content: Callable[[], dict[str, Any]]) -> None:
        """Write ``content`` if it is time to, or if asked to stop.

        Raises:
            Stopped: if asked to stop, after ``content`` is written.
            OSError: if it cannot be written. The previous checkpoint is then still there.
        """
        asked = self.stop.asked
        if not asked and time.monotonic() - self._last < self.every:
            return
        buffer = io.BytesIO()
        others = [each for each in self.programs if each != PROGRAM]
        whose = {
            "run": self._run,
            "configuration": self.cell.configuration,
            "programs": msgspec.to_builtins([*others, PROGRAM]),
        }
        torch.save({**whose, "content": content()}, buffer)
        saved = buffer.getvalue()
        # torch.load does not notice a flipped bit in a tensor.
        write(self.path, hashlib.sha256(saved).digest(), saved)
        self._last = time.monotonic()
        if asked:
            assert self.stop.code is not None
            raise Stopped(self.stop.code)
