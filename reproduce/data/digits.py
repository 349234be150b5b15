"""The UCI handwritten digits that ship with the package: 1,797 images of 8x8, ten classes.

``digits.npz`` holds the test set of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/): every image, in the order of the source, unchanged
but for the file format. ``images``: uint8, (1797, 8, 8), ink from 0 to 16; ``labels``: uint8.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 500
MEAN, STD = 0.306, 0.376  # of the training images, ink scaled to 0 .. 1


class Split(NamedTuple):
    """Images (n, 1, 8, 8), float32, normalised, and their class numbers (n,), int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load() -> Split:
    """The first 1,297 images to train on and the last 500, never trained on.

    The split follows the order of the source, so it depends on no random stream; the class counts
    of the 500 are 46 to 51.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        images: Tensor = torch.from_numpy(file["images"]).unsqueeze(1) / 16
        labels: Tensor = torch.from_numpy(file["labels"]).long()
    images = (images - MEAN) / STD
    return Split(images[:-HELD_OUT], labels[:-HELD_OUT], images[-HELD_OUT:], labels[-HELD_OUT:])
