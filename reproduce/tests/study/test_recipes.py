"""The recipes are those of the paper, and say where each part is from."""

from dataclasses import fields

import pytest

from reproduce.study.recipes import CONVMIXER, RESNET, VIT, Recipe

PARTS = {field.name for field in fields(Recipe)} - {"name", "version", "known", "inferred"}


@pytest.mark.parametrize(
    ("recipe", "numbers", "words"),
    [
        (CONVMIXER, (100, 512, 0.05, 0.0, 0.005), ("adamw", "piecewise", "convmixer")),
        (VIT, (200, 256, 1e-4, 0.0, 0.0), ("adam", "cosine", "vit")),
        (RESNET, (200, 128, 0.1, 0.9, 5e-4), ("sgd", "steps", "crop-flip")),
    ],
    ids=["convmixer", "vit", "resnet"],
)
def test_recipe_has_the_numbers_of_the_paper(
    recipe: Recipe, numbers: tuple[float, ...], words: tuple[str, ...]
) -> None:
    r = recipe
    assert (r.epochs, r.batch, r.learning_rate, r.momentum, r.weight_decay) == numbers
    assert (r.optimizer, r.schedule, r.augmentation) == words


@pytest.mark.parametrize(
    ("recipe", "inferred"),
    [
        (CONVMIXER, set()),
        (VIT, {"optimizer", "weight_decay", "schedule", "augmentation"}),
        (RESNET, PARTS - {"momentum", "weight_decay"}),
    ],
    ids=["convmixer", "vit", "resnet"],
)
def test_every_part_that_counts_is_known_or_inferred(recipe: Recipe, inferred: set[str]) -> None:
    assert {*recipe.inferred} == inferred
    # Without SGD there is no momentum to come from anywhere.
    assert PARTS - {*recipe.known, *recipe.inferred} == (
        set() if recipe.optimizer == "sgd" else {"momentum"}
    )
    assert {*recipe.known, *recipe.inferred} <= PARTS
    assert not {*recipe.known} & {*recipe.inferred}


def test_changed_parts_are_ours() -> None:
    changed = RESNET.changed(epochs=3, weight_decay=0.1)
    assert (changed.epochs, changed.weight_decay, changed.batch) == (3, 0.1, 128)
    assert {"epochs", "weight_decay"}.isdisjoint([*changed.known, *changed.inferred])
    assert "momentum" in changed.known
    assert "batch" in changed.inferred
