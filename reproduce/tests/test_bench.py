"""The benchmarks run; what they measure is not judged here."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import pemn_ref as pemn
from reproduce import bench, bench_cells, bench_file
from reproduce.cells import Cell, ConvMixer
from reproduce.recipes import CONVMIXER
from reproduce.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.timing import compare


def run(command: Command, out: Path, *kind: str) -> tuple[list[dict[str, float | str | None]], str]:
    """What a benchmark writes, and its table."""
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
        "convmixer-d1-w4: masks / as the released code makes them, with gradient",
        "convmixer-d1-w4: a batch augmented by one core / step masked",
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
        "load Linear to dense / torch.load it dense",
        "peak memory of that / the dense tensors",
    ]
    assert [row["pairs"] for row in rows] == [2, 2, 2, 1]
    assert rows[-1]["milliseconds"] is None
    assert " 2 " in table


def test_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    short = replace(bench_cells.CELL, recipe=bench_cells.CELL.recipe.changed(epochs=1))
    quick = partial(bench_cells.bench_cells, short, pairs=1)
    monkeypatch.setattr(bench_cells, "bench_cells", quick)
    rows, table = run(command, tmp_path / "rows", "cells")
    assert [row["what"] for row in rows] == [
        "two cells side by side, a thread each / one after the other, two threads",
        "cells / hours, side by side",
        "cells / hours, one after the other",
    ]
    ratio, beside, after = (float(row["ratio"] or 0) for row in rows)
    assert beside * ratio == pytest.approx(after)
    assert beside * float(rows[0]["milliseconds"] or 0) == pytest.approx(2 * 3_600_000)
    assert "cells / hours" in table


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


def test_first_steps_have_the_losses_of_a_run(tmp_path: Path, command: Command) -> None:
    (cell,) = STUDIES["digits"].chosen(strategies=["mp"]).cells
    arguments = ("--device", "cpu", "--out", tmp_path / "runs", "--strategy", "mp")
    assert command("run", "--seeds", "1", *arguments)[0] == 0
    (row,) = (
        json.loads(line)
        for line in (tmp_path / "runs/digits.jsonl").read_text(encoding="utf-8").splitlines()
    )
    out = tmp_path / "rows"
    code, output, _ = command("bench", "start", cell.id, "--steps", "45", "--out", out)
    assert code == 0
    (start,) = (json.loads(line) for line in out.read_text(encoding="utf-8").splitlines())
    assert len(start["losses"]) == 45
    last = 1297 - 20 * 64  # images in the last of 21 steps
    for epoch in range(2):
        losses = start["losses"][21 * epoch : 21 * (epoch + 1)]
        mean = (64 * sum(losses[:-1]) + last * losses[-1]) / 1297
        assert mean == pytest.approx(row["history"][epoch]["loss"], abs=1e-4)
    assert start["images_per_second"] > 0
    assert start["configuration"] == cell.configuration
    assert f"{start['losses'][-1]:.2f} in the last of 45 steps" in output

    code, _, errors = command("bench", "start", "0123")
    assert code == 2
    assert "no cell '0123'" in errors
