"""Tiny-ImageNet, in a tiny folder of its real format."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from reproduce.data import tiny_imagenet
from reproduce.data.datasets import DATASETS, load
from reproduce.data.images import Images
from reproduce.data.root import MissingDataError
from reproduce.data.tiny_imagenet import FOLDER
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.tests.runs.test_run import full_disk

CLASSES = ["n02124075", "n01443537", "n04067472"]  # in no order, as in the real file


def draw(path: Path, mode: str, colour: int | tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (64, 64), colour).save(path, "JPEG")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny = replace(DATASETS["tiny-imagenet"], classes=3, train=6, test=2)
    monkeypatch.setitem(DATASETS, "tiny-imagenet", tiny)
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
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [2, 0]
    assert train.pixels.shape == (6, 3, 64, 64)
    assert (train.pixels.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    red, others = train.pixels[:, 0].int(), train.pixels[:, 1:].int()
    assert (red - 80 * train.labels.int()[:, None, None]).abs().max() < 4
    assert others.max() < 4


def test_grey_images_become_rgb(root: Path) -> None:
    _, test = load("tiny-imagenet", root)
    assert (test.pixels[1] == 90).all()


def decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, tuple[Images, Images]]:
    """Load the images; return how many JPEGs that decoded, and the images."""
    paths: list[Path] = []
    real = tiny_imagenet._decode
    with monkeypatch.context() as patch:
        patch.setattr(tiny_imagenet, "_decode", lambda path: paths.append(path) or real(path))  # type: ignore[func-returns-value]
        images = load("tiny-imagenet", root)
    return len(paths), images


def same(ones: tuple[Images, Images], others: tuple[Images, Images]) -> bool:
    return all(
        torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)
        for one, other in zip(ones, others, strict=True)
    )


def test_images_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, images = decoded(root, monkeypatch)
    second, again = decoded(root, monkeypatch)
    assert (first, second) == (8, 0)
    assert same(images, again)
    assert not [*root.glob("*.part")]


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty", "of other images"])
def test_decoded_images_that_are_damaged_are_decoded_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    _, images = decoded(root, monkeypatch)
    file = root / f"{FOLDER}.decoded"
    content = file.read_bytes()
    if damage == "of other images":
        folder = root / FOLDER / "train" / CLASSES[0] / "images"
        (folder / f"{CLASSES[0]}_1.JPEG").rename(folder / f"{CLASSES[0]}_7.JPEG")
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.write_bytes({"short": content[:-1], "long": content + b"0", "empty": b""}[damage])
    times, again = decoded(root, monkeypatch)
    assert times == 8
    assert same(images, again)
    assert decoded(root, monkeypatch)[0] == 0


def test_images_that_cannot_be_kept_are_an_error_that_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_disk(1000), pytest.raises(MissingDataError, match=r"decoded cannot be .*make room"):
        load("tiny-imagenet", root)
    assert not [*root.glob(f"{FOLDER}.decoded*")]
    assert decoded(root, monkeypatch)[0] == 8


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


def refused(root: Path, why: str) -> None:
    """Loading fails with one line that says ``why`` and what would help."""
    with pytest.raises(MissingDataError) as caught:
        load("tiny-imagenet", root)
    assert why in str(caught.value)
    assert "extract" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_third_of_it_is_not_the_dataset(root: Path) -> None:
    """Even if its files are consistent and only the end of the last annotation is cut off."""
    (root / FOLDER / "wnids.txt").write_text(CLASSES[2], encoding="utf-8")
    (root / FOLDER / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn04067472\t0\t3", encoding="utf-8"
    )
    refused(root, "2 images to train on, 1 to measure on and 1 classes in")


def test_empty_lists_are_refused(root: Path) -> None:
    """As a full disk leaves them."""
    for name in ("wnids.txt", "val/val_annotations.txt"):
        (root / FOLDER / name).write_bytes(b"")
    refused(root, f"{root / FOLDER / 'wnids.txt'} is empty")


@pytest.mark.parametrize("name", ["wnids.txt", "val/val_annotations.txt"])
def test_text_that_is_no_utf8_is_refused(root: Path, name: str) -> None:
    (root / FOLDER / name).write_bytes(b"\xff\xfe")
    refused(root, "is not UTF-8")


def test_image_that_is_named_twice_is_refused(root: Path) -> None:
    (root / FOLDER / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn04067472\nval_0.JPEG\tn02124075\n", encoding="utf-8"
    )
    refused(root, "names an image twice")


@pytest.mark.parametrize("kind", ["size", "mode", "format", "bomb", "large bomb", "text"])
def test_image_that_none_of_them_is_is_refused(root: Path, kind: str) -> None:
    path = root / FOLDER / "val" / "images" / "val_1.JPEG"
    match kind:
        case "size":
            Image.new("RGB", (64, 63)).save(path, "JPEG")
        case "mode":
            Image.new("CMYK", (64, 64)).save(path, "JPEG")
        case "format":
            Image.new("RGB", (64, 64)).save(path, "PNG")
        case "text":
            path.write_text("no image", encoding="utf-8")
        case _:
            whole = bytearray(path.read_bytes())
            place = whole.index(b"\xff\xc0") + 5  # height and width follow the marker
            side = 10_000 if kind == "bomb" else 60_000
            whole[place : place + 4] = 2 * side.to_bytes(2, "big")
            path.write_bytes(whole)
    refused(root, f"{path} cannot be read")


def test_what_a_killed_process_left_is_swept(root: Path) -> None:
    left, other = root / f"{FOLDER}.decoded.0123abcd.part", root / "film.part"
    for part in (left, other):
        part.touch()
    load("tiny-imagenet", root)
    assert (left.exists(), other.exists()) == (False, True)


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
    skipped, trained = (line for line in output.splitlines() if line.startswith(("skip", "  1/1")))
    why = f"skipped, all runs on tiny-imagenet: tiny-imagenet: {damaged} cannot be read"
    assert skipped.startswith(why)
    assert "extract" in skipped
    assert "images/s" in trained
