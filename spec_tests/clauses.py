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

SPECIFICATION = "1.2"
"""The version of all clauses together; what changed from one to the next stands in ``SPEC.md``."""

CLASSES = ("core", "torch", "file", "errors", "extras")
"""What an implementation can claim: ``core`` on plain arrays, ``torch`` on modules, ..."""
_EXTRAS = ("M10", "S6", "W12", "C16")
"""What goes beyond the paper: layers left out, a density for each layer."""


class Clause(NamedTuple):
    """A requirement: MUST is the algorithm; SHOULD are our own choices, errors, extras, transforms.

    ``since`` is the version of the specification that first had it.
    """

    identifier: str
    level: Level
    since: str
    text: str
    test: Callable[..., Any]

    @property
    def claim(self) -> str:
        """The one of ``CLASSES`` that it belongs to."""
        if self.identifier in _EXTRAS:
            return "extras"
        if self.identifier in ("G4", "G5", "G7"):  # the gradient in a module
            return "torch"
        return {"W": "torch", "X": "torch", "C": "file", "E": "errors"}.get(
            self.identifier[0], "core"
        )


CLAUSES: dict[str, Clause] = {}

EXAMPLES: Counter[str] = Counter()
"""How many examples of each clause were tried so far."""


class NotEnded(BaseException):
    """The time for a clause was up. No Exception, or Hypothesis would try the example again."""


def clause(identifier: str, level: Level = "MUST", since: str = "1.0") -> Callable[[Test], Test]:
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
        CLAUSES[identifier] = Clause(
            identifier, level, since, " ".join(test.__doc__.split()), marked
        )
        return marked

    return register


def counted(identifier: str, test: Callable[..., Any]) -> Callable[..., Any]:
    """The test, counting the examples that it is called with, and naming one that does not end."""

    @functools.wraps(test)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        EXAMPLES[identifier] += 1
        try:
            return test(*args, **kwargs)
        except pytest.fail.Exception as failed:
            if "pytest-timeout" not in str(failed):
                raise
            example = ", ".join([*map(repr, args), *(f"{n}={v!r}" for n, v in kwargs.items())])
        raise NotEnded(f"{identifier} did not end in the time that it has, with {example}")

    return call


NO_CLAUSES = tuple(
    f"test_{part}" for part in ("fast", "gallery", "gates", "judge", "learning", "specification")
)


def all_clauses() -> dict[str, Clause]:
    """Every clause of the suite, in its order of group and number, whatever was collected."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.stem not in NO_CLAUSES:
            with suppress(pytest.skip.Exception):  # without torchvision
                importlib.import_module(f"spec_tests.{path.stem}")
    order = "PFMGWXSCE"
    return dict(sorted(CLAUSES.items(), key=lambda c: (order.index(c[0][0]), int(c[0][1:]))))
