"""Mutation testing of the reference: which changes of its code no clause notices, and why not.

``python -m spec_tests mutate`` runs mutmut, which changes one thing after the other, and writes
MUTATION.md. A run that was stopped goes on where it was; after a change of clauses remove the
folder ``mutants``. The reasons in MUTATION.md are written by hand, and kept: a survivor that has
none yet stands under ``NO_REASON``, from where it is moved.
"""

import platform
import subprocess
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

from pemn_ref.atomic import write

ROOT = Path(__file__).parents[1]  # mutmut reads the configuration there
SUMMARY = Path(__file__).parent / "MUTATION.md"
NO_REASON = "No reason yet"
# A mutant that never ends is noticed too.
KILLED = {"killed", "timeout"}


def mutmut(command: str) -> str:
    """What mutmut prints."""
    arguments = ["mutmut", *command.split()]
    return subprocess.run(
        arguments, cwd=ROOT, check=True, capture_output=True, encoding="utf-8"
    ).stdout


def mutate() -> int:
    """Run all mutants that were not run yet, and write the summary; 1 if a reason is missing."""
    subprocess.run(["mutmut", "run", "--max-children", "1"], cwd=ROOT, check=True)
    known = reasons(SUMMARY.read_text(encoding="utf-8")) if SUMMARY.exists() else {}
    statuses = dict(
        line.strip().split(": ") for line in mutmut("results --all true").splitlines() if line
    )
    survivors: dict[str, list[str]] = {reason: [] for reason in known.values()}
    for mutant, status in statuses.items():
        if status not in KILLED:
            change = change_of(mutant, mutmut(f"show {mutant}"))
            survivors.setdefault(known.get(change, NO_REASON), []).append(change)
    used = ", ".join(f"{name} {version(name)}" for name in ("mutmut", "torch", "hypothesis"))
    measured = f"{date.today()}, {used}, Python {platform.python_version()}"
    write(SUMMARY, summary(measured, statuses, survivors).encode())
    print(f"{SUMMARY} is written")
    return int(bool(survivors.get(NO_REASON)))


def change_of(mutant: str, shown: str) -> str:
    """A change as it is listed: a line with the function, and the changed lines."""
    module, _, function = mutant.removeprefix("pemn_ref.").partition(".x")
    name = function.partition("__mutmut_")[0].removeprefix("_").replace("ǁ", ".").strip(".")
    _, _, diff = shown.partition("@@")
    changed = [line for line in diff.splitlines() if line.startswith(("-", "+"))]
    return "\n".join([f" {module}.{name}", *changed])


def summary(measured: str, statuses: dict[str, str], survivors: dict[str, list[str]]) -> str:
    """The page: killed of all by module, and the survivors by reason."""
    total = Counter(mutant.split(".")[1] for mutant in statuses)
    killed = Counter(m.split(".")[1] for m, status in statuses.items() if status in KILLED)
    lines = [
        "# Mutation testing of pemn_ref",
        "",
        f"Written by `python -m spec_tests mutate`, except for the reasons: {measured}. The tests"
        " are those that `[tool.mutmut]` in pyproject.toml names, in the profile `mutation`; code"
        " outside functions is not mutated.",
        "",
        "| module | killed | of | % |",
        "|---|---:|---:|---:|",
        *(row(module, killed[module], total[module]) for module in sorted(total)),
        row("all", killed.total(), total.total()),
        "",
        "## Survivors",
    ]
    for reason, changes in survivors.items():
        if changes:
            lines += ["", f"**{reason}** ({len(changes)})", "", "```diff", *changes, "```"]
    return "\n".join([*lines, ""])


def row(name: str, killed: int, total: int) -> str:
    """A row of the table."""
    return f"| {name} | {killed} | {total} | {100 * killed / total:.1f} |"


def reasons(page: str) -> dict[str, str]:
    """Change -> reason, as the page says."""
    reason = ""
    changes: list[list[str]] = []
    for line in page.splitlines():
        if line.startswith("**"):
            reason = line[2:].rpartition("**")[0]
        elif line.startswith(" "):
            changes.append([reason, line])
        elif line.startswith(("-", "+")):
            changes[-1].append(line)
    return {"\n".join(change): reason for reason, *change in changes}
