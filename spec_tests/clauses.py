"""The register of clauses: id -> the test that states it."""

import functools
import importlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pytest
from hypothesis import is_hypothesis_test

Test = TypeVar("Test", bound=Callable[..., Any])
Level = Literal["MUST", "SHOULD"]


class Clause(NamedTuple):
    """A requirement: MUST is the algorithm; SHOULD are errors, extras and transforms."""

    identifier: str
    level: Level
    text: str
    test: Callable[..., Any]


CLAUSES: dict[str, Clause] = {}

EXAMPLES: Counter[str] = Counter()
"""How many examples of each clause were tried so far."""


def clause(identifier: str, level: Level = "MUST") -> Callable[[Test], Test]:
    """Mark a test as the one that states the clause; its docstring is the clause's text."""

    def register(test: Test) -> Test:
        if identifier in CLAUSES:
            raise ValueError(f"clause {identifier} is stated twice")
        if not test.__doc__:
            raise ValueError(f"clause {identifier} needs its text as docstring")
        if is_hypothesis_test(test):
            inner: Any = test.hypothesis  # type: ignore[attr-defined]
            inner.inner_test = counted(identifier, inner.inner_test)
        marked: Test = pytest.mark.clause(identifier)(test)
        CLAUSES[identifier] = Clause(identifier, level, " ".join(test.__doc__.split()), marked)
        return marked

    return register


def counted(identifier: str, test: Callable[..., Any]) -> Callable[..., Any]:
    """The test, counting the examples that it is called with."""

    @functools.wraps(test)
    def call(*args: Any, **kwargs: Any) -> Any:
        EXAMPLES[identifier] += 1
        return test(*args, **kwargs)

    return call


def all_clauses() -> dict[str, Clause]:
    """Every clause of the suite, in its order of group and number, whatever was collected."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.stem not in ("test_gallery", "test_judge"):  # no clauses
            with suppress(pytest.skip.Exception):  # without torchvision
                importlib.import_module(f"spec_tests.{path.stem}")
    order = "PFMGWXSCE"
    return dict(sorted(CLAUSES.items(), key=lambda c: (order.index(c[0][0]), int(c[0][1:]))))
