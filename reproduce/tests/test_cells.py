"""Cells are data: their ids follow all of the configuration and nothing else."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from reproduce.cells import DIGITS, Cell


def cell(name: str) -> Cell:
    """The cell of the digits study by its strategy."""
    return DIGITS.only([name]).cells[0]


def test_study_holds_every_strategy_once() -> None:
    assert [c.name for c in DIGITS.cells] == [
        *("dense", "mask", "one_layer", "mp", "rp_1e-1", "rp_1e-2", "rp_1e-3", "rp_1e-4"),
        "control",
    ]
    assert len({c.id for c in DIGITS.cells}) == len(DIGITS.cells)
    assert {c.density for c in DIGITS.cells if c.name != "dense"} == {0.5}


def test_id_follows_every_part_of_the_configuration() -> None:
    one = cell("rp_1e-2")
    others = [
        replace(one, dataset="other"),
        replace(one, ratio=0.02),
        replace(one, density=0.25),
        replace(one, model=replace(one.model, depth=3)),
        replace(one, model=replace(one.model, family="other")),
        *[
            replace(one, recipe=recipe)
            for recipe in (
                replace(one.recipe, name="other"),
                replace(one.recipe, version=2),
                replace(one.recipe, epochs=1),
                replace(one.recipe, batch=1),
                replace(one.recipe, learning_rate=1.0),
                replace(one.recipe, weight_decay=1.0),
            )
        ],
    ]
    assert len({c.id for c in [one, *others]}) == len(others) + 1


def test_id_is_the_same_in_another_process() -> None:
    code = "from reproduce.cells import DIGITS; print(*[c.id for c in DIGITS.cells])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [c.id for c in DIGITS.cells]


def test_configuration_is_plain_data() -> None:
    for c in DIGITS.cells:
        assert json.loads(json.dumps(c.configuration)) == c.configuration


def test_shortened_study_has_ids_of_its_own() -> None:
    assert not {c.id for c in DIGITS.cells} & {c.id for c in DIGITS.shortened(1).cells}


def test_filter_takes_names_and_the_rp_family() -> None:
    assert [c.name for c in DIGITS.only(["rp", "dense"]).cells] == [
        *("dense", "rp_1e-1", "rp_1e-2", "rp_1e-3", "rp_1e-4")
    ]


def test_unknown_strategy_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'rp_1e-9' here, only dense, mask, .*control"):
        DIGITS.only(["dense", "rp_1e-9"])


@pytest.mark.parametrize(
    ("strategy", "ratio", "density"),
    [
        ("mp", 0.1, 0.5),
        ("rp", None, 0.5),
        ("rp", 2.0, 0.5),
        ("dense", None, 0.5),
        ("mp", None, None),
        ("mp", None, 1.5),
        ("control", None, 0.0),
        ("unknown", None, 0.5),
    ],
)
def test_impossible_cells_are_refused(
    strategy: str, ratio: float | None, density: float | None
) -> None:
    with pytest.raises(ValueError, match=r"ratio|density|strategy"):
        replace(cell("dense"), strategy=strategy, ratio=ratio, density=density)
