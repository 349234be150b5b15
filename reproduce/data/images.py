"""What every dataset is read to: all of its images in one tensor."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images of one size, with the class of each.

    ``pixels`` are (n, channels, height, width), uint8, or float32 if they are normalised already;
    ``labels`` are (n,), int64. Both lie on one device.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """How many there are."""
        return len(self.labels)

    def __getitem__(self, part: slice | Tensor) -> "Images":
        """Those of a slice, or of indices (k,), int64."""
        return Images(self.pixels[part], self.labels[part])

    def to(self, device: torch.device) -> "Images":
        """The same on ``device``."""
        return Images(self.pixels.to(device), self.labels.to(device))


def digest(*parts: Images) -> str:
    """SHA-256 of all pixels and labels, which lie on the CPU: 64 hexadecimal digits."""
    found = hashlib.sha256()
    for images in parts:
        for tensor in (images.pixels, images.labels):
            found.update(f"{tensor.dtype} {[*tensor.shape]}".encode())
            found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()
