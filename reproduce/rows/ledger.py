"""The ledger: the rows that are kept, one file a study, whichever machine has measured them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from reproduce.rows.row import Row, RowError, append_row, lock, parse_row, read_rows
from reproduce.study.cells import Study
from reproduce.study.studies import STUDIES


class _Line(NamedTuple):
    where: str
    row: Row | None
    problem: str
    """Why it does not count; "" where it does."""


def read(folder: Path, study: str, say: Callable[[str], None]) -> list[Row]:
    """The rows of a study that count: of its cells as they are now, each run once.

    What does not count is said, line by line. Nothing is written; no file is no rows.

    Raises:
        OSError: if the file cannot be read.
    """
    path = folder / f"{study}.jsonl"
    rows: dict[str, Row] = {}
    for where, row, problem in _lines(path, STUDIES[study]) if path.exists() else ():
        if row and row.run in rows:
            problem = "the run has a row above"
        if row is None or problem:
            say(f"{where} does not count: {problem}")
        else:
            rows[row.run] = row
    return [*rows.values()]


def merge(source: Path, folder: Path, say: Callable[[str], None]) -> bool:
    """Add the rows of ``source``, a file of a study or a folder of them, to those in ``folder``.

    Only rows that count, each run once: where two differ, the first is kept. What is not added is
    said, and stays in the source, which is not touched. Rows are added one after the other and no
    file is replaced: a ``run`` may write to the same ledger meanwhile, and a merge that was killed
    is repeated. True if the ledger holds all that is in the source then.

    Raises:
        FileNotFoundError: if there is no file of rows.
        DamagedRowsError, OSError: if a file of the ledger is damaged or cannot be written.
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
            known: dict[str, Row] = {}
            for row in read_rows(target, say):
                known.setdefault(row.run, row)
            for where, new, problem in _lines(file, STUDIES[file.stem]):
                if new and known.get(new.run) == new:
                    there += 1
                    continue
                if new and new.run in known:
                    problem = f"the ledger has another row of {new.run}, which is kept"
                if new is None or problem:
                    say(f"{where} is not added: {problem}")
                    refused += 1
                    continue
                append_row(target, new)
                known[new.run] = new
                added += 1
        say(f"{file}: {added} rows added, {there} there already, {refused} not added")
        complete = complete and not refused
    return complete


def _lines(path: Path, study: Study) -> Iterator[_Line]:
    cells = {cell.id: cell for cell in study.cells}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            row = parse_row(line)
        except RowError as error:
            yield _Line(where, None, f"{error}")
            continue
        problem = ""
        if row.cell not in cells:
            problem = f"{row.run} is of no cell of {study.name}: shortened, or of another version"
            if study.outdates(row.configuration):
                problem = f"{row.run} is stale: of an older recipe"
        elif row.configuration != cells[row.cell].configuration or row.run != cells[
            row.cell
        ].run_id(row.seed):
            problem = f"{row.run} has a configuration or a seed that is not that of its id"
        yield _Line(where, None if problem else row, problem)
