"""What can be imported where little is installed."""

import subprocess
import sys

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
