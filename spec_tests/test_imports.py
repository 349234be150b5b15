"""How small the reference is: in lines, and in what must be installed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


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


def test_the_reference_is_under_330_lines_of_code() -> None:
    """The algorithm is: all that ``import pemn_ref`` imports. Files are stored by other modules."""
    program = (
        "import sys, pemn_ref\n"
        "for name, module in sys.modules.items():\n"
        "    if name.startswith('pemn_ref'): print(module.__file__)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, timeout=100, check=True, encoding="utf-8")
    modules = [Path(line) for line in done.stdout.splitlines()]
    assert {"masks", "state"} <= {path.stem for path in modules}
    assert 200 < sum(map(lines_of_code, modules)) < 330
