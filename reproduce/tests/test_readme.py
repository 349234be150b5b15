"""What the README shows is what happens: its example, its table of strategies, its picture."""

import ast
import re
import shlex
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

import pemn_ref as pemn
from reproduce.data.augment import Augmentation
from reproduce.data.batches import TrainingBatches, evaluation_batches
from reproduce.data.datasets import load
from reproduce.models.convmixer import ConvMixer
from reproduce.options import COST
from reproduce.tests.conftest import Command
from reproduce.tour.drawing import draw_algorithm
from reproduce.training import networks
from reproduce.training.device import open_device
from reproduce.training.loop import train
from spec_tests import clauses
from spec_tests.gallery import mistakes

README = Path(__file__).parents[2] / "README.md"
RESULTS = README.parent / "reproduce" / "results"
DEVIATIONS = README.parent / "pemn_ref" / "DEVIATIONS.md"
CONTRIBUTING = README.with_name("CONTRIBUTING.md")
pytestmark = pytest.mark.skipif(not README.exists(), reason="installed without the README")


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_examples_train_materialise_and_count(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = python_blocks(README)
    (count,) = python_blocks(DEVIATIONS)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    names: dict[str, Any] = {"batches": [(images, torch.tensor([0, 1, 2, 3]))] * 2}
    monkeypatch.chdir(tmp_path)
    exec(example, names)
    model, state = names["model"], names["state"]
    assert sum(bool((s.grad != 0).any()) for s in state.scores.values()) == len(state.scores)
    model.eval()
    masked = pemn.masked_forward(model, *state, images, density=0.5)
    torch.testing.assert_close(model(images), masked)
    exec(count, names)
    assert capsys.readouterr().out == "100% of the parameters are masked\n"


def test_profile_of_a_step() -> None:
    (profile,) = python_blocks(COST)
    names: dict[str, Any] = {}
    exec(profile, names)
    convolutions = {e.key: e.count for e in names["seen"].key_averages()}["aten::convolution"]
    assert convolutions == 31


def test_table_of_strategies() -> None:
    with torch.device("meta"):
        model = ConvMixer(depth=6, width=256, patch=2, kernel=5, channels=3, classes=10)
    shapes = pemn.maskable_shapes(model)
    line = r"^\| `(pemn\.\S+)` \|[^|]*\| ([\d,]+) \| (-?[\d.]+) % \|$"
    rows = re.findall(line, README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(rows) == 7
    for strategy, unique, percent in rows:
        cost = pemn.storage(shapes, eval(strategy))
        assert int(unique.replace(",", "")) == cost.unique
        assert abs(float(percent) - 100 * cost.paper) <= 0.0051


@pytest.fixture
def no_deadline() -> Iterator[None]:
    """The profile that spec_tests runs with."""
    before = settings.get_current_profile_name()
    settings.load_profile("ci")
    yield
    settings.load_profile(before)


@pytest.mark.usefixtures("no_deadline")
def test_examples_of_the_contributing_page_work(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    pytestconfig.addinivalue_line("markers", "clause(identifier): as spec_tests has it")
    monkeypatch.setattr(networks, "_FAMILIES", dict(networks._FAMILIES))
    monkeypatch.setattr(clauses, "CLAUSES", dict(clauses.CLAUSES))
    monkeypatch.setattr(mistakes, "GALLERY", list(mistakes.GALLERY))
    names: dict[str, Any] = {}
    for block in python_blocks(CONTRIBUTING):
        exec(block, names)
    # the strategy fills each kind from a prototype of its own
    weights = [weight.flatten() for weight in names["state"].weights.values()]
    for weight, length in zip(weights, (22, 289), strict=True):
        assert torch.equal(weight[:-length], weight[length:])
    assert not torch.equal(weights[0][:22], weights[1][:22])
    # the model trains in the cell
    device = open_device("cpu")
    network = networks.make_network(names["cell"], 0, device.torch)
    images, test_images = load("digits")
    recipe = names["recipe"]
    batches = TrainingBatches(images, Augmentation(), seed=0, batch=recipe.batch)
    held_out = evaluation_batches(test_images, Augmentation(), batch=500)
    history = train(
        network, batches, held_out, recipe, seed=0, device=device, on_epoch=lambda _: None
    )
    assert history[-1].loss < history[0].loss
    # the clause holds, and the mistake turns it red
    new = clauses.CLAUSES["P99"]
    made = mistakes.GALLERY[-1]
    assert mistakes.failure(new, pemn) is None
    assert isinstance(mistakes.failure(new, made.build()), AssertionError)


def commands_shown() -> list[str]:
    """All of ``python -m reproduce`` that a page shows, each once."""
    pages = [README, CONTRIBUTING, *sorted((README.parent / "reproduce").rglob("*.md"))]
    found = [
        re.findall(r"python -m reproduce ([a-z][^`#:\n]*)", page.read_text(encoding="utf-8"))
        for page in pages
    ]
    return [*dict.fromkeys(command.strip() for of_page in found for command in of_page)]


@pytest.mark.parametrize("shown", commands_shown() if README.exists() else ())
def test_commands_that_are_shown_exist_with_their_options(command: Command, shown: str) -> None:
    words = shlex.split(shown)
    name = [*takewhile(str.isalpha, words)]  # an option that is not there is seen before --help
    code, output, errors = command(*name, "--help", *words[len(name) :])
    assert (code, errors) == (0, "")
    assert "Usage: " in output


def test_commands_that_are_shown_are_found() -> None:
    assert {"run", "run --all", "table"} <= {*commands_shown()}


def modules_of(package: str) -> list[Path]:
    return [
        module
        for module in (README.parent / package).rglob("*.py")
        if not re.fullmatch(r"__main__|conftest|test_\w+", module.stem)
        and "tests" not in module.relative_to(README.parent).parts
    ]


def test_map_of_the_code_names_every_module_there_is() -> None:
    (map_,) = re.findall(
        r"```text\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    for package in ("pemn_ref", "spec_tests", "reproduce"):
        part = map_[map_.index(f"{package}/") :]
        for module in modules_of(package):
            if module.parent.name in ("data", "models", "examples", "gallery"):
                assert f"{module.parent.name}/" in part
            elif module.stem != "__init__":
                assert module.name in part, module


def test_each_package_imports_what_its_docstring_says_and_there_is_no_circle() -> None:
    says: dict[str, set[str]] = {}
    does: dict[str, set[str]] = {}
    of_module: dict[str, set[str]] = {}
    for module in modules_of("reproduce"):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        names = [
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)  # those inside of functions, and for types alone, too
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
            if node.module.startswith("reproduce.")
        ]
        package, *rest = module.relative_to(README.parent / "reproduce").with_suffix("").parts
        of_module[".".join(("reproduce", package, *rest))] = {*names} | {
            name.rpartition(".")[0] for name in names
        }
        if not rest:
            continue
        does.setdefault(package, set()).update(name.split(".")[1] for name in names)
        if rest == ["__init__"]:
            (said,) = re.findall(r"^Imports (.*)\.$", ast.get_docstring(tree) or "", re.MULTILINE)
            says[package] = set() if said.startswith("nothing") else {*said.split(", ")}
    assert {package: imports - {package} for package, imports in does.items()} == says
    order = TopologicalSorter({m: on & {*of_module} for m, on in of_module.items()})
    assert [*order.static_order()]  # raises where there is a circle


def test_drawing_shows_all_five_steps(tmp_path: Path) -> None:
    picture = tmp_path / "algorithm.svg"
    draw_algorithm(picture)
    text = picture.read_text(encoding="utf-8")
    # Prototype, fill and scores, and of masks and network the half that is kept.
    assert text.count("<path") > 13 + 2 * 288 + 2 * 144
    assert text.count("<pattern") == 1  # the hatch of what is dropped, which is no small value
