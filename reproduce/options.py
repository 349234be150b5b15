"""What the commands share: options, the cells that they choose, errors as exit codes."""

import errno
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated

import typer

from reproduce.data.root import MissingDataError
from reproduce.memory import out_of_memory
from reproduce.report.console import plain

if TYPE_CHECKING:
    import torch

    from reproduce.study.cells import Study
    from reproduce.training.device import Device

# Typer exports the class of all usage errors only as the base of this one.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]

RUNS = Path("runs")
"""Where run writes, unless told otherwise."""
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of the datasets; default: PEMN_DATA, or one in the user's cache."),
]
DeviceName = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; default: the best one present.")
]
StudyName = Annotated[
    str,
    typer.Option(
        help="digits, frontier, cifar10-small (hours on a CPU) or paper: its CIFAR cells, 16 hours"
        " on a GPU."
    ),
]
ShownName = Annotated[
    str | None,
    typer.Option(
        "--study",
        help="digits, frontier, cifar10-small or paper, measured or not; default: those with rows"
        " in --ledger.",
    ),
]
All = Annotated[bool, typer.Option("--all", help="Short for --study paper.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="Only this model, such as vit or resnet32; may be repeated."),
]
Strategies = Annotated[
    list[str] | None,
    typer.Option(
        "--strategy",
        help="Only this strategy: dense, mask, one_layer, mp, rp (with every ratio), rp_1e-2 and"
        " the like, prune_random, prune_minimum or control; may be repeated.",
    ),
]
Datasets = Annotated[
    list[str] | None,
    typer.Option("--dataset", help="Only this dataset, such as cifar10; may be repeated."),
]
Ids = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only the cell with this id; may be repeated."),
]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, help="Train each cell with the seeds 0 to N-1; default: the study's N."),
]
Seed = Annotated[
    list[int] | None,
    typer.Option("--seed", min=0, max=2**63 - 1, help="Only with this seed; may be repeated."),
]
MOST = 1_000_000
"""The largest number that an option takes, except for seeds."""
_MOST_SEEDS = 1_000
Rows = Annotated[Path | None, typer.Option(help="Folder for the rows; default: that of --out.")]
Out = Annotated[Path, typer.Option(help="Folder of rows, networks, checkpoints and figures.")]
Ledger = Annotated[
    Path,
    typer.Option(help="Folder to add them to.", show_default="reproduce/results"),
]
Shown = Annotated[
    Path | None,
    typer.Option(
        "--ledger", help="Folder of the rows, such as reproduce/results.", show_default=str(RUNS)
    ),
]
RESULTS = Path(__file__).with_name("results")
COST = Path(__file__).with_name("COST.md")
File = Annotated[Path, typer.Argument(help="A compressed network that run wrote.")]
Lines = Annotated[
    Path | None, typer.Option("--out", help="Also add each ratio to this file, as a line of JSON.")
]


def chosen(
    study: str,
    all_: bool,
    models: Sequence[str] | None,
    strategies: Sequence[str] | None,
    datasets: Sequence[str] | None,
    ids: Sequence[str] | None,
    *,
    defaults: bool = True,
) -> "Study":
    """The cells asked for; without a model or dataset, those of the study, or else all."""
    load_torch()
    from dataclasses import replace

    from reproduce.study.cells import nearest
    from reproduce.study.studies import STUDIES

    name = "paper" if all_ else study
    if name not in STUDIES:
        raise typer.BadParameter(
            f"no study {name!r}, only {', '.join(STUDIES)}{nearest(name, STUDIES)}",
            param_hint="--study",
        )
    wanted = STUDIES[name] if defaults else replace(STUDIES[name], models=(), datasets=())
    asked = {
        "models": models or (),
        "strategies": strategies or (),
        "datasets": datasets or (),
        "ids": [name.partition("-")[0] for name in ids or ()],  # a run's too, as run prints it
    }
    try:
        return wanted.chosen(**asked)
    except ValueError as error:
        there = [study for study in STUDIES if _has(STUDIES[study], asked)]
        hint = "" if name in there or not there else f"; --study {' or '.join(there)} has that"
        raise typer.BadParameter(f"{error}{hint}") from error


def _has(study: "Study", asked: Mapping[str, Sequence[str]]) -> bool:
    """Whether some cell has all that is asked for, in whatever case it is written."""
    folded = {what: [value.casefold() for value in values] for what, values in asked.items()}
    try:
        return bool(study.chosen(**folded).cells)
    except ValueError:
        return False


def numbers_of(study: "Study", seeds: int | None, named: Sequence[int] | None) -> Sequence[int]:
    """The seeds that are named, else as many as are asked for, else as the study has."""
    if seeds and named:
        raise typer.BadParameter("--seeds says how many and --seed which: give one of them")
    if seeds and seeds > _MOST_SEEDS:
        raise typer.BadParameter(
            f"{seeds} seeds are more than {_MOST_SEEDS}: to train with the seed {seeds}, give"
            f" --seed {seeds}",
            param_hint="--seeds",
        )
    return list(dict.fromkeys(named)) if named else range(seeds or study.seeds)


def shown_folder(ledger: Path | None) -> Path:
    """The folder of the rows to show; a usage error if it is named and does not exist."""
    if ledger and not ledger.is_dir():
        raise typer.BadParameter(f"no folder {ledger}: name one with rows", param_hint="--ledger")
    load_torch()
    return ledger or RUNS


def need_folder_of(file: Path) -> None:
    """A usage error unless the folder of a file to write exists."""
    if not file.parent.is_dir():
        raise typer.BadParameter(f"no folder {file.parent} to write {file.name} in: make it first")


def folder_hint(error: OSError, folders: Mapping[str, Path | None]) -> str:
    """The end of its message, where one of the folders that these options name may be the cause."""
    if error.errno in (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE):
        return ""
    path = Path(error.filename).absolute() if error.filename else None
    named = [
        option
        for option, folder in folders.items()
        if folder and (path is None or folder.absolute() in (path, *path.parents))
    ]
    return f"; name a folder that can be written with {' or '.join(named)}" if named else ""


def nothing_in(folder: Path) -> str:
    """One line for a folder without rows that count: how to get some, and where others are."""
    there = sorted(path.stem for path in RESULTS.glob("*.jsonl"))
    near = Path.cwd() in RESULTS.parents
    shipped = RESULTS.relative_to(Path.cwd()) if near else RESULTS
    return (
        f"no rows to show in {folder}: run adds them, except with --epochs; those of"
        f" {' and '.join(there)} ship with the project, and --ledger {shipped} shows them;"
        " table --all shows every cell of the paper, measured or not"
    )


def open_one(device: str | None, threads: int | None = None) -> "Device":
    """The device of that name, with so many threads; a usage error where there is none."""
    from reproduce.training.device import open_device

    where = find_one(device, threads)
    with naming("--device"):
        return open_device(str(where))


def find_one(device: str | None, threads: int | None) -> "torch.device":
    """The device of that name, not opened, with so many threads; a usage error as ``open_one``."""
    load_torch()
    import torch

    from reproduce.training.device import find_device

    if threads:
        torch.set_num_threads(threads)
    with naming("--device"):
        return find_device(device)


@contextmanager
def refusing_files() -> Iterator[None]:
    """A file that is refused inside is one line and exit code 2."""
    load_torch()
    from pemn_ref.file import FileError
    from reproduce.training.checkpoint import CheckpointError
    from reproduce.training.files import UnknownRunError

    try:
        yield
    except (FileError, CheckpointError, UnknownRunError) as error:
        dense = "an ordinary safetensors file" in str(error)
        hint = (
            ": of a dense or pruned network? safetensors.torch.load_file reads it; of the byte"
            " frontier? frontier score measures it"
        )
        complain(f"error: {error}{hint if dense else ''}")
        raise typer.Exit(2) from None


@contextmanager
def naming(option: str | None) -> Iterator[None]:
    """A value that is refused inside is a usage error, of ``option`` if not several."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def load_torch() -> None:
    """Load torch, before what needs it; on a terminal, say so if it takes long."""
    timer = Timer(2, complain, ["loading torch"])
    if sys.stderr.isatty():
        timer.start()
    try:
        import torch  # noqa: F401
    finally:
        timer.cancel()


def complain(message: str) -> None:
    """One line on stderr."""
    print(plain(" ".join(message.split())), file=sys.stderr)


def exit_code(app: typer.Typer) -> int:
    """Run the command line and return its exit code; an expected error is one line, no traceback.

    (Typer by itself shows a usage error on several lines.)
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign is no failure
    try:
        code = _code(app)
        print(end="", flush=True)
    except OSError as error:  # of standard output: _code handles all others
        # As it ends, Python would try again to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE  # as a program that the signal ends, and as quietly
        complain(f"error: standard output cannot be written: {error}")
        return 2
    return code


_RECIPE = "it is part of each cell's recipe, see reproduce/study/recipes.py"
_FIXED = {
    "--density": "every masked cell keeps half of the weights, as in the paper; in a loop of your"
    " own, masked_forward takes a density, as README shows",
    "--ratio": "it is part of the strategy, as in --strategy rp_1e-2",
    **dict.fromkeys(("--lr", "--learning-rate", "--batch", "--batch-size"), _RECIPE),
}
"""Options that do not exist -> where to find what they would set."""


def _message(error: Exception) -> str:
    """Of a usage error, with what to do."""
    message: str = error.format_message()  # type: ignore[attr-defined]
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if option in _FIXED:
        return f"no option {option}: {_FIXED[option]}"
    if type(error) is typer.BadParameter or context is None:
        return message
    return f"{message.rstrip('.')}; see {context.command_path} --help"


def _code(app: typer.Typer) -> int:
    """As ``exit_code``, where standard output can be written.

    Raises:
        OSError: if it cannot.
    """
    try:
        return int(app(standalone_mode=False) or 0)
    except _UsageError as error:
        complain(f"error: {_message(error)}")
    except (MissingDataError, OSError) as error:
        print(end="", flush=True)  # if it was standard output, that fails again
        complain(f"error: {error}")
    except ModuleNotFoundError as error:
        extra = "ray" if error.name == "ray" else "reproduce"
        complain(f"error: {error}; in a checkout, pip install '.[{extra}]' installs it")
    except (ImportError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        complain("error: not enough memory: choose less, or a larger machine")
    except SystemExit as exit:  # Typer's, of a broken pipe
        if isinstance(exit.__context__, BrokenPipeError):
            raise exit.__context__ from None
        raise
    except typer.Abort:
        complain("interrupted")
        return 130
    return 2
