"""Measured rows: what one says, and how it lies on disk, as one JSON object a line.

msgspec reads them: it checks types, ranges and patterns as they are annotated here and names the
field that is wrong, which pydantic does with four times the code and dataclasses do not do. It
writes no JSON here: Python's ``json`` spaces lines and spells numbers as in the files that exist.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from reproduce.study.cells import Cell

_LARGEST = 2**63 - 1
Seed = Annotated[int, Meta(ge=0, le=_LARGEST)]
Count = Annotated[int, Meta(ge=1, le=_LARGEST)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Saved = Annotated[float, Meta(ge=-1, le=1)]
"""A fraction; below 0 where more is stored than of a dense network."""
Positive = Annotated[float, Meta(ge=0)]
Text = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]+\Z")]
"""One line, without the codes that steer a terminal."""
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
CellId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{12}\Z")]
RunId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{12}-(0|[1-9][0-9]*)\Z")]


class Epoch(Struct, frozen=True, forbid_unknown_fields=True):
    """What one epoch gave: mean training loss, accuracy on the held-out images (a fraction).

    ``seconds`` are those of training, the writing of checkpoints among them, evaluation aside.
    """

    loss: Positive
    accuracy: Fraction
    seconds: Positive


class Storage(Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of a network: the fields of ``pemn_ref.Storage``, in bits and fractions saved."""

    weights: Count
    unique: Count
    paper: Saved
    whole: Saved
    bits: Count
    dense_bits: Count


class Hardware(Struct, frozen=True, forbid_unknown_fields=True):
    """What a run was trained on."""

    name: Text
    threads: Count


class Versions(Struct, frozen=True, forbid_unknown_fields=True):
    """Of what a run was trained with."""

    python: Text
    torch: Text
    torchvision: Text
    pemn_ref: Text


class Program(Struct, frozen=True, forbid_unknown_fields=True):
    """Code that trained a run."""

    commit: Text | None
    """None where it was installed."""
    versions: Versions


Programs = Annotated[list[Program], Meta(min_length=1)]


class _Begun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which run it is. What has no default is in every row; older rows lack what is ``UNSET``."""

    run: RunId
    cell: CellId
    seed: Seed
    configuration: dict[str, Any]
    """Of the cell, as its id is computed from it."""

    def __post_init__(self) -> None:
        """A row is what its configuration says: its ids are computed anew.

        Raises:
            ValueError: if they are others.
        """
        cell = Cell.configured(self.configuration)
        if self.cell != cell.id:
            raise ValueError(f"`cell` is {self.cell}, but the configuration is that of {cell.id}")
        if self.run != cell.run_id(self.seed):
            raise ValueError(f"`run` is {self.run}, but cell and seed {cell.run_id(self.seed)}")


class Measured(_Begun, frozen=True, kw_only=True):
    """A finished run. Accuracies are fractions of the held-out images.

    The fields are in the order in which they are written.
    """

    warning: Text | UnsetType = UNSET
    """Why to mistrust it."""
    accuracy_last: Fraction
    accuracy_best: Fraction
    held_out: Count
    """Images."""
    trained_on: Count | UnsetType = UNSET
    """Images."""
    data: Digest | UnsetType = UNSET
    """SHA-256 of both, pixels and labels."""
    history: Annotated[list[Epoch], Meta(min_length=1)]
    storage: Storage | UnsetType = UNSET
    """By the paper's accountings, which say nothing of the families of the byte frontier."""
    bytes: Count | UnsetType = UNSET
    """Of the network's file."""
    seconds: Positive
    """Of training, interruptions aside."""
    images_per_second: Positive
    device: Text | UnsetType = UNSET
    hardware: Hardware
    versions: Versions
    commit: Text | UnsetType | None = UNSET
    """None where the program was installed."""
    earlier: Programs | UnsetType = UNSET
    """Which others had trained it before it was resumed."""

    def __post_init__(self) -> None:
        """What is said twice is the same, and a size is there.

        Raises:
            ValueError: if it is not.
        """
        super().__post_init__()
        frontier = Cell.configured(self.configuration).family is not None
        if (self.storage is UNSET) != frontier or (frontier and self.bytes is UNSET):
            raise ValueError(
                "a row of the byte frontier has `bytes` and no `storage`; others have `storage`"
            )
        epochs = self.configuration["recipe"]["epochs"]
        accuracies = [epoch.accuracy for epoch in self.history]
        if len(accuracies) != epochs:
            raise ValueError(f"`history` has {len(accuracies)} epochs, the recipe {epochs}")
        if (self.accuracy_last, self.accuracy_best) != (accuracies[-1], max(accuracies)):
            raise ValueError(
                f"`accuracy_last` and `accuracy_best` are {self.accuracy_last} and"
                f" {self.accuracy_best}, but {accuracies[-1]} and {max(accuracies)} in `history`"
            )


class Failed(_Begun, frozen=True, kw_only=True):
    """A run without a result."""

    failed: Text
    """Why."""
    device: Text | UnsetType = UNSET
    hardware: Hardware
    versions: Versions
    commit: Text | UnsetType | None = UNSET
    earlier: Programs | UnsetType = UNSET


Row = Measured | Failed


class RowError(ValueError):
    """A line that is no row: one line that says why, with the field."""


class Line(NamedTuple):
    """One of a file of rows."""

    where: str
    """File and number."""
    row: Row | None
    problem: str
    """Why it has no row; "" where it has one."""


def line_of(row: Row) -> bytes:
    """The row as its line, the end of which is included."""
    return _line(msgspec.to_builtins(row))


def append_row(path: Path, row: Row) -> None:
    """Add one line and wait until it is on the disk.

    Raises:
        ValueError, OSError: as ``append_line``.
    """
    _append(path, line_of(row))


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add one JSON object as a line and wait until it is on the disk.

    Raises:
        ValueError: if it holds a number that JSON has no word for (NaN, infinity).
        OSError: if it cannot be written.
    """
    _append(path, _line(values))


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _line(values: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(values, allow_nan=False)}\n".encode()


def read_rows(path: Path, say: Callable[[str], None]) -> list[Row]:
    """All rows of the file, which is created where there is none.

    A line that is no row is said and left where it is; but a last one that a crash has torn is
    moved to a ``.damaged`` file beside it.

    Raises:
        OSError: if the file cannot be read or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        *lines, last = file.read().split(b"\n")
        if last and not _is_json(last):
            damaged = path.with_suffix(".damaged")
            with damaged.open("ab") as aside:
                aside.write(last + b"\n")
                os.fsync(aside.fileno())
            file.truncate(sum(len(line) + 1 for line in lines))
            say(f"the last line of {path} was torn: moved to {damaged}")
        elif last:
            file.write(b"\n")  # whole but for its end
    rows = []
    for where, row, problem in read_lines(path):
        if row is None:
            say(f"{where} does not count: {problem}")
        else:
            rows.append(row)
    return rows


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (RecursionError, ValueError):
        return False
    return True


def read_lines(path: Path) -> Iterator[Line]:
    """Every line of the file that is not blank; of two different rows of a run the first is one.

    Raises:
        OSError: if the file cannot be read.
    """
    first: dict[str, Row] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_row(line)
        except RowError as error:
            yield Line(where, None, f"{error}")
            continue
        if first.setdefault(row.run, row) == row:
            yield Line(where, row, "")
        else:
            yield Line(where, None, f"another row of {row.run} stands above it, and is kept")


def parse_row(line: bytes) -> Row:
    """The row of a line.

    Raises:
        RowError: if it is none.
    """
    try:
        values = msgspec.json.decode(line)
        if isinstance(values, dict) and "failed" in values:
            return msgspec.convert(values, Failed)
        return msgspec.convert(values, Measured)
    except (RecursionError, ValueError) as error:
        raise RowError(f"{error}") from error
