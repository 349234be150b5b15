"""The folder of a study's runs: what is done, what is being trained, and by which process.

OUT/STUDY.jsonl            rows; they are in the folder of the ledger, if there is one
OUT/files/RUN.safetensors  networks
OUT/checkpoints/RUN.pt     from where a run without a row is resumed
OUT/locks/RUN.lock         held while a process trains the run; released if it dies
OUT/locks/driver-*.lock    held while a process has tasks on a cluster
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

    Paths are built from the run ids of a study, never from what a row says.

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
        self._lock = lock(self.path)  # beside the rows: other folders may share the ledger

    def rows(self) -> dict[str, Row]:
        """The rows by run. A complaint about a line is printed only once.

        Raises:
            OSError: as ``read_rows``.
        """
        with self._lock:  # so that no line is taken for torn while another process writes it
            return {row.run: row for row in read_rows(self.path, self._say_once)}

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._say(message)

    def finish(self, row: Row) -> None:
        """Keep the row, unless another folder of the ledger has one; delete the checkpoint.

        Raises:
            ValueError, OSError: as ``append_row`` and ``read_rows``.
        """
        with self._lock:
            # Reading first moves a torn last line away, which would spoil a line added to it.
            if row.run not in self.rows():
                append_row(self.path, row)
        self.drop(row.run)

    def drop(self, run: str) -> None:
        """Delete the checkpoint of a run that has a row; a killed process may have left it."""
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
        """Remove what killed processes left: half-written files of the run, and marks."""
        sweep(self._checkpoint(run))
        sweep(self.file(run))
        for mark in (self.out / "locks").glob("driver-*.lock"):
            with suppress(Timeout), FileLock(mark, timeout=0):
                mark.unlink()

    @contextmanager
    def mark(self) -> Iterator[Path]:
        """A file, there while this process lives: a machine that sees it sees the folder."""
        path = self.out / "locks" / f"driver-{secrets.token_hex(4)}.lock"
        with FileLock(path):
            try:
                yield path
            finally:
                path.unlink()

    def checkpoint(self, cell: Cell, seed: int, every: float, stop: Stop) -> Checkpoint:
        """The checkpoint of a run; claim the run before training from it."""
        return Checkpoint(self._checkpoint(cell.run_id(seed)), cell, seed, every, stop)

    def started(self, run: str) -> bool:
        """Whether the run has a checkpoint."""
        return self._checkpoint(run).exists()

    def file(self, run: str) -> Path:
        """The path of a run's network."""
        return run_file(self.out, run)

    def _checkpoint(self, run: str) -> Path:
        return self.out / "checkpoints" / f"{run}.pt"
