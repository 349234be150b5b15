"""Small trials of a device: its numbers, its training, resuming from a checkpoint."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from msgspec import structs
from torch import Tensor
from torch.nn.functional import cross_entropy

import pemn_ref as pemn
from reproduce.data.datasets import load
from reproduce.data.images import Images
from reproduce.preflight.cost import learned
from reproduce.rows.row import Epoch, Failed, Measured
from reproduce.runs.store import RunStore
from reproduce.study.cells import Cell, ViT
from reproduce.study.studies import STUDIES
from reproduce.training.checkpoint import OUT_OF_TIME, Checkpoint, Stop, Stopped
from reproduce.training.device import Device, open_device
from reproduce.training.networks import Network, make_model, make_network, masked_network
from reproduce.training.run import Skipped, train_run

SMALL = [cell for cell in STUDIES["digits"].cells if cell.name == "mp"]
"""A cell of each family that trains in seconds."""
# Allowed relative distances: of the logits, and of any layer's score gradients. On a CPU they were
# up to 2e-6 and 4e-6 in float32, and 0.013 and 0.2 (ResNet; others 0.02) in bfloat16. But a single
# ReLU of the ResNet that rounding flips changes gradients by up to 8e-3.
TOLERANCES = {"float32": (1e-4, 3e-2), "bfloat16": (0.05, 0.5)}
STEPS = 50
# The loss must fall by this fraction of the first; on a CPU, at any size, it fell by 0.08 or more.
FALL = 0.03
_UPDATE = "do not trust this device; another version of PyTorch or of the driver may help"


class TrialError(Exception):
    """The device or machine is not ready for the study; the message, one line, says what to do."""


def compare_numbers(cells: Sequence[Cell], device: Device) -> str:
    """Compare the device's numbers with the CPU's.

    Masks must be equal bit by bit, at full size, too. Logits and score gradients of small cells are
    compared with float64.

    Raises:
        TrialError: if a mask differs, or anything else by more than ``TOLERANCES``.
    """
    for cell in each_family(cells):
        _compare_masks(cell, make_network(cell, 0, device.torch))
    images, _ = load("digits")
    x, y = images.pixels[:64], images.labels[:64]
    said = []
    for cell in map(_without_dropout, SMALL):
        reference = _results(_in_float64(cell), x.double(), y)
        for precision, allowed in TOLERANCES.items():
            network = make_network(cell, 0, device.torch)
            mixed = replace(device, bfloat16=precision == "bfloat16").mixed_precision()
            with device.full_float32(), mixed:
                _compare_masks(cell, network)
                results = _results(network, *device.put((x, y)))
            logits, *gradients = (
                float((a.cpu().double() - b).norm() / b.norm())
                for a, b in zip(results, reference, strict=True)
            )
            what = f"{cell.model.family} {precision} {logits:.0e} {max(gradients):.0e}"
            if not (logits <= allowed[0] and max(gradients) <= allowed[1]):  # nor NaN
                raise TrialError(
                    f"{what}: relative distances of logits and score gradients on {device.torch}"
                    f" from float64 on the CPU, at most {allowed} are allowed: {_UPDATE}"
                )
            said.append(what)
    return f"masks equal; distance of logits and score gradients from float64: {', '.join(said)}"


def _compare_masks(cell: Cell, network: Network) -> None:
    assert network.state is not None
    assert cell.density is not None
    for name, scores in network.state.scores.items():
        mask = pemn.score_mask(scores.detach(), density=cell.density)
        expected = pemn.score_mask(scores.detach().cpu().double(), density=cell.density)
        if not torch.equal(mask.cpu().double(), expected):
            raise TrialError(
                f"the mask of {name} in {cell.model.label} differs from the CPU's: {_UPDATE}"
            )


def _without_dropout(cell: Cell) -> Cell:
    if isinstance(cell.model, ViT):
        return replace(cell, model=replace(cell.model, dropout=0.0))
    return cell


def _in_float64(cell: Cell) -> Network:
    """The network of the cell, in float64 on the CPU."""
    state = make_network(cell, 0, torch.device("cpu")).state
    assert state is not None
    parts = [
        {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in part.items()}
        for part in state
    ]
    return masked_network(cell, make_model(cell, 0).double(), pemn.State(*parts))


def _results(network: Network, x: Tensor, y: Tensor) -> list[Tensor]:
    """Logits, and the gradient of each layer's scores."""
    assert network.state is not None
    logits = network.logits(x)
    loss = cross_entropy(logits, y)
    return [logits.detach(), *torch.autograd.grad(loss, [*network.state.scores.values()])]


def each_family(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of each family, with a learned mask."""
    return [learned(cell) for cell in {c.model.family: c for c in reversed(cells)}.values()]


def train_briefly(
    cells: Sequence[Cell],
    images: Mapping[str, tuple[Images, Images]],
    device: Device,
    folder: Path,
) -> str:
    """Train each family for fifty steps, in epochs over a few images.

    If a dataset is not in ``images``, the digits take its place.

    Raises:
        TrialError: if a loss does not fall, or the memory is too small.
    """
    said = []
    for cell in SMALL if device.slow else each_family(cells):
        if cell.dataset not in images:
            recipe = cell.recipe.changed(augmentation="plain")
            cell = replace(cell, dataset="digits", recipe=recipe)
        train_images, test_images = images.get(cell.dataset) or load("digits")
        few = train_images[: 10 * cell.recipe.batch]
        epochs = -(-STEPS * cell.recipe.batch // len(few))
        cell = replace(cell, recipe=cell.recipe.changed(epochs=epochs))
        row = train_run(
            cell,
            0,
            (few, test_images[:100]),
            device,
            Checkpoint(folder / "none.pt", cell, 0, float("inf"), Stop()),
            folder / "files" / f"{cell.id}.safetensors",
            lambda _: None,
        )
        if isinstance(row, Skipped):
            raise TrialError(f"{row.reason} for {cell.model.label}: choose another with --model")
        if isinstance(row, Failed):
            raise TrialError(f"{cell.model.label}: {row.failed}: {_UPDATE}")
        first, last = row.history[0].loss, row.history[-1].loss
        what = f"{cell.model.label} on {cell.dataset} {first:.2f} to {last:.2f}"
        if last > (1 - FALL) * first:
            raise TrialError(f"the loss does not fall, {what}: {_UPDATE}")
        said.append(what)
    return f"the loss falls in {STEPS} steps: {', '.join(said)}"


def stop_and_resume(where: torch.device, folder: Path) -> str:
    """Stop a run, resume it with the command itself, and compare it with an uninterrupted run.

    The whole run, the first part and the rest are separate processes, as they would be for a user.
    This process opens the device after them, since on some clusters only one process may hold it.

    Raises:
        TrialError: if a process fails, or ``compare_runs`` finds a difference.
    """
    run = _RESUMED.run_id(0)
    whole, parts = (RunStore(folder / name, "digits", print) for name in ("whole", "parts"))
    _run(*_command(where, whole.out))
    _run("-m", "reproduce.preflight.trials", str(where), str(parts.out))
    content = parts.checkpoint(_RESUMED, 0, 0, Stop()).read()
    if content is None:
        raise TrialError(f"stopped without a checkpoint: {_NO_STOP}")
    kept = [Epoch(*epoch) for epoch in content["position"]["history"]]
    _run(*_command(where, parts.out))
    device = open_device(str(where))
    compare_runs(parts, whole, run, kept, device)
    same = ", with the same bits" if device.repeats else ""
    return f"stopped after epoch {len(kept)}, resumed to epoch {_RESUMED.recipe.epochs}{same}"


(_RESUMED,) = STUDIES["digits"].chosen(models=["convmixer"], strategies=["mp"]).shortened(10).cells
_NO_STOP = "do not stop runs there until this is fixed"


def _command(where: torch.device, out: Path) -> list[str]:
    what = ("--model", "convmixer", "--strategy", "mp", "--seeds", "1")
    epochs = ("--epochs", str(_RESUMED.recipe.epochs))
    return [
        "-m",
        "reproduce",
        "run",
        *what,
        *epochs,
        "--device",
        str(where),
        "--out",
        str(out),
    ]


def _run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[2],  # so that Python finds the package
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        said = done.stderr.strip() or "no message"
        raise TrialError(f"exit code {done.returncode}: {said}: {_NO_STOP}")


@dataclass
class _After(Stop):
    """Ask to stop after ``steps`` steps, whatever time they take."""

    steps: int = 0

    @property
    def asked(self) -> bool:
        """Whether these steps are done; each call counts as one."""
        self.steps -= 1
        if self.steps < 0:
            self.code = OUT_OF_TIME
        return self.code is not None


def train_a_part(device: Device, out: Path) -> None:
    """Train to the middle of the third epoch, then stop as after a signal or a time limit."""
    run, images = _RESUMED.run_id(0), load("digits")
    store = RunStore(out, "digits", print)
    steps = 2.5 * len(images[0]) / _RESUMED.recipe.batch
    checkpoint = store.checkpoint(_RESUMED, 0, float("inf"), _After(steps=int(steps)))
    with store.claim(run), suppress(Stopped):
        train_run(_RESUMED, 0, images, device, checkpoint, store.file(run), lambda _: None)


def compare_runs(
    parts: RunStore, whole: RunStore, run: str, kept: Sequence[Epoch], device: Device
) -> None:
    """Compare a run in two parts, the first of which left the epochs ``kept``, with a whole one.

    Raises:
        TrialError: if the second part started over; or, on a device that repeats runs, if the row
            (except its times) or the network differs.
    """
    row, expected = (_result(store, run) for store in (parts, whole))
    if row.history[: len(kept)] != [*kept]:  # including their times
        raise TrialError(f"the run was not resumed from its checkpoint: {_NO_STOP}")
    one, other = (store.file(run).read_bytes() for store in (parts, whole))
    if device.repeats and (_times_aside(row) != _times_aside(expected) or one != other):
        raise TrialError(f"row or network differs from an uninterrupted run: {_NO_STOP}")


def _result(store: RunStore, run: str) -> Measured:
    row = store.rows()[run]
    if isinstance(row, Failed):
        raise TrialError(f"{row.failed}: {_UPDATE}")
    return row


def _times_aside(row: Measured) -> Measured:
    history = [structs.replace(epoch, seconds=0.0) for epoch in row.history]
    return structs.replace(row, seconds=0.0, images_per_second=0.0, history=history)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the study
    train_a_part(open_device(sys.argv[1]), Path(sys.argv[2]))
