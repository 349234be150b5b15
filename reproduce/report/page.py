"""The page of a ledger: its tables and pictures, made anew from the rows."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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


class PageError(Exception):
    """There is a page of that name which somebody else has written."""


class Contents(NamedTuple):
    """What a ledger has to show."""

    studies: dict[str, tuple[list[Group], list[Row]]]
    """Of each study the groups that have rows, and the rows; of the paper all groups."""
    frontier: dict[str, list[Row]]
    """The studies of the byte frontier, which have their own page."""


def write_pages(ledger: Path, out: Path, say: Callable[[str], None]) -> list[Path]:
    """Write the pages of a ledger and all its figures into the folder ``out``; the files written.

    Rows that do not count are said, and what is drawn; of a ledger without rows nothing is.

    Raises:
        PageError: if ``out`` has a page that this has not made.
        OSError: if the ledger cannot be read or ``out`` not be written.
    """
    contents = read_contents(ledger, say)
    pages = {out / name: text for name, text in make_pages(ledger, contents).items()}
    for path in pages:
        if path.exists() and not path.read_bytes().startswith(_MADE.encode()):
            raise PageError(f"{path} is not a page that figures has made: name another folder")
    paths = []
    for name, (groups, rows) in contents.studies.items():
        say(f"drawing the figures of {name}")
        paths += draw_figures(groups, rows, out)
    if contents.frontier:
        say("drawing the figures of the byte frontier")
        paths += frontier.draw_figures(contents.frontier, out)
    for path, text in pages.items():
        write(path, text.encode())
    return [*paths, *pages]


def make_pages(ledger: Path, contents: Contents) -> dict[str, str]:
    """The pages by name, as Markdown; only those that have something to show.

    A file ``STUDY.md`` in the ledger is put before that study's tables, ``program.md`` at the end.

    Raises:
        OSError: if such a file cannot be read.
    """
    pages = {
        NAME: _page(ledger, contents) if contents.studies else "",
        frontier.PAGE: frontier.make_page(ledger, contents.frontier),
    }
    return {name: f"{_MADE}\n\n{text}\n" for name, text in pages.items() if text}


def _page(ledger: Path, contents: Contents) -> str:
    studies = contents.studies
    smaller = {name: study for name, study in studies.items() if name != "paper"}
    everything = [group for groups, _ in studies.values() for group in groups]
    parts = [_HOW, "In the tables:", "\n".join(f"- {line}" for line in legend(everything))]
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
    if contents.frontier:
        parts.append(_FRONTIER)
    for study, (groups, rows) in smaller.items():
        parts += _notes(ledger, study)
        for group in groups:
            parts.append(markdown(make_table(group, rows)))
            if measured(group.cells, rows):
                parts.append(_picture(group.stem, group.title))
    return "\n\n".join([*parts, *_notes(ledger, "program")])


def _notes(ledger: Path, study: str) -> list[str]:
    path = ledger / f"{study}.md"
    return [path.read_text(encoding="utf-8").strip()] if path.exists() else []


def _picture(stem: str, text: str) -> str:
    return f"[![{text}]({stem}.png)]({stem}.svg)"


def read_contents(ledger: Path, say: Callable[[str], None]) -> Contents:
    """Read all rows that count; what does not count is said.

    The paper is left out where there is neither a row of it nor its notes.

    Raises:
        OSError: if the ledger cannot be read.
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
    return Contents(studies, frontier.read_rows(ledger, say))
