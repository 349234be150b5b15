"""Consoles, tables and times for people, in one form everywhere."""

from rich import box
from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Prints each line whole, as it is, and at once."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True)


def table(*, title: str | None = None, caption: str | None = None, padding: int = 1) -> Table:
    """A table without a frame; its caption is text, and begins on the left."""
    return Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, padding),
        collapse_padding=True,
        pad_edge=False,
    )


def duration(seconds: float) -> str:
    """A length of time in the unit that reads best.

    >>> duration(7000), duration(250_000)
    ('117 min', '2.9 d')
    """
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    unit, length = next((unit for unit in units if seconds >= 2 * unit[1]), units[-1])
    value = seconds / length
    return f"{value:,.{0 if value >= 100 else 1}f} {unit}"
