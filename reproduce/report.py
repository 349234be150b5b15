"""What a study measured, as a table and as a figure."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from rich import box
from rich.table import Table

from pemn_ref import Storage
from reproduce.cells import Study
from reproduce.rows import Row

_LINES = {"dense": ("#444444", "-"), "control": ("#D55E00", "--")}
_BLUE = "#0072B2"  # this and the orange: safe for colour-blind readers


class Summary(NamedTuple):
    """All seeds of one cell. Accuracies are percentages of the held-out images."""

    name: str
    last: list[float]
    best: list[float]
    held_out: int
    storage: Storage
    bytes: int | None
    """Of the file on disk; None in rows from before there were files."""


def summarise(study: Study, rows: Sequence[Row]) -> list[Summary]:
    """One summary for each cell of the study that has rows, in the study's order."""
    summaries = []
    for cell in study.cells:
        mine = [row for row in rows if row["cell"] == cell.id]
        if mine:
            summaries.append(
                Summary(
                    cell.name,
                    [100 * row["accuracy_last"] for row in mine],
                    [100 * row["accuracy_best"] for row in mine],
                    mine[0]["held_out"],
                    Storage(**mine[0]["storage"]),
                    mine[-1].get("bytes"),
                )
            )
    return summaries


def images_error(accuracy: float, images: int) -> float:
    """Standard error of a percentage from so many images: seeds do not average it away.

    >>> round(images_error(97.5, 500), 2)
    0.7
    """
    return float((accuracy * (100 - accuracy) / images) ** 0.5)


def make_table(study: Study, rows: Sequence[Row]) -> Table:
    """One line a cell: accuracy over the seeds, unique values, and what it saves."""
    table = Table(
        title=study.title,
        caption=(
            "mean and range: accuracy on the held-out images after the last epoch, over n seeds;"
            " s.e.: its standard error from the seeds, and from the number of images (the same for"
            " every seed, so not averaged away); best: at the best epoch, which the paper reports;"
            " saved: bits, of the dense float32 weights by the paper's accounting, which leaves out"
            " all that is not masked (normalisation, biases, tokens, buffers), and of the whole"
            " model; bytes: of the file of one network, its header with names and tag included;"
            " control: the masks of mp at random, only what is not masked trained"
        ),
        caption_justify="left",
        box=box.SIMPLE,
        padding=0,  # for 80 columns
    )
    table.add_column("strategy", no_wrap=True)
    for column in (
        "n",
        "mean\n%",
        "range\n%",
        "s.e.\nseeds",
        "s.e.\nimages",
        "best\n%",
        "unique\nvalues",
        "saved %\npaper",
        "saved %\nwhole",
        "bytes\non disk",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for name, last, best, held_out, size, on_disk in summarise(study, rows):
        mean = fmean(last)
        table.add_row(
            name,
            str(len(last)),
            f"{mean:.1f}",
            f"{min(last):.1f}-{max(last):.1f}",
            f"{stdev(last) / len(last) ** 0.5:.1f}" if len(last) > 1 else "-",
            f"{images_error(mean, held_out):.1f}",
            f"{fmean(best):.1f}",
            f"{size.unique:,}",
            f"{100 * size.paper:.2f}",
            f"{100 * size.whole:.2f}",
            "-" if on_disk is None else f"{on_disk:,}",
        )
    return table


def draw_figure(study: Study, rows: Sequence[Row], stem: Path) -> list[Path]:
    """Accuracy against unique values as ``stem.png`` and ``stem.svg``: every seed is a point.

    Dense and control, which are no answer to how many values suffice, are lines at their mean, in a
    band from the lowest seed to the highest.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    ticks = {}
    summaries = summarise(study, rows)
    for name, last, _, _, storage, _ in summaries:
        mean, low, high = fmean(last), min(last), max(last)
        if name in _LINES:
            color, line = _LINES[name]
            label = f"{name}, {mean:.1f} % ({low:.1f} to {high:.1f})"
            axes.axhline(mean, color=color, linestyle=line, label=label)
            axes.axhspan(low, high, color=color, alpha=0.12, linewidth=0)
        else:
            ticks[f"{name} ({storage.unique:,})"] = storage.unique
            axes.plot([storage.unique] * len(last), last, "o", color=_BLUE, alpha=0.6)
            axes.plot(storage.unique, mean, "_", color=_BLUE, markersize=16)
    if ticks:
        axes.plot([], [], "o", color=_BLUE, alpha=0.6, label="learned mask, one seed")
        axes.plot([], [], "_", color=_BLUE, markersize=16, label="learned mask, mean")
    # An axis of its own above names the strategies, so that no label covers a point.
    names = axes.secondary_xaxis("top")
    names.set_xticks(list(ticks.values()), list(ticks), rotation=45, ha="left", fontsize="small")
    names.minorticks_off()
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("unique weight values stored")
    axes.set_ylabel(
        f"accuracy after the last epoch\n(% of {summaries[0].held_out} images held out)"
    )
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(study.title, fontsize="medium")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for path in paths:
        figure.savefig(path, dpi=200)
    return paths
