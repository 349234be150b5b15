"""A line that a row cannot be is named with its field, and enters no table: whatever is damaged."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reproduce.report.tables import make_table
from reproduce.rows import ledger
from reproduce.rows.row import Program, RowError, line_of, parse_row
from reproduce.runs.store import RunStore
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.tests.invented import failed_row_of, row_of, write_rows

DIGITS = STUDIES["digits"]
(GROUP,) = DIGITS.chosen().groups()
MP = DIGITS.chosen(strategies=["mp"]).cells[0]
GOOD = row_of(MP)
EARLIER = [Program(commit="1" * 40, versions=GOOD.versions)]
MEASURED = json.loads(line_of(row_of(MP, seed=1, warning="mistrust it", earlier=EARLIER)))
FAILED = json.loads(line_of(failed_row_of(MP, seed=1)))
Place = tuple[str | int, ...]
# What no other value can stand for; of the other fields only a wrong type or range can be told.
EXACT = {"run", "cell", "seed", "configuration", "accuracy_last", "accuracy_best"}
FRACTIONS = {"accuracy", "paper", "whole"}
OPTIONAL = {"warning", "bytes", "device", "commit", "earlier", "trained_on", "data"}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([10**30, 10**400, -(2**63), 0.5, 5.0, -0.5, 1e300, float("inf")])
    | st.sampled_from(["", "0.9", "x", "../../x", "\ud800", "\0", "<b>", "9" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Of every value in a row; of the epochs of a history the first and the last alone."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for place in (0, len(value) - 1):
            yield from places(value[place], (*path, place))


def is_wrong(place: Place, old: Any, new: Any) -> bool:
    """Whether no row has this value there."""
    if place[0] in EXACT:
        return json.dumps(old) != json.dumps(new)
    if place[-1] == "commit" and new is None:
        return False
    if isinstance(old, str):
        return not (isinstance(new, str) and new.isprintable() and new)
    if isinstance(old, list | dict):
        return bool(old != new)
    if not isinstance(new, int | float) or isinstance(new, bool):
        return True
    if isinstance(old, int):
        return not (isinstance(new, int) and 1 <= new < 2**63)
    if place[-1] in FRACTIONS:
        return not (-1 if place[0] == "storage" else 0) <= new <= 1
    return not 0 <= new < 1e308


class Damage(NamedTuple):
    """One value of a row replaced, taken away or added, or its line cut off."""

    failed: bool
    place: Place
    kind: str
    value: Any

    @property
    def line(self) -> bytes:
        row: Any = deepcopy(FAILED if self.failed else MEASURED)
        *path, last = self.place
        holder = row
        for step in path:
            holder = holder[step]
        if self.kind == "remove":
            del holder[last]
        elif self.kind == "add":
            row["another"] = self.value
        else:
            holder[last] = self.value
        line = json.dumps(row)
        return line[: self.value if self.kind == "cut" else len(line)].encode()


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    failed = draw(st.booleans())
    row = FAILED if failed else MEASURED
    place = draw(st.sampled_from([*places(row)]))
    kind = draw(st.sampled_from(["replace"] * 5 + ["remove", "add", "cut"]))
    if kind == "cut":
        return Damage(failed, place, kind, draw(st.integers(1, len(json.dumps(row)) // 2)))
    if kind == "add" or (kind == "remove" and place[0] not in OPTIONAL):
        return Damage(failed, place, kind, draw(VALUES))
    old = row
    for step in place:
        old = old[step]
    wrong = VALUES.filter(lambda new: is_wrong(place, old, new))
    return Damage(failed, place, "replace", draw(wrong))


def test_damaged_rows_are_named_line_by_line_and_enter_no_table(tmp_path: Path) -> None:
    lines = []

    @settings(max_examples=2_500, deadline=None, derandomize=True, database=None)
    @given(damages())
    def draw(damage: Damage) -> None:
        with pytest.raises(RowError):
            parse_row(damage.line)
        lines.append(damage.line)

    draw()
    assert len(lines) >= 2_000
    path, content = tmp_path / "digits.jsonl", b"\n".join([*lines, line_of(GOOD)])
    path.write_bytes(content)
    named = [f"{path}, line {number} " for number in range(1, len(lines) + 1)]

    def check(said: list[str]) -> None:
        assert all(one.startswith(start) for one, start in zip(said, named, strict=True))
        said.clear()

    said: list[str] = []
    rows = ledger.read(tmp_path, "digits", said.append)
    assert make_table(GROUP, rows) == make_table(GROUP, [GOOD])
    check(said)
    assert not ledger.merge(path, tmp_path / "other", said.append)
    assert said.pop().endswith(f": rows added: 1, there already: 0, not added: {len(lines):,}")
    check(said)
    assert (tmp_path / "other" / "digits.jsonl").read_bytes() == line_of(GOOD)
    assert RunStore(tmp_path, "digits", said.append).rows() == {GOOD.run: GOOD}
    check(said)
    assert path.read_bytes() == content


KINDS: dict[str, dict[str, Any]] = {
    "$.accuracy_last": {"accuracy_last": "0.9"},
    "$.accuracy_best": {"accuracy_best": None},
    "$.accuracy_last`": {"accuracy_last": 5.0, "accuracy_best": 5.0},
    "`accuracy_last` and `accuracy_best`": {"accuracy_last": 0.999},
    "out of range": {"accuracy_last": float("inf")},
    "$.storage": {"storage": {"x": 1}},
    "$.held_out": {"held_out": 0},
    "$.hardware": {"hardware": "x"},
    "$.versions": {"versions": {}},
    "$.seed": {"seed": "0"},
    "$.cell": {"cell": ["x"]},
    "`cell` is": {"cell": "0" * 12},
    "$.configuration": {"configuration": "x"},
    "unknown field `accuracy_last`": {"failed": 5},
    "$.run": {"run": "../../x"},
    "`history` has": {"history": MEASURED["history"][1:]},
}


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    """A folder with a row, a line of each kind, and another row of the same run."""
    values = json.loads(line_of(GOOD))
    lines = [json.dumps(values | change) for change in KINDS.values()]
    lines = [json.dumps(values), *lines, json.dumps(values | {"held_out": 400}), "", "", ""]
    (tmp_path / "digits.jsonl").write_text(
        "\n".join(lines).replace("Infinity", "1e999"), encoding="utf-8"
    )
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--only", MP.id, "--seeds", "1", "--device", "cpu", "--out"),
        ("plan", "--only", MP.id, "--seeds", "1", "--device", "cpu", "--out"),
        ("table", "--study", "digits", "--only", MP.id, "--ledger"),
        ("figures", "--ledger"),
        ("ledger", "merge", "--ledger", "ledger"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_names_each_line_with_its_field_and_does_without(
    arguments: tuple[str, ...], refused: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(refused)
    path = refused / "digits.jsonl"
    content = path.read_bytes()
    code, output, errors = command(*arguments, refused)
    assert code == (3 if arguments[0] == "ledger" else 0)
    said = [line for line in (output + errors).splitlines() if line.startswith(f"{path}, line")]
    assert len(said) == len(KINDS) + 1
    for number, (line, field) in enumerate(zip(said, [*KINDS, "another row"], strict=True), 2):
        assert line.startswith(f"{path}, line {number} ")
        assert field in line
    assert path.read_bytes() == content


def test_what_merge_took_is_the_row(refused: Path, command: Command) -> None:
    code, _, _ = command("ledger", "merge", refused, "--ledger", refused / "ledger")
    assert code == 3
    assert (refused / "ledger" / "digits.jsonl").read_bytes() == line_of(GOOD)


def test_two_rows_of_a_run_are_one_in_every_command(refused: Path, command: Command) -> None:
    write_rows(refused / "digits.jsonl", [GOOD, row_of(MP, accuracy=0.75)])
    _, table, _ = command("table", "--study", "digits", "--only", MP.id, "--ledger", refused)
    arguments = ("--only", MP.id, "--seeds", "1", "--device", "cpu", "--out", refused)
    _, output, _ = command("run", *arguments)
    assert " 50.0 " in table
    assert table in output
