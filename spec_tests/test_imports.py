"""How small the reference is: in lines, and in what must be installed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pemn_ref


@pytest.mark.parametrize(
    ("missing", "imported"),
    [
        (["torchvision", "numpy", "safetensors", "typer", "rich", "matplotlib"], "pemn_ref"),
        (["torchvision", "typer", "rich", "matplotlib", "reproduce"], "spec_tests.test_gallery"),
    ],
    ids=["the reference needs torch alone", "the suite needs no torchvision"],
)
def test_imports(missing: list[str], imported: str) -> None:
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}));"
        f"import {imported}; assert not {{*{missing}}} & {{n for n, m in sys.modules.items() if m}}"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=100)


def lines_of_code(path: Path) -> int:
    """Those that are not empty, comments or texts."""
    source = path.read_text(encoding="utf-8")
    texts = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    lines = enumerate(map(str.strip, source.splitlines()), start=1)
    return sum(bool(line) and line[0] != "#" and number not in texts for number, line in lines)


def test_the_reference_is_under_300_lines_of_code() -> None:
    modules = [path for path in Path(pemn_ref.__file__).parent.glob("*.py") if path.stem != "file"]
    assert 200 < sum(map(lines_of_code, modules)) < 300
