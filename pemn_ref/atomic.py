"""Writing a file so that nobody ever sees half of it."""

import os
import secrets
import stat
from pathlib import Path


def write(path: str | os.PathLike[str], *pieces: bytes | bytearray | memoryview) -> None:
    """Write beside, then rename: at any moment the old file or the whole new one is there (ours).

    The pieces are written one after the other. The new file keeps the permissions of the old one;
    if ``path`` is a symbolic link, its target is replaced.

    Raises:
        OSError: if the file cannot be written, or ``path`` is a folder, device or FIFO. The old
            file is then untouched.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> write(path, b"old")
    >>> write(path, b"whole ", b"and new")
    >>> path.read_bytes()
    b'whole and new'
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(f"{target} is not a regular file, so it is not replaced")
    # File names are limited to 255 bytes, and a character takes up to four.
    beside = target.with_name(f"{target.name[:60]}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            if mode is not None:
                beside.chmod(stat.S_IMODE(mode))
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
