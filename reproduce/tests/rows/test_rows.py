"""Rows are whole or not there, whatever happens to the process."""

import json
from pathlib import Path

import pytest

from reproduce.rows.row import DamagedRowsError, append_row, read_rows

ROWS = [{"run": f"cell-{seed}", "seed": seed} for seed in range(3)]
LINES = [json.dumps(row) + "\n" for row in ROWS]


def read(path: Path) -> tuple[list[dict[str, object]], list[str]]:
    """The rows and what was said about them."""
    said: list[str] = []
    return read_rows(path, said.append), said


def test_rows_come_back_in_order_from_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert read(path) == ([], [])
    for row in ROWS:
        append_row(path, row)
    assert read(path) == (ROWS, [])
    assert path.read_text(encoding="utf-8") == "".join(LINES)


@pytest.mark.parametrize("cut", range(1, len(LINES[2]) - 1))
def test_torn_last_line_is_moved_aside_wherever_it_is_torn(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(LINES[0] + LINES[1] + LINES[2][:cut], encoding="utf-8")
    rows, said = read(path)
    assert rows == ROWS[:2]
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


@pytest.mark.parametrize("damage", ["\n", "{\n", "[1]\n", "{}\n", "\xff\n"])
def test_damage_elsewhere_is_an_error_and_nothing_is_touched(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "rows.jsonl"
    content = (LINES[0] + damage + LINES[1]).encode("latin-1")
    path.write_bytes(content)
    with pytest.raises(DamagedRowsError, match="line 2 is not a row"):
        read(path)
    assert path.read_bytes() == content


def test_numbers_that_are_none_never_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        append_row(path, {"run": "x", "accuracy": float("nan")})
    assert not path.exists()
