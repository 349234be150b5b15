"""Learning PEMN by writing it: a skeleton, and a report that says what comes next.

``python -m spec_tests start my_pemn.py`` writes the skeleton, with ``learning = True`` in it. Of
such a module ``python -m spec_tests run`` judges the clauses in the order of ``STEPS``, up to the
first that fails.
"""

import ast
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import spec_tests.contract
from spec_tests.clauses import all_clauses

LEFT_OUT = ("Strategy", "save", "load", "load_dense", "inspect")
"""Names that only the classes file and errors need."""

HEAD = '''"""Parameter-Efficient Masking Networks, by me.

``python -m spec_tests run --impl {module}`` says what is next.

``shapes`` maps the name of each maskable weight, as ``model.named_parameters()`` gives it, to its
shape, in that order. Tensors are keyed by the same names. Each ValueError names the argument or the
layer that is wrong, and its value.
"""

from typing import Any, NamedTuple

learning = True  # remove this line to judge files, errors and extras, too

'''


class Step(NamedTuple):
    """Some clauses, the names they need first, and what to read once they are green."""

    name: str
    clauses: tuple[str, ...]
    names: str
    reading: str


STEPS = (
    Step("lengths", ("P1",), "prototype_length", "pemn_ref/prototype.py, prototype_length"),
    Step(
        "prototype",
        ("P*",),
        "mask, one_layer, mp, rp, make_prototype, init_scores",
        "pemn_ref/prototype.py; the paper, section 3",
    ),
    Step("fill", ("F*",), "fill_weights", "pemn_ref/fill.py"),
    Step("counts", ("M1",), "kept", "pemn_ref/masks.py, kept: what the released code loses"),
    Step("masks", ("M*",), "score_mask, apply_mask", "pemn_ref/masks.py, up to the gradient"),
    Step(
        "gradient",
        ("G1", "G2", "G3", "G6"),
        "score_mask, apply_mask",
        "pemn_ref/masks.py, score_mask: why there is no autograd.Function",
    ),
    Step(
        "forward",
        ("W*", "G*"),
        "maskable_shapes, init, masked_forward, materialize",
        "pemn_ref/forward.py and state.py",
    ),
    Step("storage", ("S*",), "storage", "pemn_ref/accounting.py; the paper, section 4"),
    Step(
        "transforms",
        ("X*",),
        "all of them, under vmap, grad, jvp, compile and autocast",
        "spec_tests/examples/eighty_lines.py, a solution",
    ),
)


def step_of(clause: str) -> int | None:
    """The number of the first step that has the clause; files, errors and extras are in none."""
    if all_clauses()[clause].claim in ("file", "errors", "extras"):
        return None
    for number, step in enumerate(STEPS):
        if any(fnmatchcase(clause, pattern) for pattern in step.clauses):
            return number
    return None


def skeleton(module: str) -> str:
    """The names of the contract with their docstrings, and nothing behind them."""
    source = Path(spec_tests.contract.__file__).read_text(encoding="utf-8")
    classes = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)}
    values, functions = [], []
    for name in ("State", "Storage"):
        functions.append(
            f'class {name}(NamedTuple):\n    """{ast.get_docstring(classes[name])}"""\n'
        )
        for node in classes[name].body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                functions[-1] += f"\n    {node.name}: Any  # {ast.get_docstring(node)}"
        functions[-1] += "\n"
    for node in classes["Implementation"].body:
        if not isinstance(node, ast.FunctionDef) or node.name in LEFT_OUT:
            continue
        docstring = ast.get_docstring(node) or ""
        if node.decorator_list:  # a property: one of the three values
            values.append(f"{node.name} = None  # {docstring}")
            continue
        node.args.posonlyargs = node.args.posonlyargs[1:]  # self
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        text = docstring.replace("\n", "\n    ").replace("\n    \n", "\n\n")
        closing = "\n    " if "\n" in text else ""
        functions.append(
            f"def {node.name}({ast.unparse(node.args)}):\n"
            f'    """{text}{closing}"""\n    raise NotImplementedError\n'
        )
    return HEAD.format(module=module) + "\n".join(values) + "\n\n\n" + "\n\n".join(functions)


def summary(statuses: dict[str, str]) -> list[str]:
    """What is green and what to read about it, and what is next, by the status of each clause."""
    lines: list[str] = []
    for number, step in enumerate(STEPS):
        of_step = {clause for clause in all_clauses() if step_of(clause) == number}
        failed = [c for c, status in statuses.items() if c in of_step and status == "failed"]
        if failed:
            again = f"only this clause again: --clause {failed[0]}"
            return [*lines, f"next: {step.name}: {step.names}", again]
        if all(statuses.get(clause) in ("passed", "skipped") for clause in of_step):
            lines.append(f"green: {step.name}. To read: {step.reading}")
    if len(lines) == len(STEPS):
        lines.append("All steps are green. Remove `learning` to judge files, errors and extras.")
    return lines
