"""Cells are data: their ids follow all of the configuration and nothing else."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import pemn_ref as pemn
from reproduce.study.cells import PRUNED, Cell, ConvMixer, ResNet, ViT
from reproduce.study.recipes import CONVMIXER, RESNET, VIT, Recipe
from reproduce.study.studies import CANARY, CANARY_BAND, REPORTED, STUDIES
from reproduce.training.networks import make_model

DIGITS = STUDIES["digits"].chosen()


def cell(name: str) -> Cell:
    """The cell of the digits study by its strategy."""
    return DIGITS.chosen(strategies=[name]).cells[0]


def test_study_holds_every_strategy_once() -> None:
    assert [c.name for c in DIGITS.cells] == [
        *("dense", "mask", "one_layer", "mp", "rp_1e-1", "rp_1e-2", "rp_1e-3", "rp_1e-4"),
        "control",
    ]
    assert len({c.id for c in DIGITS.cells}) == len(DIGITS.cells)
    assert {c.density for c in DIGITS.cells if c.name != "dense"} == {0.5}


def test_small_cifar_study_holds_all_nine_strategies_of_the_paper_and_the_control() -> None:
    study = STUDIES["cifar10-small"].chosen()
    assert [c.name for c in study.cells] == [
        *("dense", "mask", "one_layer", "mp", "rp_1e-1", "rp_1e-2", "rp_1e-3", "rp_1e-4"),
        *("rp_1e-5", "control"),
    ]
    for c in study.cells:
        assert (c.dataset, c.model) == ("cifar10", ConvMixer(depth=4, width=128, patch=2, kernel=5))
        assert (c.recipe.epochs, c.recipe.batch, c.recipe.learning_rate) == (10, 128, 0.05)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_other_families_of_the_digits_are_groups_with_a_title_of_their_own(family: str) -> None:
    study = STUDIES["digits"].chosen(models=[family])
    assert [c.name for c in study.cells] == ["dense", "mask", "mp", "rp_1e-2", "control"]
    (group,) = study.groups()
    assert group.cells == study.cells
    assert group.title.lower().startswith(f"a small {family} on 8x8 digits")


def test_paper_study_holds_every_plotted_value_once_and_a_control_of_each_model() -> None:
    assert len(REPORTED) == 168
    plotted = {value.cell for value in REPORTED}
    assert len(plotted) == 160
    paper = STUDIES["paper"]
    by_default = paper.chosen()
    assert {c.dataset for c in by_default.cells} == {"cifar10", "cifar100"}
    masked = [c for c in by_default.cells if c.strategy != "control"]
    controls = by_default.cells[len(masked) :]
    assert (len(masked), len(controls)) == (148, 13)
    assert {(c.model, c.dataset) for c in controls} == {(c.model, c.dataset) for c in masked}
    tiny = paper.chosen(datasets=["tiny-imagenet"]).cells
    assert [c.name for c in tiny if c in plotted][:2] == ["dense", "prune_random_90"]
    assert len(tiny) == 13
    assert {*paper.cells} - plotted == {*controls, tiny[-1]}


def test_capacity_and_compression_are_those_of_the_paper() -> None:
    capacity = [value for value in REPORTED if value.figure == "capacity"]
    models = {v.cell.model.label for v in capacity}
    assert models == {
        f"{m}-d{d}-w{w}" for m in ("convmixer", "vit") for d in (6, 8) for w in (256, 512)
    }
    compression = [value for value in REPORTED if value.figure == "compression"]
    assert (len(capacity), len(compression)) == (72, 96)
    for value in compression:
        cell = value.cell
        if cell.strategy in PRUNED:
            assert cell.density is not None
            assert value.compression == pytest.approx(100 * (1 - cell.density))
        elif cell.masking:
            with torch.device("meta"):
                shapes = pemn.maskable_shapes(make_model(cell, 0))
            saved = 100 * pemn.storage(shapes, cell.masking).paper
            # the paper plots the compression of CIFAR-10's model for every dataset
            assert value.compression == pytest.approx(saved, abs=0.5), cell


def test_canary_is_the_first_cell_and_the_published_command() -> None:
    assert STUDIES["paper"].chosen().cells[0] == CANARY
    (reported,) = {v.accuracy for v in REPORTED if v.cell == CANARY}
    assert reported == 88.51
    assert CANARY_BAND[0] < reported < CANARY_BAND[1]
    assert (CANARY.model, CANARY.ratio) == (ConvMixer(6, 256, patch=2, kernel=5), 1e-3)
    recipe = CANARY.recipe
    assert (recipe.epochs, recipe.batch, recipe.learning_rate) == (100, 512, 0.05)


def test_no_recipe_changes_without_a_new_version() -> None:
    """Rows that were measured belong to these cells: who changes a recipe raises its version."""
    pinned = {
        "digits": "f6f24523f521",
        "cifar10-small": "3888fe043463",
        "paper": "7193ee2cb249",
        "frontier-rates": "fad30b069c68",
        "frontier": "0b62bd654168",
        "frontier-cifar10": "d262cc239531",
    }
    ids = {
        name: hashlib.sha256(" ".join(c.id for c in study.cells).encode()).hexdigest()[:12]
        for name, study in STUDIES.items()
    }
    assert ids == pinned


PAPER = [
    ("cifar10", ConvMixer(depth=6, width=256, patch=2, kernel=5), CONVMIXER, 437_248, 65_536),
    ("cifar10", ResNet(depth=32, width=16), RESNET, 461_872, 36_864),
    ("cifar100", ResNet(depth=56, width=16), RESNET, 848_944 + 90 * 64, 36_864),
    (
        "cifar10",
        ViT(depth=6, width=256, heads=8, head_width=64, mlp=512, patch=4, dropout=0.1),
        VIT,
        4_733_440,
        393_216,
    ),
]


@pytest.mark.parametrize(("dataset", "model", "recipe", "weights", "largest"), PAPER)
def test_cells_of_the_paper_have_its_weights(
    dataset: str, model: ConvMixer | ResNet | ViT, recipe: Recipe, weights: int, largest: int
) -> None:
    paper = Cell(dataset, model, "mp", None, 0.5, recipe)
    with torch.device("meta"):
        shapes = pemn.maskable_shapes(make_model(paper, seed=0))
    assert sum(shape.numel() for shape in shapes.values()) == weights
    assert pemn.storage(shapes, pemn.mp).unique == largest


def test_id_follows_every_part_of_the_configuration() -> None:
    one = cell("rp_1e-2")
    others = [
        replace(one, dataset="other"),
        replace(one, ratio=0.02),
        replace(one, density=0.25),
        replace(one, model=replace(one.model, depth=3)),
        replace(one, model=replace(one.model, family="other")),
        *[
            replace(one, recipe=recipe)
            for recipe in (
                replace(one.recipe, name="other"),
                replace(one.recipe, version=2),
                replace(one.recipe, epochs=1),
                replace(one.recipe, batch=1),
                replace(one.recipe, learning_rate=1.0),
                replace(one.recipe, weight_decay=1.0),
                replace(one.recipe, optimizer="sgd"),
                replace(one.recipe, momentum=0.5),
                replace(one.recipe, schedule="steps"),
                replace(one.recipe, augmentation="vit"),
            )
        ],
    ]
    assert len({c.id for c in [one, *others]}) == len(others) + 1


def test_id_does_not_follow_where_the_recipe_is_from() -> None:
    one = cell("mp")
    assert replace(one, recipe=replace(one.recipe, known=(), inferred=("epochs",))).id == one.id


def test_id_is_the_same_in_another_process() -> None:
    code = """from reproduce.study.studies import CANARY, CANARY_BAND, REPORTED, STUDIES
print(*[c.id for c in STUDIES["digits"].chosen().cells])"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == [c.id for c in DIGITS.cells]


def test_configuration_is_plain_data() -> None:
    for c in [c for study in STUDIES.values() for c in study.cells]:
        assert json.loads(json.dumps(c.configuration)) == c.configuration


def test_shortened_study_has_ids_of_its_own() -> None:
    assert not {c.id for c in DIGITS.cells} & {c.id for c in DIGITS.shortened(1).cells}


def test_filter_takes_names_and_the_rp_family() -> None:
    assert [c.name for c in DIGITS.chosen(strategies=["rp", "dense"]).cells] == [
        *("dense", "rp_1e-1", "rp_1e-2", "rp_1e-3", "rp_1e-4")
    ]


def test_family_that_the_paper_has_on_one_dataset_is_chosen_by_its_name() -> None:
    cells = STUDIES["paper"].chosen(models=["vit"]).cells
    assert {c.dataset for c in cells} == {"cifar10"}
    assert len(cells) == 4 * 10


def test_unknown_strategy_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'rp_1e-9' here: only dense, mask, .*control"):
        DIGITS.chosen(strategies=["dense", "rp_1e-9"])


@pytest.mark.parametrize(
    ("strategy", "ratio", "density"),
    [
        ("mp", 0.1, 0.5),
        ("rp", None, 0.5),
        ("rp", 2.0, 0.5),
        ("dense", None, 0.5),
        ("mp", None, None),
        ("mp", None, 1.5),
        ("control", None, 0.0),
        ("unknown", None, 0.5),
    ],
)
def test_impossible_cells_are_refused(
    strategy: str, ratio: float | None, density: float | None
) -> None:
    with pytest.raises(ValueError, match=r"ratio|density|strategy"):
        replace(cell("dense"), strategy=strategy, ratio=ratio, density=density)
