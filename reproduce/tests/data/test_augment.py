"""Augmentation recipes by what they do to images, and by their published numbers."""

import itertools
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from reproduce.data.augment import make_transform
from reproduce.data.datasets import DATASETS

CIFAR10 = DATASETS["cifar10"]


def outputs(augmentation: str, image: Image.Image, n: int, dataset: str = "cifar10") -> Tensor:
    """``n`` augmentations, brought back to 0 .. 1."""
    known = DATASETS[dataset]
    transform = make_transform(augmentation, known)
    assert transform is not None
    torch.manual_seed(0)
    stack = torch.stack([transform(image) for _ in range(n)])
    std, mean = torch.tensor(known.std), torch.tensor(known.mean)
    return stack * std[:, None, None] + mean[:, None, None]


def steps(augmentation: str) -> dict[str, Any]:
    """The steps of a recipe by the names of their classes, in their order."""
    transform: Any = make_transform(augmentation, CIFAR10)
    return {type(step).__name__: step for step in transform.transforms}


def gradient(size: int = 32) -> Image.Image:
    """Red tells the column, green the row, blue is 255: each place is known by its colour."""
    image = Image.new("RGB", (size, size))
    for x, y in itertools.product(range(size), repeat=2):
        image.putpixel((x, y), (x * 3 + 20, y * 3 + 20, 255))
    return image


def test_plain_is_the_image_itself() -> None:
    image = gradient()
    (plain,) = outputs("plain", image, 1)
    for x, y in [(0, 0), (31, 0), (5, 20)]:
        expected = torch.tensor(image.getpixel((x, y))) / 255
        torch.testing.assert_close(plain[:, y, x], expected)


@pytest.mark.parametrize(
    ("augmentation", "dataset", "size", "padding"),
    [("crop-flip", "cifar10", 32, 4), ("tiny-imagenet", "tiny-imagenet", 64, 8)],
)
def test_crops_shift_up_to_the_padding_and_half_are_flipped(
    augmentation: str, dataset: str, size: int, padding: int
) -> None:
    n = 300
    stack = outputs(augmentation, gradient(size), n, dataset)
    assert stack.shape == (n, 3, size, size)
    columns, rows, flips = set(), set(), 0
    for image in stack:
        centre = (image[:2, size // 2, size // 2] * 255 - 20) / 3
        neighbour = (image[0, size // 2, size // 2 + 1] * 255 - 20) / 3
        flipped = bool(neighbour < centre[0])
        flips += flipped
        column = round(float(centre[0])) - size // 2
        column = -column - 1 if flipped else column
        row = round(float(centre[1])) - size // 2
        columns.add(column)
        rows.add(row)
        inside = image[2] > 0.5
        assert int(inside.sum()) == (size - abs(row)) * (size - abs(column))
        assert torch.all(image[:, ~inside].abs() < 1e-3)  # black where there was no image
    assert rows == columns == set(range(-padding, padding + 1))
    assert 110 < flips < 190


def test_convmixer_recipe_is_the_published_one_in_its_order() -> None:
    recipe = steps("convmixer")
    assert list(recipe) == [
        "RandomHorizontalFlip",
        "RandAugment",
        "ColorJitter",
        "ToTensor",
        "Normalize",
        "RandomErasing",
    ]
    assert (recipe["RandAugment"].num_ops, recipe["RandAugment"].magnitude) == (2, 12)
    jitter = recipe["ColorJitter"]
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.8, 1.2)
    assert jitter.hue is None
    assert recipe["RandomErasing"].p == 0.2


def test_a_fifth_of_convmixer_images_lose_a_rectangle_to_the_mean() -> None:
    n = 400
    stack = outputs("convmixer", Image.new("RGB", (32, 32), (255, 255, 255)), n)
    erased = (stack - torch.tensor(CIFAR10.mean)[:, None, None]).abs().amax(dim=1) < 1e-6
    assert 50 < int(erased.flatten(1).any(dim=1).sum()) < 110


def test_vit_recipe_is_crop_flip_and_stronger_randaugment() -> None:
    recipe = steps("vit")
    assert list(recipe) == [
        "RandomCrop",
        "RandomHorizontalFlip",
        "RandAugment",
        "ToTensor",
        "Normalize",
    ]
    assert (recipe["RandAugment"].num_ops, recipe["RandAugment"].magnitude) == (2, 14)
    assert recipe["RandomCrop"].padding == 4


@pytest.mark.parametrize("augmentation", ["convmixer", "vit"])
def test_randaugment_is_nearest_neighbour_and_black(augmentation: str) -> None:
    step = steps(augmentation)["RandAugment"]
    assert step.interpolation.value == "nearest"
    assert step.fill is None  # zeros


def test_normalisation_is_that_of_the_dataset() -> None:
    grey = Image.new("RGB", (32, 32), (51, 51, 51))
    for name, first in [
        ("cifar10", (0.2 - 0.4914) / 0.2471),
        ("cifar100", (0.2 - 0.5071) / 0.2675),
        ("tiny-imagenet", (0.2 - 0.485) / 0.229),
    ]:
        transform = make_transform("plain", DATASETS[name])
        assert transform is not None
        pixel = transform(grey)[:, 3, 4]
        torch.testing.assert_close(pixel[0], torch.tensor(first))
        assert len(pixel.unique()) == 3  # each channel has its own


def test_tensors_of_the_digits_stay_as_they_are() -> None:
    assert make_transform("plain", DATASETS["digits"]) is None


@pytest.mark.parametrize(
    ("augmentation", "dataset", "message"),
    [
        ("cutmix", "cifar10", "one of plain, convmixer, vit, crop-flip.*got 'cutmix'"),
        ("crop-flip", "digits", "no augmentation but plain, got 'crop-flip'"),
        ("crop-flip", "tiny-imagenet", "'crop-flip' cuts images of 32, the dataset's are 64"),
    ],
)
def test_recipe_and_dataset_must_fit(augmentation: str, dataset: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_transform(augmentation, DATASETS[dataset])
