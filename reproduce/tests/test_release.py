"""The release: one version everywhere, and a wheel with all that it needs and nothing else."""

import re
import zipfile
from pathlib import Path

import pytest

import pemn_ref

ROOT = Path(__file__).parents[2]


def test_all_files_name_one_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## (\d+\.\d+\.\d+) \((.*)\)$", changes, flags=re.MULTILINE)[0]
    assert version == pemn_ref.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert {f"version: {version}", f"date-released: {date}"} <= {*citation}


def test_contents_of_the_wheel(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs the extra release")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    packages = [ROOT / name for name in ("pemn_ref", "spec_tests", "reproduce")]
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in package.rglob("*")
        if path.is_file() and not {"__pycache__", "tests", "locks"} & {*path.parts}
    }
    assert names == {name for name in expected if not name.endswith((".png", ".svg"))}
    assert Path(built).stat().st_size < 1_500_000
