"""Augmentation gives PIL's bits on every image, with torchvision's distribution."""

import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, chi2_contingency  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import (  # type: ignore[import-untyped]
    Compose,
    InterpolationMode,
    Normalize,
    RandAugment,
    RandomErasing,
    ToTensor,
    autoaugment,
)
from torchvision.transforms import functional as on_pil
from torchvision.transforms.v2 import functional as kernels  # type: ignore[import-untyped]

from reproduce.data import augment
from reproduce.data.augment import (
    FLIP,
    OPERATIONS,
    Step,
    color_jitter,
    crop,
    make_augmentation,
    rand_augment,
    random_erasing,
)
from reproduce.data.datasets import DATASETS, load

CPU = torch.device("cpu")
CIFAR10 = DATASETS["cifar10"]
NEAREST = InterpolationMode.NEAREST
PHOTOS = 10


@cache
def images(size: int = 32) -> Tensor:
    """Photo-like images, then some that expose rounding, ties and empty histograms.

    If ``PEMN_DATA`` has CIFAR-10, real images too.
    """
    stream = torch.Generator().manual_seed(0)

    def noise(n: int, side: int = size, values: int = 256) -> Tensor:
        return torch.randint(values, (n, 3, side, side), generator=stream)

    shapes = [interpolate(noise(PHOTOS, side).float(), size, mode="bicubic") for side in (3, 8)]
    photos = (0.6 * shapes[0] + 0.4 * shapes[1] + noise(PHOTOS, values=12) - 6).clamp(0, 255)
    constant = torch.tensor([0, 1, 127, 128, 254, 255])[:, None, None, None]
    two = [
        torch.where(noise(1, values=1000) < often, low, high)
        for low, high in ((0, 255), (3, 4), (100, 200), (254, 255))
        for often in (1, 500, 999)
    ]
    one_channel = noise(3) * torch.eye(3, dtype=torch.int64)[:, :, None, None]
    parts = [photos, constant.expand(-1, 3, size, size), *two, one_channel, noise(5), noise(2) // 9]
    if size == 32 and (Path(os.environ.get("PEMN_DATA", "")) / "cifar-10-batches-py").is_dir():
        parts.append(load("cifar10")[0].pixels[:300])
    return torch.cat([part.to(torch.uint8) for part in parts])


def to_pil(pixels: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]


def from_pil(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures])


def same_for_all(step: Step, pixels: Tensor, *numbers: float) -> Tensor:
    """Apply the step with the same numbers to each image."""
    return step.apply(pixels, torch.tensor(numbers).expand(len(pixels), -1))


def middle(which: int, of: int) -> float:
    """A random number that chooses number ``which`` of ``of``."""
    return (which + 0.5) / of


def magnitude_of(name: str, sign: int, magnitude: int, size: int = 32) -> float:
    """The magnitude that torchvision's ``RandAugment`` uses."""
    magnitudes, signed = RandAugment()._augmentation_space(31, (size, size))[name]
    value = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
    return sign * value if signed else value


def on_picture(picture: Image.Image, name: str, sign: int, magnitude: int) -> Image.Image:
    """Apply an operation of torchvision's ``RandAugment`` to a PIL image."""
    value = magnitude_of(name, sign, magnitude, picture.width)
    done: Image.Image = autoaugment._apply_op(picture, name, value, NEAREST, None)
    return done


PLACES = [(name, sign) for name in OPERATIONS for sign in (1, -1)]


def number_of(name: str, sign: int) -> float:
    return middle(PLACES.index((name, sign)), len(PLACES))


@cache
def operation(magnitude: int) -> Step:
    return rand_augment(magnitude, 32, CPU)


def test_operations_are_those_of_torchvision_in_its_order() -> None:
    assert list(RandAugment()._augmentation_space(31, (32, 32))) == list(OPERATIONS)


@pytest.mark.parametrize("magnitude", [12, 14])
@pytest.mark.parametrize(("name", "sign"), PLACES)
def test_each_operation_has_the_bits_of_pil(name: str, sign: int, magnitude: int) -> None:
    done = same_for_all(operation(magnitude), images(), number_of(name, sign))
    expected = from_pil([on_picture(p, name, sign, magnitude) for p in to_pil(images())])
    assert torch.equal(done, expected)


def test_each_image_has_an_operation_of_its_own() -> None:
    photo = images()[:1].expand(len(PLACES), -1, -1, -1)
    numbers = torch.tensor([[number_of(*place)] for place in PLACES])
    done = operation(14).apply(photo, numbers)
    (picture,) = to_pil(photo[:1])
    assert torch.equal(done, from_pil([on_picture(picture, *place, 14) for place in PLACES]))


def kernel(pixels: Tensor, name: str, value: float) -> Tensor:
    """The result of torchvision's tensor kernel for an operation."""
    angle, no = math.degrees(math.atan(value)), [0.0, 0.0]
    done: Tensor
    match name:
        case "ShearX":
            done = kernels.affine(pixels, 0.0, [0, 0], 1.0, [angle, 0.0], NEAREST, None, [0, 0])
        case "ShearY":
            done = kernels.affine(pixels, 0.0, [0, 0], 1.0, [0.0, angle], NEAREST, None, [0, 0])
        case "TranslateX":
            done = kernels.affine(pixels, 0.0, [int(value), 0], 1.0, no, NEAREST)
        case "TranslateY":
            done = kernels.affine(pixels, 0.0, [0, int(value)], 1.0, no, NEAREST)
        case "Rotate":
            done = kernels.rotate(pixels, value, NEAREST)
        case "Brightness":
            done = kernels.adjust_brightness(pixels, 1 + value)
        case "Color":
            done = kernels.adjust_saturation(pixels, 1 + value)
        case "Contrast":
            done = kernels.adjust_contrast(pixels, 1 + value)
        case "Sharpness":
            done = kernels.adjust_sharpness(pixels, 1 + value)
        case "Posterize":
            done = kernels.posterize(pixels, int(value))
        case "Solarize":
            done = kernels.solarize(pixels, value)
        case "AutoContrast":
            done = kernels.autocontrast(pixels)
        case "Equalize":
            done = kernels.equalize(pixels)
        case _:
            done = pixels
    return done


def test_the_table_says_which_kernels_of_torchvision_have_the_bits_of_pil() -> None:
    assert augment.__doc__
    table = [line.split()[:2] for line in augment.__doc__.splitlines()]
    pictures = to_pil(images())
    found = []
    for name in OPERATIONS:
        equal = all(
            torch.equal(
                kernel(images(), name, magnitude_of(name, sign, magnitude)),
                from_pil([on_picture(p, name, sign, magnitude) for p in pictures]),
            )
            for sign in (1, -1)
            for magnitude in (12, 14)
        )
        found.append([name, "yes" if equal else "no"])
    assert found == [line for line in table if line[:1] and line[0] in OPERATIONS]


ADJUST: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    on_pil.adjust_brightness,
    on_pil.adjust_contrast,
    on_pil.adjust_saturation,
)


def jittered(picture: Image.Image, factors: Sequence[float], order: Sequence[int]) -> Image.Image:
    for which in order:
        picture = ADJUST[which](picture, factors[which])
    return picture


def test_color_jitter_has_the_bits_of_pil_in_each_order() -> None:
    step, pictures = color_jitter(0.2, CPU), to_pil(images())
    drawn = torch.rand(len(pictures), 3, generator=torch.Generator().manual_seed(0))
    drawn[0], drawn[1] = 0, 1 - 2**-24  # the lowest and the highest
    factors = (0.8 + 0.4 * drawn.double()).tolist()
    orders = list(itertools.permutations(range(3)))
    for which, order in enumerate(orders):
        numbers = torch.cat([drawn, torch.full((len(drawn), 1), middle(which, 6))], dim=1)
        expected = [jittered(p, f, order) for p, f in zip(pictures, factors, strict=True)]
        assert torch.equal(step.apply(images(), numbers), from_pil(expected)), order


def test_crop_has_the_bits_of_pil_at_every_offset() -> None:
    pixels = images()[:PHOTOS]
    padded = [on_pil.pad(picture, 4) for picture in to_pil(pixels)]
    for top, left in itertools.product(range(9), repeat=2):
        done = same_for_all(crop(4), pixels, middle(top, 9), middle(left, 9))
        expected = from_pil([on_pil.crop(picture, top, left, 32, 32) for picture in padded])
        assert torch.equal(done, expected), (top, left)


def test_each_image_is_cropped_at_an_offset_of_its_own() -> None:
    numbers = torch.rand(PHOTOS, 2, generator=torch.Generator().manual_seed(0))
    together = crop(4).apply(images()[:PHOTOS], numbers)
    alone = [crop(4).apply(images()[i : i + 1], numbers[i : i + 1]) for i in range(PHOTOS)]
    assert torch.equal(together, torch.cat(alone))
    assert len((numbers * 9).long().unique(dim=0)) > 5


def test_half_of_the_numbers_flip_and_the_bits_are_those_of_pil() -> None:
    flipped = from_pil([on_pil.hflip(picture) for picture in to_pil(images())])
    for number, expected in ((0, flipped), (0.4999, flipped), (0.5, images()), (0.9, images())):
        assert torch.equal(same_for_all(FLIP, images(), number), expected), number


def on_pictures(name: str, picture: Image.Image, numbers: list[float]) -> Tensor:
    """A whole published recipe without erasing, by torchvision on PIL, with these numbers."""
    drawn = iter(numbers)

    def choose(of: int) -> int:
        return int(next(drawn) * of)

    padding = {"vit": 4, "crop-flip": 4, "tiny-imagenet": 8}.get(name)
    if padding:
        top, left, size = choose(2 * padding + 1), choose(2 * padding + 1), picture.width
        picture = on_pil.crop(on_pil.pad(picture, padding), top, left, size, size)
    if name != "plain" and choose(2) == 0:
        picture = on_pil.hflip(picture)
    for _ in range({"convmixer": 2, "vit": 2}.get(name, 0)):
        place = PLACES[choose(len(PLACES))]
        picture = on_picture(picture, *place, {"convmixer": 12, "vit": 14}[name])
    if name == "convmixer":
        factors = [0.8 + 0.4 * next(drawn) for _ in range(3)]
        picture = jittered(picture, factors, [*itertools.permutations(range(3))][choose(6)])
    dataset = DATASETS["tiny-imagenet" if name == "tiny-imagenet" else "cifar10"]
    tensor: Tensor = Compose([ToTensor(), Normalize(dataset.mean, dataset.std)])(picture)
    return tensor


@pytest.mark.parametrize("name", ["plain", "convmixer", "vit", "crop-flip", "tiny-imagenet"])
def test_whole_recipes_have_the_bits_of_pil_in_the_published_order(name: str) -> None:
    dataset = DATASETS["tiny-imagenet" if name == "tiny-imagenet" else "cifar10"]
    pixels = images(dataset.size)
    augmentation = make_augmentation(name, dataset, CPU)
    stream = torch.Generator().manual_seed(0)
    numbers = torch.rand(len(pixels), augmentation.numbers, generator=stream)
    if name == "convmixer":
        numbers[:, -random_erasing(0.2).numbers] = 0.2  # nothing is erased
    pictures = zip(to_pil(pixels), numbers.tolist(), strict=True)
    expected = torch.stack([on_pictures(name, picture, drawn) for picture, drawn in pictures])
    assert torch.equal(augmentation(pixels, numbers), expected)


DRAWS = 100_000


def assert_same_distribution(ours: Counter[Any], theirs: Counter[Any]) -> None:
    """Compare by a chi-square test; outcomes seen fewer than 20 times in all count as one."""
    both = ours + theirs
    often = [outcome for outcome, times in both.items() if times >= 20]
    counts = [[of_one[outcome] for outcome in often] for of_one in (ours, theirs)]
    rest = [sum(of_one.values()) - sum(row) for of_one, row in zip((ours, theirs), counts)]  # noqa: B905
    if sum(rest) >= 20:
        counts = [[*row, left] for row, left in zip(counts, rest, strict=True)]
    assert chi2_contingency(counts).pvalue > 0.01, (ours, theirs)


def test_operations_are_chosen_as_often_as_by_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: Counter[Any] = Counter()
    space = RandAugment()._augmentation_space(31, (16, 16))
    monkeypatch.setattr(RandAugment, "_augmentation_space", lambda *_: space)  # it takes long
    monkeypatch.setattr(
        autoaugment, "_apply_op", lambda _, name, value, **__: theirs.update([(name, value)])
    )
    transform = RandAugment(num_ops=1, magnitude=12)
    picture = Image.new("RGB", (16, 16))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(DRAWS):
            transform(picture)
    monkeypatch.undo()

    photo = images(16)[:1]
    values = [(name, magnitude_of(name, sign, 12, 16)) for name, sign in PLACES]
    step = rand_augment(12, 16, CPU)
    results = {
        same_for_all(step, photo, number_of(*place)).numpy().tobytes(): value
        for place, value in zip(PLACES, values, strict=True)
    }
    assert len(results) == len(set(values)) == 23  # all differ
    stream = torch.Generator().manual_seed(0)
    ours: Counter[Any] = Counter()
    for _ in range(DRAWS // 1000):
        numbers = torch.rand(1000, 1, generator=stream)
        done = step.apply(photo.expand(1000, -1, -1, -1), numbers)
        ours.update(results[image.numpy().tobytes()] for image in done)
    assert_same_distribution(ours, theirs)


def rectangles(erased: Tensor) -> list[tuple[int, int, int, int] | None]:
    """Top, left, height and width of what was erased from ones (n, 1, size, size)."""
    holes = erased[:, 0] == 0
    of_rows, of_columns = holes.any(2).int(), holes.any(1).int()
    tall, wide = of_rows.sum(1), of_columns.sum(1)
    assert torch.equal(holes.sum((1, 2)), tall * wide)
    found = torch.stack([of_rows.argmax(1), of_columns.argmax(1), tall, wide], dim=1).tolist()
    return [tuple(one) if one[2] else None for one in found]


def test_rectangles_are_erased_as_by_torchvision() -> None:
    ones, theirs = torch.ones(1, 32, 32), RandomErasing(p=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = rectangles(torch.stack([theirs(ones) for _ in range(DRAWS)]))
    step, stream = random_erasing(0.2), torch.Generator().manual_seed(0)
    mine = []
    for _ in range(DRAWS // 1000):
        numbers = torch.rand(1000, step.numbers, generator=stream)
        mine += rectangles(step.apply(torch.ones(1000, 1, 32, 32), numbers))

    assert binomtest(sum(map(bool, mine)), DRAWS, 0.2).pvalue > 0.01
    parts: tuple[Callable[[int, int, int, int], object], ...] = (
        lambda top, left, tall, wide: (tall, wide),
        lambda top, left, tall, wide: (tall // 4, 4 * top // (33 - tall)),
        lambda top, left, tall, wide: (wide // 4, 4 * left // (33 - wide)),
        lambda top, left, tall, wide: (top // 4, left // 4),
    )
    for part in parts:
        assert_same_distribution(
            *(Counter(part(*one) for one in which if one) for which in (mine, found))
        )


def test_the_first_rectangle_that_fits_is_erased() -> None:
    step, ones = random_erasing(0.2), torch.ones(1, 1, 32, 32)
    does, top, left = 0.1, 0.0, 0.0
    areas, aspects = [1 - 2**-24] * 10, [1 - 2**-24] * 10  # 33 rows tall
    assert rectangles(same_for_all(step, ones, does, top, left, *areas, *aspects)) == [None]
    aspects[3], areas[3] = 0.5, 0.0  # 2 % of the image, nearly square
    aspects[7], areas[7] = 0.5, 1.0
    found = rectangles(same_for_all(step, ones, does, top, left, *areas, *aspects))
    assert found == [(0, 0, 5, 5)]
    last = 1 - 2**-24
    found = rectangles(same_for_all(step, ones, does, last, last, *areas, *aspects))
    assert found == [(27, 27, 5, 5)]


def test_tensors_of_the_digits_stay_as_they_are() -> None:
    train, _ = load("digits")
    plain = make_augmentation("plain", DATASETS["digits"], CPU)
    assert plain.numbers == 0
    assert plain(train.pixels, torch.empty(len(train), 0)) is train.pixels


@pytest.mark.parametrize(
    ("augmentation", "dataset", "message"),
    [
        ("cutmix", "cifar10", "one of plain, convmixer, vit, crop-flip.*got 'cutmix'"),
        ("crop-flip", "digits", "only take the augmentation plain, got 'crop-flip'"),
        ("crop-flip", "tiny-imagenet", "'crop-flip' is for images of 32 pixels, the dataset has"),
    ],
)
def test_recipe_and_dataset_must_fit(augmentation: str, dataset: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_augmentation(augmentation, DATASETS[dataset], CPU)
