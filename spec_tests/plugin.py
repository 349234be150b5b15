"""Options and report of the suite: ``--impl``, ``--class``, ``--clause``, ``--known``, and so on.

A module of its own, since from outside of a checkout pytest does not know the options of a
conftest: ``python -m spec_tests run`` names it to pytest.
"""

import importlib
import io
import json
import os
import re
import signal
import traceback
from collections.abc import Generator
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from pemn_ref.atomic import write
from spec_tests.clauses import CLASSES, EXAMPLES, SPECIFICATION, NotEnded, all_clauses
from spec_tests.learning import step_of, summary
from spec_tests.subject import MissingName, name_of, subject

Rows = dict[str, dict[str, Any]]
ROWS = pytest.StashKey[Rows]()
KNOWN = pytest.StashKey[dict[str, str]]()
NOISE = pytest.StashKey[str]()
NOT_RUN = {"status": "not run", "examples": 0, "skipped": [], "failed": [], "failing": None}
SECONDS = 300
"""For a test of 50 examples; the slowest takes 20 s on two busy cores."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("pemn", "clauses of the PEMN specification")
    group.addoption(
        "--impl", metavar="MODULE", help="the implementation to judge (default: pemn_ref)"
    )
    group.addoption(
        "--clause", metavar="IDS", help="run these clauses only: ids or patterns, as in F2,M*"
    )
    group.addoption("--class", choices=CLASSES, help="run the clauses of this class only")
    group.addoption(
        "--known",
        metavar="FILE",
        type=Path,
        help="failures of the implementation that are known: a line each, as in 'W1: no attention'",
    )
    group.addoption(
        "--clause-report", metavar="FILE", type=Path, help="write the clause report as JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything runs."""
    config.addinivalue_line("markers", "clause(id): the clause of the specification that is stated")
    config.stash[ROWS] = {}
    report = config.getoption("clause_report")
    if report is not None:
        folder = report.absolute().parent
        if (report.exists() and not report.is_file()) or not folder.is_dir():
            raise pytest.UsageError(f"the report {report} must be a file in a folder that is there")
        if not os.access(folder, os.W_OK):
            raise pytest.UsageError(f"the report {report} cannot be written: {folder} is read-only")
    module = config.getoption("impl")
    if module is not None:
        subject.implementation, config.stash[NOISE] = _imported(module)
        if _learning():
            config.option.maxfail = config.option.maxfail or 1
    for pattern in _patterns(config):
        if not any(fnmatchcase(identifier, pattern) for identifier in all_clauses()):
            raise pytest.UsageError(f"--clause: there is no clause {pattern}")
    config.stash[KNOWN] = _known_failures(config.getoption("known"))
    # Not when the session starts: `pytest --pyargs` may load this only as it collects.
    config.pluginmanager.register(_Collector(config), "pemn-clauses")


def _learning() -> bool:
    """Whether it is judged as one that is being written: up to the first clause that fails."""
    return vars(subject.implementation).get("learning") is True


def _imported(module: str) -> tuple[Any, str]:
    """The implementation, and what its module printed; whatever else it does when imported."""
    noise = io.StringIO()
    try:
        with redirect_stdout(noise):
            implementation = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit, and pytest's own for a skip
        raise pytest.UsageError(
            f"--impl: cannot import {module} (a module's name, no path, no .py): {error!r}"
        ) from error
    try:
        device: Any = torch.empty(0).device.type
    except Exception as error:  # it is not there
        device = repr(error)
    if device != "cpu":
        torch.set_default_device(None)
        raise pytest.UsageError(
            f"--impl: {module} changes torch's default device, which must stay the CPU: {device}"
        )
    return implementation, "" if noise.closed else noise.getvalue()


def _known_failures(path: Path | None) -> dict[str, str]:
    """Clause -> reason; empty lines and comments are passed over."""
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors add the mark
    except (OSError, UnicodeDecodeError) as error:
        raise pytest.UsageError(f"--known: {error}") from error
    known = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            identifier, _, reason = (part.strip() for part in line.partition(":"))
            if identifier not in all_clauses():
                raise pytest.UsageError(f"{path}:{number}: there is no clause {identifier!r}")
            if not reason:
                raise pytest.UsageError(f"{path}:{number}: {identifier} needs a reason after a ':'")
            if identifier in known:
                raise pytest.UsageError(f"{path}:{number}: {identifier} is listed twice")
            known[identifier] = reason
    return known


def _patterns(config: pytest.Config) -> list[str]:
    return [p.strip() for p in (config.getoption("clause") or "").split(",") if p.strip()]


def _clause_of(item: pytest.Item) -> str | None:
    marker = item.get_closest_marker("clause")
    return None if marker is None else str(marker.args[0])


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name what is judged, and by what."""
    judging = f"judging: {name_of(subject.implementation)}, by specification {SPECIFICATION}"
    noise = config.stash.get(NOISE, "")
    return [judging, *([f"it printed when imported: {noise!r:.60}"] if noise else [])]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave only the clauses asked for, of another implementation only clauses; mark the known.

    Each has its time, unless pytest-timeout is told another, or is not there.
    """
    patterns, claimed = _patterns(config), config.getoption("class")
    if patterns or claimed or config.getoption("impl"):
        asked = {
            identifier
            for identifier, c in all_clauses().items()
            if any(fnmatchcase(identifier, p) for p in patterns or ["*"])
            and claimed in (None, c.claim)
            and (step_of(identifier) is not None or not _learning())
        }
        if not asked and _learning():
            raise pytest.UsageError("a module with `learning = True` has no such clause: remove it")
        config.hook.pytest_deselected(items=[i for i in items if _clause_of(i) not in asked])
        items[:] = [item for item in items if _clause_of(item) in asked]
    if _learning():
        order = sorted(all_clauses(), key=lambda identifier: step_of(identifier) or 0)
        items.sort(key=lambda item: order.index(_clause_of(item) or ""))
    profile = settings.default
    assert profile is not None
    seconds = SECONDS * max(1, profile.max_examples // 50)
    timed = config.pluginmanager.hasplugin("timeout") and config.getoption("timeout") is None
    for item in items:
        if timed and _clause_of(item):
            item.add_marker(pytest.mark.timeout(seconds))
        identifier = _clause_of(item)
        if identifier in config.stash[KNOWN]:  # not strict: other cases of the clause may pass
            reason = config.stash[KNOWN][identifier]
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(settings: Any) -> Generator[None, Any, Any]:
    """Let the alarm of pytest-timeout go off again and again.

    Where it comes between two examples, Hypothesis takes it for a failure of the one before, and
    goes on to the one that does not end.
    """
    result = yield
    if settings.method == "signal":
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, settings.timeout)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach to the report of a clause's test how many examples it tried, and what failed."""
    identifier = _clause_of(item)
    if identifier is not None and call.when == "setup":
        EXAMPLES[identifier] = 0
    report = yield
    if identifier is not None:
        file, line, name = report.location
        report.location = file, line, f"{identifier}, {name}"  # the heading of a failure
    outcome = "failed" if report.skipped and hasattr(report, "wasxfail") else report.outcome
    failing = None
    if call.excinfo is not None and outcome == "failed":
        failing = f"{item.name}\n{_said(call.excinfo.value)}"
        if isinstance(call.excinfo.value, MissingName | NotEnded):
            # Where it was missed, and with which example, or stopped, is of no interest.
            failing = report.longrepr = str(call.excinfo.value)
    skipped = None
    if call.excinfo is not None and outcome == "skipped":
        skipped = f"{item.name}: {call.excinfo.value}"
    if identifier is not None and (call.when == "call" or report.outcome != "passed"):
        tried = EXAMPLES[identifier] or int(call.when == "call")
        # User properties travel from the workers of pytest-xdist to the process that reports.
        said = [identifier, outcome, tried, item.name, failing, skipped]
        report.user_properties.append(("clause", said))
    return report


def _said(error: BaseException) -> str:
    """The error and, as notes, its example; of several errors the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return "".join(traceback.format_exception_only(error)).rstrip()


def _case(name: str, failing: str) -> str:
    """A failed test in a line: its name with its parameters, and Hypothesis's example."""
    if not failing.startswith(name):  # a name that is missing, or a test that does not end
        return failing
    # Newer versions of Hypothesis call it an example only where the test names it.
    example = re.search(r" (?:example|test case): \w+\(\n(.*?),\n\)", failing, re.DOTALL)
    return f"{name}: {' '.join(example[1].split())}" if example else name


class _Collector:
    """Gathers the reports, wherever they were made."""

    def __init__(self, config: pytest.Config) -> None:
        self.rows = config.stash[ROWS]
        self.known = config.stash[KNOWN]
        self.session: Any = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if str(report.when) == "???":  # xdist's, of a test whose process died
            self.died(report.nodeid)
        for name, value in report.user_properties:
            if name == "clause" and isinstance(value, list):
                identifier, outcome, examples, name, failing, skipped = value
                row = self.rows.setdefault(identifier, {**NOT_RUN, "status": "skipped"})
                if outcome == "skipped":
                    row["skipped"] = [*row["skipped"], skipped]
                    continue
                row["examples"] += examples
                if row["status"] == "skipped":
                    row["status"] = "passed"
                if outcome == "failed":
                    self.failed(identifier, _case(name, failing), failing)

    def failed(self, identifier: str, case: str, failing: str) -> None:
        """Note the case of a clause, and what to say of it."""
        row = self.rows.setdefault(identifier, {**NOT_RUN})
        row["status"] = "known" if identifier in self.known else "failed"
        row["failed"] = [*dict.fromkeys([*row["failed"], case])]
        row["failing"] = row["failing"] or failing

    def died(self, nodeid: str) -> None:
        """Note a clause whose test ended its process."""
        file, _, name = nodeid.partition("::")
        for identifier, c in all_clauses().items():
            test = c.test.__module__.rpartition(".")[2], c.test.__name__
            if test == (Path(file).stem, name.partition("[")[0]):
                died = f"{name}: its process died"
                self.failed(identifier, died, died)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.session = session
        if session.exitstatus == pytest.ExitCode.OK and self.passed_all_the_same():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def passed_all_the_same(self) -> list[str]:
        """Known failures that did not fail: the list is out of date, which is an error.

        Not where a case was skipped, since that may be the one that fails elsewhere.
        """
        rows = {c: self.rows.get(c, NOT_RUN) for c in self.known}
        return [c for c, row in rows.items() if row["status"] == "passed" and not row["skipped"]]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the report; print the clauses that did not pass, or with ``-v`` all that ran."""
    collector: Any = config.pluginmanager.get_plugin("pemn-clauses")
    name = name_of(subject.implementation)
    rows = [
        {
            "clause": identifier,
            "level": c.level,
            "class": c.claim,
            "text": c.text,
            **collector.rows.get(identifier, NOT_RUN),
            "known": collector.known.get(identifier),
        }
        for identifier, c in all_clauses().items()
    ]
    if ran := [row for row in rows if row["status"] != "not run"]:
        _show(terminalreporter, config, collector, ran)
    path = config.getoption("clause_report")
    if path is not None:
        content = {"implementation": name, "specification": SPECIFICATION, "clauses": rows}
        try:
            write(path, as_json(content))
        except OSError as error:  # such as a full disk; all else is said by now
            terminalreporter.write_line(f"error: the report is not written: {error}")
            collector.session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def _show(terminalreporter: Any, config: pytest.Config, collector: Any, ran: list[Any]) -> None:
    terminalreporter.section(f"clauses, {name_of(subject.implementation)}")
    for row in ran:
        if row["status"] != "passed" or row["skipped"] or config.get_verbosity() > 0:
            status = f"{row['level']:<6} {row['status']:<7} {row['examples']:>6}"
            terminalreporter.write_line(f"{row['clause']:<4} {status}  {row['text']}")
            for kind in ("failed", "skipped"):
                for case in row[kind]:
                    terminalreporter.write_line(f"     {kind}: {' '.join(case.split())}")
    for identifier in collector.passed_all_the_same():
        terminalreporter.write_line(
            f"error: {identifier} is listed as a known failure and passed: remove it from the list"
        )
    if _learning():
        for line in summary({r["clause"]: r["status"] for r in ran}):
            terminalreporter.write_line(line)
    statuses = ("passed", "failed", "known", "skipped")
    counts = [f"{sum(row['status'] == s for row in ran)} {s}" for s in statuses]
    terminalreporter.write_line(f"clauses: {', '.join(counts)}")


def as_json(content: Any) -> bytes:
    """Content of a file, a line a value."""
    return json.dumps(content, indent=1).encode()
