"""Learning by writing: the skeleton, the order, and what is said to come next."""

from pathlib import Path

import pytest

from spec_tests.__main__ import main
from spec_tests.clauses import all_clauses
from spec_tests.contract import Implementation
from spec_tests.learning import LEFT_OUT, STEPS, skeleton, step_of, summary
from spec_tests.subject import judging, subject

pytest_plugins = "pytester"
SUITE = Path(__file__).parent


def test_start_writes_a_skeleton_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["spec_tests", "start", "my_pemn.py"])
    assert main() == 0
    assert capsys.readouterr().out.endswith("run --impl my_pemn\n")
    Path("my_pemn.py").write_text("mine = 1", encoding="utf-8")
    assert main() == 2
    assert capsys.readouterr().err == "error: my_pemn.py is not written: File exists\n"
    assert Path("my_pemn.py").read_text(encoding="utf-8") == "mine = 1"
    monkeypatch.setattr("sys.argv", ["spec_tests", "start", "my-pemn.py"])
    assert main() == 2
    assert not Path("my-pemn.py").exists()


def test_skeleton_has_the_names_of_the_contract() -> None:
    names: dict[str, object] = {}
    exec(skeleton("my_pemn"), names)
    contract = {name for name in vars(Implementation) if not name.startswith("_")}
    assert contract - {*LEFT_OUT} == names.keys() & contract
    with pytest.raises(NotImplementedError):
        names["kept"](1, 0.5)  # type: ignore[operator]
    assert names["kept"].__doc__ == Implementation.kept.__doc__
    assert names["State"]._fields == ("weights", "scores", "rest", "buffers")  # type: ignore[attr-defined]


def test_every_clause_but_files_and_errors_has_its_step() -> None:
    without = {name for name in all_clauses() if step_of(name) is None}
    assert without == {
        n for n, c in all_clauses().items() if c.claim in ("file", "errors", "extras")
    }


def test_first_step_that_fails_is_next() -> None:
    assert summary({"P1": "passed", "P2": "failed"}) == [
        f"green: lengths. To read: {STEPS[0].reading}",
        f"next: prototype: {STEPS[1].names}",
        "only this clause again: --clause P2",
    ]


def test_a_step_is_green_once_all_of_its_clauses_passed() -> None:
    every = {name: "passed" for name in all_clauses() if step_of(name) is not None}
    assert [line.partition(".")[0] for line in summary(every)] == [
        *(f"green: {step.name}" for step in STEPS),
        "All steps are green",
    ]
    assert summary({"G1": "passed", "G2": "passed"}) == []
    assert summary({**every, "P1": "known"})[0] != summary(every)[0]


def test_grades_up_to_the_first_failure(pytester: pytest.Pytester) -> None:
    right = "def prototype_length(n, r):\n    from pemn_ref import prototype_length\n"
    right += "    return prototype_length(n, r)\n"
    pytester.makepyfile(my_pemn=skeleton("my_pemn") + right)
    pytester.syspathinsert()
    options = ("-p", "spec_tests.plugin", "--impl=my_pemn")
    files = [SUITE / f"test_{part}.py" for part in ("fill", "prototype")]
    with judging(subject.implementation):
        result = pytester.runpytest_inprocess(*options, *files)
    assert result.ret == pytest.ExitCode.INTERRUPTED or result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "P2 * failed *",
            f"green: lengths. To read: {STEPS[0].reading}",
            f"next: prototype: {STEPS[1].names}",
            "only this clause again: --clause P2",
            "clauses: 1 passed, 1 failed, 0 known, 0 skipped",
        ]
    )


def test_the_solution_is_under_eighty_lines() -> None:
    """Code, that is: without comments, docstrings and empty lines. ``.ci/run`` judges it."""
    import spec_tests.examples.eighty_lines as solution

    text = Path(solution.__file__).read_text(encoding="utf-8")
    _, *code = text.split('"""')[::2]
    lines = [line for part in code for line in part.splitlines()]
    assert sum(bool(line.strip()) for line in lines) < 80
