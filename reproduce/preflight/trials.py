"""Small trials of a device: its numbers, its training, its way back from a checkpoint."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import pemn_ref as pemn
from reproduce.data.datasets import load
from reproduce.data.images import Images
from reproduce.preflight.cost import learned
from reproduce.rows.row import Row
from reproduce.runs.store import RunStore
from reproduce.study.cells import Cell, ViT
from reproduce.study.studies import STUDIES
from reproduce.training.checkpoint import Checkpoint, Stop
from reproduce.training.device import Device
from reproduce.training.loop import Epoch
from reproduce.training.networks import Network, make_model, make_network, masked_network
from reproduce.training.run import Skipped, train_run

SMALL = [cell for cell in STUDIES["digits"].cells if cell.name == "mp"]
"""A cell of each family that trains in seconds."""
# Relative distances that are allowed: of the logits, and of the score gradients of any layer. On a
# CPU they were up to 2e-6 and 4e-6 in float32, 0.013 and 0.2 (ResNet; the others 0.02) in bfloat16.
# But one ReLU of the ResNet that rounding turns over changes gradients by up to 8e-3.
TOLERANCES = {"float32": (1e-4, 3e-2), "bfloat16": (0.05, 0.5)}
STEPS = 50
# The least fall of the loss, of the first; on a CPU, full size or small, it was 0.08 or more.
FALL = 0.03
_UPDATE = "do not trust it; another version of PyTorch or of the driver may mend it"


class TrialError(Exception):
    """A device cannot be trusted, or not with this: one line that says what to do."""


def compare_numbers(cells: Sequence[Cell], device: Device) -> str:
    """Masks bit by bit with the CPU's, at full size too; all else of small cells with float64's.

    Raises:
        TrialError: if they differ by more than ``TOLERANCES``.
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
                    f" from float64 on the CPU, of which {allowed} are allowed: {_UPDATE}"
                )
            said.append(what)
    return f"masks equal; logits and score gradients off float64 by {', '.join(said)}"


def _compare_masks(cell: Cell, network: Network) -> None:
    assert network.state is not None
    assert cell.density is not None
    for name, scores in network.state.scores.items():
        mask = pemn.score_mask(scores.detach(), density=cell.density)
        expected = pemn.score_mask(scores.detach().cpu().double(), density=cell.density)
        if not torch.equal(mask.cpu().double(), expected):
            raise TrialError(
                f"the mask of {name} of {cell.model.label} is not the CPU's: {_UPDATE}"
            )


def _without_dropout(cell: Cell) -> Cell:
    if isinstance(cell.model, ViT):
        return replace(cell, model=replace(cell.model, dropout=0.0))
    return cell


def _in_float64(cell: Cell) -> Network:
    """The network of the cell on the CPU."""
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
    """The first of each, with a learned mask."""
    return [learned(cell) for cell in {c.model.family: c for c in reversed(cells)}.values()]


def train_briefly(
    cells: Sequence[Cell],
    images: Mapping[str, tuple[Images, Images]],
    device: Device,
    folder: Path,
) -> str:
    """Fifty steps of each family, epoch by epoch over a few images, of the digits where none are.

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
        row = train_run(
            replace(cell, recipe=cell.recipe.changed(epochs=epochs)),
            0,
            (few, test_images[:100]),
            device,
            Checkpoint(folder / "none.pt", float("inf"), Stop()),
            folder / "files" / f"{cell.id}.safetensors",
            lambda _: None,
        )
        if isinstance(row, Skipped):
            raise TrialError(f"{row.reason} for {cell.model.label}: choose by --model")
        if "failed" in row:
            raise TrialError(f"{cell.model.label}: {row['failed']}: {_UPDATE}")
        first, last = row["history"][0]["loss"], row["history"][-1]["loss"]
        what = f"{cell.model.label} on {cell.dataset} {first:.2f} to {last:.2f}"
        if last > (1 - FALL) * first:
            raise TrialError(f"the loss does not fall, {what}: {_UPDATE}")
        said.append(what)
    return f"the loss falls in {STEPS} steps: {', '.join(said)}"


def stop_and_resume(device: Device, folder: Path) -> str:
    """The command itself, stopped by SIGTERM and given again, beside one that is not stopped.

    Raises:
        TrialError: if it does not stop, or does not go on as ``compare_runs`` would have it.
    """
    study = STUDIES["digits"].chosen(models=["convmixer"], strategies=["mp"]).shortened(_EPOCHS)
    run = study.cells[0].run_id(0)
    whole, parts = (RunStore(folder / name, "digits", print) for name in ("whole", "parts"))
    _finish(_start(device, whole))

    wait = sum(epoch["seconds"] for epoch in whole.rows()[run]["history"][:2])
    lock = parts.out / "locks" / f"{run}.lock"
    tries = _TRIES
    kept: list[Epoch] = []
    while not kept:  # a device that was slow to begin has not come so far
        lock.unlink(missing_ok=True)
        child = _start(device, parts)
        while child.poll() is None and not lock.exists():
            time.sleep(0.02)
        time.sleep(wait)
        child.terminate()
        _, errors = child.communicate()
        if run in parts.rows():  # quicker to begin than the first process, it was done before
            tries -= 1
            if not tries:
                raise TrialError(f"SIGTERM does not stop it: {_NO_STOP}")
            wait /= 2
            shutil.rmtree(parts.out)
            parts = RunStore(parts.out, "digits", print)
            continue
        _expect(128 + signal.SIGTERM, child, errors)
        content = parts.checkpoint(run, 0, Stop()).read()
        if content is None:
            raise TrialError(f"stopped without a checkpoint: {_NO_STOP}")
        kept = [Epoch(*epoch) for epoch in content["position"]["history"]]

    _finish(_start(device, parts))
    compare_runs(parts, whole, run, kept, device)
    same = ", to the same bits" if device.repeats else ""
    return f"stopped after {len(kept)} epochs, gone on to {_EPOCHS}{same}"


_EPOCHS = 10
_TRIES = 6
_NO_STOP = "do not stop runs there, or mend that first"


def _start(device: Device, store: RunStore) -> "subprocess.Popen[str]":
    what = ("--model", "convmixer", "--strategy", "mp", "--seeds", "1", "--epochs", str(_EPOCHS))
    where = ("--device", str(device.torch), "--out", str(store.out))
    return subprocess.Popen(
        [sys.executable, "-m", "reproduce", "run", *what, *where],
        cwd=Path(__file__).parents[2],  # where python finds the package
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",  # a child says what its own locale can
    )


def _finish(child: "subprocess.Popen[str]") -> None:
    _, errors = child.communicate()
    _expect(0, child, errors)


def _expect(code: int, child: "subprocess.Popen[str]", errors: str) -> None:
    if child.returncode != code:
        said = errors.strip() or "nothing was said"
        raise TrialError(f"exit code {child.returncode}, not {code}: {said}: {_NO_STOP}")


def compare_runs(
    parts: RunStore, whole: RunStore, run: str, kept: Sequence[Epoch], device: Device
) -> None:
    """A run in parts, the first of which left the epochs ``kept``, with one in one piece.

    Raises:
        TrialError: if it began anew; or if row, times aside, or network differ, where runs repeat.
    """
    row, expected = (store.rows()[run] for store in (parts, whole))
    if [Epoch(**epoch) for epoch in row["history"][: len(kept)]] != [*kept]:  # times and all
        raise TrialError(f"the run did not go on from its checkpoint: {_NO_STOP}")
    one, other = (store.file(run).read_bytes() for store in (parts, whole))
    if device.repeats and (_times_aside(row) != _times_aside(expected) or one != other):
        raise TrialError(f"row or network are not those of a run in one piece: {_NO_STOP}")


def _times_aside(row: Row) -> Row:
    history = [{**epoch, "seconds": None} for epoch in row["history"]]
    return {**row, "seconds": None, "images_per_second": None, "history": history}
