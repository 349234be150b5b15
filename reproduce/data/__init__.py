"""Datasets as tensors of training and held-out images."""

from typing import NamedTuple

from torch import Tensor


class Split(NamedTuple):
    """Images (n, channels, height, width), normalised, and their class numbers (n,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
