"""The form of every dataset in memory: all images in one tensor."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images of one size, with the class of each.

    ``pixels`` are (n, channels, height, width), uint8, or float32 if they are already normalised;
    ``labels`` are (n,), int64. Both are on one device.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __getitem__(self, part: slice | Tensor) -> "Images":
        """Select images by a slice, or by indices (k,), int64."""
        return Images(self.pixels[part], self.labels[part])

    def to(self, device: torch.device) -> "Images":
        """The same images on ``device``."""
        return Images(self.pixels.to(device), self.labels.to(device))


def digest(*parts: Images) -> str:
    """SHA-256 of all pixels and labels, as 64 hexadecimal digits; the images must be on the CPU."""
    found = hashlib.sha256()
    for images in parts:
        for tensor in (images.pixels, images.labels):
            found.update(f"{tensor.dtype} {[*tensor.shape]}".encode())
            found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()
