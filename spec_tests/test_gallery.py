"""The suite can fail: each broken implementation is caught by the clause meant for it."""

import sys

import pytest

from spec_tests.clauses import all_clauses
from spec_tests.gallery import GALLERY, Mistake, failure
from spec_tests.models import CASES, Unable

CLAUSES = all_clauses()

# Not any exception: a mistake that crashes of itself shows nothing. Under a transform (X) it is
# torch that refuses what was done wrong.
CAUGHT = (AssertionError, pytest.fail.Exception)


@pytest.mark.filterwarnings("ignore")  # as the clauses of transforms do
@pytest.mark.parametrize("mistake", GALLERY, ids=lambda m: f"{m.clause}: {m.text}")
def test_mistake_is_caught(mistake: Mistake) -> None:
    if mistake.clause not in CLAUSES:
        pytest.skip("its clause needs torchvision")
    error = failure(CLAUSES[mistake.clause], mistake.build())
    caught = (*CAUGHT, RuntimeError) if mistake.clause.startswith("X") else CAUGHT
    assert isinstance(error, caught), error


def test_skipped_cases_hide_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "attention", CASES["attention"]._replace(build=Unable))
    (rounded,) = (m for m in GALLERY if m.clause == "X7")
    (unmasked,) = (m for m in GALLERY if m.clause == "X11")
    assert isinstance(failure(CLAUSES["X7"], rounded.build()), AssertionError)  # in other cases
    with pytest.raises(pytest.skip.Exception, match="no kernel for this"):
        failure(CLAUSES["X11"], unmasked.build())  # which has no others


def test_every_clause_can_fail() -> None:
    assert {mistake.clause for mistake in GALLERY} >= set(CLAUSES)


def test_a_copy_leaves_no_module_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pemn_ref.file", raising=False)
    before = {name: module for name, module in sys.modules.items() if "pemn_ref" in name}
    GALLERY[0].build()
    assert {name: module for name, module in sys.modules.items() if "pemn_ref" in name} == before
