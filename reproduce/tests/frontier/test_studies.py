"""The studies of the byte frontier: fair, chosen without test images, resumed to the same bits."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reproduce.data import datasets, digits
from reproduce.data.datasets import load
from reproduce.data.images import Images
from reproduce.report.frontier import PAGE, chosen_rates
from reproduce.report.page import make_pages, read_contents
from reproduce.rows import ledger
from reproduce.study.cells import Cell, Study
from reproduce.study.frontier import GRID
from reproduce.study.studies import STUDIES
from reproduce.tests.training.test_checkpoint import EPOCHS, Run, same_after_a_stop_at_every_step
from reproduce.tests.training.test_checkpoint import digits as few_digits

RESULTS = Path(__file__).parents[2] / "results"
FRONTIER, RATES = STUDIES["frontier"], STUDIES["frontier-rates"]


def test_choosing_rates_never_reads_a_test_image(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = digits.load()
    poisoned = Images(test.pixels.fill_(float("nan")), test.labels.fill_(-1))
    monkeypatch.setattr(digits, "load", lambda: (train, poisoned))
    assert {cell.dataset for cell in RATES.cells} == {"digits-held-out"}
    chosen_on = load("digits-held-out")
    assert [len(images) for images in chosen_on] == [900, 397]
    pixels = torch.cat([images.pixels for images in chosen_on])
    assert torch.equal(pixels, train.pixels)  # each training image once, and nothing else
    assert datasets.DATASETS["digits-held-out"].test == 397


def test_rates_are_those_that_the_trials_choose() -> None:
    """Of the rows that are committed, all of which count."""
    said: list[str] = []
    rows = ledger.read(RESULTS, "frontier-rates", said.append)
    assert said == []
    assert len(rows) == len(RATES.cells) * RATES.seeds
    chosen = chosen_rates(RATES, rows)
    assert {c.name: c.recipe.learning_rate for c in FRONTIER.cells}.items() <= chosen.items()


@pytest.mark.parametrize("study", [FRONTIER, STUDIES["frontier-cifar10"]], ids=lambda s: s.name)
def test_each_committed_row_is_of_its_study(study: Study) -> None:
    said: list[str] = []
    rows = ledger.read(RESULTS, study.name, said.append)
    assert said == []
    if study is FRONTIER:
        assert {row.run for row in rows} == {
            cell.run_id(seed) for cell in study.cells for seed in range(study.seeds)
        }


def test_committed_page_is_current() -> None:
    page = make_pages(RESULTS, read_contents(RESULTS, lambda _: None))[PAGE]
    assert (RESULTS / PAGE).read_text(encoding="utf-8") == page, "run python -m reproduce figures"
    for picture in re.findall(r"\(([\w.-]+\.(?:png|svg))\)", page):
        assert (RESULTS / picture).exists()


def test_every_family_is_trained_alike_and_tried_as_often() -> None:
    for study in (FRONTIER, RATES, STUDIES["frontier-cifar10"]):
        recipes = {cell.recipe.changed(learning_rate=0.0) for cell in study.cells}
        assert len(recipes) == 1
        assert {(c.model.depth, c.recipe.schedule) for c in study.cells} in (
            {(2, "piecewise")},
            {(4, "piecewise")},
        )
    tried: dict[str, list[tuple[str, float]]] = {}
    for cell in RATES.cells:
        tried.setdefault(cell.name, []).append((cell.model.label, cell.recipe.learning_rate))
    assert {*tried} > {cell.name for cell in FRONTIER.cells}
    for trials in tried.values():
        assert trials == [(f"convmixer-d2-w{width}", rate) for width in (16, 64) for rate in GRID]
    assert [*dict.fromkeys(cell.model.width for cell in FRONTIER.cells)] == [8, 16, 32, 64, 128]
    assert FRONTIER.seeds == 5


@pytest.mark.parametrize("name", ["mp", "signed-scaled_seed", "global_seed", "int8"])
def test_run_that_is_stopped_at_every_step_ends_as_one_that_is_not(
    tmp_path: Path, name: str
) -> None:
    cell = next(cell for cell in FRONTIER.cells if cell.name == name)
    cell = replace(cell, recipe=cell.recipe.changed(epochs=EPOCHS, batch=50))
    runs = [Run(tmp_path / which, cell, few_digits()) for which in ("whole", "pieces")]
    same_after_a_stop_at_every_step(*runs)


def test_cell_of_the_frontier_is_none_of_the_paper() -> None:
    mine = {c.name: c for c in FRONTIER.cells}
    assert mine["mp"].strategy == "frontier-mp"
    for cell in FRONTIER.cells:
        assert Cell.configured(cell.configuration).id == cell.id
    others = {c.id for s in STUDIES.values() if "frontier" not in s.name for c in s.cells}
    assert others.isdisjoint(c.id for c in FRONTIER.cells)
    with pytest.raises(ValueError, match="no strategy 'frontier-nothing': families are mp, "):
        replace(mine["mp"], strategy="frontier-nothing")
