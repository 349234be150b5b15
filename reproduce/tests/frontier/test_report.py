"""What table and figure of the byte frontier say, on rows that never were."""

from io import StringIO
from pathlib import Path
from statistics import fmean

import pytest
from rich.console import Console

from reproduce.report.finished import show_finished
from reproduce.report.frontier import (
    PAGE,
    Place,
    against,
    chosen_rates,
    curves,
    draw,
    make_rates,
    make_table,
    pareto,
)
from reproduce.report.page import NAME, PageError, write_pages
from reproduce.rows.row import Row
from reproduce.study.cells import Study
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.tests.invented import failed_row_of, row_of, write_rows

FRONTIER, RATES = STUDIES["frontier"], STUDIES["frontier-rates"]
SIGNS = [Place(8, 1000, {0: 80.0, 1: 90.0}), Place(16, 4000, {0: 90.0, 1: 94.0})]


def rows_of_frontier(study: Study = FRONTIER) -> list[Row]:
    """Two seeds of every cell: the wider, the better and the larger."""
    return [
        row_of(cell, seed, 0.5 + cell.model.width / 500 + seed / 100, bytes=100 * cell.model.width)
        for cell in study.cells
        for seed in (0, 1)
    ]


def test_equal_bytes_are_read_off_the_logarithm_seed_by_seed() -> None:
    between = [Place(8, 2000, {0: 86.0, 1: 92.0})]
    assert against(between, SIGNS) == pytest.approx([1.0, 0.0])
    larger = [Place(8, 9000, {0: 86.0, 1: 92.0})]
    assert against(larger, SIGNS) == pytest.approx([-4.0, -2.0])
    assert against([Place(8, 999, {0: 99.0, 1: 99.0})], SIGNS) == []
    assert against([*between, *larger], SIGNS) == pytest.approx([-1.5, -1.0])
    assert against(SIGNS, SIGNS) == [0.0, 0.0]


def test_only_seeds_that_both_have_are_compared() -> None:
    assert against([Place(8, 1000, {1: 91.0, 7: 0.0})], SIGNS) == [1.0]


def test_pareto_line_holds_what_no_smaller_file_is_as_good_as() -> None:
    found = {
        "signs": SIGNS,
        "mp": [Place(8, 3000, {0: 80.0})],
        "mp by seed": [Place(8, 10, {0: 99.0})],  # not a file
        "int8": [Place(8, 5000, {0: 95.0})],
    }
    assert pareto(found) == [(1000, 85.0), (4000, 92.0), (5000, 95.0)]


def test_curves_hold_every_width_and_the_seed_of_mp() -> None:
    found = curves(FRONTIER.cells, rows_of_frontier())
    assert {*found} == {cell.name for cell in FRONTIER.cells} | {"mp by seed"}
    assert [place.width for place in found["signs"]] == [8, 16, 32, 64, 128]
    # the largest weight of width 8 has 8 * 25 values, of width 128 128 * 128
    assert found["mp"][0].bytes - found["mp by seed"][0].bytes == 4 * 200 - 8
    assert found["mp"][-1].bytes - found["mp by seed"][-1].bytes == 4 * 128**2 - 8
    assert fmean(found["mp"][0].accuracies.values()) == pytest.approx(52.1)


def test_a_family_has_a_line_with_its_difference_from_others() -> None:
    table = make_table(FRONTIER, rows_of_frontier())
    lines = {line[0]: line[1:] for line in table.lines}
    assert len(lines) == 26
    assert lines["learned signs"][0].startswith("52.1 ± 6.4, 0.80")
    assert lines["learned signs"][-2:] == ["+0.0 ± 0.0", "+0.0 ± 0.0"]
    assert any("an abacus" in note for note in table.notes)


def test_rate_of_the_best_mean_is_chosen_and_a_failed_trial_counts_as_zero() -> None:
    rows: list[Row] = []
    for cell in RATES.cells:
        rate = cell.recipe.learning_rate
        better = 0.9 if rate == 0.3 else 0.7
        rows.append(row_of(cell, 0, better if cell.name == "signs" else 0.5))
        other = row_of(cell, 1, 0.8 if cell.name == "signs" else 0.5)
        rows.append(failed_row_of(cell, 1) if (cell.name, rate) == ("mp", 0.01) else other)
    chosen = chosen_rates(RATES, rows)
    assert chosen["signs"] == 0.3
    assert chosen["mp"] == 0.03  # the lowest of those that are equal and did not fail


def test_rates_are_shown_of_the_families_that_are_asked_for_at_any_length() -> None:
    one = RATES.chosen(strategies=["signs"]).shortened(1)
    rows: list[Row] = [row_of(cell, 0, cell.recipe.learning_rate / 10) for cell in one.cells]
    table = make_rates(one, [*rows, row_of(RATES.cells[0])])
    assert [line[0] for line in table.lines] == ["signs"]
    assert table.columns[-1] == "chosen"
    assert table.lines[0][-1] == str(max(cell.recipe.learning_rate for cell in one.cells))


def test_a_line_that_does_not_count_is_said_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "frontier.jsonl", rows_of_frontier()[:1])
    with (tmp_path / "frontier.jsonl").open("a", encoding="utf-8") as file:
        file.write("no row\n")
    said: list[str] = []
    write_pages(tmp_path, tmp_path, said.append)
    assert sum("does not count" in line for line in said) == 1


def test_page_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    write_rows(tmp_path / "frontier.jsonl", rows_of_frontier()[:1])
    (tmp_path / PAGE).write_text("Mine.", encoding="utf-8")
    with pytest.raises(PageError, match=f"{PAGE} is not a page that figures has made"):
        write_pages(tmp_path, tmp_path, print)
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == "Mine."


def test_table_without_a_study_names_that_of_the_frontier(tmp_path: Path, command: Command) -> None:
    write_rows(tmp_path / "frontier.jsonl", rows_of_frontier()[:1])
    code, output, errors = command("table", "--ledger", tmp_path)
    assert (code, output) == (0, "")
    assert errors == "rows of the byte frontier have another table: --study frontier\n"
    code, output, errors = command("table", "--study", "frontier", "--ledger", tmp_path)
    assert (code, errors) == (0, "")
    assert "PEMN, mp" in output


@pytest.mark.parametrize("epochs", [None, 1])
def test_figure_of_a_narrower_run_shows_what_was_run_before(
    tmp_path: Path, epochs: int | None
) -> None:
    """That of a shortened one lies beside it."""
    whole = FRONTIER.shortened(epochs) if epochs else FRONTIER
    narrow = whole.chosen(strategies=["signs"], models=["convmixer-d2-w8"])
    rows = rows_of_frontier(whole)
    assert show_finished(Console(file=StringIO()), narrow, [0], rows, tmp_path)
    drawn = tmp_path / f"frontier{whole.suffix}.svg"
    assert {path.stem for path in tmp_path.glob("frontier*")} == {drawn.stem}
    narrow_picture = drawn.read_bytes()
    assert show_finished(Console(file=StringIO()), whole, [0, 1], rows, tmp_path)
    assert drawn.read_bytes() == narrow_picture


def test_page_and_figures_are_written(tmp_path: Path) -> None:
    assert write_pages(tmp_path, tmp_path / "out", print) == []
    write_rows(tmp_path / "frontier.jsonl", rows_of_frontier())
    (tmp_path / "frontier.md").write_text("What was found.\n", encoding="utf-8")
    (tmp_path / "out").mkdir()
    paths = write_pages(tmp_path, tmp_path / "out", print)
    assert [path.name for path in paths] == ["frontier.png", "frontier.svg", PAGE]
    assert not (tmp_path / "out" / NAME).exists()  # nothing else is measured
    page = paths[-1].read_text(encoding="utf-8")
    assert page.index("What was found.") < page.index("frontier.png") < page.index("| family |")


def test_figure_has_a_panel_for_each_kind_and_every_family() -> None:
    """And the lines that all are compared with."""
    figure = draw(FRONTIER, rows_of_frontier())
    figure.draw_without_rendering()
    assert len(figure.axes) == 4
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    assert {*labels} >= {"PEMN, mp", "learned signs", "int8", "Pareto line of all files"}
