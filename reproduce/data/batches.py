"""Batches: a function of the images, the augmentation, a seed and an epoch.

No image depends on the batch size, the device, the process, or where a run was resumed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pemn_ref.prototype import random_stream
from reproduce.data.augment import Augmentation
from reproduce.data.images import Images

Batch = tuple[Tensor, Tensor]
"""Images (n, channels, height, width), float32, and their class numbers (n,), int64."""


class TrainingBatches:
    """The shuffled and augmented batches of any epoch, on the device of the images."""

    def __init__(
        self, images: Images, augmentation: Augmentation, *, seed: int, batch: int
    ) -> None:
        self.images, self.augmentation, self.seed, self.batch = images, augmentation, seed, batch

    def __len__(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return -(-len(self.images) // self.batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, from number ``start`` on.

        The random numbers of its augmentation, a row for each image, are all drawn first, on the
        CPU.
        """
        order_stream = random_stream(f"order {epoch}", self.seed)
        order = torch.randperm(len(self.images), generator=order_stream)
        numbers = torch.rand(
            *(len(self.images), self.augmentation.numbers),
            generator=random_stream(f"augmentation {epoch}", self.seed),
        )
        device = self.images.pixels.device
        order, numbers = order.to(device), numbers.to(device)
        for part in order.split(self.batch)[start:]:
            images = self.images[part]
            yield self.augmentation(images.pixels, numbers[part]), images.labels


def evaluation_batches(images: Images, plain: Augmentation, *, batch: int) -> list[Batch]:
    """All images in their order; ``plain`` takes no random numbers."""
    parts = zip(images.pixels.split(batch), images.labels.split(batch), strict=True)
    return [(plain(pixels, pixels.new_empty(len(pixels), 0)), labels) for pixels, labels in parts]
