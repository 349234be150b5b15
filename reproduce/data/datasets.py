"""The datasets by name: what models and recipes need to know about them, and how to load them."""

from dataclasses import dataclass
from pathlib import Path

from reproduce.data import cifar, digits, tiny_imagenet
from reproduce.data.images import Images
from reproduce.data.root import MissingDataError, data_root


@dataclass(frozen=True)
class Dataset:
    """What is known before an image is read.

    ``mean`` and ``std`` are per channel, for values in 0 .. 1. Both are empty if the images are
    already normalised.
    """

    channels: int
    size: int
    classes: int
    train: int
    """Images to train on."""
    test: int
    """Images to measure on."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


DATASETS = {
    "digits": Dataset(1, 8, 10, 1_297, 500),
    # The training images alone: a choice by this one has not seen what is measured on.
    "digits-held-out": Dataset(1, 8, 10, 900, 397),
    "cifar10": Dataset(
        3, 32, 10, 50_000, 10_000, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616)
    ),
    "cifar100": Dataset(
        3, 32, 100, 50_000, 10_000, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)
    ),
    # mean and std are those of ImageNet, as in PEMN
    "tiny-imagenet": Dataset(
        3, 64, 200, 100_000, 10_000, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
}


def folder(name: str, root: Path | None = None) -> Path | None:
    """The folder where ``load`` looks for a dataset; None if it ships with the package."""
    if name in ("digits", "digits-held-out"):
        return None
    of_name = tiny_imagenet.FOLDER if name == "tiny-imagenet" else cifar.SOURCES[name].base_folder
    return data_root(root) / of_name


def load(name: str, root: Path | None = None) -> tuple[Images, Images]:
    """Return the images to train on and those to measure on; ``root`` is as for ``data_root``.

    Raises:
        MissingDataError: if they are missing and cannot be downloaded, or are not the whole
            dataset.
    """
    if name == "digits":
        train, test = digits.load()
    elif name == "digits-held-out":
        images, _ = digits.load()
        train, test = images[:900], images[900:]
    elif name == "tiny-imagenet":
        train, test = tiny_imagenet.load(data_root(root))
    else:
        train, test = cifar.load(name, data_root(root))
    whole = DATASETS[name]
    found = len(train), len(test), len(train.labels.unique())
    if found != (whole.train, whole.test, whole.classes):
        raise MissingDataError(
            f"{name}: {found[0]} images to train on, {found[1]} to measure on and {found[2]}"
            f" classes in {folder(name, root)}, but the dataset has {whole.train}, {whole.test} and"
            f" {whole.classes}: extract all of it again"
        )
    return train, test
