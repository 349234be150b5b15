"""The ledger: the rows that are kept, one file a study, whichever machine has measured them."""

from collections.abc import Callable, Iterator
from pathlib import Path

from reproduce.rows.row import Row, append_row, lock, parse_row, read_rows
from reproduce.study.cells import Study
from reproduce.study.studies import STUDIES

_EVERY = {"cell", "seed", "configuration", "hardware", "versions"}
_RESULT = {"accuracy_last", "accuracy_best", "held_out", "storage"}


def read(folder: Path, study: str, say: Callable[[str], None]) -> list[Row]:
    """The rows of a study that count: of its cells as they are now, each run once.

    What does not count is said, line by line. Nothing is written; no file is no rows.

    Raises:
        OSError: if the file cannot be read.
    """
    path = folder / f"{study}.jsonl"
    rows: dict[str, Row] = {}
    for where, row, problem in _lines(path, STUDIES[study]) if path.exists() else ():
        if not problem and row["run"] in rows:
            problem = "the run has a row above"
        if problem:
            say(f"{where} does not count: {problem}")
        else:
            rows[row["run"]] = row
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
                known.setdefault(row["run"], row)
            for where, row, problem in _lines(file, STUDIES[file.stem]):
                if not problem and known.get(row["run"]) == row:
                    there += 1
                    continue
                if not problem and row["run"] in known:
                    problem = f"the ledger has another row of {row['run']}, which is kept"
                if problem:
                    say(f"{where} is not added: {problem}")
                    refused += 1
                    continue
                append_row(target, row)
                known[row["run"]] = row
                added += 1
        say(f"{file}: {added} rows added, {there} there already, {refused} not added")
        complete = complete and not refused
    return complete


def _lines(path: Path, study: Study) -> Iterator[tuple[str, Row, str]]:
    """Of each line: where it is, its row, and why that does not count; "" where it does."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        row = parse_row(line)
        problem = "it is damaged, or no row" if row is None else _problem(row, study)
        yield f"{path}, line {number}", row or {}, problem


def _problem(row: Row, study: Study) -> str:
    cells = {cell.id: cell for cell in study.cells}
    lacking = _EVERY.difference(row) if "failed" in row else (_EVERY | _RESULT).difference(row)
    if lacking:
        return f"{row['run']} lacks {', '.join(sorted(lacking))}"
    if row["cell"] not in cells:
        if study.outdates(row["configuration"]):
            return f"{row['run']} is stale: of an older recipe"
        return f"{row['run']} is of no cell of {study.name}: shortened, or of another version"
    cell = cells[row["cell"]]
    if row["configuration"] != cell.configuration or row["run"] != cell.run_id(row["seed"]):
        return f"{row['run']} has a configuration or a seed that is not that of its id"
    return ""
