"""The suite can fail: each broken implementation is caught by the clause meant for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from hypothesis import Phase, is_hypothesis_test, settings

from spec_tests.clauses import all_clauses
from spec_tests.gallery import GALLERY, Mistake
from spec_tests.subject import judging

CLAUSES = all_clauses()

# Not any exception: a mistake that crashes of itself shows nothing. Under a transform (X) it is
# torch that refuses what was done wrong.
CAUGHT = (AssertionError, pytest.fail.Exception)


@contextmanager
def quickly(test: Any) -> Iterator[None]:
    """To find a mistake is enough here: the smallest example of it is for people."""
    if not is_hypothesis_test(test):
        yield
        return
    # A test that carries its settings cannot be given others in any public way.
    before = test._hypothesis_internal_use_settings
    test._hypothesis_internal_use_settings = settings(
        before, phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False
    )
    try:
        yield
    finally:
        test._hypothesis_internal_use_settings = before


def run(test: Any) -> None:
    """Call the test of a clause, with each of its parameters, as pytest would."""
    axes = [
        [{mark.args[0]: value} for value in mark.args[1]]
        for mark in getattr(test, "pytestmark", [])
        if mark.name == "parametrize"
    ]
    for chosen in product(*axes):
        test(**{name: value for one in chosen for name, value in one.items()})


@pytest.mark.filterwarnings("ignore")  # as the clauses of transforms do
@pytest.mark.parametrize("mistake", GALLERY, ids=lambda m: f"{m.clause}: {m.text}")
def test_mistake_is_caught(mistake: Mistake) -> None:
    if mistake.clause not in CLAUSES:
        pytest.skip("its clause needs torchvision")
    test = CLAUSES[mistake.clause].test
    caught = (*CAUGHT, RuntimeError) if mistake.clause.startswith("X") else CAUGHT
    with judging(mistake.build()), quickly(test), pytest.raises(caught):
        run(test)


def test_every_clause_can_fail() -> None:
    assert {mistake.clause for mistake in GALLERY} >= set(CLAUSES)
