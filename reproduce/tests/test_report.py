"""The table and the figure say what the rows say."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from reproduce.cells import Study
from reproduce.report import draw_figure, make_table, summarise
from reproduce.rows import Row
from reproduce.studies import STUDIES

DIGITS = STUDIES["digits"].chosen()


def rows_of(study: Study, accuracies: list[float]) -> list[Row]:
    """Invented rows: these last accuracies in every cell, the best a hundredth higher."""
    storage = {"weights": 4096, "paper": 0.25, "whole": 0.125, "bits": 7, "dense_bits": 8}
    return [
        {
            "cell": cell.id,
            "seed": seed,
            "accuracy_last": accuracy,
            "accuracy_best": accuracy + 0.01,
            "held_out": 500,
            "storage": {**storage, "unique": 2**position},
            "bytes": 2_345_678,
        }
        for position, cell in enumerate(study.cells)
        for seed, accuracy in enumerate(accuracies)
    ]


def test_summary_counts_only_rows_of_the_study() -> None:
    study = DIGITS.chosen(strategies=["mp", "rp_1e-1"])
    rows = rows_of(DIGITS, [0.9]) + rows_of(DIGITS.shortened(1), [0.1])
    assert [(s.name, s.last) for s in summarise(study, rows)] == [("mp", [90]), ("rp_1e-1", [90])]


def test_table_line_holds_the_numbers_and_fits_80_columns() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(make_table(DIGITS, rows_of(DIGITS, [0.9, 0.92, 0.97])))
    lines = capture.get().splitlines()
    words = next(line.split() for line in lines if line.split()[:1] == ["one_layer"])
    # mean 93; its error from the seeds 3.606 / sqrt(3), from the images sqrt(93 * 7 / 500)
    assert words == ["one_layer", "3", "93.0", "90.0-97.0", "2.1", "1.1", "94.0", *words[7:]]
    assert words[7:] == ["4", "25.00", "12.50", "2,345,678"]
    assert "…" not in capture.get()
    assert "which leaves out" in " ".join(capture.get().split())


def test_rows_from_before_there_were_files_have_no_bytes() -> None:
    study = DIGITS.chosen(strategies=["mp"])
    rows = rows_of(study, [0.5, 0.6])
    for row in rows:
        del row["bytes"]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(make_table(study, rows))
    words = next(line.split() for line in capture.get().splitlines() if line.startswith(" mp"))
    assert words[-2:] == ["12.50", "-"]


def test_one_seed_has_no_standard_error() -> None:
    console = Console(width=80)
    study = DIGITS.chosen(strategies=["mp"])
    with console.capture() as capture:
        console.print(make_table(study, rows_of(study, [0.5])))
    words = next(line.split() for line in capture.get().splitlines() if line.startswith(" mp"))
    assert words[:6] == ["mp", "1", "50.0", "50.0-50.0", "-", "2.2"]


@pytest.mark.parametrize("names", [["dense"], ["rp_1e-4"], [c.name for c in DIGITS.cells]])
def test_figure_is_drawn_of_whatever_was_asked_for(tmp_path: Path, names: list[str]) -> None:
    study = DIGITS.chosen(strategies=names)
    png, svg = draw_figure(study, rows_of(study, [0.9, 0.92]), tmp_path / "digits")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    comments = "".join(line for line in text.splitlines() if line.strip().startswith("<!--"))
    for name in names:
        assert name.replace("-", "") in comments.replace("-", "").replace("−", "")
