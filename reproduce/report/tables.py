"""Tables of what was measured, for the terminal and as Markdown."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from rich.console import Console

from reproduce.report.console import duration, in_markdown
from reproduce.report.console import table as new_table
from reproduce.rows.row import Failed, Row, Storage
from reproduce.rows.summary import Summary, images_error, interval, mean, summarise
from reproduce.study.cells import Group
from reproduce.study.studies import REPORTED
from reproduce.training.files import size_of

_ACCURACY = {value.cell: value.accuracy for value in REPORTED}
_PLOTTED = {value.cell: value.compression for value in REPORTED if value.compression is not None}

_LEGEND = (
    "last: the result, accuracy in % of the held-out images after the last epoch, mean over n"
    " seeds; n 2/3: one of three seeds failed; n 0: not measured yet",
    "95 %: half the width of the 95 % interval of that mean, by Student's t over the seeds; one"
    " seed has none",
    "best: mean of each seed's best epoch on the same images; not a result, only for comparison",
    "saved, paper: by how many % the maskable weights shrink, at 1 bit per weight and 32 per unique"
    " value; saved, whole: the same for the whole model, with normalisation, biases, tokens and"
    " buffers at full size",
    "bytes: size of the file of one network, header included; a dense or pruned network has an"
    " ordinary file, with its zeros",
    "unique, saved and bytes do not depend on training, so they are given for every network,"
    " trained or not",
    "control: mp with random masks; only what is not masked is trained",
)
_PAPER_LEGEND = (
    "paper's best: the value that the paper plots, apparently one run at its best test epoch",
    "best - paper's: in points; not shown below 100 columns",
    "saved, plot: the value in the paper's figure, one for each model; for a pruned network it is"
    " the share of weights removed, while our other two columns also count the bit per weight that"
    " says which are kept",
)


_DIFFERENCE = "best -\npaper's"


class Table(NamedTuple):
    """One line a cell, all of it text; a column's name may have a line break."""

    title: str
    columns: list[str]
    lines: list[list[str]]
    notes: list[str]


def make_table(group: Group, rows: Sequence[Row]) -> Table:
    """The cells of a group, measured or not; beside the paper's values where it has some.

    Rows of other cells are not counted.
    """
    cells = sorted(group.cells, key=lambda cell: cell.place)  # the canary in its place
    summaries = summarise(cells, rows)
    beside = any(cell in _ACCURACY for cell in group.cells)
    plotted = any(cell in _PLOTTED for cell in group.cells)
    lines = [_line(summary, beside, plotted) for summary in summaries]
    names = {cell.id: cell.name for cell in group.cells}
    mine = [row for row in rows if row.cell in names]
    return Table(
        group.title,
        [*lines[0]],
        [[*line.values()] for line in lines],
        _notes(summaries, mine, names),
    )


def sizes(summary: Summary) -> tuple[Storage, int]:
    """What a network of the cell costs, and the bytes of its file: of its row, or else counted."""
    counted, size = size_of(summary.cell)
    return summary.storage or Storage(**counted._asdict()), summary.bytes or size


def _line(summary: Summary, beside: bool, plotted: bool) -> dict[str, str]:
    """Column -> text; ``beside`` the paper's accuracies or not, and what it ``plotted``."""
    cell, last, best, failed, *_ = summary
    size, on_disk = sizes(summary)
    paper = _ACCURACY.get(cell)
    average = mean(best)
    percent = ".2f" if beside else ".1f"

    def measured(value: float | None, form: str) -> str:
        return _text(value, form) if last else ""

    line = {"strategy": cell.name}
    if beside:
        line["paper's\nbest %"] = _text(paper, ".2f")
    line["n"] = f"{len(last)}/{len(last) + failed}" if failed else f"{len(last)}"
    line["last\n%"] = "failed" if failed and not last else measured(mean(last), percent)
    line["95 %\n±"] = measured(interval(last), percent)
    line["best\n%"] = measured(average, percent)
    if beside:
        difference = None if paper is None or average is None else average - paper
        line[_DIFFERENCE] = measured(difference, "+.2f")
    line["unique\nvalues"] = f"{size.unique:,}"
    if plotted:
        line["saved\nplot"] = _text(_PLOTTED.get(cell), ".2f")
    line["saved\npaper"] = f"{100 * size.paper:.2f}"
    line["saved\nwhole"] = f"{100 * size.whole:.2f}"
    line["bytes\non disk"] = f"{on_disk:,}"
    return line


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _notes(summaries: Sequence[Summary], rows: Sequence[Row], names: dict[str, str]) -> list[str]:
    """What a reader of these numbers must know beside them."""
    notes = []
    if done := [summary for summary in summaries if summary.last]:
        errors = sorted(images_error(fmean(s.last), s.held_out) for s in done)
        span = dict.fromkeys(f"{error:.1f}" for error in (errors[0], errors[-1]))
        notes.append(
            f"with {done[0].held_out:,} images held out the sampling error of an accuracy alone is"
            f" {' to '.join(span)} points (standard error); more seeds do not reduce it"
        )
    return notes + notes_of(rows, names)


def notes_of(rows: Sequence[Row], names: dict[str, str]) -> list[str]:
    """What failed or is to be mistrusted, by the names of the cells; on what the rows were trained.

    The cells of all rows have a name.
    """
    notes = []
    seconds: dict[str, list[float]] = {}
    for row in rows:
        which, trained = f"{names[row.cell]}, seed {row.seed}", 0.0
        if isinstance(row, Failed):
            notes.append(f"failed: {which}: {row.failed}")
        else:
            trained = row.seconds
            if row.warning:
                notes.append(f"warning: {which}: {row.warning}")
        hardware = row.hardware
        where = f"{hardware.name}, threads: {hardware.threads}, torch {row.versions.torch}"
        seconds.setdefault(where, []).append(trained)
    notes += [
        f"runs: {len(each)}; {duration(sum(each))} of training; on {where}"
        for where, each in seconds.items()
    ]
    return notes


def legend(groups: Sequence[Group]) -> list[str]:
    """What the columns of the tables of these groups mean."""
    beside = any(cell in _ACCURACY for group in groups for cell in group.cells)
    return [*_LEGEND, *(_PAPER_LEGEND if beside else ())]


def show(console: Console, groups: Sequence[Group], rows: Sequence[Row]) -> None:
    """Print the tables of the groups and what their columns mean, in a console 80 wide or more.

    In one less than 100 wide, where not all would fit, names of pruned networks have two lines, and
    what can be read off two columns beside each other has none.
    """
    console.width = max(console.width, 80)
    narrow = console.width < 100
    for group in groups:
        table = make_table(group, rows)
        shown = new_table(title=table.title, caption="\n".join(table.notes), padding=0)
        columns = [n for n, name in enumerate(table.columns) if not narrow or name != _DIFFERENCE]
        for n in columns:
            shown.add_column(table.columns[n], justify="right" if n else "left", no_wrap=True)
        for name, *rest in table.lines:
            line = [name.replace("prune_", "prune_\n") if narrow else name, *rest]
            shown.add_row(*(line[n] for n in columns))
        console.print(shown, soft_wrap=False)
    if groups:
        console.print("\n".join(legend(groups)), soft_wrap=False)


def markdown(table: Table) -> str:
    """The table under a heading, for a page."""
    heads = [column.replace("\n", " ") for column in table.columns]
    rules = ["---", *["---:"] * (len(heads) - 1)]
    lines = [f"| {' | '.join(line)} |" for line in (heads, rules, *table.lines)]
    notes = [f"\n{in_markdown(note)}." for note in table.notes]
    return "\n".join([f"### {table.title}", "", *lines, *notes])
