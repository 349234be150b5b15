"""Files that several processes write: locks, and what is left of those that were killed."""

from glob import escape
from pathlib import Path

from filelock import FileLock

from pemn_ref import atomic


def lock(path: Path) -> FileLock:
    """To be held while a file is read or written that other processes write to."""
    folder = path.parent / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{path.stem}.lock")


def sweep(path: Path) -> None:
    """Remove what ``atomic.write`` left beside ``path`` where its process was killed.

    For who holds a lock without which nobody writes it.
    """
    for part in path.parent.glob(f"{escape(path.name[:60])}.{'[0-9a-f]' * 8}.part"):
        part.unlink()


def write(path: Path, content: bytes) -> None:
    """``atomic.write`` of a picture or page, one at a time in its folder, after ``sweep``.

    Raises:
        OSError: if it cannot be written; then the one before is still there.
    """
    with lock(path.with_name("figures")):
        sweep(path)
        atomic.write(path, content)
