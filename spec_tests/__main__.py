"""Judge an implementation, compare reports, test the suite itself, write what is generated."""

import argparse
import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from pemn_ref.atomic import write
from spec_tests.mutation import mutate


def run(arguments: argparse.Namespace) -> int:
    """Run the suite from where it is installed, in any folder, on any importable module."""
    own = ["-c", str(Path(__file__).with_name("judge.ini")), "-p", "spec_tests.plugin"]
    own += ["-p", "no:randomly", "--tb=short", "-rN"]
    own += [f"--impl={arguments.impl}"]
    own += ["-o", f"cache_dir={Path.cwd() / '.pytest_cache'}"]  # not where packages are installed
    own += [f"--class={arguments.claim}"] if arguments.claim else []
    own += [f"--clause={arguments.clause}"] if arguments.clause else []
    own += [f"--known={arguments.known}"] if arguments.known else []
    own += [f"--clause-report={arguments.report}"] if arguments.report else []
    return int(pytest.main([*own, *arguments.pytest, str(Path(__file__).parent)]))


def start(arguments: argparse.Namespace) -> int:
    """Write a skeleton, but not over a file."""
    from spec_tests.learning import skeleton

    path = arguments.file
    if path.suffix != ".py" or not path.stem.isidentifier():
        print(f"error: {path} is no file of a module, as my_pemn.py is", file=sys.stderr)
        return 2
    if path.absolute().parent != Path.cwd():
        print(f"error: run finds modules of this folder: start {path.name}", file=sys.stderr)
        return 2
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(skeleton(path.stem))
    except OSError as error:
        print(f"error: {path} is not written: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{path} is written. Next: python -m spec_tests run --impl {path.stem}")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Print a Markdown table, a clause a row, a report a column."""
    # Not above: pytest wants to load Hypothesis, and the clauses, itself.
    from spec_tests.clauses import SPECIFICATION, all_clauses
    from spec_tests.document import cell

    names, columns = [], []
    for path in arguments.reports:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            names.append(cell(str(report["implementation"])))
            columns.append({r["clause"]: cell(_status(r)) for r in report["clauses"]})
            version = report.get("specification", "without a number")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            print(f"error: {path} is not a clause report: {error!r}", file=sys.stderr)
            return 2
        if version != SPECIFICATION:
            print(
                f"{path} was judged by specification {version}, not {SPECIFICATION}, whose clauses"
                " these are",
                file=sys.stderr,
            )
    print(f"| clause | level | {' | '.join(names)} | text |")
    print(f"|---|---|{'---|' * len(names)}---|")
    for identifier, clause in all_clauses().items():
        cells = " | ".join(column.get(identifier, "-") for column in columns)
        print(f"| {identifier} | {clause.level} | {cells} | {cell(clause.text)} |")
    return 0


def document(_: argparse.Namespace) -> int:
    """Measure mistakes that are new to the gallery; write all that is generated."""
    import spec_tests.conftest  # noqa: F401  the profile: before the clauses take it
    from spec_tests.document import documented, measure

    measure()
    for path, content in documented().items():
        write(path, content)
    return 0


def contexts(_: argparse.Namespace) -> int:
    """Print which gate holds in which clause for which function; 1 if one holds nowhere."""
    import spec_tests.conftest  # noqa: F401  the profile: before the clauses take it
    import spec_tests.gates

    return spec_tests.gates.contexts()


def gates(arguments: argparse.Namespace) -> int:
    """Measure how many gated mistakes are caught, and write GATES.md."""
    import spec_tests.conftest  # noqa: F401  the profile: before the clauses take it
    import spec_tests.gates

    return spec_tests.gates.gates(arguments.all, arguments.sample)


def _status(row: dict[str, Any]) -> str:
    if row["status"] == "not run":
        return "-"
    known = f": {row['known']}" if row["status"] == "known" else ""
    return f"{row['status']} ({row['examples']}){known}"


def main() -> int:
    """Read the command line."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign is no failure
    parser = argparse.ArgumentParser(prog="python -m spec_tests", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run", help="judge an implementation")
    command.add_argument("--impl", metavar="MODULE", default="pemn_ref", help="module to judge")
    command.add_argument(
        "--class", dest="claim", metavar="CLASS", help="core, torch, file, errors or extras"
    )
    command.add_argument("--clause", metavar="IDS", help="only these clauses, as in F2,M*")
    command.add_argument("--known", metavar="FILE", type=Path, help="known failures and reasons")
    command.add_argument("--report", metavar="FILE", type=Path, help="write the report as JSON")
    command.add_argument("pytest", nargs="*", help="options for pytest, after --")
    command.set_defaults(do=run)
    command = commands.add_parser("start", help="write the skeleton of an implementation")
    command.add_argument("file", metavar="FILE", type=Path, help="a new file, as my_pemn.py")
    command.set_defaults(do=start)
    command = commands.add_parser("compare", help="put reports side by side, as Markdown")
    command.add_argument("reports", nargs="+", metavar="REPORT", type=Path)
    command.set_defaults(do=compare)
    command = commands.add_parser(
        "mutate", help="list changes of the reference that no clause notices"
    )
    command.set_defaults(do=lambda _: mutate())
    command = commands.add_parser("document", help="write the specification, vectors and tables")
    command.set_defaults(do=document)
    command = commands.add_parser("contexts", help="show which contexts the clauses reach")
    command.set_defaults(do=contexts)
    command = commands.add_parser(
        "gates", help="count mistakes caught that show in one context only"
    )
    command.add_argument("--all", action="store_true", help="every pair of mistake and context")
    command.add_argument(
        "--sample", metavar="N", type=int, help="the first N pairs; writes nothing"
    )
    command.set_defaults(do=gates)
    arguments = parser.parse_args()
    return int(arguments.do(arguments))


if __name__ == "__main__":
    sys.exit(main())
