"""The implementation under test. Clauses reach it as ``pemn``, never by importing it themselves."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from spec_tests.contract import Implementation


class MissingName(BaseException):
    """The implementation lacks a name that a clause needs.

    No Exception, since Hypothesis would look for the smallest example of it, in each such clause.
    """


class Subject:
    """Hands every name on to the implementation that is judged at the moment."""

    implementation: Any = importlib.import_module("pemn_ref")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Implementation, name):
            raise AttributeError(f"the contract has no {name}")
        if hasattr(self.implementation, name):
            return getattr(self.implementation, name)
        # Not before it is needed: under torch.compile nothing may be imported.
        if hasattr(_submodule_file(self.implementation), name):
            return getattr(self.implementation.file, name)
        raise MissingName(f"{name_of(self.implementation)} has no {name}")


def _submodule_file(implementation: Any) -> Any:
    """The part that writes files, which an implementation need not import of itself."""
    with suppress(AttributeError, ImportError):
        if not hasattr(implementation, "file"):
            importlib.import_module(f"{implementation.__name__}.file")
        return implementation.file
    return None


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
