"""Training what a study asks for and is not measured yet: one row for each cell and seed."""

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

import pemn_ref as pemn
from reproduce.cells import Cell, Study
from reproduce.data import digits
from reproduce.networks import make_network
from reproduce.report import draw_figure, make_table
from reproduce.rows import Row, append_row, read_rows
from reproduce.train import Epoch, train


def run_study(study: Study, seeds: Sequence[int], out: Path) -> None:
    """Train every cell with every seed, then print the table and draw the figure.

    Rows go to ``OUT/STUDY.jsonl``; a run that has a row there is not trained again. Seed by seed,
    so that a run that is stopped early has seen every cell.

    Raises:
        DamagedRowsError, OSError: if rows cannot be read or written.
        FloatingPointError: if a training ends in a loss that is not finite.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(study.title)
    path = out / f"{study.name}.jsonl"
    rows = {row["run"]: row for row in read_rows(path, console.print)}
    wanted = [(cell, seed) for seed in seeds for cell in study.cells]
    missing = [(cell, seed) for cell, seed in wanted if cell.run_id(seed) not in rows]
    console.print(
        f"{len(missing)} runs to train; {len(wanted) - len(missing)} of {len(wanted)}"
        f" are in {path} already and are not trained again"
    )
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(cell.recipe.epochs for cell, _ in missing))
        for number, (cell, seed) in enumerate(missing, start=1):
            progress.update(task, description=f"{cell.name}, seed {seed}")
            row = measure(cell, seed, lambda _: progress.advance(task))
            append_row(path, row)
            rows[row["run"]] = row
            console.print(
                f"{number:3d}/{len(missing)}  {cell.name:9}  seed {seed}"
                f"  {100 * row['accuracy_last']:5.1f} %  {row['seconds']:.1f} s"
            )
    measured = [rows[cell.run_id(seed)] for cell, seed in wanted]
    console.print(make_table(study, measured), soft_wrap=False)
    console.print(f"rows: {path}")
    for picture in draw_figure(study, measured, out / study.name):
        console.print(f"figure: {picture}")


def measure(cell: Cell, seed: int, on_epoch: Callable[[Epoch], object]) -> Row:
    """Train one cell with one seed. Accuracies are fractions of the held-out images."""
    start = time.perf_counter()
    split = digits.load()
    network = make_network(cell, seed)
    history = train(network, split, cell.recipe, seed=seed, on_epoch=on_epoch)
    accuracies = [epoch.accuracy for epoch in history]
    return {
        "run": cell.run_id(seed),
        "cell": cell.id,
        "seed": seed,
        "configuration": cell.configuration,
        "accuracy_last": accuracies[-1],
        "accuracy_best": max(accuracies),
        "held_out": len(split.test_labels),
        "history": [epoch._asdict() for epoch in history],
        "storage": network.storage._asdict(),
        "seconds": round(time.perf_counter() - start, 3),
        "device": "cpu",
        "hardware": {"cpu": processor(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "pemn_ref": pemn.__version__,
        },
    }


def processor() -> str:
    """The name of the processor as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():  # on Linux, where the standard library knows the architecture at most
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
