"""The folder of a study's runs: what is done, what is under way, and by which process.

OUT/STUDY.jsonl            rows, or in the folder of a ledger
OUT/files/RUN.safetensors  networks
OUT/checkpoints/RUN.pt     where a run goes on that has no row yet
OUT/locks/RUN.lock         held while a process trains the run, and no longer than it lives
OUT/locks/driver-*.lock    held while a process has tasks of a cluster
locks/STUDY.lock           beside the rows, held while they are read or written
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from reproduce.rows.row import Row, append_row, read_rows
from reproduce.rows.shared import lock, sweep
from reproduce.study.cells import Cell
from reproduce.training.checkpoint import Checkpoint, Stop
from reproduce.training.files import run_file


class RunStore:
    """Rows, files, checkpoints and locks. Any number of processes may use one folder.

    Paths are made of the ids of runs that a study names, never of what a row says.

    Raises:
        OSError: if the folder cannot be written.
    """

    def __init__(
        self, out: Path, study: str, say: Callable[[str], None], ledger: Path | None = None
    ) -> None:
        self.out, self._say = out, say
        self._said: set[str] = set()
        self.path = (ledger or out) / f"{study}.jsonl"
        for folder in (self.path.parent, out / "locks", out / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.path)  # beside the rows: another folder may share their ledger

    def rows(self) -> dict[str, Row]:
        """The rows by run. What is said of a line is said once.

        Raises:
            OSError: as ``read_rows``.
        """
        with self._lock:  # a line that another process writes at the moment is not torn
            return {row.run: row for row in read_rows(self.path, self._say_once)}

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._say(message)

    def finish(self, row: Row) -> None:
        """Keep the row, unless one came from another folder of the ledger; drop the checkpoint.

        Raises:
            ValueError, OSError: as ``append_row`` and ``read_rows``.
        """
        with self._lock:
            # First, since a line that is added to a torn one is torn with it.
            if row.run not in self.rows():
                append_row(self.path, row)
        self.drop(row.run)

    def drop(self, run: str) -> None:
        """The checkpoint of a run that has a row: who wrote it was perhaps killed before that."""
        self._checkpoint(run).unlink(missing_ok=True)

    @contextmanager
    def claim(self, run: str) -> Iterator[bool]:
        """Whether the run is ours to train: it has no row and no other process trains it."""
        try:
            with FileLock(self.out / "locks" / f"{run}.lock", timeout=0):
                self._sweep(run)
                yield run not in self.rows()
                self._sweep(run)
        except Timeout:
            yield False

    def _sweep(self, run: str) -> None:
        """Remove what processes left that were killed: half files of the run, and marks."""
        sweep(self._checkpoint(run))
        sweep(self.file(run))
        for mark in (self.out / "locks").glob("driver-*.lock"):
            with suppress(Timeout), FileLock(mark, timeout=0):
                mark.unlink()

    @contextmanager
    def mark(self) -> Iterator[Path]:
        """A file by which others see whether they see the folder, while this process lives."""
        path = self.out / "locks" / f"driver-{secrets.token_hex(4)}.lock"
        with FileLock(path):
            try:
                yield path
            finally:
                path.unlink()

    def checkpoint(self, cell: Cell, seed: int, every: float, stop: Stop) -> Checkpoint:
        """For a run that is claimed."""
        return Checkpoint(self._checkpoint(cell.run_id(seed)), cell, seed, every, stop)

    def started(self, run: str) -> bool:
        """Whether there is a checkpoint."""
        return self._checkpoint(run).exists()

    def file(self, run: str) -> Path:
        """Where the network of a run lies."""
        return run_file(self.out, run)

    def _checkpoint(self, run: str) -> Path:
        return self.out / "checkpoints" / f"{run}.pt"
