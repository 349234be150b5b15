"""The benchmarks run; the numbers they measure are not judged here."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import pemn_ref as pemn
from reproduce.bench import files as bench_file
from reproduce.bench import steps as bench
from reproduce.bench.timing import compare
from reproduce.study.cells import Cell, ConvMixer
from reproduce.study.recipes import CONVMIXER
from reproduce.tests.conftest import Command


def run(command: Command, out: Path, *kind: str) -> tuple[list[dict[str, float | str | None]], str]:
    """Run a benchmark; return the rows it writes, and its table."""
    code, table, _ = command("bench", *kind, "--out", out)
    assert code == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["device"] == "cpu"
        assert row["hardware"]
        assert row["threads"] == torch.get_num_threads()
        assert row["torch"] == torch.__version__
    return rows, table


def test_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    tiny = ConvMixer(depth=1, width=4, patch=8, kernel=3)
    cell = Cell("cifar10", tiny, "mp", None, 0.5, CONVMIXER)
    monkeypatch.setattr(bench, "CELLS", (cell,))
    monkeypatch.setattr(bench, "bench_steps", partial(bench.bench_steps, pairs=2, seconds=0))
    rows, table = run(command, tmp_path / "rows", "steps", "--batch", "2", "--device", "cpu")
    assert [row["what"] for row in rows] == [
        "convmixer-d1-w4: step masked / dense",
        "convmixer-d1-w4: step masked by the reference / dense",
        "convmixer-d1-w4: masks with gradient / as in the released code",
        "convmixer-d1-w4: a batch augmented / step masked",
    ]
    assert {row["pairs"] for row in rows} == {2}
    assert all(f"{row['ratio']:.2f}" in table for row in rows)
    assert f"torch: {torch.__version__}" in " ".join(table.split())


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    quick = partial(bench_file.bench_files, (16,), lambda: nn.Linear(300, 300), pairs=2, seconds=0)
    monkeypatch.setattr(bench_file, "bench_files", quick)
    rows, table = run(command, tmp_path / "rows", "files")
    assert [row["what"] for row in rows] == [
        "pack 16 bits / copy them as bools",
        "unpack 16 bits / copy them as bools",
        "load Linear to dense / torch.load dense",
        "peak memory of that load / the dense tensors",
    ]
    assert [row["pairs"] for row in rows] == [2, 2, 2, 1]
    assert rows[-1]["milliseconds"] is None
    assert " 2 " in table


def test_pairs_alternate_after_two_runs_that_do_not_count() -> None:
    order: list[str] = []
    ratio = compare(
        "a / b", lambda: order.append("a"), lambda: order.append("b"), pairs=2, seconds=0
    )
    assert "".join(order) == "abab" + "ab" + "ba"
    assert (ratio.what, ratio.pairs) == ("a / b", 2)


def test_masks_of_the_released_code_are_the_same() -> None:
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    masks = []
    for make in (bench.sorted_mask, lambda s, d: pemn.score_mask(s, density=d)):
        mask = make(scores, 0.3)
        (gradient,) = torch.autograd.grad(mask.sum(), scores)
        masks.append((mask, gradient))
    assert all(map(torch.equal, *masks))
