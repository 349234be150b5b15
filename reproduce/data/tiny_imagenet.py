"""Tiny-ImageNet (Stanford CS231n, 2015), read from its extracted folder ``tiny-imagenet-200``.

Its test images have no labels, so those of ``val`` are the held-out ones.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from reproduce.data.batches import Images
from reproduce.data.root import MissingDataError

FOLDER = "tiny-imagenet-200"


class Files:
    """Image files and their class numbers, decoded when asked for.

    Raises:
        MissingDataError: then, if a file is damaged.
    """

    def __init__(self, files: Sequence[tuple[Path, int]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.files[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB"), label  # a few of the files are grey
        except OSError as error:
            raise MissingDataError(
                f"tiny-imagenet: {path} cannot be read ({error}): extract {FOLDER}.zip again"
            ) from error


def load(root: Path) -> tuple[Images, Images]:
    """Training and validation images, PIL and class number each, classes as in ``wnids.txt``.

    Raises:
        MissingDataError: if the folder is not there or not complete.
    """
    folder = root / FOLDER
    try:
        classes = (folder / "wnids.txt").read_text(encoding="utf-8").split()
        annotations = (
            (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
        )
    except OSError as error:
        raise MissingDataError(
            f"tiny-imagenet: cannot read {error.filename} ({error.strerror}): extract"
            f" {FOLDER}.zip in {root}, or name another folder with --data or PEMN_DATA"
        ) from error
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
        if len(files) < max(most, 1):  # as many in every class
            raise MissingDataError(
                f"tiny-imagenet: {len(files)} images in {folder / 'train' / wnid}, and up to {most}"
                f" in others: extract {FOLDER}.zip again"
            )
    for path, _ in test:
        if not path.exists():
            raise MissingDataError(f"tiny-imagenet: no {path}: extract {FOLDER}.zip again")
    return Files([(path, number[w]) for w in classes for path in of_class[w]]), Files(test)
