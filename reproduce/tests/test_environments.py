"""A short selection of the suite, and a table, in environments other than a developer's own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="installed without the checkout"
)
# All modules are collected; those run that read and write files and print.
SUITES = ("spec_tests", "reproduce/tests")
SELECTION = "(test_judge and not two_processes) or test_docstrings or test_tables"
Variables = dict[str, str | None]


def passes(
    root: Path, folder: Path, variables: Variables | None = None, prefix: Sequence[str] = ()
) -> str:
    """Run the selection of the checkout ``root`` in a folder; the table of the ledger there.

    A variable that is None is unset.
    """
    changed = {**os.environ, "PYTHONPATH": str(root), **(variables or {})}
    environment = {name: value for name, value in changed.items() if value is not None}
    printed = ""
    for command in (
        # Apart: tests of the experiments flush subnormal numbers, which the clauses draw.
        *(["pytest", "-q", "-k", SELECTION, str(root / suite)] for suite in SUITES),
        ["reproduce", "table", "--ledger", str(root / "reproduce" / "results")],
    ):
        done = subprocess.run(
            [*prefix, sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        printed = done.stdout
    return printed


def test_locale_that_is_not_utf8() -> None:
    variables: Variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    table = passes(ROOT, ROOT, {**variables, "PYTHONIOENCODING": None})
    assert "?" in table  # for the sign of plus or minus
    assert table.isascii()


def test_no_home() -> None:
    passes(ROOT, ROOT, {"HOME": None})


def test_narrow_dumb_terminal() -> None:
    table = passes(ROOT, ROOT, {"COLUMNS": "40", "TERM": "dumb", "NO_COLOR": "1"})
    assert "\x1b" not in table


def test_another_working_directory(tmp_path: Path) -> None:
    passes(ROOT, tmp_path)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A copy of the checkout that nobody may write, in a folder with a space and an accent."""
    copy = tmp_path / "lu à voix haute"
    for name in ("pemn_ref", "spec_tests", "reproduce"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, copy)
    everything = [copy, *copy.rglob("*")]
    for path in everything:
        path.chmod(path.stat().st_mode & ~0o222)
    yield copy
    for path in everything:
        path.chmod(path.stat().st_mode | 0o200)  # else pytest could not remove it


def test_read_only_copy(read_only: Path) -> None:
    prefix: list[str] = []
    if os.geteuid() == 0:  # root without its capabilities may do what any other user may
        if shutil.which("setpriv") is None:
            pytest.skip("root can write everywhere, and there is no setpriv to make it less")
        prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    ask = [*prefix, sys.executable, "-c", "import os; print(os.access('.', os.W_OK))"]
    said = subprocess.run(ask, cwd=read_only, capture_output=True, encoding="utf-8", check=False)
    if said.stdout.strip() != "False":
        pytest.skip(f"nothing can be made read-only here: {said.stdout}{said.stderr}")
    passes(read_only, read_only, prefix=prefix)
