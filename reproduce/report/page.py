"""The page of a ledger: its tables and pictures, made anew from the rows."""

from collections.abc import Callable
from pathlib import Path

from reproduce.report import frontier
from reproduce.report.figures import PAPER_FIGURES, draw_figures, title
from reproduce.report.tables import legend, make_table, markdown
from reproduce.rows.ledger import groups_with, read
from reproduce.rows.row import Row
from reproduce.rows.shared import write
from reproduce.rows.summary import measured
from reproduce.study.cells import Group
from reproduce.study.studies import REPORTED, STUDIES

NAME = "README.md"
_MADE = "<!-- Made by python -m reproduce figures: what is changed here by hand is lost. -->"
_HOW = """\
# What was measured

Each line of `STUDY.jsonl` in this folder is a finished run: its configuration, accuracy epoch by
epoch, sizes, times, device, versions and commit. `python -m reproduce run --ledger FOLDER` adds
lines to that folder, `ledger merge` adds those of another machine, and `figures` makes this page
and its pictures from them."""


_FRONTIER = f"""\
[The byte frontier]({frontier.PAGE}) has its own page: accuracy against bytes of the file, for many
ways to spend about one bit per weight."""

_Studies = dict[str, tuple[list[Group], list[Row]]]


class PageError(Exception):
    """There is a page of that name which somebody else has written."""


def write_page(ledger: Path, out: Path, say: Callable[[str], None]) -> list[Path]:
    """Write the pages of a ledger and all its figures into the folder ``out``; the files written.

    Rows that do not count are said, and what is drawn; of a ledger without rows nothing is.

    Raises:
        PageError: if ``out`` has a page that this has not made.
        OSError: if the ledger cannot be read or ``out`` not be written.
    """
    path = out / NAME
    if path.exists() and not path.read_bytes().startswith(_MADE.encode()):
        raise PageError(f"{path} is not a page that figures has made: name another folder")
    studies = _studies(ledger, say)
    if not studies:
        return []
    paths = []
    for name, (groups, rows) in studies.items():
        say(f"drawing the figures of {name}")
        paths += draw_figures(groups, rows, out)
    write(path, _page(ledger, studies).encode())
    return [*paths, path, *frontier.write_page(ledger, out, say)]


def make_page(ledger: Path, say: Callable[[str], None]) -> str:
    """Its text, as Markdown.

    A file ``STUDY.md`` in the ledger is put before that study's tables, ``program.md`` at the end.

    Raises:
        OSError: if the ledger cannot be read.
    """
    return _page(ledger, _studies(ledger, say))


def _page(ledger: Path, studies: _Studies) -> str:
    smaller = {name: study for name, study in studies.items() if name != "paper"}
    everything = [group for groups, _ in studies.values() for group in groups]
    parts = [
        _MADE,
        _HOW,
        "In the tables:",
        "\n".join(f"- {line}" for line in legend(everything)),
    ]
    if "paper" in studies:
        groups, rows = studies["paper"]
        cells = STUDIES["paper"].cells
        plotted = len({value.cell for value in REPORTED})
        parts += [
            "## The paper",
            f"{len(measured(cells, rows))} of {len(cells)} cells measured. The paper plots"
            f" {plotted}; the others are our controls.",
            *(_picture(stem, title(values)) for stem, values in PAPER_FIGURES.items()),
            *_notes(ledger, "paper"),
            *(markdown(make_table(group, rows)) for group in groups),
        ]
    if smaller:
        parts += ["## Smaller studies", "None of these is a cell of the paper."]
    if any((ledger / f"{study.name}.jsonl").exists() for study in frontier.STUDIES):
        parts.append(_FRONTIER)
    for study, (groups, rows) in smaller.items():
        parts += _notes(ledger, study)
        for group in groups:
            parts.append(markdown(make_table(group, rows)))
            if measured(group.cells, rows):
                parts.append(_picture(group.stem, group.title))
    return "\n\n".join([*parts, *_notes(ledger, "program")]) + "\n"


def _notes(ledger: Path, study: str) -> list[str]:
    path = ledger / f"{study}.md"
    return [path.read_text(encoding="utf-8").strip()] if path.exists() else []


def _picture(stem: str, text: str) -> str:
    return f"[![{text}]({stem}.png)]({stem}.svg)"


def _studies(ledger: Path, say: Callable[[str], None]) -> _Studies:
    """Of each study the groups that have rows, and the rows; of the paper all groups.

    The paper is left out where there is neither a row of it nor its notes. (The byte frontier
    has a page of its own.)
    """
    studies = {}
    for study in STUDIES.values():
        if any(cell.family for cell in study.cells):
            continue
        rows = read(ledger, study.name, say)
        groups = groups_with(rows, study)
        if study.name == "paper" and (rows or _notes(ledger, "paper")):
            groups = study.groups()
        if groups:
            studies[study.name] = groups, rows
    return studies
