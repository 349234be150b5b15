"""The implementation under test. Clauses reach it as ``pemn``, never by importing it themselves."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from spec_tests.contract import Implementation


class Subject:
    """Hands every name on to the implementation that is judged at the moment."""

    implementation: Any = importlib.import_module("pemn_ref")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Implementation, name):
            raise AttributeError(f"the contract has no {name}")
        if not hasattr(self.implementation, name):
            pytest.fail(f"{name_of(self.implementation)} has no {name}", pytrace=False)
        return getattr(self.implementation, name)


subject = Subject()
pemn = cast(Implementation, subject)


def name_of(implementation: Any) -> str:
    """The module's name, and its version where it has one."""
    name = getattr(implementation, "__name__", repr(implementation))
    version = getattr(implementation, "__version__", None)
    return f"{name} {version}" if version else name


@contextmanager
def judging(implementation: Any) -> Iterator[None]:
    """Let ``pemn`` stand for ``implementation`` for a while."""
    before = subject.implementation
    subject.implementation = implementation
    try:
        yield
    finally:
        subject.implementation = before
