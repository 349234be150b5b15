"""The augmentation of each recipe: of whole batches, on any device, from given random numbers.

Each step gives every image exactly the bits that torchvision's transform of PIL images gives. No
step waits for the device or makes a tensor on another one.

torchvision also has kernels for tensors, ``transforms.v2.functional``; some give PIL's bits. This
table, checked by a test, says which do, for the operations of ``RandAugment`` at the magnitudes of
the recipes:

=============  =====  ===================================================
operation      equal  here
=============  =====  ===================================================
Identity       yes    nothing to do
ShearX         no     an index of pixels, read off PIL
ShearY         no     an index of pixels, read off PIL
TranslateX     yes    like the other geometry: one gather for all five
TranslateY     yes    like the other geometry: one gather for all five
Rotate         no     an index of pixels, read off PIL
Brightness     yes    our blend, with a factor for each image
Color          no     our blend
Contrast       no     our blend
Sharpness      no     our blend
Posterize      yes    the kernel, once, on the 256 values
Solarize       yes    the kernel, once, on the 256 values
AutoContrast   no     ours, on the 256 values
Equalize       yes    the kernel
=============  =====  ===================================================
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import functional as on_pil  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as kernels  # type: ignore[import-untyped]

from reproduce.data.datasets import Dataset


class Step(NamedTuple):
    """One step of an augmentation."""

    numbers: int
    """How many random numbers it needs for each image."""
    apply: Callable[[Tensor, Tensor], Tensor]
    """Images (n, channels, height, width), uint8, and numbers (n, ``numbers``), float32, uniform in
    [0, 1) -> images, uint8, or float32 once they are normalised."""


@dataclass(frozen=True)
class Augmentation:
    """Steps applied one after the other; without steps, images stay as they are."""

    steps: Sequence[Step] = ()

    @property
    def numbers(self) -> int:
        """How many random numbers all steps need for each image."""
        return sum(step.numbers for step in self.steps)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Apply all steps; shapes and dtypes are as for ``Step.apply``."""
        parts = numbers.split([step.numbers for step in self.steps], dim=1)
        for step, part in zip(self.steps, parts, strict=True):
            images = step.apply(images, part)
        return images


_NAMES = ("plain", "convmixer", "vit", "crop-flip", "tiny-imagenet")
_CUTS = {"vit": 32, "crop-flip": 32, "tiny-imagenet": 64}


def make_augmentation(name: str, dataset: Dataset, device: torch.device) -> Augmentation:
    """Return the augmentation from images of ``dataset``, on ``device``, to a model's input.

    ``plain`` draws nothing; it is the one to evaluate with.

    Raises:
        ValueError: if the augmentation is unknown or does not fit the dataset.
    """
    if name not in _NAMES:
        raise ValueError(f"augmentation must be one of {', '.join(_NAMES)}, got {name!r}")
    if not dataset.mean:
        if name != "plain":
            raise ValueError(f"normalised images only take the augmentation plain, got {name!r}")
        return Augmentation()
    cuts = _CUTS.get(name, dataset.size)
    if cuts != dataset.size:
        raise ValueError(f"{name!r} is for images of {cuts} pixels, the dataset has {dataset.size}")
    normalise = _normalise(dataset, device)
    match name:
        case "convmixer":
            operation = rand_augment(12, dataset.size, device)
            jitter, erasing = color_jitter(0.2, device), random_erasing(0.2)
            return Augmentation((FLIP, operation, operation, jitter, normalise, erasing))
        case "vit":
            operation = rand_augment(14, dataset.size, device)
            return Augmentation((crop(4), FLIP, operation, operation, normalise))
        case "crop-flip":
            return Augmentation((crop(4), FLIP, normalise))
        case "tiny-imagenet":
            return Augmentation((crop(8), FLIP, normalise))
    return Augmentation((normalise,))


def _normalise(dataset: Dataset, device: torch.device) -> Step:
    """``ToTensor`` and ``Normalize``."""
    mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (dataset.mean, dataset.std))
    return Step(0, lambda images, _: (images.float() / 255 - mean) / std)


def _flip(images: Tensor, numbers: Tensor) -> Tensor:
    return torch.where(numbers[:, :, None, None] < 0.5, images.flip(3), images)


FLIP = Step(1, _flip)
"""``RandomHorizontalFlip``."""


def crop(padding: int) -> Step:
    """``RandomCrop`` to the same size, after padding with ``padding`` black pixels on each side."""
    return Step(2, partial(_crop, padding))


def _crop(padding: int, images: Tensor, numbers: Tensor) -> Tensor:
    height, width = images.shape[2:]
    top, left = (numbers * (2 * padding + 1)).long()[:, :, None].unbind(1)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    index = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    return _pick(pad(images, [padding] * 4), index)


def _pick(images: Tensor, index: Tensor) -> Tensor:
    """Pick pixels by their flat place in each image; ``index`` is (n, height, width), int64."""
    channels = images.shape[1]
    picked = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, channels, -1))
    return picked.view(len(images), channels, *index.shape[1:])


_GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")
OPERATIONS = (
    *("Identity", *_GEOMETRY, *_ENHANCEMENTS),
    *("Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""The operations of ``RandAugment``, in its order."""


def rand_augment(magnitude: int, size: int, device: torch.device) -> Step:
    """``RandAugment`` with one operation, for images of ``size`` pixels a side.

    Geometry uses the nearest neighbour, and black outside the image. The random number chooses
    among twice as many places as operations: each operation has one for each sign. If the sign
    does not matter, both are equal.
    """
    places = [(name, sign) for name in OPERATIONS for sign in (1, -1)]
    indices = np.stack([_index(name, sign, magnitude, size) for name, sign in places])
    highest = _part(0.9, magnitude)
    factors = [1 + sign * highest if name in _ENHANCEMENTS else 1.0 for name, sign in places]
    return Step(
        1,
        partial(
            _rand_augment,
            torch.tensor(indices, device=device),
            torch.tensor(factors, device=device),
            torch.stack([_values(name, magnitude, device) for name, _ in places]),
        ),
    )


def _part(highest: float, magnitude: int) -> float:
    """``highest * magnitude / 30``, in float32 as in ``RandAugment``."""
    return float(np.float32(highest) / np.float32(30) * np.float32(magnitude))


def _index(name: str, sign: int, magnitude: int, size: int) -> NDArray[np.int64]:
    """Where an operation takes each pixel from, (size, size): 0 for black, else the place plus 1.

    Found by letting PIL transform an image whose pixels are their own places.
    """
    numbers = np.arange(1, size * size + 1, dtype=np.int32).reshape(size, size)
    image = Image.fromarray(numbers)
    turn = partial(on_pil.affine, image, angle=0, scale=1)
    shear = sign * math.degrees(math.atan(_part(0.3, magnitude)))
    shift = sign * int(_part(150 / 331 * size, magnitude))
    match name:
        case "ShearX":
            image = turn(translate=[0, 0], shear=[shear, 0], center=[0, 0])
        case "ShearY":
            image = turn(translate=[0, 0], shear=[0, shear], center=[0, 0])
        case "TranslateX":
            image = turn(translate=[shift, 0], shear=[0, 0])
        case "TranslateY":
            image = turn(translate=[0, shift], shear=[0, 0])
        case "Rotate":
            image = on_pil.rotate(image, sign * _part(30, magnitude))
    return np.asarray(image, dtype=np.int64)


def _values(name: str, magnitude: int, device: torch.device) -> Tensor:
    """What ``Posterize`` or ``Solarize`` makes of the 256 values, else the values; uint8."""
    values: Tensor = torch.arange(256, dtype=torch.uint8, device=device)
    match name:
        case "Posterize":
            values = kernels.posterize(values, 8 - round(magnitude / 7.5))
        case "Solarize":
            values = kernels.solarize(values, 255 - _part(255, magnitude))
    return values


def _rand_augment(
    indices: Tensor, factors: Tensor, tables: Tensor, images: Tensor, numbers: Tensor
) -> Tensor:
    place = (numbers[:, 0] * len(indices)).long()
    operation = place // 2

    def is_(name: str) -> Tensor:
        return (operation == OPERATIONS.index(name))[:, None, None, None]

    # Everything is done to every image, so no shape depends on the draw. For operations of another
    # kind, index, factor and table leave an image unchanged.
    moved = _pick(pad(images.flatten(2), (1, 0))[:, :, None], indices[place])
    grey = _grey(images).float()
    other = grey * is_("Color") + _mean(grey) * is_("Contrast") + _smooth(images) * is_("Sharpness")
    blended = _blend(other, moved, factors[place])
    table = torch.where(is_("AutoContrast")[..., 0], _stretched(images), tables[place][:, None])
    looked_up = table.gather(2, blended.flatten(2).long()).view_as(images)
    equalized: Tensor = kernels.equalize(images)
    return torch.where(is_("Equalize"), equalized, looked_up)


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """``Image.blend``: factor 0 gives ``other``, float32, and 1 the images; ``factor`` is (n,)."""
    blended = other + factor[:, None, None, None] * (images - other)
    return blended.clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """``convert("L")``: (n, 1, height, width), int32."""
    red, green, blue = images.int().split(1, dim=1)
    grey: Tensor = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return grey


def _mean(grey: Tensor) -> Tensor:
    """The rounded mean of each image, (n, 1, 1, 1): what ``Contrast`` blends with.

    Exact for images of 32 and 64 pixels a side: the sum is below 2**24 and the divisor a power of
    two.
    """
    return (grey.mean(dim=(2, 3), keepdim=True) + 0.5).floor()


def _smooth(images: Tensor) -> Tensor:
    """PIL's filter ``SMOOTH``, float32: what ``Sharpness`` blends with. The border is unchanged."""
    pixels = images.short()
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[..., 1:-1, 1:-1]
    smooth = images.float()
    smooth[..., 1:-1, 1:-1] = (sums / 13).round()
    return smooth


def _stretched(images: Tensor) -> Tensor:
    """What ``ImageOps.autocontrast`` makes of the 256 values: (n, channels, 256), uint8."""
    low, high = (bound.double()[:, :, None] for bound in images.flatten(2).aminmax(dim=2))
    values = torch.arange(256, device=images.device)
    # 255 / tensor would round twice.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    stretched = (values * scale - low * scale).clamp(0, 255)
    return torch.where(high > low, stretched, values).to(torch.uint8)


def color_jitter(strength: float, device: torch.device) -> Step:
    """``ColorJitter`` of brightness, contrast and saturation, each by up to ``strength``."""
    orders = torch.tensor([*permutations(range(3))], device=device)
    return Step(4, partial(_color_jitter, strength, orders))


def _color_jitter(strength: float, orders: Tensor, images: Tensor, numbers: Tensor) -> Tensor:
    factors = 1 + strength * (2 * numbers[:, :3] - 1)
    order = orders[(numbers[:, 3] * len(orders)).long()]
    for which in order.split(1, dim=1):
        grey = _grey(images).float()
        kind = which[:, :, None, None]  # 0 brightness, 1 contrast, 2 saturation
        other = _mean(grey) * (kind == 1) + grey * (kind == 2)
        images = _blend(other, images, factors.gather(1, which)[:, 0])
    return images


_TRIES = 10


def random_erasing(probability: float) -> Step:
    """``RandomErasing``, after normalisation: a rectangle is set to 0, the mean.

    Area and aspect are drawn ten times; the first rectangle smaller than the image is taken.
    """
    return Step(3 + 2 * _TRIES, partial(_random_erasing, probability))


def _random_erasing(probability: float, images: Tensor, numbers: Tensor) -> Tensor:
    height, width = images.shape[2:]
    # In float64, so that every device rounds a side to the same whole number.
    does, top, left, area, aspect = numbers.double().split([1, 1, 1, _TRIES, _TRIES], dim=1)
    area = height * width * (0.02 + (0.33 - 0.02) * area)
    aspect = (math.log(0.3) + math.log(3.3 / 0.3) * aspect).exp()
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    erased, tall, wide = (of_tries.gather(1, first) for of_tries in (fits, tall, wide))
    erased = erased & (does < probability)
    top, left = (top * (height - tall + 1)).floor(), (left * (width - wide + 1)).floor()
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    of_rows = erased & (top <= rows) & (rows < top + tall)
    of_columns = (left <= columns) & (columns < left + wide)
    return images.masked_fill(of_rows[:, None, :, None] & of_columns[:, None, None, :], 0.0)
