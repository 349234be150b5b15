"""Consoles, tables and times for people, in one form everywhere.

Names and reasons come from rows and files that anybody may have written: they are shown as text.
"""

import re
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def plain(text: str) -> str:
    r"""Text that steers no terminal: what is not printable is shown as Python would escape it.

    >>> plain("two\nlines, \x1b[2J, \u202e")
    'two\nlines, \\x1b[2J, \\u202e'
    """
    shown = (
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode()
        for sign in text
    )
    return "".join(shown)


def in_markdown(text: str) -> str:
    r"""The text as Markdown that shows it, without markup, HTML or links.

    >>> in_markdown("<b> [x](https://y) 2*3 GHz")
    '\\<b\\> \\[x\\](https\\://y) 2\\*3 GHz'
    """
    line = " ".join(plain(text).split("\n"))
    return re.sub(r"[\\`*_\[\]<>&|~$]|:(?=//)|(?<=www)\.", r"\\\g<0>", line)


class _Plain(Console):
    """Shows whatever is printed, tables among it, as ``plain`` has it."""

    def render_str(self, text: str, **more: Any) -> Text:
        """As in ``Console``."""
        return super().render_str(plain(text), **more)


def console() -> Console:
    """Prints each line whole, as it is, and at once."""
    return _Plain(markup=False, emoji=False, highlight=False, soft_wrap=True)


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
