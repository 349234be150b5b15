"""Where to find the datasets that do not ship with the package."""

import os
from pathlib import Path


class MissingDataError(Exception):
    """A dataset is missing, incomplete or damaged; the message, one line, says what would help."""


def data_root(argument: Path | None = None) -> Path:
    """``argument`` if given, else the folder in ``PEMN_DATA``, else one in the user's cache."""
    if argument is not None:
        return argument
    if named := os.environ.get("PEMN_DATA"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pemn_ref"
