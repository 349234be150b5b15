"""What a ledger takes and what it refuses; nothing is lost either way."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from reproduce.rows import ledger
from reproduce.rows.ledger import merge, read
from reproduce.rows.row import Row, append_row, line_of, parse_row
from reproduce.rows.shared import lock
from reproduce.runs.store import RunStore
from reproduce.study.studies import STUDIES
from reproduce.tests.invented import failed_row_of, row_of, write_rows

DIGITS = STUDIES["digits"]
ONE, TWO, THREE = DIGITS.cells[:3]
ROWS: list[Row] = [row_of(ONE), row_of(ONE, seed=1), failed_row_of(TWO)]
OLD = replace(ONE, recipe=replace(ONE.recipe, version=0))


def lacking(row: Row, name: str) -> str:
    """Its line without a field."""
    values = json.loads(line_of(row))
    del values[name]
    return json.dumps(values)


def changed(row: Row, **fields: object) -> str:
    """Its line with other values."""
    return json.dumps({**json.loads(line_of(row)), **fields})


# What does not count, and a word of what is said about it.
REFUSED: list[tuple[Any, str]] = [
    ('{"run": "torn', "truncated"),
    ("[1]", "Expected `object`"),
    ('{"run": "x", "accuracy_last": NaN}', "invalid character"),
    (row_of(OLD), "stale"),
    (row_of(DIGITS.shortened(1).cells[0]), "of no cell of digits"),
    (row_of(STUDIES["cifar10-small"].cells[0]), "of no cell of digits"),
    (changed(row_of(THREE), run=THREE.run_id(7)), "`run` is "),
    (changed(row_of(THREE), configuration=ONE.configuration), "`cell` is "),
    (row_of(ONE, accuracy=0.75), f"another row of {ONE.run_id(0)}"),
    (lacking(row_of(THREE), "held_out"), "`held_out`"),
    (lacking(failed_row_of(THREE), "versions"), "`versions`"),
]


class Merge:
    """Merges one folder into another, both of the test, and keeps what is said."""

    def __init__(self, folder: Path) -> None:
        self.source, self.ledger = folder / "source", folder / "ledger"
        self.said: list[str] = []

    def __call__(self, source: Path | None = None) -> bool:
        self.said.clear()
        return merge(source or self.source, self.ledger, self.said.append)

    @property
    def rows(self) -> list[Row]:
        """Of the ledger, as they stand there."""
        lines = (self.ledger / "digits.jsonl").read_bytes().splitlines()
        return [*map(parse_row, lines)]


@pytest.fixture
def merging(tmp_path: Path) -> Merge:
    return Merge(tmp_path)


def test_rows_are_taken_failed_ones_too_and_the_source_is_as_it_was(merging: Merge) -> None:
    write_rows(merging.source / "digits.jsonl", ROWS)
    before = (merging.source / "digits.jsonl").read_bytes()
    assert merging()
    assert merging.rows == ROWS
    assert (merging.source / "digits.jsonl").read_bytes() == before
    assert [path.name for path in merging.source.iterdir()] == ["digits.jsonl"]
    assert merging.said[-1].endswith("rows added: 3, there already: 0, not added: 0")


def test_merging_again_adds_only_what_is_new(merging: Merge) -> None:
    write_rows(merging.source / "digits.jsonl", ROWS[:2])
    merging()
    write_rows(merging.source / "digits.jsonl", [*ROWS, ROWS[2]])
    assert merging()
    assert merging.rows == ROWS
    assert merging.said == [
        f"{merging.source / 'digits.jsonl'}: rows added: 1, there already: 3, not added: 0"
    ]


def test_every_study_of_a_folder_is_taken_or_one_file(merging: Merge) -> None:
    small = row_of(STUDIES["cifar10-small"].cells[0])
    write_rows(merging.source / "digits.jsonl", ROWS)
    write_rows(merging.source / "cifar10-small.jsonl", [small])
    assert merging(merging.source / "digits.jsonl")
    assert not (merging.ledger / "cifar10-small.jsonl").exists()
    assert merging()
    assert read(merging.ledger, "cifar10-small", merging.said.append) == [small]
    assert merging.rows == ROWS


@pytest.mark.parametrize("where", ["ledger", "source"])
def test_of_two_rows_of_a_run_the_first_is_kept_and_the_other_named(
    merging: Merge, where: str
) -> None:
    other = row_of(ONE, accuracy=0.75)
    write_rows(merging.ledger / "digits.jsonl", ROWS[:1] if where == "ledger" else [])
    write_rows(merging.source / "digits.jsonl", [ROWS[0], other] if where == "source" else [other])
    assert not merging()
    assert merging.rows == ROWS[:1]
    line = 2 if where == "source" else 1
    assert f"digits.jsonl, line {line} is not added" in merging.said[0]
    assert f"another row of {ONE.run_id(0)}" in merging.said[0]


@pytest.mark.parametrize(("refused", "word"), REFUSED)
def test_what_does_not_count_is_named_and_all_else_taken(
    merging: Merge, refused: Row | str, word: str
) -> None:
    line = refused if isinstance(refused, str) else line_of(refused).decode().rstrip()
    path = merging.source / "digits.jsonl"
    write_rows(path, ROWS[:1])
    path.write_text(
        f"{path.read_text(encoding='utf-8')}{line}\n{line_of(ROWS[1]).decode()}", encoding="utf-8"
    )
    before = path.read_bytes()
    assert not merging()
    assert merging.rows == ROWS[:2]
    assert path.read_bytes() == before
    assert merging.said[0].startswith(f"{path}, line 2 is not added: ")
    assert word in merging.said[0]
    assert merging.said[1] == f"{path}: rows added: 2, there already: 0, not added: 1"


def test_file_of_no_study_is_named(merging: Merge) -> None:
    write_rows(merging.source / "mnist.jsonl", ROWS)
    assert not merging()
    assert "its name must be that of a study, digits, cifar10-small, paper" in merging.said[0]
    assert not merging.ledger.exists()


def test_source_that_is_not_there_is_an_error(merging: Merge) -> None:
    with pytest.raises(FileNotFoundError, match="source"):
        merging()


def test_damaged_line_of_the_ledger_is_said_and_stays_where_it_is(merging: Merge) -> None:
    write_rows(merging.source / "digits.jsonl", ROWS)
    path = merging.ledger / "digits.jsonl"
    write_rows(path, ROWS[:1])
    before = b"no row\n" + path.read_bytes()
    path.write_bytes(before)
    assert merging()
    assert merging.said[0].startswith(f"{path}, line 1 does not count: ")
    assert path.read_bytes() == before + b"".join(map(line_of, ROWS[1:]))


def test_merge_that_was_killed_is_repeated(merging: Merge, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(merging.source / "digits.jsonl", ROWS)

    def killed(path: Path, row: Row) -> None:
        append_row(path, row)
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "append_row", killed)
    with pytest.raises(KeyboardInterrupt):
        merging()
    monkeypatch.undo()
    path = merging.ledger / "digits.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # and the row torn
    assert merging()
    assert merging.rows == ROWS


def test_runs_of_two_folders_take_turns_at_the_ledger_that_they_share(tmp_path: Path) -> None:
    one, two = (RunStore(tmp_path / name, "digits", print, tmp_path) for name in ("one", "two"))
    with one._lock, pytest.raises(Timeout):
        two._lock.acquire(timeout=0)
    with one._lock, pytest.raises(Timeout):  # and so does a merge
        lock(tmp_path / "digits.jsonl").acquire(timeout=0)


@pytest.mark.parametrize(("refused", "word"), REFUSED)
def test_reader_names_what_does_not_count_and_writes_nothing(
    tmp_path: Path, refused: Row | str, word: str
) -> None:
    line = refused if isinstance(refused, str) else line_of(refused).decode().rstrip()
    path = tmp_path / "digits.jsonl"
    write_rows(path, ROWS[:1])
    path.write_text(
        f"{path.read_text(encoding='utf-8')}{line}\n{line_of(ROWS[0]).decode()}{line_of(ROWS[1]).decode().rstrip()}",
        encoding="utf-8",
    )
    before = path.read_bytes()
    said: list[str] = []
    assert read(tmp_path, "digits", said.append) == ROWS[:2]
    (said_of_it,) = said
    assert f"{path}, line 2 does not count" in said_of_it
    assert word in said_of_it
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "digits", print) == []
    assert [*tmp_path.iterdir()] == []
