"""COST.md: what the paper's runs take on a GPU, from counts and a few measured steps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pemn_ref.atomic import write
from reproduce.bench.launches import count, count_augmentation
from reproduce.data.datasets import DATASETS
from reproduce.study.cells import PRUNED, Cell
from reproduce.study.studies import STUDIES

AIM = 8
"""Hours that all runs together should take at most."""
MEASURED = {
    "convmixer-d6-w256": (10.7, 11.1),
    "vit-d6-w256": (7.9, 14.0),
    "resnet32": (4.8, 14.2),
}
"""Milliseconds of a step that learns a mask, replayed and eager, on one H200."""
# From these steps, and from augmentation: seconds that the host takes for a launch of a step, with
# autograd, and for one of augmentation, without; and that a GPU takes for a kernel beside its bytes
# and FLOPs. It makes the times of the GPU at most 20 % wrong.
LAUNCH = 27e-6
IMAGE_LAUNCH = 14e-6
KERNEL = 6e-6
# Shares of what the H200's data sheet says.
BANDWIDTH = 0.6 * 4.8e12
RATE = 0.2 * 989e12
_EVALUATION = 500


class Work(NamedTuple):
    """The work of a step or a batch."""

    launches: float
    bytes: float
    flops: float

    @property
    def gpu(self) -> float:
        """Seconds the GPU needs."""
        return KERNEL * self.launches + self.bytes / BANDWIDTH + self.flops / RATE

    @property
    def eager(self) -> float:
        """Seconds if the host launches each kernel, which it does while the GPU works."""
        return max(LAUNCH * self.launches, self.gpu)


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
    """A training step without its images."""
    counts = count(counted(cell))
    return Work(counts.launches, counts.bytes, counts.flops)


def hours(cell: Cell) -> float:
    """Hours of a run whose steps are replayed."""
    images = images_of(cell)
    return _run(cell, max(IMAGE_LAUNCH * images.launches, images.gpu + step_of(cell).gpu))


def hours_eager(cell: Cell) -> float:
    """Hours of a run whose steps are not."""
    step, images = step_of(cell), images_of(cell)
    host = LAUNCH * step.launches + IMAGE_LAUNCH * images.launches
    return _run(cell, max(host, images.gpu + step.gpu))


def _run(cell: Cell, step: float) -> float:
    """Hours of a run whose steps take ``step`` seconds each, including its evaluations."""
    dataset, batch = DATASETS[cell.dataset], cell.recipe.batch
    counts = count(counted(cell))
    share = 2 / 3 * _EVALUATION / batch
    evaluation = Work(counts.forward, share * counts.bytes, share * counts.flops)
    steps, batches = -(-dataset.train // batch), dataset.test / _EVALUATION
    return cell.recipe.epochs * (steps * step + batches * evaluation.eager) / 3600


def counts_of(cell: Cell) -> str:
    """The counted part of a line of the table, for the model of a cell; it has no times."""
    kinds = ("dense", "pruned", "learned")
    dense, pruned, learned = (count(counted(cell, kind)) for kind in kinds)
    launches = [dense.launches, pruned.launches, learned.launches, images_of(cell).launches]
    amounts = [learned.flops / 1e9, learned.bytes / 1e9, learned.activations / 1e9]
    numbers = [*(f"{n:,}" for n in launches), *(f"{n:,.1f}" for n in amounts)]
    return " | ".join([cell.model.label, *numbers])


def write_page(path: Path, say: Callable[[str], object]) -> None:
    """Count, and write the page.

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
    page = _PAGE.format(
        runs=len(cells),
        now=sum(map(hours, cells)),
        eager=sum(map(hours_eager, cells)),
        aim=AIM,
        table="\n".join(lines),
        launch=1e6 * LAUNCH,
        image_launch=1e6 * IMAGE_LAUNCH,
        kernel=1e6 * KERNEL,
        bandwidth=BANDWIDTH / 1e12,
        rate=RATE / 1e12,
    )
    write(path, page.encode())


def _line(cells: list[Cell]) -> str:
    first = cells[0]
    measured = MEASURED.get(first.model.label)
    now, eager = (sum(map(of, cells)) for of in (hours, hours_eager))
    return (
        f"| {counts_of(first)} | {1000 * step_of(counted(first, 'learned')).gpu:.1f} |"
        f" {measured[0] if measured else '-'} | {measured[1] if measured else '-'} |"
        f" {len(cells)} | {now:.1f} | {eager:.1f} |"
    )


_COLUMNS = (
    *("model", "dense", "pruned", "learned", "images", "GFLOP", "GB", "kept"),
    *("GPU", "measured", "eager", "runs", "hours", "hours eager"),
)
_PAGE = """\
# What the paper's CIFAR runs take on one H200

`python -m reproduce bench cost` writes this page; it needs no GPU. Launches, FLOPs and bytes are
counted. The times follow from them and from three steps that were measured on a GPU.

All {runs} runs, one seed each, one after the other, would take about **{now:.0f} hours**; the aim
was {aim}. Without recorded steps it would be {eager:.0f}: the host needs {launch:.0f} microseconds
for a launch, and a step of a small network has hundreds of launches. So the step is recorded as a
CUDA graph and replayed. What is left is the GPU's own time. A ResNet's kernels are so small that
each takes about {kernel:.0f} microseconds, whatever it computes.

{table}

Each row is one training step at the recipe's batch size.

- dense, pruned, learned: launches of a step that makes no masks (a control makes its masks once),
  of a pruned network's step, and of one that learns masks. images: launches that augment a batch.
- GFLOP, GB: computed and moved by a step that learns masks. kept: GB that it keeps for the
  backward pass.
- GPU: milliseconds of that step by the model below. measured, eager: milliseconds measured on the
  GPU, replayed and without recording, each a mean over 0.6 seconds of steps.
- hours, hours eager: for all runs of the model, replayed and without recording.

## Measured

On one H200, 16 cores, torch 2.11.0+cu130, Python 3.12, at commit 6f93b40. The first four items
were measured under CUDA's Multi-Process Service, with one process:

- In eleven steps of each family, alternating between two batch sizes, the replayed step gave the
  loss and the gradients of the usual one bit for bit, including ViT with its dropout.
- Masks equal the CPU's bit for bit, at full size. Logits and score gradients are within 5e-7 of the
  CPU's float64 in float32 and within 0.1 in bfloat16, inside the limits of `check`.
- Milliseconds of a step, masked / dense, at the recipe's batch size. Replayed: ConvMixer
  10.7 / 10.2, ViT 7.9 / 6.3, ResNet32 4.8 / 4.0. Eager: 11.1 / 10.4, 14.0 / 10.9, 14.2 / 10.8.
  Augmenting a batch takes 4.0, 2.7 and 0.3.
- In a step of ResNet32 the GPU is busy for 4.3 ms: convolutions backward 37 %, batch-norm 21 %,
  casts and copies 10 %, convolutions forward 9 %, the masks' top-k 5 %.
- The canary, ConvMixer d6 w256, rp_1e-3, 100 epochs: 119 seconds, 42,001 images a second.
- Three processes that train ResNet32 gain nothing by sharing the GPU: a step of each takes 13.2 ms,
  where one process alone needs 4.5. Under the service it takes 8.0, so three get 1.7 times as far.

Not measured: the other models. The commands `check --all` and `bench steps` have not run on a GPU.

## The model

Counted with PyTorch's fake tensors, which have shapes but no values:

- An operation is one launch. But a view needs none, top-k of 20,000 values 21, a cumulative sum 3,
  and the fused optimizer one for every 36 tensors (AdamW, Adam) or 48 (SGD).
- The forward pass is in bfloat16, as on a GPU, with the flash kernel for attention. The backward
  pass is counted in float32. Its bytes are scaled like the forward pass's, and each cast adds one
  launch.
- FLOPs are three times those of the forward pass. Bytes are all that each kernel reads and writes,
  as if there were no cache.

Assumed:

- The GPU's time is a sum: {kernel:.0f} microseconds for each kernel, its bytes at
  {bandwidth:.1f} TB/s (60 % of the data sheet's 4.8), and its FLOPs at {rate:.0f} TFLOP/s (20 %
  of the 989 in bfloat16). The {kernel:.0f} microseconds are chosen so that the three measured
  steps are within 20 %.
- The host needs {launch:.0f} microseconds for a launch of a step, and {image_launch:.0f} for one of
  augmentation (measured). It works in parallel with the GPU.
- A held-out image takes a third of the bytes and FLOPs of an image in a step, doubled for float32.
  Evaluation is not recorded.

## On a GPU

Run these in this order. Stop at the first number that you cannot explain:

```sh
python -m reproduce check --all    # numbers against CPU float64, a resumed run, memory, time
python -m reproduce bench steps --batch 512
python -m reproduce bench steps --batch 128
# the canary
python -m reproduce run --all --dataset cifar10 --model convmixer-d6-w256 --strategy rp_1e-3
# small kernels leave most of the GPU idle; with the service, processes fill it together
nvidia-cuda-mps-control -d
python -m reproduce run --all --dataset cifar10 --model resnet32 --strategy mp --strategy rp_1e-1 &
python -m reproduce run --all --dataset cifar10 --model resnet32 --strategy rp_1e-2 --strategy dense
wait
echo quit | nvidia-cuda-mps-control
python -m reproduce table --ledger runs                # ours beside the paper's
tar czf runs.tar.gz runs                               # rows, networks, checkpoints
```

Where the time of a ResNet32 step goes:

```python
from torch.profiler import profile
from reproduce.bench.steps import CELLS
from reproduce.training.device import open_device
from reproduce.training.step import training_step

step = training_step(CELLS[-1], 128, open_device(), compiled=False)
for _ in range(3):  # on a GPU the third is recorded
    step()
with profile() as seen:
    step()
print(seen.key_averages().table(sort_by="self_device_time_total", row_limit=20))
```
"""
