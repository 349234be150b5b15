"""The register of clauses: id -> the test that states it."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])

CLAUSES: dict[str, Callable[..., Any]] = {}


def clause(identifier: str) -> Callable[[Test], Test]:
    """Mark a test as the one that states the clause; its docstring is the clause's text."""

    def register(test: Test) -> Test:
        if identifier in CLAUSES:
            raise ValueError(f"clause {identifier} is stated twice")
        if not test.__doc__:
            raise ValueError(f"clause {identifier} needs its text as docstring")
        marked: Test = pytest.mark.clause(identifier)(test)
        CLAUSES[identifier] = marked
        return marked

    return register
