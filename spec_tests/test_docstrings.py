"""The reference's own: every public name says what it takes, gives and refuses, and shows it."""

import ast
import doctest
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import pemn_ref
from pemn_ref import file


class Definition(NamedTuple):
    """A name at the top of a module; a value has its docstring below it."""

    node: ast.FunctionDef | ast.ClassDef | ast.Assign
    docstring: str


def definitions() -> dict[str, Definition]:
    """All functions and classes of the reference, and the values that have a docstring."""
    found = {}
    for path in Path(pemn_ref.__file__).parent.rglob("*.py"):
        for node, after in pairwise([*ast.parse(path.read_text(encoding="utf-8")).body, None]):
            match node, after:
                case ast.FunctionDef() | ast.ClassDef(), _:
                    docstring = ast.get_docstring(node) or ""
                    found[node.name] = Definition(node, docstring)
                case ast.Assign(targets=[ast.Name(name)]), ast.Expr(ast.Constant(str(docstring))):
                    found[name] = Definition(node, docstring)
    return found


DEFINITIONS = definitions()
PUBLIC = {*pemn_ref.__all__, *file.__all__, "write"}


def raises(node: ast.AST, raising: set[str]) -> bool:
    """Whether there is a raise in it, or a call of a name that raises."""
    match node:
        case ast.Raise(exc=ast.expr()):  # a bare one hands on what is not its own
            return True
        case ast.Call(func=ast.Name(name)) if name in raising:
            return True
    return any(raises(child, raising) for child in ast.iter_child_nodes(node))


def all_that_raise() -> set[str]:
    """The names of the reference that raise, themselves or by what they call."""
    raising: set[str] = set()
    while more := {n for n, d in DEFINITIONS.items() if raises(d.node, raising)} - raising:
        raising |= more
    return raising


RAISING = all_that_raise()


@pytest.mark.parametrize("name", sorted(n for n in DEFINITIONS if not n.startswith("_")))
def test_has_a_docstring(name: str) -> None:
    assert DEFINITIONS[name].docstring


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_says_where_it_is_from_shows_how_and_names_its_errors(name: str) -> None:
    node, docstring = DEFINITIONS[name]
    assert re.search(r"\b(paper|released\s+code|ours?)\b", docstring, re.IGNORECASE)
    if not isinstance(node, ast.Assign):  # of which doctest would find nothing
        assert doctest.DocTestParser().get_examples(docstring)
        assert ("Raises:" in docstring) >= (name in RAISING)


def test_what_raises_is_found() -> None:
    assert {"check_fraction", "kept", "rp", "masked_forward", "save", "load_dense"} <= RAISING
    assert not RAISING & {"fan_in", "pack", "State"}
