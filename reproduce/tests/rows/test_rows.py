"""Rows are whole or not there, whatever happens to the process."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from reproduce import rows
from reproduce.rows.row import (
    Row,
    append_line,
    append_row,
    line_of,
    parse_row,
    read_rows,
)
from reproduce.study.studies import STUDIES
from reproduce.tests.invented import failed_row_of, row_of

ROWS = [row_of(STUDIES["digits"].shortened(1).cells[0], seed) for seed in range(3)]
LINES = [line_of(row).decode() for row in ROWS]
RESULTS = Path(rows.__file__).parents[1] / "results"


def read(path: Path) -> tuple[list[Row], list[str]]:
    """The rows and what was said about them."""
    said: list[str] = []
    return read_rows(path, said.append), said


def test_rows_come_back_in_order_from_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert read(path) == ([], [])
    for one in ROWS:
        append_row(path, one)
    assert read(path) == (ROWS, [])
    assert path.read_text(encoding="utf-8") == "".join(LINES)


@pytest.mark.parametrize("cut", [1, 2, *range(3, len(LINES[2]), 29), len(LINES[2]) - 2])
def test_torn_last_line_is_moved_aside_wherever_it_is_torn(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(LINES[0] + LINES[1] + LINES[2][:cut], encoding="utf-8")
    found, said = read(path)
    assert found == ROWS[:2]
    assert said == [f"the last line of {path} was torn: moved to {tmp_path / 'rows.damaged'}"]
    assert path.read_text(encoding="utf-8") == LINES[0] + LINES[1]
    assert (tmp_path / "rows.damaged").read_text(encoding="utf-8") == LINES[2][:cut] + "\n"
    append_row(path, ROWS[2])
    assert read(path) == (ROWS, [])


def test_second_torn_line_is_kept_beside_the_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for torn in ('{"a', '{"b'):
        path.write_text(LINES[0] + torn, encoding="utf-8")
        read(path)
    assert (tmp_path / "rows.damaged").read_text(encoding="utf-8") == '{"a\n{"b\n'


def test_whole_last_line_without_its_end_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(LINES[0] + LINES[1].rstrip("\n"), encoding="utf-8")
    assert read(path) == (ROWS[:2], [])
    append_row(path, ROWS[2])
    assert read(path) == (ROWS, [])


@pytest.mark.parametrize("damage", ["{\n", "[1]\n", "{}\n", "\xff\n", LINES[0].replace("0.5", "5")])
def test_damage_elsewhere_is_said_and_left_where_it_is(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "rows.jsonl"
    content = (LINES[0] + damage + LINES[1]).encode("latin-1")
    path.write_bytes(content)
    found, said = read(path)
    assert found == ROWS[:2]
    assert [line.startswith(f"{path}, line 2 does not count: ") for line in said] == [True]
    assert path.read_bytes() == content


def test_blank_lines_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{LINES[0]}\n{LINES[1]}\n\n", encoding="utf-8")
    assert read(path) == (ROWS[:2], [])


def test_of_two_different_rows_of_a_run_the_first_is_kept_and_the_other_said(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    other = structs.replace(ROWS[0], held_out=400)
    path.write_bytes(b"".join(map(line_of, [*ROWS, other])))
    said = f"{path}, line 4 does not count: another row of {other.run} stands above it, and is kept"
    assert read(path) == (ROWS, [said])


def test_numbers_that_are_none_never_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        append_line(path, {"ratio": float("nan")})
    assert not path.exists()


LEDGERS = [
    line
    for path in sorted(RESULTS.glob("*.jsonl"))
    for line in path.read_bytes().splitlines(keepends=True)
]
FULL = json.loads(LEDGERS[0])
OLDER = [
    {name: value for name, value in FULL.items() if name not in lacking}
    for lacking in (["bytes"], ["commit"], ["device"], ["bytes", "commit", "device"])
]
FAILED = json.loads(line_of(failed_row_of(STUDIES["digits"].cells[0])))


def test_every_line_of_the_ledgers_is_read_and_written_again_bit_for_bit() -> None:
    assert len(LEDGERS) >= 70
    assert [line_of(parse_row(line)) for line in LEDGERS] == LEDGERS


@pytest.mark.parametrize("values", [*OLDER, {**FULL, "commit": None}, FAILED])
def test_so_are_older_lines_and_failed_ones(values: dict[str, Any]) -> None:
    line = f"{json.dumps(values)}\n".encode()
    assert line_of(parse_row(line)) == line


def test_warning_stands_where_it_always_stood() -> None:
    keys = [*json.loads(line_of(structs.replace(ROWS[0], warning="mistrust it")))]
    assert keys[3:6] == ["configuration", "warning", "accuracy_last"]
