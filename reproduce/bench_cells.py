"""Two cells on two cores: side by side with a thread each, or one after the other with both."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from math import inf
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from reproduce.cells import Cell
from reproduce.checkpoint import Checkpoint, Stop
from reproduce.data.datasets import load
from reproduce.device import open_device
from reproduce.run import train_run
from reproduce.studies import STUDIES
from reproduce.timing import Ratio, compare

CELL = STUDIES["digits"].chosen(strategies=["mp"]).cells[0]


def train_whole(cell: Cell, seed: int) -> None:
    """Train a cell from beginning to end, to throw it away."""
    with TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint", inf, Stop())
        train_run(
            *(cell, seed, load(cell.dataset), open_device("cpu"), checkpoint),
            *(Path(folder) / "network", lambda _: None),
        )


def bench_cells(cell: Cell = CELL, *, pairs: int = 5) -> Iterator[Ratio]:
    """The ratio of the times of two cells, which start in processes that run already; the rates."""
    with ExitStack() as pools:

        def pool(processes: int, threads: int) -> ProcessPoolExecutor:
            executor = ProcessPoolExecutor(
                processes,
                mp_context=get_context("spawn"),  # torch's threads do not survive a fork
                initializer=torch.set_num_threads,
                initargs=(threads,),
            )
            return pools.enter_context(executor)

        beside, after = pool(2, 1), pool(1, 2)
        ratio = compare(
            "two cells side by side, a thread each / one after the other, two threads",
            lambda: list(beside.map(train_whole, (cell, cell), (0, 1))),
            lambda: list(after.map(train_whole, (cell, cell), (0, 1))),
            pairs=pairs,
            seconds=0,
        )
    yield ratio
    assert ratio.milliseconds is not None
    rate = 2 * 3_600_000 / ratio.milliseconds
    for way, value in (("side by side", rate), ("one after the other", rate * ratio.ratio)):
        yield Ratio(f"cells / hours, {way}", value, value, value, ratio.pairs, None)
