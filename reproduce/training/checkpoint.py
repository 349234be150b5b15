"""Training that stops at any moment and goes on from there: when to stop, and what is kept."""

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
"""Exit code after a time limit. (After a signal it is 128 and the number of the signal.)"""
_DIGEST = hashlib.sha256().digest_size


class CheckpointError(Exception):
    """A checkpoint that cannot be gone on from: one line that says what to do."""


class Stopped(Exception):  # noqa: N818  it is no error
    """Training was asked to stop, and its checkpoint is written. ``code`` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Stop:
    """Whether to stop: no sooner than the next step, so that nothing is half done."""

    deadline: float = float("inf")
    """By ``time.monotonic``."""
    code: int | None = None

    @property
    def asked(self) -> bool:
        """Whether there is a ``code``."""
        if self.code is None and time.monotonic() > self.deadline:
            self.code = OUT_OF_TIME
        return self.code is not None


@contextmanager
def stopping(minutes: float | None = None) -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop, and so does a time limit; a second signal does not ask."""
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
    """What one run needs in order to go on, in one file that is whole at every moment.

    The file says whose it is: which run, of which configuration, and what has trained it.
    """

    path: Path
    cell: Cell
    seed: int
    every: float
    """Seconds from one to the next."""
    stop: Stop
    programs: list[Program] = field(default_factory=list)
    """What had trained the run when it was read, each once."""
    _last: float = field(default_factory=time.monotonic)

    def read(self) -> dict[str, Any] | None:
        """What was written last, on the CPU; None where nothing was.

        Raises:
            CheckpointError: if it is damaged, of another run, or not of this version.
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
            raise self._refused(f"is of the run {run!r}, not of {self._run}")
        self.programs = programs
        return content

    @property
    def _run(self) -> str:
        return self.cell.run_id(self.seed)

    def _refused(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {why}: remove it, and the run starts anew")

    @contextmanager
    def of_this_version(self) -> Iterator[None]:
        """What is not found inside, or is not as it should be, another version has written.

        Raises:
            CheckpointError: instead.
        """
        try:
            yield
        except (EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise self._refused(f"is not of this version of the program ({error!r})") from error

    def after_step(self, content: Callable[[], dict[str, Any]]) -> None:
        """Write ``content`` where it is time.

        Raises:
            Stopped: if asked to stop; then ``content`` is written.
            OSError: if it cannot be written; then the one before is still there.
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
        # torch.load does not notice a bit of a tensor that has flipped.
        write(self.path, hashlib.sha256(saved).digest(), saved)
        self._last = time.monotonic()
        if asked:
            assert self.stop.code is not None
            raise Stopped(self.stop.code)
