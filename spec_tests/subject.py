"""The implementation under test. Clauses reach it as ``pemn``, never by importing it themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pemn_ref


class Subject:
    """Hands every name on to the implementation that is judged at the moment."""

    implementation: ModuleType = pemn_ref

    def __getattr__(self, name: str) -> Any:
        return getattr(self.implementation, name)


pemn = Subject()


@contextmanager
def judging(implementation: ModuleType) -> Iterator[None]:
    """Let ``pemn`` stand for ``implementation`` for a while."""
    before = pemn.implementation
    pemn.implementation = implementation
    try:
        yield
    finally:
        pemn.implementation = before
