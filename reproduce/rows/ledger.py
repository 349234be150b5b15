"""The ledger: the rows that are kept, one file a study, whichever machine has measured them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from reproduce.rows.row import Line, Row, append_row, read_lines, read_rows
from reproduce.rows.shared import lock
from reproduce.study.cells import Group, Study
from reproduce.study.studies import STUDIES


def read(folder: Path, study: str, say: Callable[[str], None]) -> list[Row]:
    """The rows of a study that count: of its cells as they are now, each run once.

    What does not count is said, line by line. Nothing is written; no file is no rows.

    Raises:
        OSError: if the file cannot be read.
    """
    path = folder / f"{study}.jsonl"
    rows: dict[str, Row] = {}
    for where, row, problem in _lines(path, study) if path.exists() else ():
        if row is None:
            say(f"{where} does not count: {problem}")
        else:
            rows[row.run] = row
    return [*rows.values()]


def groups_with(rows: Sequence[Row], study: Study) -> list[Group]:
    """The groups of a study of which there is a row."""
    known = {row.cell for row in rows}
    return [g for g in study.groups() if not known.isdisjoint(cell.id for cell in g.cells)]


def merge(source: Path, folder: Path, say: Callable[[str], None]) -> bool:
    """Add the rows of ``source``, a file of a study or a folder of them, to those in ``folder``.

    Only rows that count, each run once: where two differ, the first is kept. What is not added is
    said, and stays in the source, which is not touched. Rows are added one after the other and no
    file is replaced: a ``run`` may write to the same ledger meanwhile, and a merge that was killed
    is repeated. True if the ledger holds all that is in the source then.

    Raises:
        FileNotFoundError: if there is no file of rows.
        OSError: if a file cannot be read, or one of the ledger not written.
    """
    files = [source] if source.is_file() else sorted(source.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{source} is neither a file of rows nor a folder of them")
    complete = True
    for file in files:
        if file.stem not in STUDIES:
            say(f"{file} is not added: its name must be that of a study, {', '.join(STUDIES)}")
            complete = False
            continue
        target = folder / file.name
        added = there = refused = 0
        with lock(target):
            known = {row.run: row for row in read_rows(target, say)}
            for where, row, problem in _lines(file, file.stem):
                if row and known.get(row.run, row) != row:
                    problem = f"the ledger has another row of {row.run}, which is kept"
                if row is None or problem:
                    say(f"{where} is not added: {problem}")
                    refused += 1
                elif row.run in known:
                    there += 1
                else:
                    append_row(target, row)
                    known[row.run] = row
                    added += 1
        say(f"{file}: rows added: {added:,}, there already: {there:,}, not added: {refused:,}")
        complete = complete and not refused
    return complete


def _lines(path: Path, name: str) -> Iterator[Line]:
    """As ``read_lines``, but rows of cells that the study does not have are none."""
    study = STUDIES[name]
    cells = {cell.id for cell in study.cells}
    for line in read_lines(path):
        if line.row is None or line.row.cell in cells:
            yield line
        elif study.outdates(line.row.configuration):
            yield Line(line.where, None, f"{line.row.run} is stale: of an older recipe")
        else:
            yield Line(
                line.where,
                None,
                f"{line.row.run} is of no cell of {name}: shortened, or of another version",
            )
