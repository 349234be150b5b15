"""Files of the byte frontier: nothing is lost, nothing is wasted, and damage is noticed."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import UNSET, structs
from torch import Tensor, nn

from pemn_ref.file import FileError
from reproduce.data.datasets import load
from reproduce.frontier.families import LEVELS, SIGNS, Code, Keep
from reproduce.frontier.files import from_bytes, stored, to_bytes
from reproduce.rows.row import Measured, line_of, parse_row
from reproduce.study.cells import Cell
from reproduce.study.frontier import POINTS
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.tests.invented import STORAGE
from reproduce.training.checkpoint import Checkpoint, Stop
from reproduce.training.device import open_device
from reproduce.training.files import read_stored, write_network
from reproduce.training.networks import make_network
from reproduce.training.run import train_run

DEVICE = open_device("cpu")
SMALLEST = [
    replace(cell, recipe=cell.recipe.changed(epochs=2)) for cell in STUDIES["frontier"].cells
][: len(POINTS)]
NAMES = [cell.name for cell in SMALLEST]
STREAM = torch.Generator().manual_seed(0)
MASK = Code((0, 1), (0.9, 0.1))
PARTS: list[tuple[Tensor, Code | torch.dtype]] = [
    ((torch.rand(40, 100, generator=STREAM) < 0.1).float(), MASK),
    (torch.randn(7, 3, generator=STREAM), torch.float32),
    (torch.randint(-127, 128, (11,), generator=STREAM).float(), LEVELS),
    (torch.randn(5, generator=STREAM).half().float(), torch.float16),
    (torch.randn(33, generator=STREAM).sign(), SIGNS),
    (torch.tensor([3.0, 70_000.0]), torch.int32),
]


def h(p: float) -> float:
    """The entropy of a bit that is 1 with this chance."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def walk(keep: Keep) -> dict[str, Tensor]:
    return {str(number): keep(tensor, code) for number, (tensor, code) in enumerate(PARTS)}


def other(keep: Keep) -> dict[str, Tensor]:
    """Tensors of the same shapes, whose own values make no difference."""
    return {str(n): keep(torch.zeros_like(tensor), code) for n, (tensor, code) in enumerate(PARTS)}


def test_bits_and_numbers_come_back() -> None:
    words, unpack = from_bytes(to_bytes("some words", walk))
    assert words == "some words"
    found = unpack(other)
    for number, (tensor, _) in enumerate(PARTS):
        assert torch.equal(found[str(number)], tensor)


def test_bits_take_their_entropy_and_at_most_eight_bytes_more() -> None:
    def only_mask(keep: Keep) -> None:
        keep(*PARTS[0])

    def nothing(keep: Keep) -> None:
        pass

    ones = int(PARTS[0][0].sum())
    entropy = -(ones * math.log2(0.1) + (4000 - ones) * math.log2(0.9)) / 8
    size = len(to_bytes("x", only_mask)) - len(to_bytes("x", nothing))
    assert entropy <= size + 8  # the header of the empty one is as long, but for three digits
    assert size <= entropy + 16


def test_header_is_short() -> None:
    content = to_bytes("digits convmixer 2 128 2 5 mp 0 0.5", walk)
    assert 8 + int.from_bytes(content[:8], "little") <= 170


@pytest.mark.parametrize("at", [0, 5, 20, 60, -1, -40, -120])
def test_changed_byte_is_refused(at: int) -> None:
    content = bytearray(to_bytes("some words", walk))
    content[at] ^= 1
    with pytest.raises(FileError):
        from_bytes(bytes(content))


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"not a file at all", b"\x02" + b"\0" * 7 + b"{}"]
)
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(FileError):
        from_bytes(content)


def test_more_or_less_than_the_network_is_refused() -> None:
    def less(keep: Keep) -> dict[str, Tensor]:
        return {"0": keep(*PARTS[0])}

    def more(keep: Keep) -> dict[str, Tensor]:
        return {**walk(keep), "more": keep(torch.zeros(4), torch.float32)}

    _, unpack = from_bytes(to_bytes("x", walk))
    with pytest.raises(FileError, match="more than its network"):
        unpack(less)
    with pytest.raises(FileError, match="less than its network"):
        unpack(more)


def test_batch_norm_of_two_vectors_does_what_that_of_four_did() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert vector is not None
        nn.init.uniform_(vector, 0.5, 2.0)
    images = torch.randn(2, 3, 8, 8)
    before = model.eval()(images)
    everything = dict(model.state_dict())
    kept: list[int] = []

    def keep(tensor: Tensor, code: Code | torch.dtype) -> Tensor:
        assert code == torch.float16
        kept.append(tensor.numel())
        return tensor

    weights = {"0.weight": everything.pop("0.weight")}
    model.load_state_dict(stored(model, weights, everything, keep))
    assert kept == [4, 4, 4]  # factor, shift, and the bias of the convolution
    torch.testing.assert_close(model(images), before, rtol=0.01, atol=0.01)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Measured]]:
    """Two epochs of every family, the smallest network: files, and rows by the family's name."""
    folder = tmp_path_factory.mktemp("runs")
    rows = {}
    for cell in SMALLEST:
        checkpoint = Checkpoint(folder / "one.pt", cell, 0, 60, Stop())
        file = folder / f"{cell.name}.safetensors"
        row = train_run(cell, 0, load("digits"), DEVICE, checkpoint, file, lambda _: None)
        assert isinstance(row, Measured)
        rows[cell.name] = row
    return folder, rows


def test_files_are_scored_in_a_clean_process_as_their_rows_say(
    out: tuple[Path, dict[str, Measured]],
) -> None:
    folder, rows = out
    files = [str(folder / f"{name}.safetensors") for name in NAMES]
    done = subprocess.run(
        [sys.executable, "-m", "reproduce", "frontier", "score", *files, "--device", "cpu"],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout.splitlines() == [
        f"{file}: {name}, {rows[name].bytes:,} bytes: {100 * rows[name].accuracy_last:.1f} % of 500"
        f" held-out images, exactly {rows[name].accuracy_last}"
        for file, name in zip(files, NAMES, strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_the_parts(name: str, out: tuple[Path, dict[str, Measured]]) -> None:
    """By the bits that a family takes for each of 640 weights, and all that it has beside them."""
    folder, rows = out
    size = (folder / f"{name}.safetensors").stat().st_size
    assert size == rows[name].bytes
    norms = 5 * 2 * 8 * 2  # five norms, two vectors, eight channels, two bytes
    channels = (5 * 8 + 10) * 2  # a factor for each output channel
    longest = 8 * 5 * 5
    beside, bits = {
        "mp": (4 * longest, 1),
        "rp_0.01": (4 * 3, 1),
        "rp_0.01_d0.3": (4 * 3, h(0.3)),
        "rp_0.01_d0.1": (4 * 3, h(0.1)),
        "control": (4 * longest, 1),
        "rescaled": (4 * longest, 1),
        "signed": (longest / 8, 1),
        "signed_0.01": (3 / 8, 1),
        "signed_seed": (8, 1),
        "signed_seed_d0.25": (8, h(0.25)),
        "signed-scaled_seed": (8 + channels, 1),
        "global_seed": (8 + 4 * 6, 1),
        "global-scaled_seed": (8 + 4 * 6 + channels, 1),
        "frozen_seed": (8, 0.5),
        "signs": (0, 1),
        "scaled": (channels, 1),
        "tiled_0.25": (0, 0.25),
        "ternary": (0, 1.5),
        "ternary_d0.25": (0, h(0.25) + 0.25),
        "ternary_d0.227": (0, h(0.227) + 0.227),
        "global-ternary_d0.25": (4 * 6, h(0.25) + 0.25),
        "pruned_d0.1": (0, h(0.1) + 0.1 * 16),
        "int8": (channels, 8),
        "float16": (0, 16),
        "float32": (0, 32),
    }[name]
    header = 8 + int.from_bytes((folder / f"{name}.safetensors").read_bytes()[:8], "little")
    expected = beside + bits * 640 / 8 + norms
    # The coder writes words of four bytes. Where layers differ, a ranking over all takes less; a
    # density of 0.1 keeps 65 of 640 weights, as it is rounded up layer by layer.
    low, high = (40 if name.startswith("global") else 2), (20 if name.startswith("pruned") else 10)
    assert expected - low <= size - header <= expected + high


@pytest.mark.parametrize("cell", SMALLEST, ids=NAMES)
def test_network_that_is_read_is_the_one_that_was_written(cell: Cell, tmp_path: Path) -> None:
    """But for float16 in its norms."""
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = make_network(cell, 3, DEVICE.torch)
    with torch.no_grad():
        network.model.train()
        for _ in range(20):  # so that the statistics of its norms move
            network.logits(images)
        logits = (network.model.eval(), network.logits(images))[1]
    write_network(tmp_path / "one", network, cell, 3)
    found, read = read_stored(tmp_path / "one", DEVICE.torch)
    assert (read.name, read.model, read.dataset) == (cell.name, cell.model, cell.dataset)
    with torch.no_grad():
        torch.testing.assert_close(
            (found.model.eval(), found.logits(images))[1], logits, rtol=0.02, atol=0.02
        )


def test_damaged_file_is_one_line(
    out: tuple[Path, dict[str, Measured]], tmp_path: Path, command: Command
) -> None:
    content = bytearray((out[0] / "signs.safetensors").read_bytes())
    content[-1] ^= 1
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    code, output, errors = command("frontier", "score", damaged)
    assert (code, output) == (2, "")
    assert errors.splitlines() == [
        f"error: {damaged}: the file is damaged: its checksum is that of another content"
    ]


def test_exported_file_is_called_what_it_is_and_inspect_names_the_command_for_it(
    out: tuple[Path, dict[str, Measured]], tmp_path: Path, command: Command
) -> None:
    (tmp_path / "files").mkdir()
    content = (out[0] / "signs.safetensors").read_bytes()
    (tmp_path / "files" / "abc-0.safetensors").write_bytes(content)
    code, output, errors = command("export", "abc-0", tmp_path / "one", "--out", tmp_path)
    assert (code, errors) == (0, "")
    what = "a network of the byte frontier, for frontier score: digits convmixer"
    assert output.startswith(f"{tmp_path / 'one'}: {len(content):,} bytes, {what}")
    code, _, errors = command("inspect", tmp_path / "one")
    assert code == 2
    assert "of the byte frontier? frontier score measures it" in errors


@pytest.mark.parametrize("words", ["digits", "digits convmixer 2 8 2 5 nothing 0 0.5"])
def test_words_of_no_network_are_refused(words: str, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    file.write_bytes(to_bytes(words, walk))
    with pytest.raises(FileError):
        read_stored(file, DEVICE.torch)


def test_row_has_bytes_and_no_sizes_by_the_accounting_of_the_paper(
    out: tuple[Path, dict[str, Measured]],
) -> None:
    row = out[1]["mp"]
    assert row.storage is UNSET
    assert parse_row(line_of(row)) == row
    for other in ({"storage": STORAGE}, {"bytes": UNSET}):
        with pytest.raises(ValueError, match="`bytes` and no `storage`"):
            structs.replace(row, **other)
