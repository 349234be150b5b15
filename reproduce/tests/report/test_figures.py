"""Figures show what the rows say, and where they say nothing."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from msgspec import structs
from PIL import Image

from reproduce.report import figures
from reproduce.report.figures import PAPER_FIGURES, draw_figures
from reproduce.report.finished import _with_others
from reproduce.rows.ledger import read
from reproduce.rows.row import Row
from reproduce.rows.summary import measured
from reproduce.study.cells import PRUNED, Cell, Group
from reproduce.study.studies import REPORTED, STUDIES
from reproduce.tests.invented import STORAGE, failed_row_of, row_of, rows_of

DIGITS = STUDIES["digits"].chosen()
FAMILIES = ("convmixer", "resnet", "vit")
PAPER = STUDIES["paper"]
STEMS = [
    *("capacity-convmixer", "capacity-vit"),
    *("compression-cifar10", "compression-cifar100", "compression-tiny-imagenet"),
]


def words(svg: Path) -> str:
    """All text of a picture, which is drawn as paths, from the comments beside them."""
    text = svg.read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    comments = [line for line in text.splitlines() if line.strip().startswith("<!--")]
    return " ".join(comments).replace("-", "").replace("−", "")


def cells_of(stem: str) -> list[Cell]:
    return [value.cell for value in PAPER_FIGURES[stem]]


def test_figures_of_the_paper_hold_all_its_values() -> None:
    assert sorted(PAPER_FIGURES) == STEMS
    assert sum(map(len, PAPER_FIGURES.values())) == len(REPORTED)


@pytest.mark.parametrize("names", [["dense"], ["rp_1e-4"], [c.name for c in DIGITS.cells]])
def test_reduced_figure_is_drawn_of_whatever_was_asked_for(
    tmp_path: Path, names: list[str]
) -> None:
    study = DIGITS.chosen(strategies=names)
    png, svg = draw_figures(study.groups(), rows_of(study.cells, [0.9, 0.92]), tmp_path)
    assert png.name == "digits-convmixer-d2-w32.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    for name in names:
        assert name.replace("-", "") in words(svg)
    assert "n = 2" in words(svg)


def test_reduced_study_has_no_figure_before_it_has_a_result(tmp_path: Path) -> None:
    assert draw_figures(DIGITS.groups(), [failed_row_of(DIGITS.cells[0])], tmp_path) == []


def test_only_figures_that_show_a_cell_are_drawn(tmp_path: Path) -> None:
    canary = PAPER.chosen(ids=[PAPER.cells[0].id])
    paths = draw_figures(canary.groups(), [], tmp_path)
    assert sorted({path.stem for path in paths}) == ["capacity-convmixer", "compression-cifar10"]


def test_shortened_cells_are_in_no_figure_of_the_paper(tmp_path: Path) -> None:
    short = PAPER.chosen(ids=[PAPER.cells[0].id]).shortened(1)
    paths = draw_figures(short.groups(), rows_of(short.cells, [0.5]), tmp_path)
    assert {path.stem for path in paths} == {"cifar10-convmixer-d6-w256-1-epochs"}


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    groups = PAPER.chosen(models=["vit"]).groups()
    rows = rows_of(cells_of("capacity-vit")[:4], [0.7, 0.8])
    one, two = (draw_figures(groups, rows, tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in one] == ["capacity-vit.png", "capacity-vit.svg"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_order_of_the_rows_makes_no_difference(tmp_path: Path) -> None:
    """Nor does the order in which ``run`` finds the other cells of a figure."""
    rows = rows_of(DIGITS.cells, [0.7, 0.8, 0.85])
    groups = DIGITS.chosen(strategies=["mp"]).groups()
    pictures = []
    for name, ordered in (("one", rows), ("two", rows[::-1])):
        paths = draw_figures(DIGITS.groups(), ordered, tmp_path / name)
        paths += draw_figures(
            [_with_others(group, ordered) for group in groups], ordered, tmp_path / f"{name}-run"
        )
        pictures.append([path.read_bytes() for path in paths])
    assert len(pictures[0]) == 4
    assert pictures[0] == pictures[1]


def draw(stem: str, rows: Sequence[Row]) -> Figure:
    """One of the paper's, not yet written."""
    make = figures._capacity if stem.startswith("capacity") else figures._compression
    return make(PAPER_FIGURES[stem], rows)


@pytest.mark.parametrize("stem", STEMS)
def test_before_anything_is_measured_only_the_paper_is_there(stem: str) -> None:
    figure = draw(stem, [])
    texts = [text.get_text() for text in figure.legends[0].texts]
    assert texts[-1] == "ours: not one cell measured yet"
    assert not any("filled" in text for text in texts)
    assert not any(axes.containers for axes in figure.axes)
    if stem.startswith("compression"):  # what a network costs is counted, not measured
        ticks = [axes.get_yticks().tolist() for axes in figure.axes]
        panels = [a for a, of_a in zip(figure.axes, ticks, strict=True) if of_a == [0, -1, -2, -3]]
        assert len(panels) == len(figure.axes) // 2
        for panel in panels:
            heights: list[Any] = [line.get_ydata() for line in panel.lines]
            assert {round(y) for (y,) in heights} == {0, -1, -2, -3}


def bars(stem: str, measured: Sequence[Cell], seeds: int) -> list[tuple[Any, Any]]:
    """Mean and half an interval of each of our marks."""
    rows = [row_of(c, seed, 0.5 + 0.1 * seed) for c in measured for seed in range(seeds)]
    found = []
    for axes in draw(stem, rows).axes:
        for container in axes.containers:
            mark, _, lines = cast(ErrorbarContainer, container)
            half = None
            if lines:
                ((_, low), (_, high)) = lines[0].get_segments()[0]
                half = (high - low) / 2
            found.append((float(mark.get_ydata()[0]), half))
    return found


@pytest.mark.parametrize("stem", STEMS)
def test_each_measured_cell_is_a_mark_with_its_interval(stem: str) -> None:
    measured = [cell for cell in cells_of(stem) if cell.strategy not in ("dense", "mask")][::2]
    one = bars(stem, measured, seeds=1)
    assert one == [(pytest.approx(50), None)] * len(measured)
    three = bars(stem, measured, seeds=3)  # 4.303 * 10 / sqrt(3)
    assert three == [(pytest.approx(60), pytest.approx(24.84, abs=0.01))] * len(measured)


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem.startswith("capacity")])
def test_strategies_of_a_capacity_figure_are_not_joined(stem: str) -> None:
    (axes,) = draw(stem, []).axes
    places = [np.ptp(np.asarray(line.get_xdata(), float)) for line in axes.lines]
    assert places == [0] * len(places)


def test_axes_that_do_not_start_at_0_say_so() -> None:
    for stem in STEMS:
        figure = draw(stem, [])
        said = figure.axes[0].get_ylabel() + figure.legends[0].get_title().get_text()
        assert re.search("axis (does not start|starts) at 0", said)
    rows = rows_of(DIGITS.cells, [0.9])
    (axes,) = figures._unique("title", measured(DIGITS.cells, rows)).axes
    assert "does not start at 0" in axes.get_ylabel()


def test_failed_runs_are_no_mark() -> None:
    cells = cells_of("capacity-vit")
    figure = draw("capacity-vit", [failed_row_of(cell) for cell in cells])
    assert not figure.axes[0].containers


def test_bytes_on_disk_lie_beside_the_accounting_of_the_paper() -> None:
    values = PAPER_FIGURES["compression-tiny-imagenet"]
    storage = structs.replace(STORAGE, paper=0.9, whole=0.8, bits=1600, dense_bits=8000)
    rows = [row_of(value.cell, storage=storage, bytes=300) for value in values]
    above, below = draw("compression-tiny-imagenet", rows).axes
    assert above.get_shared_x_axes().joined(above, below)
    masked = [v for v in values if v.cell.masking]
    pruned = [v for v in values if v.cell.strategy in PRUNED]
    places: list[Any] = [line.get_xydata() for line in below.lines]
    points = [(float(x), round(y)) for ((x, y),) in places]
    plotted = [x for x, y in points if y == 0]
    assert sorted(plotted) == sorted(v.compression or 0 for v in [*masked, *pruned])
    assert [x for x, y in points if y == -1] == pytest.approx([90] * 11)
    assert [x for x, y in points if y == -2] == pytest.approx([80] * 11)
    assert [x for x, y in points if y == -3] == pytest.approx([70] * 3)  # 1 - 300 / 1000
    assert (len(masked), len(pruned)) == (3, 8)


def test_names_of_close_values_are_moved_apart() -> None:
    axes = Figure().add_subplot()
    axes.set_xscale("log")
    figures._name(axes, {"one_layer": 22_400, "mp": 16_384, "rp": 1})
    names = {text.get_text(): text for text in axes.texts if isinstance(text, Annotation)}
    assert [*names] == ["rp", "mp", "one_layer"]
    assert [text.xy[0] for text in names.values()] == [1, 16_384, 22_400]
    places = [text.xyann[0] for text in names.values()]
    own = axes.transAxes.inverted().transform(axes.transData.transform((16_384, 1)))[0]
    assert places[1] == pytest.approx(own)
    assert places[2] == pytest.approx(places[1] + 0.065)


@pytest.mark.parametrize("group", STUDIES["digits"].chosen(models=FAMILIES).groups())
def test_nothing_is_cut_off(group: Group, tmp_path: Path) -> None:
    rows = read(Path(figures.__file__).parents[1] / "results", "digits", print)
    figure = figures._unique(group.title, measured(group.cells, rows))
    png, _ = figures.save(figure, tmp_path / "picture")
    with Image.open(png) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() == 0
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def test_half_pictures_of_killed_processes_are_swept_and_nothing_else(
    tmp_path: Path,
) -> None:
    (group,) = DIGITS.groups()
    left = [tmp_path / f"{group.stem}.{kind}.0123abcd.part" for kind in ("png", "svg")]
    others = [tmp_path / name for name in ("film.part", f"{group.stem}.png.part", "x.part")]
    for part in (*left, *others):
        part.write_bytes(b"half")
    draw_figures([group], rows_of(group.cells, [0.5]), tmp_path)
    assert [part.exists() for part in (*left, *others)] == [False] * 2 + [True] * 3
