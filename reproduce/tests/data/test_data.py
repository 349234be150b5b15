"""The digits that ship with the package."""

from dataclasses import replace
from pathlib import Path

import torch

from reproduce.data import digits
from reproduce.data.datasets import load
from reproduce.data.images import digest


def test_split_is_fixed_and_disjoint_in_the_order_of_the_source() -> None:
    train, test = digits.load()
    assert train.pixels.shape == (1297, 1, 8, 8)
    assert test.pixels.shape == (500, 1, 8, 8)
    assert train.labels[:10].tolist() == list(range(10))  # as the source begins
    assert test.labels[-10:].tolist() == [5, 4, 8, 8, 4, 9, 0, 8, 9, 8]  # as it ends
    assert test.labels.bincount().min() >= 46


def test_images_are_normalised_ink() -> None:
    images = digits.load()[0].pixels
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01
    ink = (images * digits.STD + digits.MEAN) * 16
    torch.testing.assert_close(ink, ink.round().clamp(0, 16), atol=1e-4, rtol=0)


def test_file_is_small() -> None:
    assert Path(digits.__file__).with_name("digits.npz").stat().st_size < 100_000


def test_digest_is_of_every_pixel_and_label() -> None:
    train, test = load("digits")
    digests = {digest(train, test), digest(test, train), digest(train[:-1], test)}
    for changed in ("pixels", "labels"):
        part = train[:]
        part = replace(part, **{changed: getattr(part, changed).clone()})
        getattr(part, changed)[-1] += 1
        digests.add(digest(part, test))
    assert len(digests) == 5
    assert digest(*load("digits")) in digests
