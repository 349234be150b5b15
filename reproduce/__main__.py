"""The command line: ``python -m reproduce run``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from reproduce.data.root import MissingDataError
from reproduce.rows import DamagedRowsError

# Typer exports the class of all usage errors only as the base of this one.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback()
def experiments() -> None:
    """Experiments of Parameter-Efficient Masking Networks (Bai et al., NeurIPS 2022)."""


@app.command()
def run(
    study: Annotated[
        str, typer.Option(help="What to train: digits, or cifar10-small (hours on a CPU).")
    ] = "digits",
    model: Annotated[
        str | None,
        typer.Option(help="Train this family of the study: convmixer, resnet or vit."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Train each cell with the seeds 0 to N-1; else the study's N."),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="Train only this strategy, such as mp or rp_1e-2; may be repeated."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="A shortened run; its rows carry their own cell id."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; else the best that is present.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the datasets; else PEMN_DATA, else one in the user's cache."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for rows, figure and table; rows found there are kept.")
    ] = Path("runs"),
) -> None:
    """Train the networks of a study with every strategy.

    By default a small ConvMixer on digits, about two minutes on a CPU: a demonstration, not a cell
    of the paper. Exit codes: 0 all done, 1 a training failed, 2 bad
    input or files, 130 interrupted. The same command goes on where an earlier one stopped.
    """
    try:
        # Imported here: they load torch, for which --help should not wait, and Ctrl-C may come.
        import torch

        from reproduce.cells import STUDIES
        from reproduce.device import open_device
        from reproduce.run import run_study

        if study not in STUDIES:
            raise typer.BadParameter(
                f"no study {study!r}, only {', '.join(STUDIES)}", param_hint="--study"
            )
        with _naming("--model"):
            wanted = STUDIES[study].of(model)
        if strategy:
            with _naming("--strategy"):
                wanted = wanted.only(strategy)
        if epochs:
            wanted = wanted.shortened(epochs)
        with _naming("--device"):
            opened = open_device(device)
        torch.set_num_threads(wanted.threads)
        run_study(wanted, range(seeds or wanted.seeds), out, opened, data)
    except KeyboardInterrupt:
        complain(f"interrupted: finished runs are kept in {out}, the same command goes on there")
        raise typer.Exit(130) from None


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """A value that is refused inside is a usage error of ``option``."""
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
    try:
        return int(app(standalone_mode=False) or 0)
    except FloatingPointError as error:
        complain(f"error: {error}")
        return 1
    except _UsageError as error:
        complain(f"error: {error.format_message()}")
    except (DamagedRowsError, MissingDataError) as error:
        complain(f"error: {error}")
    except OSError as error:
        complain(f"error: {error}; --out must name a folder that can be written")
    return 2


if __name__ == "__main__":
    sys.exit(main())
