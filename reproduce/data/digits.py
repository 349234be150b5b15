"""The UCI handwritten digits that ship with the package: 1,797 images of 8x8, ten classes.

``digits.npz`` holds the test set of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/): every image, in the order of the source; only the
file format was changed. ``images``: uint8, (1797, 8, 8), ink from 0 to 16; ``labels``: uint8.
"""

from pathlib import Path

import numpy as np
import torch

from reproduce.data.images import Images

HELD_OUT = 500
MEAN, STD = 0.306, 0.376  # of the training images, ink scaled to 0 .. 1


def load() -> tuple[Images, Images]:
    """Return the first 1,297 images, to train on, and the last 500, held out; both normalised.

    The split follows the order of the source, so it needs no random numbers. Of the 500, 46 to 51
    belong to each class.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        ink = torch.from_numpy(file["images"]).unsqueeze(1) / 16
        images = Images((ink - MEAN) / STD, torch.from_numpy(file["labels"]).long())
    return images[:-HELD_OUT], images[-HELD_OUT:]
