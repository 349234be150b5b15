"""Tiny-ImageNet, in a tiny folder of its real format."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from reproduce.data.datasets import load
from reproduce.data.root import MissingDataError
from reproduce.data.tiny_imagenet import FOLDER
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command

CLASSES = ["n02124075", "n01443537", "n04067472"]  # in no order, as in the real file


def draw(path: Path, mode: str, colour: int | tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (64, 64), colour).save(path, "JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / FOLDER
    for label, wnid in enumerate(CLASSES):
        for n in range(2):
            draw(folder / "train" / wnid / "images" / f"{wnid}_{n}.JPEG", "RGB", (80 * label, 0, 0))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("", encoding="utf-8")
    draw(folder / "val" / "images" / "val_0.JPEG", "RGB", (200, 0, 0))
    draw(folder / "val" / "images" / "val_1.JPEG", "L", 90)
    (folder / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn04067472\t0\t32\t44\t62\nval_1.JPEG\tn02124075\t52\t55\t57\t59\n",
        encoding="utf-8",
    )
    (folder / "wnids.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return tmp_path


def test_classes_are_those_of_wnids_in_both_parts(root: Path) -> None:
    train, test = load("tiny-imagenet", root)
    assert [train[i][1] for i in range(len(train))] == [0, 0, 1, 1, 2, 2]
    for i in range(len(train)):
        image, label = train[i]
        assert image.size == (64, 64)
        assert abs(image.getpixel((5, 5))[0] - 80 * label) < 4
    assert [test[i][1] for i in range(len(test))] == [2, 0]


def test_grey_images_become_rgb(root: Path) -> None:
    _, test = load("tiny-imagenet", root)
    assert [test[i][0].mode for i in range(2)] == ["RGB", "RGB"]
    assert test[1][0].getpixel((0, 0)) == (90, 90, 90)


@pytest.mark.parametrize(
    "missing",
    [
        "wnids.txt",
        "val/val_annotations.txt",
        "val/images/val_1.JPEG",
        "train/n04067472/images/n04067472_1.JPEG",
    ],
)
def test_what_is_missing_is_named_and_never_downloaded(root: Path, missing: str) -> None:
    (root / FOLDER / missing).unlink()
    with pytest.raises(MissingDataError) as caught:
        load("tiny-imagenet", root)
    assert missing.removesuffix("/images/n04067472_1.JPEG") in str(caught.value)
    assert "extract" in str(caught.value)


def test_annotations_must_fit_the_classes(root: Path) -> None:
    (root / FOLDER / "wnids.txt").write_text("\n".join(CLASSES[:2]), encoding="utf-8")
    with pytest.raises(MissingDataError, match=r"annotations.*n04067472.*extract"):
        load("tiny-imagenet", root)


def test_a_training_folder_without_images_is_an_error(root: Path) -> None:
    (root / FOLDER / "train").rename(root / "elsewhere")
    with pytest.raises(MissingDataError, match="0 images"):
        load("tiny-imagenet", root)


def test_runs_that_meet_a_damaged_image_are_skipped_and_the_others_go_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    damaged = root / FOLDER / "train" / CLASSES[1] / "images" / f"{CLASSES[1]}_1.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:400])
    whole = STUDIES["digits"].chosen(strategies=["rp_1e-2"]).shortened(1)
    (cell,) = whole.cells
    study = replace(
        whole, cells=(replace(cell, dataset="tiny-imagenet"), cell), datasets=(), seeds=1
    )
    monkeypatch.setitem(STUDIES, "digits", study)
    code, output, errors = command("run", "--data", root, "--out", root / "out", "--device", "cpu")
    assert (code, errors) == (3, "some runs failed or were skipped, as said above\n")
    first, second = (line for line in output.splitlines() if "seed 0" in line)
    assert f"skipped: tiny-imagenet: {damaged} cannot be read" in first
    assert "extract" in first
    assert "images/s" in second
