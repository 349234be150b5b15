"""Options and report of the suite: ``--clause``, ``--clause-report``.

A module of its own, since pytest does not know the options of a conftest when the suite is named
by ``--pyargs``: from outside of a checkout, ``pytest -p spec_tests.plugin --pyargs spec_tests``.
"""

import json
import os
import tempfile
from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from spec_tests.clauses import CLAUSES, EXAMPLES, all_clauses
from spec_tests.subject import pemn

Rows = dict[str, dict[str, Any]]
ROWS = pytest.StashKey[Rows]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("pemn", "clauses of the PEMN specification")
    group.addoption(
        "--clause", metavar="IDS", help="run these clauses only: ids or patterns, as in F2,M*"
    )
    group.addoption(
        "--clause-report", metavar="FILE", type=Path, help="write the clause report as JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything runs."""
    config.addinivalue_line("markers", "clause(id): the clause of the specification that is stated")
    config.stash[ROWS] = {}
    report = config.getoption("clause_report")
    if report is not None and not report.absolute().parent.is_dir():
        raise pytest.UsageError(f"--clause-report: {report.absolute().parent} is not a folder")
    for pattern in _patterns(config):
        if not any(fnmatchcase(identifier, pattern) for identifier in all_clauses()):
            raise pytest.UsageError(
                f"--clause: {pattern} is no clause; see the table of a full run"
            )


def _patterns(config: pytest.Config) -> list[str]:
    return [p.strip() for p in (config.getoption("clause") or "").split(",") if p.strip()]


def _clause_of(item: pytest.Item) -> str | None:
    marker = item.get_closest_marker("clause")
    return None if marker is None else str(marker.args[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave only the clauses asked for."""
    patterns = _patterns(config)
    if patterns:
        chosen = [i for i in items if any(fnmatchcase(_clause_of(i) or "", p) for p in patterns)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach to the report of a clause's test how many examples it tried, and what failed."""
    identifier = _clause_of(item)
    if identifier is not None and call.when == "setup":
        EXAMPLES[identifier] = 0
    report = yield
    if identifier is not None and (call.when == "call" or report.outcome != "passed"):
        tried = EXAMPLES[identifier] or int(call.when == "call")
        failing = None
        if report.failed and call.excinfo is not None:
            notes = getattr(call.excinfo.value, "__notes__", [])
            failing = "\n".join([item.name, call.excinfo.exconly(), *notes])
        # User properties travel from the workers of pytest-xdist to the process that reports.
        report.user_properties.append(("clause", [identifier, report.outcome, tried, failing]))
    return report


class _Collector:
    """Gathers the reports, wherever they were made."""

    def __init__(self, config: pytest.Config) -> None:
        self.rows = config.stash[ROWS]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "clause" and isinstance(value, list):
                identifier, outcome, examples, failing = value
                if outcome == "skipped":
                    continue
                row = self.rows.setdefault(
                    identifier, {"status": "passed", "examples": 0, "failing": None}
                )
                row["examples"] += examples
                if outcome == "failed":
                    row.update(status="failed", failing=row["failing"] or failing)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start to gather."""
    session.config.pluginmanager.register(_Collector(session.config), "pemn-clauses")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of clauses, and write it where ``--clause-report`` says."""
    seen = config.stash[ROWS]
    if not CLAUSES and not seen:
        return
    not_run = {"status": "not run", "examples": 0, "failing": None}
    rows = [
        {"clause": name, "level": c.level, "text": c.text, **seen.get(name, not_run)}
        for name, c in all_clauses().items()
    ]
    terminalreporter.section("clauses")
    for row in rows:
        status = f"{row['level']:<6} {row['status']:<7} {row['examples']:>6}"
        terminalreporter.write_line(f"{row['clause']:<4} {status}  {row['text']}")
    counts = [f"{sum(r['status'] == s for r in rows)} {s}" for s in ("passed", "failed", "not run")]
    terminalreporter.write_line(f"{len(rows)} clauses: {', '.join(counts)}")
    path = config.getoption("clause_report")
    if path is not None:
        implementation = pemn.implementation
        write_whole(
            path,
            {
                "implementation": implementation.__name__,
                "version": getattr(implementation, "__version__", None),
                "clauses": rows,
            },
        )


def write_whole(path: Path, content: Any) -> None:
    """Write JSON beside the file, then rename: a reader never sees half of it."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.absolute().parent, prefix=path.name, delete=False
    ) as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
