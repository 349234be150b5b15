"""The figures: those of the paper with ours beside its values, and one of each reduced study.

The colours are those of Okabe and Ito, which colour-blind readers tell apart; where there are no
colours the marks do.
"""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator, StrMethodFormatter

from reproduce.report.tables import sizes
from reproduce.rows.row import Row
from reproduce.rows.shared import write
from reproduce.rows.summary import Summary, interval, measured, summarise
from reproduce.study.cells import PRUNED, Cell, Group
from reproduce.study.studies import REPORTED, Reported

_BLACK, _GREY, _BLUE, _ORANGE, _GREEN = "#000000", "#666666", "#0072B2", "#D55E00", "#009E73"
_SIZES = ((_BLUE, "o"), (_ORANGE, "s"), (_GREEN, "^"), ("#CC79A7", "D"))
# Colour and mark; how far beside the paper's mark ours is drawn, and how far above the line of an
# accounting: several methods save almost the same.
_METHODS = {
    "mp": (_BLUE, "D", 0.45, 0.0),
    "rp_1e-1": (_BLUE, "o", -0.45, 0.0),
    "rp_1e-2": (_BLUE, "^", 0.45, 0.18),
    "rp_1e-3": (_BLUE, "v", 0.9, -0.18),
    "prune_random": (_ORANGE, "s", -0.45, 0.18),
    "prune_minimum": (_GREEN, "X", 0.45, -0.18),
}
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet"}
_LINES = {"dense": (_GREY, "-"), "control": (_ORANGE, "--")}
_NOT_FROM_0 = "(the axis does not start at 0)"
_ACCOUNTINGS = ("as plotted", "weights + masks", "whole model", "on disk")
_LEFT_OUT = """\
no axis starts at 0; what is filled in the lower panels is counted, not measured
as plotted by the paper: without normalisation, biases and buffers; pruned networks without masks
weights + masks: the same, every mask counted; whole model: with all that it needs to run
on disk: its file; those of pruned networks hold the zeros, so that nothing is saved"""


def _paper_figures() -> dict[str, list[Reported]]:
    """Stem -> what is plotted: capacity of each family, compression on each dataset."""
    figures: dict[str, list[Reported]] = {}
    for value in REPORTED:
        of = value.cell.model.family if value.figure == "capacity" else value.cell.dataset
        figures.setdefault(f"{value.figure}-{of}", []).append(value)
    return figures


PAPER_FIGURES = _paper_figures()


def draw_figures(groups: Sequence[Group], rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw the figures of the paper that show a cell of these groups, and one of each other group.

    Every figure is written as PNG and as SVG: the same bytes for the same rows and matplotlib. A
    group that the paper does not plot has none before it has a result.

    Raises:
        OSError: if ``out`` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    cells = {cell for group in groups for cell in group.cells}
    paths = []
    for stem, values in PAPER_FIGURES.items():
        if not cells.isdisjoint(value.cell for value in values):
            draw = _capacity if values[0].figure == "capacity" else _compression
            paths += save(draw(values, rows), out / stem)
    for group in groups:
        summaries = measured(group.cells, rows)
        if summaries and not any(value.cell in group.cells for value in REPORTED):
            paths += save(_unique(group.title, summaries), out / group.stem)
    return paths


def title(values: Sequence[Reported]) -> str:
    """Of a figure of the paper."""
    cell, where = values[0].cell, _DATASETS[values[0].cell.dataset]
    if values[0].figure == "capacity":
        return f"Capacity: {type(cell.model).__name__} on {where}"
    return f"Compression: {where}"


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and as SVG, the same bytes each time; the files written.

    Raises:
        OSError: if they cannot be written.
    """
    figure.draw_without_rendering()  # ticks fit the size of the axes, and labels then the ticks
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for path, unsteady in zip(paths, ("Software", "Date"), strict=True):
        picture = BytesIO()
        with mpl.rc_context({"svg.hashsalt": stem.name}):
            figure.savefig(picture, format=path.suffix[1:], dpi=160, metadata={unsteady: None})
        write(path, picture.getvalue())
    return paths


def _capacity(values: Sequence[Reported], rows: Sequence[Row]) -> Figure:
    """Accuracy by strategy, a series each size of the family."""
    figure = Figure(figsize=(8, 5.5), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    paper = {value.cell: value.accuracy for value in values}
    names = [*dict.fromkeys(value.cell.name for value in values)]
    seeds: list[int] = []
    sizes = []
    models = dict.fromkeys(value.cell.model for value in values)
    for number, (model, look) in enumerate(zip(models, _SIZES, strict=True)):
        places = {
            value.cell: names.index(value.cell.name) + 0.2 * number - 0.35
            for value in values
            if value.cell.model == model
        }
        # Not joined: between two strategies there is nothing.
        for cell, place in places.items():
            axes.plot(place, paper[cell], look[1], color=look[0], mfc="white")
        for summary in summarise(places, rows):
            seeds += _our_mark(axes, places[summary.cell] + 0.1, summary, look)
        label = f"depth {model.depth}, width {model.width}"
        sizes.append(_handle(label, *look, mfc="white"))
    for place in range(1, len(names)):
        axes.axvline(place - 0.5, color=_GREY, alpha=0.3, linewidth=0.8)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("strategy, from a value for each weight to a single one")
    axes.set_ylabel(f"accuracy, % of the 10,000 test images\n{_NOT_FROM_0}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title(values))
    _legend(figure, [*sizes, *_kinds(seeds)])
    return figure


def _compression(values: Sequence[Reported], rows: Sequence[Row]) -> Figure:
    """Accuracy against compression, a panel each model; under it where other accountings lie."""
    models = [*dict.fromkeys(value.cell.model for value in values)]
    columns = 2 if len(models) == 4 else len(models)
    lines = len(models) // columns
    figure = Figure(figsize=(8, 1.8 + 3.7 * lines), layout="constrained", facecolor="white")
    panels: Any = figure.subplots(
        2 * lines,
        columns,
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=[5, 2.3] * lines,
    )
    seeds: list[int] = []
    for number, model in enumerate(models):
        line, column = 2 * (number // columns), number % columns
        above, below = panels[line : line + 2, column]
        mine = [value for value in values if value.cell.model == model]
        summaries = summarise([value.cell for value in mine], rows)
        seeds += _accuracies(above, mine, summaries)
        _accountings(below, mine, summaries)
        above.set_title(model.label, fontsize="medium")
        below.set_xlabel("saved, % of dense")
        below.tick_params(labelbottom=True)
        below.xaxis.set_major_locator(MultipleLocator(2))
        if column == 0:
            above.set_ylabel("accuracy, % of the\n10,000 test images")
    figure.suptitle(title(values))
    plotted = {_method(value.cell) for value in values}
    methods = [
        _handle(name, color, mark, mfc="white")
        for name, (color, mark, *_) in _METHODS.items()
        if name in plotted
    ]
    methods.append(_handle("dense: dashed the paper, solid ours", _BLACK, "", linestyle="--"))
    _legend(figure, [*methods, *_kinds(seeds)], _LEFT_OUT)
    return figure


def _accuracies(axes: Axes, values: Sequence[Reported], summaries: Sequence[Summary]) -> list[int]:
    """The upper panel of a model; how many seeds each measured cell has."""
    seeds = []
    series: dict[str, list[tuple[float, float]]] = {}
    for (_, cell, accuracy, saved), summary in zip(values, summaries, strict=True):
        if cell.strategy == "dense":
            axes.axhline(accuracy, color=_BLACK, linestyle="--", linewidth=1)
            if summary.last:
                middle, error = fmean(summary.last), interval(summary.last) or 0
                axes.axhline(middle, color=_BLACK, linewidth=1)
                axes.axhspan(middle - error, middle + error, color=_BLACK, alpha=0.12, linewidth=0)
                seeds.append(len(summary.last))
        elif saved is not None:
            color, mark, beside, _ = _METHODS[_method(cell)]
            series.setdefault(_method(cell), []).append((saved, accuracy))
            seeds += _our_mark(axes, saved + beside, summary, (color, mark))
    for method, points in series.items():
        color, mark, *_ = _METHODS[method]
        axes.plot(*zip(*points, strict=True), color=color, marker=mark, mfc="white", linewidth=0.8)
    axes.grid(axis="y", alpha=0.3)
    return seeds


def _accountings(axes: Axes, values: Sequence[Reported], summaries: Sequence[Summary]) -> None:
    """The lower panel of a model: what the same networks save by each accounting."""
    for value, summary in zip(values, summaries, strict=True):
        cell, (size, on_disk) = value.cell, sizes(summary)
        if cell.strategy == "dense" or value.compression is None:
            continue
        color, mark, _, up = _METHODS[_method(cell)]
        saved = [value.compression, 100 * size.paper, 100 * size.whole]
        if cell.strategy not in PRUNED:
            saved.append(100 * (1 - 8 * on_disk / size.dense_bits))
        for line, percent in enumerate(saved):
            filled = color if line else "white"
            axes.plot(percent, up - line, mark, color=color, mfc=filled, markersize=5)
    axes.set_yticks(range(0, -len(_ACCOUNTINGS), -1), _ACCOUNTINGS)
    axes.set_ylim(0.5 - len(_ACCOUNTINGS), 0.5)
    axes.grid(axis="x", alpha=0.3)


def _method(cell: Cell) -> str:
    return cell.strategy if cell.strategy in PRUNED else cell.name


def _our_mark(axes: Axes, x: float, summary: Summary, look: tuple[str, str]) -> list[int]:
    """Mean and interval of the last epoch, and the best epoch; the number of seeds, if any."""
    if not summary.last:
        return []
    color, mark = look
    error = interval(summary.last)
    axes.errorbar(x, fmean(summary.last), error, fmt=mark, color=color, capsize=2, zorder=3)
    axes.plot(x, fmean(summary.best), "_", color=color, markersize=9, zorder=3)
    return [len(summary.last)]


def _kinds(seeds: Sequence[int]) -> list[Any]:
    """Handles that say whose marks are which; ``seeds`` of each measured cell."""
    paper = _handle("open: the paper, best test epoch of one run", _BLACK, "o", mfc="white")
    if not seeds:
        return [paper, _handle("ours: not one cell measured yet", "none", "")]
    return [
        paper,
        _handle(
            f"filled, beside it: ours, last epoch, mean, 95 % interval, {_n(seeds)}", _BLACK, "o"
        ),
        _handle("ours, best test epoch", _BLACK, "_"),
    ]


def _n(seeds: Sequence[int]) -> str:
    low, high = min(seeds), max(seeds)
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def _handle(label: str, color: str, mark: str, **more: Any) -> Line2D:
    return Line2D([], [], **{"linestyle": "", "color": color, "marker": mark} | more, label=label)


def _legend(
    figure: Figure, handles: Sequence[Artist], note: str | None = None, columns: int = 2
) -> None:
    figure.legend(
        handles=handles, title=note, loc="outside lower center", ncols=columns, frameon=False
    )


def _unique(heading: str, summaries: Sequence[Summary]) -> Figure:
    """Accuracy against unique values: every seed is a point.

    Dense and control, which are no answer to how many values suffice, are lines at their mean, in a
    band from the lowest seed to the highest.
    """
    figure = Figure(figsize=(5, 5), layout="constrained", facecolor="white")  # for a phone, too
    axes = figure.add_subplot()
    axes.set_xscale("log")
    ticks = {}
    seeds = []
    for cell, last, _, _, _, storage, _ in summaries:
        assert storage is not None
        mean, low, high = fmean(last), min(last), max(last)
        if cell.name in _LINES:
            color, line = _LINES[cell.name]
            span = f" ({low:.1f} to {high:.1f})" if len(last) > 1 else ""
            label = f"{cell.name}, {mean:.1f} %{span}, n = {len(last)}"
            axes.axhline(mean, color=color, linestyle=line, label=label)
            axes.axhspan(low, high, color=color, alpha=0.12, linewidth=0)
            continue
        ticks[f"{cell.name} ({storage.unique:,})"] = storage.unique
        seeds.append(len(last))
        axes.plot([storage.unique] * len(last), last, "o", color=_BLUE, alpha=0.6)
        if len(last) > 1:
            axes.plot(storage.unique, mean, "_", color=_BLUE, markersize=16)
    if ticks:
        axes.plot([], [], "o", color=_BLUE, alpha=0.6, label=f"learned mask, a seed, {_n(seeds)}")
    if max(seeds, default=0) > 1:
        axes.plot([], [], "_", color=_BLUE, markersize=16, label="learned mask, mean")
    _name(axes, ticks)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("unique weight values stored")
    axes.set_ylabel(
        f"accuracy after the last epoch\n(% of {summaries[0].held_out:,} images held out)"
        f"\n{_NOT_FROM_0}"
    )
    axes.grid(axis="y", alpha=0.3)
    figure.suptitle(fill(heading, 45), fontsize="medium")
    _legend(figure, axes.get_legend_handles_labels()[0], columns=1)
    return figure


def _name(axes: Axes, ticks: dict[str, int]) -> None:
    """Names above the values of a logarithmic axis, where none covers a point or another name."""
    first, last = min(ticks.values(), default=1), max(ticks.values(), default=1)
    low, high = first / 2, 2 * last
    axes.set_xlim(low, high)
    place = 0.0
    for name, value in sorted(ticks.items(), key=lambda tick: tick[1]):
        place = max(place + 0.065, math.log(value / low) / math.log(high / low))
        axes.annotate(
            name,
            (value, 1),
            (place, 1.07),
            xycoords=axes.get_xaxis_transform(),
            textcoords="axes fraction",
            rotation=60,
            rotation_mode="anchor",
            fontsize="small",
            arrowprops={"arrowstyle": "-", "color": _GREY, "shrinkA": 0, "shrinkB": 0},
        )
