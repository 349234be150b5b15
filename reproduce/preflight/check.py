"""Check that device, data and folder are ready for a study, before days are spent on it."""

import platform
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch
from filelock import FileLock, Timeout

from pemn_ref.atomic import write
from reproduce.data.datasets import DATASETS, load
from reproduce.data.images import Images
from reproduce.data.root import MissingDataError
from reproduce.memory import out_of_memory
from reproduce.preflight.cost import PROCESS, kind, learned, measure, size
from reproduce.preflight.plan import Plan
from reproduce.preflight.trials import TrialError, compare_numbers, stop_and_resume, train_briefly
from reproduce.rows.row import Program
from reproduce.study.cells import Cell
from reproduce.training.device import Device, Recorder, open_device
from reproduce.training.program import PROGRAM
from reproduce.training.step import training_step


def check_once(
    plan: Plan,
    where: torch.device,
    data: Path | None,
    out: Path,
    say: Callable[[str], None],
    together: int = 1,
) -> bool:
    """``check``, unless all models, each on its dataset, have passed it before.

    In the same folder, on the same machine, device and versions, with as many cells ``together``.
    One process checks at a time; the others wait and use its result.

    Raises:
        OSError: as ``check``.
    """
    path = out / "checked" / f"{platform.node()}-{where}.json".replace(":", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is checking {where}: waiting for it")
        lock.acquire()
    try:
        models = {f"{cell.model.label} on {cell.dataset}" for cell in plan.cells}
        passed = _passed(path, together)
        if models <= passed:
            say(f"ok       checked before, see {path}")
            return True
        good = check(plan, where, data, out, say, together)
        if good:
            checked = _Checked(PROGRAM, together, sorted(models | passed))
            write(path, msgspec.json.encode(checked))
        return good
    finally:
        lock.release()


class _Checked(msgspec.Struct):
    """What passed: models, each on a dataset, with so many cells ``together``."""

    program: Program
    together: int
    models: list[str]


def _passed(path: Path, together: int) -> set[str]:
    """The models that passed; none where the file is missing, or of another version."""
    try:
        checked = msgspec.json.decode(path.read_bytes(), type=_Checked)
    except (FileNotFoundError, ValueError):
        return set()
    same = (checked.program, checked.together) == (PROGRAM, together)
    return {*checked.models} if same else set()


def check(
    plan: Plan,
    where: torch.device,
    data: Path | None,
    out: Path,
    say: Callable[[str], None],
    together: int = 1,
) -> bool:
    """Whether the rest of the plan can be trained on ``where``; says one line for each point.

    ``data`` and ``out`` are as for ``run_study``; ``together`` is how many cells will share the
    device. The device is opened after the processes of ``stop_and_resume`` have ended. Runs on a
    missing dataset will be skipped, so it counts as a failure only if every dataset is missing.

    Raises:
        OSError: if ``out`` cannot be written.
    """
    cells = plan.cells or list(plan.study.cells)
    images: dict[str, tuple[Images, Images]] = {}
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix="check-") as name:
        folder = Path(name).resolve()
        device = cache(lambda: open_device(str(where)))
        points: dict[str, Callable[[], str]] = {
            "data": lambda: _load_data(cells, data, images, say),
            "disk": lambda: _count_disk(plan, out),
            "resuming": lambda: stop_and_resume(where, folder),
            "numbers": lambda: compare_numbers(cells, device()),
            "training": lambda: train_briefly(cells, images, device(), folder),
            "memory": lambda: _try_largest(cells, device(), together),
            "time": lambda: _estimate(plan, device()),
        }
        good = True
        for point, judge in points.items():
            try:
                say(f"ok       {point}: {judge()}")
            except Exception as error:  # whatever it is, the other points are still of interest
                say(f"FAILED   {point}: {' '.join((str(error) or repr(error)).split())}")
                good = False
        if good:  # else training does not follow, and the device may not even open
            device().release_memory()
    return good


def _load_data(
    cells: Sequence[Cell],
    root: Path | None,
    images: dict[str, tuple[Images, Images]],
    say: Callable[[str], None],
) -> str:
    """Put every dataset that is complete and undamaged into ``images``."""
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        try:
            images[dataset] = load(dataset, root)
        except MissingDataError as error:
            say(f"warning  data: all runs on {dataset} will be skipped: {error}")
    if not images:
        raise TrialError("no dataset can be loaded: the lines above say what would help")
    return ", ".join(images)


def _count_disk(plan: Plan, out: Path) -> str:
    """Compare free disk space with the need; a new checkpoint is written beside the old one."""
    sizes = [size(learned(run.cell), bfloat16=False) for run in plan.missing]
    checkpoint = max((of_one.state + of_one.optimizer for of_one in sizes), default=0)
    needed = sum(of_one.file for of_one in sizes) + 2 * checkpoint
    free = shutil.disk_usage(out).free
    what = f"up to {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free in {out}"
    if needed > free:
        raise TrialError(f"{what}: make room, or name another folder with --out")
    return what


def _try_largest(cells: Sequence[Cell], device: Device, together: int) -> str:
    """Compare free memory with the need of the largest cell: on a CPU counted, else measured."""
    sizes = {cell: size(cell, bfloat16=device.bfloat16) for cell in map(learned, cells)}
    largest = max(sizes, key=lambda cell: sizes[cell].memory)
    free = device.free_memory()
    batch = largest.recipe.batch
    last = DATASETS[largest.dataset].train % batch

    def steps() -> None:
        trial = training_step(largest, batch, device, compiled=False)
        for _ in range(Recorder.USUAL + 1):
            trial()
        # An epoch's last batch is smaller, and finds the memory of the recorded step taken.
        if last:
            images, labels = trial.batch
            trial.step((images[:last], labels[:last]))

    what = f"{largest.model.label} on {largest.dataset}"
    less = "choose a smaller one with --model, or a device with more memory"
    try:
        peak = device.peak_memory(steps)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise TrialError(f"{what} does not fit in {free / 1e9:.2f} GB: {less}") from None
    counted = sizes[largest]
    needed = PROCESS * counted.memory if peak is None else peak + counted.images
    each = f" for each of {together}" if together > 1 else ""
    what += f" needs {needed / 1e9:.2f} GB{each}, {free / 1e9:.2f} GB are free"
    if together * needed > free:
        raise TrialError(f"{what}: {less}")
    return what


def _estimate(plan: Plan, device: Device) -> str:
    costs = measure(plan.cells, device, lambda _: None)
    paces = {}
    for cell in plan.cells:
        cost = costs[kind(cell)]
        pace = f"{1 / cost.image:,.0f} images/s" if cost else "too large"
        paces[kind(cell)] = f"{cell.model.label} on {cell.dataset} {pace}"
    return "; ".join([plan.estimate(costs, device), *paces.values()])
