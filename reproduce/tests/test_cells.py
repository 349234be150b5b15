"""Cells are data: their ids follow all of the configuration and nothing else."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import pemn_ref as pemn
from reproduce.cells import STUDIES, Cell, ConvMixer, ResNet, ViT
from reproduce.networks import make_model
from reproduce.recipes import CONVMIXER, RESNET, VIT, Recipe

DIGITS = STUDIES["digits"].of()


def cell(name: str) -> Cell:
    """The cell of the digits study by its strategy."""
    return DIGITS.only([name]).cells[0]


def test_study_holds_every_strategy_once() -> None:
    assert [c.name for c in DIGITS.cells] == [
        *("dense", "mask", "one_layer", "mp", "rp_1e-1", "rp_1e-2", "rp_1e-3", "rp_1e-4"),
        "control",
    ]
    assert len({c.id for c in DIGITS.cells}) == len(DIGITS.cells)
    assert {c.density for c in DIGITS.cells if c.name != "dense"} == {0.5}


def test_small_cifar_study_holds_all_nine_strategies_of_the_paper_and_the_control() -> None:
    study = STUDIES["cifar10-small"].of()
    assert [c.name for c in study.cells] == [
        *("dense", "mask", "one_layer", "mp", "rp_1e-1", "rp_1e-2", "rp_1e-3", "rp_1e-4"),
        *("rp_1e-5", "control"),
    ]
    for c in study.cells:
        assert (c.dataset, c.model) == ("cifar10", ConvMixer(depth=4, width=128, patch=2, kernel=5))
        assert (c.recipe.epochs, c.recipe.batch, c.recipe.learning_rate) == (10, 128, 0.05)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_other_families_of_the_digits_have_files_and_a_title_of_their_own(family: str) -> None:
    study = STUDIES["digits"].of(family)
    assert [c.name for c in study.cells] == ["dense", "mask", "mp", "rp_1e-2", "control"]
    assert {c.model.family for c in study.cells} == {family}
    assert study.name == f"digits-{family}"
    assert study.title.lower().startswith(f"a small {family} on 8x8 digits")
    assert (DIGITS.name, DIGITS.title[:17]) == ("digits", "A small ConvMixer")


def test_unknown_model_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'lenet' in digits, only convmixer, resnet, vit"):
        STUDIES["digits"].of("lenet")


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
    assert pemn.storage(shapes, paper.masking).unique == largest


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
    code = """from reproduce.cells import STUDIES
print(*[c.id for c in STUDIES["digits"].of().cells])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [c.id for c in DIGITS.cells]


def test_configuration_is_plain_data() -> None:
    for c in [c for study in STUDIES.values() for c in study.cells]:
        assert json.loads(json.dumps(c.configuration)) == c.configuration


def test_shortened_study_has_ids_of_its_own() -> None:
    assert not {c.id for c in DIGITS.cells} & {c.id for c in DIGITS.shortened(1).cells}


def test_filter_takes_names_and_the_rp_family() -> None:
    assert [c.name for c in DIGITS.only(["rp", "dense"]).cells] == [
        *("dense", "rp_1e-1", "rp_1e-2", "rp_1e-3", "rp_1e-4")
    ]


def test_unknown_strategy_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'rp_1e-9' here, only dense, mask, .*control"):
        DIGITS.only(["dense", "rp_1e-9"])


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
