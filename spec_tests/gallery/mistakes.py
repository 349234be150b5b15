"""What a mistake is: a fresh copy of the reference, in which a name stands for something else.

Most replace one function: ``@mistake`` over a function of its name, whose first parameter ``right``
is bound to all names of the reference as they were. Those that rebind several names, a constant or
part of a class are a function of ``right`` under ``@rebinds``.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import Phase, is_hypothesis_test, settings

from spec_tests.clauses import Clause
from spec_tests.subject import judging

Wrong = TypeVar("Wrong", bound=Callable[..., Any])
Rebound = dict[str, Any]


class Mistake(NamedTuple):
    """What was done wrong, and the clause that is meant to catch it."""

    clause: str
    text: str
    rebound: Callable[[Any], Rebound]

    @property
    def named(self) -> str:
        """What it is called in what is measured."""
        return f"{self.clause}: {self.text}"

    def build(self) -> ModuleType:
        """A copy of the reference with the mistake in it."""
        mine = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_reference(name)}
        try:
            package = importlib.import_module("pemn_ref")
            importlib.import_module("pemn_ref.file")  # which nothing else imports
            copies = [module for name, module in sys.modules.items() if _is_reference(name)]
        finally:
            # The whole copy, else a part that was not imported before would be taken for the right.
            for name in [*filter(_is_reference, sys.modules)]:
                del sys.modules[name]
            sys.modules.update(mine)
        rebound = self.rebound(_originals(copies))
        for name, value in rebound.items():
            users = [module for module in copies if hasattr(module, name)]
            assert users, f"{name} is not a name of the reference"
            for module in users:
                setattr(module, name, value)
        vars(package)["mistake"] = self.named
        return package


def _is_reference(module: str) -> bool:
    return module == "pemn_ref" or module.startswith("pemn_ref.")


def _originals(modules: list[ModuleType]) -> SimpleNamespace:
    """All names in them, as they were, for a mistake to build on."""
    return SimpleNamespace(**{n: value for module in modules for n, value in vars(module).items()})


GALLERY: list[Mistake] = []


def mistake(clause: str, text: str) -> Callable[[Wrong], Wrong]:
    """Add to the gallery the function in place of the reference's of the same name."""

    def add(wrong: Wrong) -> Wrong:
        rebinds(clause, text)(lambda right: {wrong.__name__: partial(wrong, right)})
        return wrong

    return add


def rebinds(clause: str, text: str) -> Callable[[Callable[[Any], Rebound]], None]:
    """Add to the gallery what the function returns: names, and what each stands for."""
    return lambda rebound: GALLERY.append(Mistake(clause, text, rebound))


@contextmanager
def _quickly(test: Any) -> Iterator[None]:
    """To find a mistake is enough here: the smallest example of it is for people."""
    if not is_hypothesis_test(test):
        yield
        return
    # A test that carries its settings cannot be given others in any public way.
    before = test._hypothesis_internal_use_settings
    test._hypothesis_internal_use_settings = settings(
        before,
        phases=[Phase.explicit, Phase.generate],
        report_multiple_bugs=False,
        derandomize=True,  # that a clause can fail is shown once and for all, not by luck
        database=None,
    )
    try:
        yield
    finally:
        test._hypothesis_internal_use_settings = before


def failure(clause: Clause, implementation: Any) -> BaseException | None:
    """What the clause's test, called with each of its parameters as by pytest, raises first.

    Where none fails, but some cannot run on this machine, the test that asks is skipped too.
    """
    skipped = None
    axes = [
        [{mark.args[0]: value} for value in mark.args[1]]
        for mark in getattr(clause.test, "pytestmark", [])
        if mark.name == "parametrize"
    ]
    with judging(implementation), _quickly(clause.test):
        for chosen in product(*axes):
            try:
                clause.test(**{name: value for one in chosen for name, value in one.items()})
            except pytest.skip.Exception as cannot:
                skipped = cannot
            except (Exception, pytest.fail.Exception) as error:
                return error
    if skipped is not None:
        raise skipped
    return None
