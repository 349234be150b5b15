"""Names and reasons that others wrote are text wherever they are shown."""

import json
from pathlib import Path

import pytest
from msgspec import structs

from reproduce.report.console import in_markdown
from reproduce.rows.row import Hardware, line_of
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.tests.invented import failed_row_of, row_of, write_rows

ONE, TWO = STUDIES["digits"].chosen().cells[:2]
MARKUP = "<script>x</script> [a](javascript:1) ![b](c) https://d www.e.f *g* `h` | i & $j$"
STEERS = "\u202eright \u2028left"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of a machine and of a failure that are named like this."""
    hardware = Hardware(f"{MARKUP} {STEERS}", threads=1)
    failed = structs.replace(failed_row_of(TWO), failed=f"{MARKUP} {STEERS}")
    write_rows(tmp_path / "digits.jsonl", [row_of(ONE, hardware=hardware), failed])
    return tmp_path


def test_pages_and_pictures_have_no_markup_of_a_row(folder: Path, command: Command) -> None:
    assert command("figures", "--ledger", folder)[0] == 0
    page = (folder / "README.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if "javascript" in line]
    assert len(lines) == 2
    for line in lines:
        for sign in "<>[]*`|&$":
            assert line.count(sign) == line.count(f"\\{sign}") == MARKUP.count(sign)
        assert "https\\://d www\\.e.f" in line
        assert "\\\\u202eright \\\\u2028left" in line
    for picture in folder.glob("*.svg"):
        assert "script" not in picture.read_text(encoding="utf-8")


def test_names_as_they_are_stay_as_they_are_in_a_page() -> None:
    for name in ("on Intel(R) Xeon(R) Processor, threads: 1, torch 2.14.1+cu130", "0.9 to 1.7 %"):
        assert in_markdown(name) == name


def test_terminal_is_not_steered_by_a_row(folder: Path, command: Command) -> None:
    code, output, errors = command("table", "--study", "digits", "--ledger", folder)
    assert (code, errors) == (0, "")
    assert "\\u202eright" in output
    assert output.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["run", "plan", "table", "merge"])
def test_terminal_is_not_steered_by_what_is_no_row(
    name: str, folder: Path, command: Command
) -> None:
    row = {**json.loads(line_of(row_of(ONE))), "\x1b[2J\x9b31m": 1}
    (folder / "digits.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    other = folder / "\x1b[2J.jsonl"
    other.write_text("{}", encoding="utf-8")
    one = ("--study", "digits", "--only", ONE.id)
    commands = {
        "run": ("run", *one, "--seeds", "1", "--epochs", "1", "--device", "cpu", "--out", folder),
        "plan": ("plan", *one, "--seeds", "1", "--device", "cpu", "--out", folder),
        "table": ("table", *one, "--ledger", folder),
        "merge": ("ledger", "merge", folder, "--ledger", folder / "ledger"),
    }
    _, output, errors = command(*commands[name])
    assert "\\x1b[2J\\x9b31m" in output + errors
    assert (output + errors).replace("\n", "").isprintable()
