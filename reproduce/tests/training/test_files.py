"""The files of a small real run, and the commands that read them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pemn_ref as pemn
import spec_tests
from pemn_ref.file import inspect, load, load_dense, save
from reproduce.study.cells import Cell
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command, exit_code
from reproduce.training import files
from reproduce.training.networks import make_model

NAMES = [cell.name for cell in STUDIES["digits"].chosen(models=["vit"]).cells]
VIT = STUDIES["digits"].chosen(models=["vit"]).shortened(1)
CELLS = dict(zip(NAMES, VIT.cells, strict=True))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of every strategy that the digits study has for its transformer."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = ("--model", "vit", "--epochs", "1", "--seeds", "1", "--device", "cpu")
    assert exit_code("run", *arguments, "--out", folder) == 0
    return folder


def row_of(out: Path, cell: Cell) -> dict[str, Any]:
    lines = (out / "digits.jsonl").read_text(encoding="utf-8").splitlines()
    (row,) = (row for row in map(json.loads, lines) if row["cell"] == cell.id)
    return dict(row)


def file_of(out: Path, name: str) -> Path:
    return out / "files" / f"{CELLS[name].run_id(0)}.safetensors"


@pytest.mark.parametrize("name", NAMES)
def test_row_has_the_bytes_of_its_file(out: Path, name: str) -> None:
    size = file_of(out, name).stat().st_size
    row = row_of(out, CELLS[name])
    assert row["bytes"] == size
    # The whole model, plus the header.
    assert 0 < size - row["storage"]["bits"] / 8 < 8192


def test_dense_file_is_an_ordinary_one_of_the_whole_state(out: Path) -> None:
    model = make_model(CELLS["dense"], 0)
    tensors = load_file(file_of(out, "dense"))
    model.load_state_dict(tensors)
    untrained = make_model(CELLS["dense"], 0).state_dict()
    assert not any(torch.equal(tensors[key], untrained[key]) for key in tensors)


@pytest.mark.parametrize("name", NAMES[1:])
def test_tag_says_the_configuration_and_the_seed_canonically(out: Path, name: str) -> None:
    tag = inspect(file_of(out, name)).tag
    expected = {"configuration": CELLS[name].configuration, "seed": 0}
    assert json.loads(tag) == expected
    assert tag == json.dumps(expected, sort_keys=True, separators=(",", ":"))
    assert Cell.configured(json.loads(tag)["configuration"]).id == CELLS[name].id


@pytest.mark.parametrize("name", NAMES[1:])
def test_evaluate_gives_exactly_the_accuracy_of_the_row(
    out: Path, name: str, command: Command
) -> None:
    code, output, errors = command("evaluate", file_of(out, name), "--device", "cpu")
    assert (code, errors) == (0, f"measuring {name} of vit-d2-w32 on digits\n")
    words = output.split()
    assert words[0] == f"{name}:"
    assert float(words[-1]) == row_of(out, CELLS[name])["accuracy_last"]


def test_evaluate_measures_the_tensors_of_the_file(
    out: Path, tmp_path: Path, command: Command
) -> None:
    file, other = file_of(out, "mp"), tmp_path / "other.safetensors"
    model = make_model(CELLS["mp"], 0)
    state, info = load(file, model)
    for tensor in state.rest.values():
        tensor.detach().zero_()
    state.rest["classifier.bias"].detach()[3] = 1  # a network that always says 3
    save(other, model, state, info.strategy, density=info.density, tag=info.tag)
    _, output, _ = command("evaluate", other)
    assert 0.05 < float(output.split()[-1]) < 0.15
    assert float(output.split()[-1]) != row_of(out, CELLS["mp"])["accuracy_last"]


@pytest.mark.parametrize("name", NAMES[1:])
def test_export_inspect_materialize_go_all_the_way(
    out: Path, tmp_path: Path, name: str, command: Command
) -> None:
    cell, file, dense = CELLS[name], tmp_path / "one.safetensors", tmp_path / "dense.safetensors"
    code, output, errors = command("export", cell.run_id(0), file, "--out", out)
    assert (code, errors) == (0, "")
    what = f"{file}: {file.stat().st_size:,} bytes, a compressed network: 17,216 masked weights"
    assert output.startswith(what)
    assert f"by {cell.strategy.replace('control', 'mp')}" in output
    assert file.read_bytes() == file_of(out, name).read_bytes()

    code, output, errors = command("inspect", file)
    assert (code, errors) == (0, "")
    assert output.index("whole model") < output.index("patches.weight")  # the summary first
    assert output.split()[:4] == [f"{file.name}:", "a", "compressed", "network:"]
    lines = [line.split() for line in output.splitlines()]
    storage = row_of(out, cell)["storage"]
    weights, unique = storage["weights"], storage["unique"]
    # 32 x 4 x 4 weights of the patches, the larger half kept
    assert ["patches.weight", "32x1x4x4", "256", "512"] in lines
    assert ["rest", "classifier.bias", "10", "320"] in lines
    paper = [f"{weights + 32 * unique:,}", f"{32 * weights:,}", f"{100 * storage['paper']:.2f}"]
    assert ["paper", *paper] in lines
    whole = [f"{storage['bits']:,}", f"{storage['dense_bits']:,}", f"{100 * storage['whole']:.2f}"]
    assert ["whole", "model", *whole] in lines
    size = file.stat().st_size
    saved = f"{100 * (1 - 8 * size / storage['dense_bits']):.2f}"
    disk = ["on", "disk", f"({size:,}", "bytes)", f"{8 * size:,}", whole[1], saved]
    assert disk in lines
    assert sum(int(line[-1].replace(",", "")) for line in lines if is_layer(line)) == weights

    code, output, errors = command("materialize", file, dense)
    assert (code, errors) == (0, "")
    assert output.startswith(f"{dense}: {dense.stat().st_size:,} bytes, an ordinary state_dict of ")
    model = make_model(cell, 0)
    expected = pemn.materialize(model, load(file, model)[0], density=0.5)
    tensors = load_file(dense)
    assert sorted(tensors) == sorted(expected)
    for key, tensor in tensors.items():
        assert torch.equal(tensor.view(torch.uint8), expected[key].view(torch.uint8)), key
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("dense.safetensors", "one.safetensors")
    ]


def test_text_of_a_file_is_shown_as_it_is_and_does_not_steer_the_terminal(
    tmp_path: Path, command: Command
) -> None:
    file, steer = tmp_path / "file", "\x1b[2J\r\u202e:bomb:[b]"
    model = torch.nn.ModuleDict({f"layer{steer}": torch.nn.Linear(3, 4)})
    model.register_buffer(f"buffer{steer}", torch.ones(1))
    state = pemn.init(model, pemn.mask, seed=0)  # its prototypes are named like layers
    save(file, model, state, pemn.mask, density=0.5, tag=steer)
    code, output, errors = command("inspect", file)
    assert (code, errors) == (0, "")
    assert all(line.isprintable() for line in output.split("\n"))
    safe = r"\x1b[2J\r\u202e:bomb:[b]"
    assert f"tag: '{safe}'" in output
    for name in (f"layer{safe}.weight", f"rest layer{safe}.bias", f"buffer buffer{safe}"):
        assert name in output


def is_layer(line: list[str]) -> bool:
    """Whether the line has name, shape, kept and bits."""
    return len(line) == 4 and "x" in line[1] and line[2][0].isdigit()


def test_half_written_output_leaves_the_old_file(
    out: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "old"
    target.write_text("old", encoding="utf-8")

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    for arguments in (
        ("export", CELLS["mp"].run_id(0), target, "--out", out),
        ("materialize", file_of(out, "mp"), target),
    ):
        assert command(*arguments) == (2, "", "error: no space left\n")
        assert target.read_text(encoding="utf-8") == "old"
        assert list(tmp_path.iterdir()) == [target]


def test_bad_input_is_one_line_and_exit_code_2(out: Path, tmp_path: Path, command: Command) -> None:
    file, target = file_of(out, "mp"), tmp_path / "target"
    damaged, missing = tmp_path / "damaged", tmp_path / "missing"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    for arguments, named in (
        (("export", "nothing", target, "--out", out), f"'nothing' in {out}, where 5 are"),
        (("export", f"../files/{file.stem}", target, "--out", out), file.stem),
        (("export", file.stem[:-1] + "9", target, "--out", out), f"did you mean {file.stem}"),
        (
            ("export", file.stem, target, "--out", missing),
            "--out names the folder that run wrote to",
        ),
        (("evaluate", file_of(out, "dense")), "safetensors.torch.load_file reads it"),
        (("export", file.stem, missing / "target", "--out", out), f"no folder {missing} to write"),
        (("export", file.stem[:5], target, "--out", out), f"did you mean {file.stem}?"),
        (("inspect", missing), "missing"),
        (
            ("inspect", file_of(out, "dense")),
            "an ordinary safetensors file, not a compressed model",
        ),
        (("inspect", tmp_path), "not a regular file"),
        (("materialize", missing, target), "missing"),
        (("materialize", damaged, target), "damaged"),
        (("materialize", file, missing / "target"), "missing"),
        (("evaluate", missing), "missing"),
        (("evaluate", damaged), "damaged"),
        (("evaluate", file, "--device", "tpu"), "cpu, cuda or cuda:N"),
    ):
        code, output, errors = command(*arguments)
        assert (code, output, errors.count("\n")) == (2, "", 1), arguments
        assert errors.startswith("error: ")
        assert named in errors
        assert not target.exists()


def test_what_is_no_regular_file_is_not_replaced(
    out: Path, tmp_path: Path, command: Command
) -> None:
    fifo, loop, file = tmp_path / "fifo", tmp_path / "loop", file_of(out, "mp")
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    for target, named in ((fifo, "is not a regular file"), (loop, "symbolic links")):
        for arguments in (
            ("export", file.stem, target, "--out", out),
            ("materialize", file, target),
        ):
            code, output, errors = command(*arguments)
            assert (code, output, errors.count("\n")) == (2, "", 1), arguments
            assert f"{target}" in errors
            assert named in errors
    assert fifo.is_fifo()
    assert loop.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    """In another process, which can be ended if it hangs."""
    fifo = tmp_path / "files" / "run.safetensors"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    for arguments, named in (
        (("inspect", fifo), "not a regular file"),
        (("export", "run", tmp_path / "target", "--out", tmp_path), "where 0 are"),
    ):
        words = [sys.executable, "-m", "reproduce", *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, timeout=60, check=False, encoding="utf-8")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), arguments
        assert named in done.stderr


def test_file_that_is_replaced_keeps_its_permissions(
    out: Path, tmp_path: Path, command: Command
) -> None:
    target = tmp_path / "target"
    for arguments in (
        ("export", file_of(out, "mp").stem, target, "--out", out),
        ("materialize", file_of(out, "mp"), target),
    ):
        target.write_text("old", encoding="utf-8")
        target.chmod(0o640)
        assert command(*arguments)[0] == 0
        assert target.stat().st_mode & 0o777 == 0o640


def test_compressed_file_is_not_written_over_by_its_own_dense_one(
    out: Path, tmp_path: Path, command: Command
) -> None:
    file = tmp_path / "one"
    shutil.copy(file_of(out, "mp"), file)
    code, _, errors = command("materialize", file, file)
    assert (code, errors.count("\n")) == (2, 1)
    assert file.read_bytes() == file_of(out, "mp").read_bytes()


CONFIGURATION = CELLS["mp"].configuration


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "a note",
        "[]",
        '{"seed": 0}',
        json.dumps({"configuration": CONFIGURATION}),
        json.dumps({"configuration": CONFIGURATION, "seed": "zero"}),
        json.dumps({"configuration": CELLS["dense"].configuration, "seed": 0}),
        json.dumps({"configuration": CELLS["rp_1e-2"].configuration, "seed": 0}),
        json.dumps({"configuration": CONFIGURATION | {"density": 0.25}, "seed": 0}),
        json.dumps({"configuration": CONFIGURATION | {"dataset": "mnist"}, "seed": 0}),
        json.dumps({"configuration": CONFIGURATION | {"model": {"family": "mlp"}}, "seed": 0}),
        json.dumps({"configuration": CONFIGURATION | {"recipe": {}}, "seed": 0}),
    ],
)
def test_tag_of_no_cell_is_one_line_and_exit_code_2(
    out: Path, tmp_path: Path, command: Command, tag: str
) -> None:
    model = make_model(CELLS["mp"], 0)
    state, info = load(file_of(out, "mp"), model)
    file = tmp_path / "other"
    save(file, model, state, info.strategy, density=info.density, tag=tag)
    code, output, errors = command("evaluate", file)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert f"{file} is no file that run wrote: its tag names no cell" in errors
    assert "pemn_ref.file.load(path, model)" in errors


def test_file_of_another_network_is_refused(out: Path, tmp_path: Path, command: Command) -> None:
    model = torch.nn.Linear(4, 2)
    file = tmp_path / "other"
    tag = inspect(file_of(out, "mp")).tag
    save(file, model, pemn.init(model, pemn.mp, seed=0), pemn.mp, density=0.5, tag=tag)
    code, output, errors = command("evaluate", file)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "the weights do not fit the model" in errors


def test_missing_images_are_one_line_and_exit_code_2(
    out: Path, tmp_path: Path, command: Command
) -> None:
    cell = STUDIES["cifar10-small"].chosen().chosen(strategies=["mp"]).cells[0]
    model = make_model(cell, 0)
    state = pemn.init(model, pemn.mp, seed=0)
    file = tmp_path / "cifar"
    tag = json.dumps({"configuration": cell.configuration, "seed": 0})
    save(file, model, state, pemn.mp, density=0.5, tag=tag)
    (tmp_path / "data").write_text("a file, so that nothing can be put there", encoding="utf-8")
    code, output, errors = command("evaluate", file, "--data", tmp_path / "data")
    assert (code, output, errors.count("\n")) == (2, "", 2)
    assert errors.startswith("measuring mp of convmixer-d4-w128 on cifar10\nerror: ")
    assert str(tmp_path / "data") in errors


def test_missing_library_is_one_line_that_says_what_brings_it(
    out: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.delitem(sys.modules, files.__name__)
    monkeypatch.delattr("reproduce.training.files")
    code, output, errors = command("inspect", file_of(out, "mp"))
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "safetensors" in errors
    assert ".[reproduce]" in errors


def test_tied_tensors_are_one_in_memory_and_whole_in_the_dense_file(
    tmp_path: Path, command: Command
) -> None:
    path = Path(spec_tests.__file__).parent / "vectors" / "valid" / "tied.safetensors"
    tied = inspect(path).tied
    assert tied
    dense = load_dense(path)
    for second, first in tied.items():
        assert dense[second].data_ptr() == dense[first].data_ptr()
    assert command("materialize", path, tmp_path / "dense")[0] == 0
    stored = load_file(tmp_path / "dense")
    assert stored.keys() == dense.keys()
    assert all(torch.equal(stored[name], dense[name]) for name in dense)
