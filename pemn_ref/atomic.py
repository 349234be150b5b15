"""Writing a file so that no one ever sees half of it."""

import os
import secrets
import stat
from pathlib import Path


def write(path: str | os.PathLike[str], *pieces: bytes | bytearray | memoryview) -> None:
    """Write beside and rename: at every moment there is the old file or the whole new one.

    The pieces, bytes, are written one after the other. The new file has the permissions of the old
    one; where ``path`` is a symbolic link, its target is replaced. Ours, and used wherever a file
    is written.

    Raises:
        OSError: if the file cannot be written, or ``path`` is a folder, device or FIFO; what was
            there stays as it is.

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
        raise OSError(f"{target} is not a regular file: it is not replaced")
    # File systems hold names of 255 bytes, and a character has up to four.
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
