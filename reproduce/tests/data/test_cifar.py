"""CIFAR, in tiny folders of its real format; only torchvision's names and checksums are patched."""

import hashlib
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100  # type: ignore[import-untyped]

from reproduce.data.datasets import DATASETS, load
from reproduce.data.images import Images
from reproduce.data.root import MissingDataError, data_root
from reproduce.tests.conftest import Command


def write(path: Path, content: dict[str, Any]) -> tuple[str, str]:
    """Write a batch; return its name and checksum, as torchvision lists them."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path.name, hashlib.md5(path.read_bytes()).hexdigest()


def pixels(first: int, n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images of one colour: red is the image's number, green and blue are constant."""
    red = np.repeat(np.arange(first, first + n, dtype=np.uint8)[:, None], 1024, axis=1)
    return np.hstack([red, np.full_like(red, 100), np.full_like(red, 200)])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five training batches of 4 images and a test batch of 3 (CIFAR-10); 6 and 2 (CIFAR-100).

    A download is refused at once, since nothing listens at its address.
    """
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = tmp_path / "data"
    root.mkdir()
    folder = root / CIFAR10.base_folder
    train = [
        write(
            folder / f"data_batch_{k + 1}",
            {"data": pixels(4 * k, 4), "labels": [(4 * k + j) % 10 for j in range(4)]},
        )
        for k in range(5)
    ]
    test = write(folder / "test_batch", {"data": pixels(50, 3), "labels": [9, 8, 7]})
    meta = write(folder / "batches.meta", {"label_names": [str(n) for n in range(10)]})
    patch(monkeypatch, CIFAR10, train, test, meta)

    folder = root / CIFAR100.base_folder
    fine = {"data": pixels(0, 6), "fine_labels": list(range(94, 100)), "coarse_labels": [0] * 6}
    rest = {"data": pixels(60, 2), "fine_labels": [98, 99], "coarse_labels": [0] * 2}
    meta = write(folder / "meta", {"fine_label_names": [str(n) for n in range(100)]})
    patch(
        monkeypatch, CIFAR100, [write(folder / "train", fine)], write(folder / "test", rest), meta
    )
    return root


def patch(monkeypatch: pytest.MonkeyPatch, source: Any, train: Any, test: Any, meta: Any) -> None:
    known = {"cifar10": (10, 20, 3), "cifar100": (6, 6, 2)}
    for name, (classes, n_train, n_test) in known.items():
        tiny = replace(DATASETS[name], classes=classes, train=n_train, test=n_test)
        monkeypatch.setitem(DATASETS, name, tiny)
    monkeypatch.setattr(source, "train_list", train)
    monkeypatch.setattr(source, "test_list", [test])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": meta[1]})
    monkeypatch.setattr(source, "url", "http://127.0.0.1:9/" + source.filename)


def seen(images: Images) -> list[tuple[tuple[int, ...], int]]:
    """Colour of the last pixel, and class."""
    assert images.pixels.shape == (len(images), 3, 32, 32)
    assert (images.pixels.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
    colours = map(tuple, images.pixels[:, :, 31, 31].tolist())
    return [*zip(colours, images.labels.tolist(), strict=True)]


def test_cifar10_is_all_training_batches_and_the_test_batch(root: Path) -> None:
    train, test = load("cifar10", root)
    labels = [*range(10), *range(10)]
    assert seen(train) == [((red, 100, 200), label) for red, label in enumerate(labels)]
    assert seen(test) == [((50, 100, 200), 9), ((51, 100, 200), 8), ((52, 100, 200), 7)]


def test_cifar100_has_its_fine_labels(root: Path) -> None:
    train, test = load("cifar100", root)
    assert train.labels.tolist() == [94, 95, 96, 97, 98, 99]
    assert seen(test) == [((60, 100, 200), 98), ((61, 100, 200), 99)]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_without_data_or_network_one_line_names_the_ways_out(
    name: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissingDataError) as caught:
        load(name, tmp_path / "empty")
    message = str(caught.value)
    for part in (name, str(tmp_path / "empty"), "refused", ".tar.gz", "--data", "PEMN_DATA"):
        assert part in message
    assert "\n" not in message


def test_part_of_the_dataset_is_not_the_dataset(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = DATASETS["cifar10"]
    for whole in (replace(tiny, train=21), replace(tiny, test=4), replace(tiny, classes=11)):
        monkeypatch.setitem(DATASETS, "cifar10", whole)
        with pytest.raises(MissingDataError) as caught:
            load("cifar10", root)
        assert "20 images to train on, 3 to measure on and 10 classes" in str(caught.value)
        assert f"has {whole.train}, {whole.test} and {whole.classes}: " in str(caught.value)


def test_damage_is_noticed(root: Path) -> None:
    damaged = root / CIFAR10.base_folder / "data_batch_3"
    content = bytearray(damaged.read_bytes())
    content[-1000] ^= 1  # in a pixel, so it would still load
    damaged.write_bytes(content)
    with pytest.raises(MissingDataError, match="damaged"):
        load("cifar10", root)


STUDY = ("--study", "cifar10-small", "--strategy", "rp_1e-2", "--epochs", "1", "--device", "cpu")


@pytest.mark.parametrize("named_by", ["--data", "PEMN_DATA"])
def test_command_trains_on_the_folder_that_is_named(
    named_by: str, root: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    out = root / "out"
    arguments = [*STUDY, "--out", out]
    if named_by == "--data":
        arguments += ["--data", root]
    else:
        monkeypatch.setenv("PEMN_DATA", str(root))
    assert command("run", *arguments)[0] == 0
    (row,) = [
        json.loads(line)
        for line in (out / "cifar10-small.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert row["seed"] == 0
    assert row["held_out"] == 3  # the whole test batch
    assert row["images_per_second"] == pytest.approx(20 / row["history"][0]["seconds"], abs=0.06)
    assert row["configuration"]["recipe"]["augmentation"] == "crop-flip"


def test_command_without_data_skips_its_runs_and_says_why(root: Path, command: Command) -> None:
    code, output, _ = command("run", *STUDY, "--out", root / "out", "--data", root / "empty")
    assert code == 3
    lines = output.splitlines()
    (line,) = [line for line in lines if line.startswith("skipped, all runs on cifar10: ")]
    assert line.endswith("--data or PEMN_DATA")


class Quiet(SimpleHTTPRequestHandler):
    """A web server that records what it is asked for, and does not log."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.mark.filterwarnings("ignore:.*tar:DeprecationWarning")  # older torchvision, newer Python
def test_data_is_downloaded_where_there_is_a_network(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "published" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / CIFAR10.base_folder, arcname=CIFAR10.base_folder)
    handler = partial(Quiet, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
            monkeypatch.setattr(CIFAR10, "url", url)
            monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
            train, test = load("cifar10", tmp_path / "new")
            assert (len(train), len(test)) == (20, 3)

            once = len(Quiet.asked)
            with ThreadPoolExecutor() as pool:  # like processes that start at the same time
                loads = [pool.submit(load, "cifar10", tmp_path / "shared") for _ in range(4)]
            for loaded in loads:
                assert seen(loaded.result()[1]) == seen(test)
            assert len(Quiet.asked) == 2 * once

            monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
            with pytest.raises(MissingDataError, match=r"download failed.*corrupted"):
                load("cifar10", tmp_path / "other")
        finally:
            server.shutdown()


def test_root_is_the_argument_else_the_environment_else_a_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PEMN_DATA", str(tmp_path / "named"))
    assert data_root(Path("given")) == Path("given")
    assert data_root() == tmp_path / "named"
    monkeypatch.delenv("PEMN_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "pemn_ref"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert data_root() == tmp_path / ".cache" / "pemn_ref"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_images_have_the_normalisation_of_the_recipes(name: str) -> None:
    folder = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name].base_folder
    root = Path(os.environ.get("PEMN_DATA", ""))
    if "PEMN_DATA" not in os.environ or not (root / folder).is_dir():
        pytest.skip(f"PEMN_DATA names no folder with {folder}")
    train, test = load(name, root)
    assert (len(train), len(test)) == (50_000, 10_000)
    dataset = DATASETS[name]
    assert set(train.labels[:5_000].tolist()) == set(range(dataset.classes))
    values = train.pixels[::5].double() / 255
    for measured, known in (
        (values.mean(dim=(0, 2, 3)), dataset.mean),
        (values.std(dim=(0, 2, 3)), dataset.std),
    ):
        assert measured.tolist() == pytest.approx(known, abs=0.003)
