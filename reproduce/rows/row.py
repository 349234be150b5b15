"""Measured rows on disk: one JSON object a line, whole or not there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

Row = dict[str, Any]


class DamagedRowsError(Exception):
    """A line other than the last is no row: not the trace of a crash, so nothing is moved."""


def lock(path: Path) -> FileLock:
    """To be held while a file of rows is read or written that other processes write to."""
    folder = path.parent / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{path.stem}.lock")


def append_row(path: Path, row: Row) -> None:
    """Add one line and wait until it is on the disk.

    Raises:
        ValueError: if the row holds a number that JSON has no word for (NaN, infinity).
        OSError: if it cannot be written.
    """
    line = json.dumps(row, allow_nan=False) + "\n"
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path, say: Callable[[str], None]) -> list[Row]:
    """All rows of the file, which is created where there is none.

    A last line that a crash has torn is moved to a ``.damaged`` file beside it, and said.

    Raises:
        DamagedRowsError: if another line is no row.
        OSError: if the file cannot be read or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        rows = [parse_row(line) for line in lines]
        if rows and rows[-1] is None:
            torn = lines.pop()
            rows.pop()
            damaged = path.with_suffix(".damaged")
            with damaged.open("ab") as aside:
                aside.write(torn.rstrip(b"\n") + b"\n")
                os.fsync(aside.fileno())
            file.truncate(sum(map(len, lines)))
            say(f"the last line of {path} was torn: moved to {damaged}")
        elif lines and not lines[-1].endswith(b"\n"):
            file.write(b"\n")  # whole but for its end
    whole = [row for row in rows if row is not None]
    if len(whole) < len(rows):
        raise DamagedRowsError(
            f"{path}, line {rows.index(None) + 1} is not a row: mend or remove that line"
        )
    return whole


def parse_row(line: bytes) -> Row | None:
    """The row, or None where the line is none."""
    try:
        row = json.loads(line, parse_constant=_refuse)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "run" in row else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON, though Python reads it")
