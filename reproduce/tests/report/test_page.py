"""The page of a ledger, the committed one first of all; and the commands around it."""

import re
from pathlib import Path

import pytest

from reproduce.report.page import NAME, make_pages, read_contents
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.tests.invented import failed_row_of, row_of, rows_of, write_rows

RESULTS = Path(__file__).parents[2] / "results"
DIGITS = STUDIES["digits"].chosen()
MP = DIGITS.chosen(strategies=["mp"]).cells[0]
CANARY = STUDIES["paper"].cells[0]


def test_committed_page_is_current() -> None:
    said: list[str] = []
    page = make_pages(RESULTS, read_contents(RESULTS, said.append))[NAME]
    assert (RESULTS / NAME).read_text(encoding="utf-8") == page, (
        "run python -m reproduce figures --ledger reproduce/results"
    )
    assert said == []


def test_committed_page_has_its_pictures() -> None:
    linked = set(
        re.findall(r"\(([\w.-]+\.(?:png|svg))\)", (RESULTS / NAME).read_text(encoding="utf-8"))
    )
    assert len(linked) >= 10
    assert linked <= {path.name for path in RESULTS.iterdir()}


def test_page_and_its_pictures_are_made_from_the_ledger(tmp_path: Path, command: Command) -> None:
    ledger, out = tmp_path / "ledger", tmp_path / "out"
    write_rows(ledger / "digits.jsonl", rows_of(DIGITS.cells, [0.9, 0.8]))
    write_rows(ledger / "paper.jsonl", [row_of(CANARY, accuracy=0.87), row_of(MP)])
    (ledger / "digits.md").write_text("What one seed cannot say.\n", encoding="utf-8")
    (ledger / "paper.md").write_text("Where ours differ.\n", encoding="utf-8")
    code, output, errors = command("figures", "--ledger", ledger, "--out", out)
    assert code == 0
    assert "line 2 does not count" in errors
    assert sorted(path.name for path in ledger.iterdir()) == [
        *("digits.jsonl", "digits.md", "paper.jsonl", "paper.md")
    ]
    page = (out / NAME).read_text(encoding="utf-8")
    pictures = set(re.findall(r"\(([\w.-]+\.(?:png|svg))\)", page))
    assert {str(out / name) for name in [*pictures, NAME]} == set(output.splitlines())
    assert {path.name for path in out.iterdir()} == {*pictures, NAME, "locks"}
    assert "1 of 174 cells measured" in page
    assert "| rp_1e-3 | 88.51 | 1 | 87.00 | - | 88.00 | -0.51 |" in page
    paper, smaller = page.split("## Smaller studies")
    assert "digits" not in paper.partition("## The paper")[2]
    assert paper.index("Where ours differ.") < paper.index("| rp_1e-3 | 88.51 | 1 |")
    assert smaller.index("What one seed cannot say.") < smaller.index("| mp | 2 | 85.0 |")
    assert "digits-convmixer-d2-w32.png" in smaller


def test_study_without_a_result_has_a_table_and_no_picture(tmp_path: Path) -> None:
    write_rows(tmp_path / "digits.jsonl", [failed_row_of(MP)])
    page = make_pages(tmp_path, read_contents(tmp_path, print))[NAME]
    assert "| mp | 0/1 | failed |" in page
    assert "digits-convmixer" not in page


def test_table_and_figures_show_what_was_run(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an option: the folder of run, and of it what has rows."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "runs" / "digits.jsonl", rows_of(DIGITS.cells[:2], [0.9]))
    code, output, errors = command("table")
    assert (code, errors) == (0, "")
    assert re.findall("A small .* on 8x8 digits", output) == ["A small ConvMixer on 8x8 digits"]
    assert "Cells of the paper" not in output
    code, output, errors = command("figures")
    assert (code, errors) == (0, "drawing the figures of digits\n")
    names = ["digits-convmixer-d2-w32.png", "digits-convmixer-d2-w32.svg", NAME]
    assert output.split() == [f"runs/{name}" for name in names]
    assert "The paper" not in (tmp_path / "runs" / NAME).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["table", "figures"])
def test_folder_without_rows_is_one_line_that_says_what_there_is(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, errors = command(name)
    assert (code, output, errors.count("\n")) == (0, "", 1)
    assert "no rows to show in runs: run adds them, except with --epochs" in errors
    assert "those of cifar10-small and digits and " in errors
    assert f" ship with the project, and --ledger {RESULTS}" in errors
    assert [*tmp_path.iterdir()] == []


def test_table_of_what_has_no_rows_is_not_silent(tmp_path: Path, command: Command) -> None:
    write_rows(tmp_path / "digits.jsonl", rows_of(DIGITS.cells, [0.9]))
    code, output, errors = command("table", "--model", "vit", "--ledger", tmp_path)
    assert (code, output) == (0, "")
    assert "no rows to show" in errors
    code, output, errors = command("table", "--model", "vitt", "--ledger", tmp_path)
    assert (code, output) == (2, "")
    assert "did you mean vit?" in errors


def test_page_of_somebody_else_is_not_replaced(tmp_path: Path, command: Command) -> None:
    write_rows(tmp_path / "digits.jsonl", rows_of(DIGITS.cells[:1], [0.9]))
    (tmp_path / NAME).write_text("# My project\n", encoding="utf-8")
    code, output, errors = command("figures", "--ledger", tmp_path)
    assert (code, output) == (2, "")
    assert f"{tmp_path / NAME} is not a page that figures has made" in errors
    assert errors.count("\n") == 1
    assert (tmp_path / NAME).read_text(encoding="utf-8") == "# My project\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "digits.jsonl"]


def test_table_shows_all_of_the_paper_or_what_is_asked_for(
    tmp_path: Path, command: Command
) -> None:
    write_rows(tmp_path / "paper.jsonl", [row_of(CANARY, accuracy=0.87)])
    code, output, errors = command("table", "--ledger", tmp_path)
    assert (code, errors) == (0, "")
    assert output.count("Cells of the paper: ") == 1  # what has rows
    code, output, errors = command("table", "--all", "--ledger", tmp_path)
    assert (code, errors) == (0, "")
    assert output.count("Cells of the paper: ") == len(STUDIES["paper"].groups())
    assert "on tiny-imagenet" in output
    code, output, _ = command("table", "--ledger", tmp_path, "--only", CANARY.id)
    assert output.count("Cells of the paper: ") == 1
    (line,) = (line for line in output.splitlines() if line.startswith(" rp_1e-3"))
    assert line.split()[:6] == ["rp_1e-3", "88.51", "1", "87.00", "-", "88.00"]
    code, output, _ = command("table", "--ledger", tmp_path, "--study", "digits")
    assert "paper's" not in output.partition("last:")[0]
    assert output.count("on 8x8 digits") == 3


@pytest.mark.parametrize("name", ["table", "figures"])
@pytest.mark.parametrize("ledger", ["nope", "a file"])
def test_a_ledger_that_is_no_folder_is_not_an_empty_one(
    tmp_path: Path, command: Command, name: str, ledger: str
) -> None:
    (tmp_path / "a file").write_text("", encoding="utf-8")
    code, output, errors = command(name, "--ledger", tmp_path / ledger)
    assert (code, output) == (2, "")
    why = f"no folder {tmp_path / ledger}: name one with rows"
    assert errors == f"error: Invalid value for --ledger: {why}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_run_prints_the_table_of_the_command(tmp_path: Path, command: Command) -> None:
    write_rows(tmp_path / "digits.jsonl", rows_of(DIGITS.cells, [0.9]))
    code, table, _ = command("table", "--study", "digits", "--only", MP.id, "--ledger", tmp_path)
    assert code == 0
    code, output, _ = command(
        "run", "--only", MP.run_id(0), "--seeds", "1", "--device", "cpu", "--out", tmp_path
    )
    assert code == 0
    assert "0 of 1 runs to train" in output
    assert table in output


def test_merge_says_by_its_exit_code_whether_all_was_taken(
    tmp_path: Path, command: Command
) -> None:
    write_rows(tmp_path / "other" / "digits.jsonl", [row_of(MP)])
    arguments = ("ledger", "merge", tmp_path / "other", "--ledger", tmp_path / "ledger")
    code, output, errors = command(*arguments)
    assert (code, errors) == (0, "")
    assert "rows added: 1" in output
    write_rows(tmp_path / "other" / "digits.jsonl", [row_of(MP, accuracy=0.9)])
    code, output, _ = command(*arguments)
    assert code == 3
    assert "is kept" in output
    code, _, errors = command("ledger", "merge", tmp_path / "nowhere", "--ledger", tmp_path)
    assert code == 2
    assert errors.count("\n") == 1
