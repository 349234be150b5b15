"""What the byte frontier says: accuracy against bytes of the file, as a table and a figure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from rich.console import Console

from pemn_ref import maskable_shapes, rp
from pemn_ref.prototype import prototype_groups
from reproduce.report.console import table as new_table
from reproduce.report.figures import save
from reproduce.report.tables import Table, markdown, notes_of
from reproduce.rows.ledger import read
from reproduce.rows.row import Measured, Row
from reproduce.rows.summary import interval
from reproduce.study.cells import Cell, Study
from reproduce.study.frontier import FRONTIER_CIFAR10, FRONTIER_DIGITS, FRONTIER_RATES, GRID
from reproduce.training.networks import make_model

STUDIES = (FRONTIER_DIGITS, FRONTIER_CIFAR10)
"""Those that have a figure."""
NAMES = {
    "mp": "PEMN, mp",
    "mp by seed": "PEMN, mp, were only its seed stored",
    "rp_0.01": "PEMN, rp 1e-2",
    "rp_0.01_d0.3": "PEMN, rp 1e-2, density 0.3",
    "rp_0.01_d0.1": "PEMN, rp 1e-2, density 0.1",
    "rescaled": "PEMN, mp, rescaled to each fan-in",
    "control": "control: mp, masks not trained",
    "signed": "masks, prototype of signs",
    "signed_0.01": "masks, prototype of signs, 1e-2",
    "signed_seed": "masks, signs by a seed",
    "signed_seed_d0.25": "masks, signs by a seed, density 1/4",
    "signed-scaled_seed": "masks, signs by a seed, scales",
    "global_seed": "masks, signs by a seed, global ranking",
    "global-scaled_seed": "the same, and scales",
    "frozen_seed": "signs by a seed, every other one learned",
    "signs": "learned signs",
    "scaled": "learned signs, scales",
    "tiled_0.25": "learned signs, a quarter tiled",
    "ternary": "ternary, density 1/2",
    "ternary_d0.25": "ternary, density 1/4",
    "ternary_d0.227": "ternary, density 0.227",
    "global-ternary_d0.25": "ternary, density 1/4, global ranking",
    "pruned_d0.1": "pruned to 1/10, float16",
    "int8": "int8",
    "float16": "float16",
    "float32": "float32",
}
"""Of families, for people, in the order of table and figure."""
_PANELS = {
    "PEMN": [*NAMES][:7],
    "Signs that are not learned": [*NAMES][7:15],
    "Learned signs": [*NAMES][15:22],
    "Numbers": [*NAMES][22:],
}
_LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#000000", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
    ("#666666", "<"),
)


class Place(NamedTuple):
    """A family at one width."""

    width: int
    bytes: float
    """Of its files, the mean."""
    accuracies: dict[int, float]
    """By seed, in percent."""


Curves = Mapping[str, Sequence[Place]]


def curves(cells: Iterable[Cell], rows: Sequence[Row]) -> dict[str, list[Place]]:
    """Family -> its places that are measured, by width; and ``mp`` with its seed for its values."""
    found: dict[str, list[Place]] = {}
    for cell in sorted(cells, key=lambda cell: cell.model.width):
        mine = [row for row in rows if row.cell == cell.id and isinstance(row, Measured)]
        if not mine:
            continue
        size = fmean(int(row.bytes or 0) for row in mine)
        place = Place(cell.model.width, size, {r.seed: 100 * r.accuracy_last for r in mine})
        found.setdefault(cell.name, []).append(place)
        if cell.name == "mp":
            with torch.device("meta"):
                groups = prototype_groups(maskable_shapes(make_model(cell, 0)), rp(1))
            ((values, _),) = groups.values()
            found.setdefault("mp by seed", []).append(place._replace(bytes=size - 4 * values + 8))
    return {name: found[name] for name in NAMES if name in found}


def against(curve: Sequence[Place], other: Sequence[Place]) -> list[float]:
    """Points by which each seed of a family is above another family's at equal bytes.

    The mean over its places. Between the other's files its accuracy is read off a straight line
    over the logarithm of the bytes; right of its largest file it is that file's, and places left of
    its smallest do not count.
    """
    places = [place for place in curve if place.bytes >= other[0].bytes]
    seeds = set.intersection(*({*place.accuracies} for place in (*curve, *other)))
    at = np.log([place.bytes for place in other])
    return [
        fmean(
            place.accuracies[seed]
            - float(np.interp(np.log(place.bytes), at, [o.accuracies[seed] for o in other]))
            for place in places
        )
        for seed in sorted(seeds)
        if places
    ]


def pareto(found: Curves) -> list[tuple[float, float]]:
    """Bytes and mean accuracy of the files that no smaller one is as good as."""
    best: list[tuple[float, float]] = []
    for size, accuracy in sorted(
        (place.bytes, fmean(place.accuracies.values()))
        for name, curve in found.items()
        if name != "mp by seed"  # no such file is written
        for place in curve
    ):
        if not best or accuracy > best[-1][1]:
            best.append((size, accuracy))
    return best


def make_table(study: Study, rows: Sequence[Row]) -> Table:
    """A line for each family, a column for each width."""
    found = curves(study.cells, rows)
    widths = sorted({place.width for curve in found.values() for place in curve})
    lines = []
    for name, curve in found.items():
        line = {place.width: _entry(place) for place in curve}
        versus = (_difference(against(curve, found[o])) if o in found else "" for o in _OTHERS)
        lines.append([NAMES[name], *(line.get(width, "") for width in widths), *versus])
    heads = [f"width {width}: %, kB" for width in widths]
    beside = [f"above {NAMES[other]}" for other in _OTHERS]
    mine = {cell.id: f"{cell.model.label} {cell.name}" for cell in study.cells}
    return Table(
        study.title.format(label="ConvMixer"),
        ["family", *heads, *beside],
        lines,
        notes_of([row for row in rows if row.cell in mine], mine),
    )


_OTHERS = ("signs", "ternary_d0.25")
"""Whom all others are compared with."""


def _entry(place: Place) -> str:
    values = [*place.accuracies.values()]
    error = interval(values)
    middle = f"{fmean(values):.1f}" + ("" if error is None else f" ± {error:.1f}")
    return f"{middle}, {place.bytes / 1000:.2f}"


def _difference(values: Sequence[float]) -> str:
    error = interval(values) if values else None
    if not values:
        return ""
    return f"{fmean(values):+.1f}" + ("" if error is None else f" ± {error:.1f}")


def make_rates(study: Study, rows: Sequence[Row]) -> Table:
    """The trials: the mean accuracy of each family at each rate, and the chosen one."""
    chosen = chosen_rates(study, rows)
    lines = []
    for name, by_rate in _trials(study, rows).items():
        each = [f"{fmean(by_rate[rate]):.1f}" if rate in by_rate else "" for rate in GRID]
        lines.append([name, str(min(map(len, by_rate.values()))), *each, str(chosen[name])])
    title = study.title.format(label="ConvMixer")
    return Table(title, ["family", "trials a rate", *map(str, GRID), "chosen"], lines, [])


def chosen_rates(study: Study, rows: Sequence[Row]) -> dict[str, float]:
    """Family -> the rate of the best mean accuracy of its trials; of equal ones the lowest."""
    return {
        name: max(sorted(by_rate), key=lambda rate: fmean(by_rate[rate]))
        for name, by_rate in _trials(study, rows).items()
    }


def _trials(study: Study, rows: Sequence[Row]) -> dict[str, dict[float, list[float]]]:
    """Family -> rate -> accuracies, in percent; a run that failed has 0."""
    of_cell = {cell.id: cell for cell in study.cells}
    found: dict[str, dict[float, list[float]]] = {cell.name: {} for cell in study.cells}
    for row in rows:
        if cell := of_cell.get(row.cell):
            accuracy = 100 * row.accuracy_last if isinstance(row, Measured) else 0.0
            found[cell.name].setdefault(cell.recipe.learning_rate, []).append(accuracy)
    return {name: by_rate for name, by_rate in found.items() if by_rate}


def draw(study: Study, rows: Sequence[Row]) -> Figure:
    """Accuracy against kilobytes, four panels; in each the Pareto line and float32's."""
    found = curves(study.cells, rows)
    figure = Figure(figsize=(11, 10), layout="constrained", facecolor="white")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    best = np.array(pareto(found)).T
    for axes, (title, names) in zip(panels.flat, _PANELS.items(), strict=True):
        axes.plot(best[0] / 1000, 100 - best[1], color="#999999", linewidth=5, alpha=0.5, zorder=1)
        for name, (color, mark) in zip(names, _LOOKS, strict=False):
            if name in found:
                _curve(axes, found[name], NAMES[name], color, mark, hollow="by seed" in name)
        if "float32" in found and "float32" not in names:
            _curve(axes, found["float32"], "float32", "#000000", "", hollow=True)
        axes.plot([], [], color="#999999", linewidth=5, alpha=0.5, label="Pareto line of all files")
        _scales(axes, title)
    held_out = next(row.held_out for row in rows if isinstance(row, Measured))
    for axes in panels[1]:
        axes.set_xlabel("file, kB")
    for axes in panels[:, 0]:
        axes.set_ylabel(f"accuracy, % of {held_out:,} test images, mean and 95 % interval")
    figure.suptitle(study.title.format(label="ConvMixer"))
    return figure


def _curve(
    axes: Axes, curve: Sequence[Place], label: str, color: str, mark: str, *, hollow: bool
) -> None:
    """Errors are drawn, on a logarithmic axis, and the axis says what they leave of 100."""
    each = [[*place.accuracies.values()] for place in curve]
    middles = [100 - fmean(values) for values in each]
    errors = [interval(values) or 0.0 for values in each]
    low = [min(error, 0.9 * middle) for error, middle in zip(errors, middles, strict=True)]
    axes.errorbar(
        [place.bytes / 1000 for place in curve],
        middles,
        [low, errors],
        color=color,
        marker=mark,
        markerfacecolor="white" if hollow else color,
        linestyle="--" if hollow else "-",
        linewidth=1,
        elinewidth=0.7,
        capsize=2,
        label=label,
    )


def _scales(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(85, 1.5)
    ticks = [98, 97, 96, 95, 92, 90, 85, 80, 70, 60, 50, 40, 20]
    axes.yaxis.set_major_locator(FixedLocator([100 - tick for tick in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50, 100]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.tick_params(labelbottom=True, labelleft=True)
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize="medium")
    axes.legend(loc="lower right", fontsize="x-small")


PAGE = "byte-frontier.md"


def read_rows(ledger: Path, say: Callable[[str], None]) -> dict[str, list[Row]]:
    """Name of each study of the byte frontier with rows -> those that count.

    Raises:
        OSError: if the ledger cannot be read.
    """
    rows = {study.name: read(ledger, study.name, say) for study in (*STUDIES, FRONTIER_RATES)}
    return {name: of_study for name, of_study in rows.items() if of_study}


def draw_figures(rows: Mapping[str, Sequence[Row]], out: Path) -> list[Path]:
    """Draw the figures of all studies into the folder ``out``; the files written.

    Raises:
        OSError: if ``out`` cannot be written.
    """
    measured = [study for study in STUDIES if curves(study.cells, rows.get(study.name, []))]
    return [path for study in measured for path in _figure(study, rows[study.name], out)]


def _figure(study: Study, rows: Sequence[Row], out: Path) -> list[Path]:
    return save(draw(study, rows), out / f"{study.name}{study.suffix}")


def make_page(ledger: Path, rows: Mapping[str, Sequence[Row]]) -> str:
    """The text of the page, as Markdown; "" where nothing is measured.

    A file ``STUDY.md`` in the ledger is put before that study's table.
    """
    parts = []
    for study in STUDIES:
        note = ledger / f"{study.name}.md"
        if of_study := rows.get(study.name):
            if note.exists():
                parts.append(note.read_text(encoding="utf-8").strip())
            if curves(study.cells, of_study):
                title = study.title.format(label="ConvMixer")
                parts.append(f"[![{title}]({study.name}.png)]({study.name}.svg)")
            parts.append(markdown(make_table(study, of_study)))
    if trials := rows.get(FRONTIER_RATES.name):
        parts.append(markdown(make_rates(FRONTIER_RATES, trials)))
    return "\n\n".join(parts)


def show_finished(
    console: Console, study: Study, asked: Sequence[Row], rows: Sequence[Row], out: Path
) -> None:
    """Print the table of what was ``asked`` for, and draw the figure of all ``rows`` into ``out``.

    Raises:
        OSError: if ``out`` cannot be written.
    """
    show(console, study, asked)
    for whole in STUDIES:
        if whole.name == study.name and curves(study.cells, asked):
            epochs = study.cells[0].recipe.epochs
            whole = whole.shortened(epochs) if study.suffix else whole
            for path in _figure(whole, rows, out):
                console.print(f"figure: {path}")


def show(console: Console, study: Study, rows: Sequence[Row]) -> None:
    """Print the table of a study of the byte frontier."""
    rates = study.name == FRONTIER_RATES.name
    table = make_rates(study, rows) if rates else make_table(study, rows)
    shown = new_table(title=table.title, caption="\n".join(table.notes))
    for column in table.columns:
        shown.add_column(column)
    for line in table.lines:
        shown.add_row(*line)
    console.print(shown, soft_wrap=False)
