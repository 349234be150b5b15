"""Measuring times, and ratios of times pair by pair in one process.

Anything else that runs on the machine then slows both halves of a pair.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from rich.table import Table

from reproduce.report import console


class Ratio(NamedTuple):
    """The cost of one thing divided by that of another; ``low`` and ``high`` are quartiles."""

    what: str
    ratio: float
    low: float
    high: float
    pairs: int
    milliseconds: float | None
    """Median time of the first; None if the ratio is not of times."""


def compare(
    what: str,
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int,
    seconds: float,
    synchronize: Callable[[], object] = lambda: None,
) -> Ratio:
    """Time both in turn, in alternating order, after two uncounted runs of each.

    Takes at least ``pairs`` pairs, and goes on until ``seconds`` have passed. ``synchronize`` waits
    for the device.
    """
    timed = partial(_timed, synchronize)
    for run in (first, second) * 2:
        run()
    times: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(times) < pairs or time.perf_counter() - began < seconds:
        if len(times) % 2:
            b, a = timed(second), timed(first)
        else:
            a, b = timed(first), timed(second)
        times.append((a, b))
    ratios = sorted(a / b for a, b in times)
    return Ratio(
        what,
        median(ratios),
        ratios[len(ratios) // 4],
        ratios[-1 - len(ratios) // 4],
        len(times),
        1000 * median(a for a, _ in times),
    )


def fastest(
    run: Callable[[], object], *, times: int, synchronize: Callable[[], object] = lambda: None
) -> float:
    """Seconds of the fastest of ``times`` runs, after one that is not counted.

    Whatever else runs on the machine can only make a run slower, never faster.
    """
    run()
    return min(_timed(synchronize, run) for _ in range(times))


def _timed(synchronize: Callable[[], object], run: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def conditions(device: torch.device, hardware: str) -> dict[str, str | int]:
    """The conditions that the ratios depend on."""
    return {
        "device": str(device),
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def make_table(ratios: Iterable[Ratio], where: dict[str, str | int]) -> Table:
    """One line for each ratio; the caption says where they were measured."""
    table = console.table(caption="; ".join(f"{name}: {value}" for name, value in where.items()))
    table.add_column("first / second")
    for column in ("ratio", "quartiles", "n", "first, ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for what, ratio, low, high, pairs, milliseconds in ratios:
        time = "-" if milliseconds is None else f"{milliseconds:,.2f}"
        table.add_row(what, f"{ratio:.2f}", f"{low:.2f}-{high:.2f}", str(pairs), time)
    return table
