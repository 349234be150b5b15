"""Tables say what the rows say, and where they say nothing."""

import random
import re
from io import StringIO
from pathlib import Path
from statistics import fmean

import pytest
from msgspec import UNSET, structs
from rich.console import Console

from reproduce.report import tables
from reproduce.report.tables import make_table, markdown, show
from reproduce.rows.ledger import read
from reproduce.rows.row import Measured, Row, Storage
from reproduce.rows.summary import interval, summarise
from reproduce.study.cells import Cell, Group, Study
from reproduce.study.studies import REPORTED, STUDIES
from reproduce.tests.invented import STORAGE, failed_row_of, row_of, rows_of
from reproduce.training.files import size_of

DIGITS = STUDIES["digits"].chosen()
PAPER = STUDIES["paper"]
RESNET = PAPER.chosen(models=["resnet32"], datasets=["cifar10"])
(ON_DIGITS,), (ON_CIFAR,) = DIGITS.groups(), RESNET.groups()


def line_of(group: Group, rows: list[Row], name: str) -> dict[str, str]:
    """Column -> text, of one strategy."""
    table = make_table(group, rows)
    (line,) = (line for line in table.lines if line[0] == name)
    heads = [column.replace("\n", " ") for column in table.columns]
    return dict(zip(heads, line, strict=True))


def shown(groups: list[Group], rows: list[Row], width: int = 80) -> str:
    """What is printed to a console that wide."""
    text = StringIO()
    show(Console(file=text, width=width, soft_wrap=True), groups, rows)
    return text.getvalue()


@pytest.mark.parametrize(
    ("values", "half"),
    [  # by hand, from a printed table of Student's t: 12.706, 4.303, 2.776
        ([90.0, 92.0], 12.706 * 2**0.5 / 2**0.5),
        ([90.0, 92.0, 97.0], 4.303 * 13**0.5 / 3**0.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.776 * 2.5**0.5 / 5**0.5),
        ([7.0, 7.0], 0.0),
    ],
)
def test_interval_is_that_of_a_printed_table(values: list[float], half: float) -> None:
    assert interval(values) == pytest.approx(half, rel=2e-4)


def test_interval_holds_the_mean_in_19_of_20_cases() -> None:
    draw = random.Random(0).gauss
    cases = [[draw(5, 2) for _ in range(3)] for _ in range(4000)]
    held = sum(abs(fmean(case) - 5) <= (interval(case) or 0) for case in cases)
    assert held / len(cases) == pytest.approx(0.95, abs=0.012)  # with a normal one it is 0.81


@pytest.mark.parametrize("values", [[], [90.0]])
def test_fewer_than_two_seeds_have_no_interval(values: list[float]) -> None:
    assert interval(values) is None


def test_summary_counts_rows_of_its_cells_only_and_failures_apart() -> None:
    mp, rp = DIGITS.chosen(strategies=["mp", "rp_1e-1"]).cells
    rows = rows_of(DIGITS.cells, [0.9]) + rows_of(DIGITS.shortened(1).cells, [0.1])
    summaries = summarise([mp, rp], [*rows, failed_row_of(mp, seed=1)])
    assert [(s.cell, s.last, s.failed) for s in summaries] == [(mp, [90], 1), (rp, [90], 0)]


def test_line_of_a_reduced_study_has_no_paper_in_it() -> None:
    line = line_of(ON_DIGITS, rows_of(DIGITS.cells, [0.9, 0.92, 0.97]), "one_layer")
    assert line == {
        "strategy": "one_layer",
        "n": "3",
        "last %": "93.0",
        "95 % ±": "9.0",
        "best %": "94.0",
        "unique values": "4",
        "saved paper": "25.00",
        "saved whole": "12.50",
        "bytes on disk": "90",
    }


def test_line_of_the_paper_compares_its_value_with_our_best_epochs() -> None:
    line = line_of(ON_CIFAR, rows_of(RESNET.cells, [0.85, 0.86]), "mp")
    assert line["paper's best %"] == "86.29"
    assert (line["last %"], line["best %"]) == ("85.50", "86.50")
    assert line["best - paper's"] == "+0.21"
    assert (line["saved plot"], line["saved paper"]) == ("89.00", "25.00")


def test_of_what_is_not_measured_only_the_accuracy_is_empty() -> None:
    rows = rows_of(RESNET.chosen(strategies=["mp"]).cells, [0.85])
    line = line_of(ON_CIFAR, rows, "rp_1e-1")
    assert line.pop("strategy") == "rp_1e-1"
    assert line.pop("paper's best %") == "86.65"
    assert line.pop("n") == "0"
    assert [line.pop(name) for name in ("unique values", "saved plot")] == ["3,687", "96.10"]
    assert line.pop("saved paper") == "96.08"  # 1 - (461,872 + 32 x 3,687) / (32 x 461,872)
    assert float(line.pop("saved whole")) < 96.08
    assert int(line.pop("bytes on disk").replace(",", "")) > (461_872 + 32 * 3_687) / 8
    assert set(line.values()) == {""}


@pytest.mark.parametrize("study", ["digits", "cifar10-small"])
def test_what_is_counted_is_what_was_measured(study: str) -> None:
    """Every committed row has the sizes and the bytes that are counted of its cell."""
    rows = read(Path(tables.__file__).parents[1] / "results", study, print)
    assert len(rows) > 10
    for row in rows:
        assert isinstance(row, Measured)
        storage, size = size_of(Cell.configured(row.configuration))
        assert isinstance(row.storage, Storage)
        assert structs.asdict(row.storage) == storage._asdict()
        assert row.bytes == size


@pytest.mark.parametrize("group", PAPER.groups(), ids=lambda group: group.stem)
def test_every_table_of_the_paper_says_what_each_cell_costs(group: Group) -> None:
    for cell in group.cells:
        line = line_of(group, [], cell.name)
        unique = int(line["unique values"].replace(",", ""))
        weights = int(line_of(group, [], "dense")["unique values"].replace(",", ""))
        saved = (
            0.0 if cell.name == "dense" else 100 * (1 - (weights + 32 * unique) / (32 * weights))
        )
        assert float(line["saved paper"]) == pytest.approx(saved, abs=0.0051)
        assert line["saved whole"]
        assert line["bytes on disk"]


def test_one_seed_has_no_interval_and_the_control_no_value_of_the_paper() -> None:
    line = line_of(ON_CIFAR, rows_of(RESNET.cells, [0.5]), "control")
    assert (line["n"], line["last %"], line["95 % ±"]) == ("1", "50.00", "-")
    assert (line["paper's best %"], line["best - paper's"], line["saved plot"]) == ("-",) * 3


def test_failed_runs_are_shown_as_failed() -> None:
    mp, rp = DIGITS.chosen(strategies=["mp", "rp_1e-1"]).cells
    rows: list[Row] = [row_of(mp), failed_row_of(mp, seed=1), failed_row_of(rp)]
    assert (line_of(ON_DIGITS, rows, "mp")["n"], line_of(ON_DIGITS, rows, "mp")["last %"]) == (
        "1/2",
        "50.0",
    )
    line = line_of(ON_DIGITS, rows, "rp_1e-1")
    assert (line["n"], line["last %"], line["best %"]) == ("0/1", "failed", "")
    assert "failed: mp, seed 1: the loss is nan" in make_table(ON_DIGITS, rows).notes


def test_warning_of_a_row_stands_under_its_table() -> None:
    canary = PAPER.cells[0]
    (group,) = PAPER.chosen(ids=[canary.id]).groups()
    rows: list[Row] = [row_of(canary, warning="mistrust all other numbers")]
    assert "warning: rp_1e-3, seed 0: mistrust all other numbers" in make_table(group, rows).notes


def test_notes_say_what_was_measured_with_what() -> None:
    mp, rp = DIGITS.chosen(strategies=["mp", "rp_1e-1"]).cells
    notes = make_table(ON_DIGITS, [row_of(mp), row_of(rp, accuracy=0.9)]).notes
    assert notes == [
        # sqrt(90 * 10 / 500), sqrt(50 * 50 / 500)
        "with 500 images held out the sampling error of an accuracy alone is 1.3 to 2.2 points"
        " (standard error); more seeds do not reduce it",
        "runs: 2; 60.0 min of training; on an abacus, threads: 3, torch 0.0",
    ]


def test_bytes_of_rows_from_before_there_were_files_are_counted() -> None:
    rows: list[Row] = [row_of(cell, bytes=UNSET) for cell in DIGITS.cells]
    assert line_of(ON_DIGITS, rows, "mp")["bytes on disk"] == "10,760"


def test_order_is_that_of_the_paper_with_the_canary_in_its_place() -> None:
    (group,) = PAPER.chosen(models=["convmixer-d6-w256"], datasets=["cifar10"]).groups()
    names = [line[0] for line in make_table(group, []).lines]
    assert names[:4] == ["dense", "mask", "one_layer", "mp"]
    assert names[6:8] == ["rp_1e-3", "rp_1e-4"]
    assert names[-1] == "control"
    kinds = [re.sub(r"(?<=rp|om|um)_.*", "", name) for name in names]
    order = ("dense", "mask", "one_layer", "mp", "rp", "prune_random", "prune_minimum", "control")
    assert [*dict.fromkeys(kinds)] == [*order]


def test_shortened_cells_never_stand_beside_the_paper() -> None:
    (short,) = RESNET.shortened(1).groups()
    table = make_table(short, rows_of(short.cells, [0.5]))
    assert not any("paper's" in column for column in table.columns)
    assert "shortened to 1 epochs" in table.title


@pytest.mark.parametrize(
    "study",
    [study for study in STUDIES.values() if "frontier" not in study.name],
    ids=lambda study: study.name,
)
@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_tables_of_every_study_are_readable_at_80_columns(study: Study, seeds: int) -> None:
    """No row is wrapped and no word cut: each is where it would be without an end."""
    rows: list[Row]
    rows = [row_of(c, s, 0.9 + 0.01 * s, bytes=UNSET) for c in study.cells for s in range(seeds)]
    lines = shown(study.groups(), rows, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    groups = study.groups()
    made = [make_table(group, rows) for group in groups]
    numbers = {
        cell
        for table in made
        for line in table.lines
        for name, cell in zip(table.columns[1:], line[1:], strict=True)
        if name != "best -\npaper's"  # which can be read off the two beside it
    }
    parts = {word.strip() for line in lines for word in line.split()}
    assert {number for number in numbers if re.fullmatch(r"[\d,.-]+", number)} <= parts
    named = [
        line
        for line in lines
        if re.match(r" (prune_$|prune_ |dense|mask|one_|mp|rp_|control )", line)
    ]
    assert len(named) == len(study.cells)


def test_names_have_one_line_where_there_is_room() -> None:
    text = shown([ON_CIFAR], [], 100)
    assert " prune_minimum_90 " in text
    assert "best - paper's" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 200])
def test_tables_of_the_paper_fit_and_no_number_is_cut_off(width: int) -> None:
    storage = structs.replace(STORAGE, unique=1_234_567, paper=-0.03125)
    rows: list[Row] = [
        row_of(cell, accuracy=0.9, storage=storage, bytes=12_345_678) for cell in PAPER.cells
    ] + [failed_row_of(cell, seed=1) for cell in PAPER.cells]
    text = shown(PAPER.groups(), rows, width)
    lines = [line for line in text.splitlines() if "12,345,678" in line]
    assert len(lines) == len(PAPER.cells)
    assert max(len(line.rstrip()) for line in lines) <= max(80, width // 2)
    assert "…" not in text
    assert "the share of weights removed" in " ".join(text.split())


def test_every_value_of_the_paper_is_in_a_table() -> None:
    groups = PAPER.groups()
    for value in REPORTED:
        (group,) = (group for group in groups if value.cell in group.cells)
        line = line_of(group, [], value.cell.name)
        assert line["paper's best %"] == f"{value.accuracy:.2f}"
        if value.compression is not None:
            assert line["saved plot"] == f"{value.compression:.2f}"


def test_markdown_has_a_heading_a_line_a_cell_and_the_notes() -> None:
    group = Group("A title", DIGITS.chosen(strategies=["mp"]).cells, "stem")
    text = markdown(make_table(group, rows_of(group.cells, [0.5])))
    lines = text.splitlines()
    assert lines[0] == "### A title"
    assert lines[2].startswith("| strategy | n | last % |")
    assert lines[4] == "| mp | 1 | 50.0 | - | 51.0 | 1 | 25.00 | 12.50 | 90 |"
    assert "runs: 1; 30.0 min of training; on an abacus, threads: 3, torch 0.0." in lines
