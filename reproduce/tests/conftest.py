"""The command line, run in the process of the tests."""

import sys
from collections.abc import Callable
from pathlib import Path

# Before a device flushes subnormal numbers, as in the command itself: numpy 2.0 would warn of it.
import numpy.ma  # noqa: F401
import pytest

from reproduce.__main__ import main

Command = Callable[..., tuple[int, str, str]]


def exit_code(*arguments: str | Path) -> int:
    """Of ``python -m reproduce``, which prints for 80 columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "argv", ["reproduce", *map(str, arguments)])
        return main()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``python -m reproduce``: exit code, standard output, standard error."""
    return lambda *arguments: (exit_code(*arguments), *capsys.readouterr())
