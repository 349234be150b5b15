"""COST.md: what the paper's runs would take on a GPU, from counts and stated assumptions."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

import pemn_ref as pemn
from pemn_ref.atomic import write
from reproduce.bench.launches import Launches, count, count_augmentation
from reproduce.data.datasets import DATASETS
from reproduce.study.cells import PRUNED, Cell, ResNet
from reproduce.study.studies import STUDIES
from reproduce.training.device import Device
from reproduce.training.networks import make_model
from reproduce.training.step import training_step

AIM = 8
"""Hours that all runs together should take at most."""
# Assumed of one H100 (SXM), not measured.
LAUNCHES = (4e-6, 5e-6, 6e-6)
"""Seconds the host takes for a launch: least, usual, most."""
BANDWIDTH = 0.6 * 3.35e12
RATE = 0.2 * 989e12
# Of commit f69075e, for comparison.
PIL = {"convmixer": 700e-6, "vit": 550e-6, "resnet": 200e-6}
"""Seconds that one core takes to augment an image with PIL, measured."""
CORES = 16
CHECKS = 2.6e-3 / 57
"""Seconds of Python for each masked layer and step, measured on ResNet56."""
_EVALUATION = 500


class Work(NamedTuple):
    """The work of a step or a batch."""

    launches: float
    bytes: float
    flops: float

    def host(self, launch: float) -> float:
        """Seconds the host needs, at ``launch`` seconds for each launch."""
        return launch * self.launches

    @property
    def gpu(self) -> float:
        """Seconds the GPU needs."""
        return self.bytes / BANDWIDTH + self.flops / RATE

    def seconds(self, launch: float) -> float:
        """Seconds until both are done, when they work side by side."""
        return max(self.host(launch), self.gpu)


def counted(cell: Cell, kind: str | None = None) -> Cell:
    """The cell whose step is counted for all cells of a ``kind``, by default the kind of ``cell``.

    Kinds are ``learned``, ``pruned`` and ``dense``, which includes controls: they make no masks in
    a step.
    """
    if kind is None:
        kind = "pruned" if cell.strategy in PRUNED else "learned"
        kind = "dense" if cell.strategy in ("dense", "control") else kind
    strategy = {"dense": "dense", "pruned": "prune_minimum", "learned": "mp"}[kind]
    density = None if kind == "dense" else 0.5
    return replace(cell, dataset="cifar10", strategy=strategy, ratio=None, density=density)


def images_of(cell: Cell) -> Work:
    """Picking and augmenting a batch."""
    launches = count_augmentation(cell.recipe, DATASETS["cifar10"])
    return Work(launches.kernels, launches.bytes, 0)


def step_of(cell: Cell) -> Work:
    """A training step, including its images."""
    counts, images = count(counted(cell)), images_of(cell)
    return Work(counts.launches + images.launches, counts.bytes + images.bytes, counts.flops)


def hours(cell: Cell, launch: float) -> float:
    """Hours of a run."""
    return _run(cell, launch, step_of(cell).seconds(launch))


def hours_before(cell: Cell, launch: float) -> float:
    """Hours of a run at commit f69075e, with the images augmented on ``CORES``."""
    dense, sizes = count(counted(cell, "dense")), _sizes(counted(cell, "dense"))
    masks, checks = 0, 0.0
    if cell.density is not None:
        masks = 33 * len(sizes) + 20 * sum(size >= 20_000 for size in sizes)
        checks = CHECKS * len(sizes)
    step = Work(dense.launches + masks, dense.bytes, dense.flops)
    images = cell.recipe.batch * PIL[cell.model.family] / CORES
    return _run(cell, launch, max(step.host(launch) + checks, step.gpu, images))


@cache
def _sizes(cell: Cell) -> list[int]:
    with torch.device("meta"):
        model = make_model(cell, 0)
    return [shape.numel() for shape in pemn.maskable_shapes(model).values()]


def _run(cell: Cell, launch: float, step: float) -> float:
    """Hours of a run whose steps take ``step`` seconds each, including its evaluations."""
    dataset, batch = DATASETS[cell.dataset], cell.recipe.batch
    counts = count(counted(cell))
    share = 2 / 3 * _EVALUATION / batch
    evaluation = Work(counts.forward, share * counts.bytes, share * counts.flops)
    steps, batches = -(-dataset.train // batch), dataset.test / _EVALUATION
    return cell.recipe.epochs * (steps * step + batches * evaluation.seconds(launch)) / 3600


def counts_of(cell: Cell) -> str:
    """The counted part of a line of the table, for the model of a cell; it has no times."""
    kinds = ("dense", "pruned", "learned")
    dense, pruned, learned = (count(counted(cell, kind)) for kind in kinds)
    launches = [dense.launches, pruned.launches, learned.launches, images_of(cell).launches]
    amounts = [learned.flops / 1e9, learned.bytes / 1e9, learned.activations / 1e9]
    numbers = [*(f"{n:,}" for n in launches), *(f"{n:,.1f}" for n in amounts)]
    return " | ".join([cell.model.label, *numbers])


def operation_seconds(device: Device) -> float:
    """Seconds that Python and PyTorch take here for an operation on almost no numbers.

    Measured on a step of a ResNet32 with one channel: the fastest of ten, in process time.
    """
    cell = STUDIES["paper"].chosen(models=["resnet32"], strategies=["mp"]).cells[0]
    tiny = replace(cell, model=ResNet(depth=32, width=1))
    step = training_step(tiny, 2, device, compiled=False)
    operations = Launches(device.torch)
    with operations:
        step()
    times = []
    for _ in range(10):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times) / operations.kernels


def write_page(path: Path, device: Device, say: Callable[[str], object]) -> None:
    """Count, measure what an operation costs the host on ``device``, and write the page.

    Raises:
        LeftDeviceError, RuntimeError: as ``count``.
        OSError: if the page cannot be written.
    """
    cells = STUDIES["paper"].chosen().cells
    models: dict[str, list[Cell]] = {}
    for cell in cells:
        models.setdefault(cell.model.label, []).append(cell)
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|---{(len(_COLUMNS) - 1) * '|---:'}|"]
    for label, of_model in models.items():
        say(f"counting {label}")
        lines.append(_line(of_model))
    say("measuring an operation")
    operation = operation_seconds(device)
    page = _PAGE.format(
        runs=len(cells),
        now=_range(cells, hours),
        before=_range(cells, hours_before),
        verdict=_verdict(cells),
        table="\n".join(lines),
        least=1e6 * LAUNCHES[0],
        usual=1e6 * LAUNCHES[1],
        most=1e6 * LAUNCHES[2],
        operation=1e6 * operation,
        slow=sum(hours(cell, operation) for cell in cells),
        where=f"{device.hardware}, torch {torch.__version__}",
        bandwidth=BANDWIDTH / 1e12,
        rate=RATE / 1e12,
        cores=CORES,
        pil=", ".join(f"{family} {1e6 * seconds:.0f}" for family, seconds in PIL.items()),
        checks=1e6 * CHECKS,
    )
    write(path, page.encode())


def _line(cells: list[Cell]) -> str:
    first, usual = cells[0], LAUNCHES[1]
    step = step_of(counted(first, "learned"))
    pace = first.recipe.batch / images_of(first).seconds(usual)
    before, now = (sum(of(cell, usual) for cell in cells) for of in (hours_before, hours))
    return (
        f"| {counts_of(first)} | {1000 * step.host(usual):.1f} | {1000 * step.gpu:.1f} |"
        f" {pace:,.0f} | {len(cells)} | {before:.1f} | {now:.1f} |"
    )


def _range(cells: tuple[Cell, ...], of: Callable[[Cell, float], float]) -> str:
    least, usual, most = (sum(of(cell, launch) for cell in cells) for launch in LAUNCHES)
    return f"{usual:.1f} hours ({least:.1f} to {most:.1f})"


def _verdict(cells: tuple[Cell, ...]) -> str:
    """Whether the aim is met; if not, what stands in the way."""
    if sum(hours(cell, LAUNCHES[1]) for cell in cells) <= AIM:
        return f"The aim, at most {AIM} hours, is met on these assumptions."
    busy = sum(hours(cell, 0) for cell in cells)
    return (
        f"The aim of at most {AIM} hours is missed: the GPU alone is busy for {busy:.1f} hours,\n"
        "mostly to read and write the bytes of kernels that are not fused. Processes that share\n"
        "it save at most the rest, the time it waits for launches."
    )


_COLUMNS = (
    *("model", "dense", "pruned", "learned", "images", "GFLOP", "GB", "kept", "host", "GPU"),
    *("images/s", "runs", "before", "now"),
)
_PAGE = """\
# What the paper's CIFAR runs take on one H100

`python -m reproduce bench cost` writes this page without a GPU. **Not run on a GPU**: launches,
FLOPs and bytes are counted, and all times follow from them and from the assumptions below.

All {runs} runs, one seed, one after the other, eager, with {usual:.0f} microseconds a launch
({least:.0f} to {most:.0f}): **{now}**. At commit f69075e, before masks were grouped and
images augmented on the device: {before}.

{verdict}

{table}

Each row is one training step at the recipe's batch size.

- dense, pruned, learned: launches of a step without masks to make (a control's are made once), of a
  pruned network, and of one that learns its masks. images: launches that augment a batch.
- GFLOP, GB moved, and GB kept for the backward pass, when masks are learned.
- host, GPU: milliseconds that each needs for that step and its images. The longer one counts.
- images/s: augmentation alone. before, now: hours of all runs of the model.

Counted with PyTorch's fake tensors, which have shapes but no values:

- An operation is one launch. A view needs none, top-k of 20,000 values 21, a cumulative sum 3, and
  the fused optimizer one for every 36 tensors (AdamW, Adam) or 48 (SGD).
- The forward pass is in bfloat16, as on a GPU, with the flash kernel for attention. The backward
  pass is counted in float32, its bytes scaled like the forward pass's, with one more launch for
  each cast.
- FLOPs are three times those of the forward pass. Bytes are all that each kernel reads and writes,
  as if there were no cache.

Assumed:

- A launch takes the host {least:.0f} to {most:.0f} microseconds, with Python and autograd. Here an
  operation of PyTorch on almost no numbers, with these, took {operation:.1f}
  ({where}; a ResNet32 step with one channel; other work on the machine makes it
  longer). A host as slow as that would need {slow:.0f} hours.
- {bandwidth:.1f} TB/s, 60 % of an H100's 3.35; {rate:.0f} TFLOP/s, 20 % of its 989 in bfloat16.
  Bytes and FLOPs take their times one after the other. Host and GPU do not wait for each other.
- A held-out image takes a third of the bytes and FLOPs of a step's, twice for float32.
- Before: {cores} cores with PIL ({pil}
  microseconds an image and core, measured); 33 launches a masked layer and 20 more for 20,000
  weights (counted); {checks:.0f} microseconds of checks a masked layer and step (measured).

## When a GPU is at hand

Run these in this order. Stop at the first number that you cannot explain:

```sh
python -m reproduce check --all    # numbers against CPU float64, a resumed run, memory, time
python -m reproduce bench steps --batch 512
python -m reproduce bench steps --batch 128
# the canary
python -m reproduce run --all --dataset cifar10 --model convmixer-d6-w256 --strategy rp_1e-3
# limited by launches, so two processes share the GPU
python -m reproduce run --all --dataset cifar10 --model resnet32 --strategy mp --strategy rp_1e-1 &
python -m reproduce run --all --dataset cifar10 --model resnet32 --strategy rp_1e-2 --strategy dense
wait
python -m reproduce table --ledger runs                # ours beside the paper's
tar czf runs.tar.gz runs                               # rows, networks, checkpoints
```

Where the time of a ResNet32 step goes, before anything is compiled or captured in a CUDA graph:

```python
from torch.profiler import profile
from reproduce.bench.steps import CELLS
from reproduce.training.device import open_device
from reproduce.training.step import training_step

step = training_step(CELLS[-1], 128, open_device(), compiled=False)
for _ in range(3):
    step()
with profile() as seen:
    step()
print(seen.key_averages().table(sort_by="self_device_time_total", row_limit=20))
```
"""
