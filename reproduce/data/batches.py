"""Batches whose order and augmentation are a function of seed and epoch alone.

So they are the same for any number of worker processes, and after a run was stopped and continued.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pemn_ref.prototype import random_stream

Batch = tuple[Tensor, Tensor]
"""Images (n, channels, height, width) and their class numbers (n,)."""
Transform = Callable[[Any], Tensor]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Images(Protocol):
    """Image and class number by index: torchvision's datasets, torch's ``Subset``, ..."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, ...]: ...


class _Augmented(Dataset[tuple[Tensor, Any]]):
    """Images by (epoch, index). Stateless: no matter which process is asked, and when."""

    def __init__(self, images: Images, transform: Transform | None, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Any]:
        epoch, index = key
        image, label = self.images[index]
        if self.transform is None:
            return image, label
        # torchvision draws from the CPU's global stream: give it one of this image's own, then the
        # caller's back. (torch.manual_seed would reset the streams of the devices, too.)
        with torch.random.fork_rng(devices=[]):
            stream = random_stream(f"augmentation {epoch} {index}", self.seed)
            torch.default_generator.manual_seed(stream.initial_seed())
            return self.transform(image), label


class _Order(Sampler[list[tuple[int, int]]]):
    """The keys of each batch of ``epoch`` from ``start`` on; the last batch holds what is left."""

    def __init__(self, length: int, batch: int, seed: int) -> None:
        self.length, self.batch, self.seed = length, batch, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return -(-self.length // self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.randperm(
            self.length, generator=random_stream(f"order {self.epoch}", self.seed)
        )
        keys = [
            [(self.epoch, index) for index in part.tolist()] for part in order.split(self.batch)
        ]
        return iter(keys[self.start :])


def _leave_signals(_: int) -> None:
    """A terminal signals all processes; the main one stops, in its own time, and ends its workers.

    (A worker without it would be gone before the checkpoint is written.) As in the main process, a
    second SIGTERM ends it at once: so the main one can end a worker that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


class Loader(DataLoader[Batch]):
    """A DataLoader whose workers leave signals to the main process and live until it is closed.

    (torch has no public way to either.)
    """

    def __init__(
        self, images: _Augmented, order: Iterable[Any], workers: int, pinned: bool = False
    ) -> None:
        super().__init__(
            images,
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # else it draws from the caller's stream
        )

    def _get_iterator(self) -> Any:
        """Start the workers. Signals wait until a worker has said what it does with them."""
        if sys.platform == "win32":
            return super()._get_iterator()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            return super()._get_iterator()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """End the workers, even where the traceback of an error still holds an iterator.

        (Python would wait for them when it exits.)
        """
        workers: Any = self._iterator
        if workers is not None:
            workers._shutdown_workers()


class TrainingBatches:
    """The shuffled and augmented batches of any epoch. Workers live until it is closed."""

    def __init__(
        self,
        images: Images,
        transform: Transform | None,
        *,
        seed: int,
        batch: int,
        workers: int,
        pinned: bool = False,
    ) -> None:
        self._order = _Order(len(images), batch, seed)
        self._loader = Loader(_Augmented(images, transform, seed), self._order, workers, pinned)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number ``start`` on.

        One epoch at a time, but it may be left before its end.
        """
        self._order.epoch, self._order.start = epoch, start
        batches: Iterator[Batch] = iter(self._loader)
        return batches

    def close(self) -> None:
        """End the workers."""
        self._loader.close()


def evaluation_batches(
    images: Images, transform: Transform | None, *, batch: int, workers: int
) -> Loader:
    """All images in their own order. The same each time, so a caller may keep them in a list."""
    keys = [(0, index) for index in range(len(images))]
    order = [keys[start : start + batch] for start in range(0, len(keys), batch)]
    return Loader(_Augmented(images, transform, seed=0), order, workers)
