"""The command line: ``python -m reproduce run`` and what can be done with its files."""

import errno
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reproduce.data.root import MissingDataError
from reproduce.rows import DamagedRowsError, append_row

if TYPE_CHECKING:
    from rich.console import Console

    from reproduce.cells import Study
    from reproduce.cluster import Cluster
    from reproduce.device import Device
    from reproduce.plan import Plan
    from reproduce.timing import Ratio

# Typer exports the class of all usage errors only as the base of this one.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]

app = typer.Typer(add_completion=False, rich_markup_mode=None)
bench = typer.Typer(rich_markup_mode=None, help="Ratios of times, each measured side by side.")
app.add_typer(bench, name="bench")
rows = typer.Typer(rich_markup_mode=None, help="The rows that are kept, one file a study.")
app.add_typer(rows, name="ledger")

_Data = Annotated[
    Path | None,
    typer.Option(help="Folder of the datasets; else PEMN_DATA, else one in the user's cache."),
]
_DeviceName = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; else the best that is present.")
]
_StudyName = Annotated[
    str,
    typer.Option(help="digits, cifar10-small (hours on a CPU) or paper (days on a GPU)."),
]
_All = Annotated[bool, typer.Option("--all", help="The same as --study paper.")]
_Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="Only this one, such as vit or resnet32; may be repeated."),
]
_Strategies = Annotated[
    list[str] | None,
    typer.Option("--strategy", help="Only this one, such as mp, rp or rp_1e-2; may be repeated."),
]
_Datasets = Annotated[
    list[str] | None,
    typer.Option("--dataset", help="Only this one, such as cifar10; may be repeated."),
]
_Ids = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only the cell of this id, as its runs have it; may be repeated."),
]
_Seeds = Annotated[
    int | None,
    typer.Option(min=1, help="Train each cell with the seeds 0 to N-1; else the study's N."),
]
_Rows = Annotated[Path | None, typer.Option(help="Folder for the rows; else that of --out.")]
_Out = Annotated[Path, typer.Option(help="Folder of rows, networks, checkpoints and figures.")]
_Ledger = Annotated[
    Path,
    typer.Option(help="Folder of the rows that are kept.", show_default="reproduce/results"),
]
_RESULTS = Path(__file__).with_name("results")
_File = Annotated[Path, typer.Argument(help="A compressed network, as run writes it.")]
_Lines = Annotated[
    Path | None, typer.Option("--out", help="Add each ratio to this file too, as a line of JSON.")
]


@app.callback()
def experiments() -> None:
    """Experiments of Parameter-Efficient Masking Networks (Bai et al., NeurIPS 2022)."""


@app.command()
def run(
    study: _StudyName = "digits",
    all_: _All = False,
    model: _Models = None,
    strategy: _Strategies = None,
    dataset: _Datasets = None,
    only: _Ids = None,
    seeds: _Seeds = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="A shortened run; its rows carry their own cell id."),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop at a checkpoint after so long.")
    ] = None,
    device: _DeviceName = None,
    data: _Data = None,
    out: _Out = Path("runs"),
    ledger: _Rows = None,
    on_cpu: Annotated[
        bool, typer.Option("--on-cpu", help="Train cells of the paper without a GPU, too.")
    ] = False,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Let Ray train many at once; needs the extra ray.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Argument(
            help="With --ray: HOST:PORT of a cluster, or auto for the one that runs here; else Ray"
            " starts one on this machine."
        ),
    ] = None,
    cells_per_gpu: Annotated[
        int | None, typer.Option(min=1, help="With --ray: how many share a GPU; else 1.")
    ] = None,
) -> None:
    """Train the networks of a study with every strategy.

    By default a small ConvMixer on digits, about a minute of training on a CPU: a demonstration,
    not a cell of the paper. The same command goes on where an earlier one was stopped or killed,
    and any number of processes may share a folder. Before cells of the paper are trained, check
    looks whether they can be. Exit codes: 0 all done, 2 bad input or files, or a device that fails
    a check, 3 some runs failed or were skipped, 4 stopped by --max-minutes, 130 or 143 interrupted.
    """
    # Imported here: they load torch, for which --help should not wait, and Ctrl-C may come.
    from reproduce.checkpoint import CheckpointError, Stopped, stopping
    from reproduce.plan import read_plan
    from reproduce.run import run_study

    if (address or cells_per_gpu) and not on_ray:
        raise typer.BadParameter(f"{address or cells_per_gpu} is for --ray, which is not there")
    wanted = _chosen(study, all_, model, strategy, dataset, only)
    if epochs:
        wanted = wanted.shortened(epochs)
    judged: Device | None
    opened: Device | Cluster
    if on_ray:
        from reproduce.cluster import open_cluster

        with _naming("--ray"):
            opened = open_cluster(address, device, cells_per_gpu)
        judged = opened.here
    else:
        opened = judged = _open(device, wanted.threads)
    chosen = range(seeds or wanted.seeds)
    start = time.monotonic()
    try:
        if wanted.name == "paper":
            found = read_plan(wanted, chosen, out, ledger)
            _prepare(found, judged, data, out, on_cpu, cells_per_gpu or 1)
        if max_minutes is not None:
            max_minutes -= (time.monotonic() - start) / 60  # of the check
        with stopping(max_minutes) as stop:
            complete = run_study(
                *(wanted, chosen, out, opened, data),
                stop=stop,
                ledger=ledger,
            )
    except (KeyboardInterrupt, Stopped) as why:
        complain(f"stopped: all is kept in {out}, the same command goes on there")
        raise typer.Exit(why.code if isinstance(why, Stopped) else 130) from None
    except CheckpointError as error:
        complain(f"error: {error}")
        raise typer.Exit(2) from None
    except OSError as error:
        short = error.errno in (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
        hint = "" if short else "; --out must name a folder that can be written"
        complain(f"error: {error}{hint}")
        raise typer.Exit(2) from None
    if not complete:
        complain("some runs failed or were skipped, as said above")
        raise typer.Exit(3)


@app.command()
def plan(
    study: _StudyName = "digits",
    all_: _All = False,
    model: _Models = None,
    strategy: _Strategies = None,
    dataset: _Datasets = None,
    only: _Ids = None,
    seeds: _Seeds = None,
    device: _DeviceName = None,
    data: _Data = None,
    out: _Out = Path("runs"),
    ledger: _Rows = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Estimate the rest on so many GPUs, too.")
    ] = None,
    cells_per_gpu: Annotated[
        int | None, typer.Option(min=1, help="The same, with so many cells on each.")
    ] = None,
) -> None:
    """List what run would train, what is done, and what the rest costs on this device.

    Runs that are begun or failed have a line each, and every run has one where only one model on
    one dataset is asked for. Nothing is trained.
    """
    from reproduce.cost import measure
    from reproduce.data.datasets import folder
    from reproduce.plan import make_table, read_plan

    wanted = _chosen(study, all_, model, strategy, dataset, only)
    opened = _open(device, wanted.threads)
    console = _console()
    with _refusing_files():
        found = read_plan(wanted, range(seeds or wanted.seeds), out, ledger)
    with console.status("measuring"):
        costs = measure(found.cells, opened)
        table = make_table(found, costs, opened)
    console.print(table, soft_wrap=False)
    for run in found.runs:
        if run.state in ("begun", "failed") or len(wanted.groups()) == 1:
            console.print(run.line)
    for name in dict.fromkeys(cell.dataset for cell in found.cells):
        if (where := folder(name, data)) and not where.exists():
            console.print(f"no {where}: if run cannot get it, it skips all runs on {name}")
    console.print(found.estimate(costs, opened))
    if gpus or cells_per_gpu:
        console.print(found.shared_estimate(costs, opened, gpus or 1, cells_per_gpu or 1))


@app.command()
def check(
    study: _StudyName = "digits",
    all_: _All = False,
    model: _Models = None,
    strategy: _Strategies = None,
    dataset: _Datasets = None,
    only: _Ids = None,
    device: _DeviceName = None,
    data: _Data = None,
    out: _Out = Path("runs"),
) -> None:
    """Look whether the device, the data and the folder can be trusted with a study.

    One line a point. run does the same before it trains cells of the paper. Exit codes: 0 all is
    well, 1 a point failed, 2 bad input or files.
    """
    from reproduce.check import check
    from reproduce.plan import read_plan

    wanted = _chosen(study, all_, model, strategy, dataset, only)
    opened = _open(device, wanted.threads)
    with _refusing_files():
        found = read_plan(wanted, range(wanted.seeds), out)
    if not check(found, opened, data, out, _console().print):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="The id of a run, the last word of its line.")],
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    out: _Out = Path("runs"),
) -> None:
    """Copy the network of a run out of its folder."""
    from reproduce import files

    with _refusing_files():
        files.export(out, run, file)


@app.command()
def inspect(file: _File) -> None:
    """Show what a compressed network holds, and its size by three accountings.

    Reads the header only, so damage to the tensors is not seen.
    """
    from rich.console import Console

    from reproduce.files import make_tables

    console = Console(markup=False, emoji=False, highlight=False)
    with _refusing_files():
        for table in make_tables(file):
            console.print(table)


@app.command()
def materialize(
    file: _File, dense: Annotated[Path, typer.Argument(help="The safetensors file to write.")]
) -> None:
    """Turn a compressed network into an ordinary dense safetensors file."""
    from reproduce import files

    with _refusing_files():
        files.materialize(file, dense)


@app.command()
def evaluate(file: _File, data: _Data = None, device: _DeviceName = None) -> None:
    """Measure a compressed network again: on the same machine, the accuracy of its row."""
    from reproduce.run import evaluate_file

    opened = _open(device)
    with _refusing_files():
        name, accuracy, images = evaluate_file(file, opened, data)
    print(f"{name}: {100 * accuracy:.1f} % of {images} held-out images, exactly {accuracy}")


@app.command()
def table(
    study: _StudyName = "paper",
    all_: _All = False,
    model: _Models = None,
    strategy: _Strategies = None,
    dataset: _Datasets = None,
    only: _Ids = None,
    ledger: _Ledger = _RESULTS,
) -> None:
    """Print accuracy and size of every cell, measured or not, beside what the paper reports."""
    from rich.console import Console

    from reproduce.ledger import read
    from reproduce.tables import show

    wanted = _chosen(study, all_, model, strategy, dataset, only, defaults=False)
    _need_folder(ledger)
    show(
        Console(markup=False, highlight=False),
        wanted.groups(),
        read(ledger, wanted.name, complain),
    )


@app.command()
def figures(
    ledger: _Ledger = _RESULTS,
    out: Annotated[Path | None, typer.Option(help="Folder to draw into; else --ledger.")] = None,
) -> None:
    """Draw the paper's figures, ours beside them, and write README.md with all tables."""
    from reproduce.page import PageError, write_page

    _need_folder(ledger)
    try:
        for path in write_page(ledger, out or ledger, complain):
            print(path)
    except PageError as error:
        complain(f"error: {error}")
        raise typer.Exit(2) from None


@rows.command()
def merge(
    source: Annotated[Path, typer.Argument(help="A file STUDY.jsonl, or a folder of them.")],
    ledger: _Ledger = _RESULTS,
) -> None:
    """Take the rows of another folder or machine. Exit code 3: not all, as is said line by line."""
    from reproduce.ledger import merge

    if not merge(source, ledger, print):
        raise typer.Exit(3)


@bench.command()
def steps(
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 64,
    compiled: Annotated[bool, typer.Option("--compiled", help="Compiled steps, too.")] = False,
    device: _DeviceName = None,
    out: _Lines = None,
) -> None:
    """A training step, masked against dense; masks; augmentation."""
    from reproduce.bench import bench_steps

    opened = _open(device)
    _show(bench_steps(opened, batch=batch, compiled=compiled), opened, out)


@bench.command("files")
def files_(out: _Lines = None) -> None:
    """Compressed files against plain copies and dense files, on the CPU."""
    from reproduce.bench_file import bench_files

    _show(bench_files(), _open("cpu"), out)


@bench.command()
def start(
    cell: Annotated[
        str, typer.Argument(help="The id of a cell: its runs in plan have it, before the seed.")
    ],
    steps: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    device: _DeviceName = None,
    data: _Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Add the row to this file too, as a line of JSON.")
    ] = None,
) -> None:
    """The loss of a cell's first steps, and what all of it would take at that pace."""
    from reproduce.bench_start import bench_start
    from reproduce.cells import WHERE_IDS_ARE
    from reproduce.studies import STUDIES

    found = [c for study in STUDIES.values() for c in study.cells if c.id == cell]
    if not found:
        raise typer.BadParameter(f"no cell {cell!r} in any study: {WHERE_IDS_ARE}")
    row = bench_start(found[0], steps, _open(device), data)
    if out:
        append_row(out, row)
    losses = row["losses"]
    print(
        f"{found[0].model.label}, {found[0].name}: loss {losses[0]:.2f} in the first,"
        f" {losses[-1]:.2f} in the last of {len(losses)} steps; {row['images_per_second']:,.0f}"
        f" images/s, so {row['hours']:,.1f} hours for all of it"
    )


@bench.command()
def cells(out: _Lines = None) -> None:
    """Two small cells side by side, with a thread each, against one after the other, with two."""
    from reproduce.bench_cells import bench_cells

    _show(bench_cells(), _open("cpu"), out)


def _chosen(
    study: str,
    all_: bool,
    models: Sequence[str] | None,
    strategies: Sequence[str] | None,
    datasets: Sequence[str] | None,
    ids: Sequence[str] | None,
    *,
    defaults: bool = True,
) -> "Study":
    """The cells asked for; where no model or dataset is, those of the study or else all."""
    from dataclasses import replace

    from reproduce.studies import STUDIES

    name = "paper" if all_ else study
    if name not in STUDIES:
        raise typer.BadParameter(
            f"no study {name!r}, only {', '.join(STUDIES)}", param_hint="--study"
        )
    wanted = STUDIES[name] if defaults else replace(STUDIES[name], models=(), datasets=())
    with _naming(None):
        return wanted.chosen(
            models=models or (),
            strategies=strategies or (),
            datasets=datasets or (),
            ids=[name.partition("-")[0] for name in ids or ()],  # a run's too, as run prints it
        )


def _prepare(
    plan: "Plan",
    device: "Device | None",
    data: Path | None,
    out: Path,
    on_cpu: bool,
    together: int,
) -> None:
    """Before days are spent: no other device is meant, and this one can be trusted.

    None stands for GPUs of a cluster that this machine has not one of.
    """
    from reproduce.check import check
    from reproduce.cost import measure

    if not plan.missing:
        return
    if device is None:
        print("not checked, as there is no GPU here: run check on a machine of the cluster")
        return
    if device.slow and not on_cpu:
        print(plan.estimate(measure(plan.cells, device), device))
        complain(
            "error: that is for a GPU: give --on-cpu to go on nevertheless, or take"
            " --study cifar10-small, which takes hours on a CPU"
        )
        raise typer.Exit(2)
    if not check(plan, device, data, out, _console().print, together):
        complain("error: nothing is trained before all that FAILED above is mended")
        raise typer.Exit(2)


def _need_folder(ledger: Path) -> None:
    """One that is not there has no rows either: that is not meant."""
    if not ledger.is_dir():
        raise typer.BadParameter(f"no folder {ledger}", param_hint="--ledger")


def _console() -> "Console":
    """Prints each line whole, as it is, and at once."""
    from rich.console import Console

    return Console(markup=False, highlight=False, soft_wrap=True)


def _show(ratios: "Iterable[Ratio]", device: "Device", out: Path | None) -> None:
    from rich.console import Console

    from reproduce.timing import conditions, make_table

    console = Console(markup=False, highlight=False)
    where = conditions(device.torch, device.hardware)
    measured = []
    with console.status("measuring"):
        for ratio in ratios:
            measured.append(ratio)
            if out:
                append_row(out, {**ratio._asdict(), **where})
    console.print(make_table(measured, where))


def _open(device: str | None, threads: int | None = None) -> "Device":
    import torch

    from reproduce.device import open_device

    if threads:
        torch.set_num_threads(threads)
    with _naming("--device"):
        return open_device(device)


@contextmanager
def _refusing_files() -> Iterator[None]:
    """A file that is refused inside is one line and exit code 2."""
    from pemn_ref.file import FileError
    from reproduce.checkpoint import CheckpointError
    from reproduce.files import UnknownRunError

    try:
        yield
    except (FileError, CheckpointError, UnknownRunError) as error:
        complain(f"error: {error}")
        raise typer.Exit(2) from None


@contextmanager
def _naming(option: str | None) -> Iterator[None]:
    """A value that is refused inside is a usage error, of ``option`` if not several."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def complain(message: str) -> None:
    """One line on stderr."""
    print(" ".join(message.split()), file=sys.stderr)


def main() -> int:
    """Run the command line and return its exit code; an expected error is one line, no traceback.

    (Typer by itself shows a usage error on several lines.)
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign is no failure
    try:
        return int(app(standalone_mode=False) or 0)
    except _UsageError as error:
        complain(f"error: {error.format_message()}")
    except (DamagedRowsError, MissingDataError, OSError) as error:
        complain(f"error: {error}")
    except ModuleNotFoundError as error:
        extra = "ray" if error.name == "ray" else "reproduce"
        complain(f"error: {error}; pip install '.[{extra}]' in a checkout brings it")
    except typer.Abort:
        complain("interrupted")
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
