"""What is generated in this folder's README: the adapter shown, the clauses, and the gallery.

``python -m spec_tests document`` writes it. Which clauses turn red beside the one that is meant
takes a run of the suite per mistake, so it is kept in ``gallery.json``: mistakes that it lacks are
measured first, one after the other, and a command that was stopped goes on where it was. After a
change of clauses remove the file, to measure anew.
"""

import json
import warnings
from pathlib import Path

from pemn_ref.atomic import write
from spec_tests.clauses import all_clauses
from spec_tests.gallery import GALLERY, Mistake, failure
from spec_tests.plugin import as_json

README = Path(__file__).parent / "README.md"
MEASURED = Path(__file__).parent / "gallery.json"
EXAMPLE = Path(__file__).parent / "examples" / "layer_classes.py"
# Stock models, compilation and the longest header would take most of the time: run where they are
# meant only.
SLOW = {"W20", "X4", "X5", "C14"}


def key(mistake: Mistake) -> str:
    """How a mistake is called in ``gallery.json``."""
    return f"{mistake.clause}: {mistake.text}"


def measured() -> dict[str, str]:
    """Mistake -> clauses that it turns red beside the one that is meant."""
    others: dict[str, str] = (
        json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    )
    return others


def measure() -> None:
    """Run every mistake that is new to ``gallery.json`` on all clauses but the slow ones."""
    warnings.simplefilter("ignore")  # as the clauses of transforms do
    clauses = {name: c for name, c in all_clauses().items() if name not in SLOW}
    before = measured()
    others = {key(m): before[key(m)] for m in GALLERY if key(m) in before}
    for mistake in GALLERY:
        if key(mistake) not in others:
            red = [
                name
                for name, clause in clauses.items()
                if name != mistake.clause and failure(clause, mistake.build())
            ]
            others[key(mistake)] = " ".join(red)
            write(MEASURED, as_json(others))
            print(f"{key(mistake)}: {others[key(mistake)]}", flush=True)


def parts() -> dict[str, list[str]]:
    """Name of a part -> its lines."""
    clauses = all_clauses()
    order = list(clauses)
    others = measured()
    _, _, adapter = EXAMPLE.read_text(encoding="utf-8").partition("# The adapter: ")
    return {
        "adapter": ["```python", f"# The adapter: {adapter.rstrip()}", "```"],
        "clauses": [
            "| clause | level | text |",
            "|---|---|---|",
            *(f"| {name} | {c.level} | {cell(c.text)} |" for name, c in clauses.items()),
        ],
        "gallery": [
            "| mistake | clause meant | also red |",
            "|---|---|---|",
            *(
                f"| {cell(m.text)} | {m.clause} | {others.get(key(m), 'not measured')} |"
                for m in sorted(GALLERY, key=lambda m: order.index(m.clause))
            ),
        ],
    }


def cell(text: str) -> str:
    """Text that does not end the cell of a Markdown table."""
    return text.replace("|", "&#124;")


def documented(page: str) -> str:
    """The page with its generated parts, each between two markers, as they should be."""
    for name, lines in parts().items():
        start, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
        before, rest = page.split(start)  # a marker that is lost is an error, not a shorter page
        _, after = rest.split(end)
        page = "\n".join([before + start, "", *lines, "", end + after])
    return page
