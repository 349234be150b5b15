"""What is generated: parts of README.md and SPEC.md, all of spec.json and vectors/core.json.

``python -m spec_tests document`` writes it. Which clauses turn red beside the one that is meant
takes a run of the suite per mistake, so it is kept in ``gallery.json``: mistakes that it lacks are
measured first, one after the other, and a command that was stopped goes on where it was. After a
change of clauses remove the file, to measure anew.
"""

import json
import warnings
from pathlib import Path

from pemn_ref.atomic import write
from spec_tests.clauses import SPECIFICATION, all_clauses
from spec_tests.core_vectors import core
from spec_tests.gallery import GALLERY, failure
from spec_tests.plugin import as_json

FOLDER = Path(__file__).parent
MEASURED = FOLDER / "gallery.json"
EXAMPLE = FOLDER / "examples" / "layer_classes.py"
PARTS = {"README.md": ("adapter", "gallery"), "SPEC.md": ("version", "clauses")}
"""Page -> the parts of it that are generated."""
# Stock models, compilation, another process and the longest header would take most of the time: run
# where they are meant only.
SLOW = {"W20", "X4", "X5", "C14", "P14"}


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
    others = {m.named: before[m.named] for m in GALLERY if m.named in before}
    for mistake in GALLERY:
        if mistake.named not in others:
            red = [
                name
                for name, clause in clauses.items()
                if name != mistake.clause and failure(clause, mistake.build())
            ]
            others[mistake.named] = " ".join(red)
            write(MEASURED, as_json(others))
            print(f"{mistake.named}: {others[mistake.named]}", flush=True)


def parts() -> dict[str, list[str]]:
    """Name of a part -> its lines."""
    clauses = all_clauses()
    order = list(clauses)
    others = measured()
    _, _, adapter = EXAMPLE.read_text(encoding="utf-8").partition("# The adapter: ")
    return {
        "adapter": ["```python", f"# The adapter: {adapter.rstrip()}", "```"],
        "version": [f"Version {SPECIFICATION}, {len(clauses)} clauses."],
        "clauses": [
            "| clause | level | class | since | text |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {c.level} | {c.claim} | {c.since} | {cell(c.text)} |"
                for name, c in clauses.items()
            ),
        ],
        "gallery": [
            "| mistake | clause meant | also red |",
            "|---|---|---|",
            *(
                f"| {cell(m.text)} | {m.clause} | {others.get(m.named, 'not measured')} |"
                for m in sorted(GALLERY, key=lambda m: order.index(m.clause))
            ),
        ],
    }


def cell(text: str) -> str:
    """Text that does not end the cell of a Markdown table."""
    return text.replace("|", "&#124;")


def documented() -> dict[Path, bytes]:
    """Each file as it should be; the generated parts of a page stand between two markers."""
    lines = parts()
    files = {}
    for page, names in PARTS.items():
        text = (FOLDER / page).read_text(encoding="utf-8")
        for name in names:
            start, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
            before, rest = text.split(start)  # a marker that is lost is an error, no shorter page
            _, after = rest.split(end)
            text = "\n".join([before + start, "", *lines[name], "", end + after])
        files[FOLDER / page] = text.encode()
    clauses = [
        {"clause": name, "level": c.level, "class": c.claim, "since": c.since, "text": c.text}
        for name, c in all_clauses().items()
    ]
    files[FOLDER / "spec.json"] = as_json({"specification": SPECIFICATION, "clauses": clauses})
    files[FOLDER / "vectors" / "core.json"] = core()
    return files
