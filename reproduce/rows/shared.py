"""Files that several processes write: their locks, and cleaning up after killed processes."""

from glob import escape
from pathlib import Path

from filelock import FileLock

from pemn_ref import atomic


def lock(path: Path) -> FileLock:
    """The lock to hold while reading or writing ``path``, if other processes write to it."""
    folder = path.parent / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{path.stem}.lock")


def sweep(path: Path) -> None:
    """Remove what ``atomic.write`` left beside ``path`` when its process was killed.

    The caller must hold the lock under which ``path`` is written.
    """
    for part in path.parent.glob(f"{escape(path.name[:60])}.{'[0-9a-f]' * 8}.part"):
        part.unlink()


def write(path: Path, content: bytes) -> None:
    """Write a picture or page: ``sweep``, then ``atomic.write``, one file of a folder at a time.

    Raises:
        OSError: if it cannot be written. The old file is then still there.
    """
    with lock(path.with_name("figures")):
        sweep(path)
        atomic.write(path, content)
