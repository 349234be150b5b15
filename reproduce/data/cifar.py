"""CIFAR-10 and CIFAR-100: read, checked and downloaded by torchvision.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from http.client import HTTPException
from pathlib import Path

import torch
from filelock import FileLock
from torchvision.datasets import CIFAR10, CIFAR100  # type: ignore[import-untyped]

from reproduce.data.images import Images
from reproduce.data.root import MissingDataError

SOURCES = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def load(name: str, root: Path) -> tuple[Images, Images]:
    """Return the training and test images of ``cifar10`` or ``cifar100``.

    Files that are missing under ``root``, or whose checksum is not the published one, are
    downloaded.

    Raises:
        MissingDataError: if the download fails.
    """
    source = SOURCES[name]
    try:
        try:
            train = source(root, train=True)
        except RuntimeError:  # missing, or the checksum is wrong
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f"{name}.lock"):  # one process downloads, the others wait for it
                train = source(root, train=True, download=True)
        test = source(root, train=False)
    except (OSError, HTTPException, RuntimeError) as error:  # the last means a wrong checksum
        raise MissingDataError(
            f"{name}: {root / source.base_folder} is missing, incomplete or damaged, and the"
            f" download failed ({error}): extract {source.filename} from {source.url} in {root},"
            " or name another folder with --data or PEMN_DATA"
        ) from error
    return _whole(train), _whole(test)


def _whole(source: CIFAR10) -> Images:
    pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.tensor(source.targets))
