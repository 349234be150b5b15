"""Batches depend on images, augmentation, seed and epoch alone."""

import hashlib
import multiprocessing
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from pemn_ref.prototype import random_stream
from reproduce.data.augment import Augmentation, make_augmentation
from reproduce.data.batches import Batch, TrainingBatches, evaluation_batches
from reproduce.data.datasets import DATASETS, load
from reproduce.data.images import Images

CPU = torch.device("cpu")
PLAIN = make_augmentation("plain", DATASETS["cifar10"], CPU)
N = 22


def noise() -> Images:
    """Noise, on which any two augmentations differ; classes 0 to 21."""
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (N, 3, 32, 32), dtype=torch.uint8, generator=stream)
    return Images(pixels, torch.arange(N))


def training(
    name: str = "convmixer", seed: int = 0, batch: int = 8, images: Images | None = None
) -> TrainingBatches:
    augmentation = make_augmentation(name, DATASETS["cifar10"], CPU)
    return TrainingBatches(images or noise(), augmentation, seed=seed, batch=batch)


def same(ones: Iterable[Batch], others: Iterable[Batch]) -> bool:
    pairs = zip(ones, others, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def joined(batches: Iterable[Batch]) -> Batch:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def by_label(batches: Iterable[Batch]) -> dict[int, Tensor]:
    return {int(label): image for x, y in batches for image, label in zip(x, y, strict=True)}


def test_an_epoch_holds_every_image_once_with_its_label() -> None:
    batches = training("plain")
    epoch = list(batches.epoch(0))
    assert [len(labels) for _, labels in epoch] == [8, 8, 6]
    assert len(batches) == 3
    got = by_label(epoch)
    assert list(got) != sorted(got)
    assert sorted(got) == list(range(N))
    plain = PLAIN(noise().pixels, torch.empty(N, 0))
    assert all(torch.equal(got[label], plain[label]) for label in range(N))


def test_order_is_that_of_the_stream_of_its_name() -> None:
    _, labels = joined(training(seed=5).epoch(3))
    assert labels.tolist() == torch.randperm(N, generator=random_stream("order 3", 5)).tolist()


@pytest.mark.parametrize("name", ["convmixer", "vit", "crop-flip"])
def test_batch_size_changes_no_image(name: str) -> None:
    whole = joined(training(name, batch=N).epoch(1))
    for batch in (1, 5, 8):
        assert same([joined(training(name, batch=batch).epoch(1))], [whole])


def test_an_epoch_goes_on_from_any_of_its_batches() -> None:
    epoch = list(training().epoch(1))
    for start in range(4):
        assert same(training().epoch(1, start), epoch[start:])


def test_augmentation_of_an_image_does_not_depend_on_what_the_others_are() -> None:
    images = noise()
    others = Images(images.pixels.clone(), images.labels)
    others.pixels[1:] = 0
    first, second = (by_label(training(images=both).epoch(0)) for both in (images, others))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def digest(_: int = 0) -> str:
    images, labels = joined(training(seed=3).epoch(2))
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def test_another_process_makes_the_same_batches() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(digest, [0]) == [digest()]


def test_batches_depend_on_the_epoch_and_not_on_those_before_it() -> None:
    through = training()
    epochs = [list(through.epoch(epoch)) for epoch in range(3)]
    assert same(training().epoch(2), epochs[2])  # continued
    assert same(through.epoch(0), epochs[0])  # and back
    first, second = by_label(epochs[0]), by_label(epochs[1])
    assert list(first) != list(second)
    assert not any(torch.equal(first[label], second[label]) for label in range(N))


def test_batches_depend_on_the_seed() -> None:
    zero, one = by_label(training(seed=0).epoch(0)), by_label(training(seed=1).epoch(0))
    assert list(zero) != list(one)
    assert not any(torch.equal(zero[label], one[label]) for label in range(N))


def test_equal_images_are_augmented_differently() -> None:
    twins = noise()[torch.zeros(N, dtype=torch.long)]
    images, _ = next(training(batch=N, images=twins).epoch(0))
    assert len(images.flatten(1).unique(dim=0)) == N


def test_an_epoch_may_be_left_before_its_end() -> None:
    batches = training()
    next(batches.epoch(0))
    assert same(batches.epoch(1), training().epoch(1))


def test_callers_random_stream_is_neither_read_nor_moved() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = list(training().epoch(0))
    evaluation_batches(noise(), PLAIN, batch=8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(training().epoch(0), first)


def test_evaluation_takes_every_image_in_its_order() -> None:
    batches = evaluation_batches(noise(), PLAIN, batch=8)
    assert [len(labels) for _, labels in batches] == [8, 8, 6]
    images, labels = joined(batches)
    assert labels.tolist() == list(range(N))
    assert torch.equal(images, PLAIN(noise().pixels, torch.empty(N, 0)))


def test_digits_are_taken_as_they_are() -> None:
    train, test = load("digits")
    epoch = list(TrainingBatches(train, Augmentation(), seed=0, batch=500).epoch(0))
    assert [tuple(images.shape) for images, _ in epoch] == [
        (500, 1, 8, 8),
        (500, 1, 8, 8),
        (297, 1, 8, 8),
    ]
    assert all(labels.dtype == torch.int64 for _, labels in epoch)
    ((images, labels),) = evaluation_batches(test, Augmentation(), batch=500)
    assert torch.equal(images, test.pixels)
    assert torch.equal(labels, test.labels)
