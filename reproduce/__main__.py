"""The command line: ``python -m reproduce run`` and what can be done with its files."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are loaded: no traceback of them

import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reproduce.options import (
    COST,
    MOST,
    RESULTS,
    RUNS,
    All,
    Data,
    Datasets,
    DeviceName,
    File,
    Ids,
    Ledger,
    Lines,
    Models,
    Out,
    Rows,
    Seed,
    Seeds,
    Shown,
    ShownName,
    Strategies,
    StudyName,
    chosen,
    complain,
    exit_code,
    find_one,
    folder_hint,
    load_torch,
    naming,
    need_folder_of,
    nothing_in,
    numbers_of,
    open_one,
    refusing_files,
    shown_folder,
)
from reproduce.report.console import console

if TYPE_CHECKING:
    import torch

    from reproduce.bench.timing import Ratio
    from reproduce.preflight.plan import Plan
    from reproduce.rows.row import Row
    from reproduce.runs.study import Train
    from reproduce.study.cells import Group
    from reproduce.training.device import Device

app = typer.Typer(add_completion=False, rich_markup_mode=None)
bench = typer.Typer(rich_markup_mode=None, help="What steps, files and the paper's runs cost.")
app.add_typer(bench, name="bench")
rows = typer.Typer(rich_markup_mode=None, help="The rows that are kept, one file for each study.")
app.add_typer(rows, name="ledger")
frontier = typer.Typer(rich_markup_mode=None, help="The byte frontier, measured again.")
app.add_typer(frontier, name="frontier")


@app.callback()
def experiments() -> None:
    """Experiments of Parameter-Efficient Masking Networks (Bai et al., NeurIPS 2022)."""


@app.command()
def run(
    study: StudyName = "digits",
    all_: All = False,
    model: Models = None,
    strategy: Strategies = None,
    dataset: Datasets = None,
    only: Ids = None,
    seeds: Seeds = None,
    seed: Seed = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Train so many epochs; the rows get another cell id."),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Write a checkpoint and stop after so many minutes.")
    ] = None,
    device: DeviceName = None,
    data: Data = None,
    out: Out = RUNS,
    ledger: Rows = None,
    on_cpu: Annotated[
        bool, typer.Option("--on-cpu", help="Train cells of the paper even without a GPU.")
    ] = False,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Train cells of the paper without the check.")
    ] = False,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Train many cells at once with Ray; needs the extra ray.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Argument(
            help="With --ray: HOST:PORT of a cluster, or auto for the one that runs here; default:"
            " Ray starts one on this machine."
        ),
    ] = None,
    cells_per_gpu: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="With --ray: cells on a GPU; default: 1.")
    ] = None,
) -> None:
    """Train the networks of a study with every strategy.

    By default a small ConvMixer on digits, about a minute of training on a CPU: a demonstration,
    not a cell of the paper. The same command resumes what was stopped or killed, and any number of
    processes may share a folder. Before it trains cells of the paper it does what check does, once
    for each folder, machine, device, version and model. Exit codes: 0 all done, 2 bad input or
    files, or a failed check, 3 some runs failed or were skipped, 4 stopped by --max-minutes, 130 or
    143 interrupted.
    """
    # Imported here: they load torch, for which --help should not wait, and Ctrl-C may come.
    load_torch()
    from reproduce.preflight.plan import read_plan
    from reproduce.report.finished import show_finished
    from reproduce.runs.study import run_study, train_here
    from reproduce.training.checkpoint import CheckpointError, Stopped, stopping
    from reproduce.training.device import open_device

    if (address or cells_per_gpu) and not on_ray:
        raise typer.BadParameter(
            f"{address or '--cells-per-gpu'} needs --ray; --model, --strategy, --dataset and --only"
            " choose cells"
        )
    wanted = chosen(study, all_, model, strategy, dataset, only)
    if epochs:
        wanted = wanted.shortened(epochs)
    where: torch.device | None
    train: Train | None = None
    if on_ray:
        from reproduce.runs.cluster import open_cluster

        with naming("--ray"):
            cluster = open_cluster(address, device, cells_per_gpu)
        where, train = cluster.here, cluster.train
    else:
        where = find_one(device, wanted.threads)
    numbers = numbers_of(wanted, seeds, seed)
    printer = console()
    start = time.monotonic()
    try:
        if wanted.name == "paper":
            found = read_plan(wanted, numbers, out, ledger)
            _prepare(found, where, data, out, on_cpu, unchecked, cells_per_gpu or 1)
        if train is None:
            with naming("--device"):
                train = partial(train_here, open_device(str(where)))
        if max_minutes is not None:
            max_minutes -= (time.monotonic() - start) / 60  # of the check
        with stopping(max_minutes) as stop:
            rows = run_study(wanted, numbers, out, train, data, printer, stop=stop, ledger=ledger)
        complete = show_finished(printer, wanted, numbers, rows, out)
    except (KeyboardInterrupt, Stopped) as why:
        complain(f"stopped: all is kept in {out}, and the same command resumes it")
        raise typer.Exit(why.code if isinstance(why, Stopped) else 130) from None
    except CheckpointError as error:
        complain(f"error: {error}")
        raise typer.Exit(2) from None
    except OSError as error:
        print(end="", flush=True)  # if it was standard output, that fails again
        complain(f"error: {error}{folder_hint(error, {'--ledger': ledger, '--out': out})}")
        raise typer.Exit(2) from None
    if not complete:
        complain("some runs failed or were skipped, as said above")
        raise typer.Exit(3)


@app.command()
def plan(
    study: StudyName = "digits",
    all_: All = False,
    model: Models = None,
    strategy: Strategies = None,
    dataset: Datasets = None,
    only: Ids = None,
    seeds: Seeds = None,
    seed: Seed = None,
    device: DeviceName = None,
    data: Data = None,
    out: Out = RUNS,
    ledger: Rows = None,
) -> None:
    """List what run would train, and how long that takes on this device.

    Each run that has begun or failed gets a line; with one model on one dataset, every run does.
    What is being measured is printed on stderr. Nothing is trained.
    """
    load_torch()
    from reproduce.data.datasets import folder
    from reproduce.preflight.cost import measure
    from reproduce.preflight.plan import make_table, read_plan

    wanted = chosen(study, all_, model, strategy, dataset, only)
    opened = open_one(device, wanted.threads)
    printer = console()
    with refusing_files():
        found = read_plan(wanted, numbers_of(wanted, seeds, seed), out, ledger)
    costs = measure(found.cells, opened, complain)
    complain("counting memory")
    printer.print(make_table(found, costs, bfloat16=opened.bfloat16), soft_wrap=False)
    for run in found.runs:
        if run.state in ("begun", "failed") or len(wanted.groups()) == 1:
            printer.print(run.line)
    for name in dict.fromkeys(cell.dataset for cell in found.cells):
        if (where := folder(name, data)) and not where.exists():
            printer.print(f"no {where}: if run cannot get it, it skips all runs on {name}")
    printer.print(found.estimate(costs, opened))


@app.command()
def check(
    study: StudyName = "digits",
    all_: All = False,
    model: Models = None,
    strategy: Strategies = None,
    dataset: Datasets = None,
    only: Ids = None,
    device: DeviceName = None,
    data: Data = None,
    out: Out = RUNS,
) -> None:
    """Check that device, data and folder are ready for a study.

    Each point gets a line. run does the same before it trains cells of the paper. Exit codes: 0 all
    passed, 2 bad input or files, 3 a point failed.
    """
    load_torch()
    from reproduce.preflight.check import check
    from reproduce.preflight.plan import read_plan

    wanted = chosen(study, all_, model, strategy, dataset, only)
    where = find_one(device, wanted.threads)
    with refusing_files():
        found = read_plan(wanted, range(wanted.seeds), out)
    if not check(found, where, data, out, console().print):
        raise typer.Exit(3)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="The id of a run, the last word of its line.")],
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    out: Out = RUNS,
) -> None:
    """Copy the network of a run out of its folder."""
    need_folder_of(file)
    with refusing_files():
        from reproduce.training import files

        console().print(files.export(out, run, file))


@app.command()
def inspect(file: File) -> None:
    """Show what a compressed network holds, and how large it is.

    It reads only the header, so it does not notice damage to the tensors.
    """
    with refusing_files():
        from reproduce.report.inspected import make_tables

        for table in make_tables(file):
            console().print(table, soft_wrap=False)


@app.command()
def materialize(
    file: File, dense: Annotated[Path, typer.Argument(help="The safetensors file to write.")]
) -> None:
    """Turn a compressed network into a dense safetensors file."""
    need_folder_of(dense)
    with refusing_files():
        from reproduce.training import files

        console().print(files.materialize(file, dense))


@app.command()
def evaluate(file: File, data: Data = None, device: DeviceName = None) -> None:
    """Measure a compressed network again.

    On the same machine the accuracy equals that in its row.
    """
    opened = open_one(device)
    with refusing_files():
        from reproduce.training.run import evaluate_file

        name, accuracy, images = evaluate_file(file, opened, data, complain)
    percent = f"{100 * accuracy:.1f} %"
    console().print(f"{name}: {percent} of {images:,} held-out images, exactly {accuracy}")


@frontier.command()
def score(
    files: Annotated[
        list[Path], typer.Argument(help="Networks of the byte frontier that run wrote.")
    ],
    data: Data = None,
    device: DeviceName = None,
) -> None:
    """Measure networks again from their files alone.

    On the same machine the accuracies equal those in their rows.
    """
    from reproduce.training.run import score_file

    opened = open_one(device, 1)
    for file in files:
        with refusing_files():
            name, accuracy, images = score_file(file, opened, data)
        percent = f"{100 * accuracy:.1f} % of {images} held-out images, exactly {accuracy}"
        console().print(f"{file}: {name}, {file.stat().st_size:,} bytes: {percent}")


@app.command()
def table(
    study: ShownName = None,
    all_: All = False,
    model: Models = None,
    strategy: Strategies = None,
    dataset: Datasets = None,
    only: Ids = None,
    ledger: Shown = None,
) -> None:
    """Print accuracy and size of cells, beside the paper's values.

    By default of those with rows in --ledger; with --study or --all of every cell of that study,
    measured or not.
    """
    folder = shown_folder(ledger)
    from reproduce.report import frontier as frontier_report
    from reproduce.report.tables import show
    from reproduce.rows.ledger import groups_with, read
    from reproduce.study.studies import STUDIES

    named = "paper" if all_ else study
    groups: list[Group] = []
    rows: list[Row] = []
    accepted, refused = False, None
    apart = [name for name in STUDIES if name.startswith("frontier")]  # has its own table
    for name in [named] if named else [name for name in STUDIES if name not in apart]:
        try:
            wanted = chosen(name, False, model, strategy, dataset, only, defaults=False)
        except typer.BadParameter as error:
            refused = error  # another study may have it
            continue
        accepted = True
        of_study = read(folder, name, complain)
        if any(cell.family for cell in wanted.cells):
            frontier_report.show(console(), wanted, of_study)
            return
        groups += wanted.groups() if named else groups_with(of_study, wanted)
        rows += of_study
    if refused and not accepted:
        raise refused
    there = [] if named else [name for name in apart if (folder / f"{name}.jsonl").exists()]
    if there:
        complain(f"rows of the byte frontier have another table: --study {' or '.join(there)}")
    elif not groups:
        complain(nothing_in(folder))
    show(console(), groups, rows)


@app.command()
def figures(
    ledger: Shown = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to draw into; default: --ledger.")
    ] = None,
) -> None:
    """Draw the figures, and write README.md with all tables.

    They show the cells with rows in --ledger, those of the paper beside its own values.
    """
    folder = shown_folder(ledger)
    from reproduce.report.page import PageError, write_pages

    try:
        paths = write_pages(folder, out or folder, complain)
        for path in paths:
            console().print(path)
        if not paths:
            complain(nothing_in(folder))
    except PageError as error:
        complain(f"error: {error}")
        raise typer.Exit(2) from None


@rows.command()
def merge(
    source: Annotated[Path, typer.Argument(help="A file STUDY.jsonl, or a folder of them.")],
    ledger: Ledger = RESULTS,
) -> None:
    """Add the rows of another folder or machine.

    Exit code 3: some were not added, and a line for each says why.
    """
    load_torch()
    from reproduce.rows.ledger import merge

    if not merge(source, ledger, console().print):
        raise typer.Exit(3)


@bench.command()
def steps(
    batch: Annotated[int, typer.Option(min=1, max=MOST, help="Images in a step.")] = 64,
    compiled: Annotated[bool, typer.Option("--compiled", help="Compiled steps, too.")] = False,
    device: DeviceName = None,
    out: Lines = None,
) -> None:
    """Time a masked training step against a dense one.

    Also masks alone, and augmentation.
    """
    opened = open_one(device)
    from reproduce.bench.steps import bench_steps

    _show(bench_steps(opened, batch=batch, compiled=compiled), opened, out)


@bench.command()
def cost(
    out: Annotated[
        Path, typer.Option(help="The page to write.", show_default="reproduce/COST.md")
    ] = COST,
) -> None:
    """Write the page on the hours that the paper's runs take on a GPU.

    Their work is counted, which needs no GPU.
    """
    load_torch()
    from reproduce.bench.cost_page import write_page

    write_page(out, complain)


@bench.command("files")
def files_(out: Lines = None) -> None:
    """Time compressed files against plain copies and dense files."""
    load_torch()
    from reproduce.bench.files import bench_files

    _show(bench_files(), open_one("cpu"), out)


def _prepare(
    plan: "Plan",
    where: "torch.device | None",
    data: Path | None,
    out: Path,
    on_cpu: bool,
    unchecked: bool,
    together: int,
) -> None:
    """Before days are spent: no other device is meant, and this one can be trusted.

    None stands for GPUs of a cluster that this machine has not one of.
    """
    from reproduce.preflight.check import check_once
    from reproduce.training.device import is_slow

    if not plan.missing:
        return
    if where is None:
        print("not checked, since there is no GPU here: run check on a machine of the cluster")
        return
    if is_slow(where) and not on_cpu:
        complain(
            f"error: what is left to train ({len(plan.missing):,} of {len(plan.runs):,} runs) is"
            f" for a GPU, not for {where}: --on-cpu trains it all the same (plan says how long it"
            " takes), and --study cifar10-small takes hours on a CPU"
        )
        raise typer.Exit(2)
    if not unchecked and not check_once(plan, where, data, out, console().print, together):
        complain("error: nothing is trained until every point that FAILED above is mended")
        raise typer.Exit(2)


def _show(ratios: "Iterable[Ratio]", device: "Device", out: Path | None) -> None:
    from reproduce.bench.timing import conditions, make_table
    from reproduce.rows.row import append_line

    printer = console()
    where = conditions(device.torch, device.hardware)
    measured = []
    complain("measuring: each ratio takes some seconds")
    with printer.status("measuring"):
        for ratio in ratios:
            measured.append(ratio)
            if out:
                append_line(out, {**ratio._asdict(), **where})
    printer.print(make_table(measured, where), soft_wrap=False)


def main() -> int:
    """The exit code of the command line."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return exit_code(app)


if __name__ == "__main__":
    sys.exit(main())
