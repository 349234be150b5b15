"""Tiny-ImageNet (Stanford CS231n, 2015), read from its extracted folder ``tiny-imagenet-200``.

Its test images have no labels, so the images of ``val`` are held out instead. All images are
decoded once, into a file beside the folder: the SHA-256 of names and pixels, then the pixels.
"""

import hashlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pemn_ref.atomic import write
from reproduce.data.images import Images
from reproduce.data.root import MissingDataError

FOLDER = "tiny-imagenet-200"
_SHAPE = (3, 64, 64)
_DIGEST = hashlib.sha256().digest_size


def load(root: Path) -> tuple[Images, Images]:
    """Return the training and validation images; classes are numbered as in ``wnids.txt``.

    Raises:
        MissingDataError: if the folder is missing, incomplete or damaged, or if ``root`` is not
            writable when the images are decoded.
    """
    folder = root / FOLDER
    try:
        classes = (folder / "wnids.txt").read_text(encoding="utf-8").split()
        annotations = (
            (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
        )
    except UnicodeDecodeError as error:
        raise MissingDataError(
            f"tiny-imagenet: wnids.txt or val_annotations.txt in {folder} is not UTF-8 ({error}):"
            f" extract {FOLDER}.zip again"
        ) from error
    except OSError as error:
        raise MissingDataError(
            f"tiny-imagenet: cannot read {error.filename} ({error.strerror}): extract"
            f" {FOLDER}.zip in {root}, or name another folder with --data or PEMN_DATA"
        ) from error
    if not classes:
        raise MissingDataError(
            f"tiny-imagenet: {folder / 'wnids.txt'} is empty: extract {FOLDER}.zip again"
        )
    number = {wnid: label for label, wnid in enumerate(classes)}
    try:
        rows = [line.split("\t")[:2] for line in annotations]  # the rest is a bounding box
        test = [(folder / "val" / "images" / name, number[wnid]) for name, wnid in rows]
    except (KeyError, ValueError) as error:
        raise MissingDataError(
            f"tiny-imagenet: {folder / 'val' / 'val_annotations.txt'} does not fit wnids.txt"
            f" ({error}): extract {FOLDER}.zip again"
        ) from error
    of_class = {w: sorted((folder / "train" / w / "images").glob("*.JPEG")) for w in classes}
    most = max(len(files) for files in of_class.values())
    for wnid, files in of_class.items():
        if len(files) < max(most, 1):  # every class has as many
            raise MissingDataError(
                f"tiny-imagenet: {len(files)} images in {folder / 'train' / wnid}, but up to {most}"
                f" in other classes: extract {FOLDER}.zip again"
            )
    if len({path for path, _ in test}) < len(test):
        raise MissingDataError(
            f"tiny-imagenet: {folder / 'val' / 'val_annotations.txt'} names an image twice:"
            f" extract {FOLDER}.zip again"
        )
    for path, _ in test:
        if not path.exists():
            raise MissingDataError(f"tiny-imagenet: {path} is missing: extract {FOLDER}.zip again")
    train = [(path, number[w]) for w in classes for path in of_class[w]]
    paths, labels = zip(*train, *test, strict=True)
    images = Images(_pixels(root, paths), torch.tensor(labels))
    return images[: len(train)], images[len(train) :]


def _pixels(root: Path, paths: Sequence[Path]) -> Tensor:
    """The pixels of all images, (n, 3, 64, 64), uint8, decoded now if they were not before."""
    decoded = root / f"{FOLDER}.decoded"
    try:
        with FileLock(root / "tiny-imagenet.lock"):  # one process decodes, the others wait for it
            kept = np.fromfile(decoded, np.uint8) if decoded.exists() else np.empty(0, np.uint8)
            pixels = kept[_DIGEST:]
            if kept[:_DIGEST].tobytes() != _digest(root, paths, pixels):
                for part in root.glob(f"{FOLDER}.decoded.*.part"):  # left by a killed process
                    part.unlink()
                pixels = np.empty(len(paths) * math.prod(_SHAPE), np.uint8)
                for image, path in zip(pixels.reshape(-1, *_SHAPE), paths, strict=True):
                    image[:] = _decode(path)
                write(decoded, _digest(root, paths, pixels), pixels.data)
    except OSError as error:
        raise MissingDataError(
            f"tiny-imagenet: {decoded} cannot be read or written ({error}): make room in {root}"
            " and make it writable, or name another folder with --data or PEMN_DATA"
        ) from error
    return torch.from_numpy(pixels).view(len(paths), *_SHAPE)


def _digest(root: Path, paths: Sequence[Path], pixels: NDArray[np.uint8]) -> bytes:
    digest = hashlib.sha256("\n".join(str(path.relative_to(root)) for path in paths).encode())
    digest.update(pixels.data)
    return digest.digest()


def _decode(path: Path) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of decompression bombs
            image = Image.open(path, formats=["JPEG"])
        with image:
            if image.size != _SHAPE[1:] or image.mode not in ("RGB", "L"):
                width, height = image.size
                raise ValueError(f"{width} x {height} pixels of mode {image.mode}")
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)  # a few files are grey
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise MissingDataError(
            f"tiny-imagenet: {path} cannot be read ({error}): extract {FOLDER}.zip again"
        ) from error
