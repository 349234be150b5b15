"""Many runs at once: each is a Ray task. Ray places it, and repeats it if its worker dies.

Rows and networks are returned to the driver, the process that started the tasks; only the driver
writes them. A task writes only its checkpoint, and only if its machine sees the folder of the runs.
"""

import logging
import os
import platform
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray.exceptions import RayError, TaskCancelledError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pemn_ref.atomic import write
from reproduce.data.images import Images
from reproduce.rows.row import Epoch, Row
from reproduce.runs.study import TAKEN, Result, Work
from reproduce.study.cells import Cell
from reproduce.training.checkpoint import Checkpoint, Stopped, stopping
from reproduce.training.device import find_device, gpus, open_device
from reproduce.training.run import Skipped, describe, train_run


@dataclass(frozen=True)
class Cluster:
    """The cluster that this process is connected to, and what one run takes from it."""

    device: str
    """``cpu`` or ``cuda``."""
    cpus: float
    gpus: float

    @property
    def here(self) -> torch.device | None:
        """A device of this machine of the kind that runs use; None if it has none."""
        if self.device == "cuda" and not gpus():
            return None
        return find_device(self.device)

    @property
    def places(self) -> int:
        """How many runs fit in the cluster at this moment."""
        kind, share = ("GPU", self.gpus) if self.gpus else ("CPU", self.cpus)
        there: float = ray.cluster_resources().get(kind, 0)
        return round(there / share)

    def train(self, work: Work) -> Iterator[Result]:
        """Train like ``run_study`` on one device, but yield results in the order in which runs end.

        Raises:
            Stopped: if asked to stop, once the running tasks have written their checkpoints.
        """
        runs, images, store, stop, every, console = work
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        news = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        stored = {dataset: ray.put(pair) for dataset, pair in images.items()}
        # A task whose worker got a signal stops at a checkpoint, too: Ray repeats it.
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "retry_exceptions": [Stopped]}
        task = ray.remote(**options)(train_task)
        waiting, asked = deque(runs), False
        tasks: dict[Any, tuple[Cell, int, ExitStack]] = {}
        with (
            store.mark() as mark,
            _Progress(console) as progress,
        ):
            while tasks or (waiting and not asked):
                # Twice as many as fit, not all, so that another process can claim the others.
                while waiting and not asked and len(tasks) < 2 * max(1, self.places):
                    cell, seed = waiting.popleft()
                    run, claim = cell.run_id(seed), ExitStack()
                    if claim.enter_context(store.claim(run)):
                        checkpoint = store.checkpoint(cell, seed, every, stop).path.absolute()
                        where = (self, checkpoint, mark.absolute(), every, news)
                        ref = task.remote(cell, seed, stored[cell.dataset], *where)
                        tasks[ref] = cell, seed, claim
                    else:
                        claim.close()
                        yield cell, seed, TAKEN
                done = ray.wait(list(tasks), timeout=0.2)[0] if tasks else []
                with suppress(RayError):  # the queue was killed: runs go on without news
                    progress.show(news.get_nowait_batch(news.qsize()))
                for ref in done:
                    cell, seed, claim = tasks.pop(ref)
                    progress.end(cell.run_id(seed))
                    with claim:
                        try:
                            row, network = ray.get(ref)
                        except RayError as error:
                            why = getattr(error, "cause", error)
                            if asked and isinstance(why, Stopped | TaskCancelledError):
                                waiting.append((cell, seed))
                            else:
                                text = " ".join(str(why).split())
                                yield cell, seed, Skipped(f"{type(why).__name__}: {text}")
                        else:
                            if network:
                                file = store.file(cell.run_id(seed))
                                file.parent.mkdir(exist_ok=True)
                                write(file, network)
                            yield cell, seed, row
                if stop.asked and not asked:
                    asked = True
                    console.print("stopping: waiting until all runs have written their checkpoints")
                    for ref in tasks:
                        ray.cancel(ref)  # does in its worker what Ctrl-C does here
        if waiting:
            assert stop.code is not None
            raise Stopped(stop.code)


def train_task(
    cell: Cell,
    seed: int,
    images: tuple[Images, Images],
    cluster: Cluster,
    checkpoint: Path,
    mark: Path,
    every: float,
    news: Queue,
) -> tuple[Row | Skipped, bytes]:
    """Run ``train_run`` in a worker, on one thread; return the row and the bytes of the network.

    A machine that sees ``mark``, a file of the driver, sees the ``checkpoint``, too. If it does
    not, the run starts from the beginning, with a checkpoint in a temporary folder.

    Raises:
        Stopped, CheckpointError, OSError: as ``train_run``.
    """
    torch.set_num_threads(1)
    device = open_device(cluster.device)
    run, what = cell.run_id(seed), describe(cell, seed)

    def say(*told: str) -> None:
        with suppress(RayError):
            news.put((run, told))

    def tell(history: list[Epoch]) -> None:
        epochs, last = cell.recipe.epochs, history[-1]
        left = timedelta(seconds=round((epochs - len(history)) * last.seconds))
        rate = f"{len(images[0]) / last.seconds:,.0f} images/s"
        epoch = f"epoch {len(history)} of {epochs}"
        say(what, epoch, f"{100 * last.accuracy:.1f} %", rate, f"{left} left")

    with stopping() as stop, TemporaryDirectory() as own:
        begins = "resumes" if checkpoint.exists() else "starts"
        if not mark.exists():
            checkpoint = Path(own) / checkpoint.name
            begins = "starts from the beginning, since its machine does not see the runs"
        say(what, f"{begins}: {platform.node()}, process {os.getpid()}")
        file = Path(own) / "network"
        kept = Checkpoint(checkpoint, cell, seed, every, stop)
        row = train_run(cell, seed, images, device, kept, file, tell)
        return row, file.read_bytes() if file.exists() else b""


class _Progress:
    """The latest news of every unfinished run: a live table, or lines if there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True)
        self._last: dict[str, Sequence[str]] = {}

    def __enter__(self) -> "_Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, news: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Show news of runs: each says which run it is, and where it starts or how far it is."""
        for run, told in news:
            self._last[run] = told
            if len(told) == 2 or not self._console.is_terminal:
                self._console.print("  ".join(told))
        table = Table.grid(padding=(0, 2))
        for told in self._last.values():
            table.add_row(*told)
        self._live.update(table)

    def end(self, run: str) -> None:
        """Remove a run that has ended."""
        self._last.pop(run, None)


def open_cluster(address: str | None, device: str | None, cells_per_gpu: int | None) -> Cluster:
    """Connect to the cluster at HOST:PORT or, with ``auto``, on this machine; else start one here.

    Its runs train on ``device``, ``cpu`` or ``cuda``; by default on GPUs if the cluster has any.

    Raises:
        ValueError: if an argument is invalid, there is no such cluster, or no run fits in it.
    """
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"the device must be cpu or cuda (Ray picks which one), got {device!r}")
    if device == "cpu" and cells_per_gpu:
        raise ValueError(f"{cells_per_gpu} cells per GPU, but --device cpu")
    try:
        if address and address != "auto":
            host, _, port = address.rpartition(":")
            if not (host and port.isdecimal()):
                raise ValueError(f"the address must be HOST:PORT or auto, got {address!r}")
            # Ray itself would try for many minutes and ignore Ctrl-C.
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(
            address or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, OverflowError, RayError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in nodes if node.get("GPU")]
    if device == "cpu" or not (device or cells_per_gpu or with_gpu):
        cluster = Cluster("cpu", cpus=1, gpus=0)
    else:
        cluster = Cluster("cuda", cpus=0, gpus=1 / (cells_per_gpu or 1))
    if not cluster.places:
        there = ray.cluster_resources()
        ray.shutdown()
        raise ValueError(
            f"a cell takes {cluster.cpus:.3g} CPUs and {cluster.gpus:.3g} GPUs, but the cluster has"
            f" {there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
        )
    return cluster
