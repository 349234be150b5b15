"""Which code trains: its commit, and the versions of Python and the libraries."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import pemn_ref as pemn
from reproduce.rows.row import Program, Versions


def _commit() -> str | None:
    """The commit of this checkout, with ``-dirty`` if it has changes; None if it is installed."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


PROGRAM = Program(
    commit=_commit(),
    versions=Versions(
        python=platform.python_version(),
        torch=str(torch.__version__),
        torchvision=version("torchvision"),
        pemn_ref=pemn.__version__,
    ),
)
"""The code as it was loaded, even if the checkout has changed when a run ends."""
