"""The judge itself: options, known failures, reports, and what is generated in the README."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spec_tests.__main__ import main
from spec_tests.clauses import SPECIFICATION, all_clauses
from spec_tests.models import CASES, Unable
from spec_tests.mutation import NO_REASON, change_of, reasons, summary
from spec_tests.subject import judging, subject

pytest_plugins = "pytester"

SUITE = Path(__file__).parent
all_clauses()  # pytester forgets what is imported after it, but the register does not
PLUGINS = ("-p", "spec_tests.plugin", "-p", "no:randomly")  # outside of a checkout no file says so
WRONG = "__version__ = '0.1'\ndef kept(numel, density): return numel\n"


@pytest.fixture
def judge(pytester: pytest.Pytester) -> Any:
    """Runs the clauses M on a module that has one function, wrong, and nothing else."""
    pytester.makepyfile(half=WRONG)
    pytester.syspathinsert()

    def run(*options: str) -> pytest.RunResult:
        options = (*PLUGINS, "--impl=half", *options)
        with judging(subject.implementation):
            return pytester.runpytest_inprocess(*options, SUITE / "test_mask.py")

    return run


@pytest.mark.parametrize(
    ("options", "known", "message"),
    [
        (["--impl=absent"], "", "*cannot import absent*"),
        (["--clause=M1,Q*"], "", "*there is no clause Q[*]*"),
        (["--impl=leaves"], "", "*cannot import leaves *: SystemExit('no GPU here')"),
        (["--impl=elsewhere"], "", "*elsewhere changes torch's default device, *: *"),
        (["--impl=./absent"], "", "*cannot import ./absent (a module's name, no path*"),
        (["--clause-report=absent/report.json"], "", "*absent/report.json must be a file in*"),
        (["--clause-report=."], "", "*the report . must be a file*"),
        (["--known=absent"], "", "*No such file*absent*"),
        (["--known=known"], "# none\n\nM0: reason", "*known:3: there is no clause 'M0'*"),
        (["--known=known"], "M1: ", "*known:1: M1 needs a reason*"),
        (["--known=known"], "M1", "*known:1: M1 needs a reason*"),
        (["--known=known"], "\ufeffM1: a\nM1: b", "*known:2: M1 is listed twice*"),
        (["--clause-report=/dev/null"], "", "*the report /dev/null must be a file*"),
        (["--impl=skips"], "", "*cannot import skips *: not here"),
        (["--impl=learns", "--clause=C1"], "", "*`learning = True` has no such clause*"),
    ],
)
def test_wrong_options(judge: Any, options: list[str], known: str, message: str) -> None:
    Path("known").write_text(known, encoding="utf-8")
    Path("leaves.py").write_text("raise SystemExit('no GPU here')", encoding="utf-8")
    skips = "import pytest\npytest.skip('not here', allow_module_level=True)"
    Path("skips.py").write_text(skips, encoding="utf-8")
    Path("learns.py").write_text("learning = True", encoding="utf-8")
    there = "import torch\ntorch.set_default_device('xla')"  # on no machine of ours
    Path("elsewhere.py").write_text(there, encoding="utf-8")
    result = judge(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_failures_and_report(judge: Any) -> None:
    result = judge("--clause=M1,M9", "--clause-report=report.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            f"judging: half 0.1, by specification {SPECIFICATION}",
            "*_ M1, test_*",
            "half 0.1 has no score_mask",
        ]
    )
    result.stdout.fnmatch_lines(
        [
            "M1 * failed *",
            "     failed: test_kept_count: drawn=(10, 0.9)",
            "M9 * failed *",
            "     failed: half 0.1 has no score_mask",
            "clauses: 0 passed, 2 failed, 0 known, 0 skipped",
        ]
    )
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert report["implementation"] == "half 0.1"
    assert report["specification"] == SPECIFICATION
    rows = {row["clause"]: row for row in report["clauses"]}
    assert rows["M1"]["status"] == "failed"
    assert rows["M1"]["failing"].count("drawn=(10, 0.9)") == 1  # the example
    assert rows["M9"]["failing"] == "half 0.1 has no score_mask"
    assert rows["M9"]["examples"] == 1  # no search for a smaller one: M9 would try 12
    assert rows["F1"]["status"] == "not run"


def test_failed_cases_are_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(none="def maskable_shapes(model): return {}")
    pytester.syspathinsert()
    options = (*PLUGINS, "--impl=none", "--class=torch", "--clause=P1,W1,C1")
    with judging(subject.implementation):
        result = pytester.runpytest_inprocess(*options, SUITE)
    result.stdout.fnmatch_lines(["W1 * failed *"])
    named = [line for line in result.outlines if line.startswith("     failed: ")]
    for line, case in zip(named, sorted(CASES), strict=True):
        start = f"     failed: test_maskable_weights[{case}]: case='{case}', context=Network( seed="
        assert line.startswith(start)
    assert "clauses: 0 passed, 1 failed, 0 known, 0 skipped" in result.outlines


def test_a_clause_that_does_not_end_is_named(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(
        endless="def kept(numel, density):\n    while numel > 50:\n        pass\n    return numel\n"
    )
    pytester.syspathinsert()
    options = (*PLUGINS, "--impl=endless", "--clause=M1", "--timeout=3")
    with judging(subject.implementation):
        result = pytester.runpytest_inprocess(*options, SUITE / "test_mask.py")
    result.stdout.fnmatch_lines(
        ["M1 * failed *", "     failed: M1 did not end *, with drawn=(10000, 0.07)"]
    )


def test_what_the_import_prints_is_a_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(loud="print('junk\\n' * 9, '\\ud800')")
    pytester.makepyfile(shut="import sys\nsys.stdout.close()")
    pytester.syspathinsert()
    for module, lines in (("loud", ["it printed when imported: 'junk*"]), ("shut", [])):
        options = (*PLUGINS, f"--impl={module}", "--clause=M1")
        with judging(subject.implementation):
            result = pytester.runpytest_inprocess(*options, SUITE / "test_mask.py")
        result.stdout.fnmatch_lines([f"judging: {module}, *", *lines, "clauses: 0 passed, 1 *"])
        result.stdout.no_fnmatch_line("junk*")


def test_known_failures(judge: Any) -> None:
    Path("known").write_text("# a comment\nM1: keeps all\n", encoding="utf-8")
    result = judge("--clause=M1", "--known=known", "--clause-report=report.json")
    assert result.ret == pytest.ExitCode.OK
    rows = {
        row["clause"]: row
        for row in json.loads(Path("report.json").read_text(encoding="utf-8"))["clauses"]
    }
    assert (rows["M1"]["status"], rows["M1"]["known"]) == ("known", "keeps all")
    assert "drawn=(10, 0.9)" in rows["M1"]["failing"]
    result.assert_outcomes(xfailed=1)
    assert judge("--clause=M1", "--known=known", "--runxfail").ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(("options", "shown"), [([], set()), (["-v"], {"M1", "M9"})])
def test_clauses_that_passed_are_printed_on_request(
    judge: Any, options: list[str], shown: set[str]
) -> None:
    result = judge("--impl=pemn_ref", "--clause=M1,M9", *options)
    assert {line[:2] for line in result.outlines if " MUST " in line} == shown
    assert "clauses: 2 passed, 0 failed, 0 known, 0 skipped" in result.outlines


def test_known_failure_that_passes(judge: Any) -> None:
    Path("known").write_text("M1: keeps all\n", encoding="utf-8")
    result = judge("--impl=pemn_ref", "--clause=M1", "--known=known")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["error: M1 is listed as a known failure and passed:*"])


def test_what_the_machine_cannot_do_is_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "attention", CASES["attention"]._replace(build=Unable))
    Path("known").write_text("G5: wrong in attention\n", encoding="utf-8")
    options = ["--clause=G5,X7,X11", "--known=known", "--clause-report=report.json"]
    files = [SUITE / "test_gradient.py", SUITE / "test_transforms.py"]
    result = pytester.runpytest_inprocess(*PLUGINS, *options, *files)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["G5 * passed *", "*skipped: *[[]attention]: the plain module cannot run * no kernel *"]
    )
    result.stdout.fnmatch_lines(["clauses: 2 passed, 0 failed, 0 known, 1 skipped"])
    text = Path("report.json").read_text(encoding="utf-8")
    rows = {row["clause"]: row for row in json.loads(text)["clauses"]}
    found = {name: (rows[name]["status"], len(rows[name]["skipped"])) for name in rows}
    assert {name: found[name] for name in ("G5", "X7", "X11", "M1")} == {
        "G5": ("passed", 1),
        "X7": ("passed", 1),
        "X11": ("skipped", 2),
        "M1": ("not run", 0),
    }
    assert text.count('"status": "skipped"') == 1  # what .ci/run looks for


def run_in(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a module in ``folder``, which finds the suite as if it were installed."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SUITE.parent), **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_by_pytest_where_it_is_installed(tmp_path: Path) -> None:
    result = run_in(tmp_path, "pytest", "--pyargs", "spec_tests.test_mask", "-k", "kept_count")
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr
    assert "clauses: 1 passed, 0 failed, 0 known, 0 skipped\n" in result.stdout


def test_from_another_folder_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(WRONG, encoding="utf-8")
    (tmp_path / "known").write_text("M1: keeps all\nM9: no masks\n", encoding="utf-8")
    options = ["--impl=half", "--clause=M1,M9", "--known=known", "--report=report.json"]
    result = run_in(tmp_path, "spec_tests", "run", *options, "--", "-n2", "-prandomly")
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr
    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["clauses"]
    assert [row["clause"] for row in rows if row["status"] == "known"] == ["M1", "M9"]


def test_settings_of_another_project_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(WRONG, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --nonsense\n", encoding="utf-8")
    shutil.copytree(SUITE, tmp_path / "spec_tests", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(SUITE.parent)))}
    result = run_in(tmp_path, "spec_tests", "run", "--impl=half", "--clause=M7", **environment)
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout + result.stderr
    assert "clauses: 0 passed, 1 failed, 0 known, 0 skipped\n" in result.stdout


def test_process_that_dies_is_a_failure_of_its_clause(tmp_path: Path) -> None:
    dies = "import os, signal\ndef kept(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "dies.py").write_text(dies, encoding="utf-8")
    options = ["--impl=dies", "--clause=M1", "--report=report.json"]
    result = run_in(tmp_path, "spec_tests", "run", *options, "--", "-n1")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED
    assert "failed: test_kept_count: its process died\n" in result.stdout
    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["clauses"]
    assert [row["clause"] for row in rows if row["status"] == "failed"] == ["M1"]


def test_module_that_prints_draws_the_same_in_another_process(tmp_path: Path) -> None:
    prints = "import atexit\nprint('loading', end='')\natexit.register(print, 'bye')\n"
    (tmp_path / "loud.py").write_text(f"{prints}from pemn_ref import *\n", encoding="utf-8")
    result = run_in(tmp_path, "spec_tests", "run", "--impl=loud", "--clause=P14")
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr


def test_report_that_cannot_be_written_costs_no_result(
    judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spec_tests.plugin.write", full)
    result = judge("--clause=M1", "--clause-report=report.json")
    result.stdout.fnmatch_lines(["clauses: 0 passed, 1 *", "error: the report is not written: *"])
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR


def test_skeleton_is_written_where_run_finds_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    result = run_in(tmp_path, "spec_tests", "start", "sub/mine.py")
    assert result.returncode == 2
    assert result.stderr == "error: run finds modules of this folder: start mine.py\n"
    assert not [*(tmp_path / "sub").iterdir()]


def test_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = {"clause": "M1", "status": "passed", "examples": 50, "known": None}
    known = {**passed, "status": "known", "known": "keeps | all"}
    for name, row, version in (("a", passed, SPECIFICATION), ("b", known, "1.0")):
        report = {"implementation": name, "specification": version, "clauses": [row]}
        (tmp_path / name).write_text(json.dumps(report), encoding="utf-8")
    for name, text in (("c", "[]"), ("d", "[" * 10**5), ("e", '{"implementation":"e"}')):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["spec_tests", "compare", "a", "b"])
    assert main() == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert said.err.startswith(f"b was judged by specification 1.0, not {SPECIFICATION}")
    assert said.err.count("\n") == 1
    assert lines[:2] == ["| clause | level | a | b | text |", "|---|---|---|---|---|"]
    (line,) = [line for line in lines if line.startswith("| M1 ")]
    assert line.startswith(
        "| M1 | MUST | passed (50) | known (50): keeps &#124; all | A layer keeps "
    )
    assert all(line.count("|") == 6 for line in lines)
    for name in "cde":
        monkeypatch.setattr("sys.argv", ["spec_tests", "compare", "a", name])
        assert main() == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert f"{name} is not a clause report" in said.err


def test_reasons_of_survivors_are_kept() -> None:
    shown = "# x: survived\n--- a\n+++ a\n@@ -1,2 +1,2 @@\n     same\n-    a = 1\n+    a = 2"
    change = change_of("pemn_ref.prototype.xǁStrategyǁ__post_init____mutmut_2", shown)
    assert change == " prototype.Strategy.__post_init__\n-    a = 1\n+    a = 2"
    other = change_of("pemn_ref.file.header.x__json__mutmut_10", shown)
    assert other.splitlines()[0] == " file.header._json"
    statuses = {"pemn_ref.file.bits.a": "survived", "pemn_ref.file.header.b": "killed"}
    page = summary("today", statuses, {"text": [change], NO_REASON: [other], "no longer": []})
    assert "| file | 1 | 2 | 50.0 |" in page
    assert reasons(page) == {change: "text", other: NO_REASON}
