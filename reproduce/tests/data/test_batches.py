"""Batches are a function of seed and epoch alone."""

import multiprocessing
import os
import signal
from collections.abc import Iterable
from contextlib import closing

import pytest
import torch
from PIL import Image
from torch import Tensor

from reproduce.data.augment import make_transform
from reproduce.data.batches import Batch, Images, TrainingBatches, evaluation_batches
from reproduce.data.datasets import DATASETS, load

# Python 3.12 warns when a process with threads forks; what workers run uses none.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

TRANSFORM = make_transform("convmixer", DATASETS["cifar10"])
N = 22


def pictures() -> list[tuple[Image.Image, int]]:
    """Noise, so that every augmentation can be told from every other; classes 0 to 21."""
    noise = torch.randint(256, (N, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    return [(Image.fromarray(x.byte().numpy()), label) for label, x in enumerate(noise)]


def training(seed: int = 0, workers: int = 0) -> TrainingBatches:
    return TrainingBatches(pictures(), TRANSFORM, seed=seed, batch=8, workers=workers)


def same(ones: Iterable[Batch], others: Iterable[Batch]) -> bool:
    pairs = zip(ones, others, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def by_label(batches: Iterable[Batch]) -> dict[int, Tensor]:
    return {int(label): image for x, y in batches for image, label in zip(x, y, strict=True)}


def test_an_epoch_holds_every_image_once_with_its_label() -> None:
    batches = TrainingBatches(
        pictures(), make_transform("plain", DATASETS["cifar10"]), seed=0, batch=8, workers=0
    )
    epoch = list(batches.epoch(0))
    assert [len(labels) for _, labels in epoch] == [8, 8, 6]
    assert len(batches) == 3
    got = by_label(epoch)
    assert list(got) != sorted(got)
    plain = make_transform("plain", DATASETS["cifar10"])
    assert plain is not None
    assert sorted(got) == list(range(N))
    assert all(torch.equal(got[label], plain(image)) for image, label in pictures())


def test_batches_are_the_same_for_any_number_of_workers() -> None:
    alone = training()
    expected = [list(alone.epoch(epoch)) for epoch in range(3)]
    for workers in (1, 2):
        batches = training(workers=workers)
        assert all(same(batches.epoch(epoch), expected[epoch]) for epoch in range(3))


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
    twins = [pictures()[0]] * N
    images, _ = next(TrainingBatches(twins, TRANSFORM, seed=0, batch=N, workers=0).epoch(0))
    assert len(images.flatten(1).unique(dim=0)) == N


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_may_be_left_before_its_end(workers: int) -> None:
    batches = training(workers=workers)
    next(batches.epoch(0))
    assert same(batches.epoch(1), training().epoch(1))


@pytest.mark.parametrize("workers", [0, 1])
def test_callers_random_stream_is_neither_read_nor_moved(workers: int) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = list(training(workers=workers).epoch(0))
    list(evaluation_batches(pictures(), TRANSFORM, batch=8, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(training(workers=workers).epoch(0), first)


def test_workers_live_through_the_epochs() -> None:
    batches = TrainingBatches(WhoReads(), None, seed=0, batch=4, workers=1)
    readers = [{int(pid) for _, pids in batches.epoch(epoch) for pid in pids} for epoch in range(2)]
    assert readers[0] == readers[1]
    assert len(readers[0]) == 1


class WhoReads:
    """The label is the number of the process that was asked."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(1), os.getpid()


def workers_left() -> list[int | None]:
    """Who is still there; killed, or pytest would wait for them when it exits."""
    left = multiprocessing.active_children()
    for worker in left:
        worker.kill()
        worker.join()
    return [worker.pid for worker in left]


def test_close_ends_the_workers_of_iterators_that_are_still_held() -> None:
    batches = training(workers=2)
    iterator = batches.epoch(0)
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not workers_left()
    training(workers=0).close()


class Signalled:
    """Whoever is asked for an image is sent signals first."""

    def __init__(self, *signals: signal.Signals) -> None:
        self.signals = signals

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        for number in self.signals:
            os.kill(os.getpid(), number)
        self.signals = ()
        return torch.zeros(1), index


def labels_by(images: Images, *, train: bool) -> list[int]:
    """The labels as one worker gives them."""
    if not train:
        return [int(n) for _, y in evaluation_batches(images, None, batch=2, workers=1) for n in y]
    with closing(TrainingBatches(images, None, seed=0, batch=2, workers=1)) as batches:
        return sorted(int(n) for _, y in batches.epoch(0) for n in y)


@pytest.mark.parametrize("train", [True, False])
def test_workers_leave_a_first_signal_to_the_main_process(train: bool) -> None:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    assert labels_by(Signalled(*signals), train=train) == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        labels_by(Signalled(signal.SIGTERM, signal.SIGTERM), train=train)


@pytest.mark.parametrize("train", [True, False])
def test_workers_leave_it_as_they_begin(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def seed(_: int) -> None:  # what torch does then
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(torch, "manual_seed", seed)
    assert labels_by(Signalled(), train=train) == [0, 1, 2, 3]


def test_evaluation_takes_every_image_in_its_order_and_the_same_each_time() -> None:
    plain = make_transform("plain", DATASETS["cifar10"])
    batches = evaluation_batches(pictures(), plain, batch=8, workers=0)
    once = list(batches)
    assert torch.cat([labels for _, labels in once]).tolist() == list(range(N))
    assert same(batches, once)
    assert same(evaluation_batches(pictures(), plain, batch=8, workers=2), once)


def test_digits_fit_as_tensors() -> None:
    train, test = load("digits")
    batches = TrainingBatches(train, None, seed=0, batch=500, workers=0)
    epoch = list(batches.epoch(0))
    assert [tuple(images.shape) for images, _ in epoch] == [
        (500, 1, 8, 8),
        (500, 1, 8, 8),
        (297, 1, 8, 8),
    ]
    assert all(labels.dtype == torch.int64 for _, labels in epoch)
    ((images, labels),) = evaluation_batches(test, None, batch=500, workers=0)
    assert all(torch.equal(images[i], test[i][0]) for i in range(500))
    assert labels[:3].tolist() == [int(test[i][1]) for i in range(3)]
