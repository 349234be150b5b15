"""Runs are done, begun, failed or stale; costs are counted correctly and scale."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from reproduce.data.datasets import DATASETS, load
from reproduce.preflight import cost
from reproduce.preflight.cost import Cost, kind, learned, measure, size
from reproduce.preflight.plan import Plan, Standing, make_table, read_plan
from reproduce.report.console import duration
from reproduce.rows.row import Epoch
from reproduce.runs.store import RunStore
from reproduce.study.cells import Cell, ConvMixer, Study
from reproduce.study.recipes import CONVMIXER
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command
from reproduce.tests.invented import failed_row_of, row_of, write_rows
from reproduce.training.checkpoint import Stop, Stopped
from reproduce.training.device import Device, open_device
from reproduce.training.networks import make_network
from reproduce.training.run import train_run
from reproduce.training.step import training_step

DEVICE = open_device("cpu")
DIGITS = STUDIES["digits"].chosen()
PAPER = STUDIES["paper"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Dense is done, mask failed, one_layer is begun; one row of a control is stale."""
    dense, mask, one_layer, *_, control = DIGITS.cells
    store = RunStore(tmp_path / "runs", "digits", print)
    old = replace(control, recipe=replace(control.recipe, version=0))
    write_rows(store.path, [row_of(dense), failed_row_of(mask), row_of(old)])
    stop = Stop()
    seen: list[object] = []

    def stop_after_two(epoch: object) -> None:
        seen.append(epoch)
        stop.code = 143 if len(seen) == 2 else None

    run = one_layer.run_id(0)
    with pytest.raises(Stopped):
        train_run(
            one_layer,
            0,
            load("digits"),
            DEVICE,
            store.checkpoint(one_layer, 0, 60, stop),
            store.file(run),
            stop_after_two,
        )
    return store.out


def test_runs_are_done_failed_begun_or_to_train(out: Path) -> None:
    plan = read_plan(DIGITS, [0], out)
    assert [run.state for run in plan.runs] == ["done", "failed", "begun", *["to train"] * 6]
    assert [run.left for run in plan.runs] == [0, 0, 25 - 2, *[25] * 6]
    assert plan.cells == list(DIGITS.cells[2:])
    assert [row.run for row in plan.stale] != []
    assert {run.state for run in read_plan(DIGITS, [1], out).runs} == {"to train"}


def test_command_lists_them_and_what_is_left(out: Path, command: Command) -> None:
    arguments = ("plan", "--device", "cpu", "--out", out, "--seeds", "1")
    code, lines, said = command(*arguments)
    assert code == 0
    assert said.splitlines() == [
        "measuring a step of convmixer-d2-w32 on digits",
        "counting memory",
    ]
    group, *_ = (line.split() for line in lines.splitlines() if "convmixer-d2-w32" in line)
    assert group[1:7] == ["digits", "9", "1", "1", "1", "1"]  # runs, done, begun, failed, stale
    dense, mask, one_layer, mp = (cell.run_id(0) for cell in DIGITS.cells[:4])
    assert f"dense      seed 0  done  {dense}" in lines
    assert f"mask       seed 0  failed: the loss is nan  {mask}" in lines
    kept = read_plan(DIGITS, [0], out).runs[2].kept
    assert kept
    last = kept[-1]
    begun = f"begun: 2 of 25 epochs (loss {last.loss:.3f}, {100 * last.accuracy:.1f} %)"
    assert f"one_layer  seed 0  {begun}  {one_layer}" in lines
    assert f"mp         seed 0  to train  {mp}" in lines
    assert "7 of 9 runs to train, about " in lines


def test_plan_of_many_models_has_lines_for_exceptions_alone_and_makes_no_folder(
    tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "runs"
    models = [argument for name in ("resnet", "vit") for argument in ("--model", name)]
    code, output, _ = command("plan", "--device", "cpu", "--out", out, "--data", tmp_path, *models)
    assert code == 0
    assert "resnet8" in output
    assert "vit-d2-w32" in output
    assert "seed 0" not in output
    assert not out.exists()


def test_plan_says_where_data_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setattr(cost, "_measure", lambda *_: Cost(1, 0))
    monkeypatch.setattr(
        "reproduce.preflight.plan.size", lambda *_, **__: cost.Size(0, 0, 0, 0, 0, 0)
    )
    (tmp_path / "cifar-100-python").mkdir()
    arguments = ("--all", "--model", "resnet32", "--data", tmp_path, "--out", "none")
    code, output, _ = command("plan", "--device", "cpu", *arguments)
    assert code == 0
    assert f"no {tmp_path / 'cifar-10-batches-py'}" in output
    assert "cifar-100-python" not in output


def test_damaged_checkpoint_is_one_line_and_exit_code_2(out: Path, command: Command) -> None:
    (path,) = (out / "checkpoints").iterdir()
    path.write_bytes(b"torn")
    code, output, errors = command("plan", "--device", "cpu", "--out", out)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert f"{path} is damaged" in errors


def test_checkpoint_of_another_version_or_run_is_one_line_and_exit_code_2(
    out: Path, command: Command
) -> None:
    arguments = ("plan", "--device", "cpu", "--out", out)
    one_layer, (path,) = DIGITS.cells[2], (out / "checkpoints").iterdir()
    path.rename(path.with_name(f"{one_layer.run_id(1)}.pt"))
    code, output, errors = command(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert f"to the run '{one_layer.run_id(0)}', not to {one_layer.run_id(1)}" in errors
    checkpoint = RunStore(out, "digits", print).checkpoint(one_layer, 1, 0, Stop())
    checkpoint.after_step(lambda: {"position": {"steps": 3}})
    code, output, errors = command(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "was not written by this version of the program" in errors


def test_table_of_the_paper_fits_80_columns_and_has_a_line_for_each_group() -> None:
    study = PAPER.chosen(models=["resnet"])
    costs: dict[cost.Kind, Cost | None] = {kind(cell): Cost(1e-3, 2e-3) for cell in study.cells}
    console = Console(width=80)
    with console.capture() as captured:
        console.print(make_table(planned(study, 200), costs, bfloat16=False))
    lines = captured.get().splitlines()
    assert sum("resnet" in line for line in lines) == 4
    assert "…" not in captured.get()


def planned(study: Study, left: int) -> Plan:
    """A plan whose runs have ``left`` epochs left each."""
    epoch = Epoch(1.0, 0.5, 2.0)
    runs = [Standing(c, 0, None, [epoch] * (c.recipe.epochs - left)) for c in study.cells]
    return Plan(study, runs, [])


def test_time_is_images_by_epochs_by_cost() -> None:
    study = PAPER.chosen(models=["resnet32"], strategies=["mp"])  # on both CIFAR datasets
    costs: dict[cost.Kind, Cost | None] = {kind(study.cells[0]): Cost(0.003, 0.006)}
    train, test = 50_000, 10_000
    epoch = train * 0.009 + test * 0.001
    for epochs in (1, 200):
        plan = planned(study, epochs)
        assert plan.seconds(costs) == pytest.approx(2 * epochs * epoch)
    costs = {kind(study.cells[0]): None}
    assert plan.seconds(costs) == 0


def test_cost_of_a_step_is_split_into_that_of_images_and_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "training_step", lambda _, batch, *__, **___: batch)
    monkeypatch.setattr(cost, "augmentation", lambda _, batch, __: 2 * batch)
    monkeypatch.setattr(cost, "fastest", lambda batch, **_: 0.3 + 0.01 * batch)
    cell = DIGITS.cells[0]
    measured = measure([cell], DEVICE, print)[kind(cell)]
    assert measured == pytest.approx(Cost(0.01 + 0.3 / 64, 0.02 + 0.3 / 64))

    class Fast(Device):
        slow = False

    fast = Fast(**vars(DEVICE))
    assert measure([cell], fast, print) == {kind(cell): Cost((0.3 + 0.64) / 64, (0.3 + 1.28) / 64)}


def test_each_kind_is_measured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = []
    real = cost._measure
    monkeypatch.setattr(cost, "_measure", lambda cell, d: measured.append(cell) or real(cell, d))  # type: ignore[func-returns-value]
    tiny = ConvMixer(depth=1, width=4, patch=8, kernel=3)
    cells = [
        Cell(dataset, tiny, "dense", None, None, CONVMIXER.changed(augmentation=augmentation))
        for dataset, augmentation in (
            ("cifar10", "crop-flip"),
            ("cifar100", "crop-flip"),
            ("digits", "plain"),
        )
    ]
    said: list[str] = []
    costs = measure(cells, DEVICE, said.append)
    assert measured == [learned(cells[0]), learned(cells[2])]
    assert said == [
        f"measuring a step of convmixer-d1-w4 on {name}" for name in ("cifar10", "digits")
    ]
    assert list(costs) == [(tiny, 32), (tiny, 8)]
    for known in costs.values():
        assert known is not None
        assert min(known) > 0


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_small(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cost, "training_step", too_small)
    study = DIGITS.chosen(strategies=["mp"])
    costs = measure(study.cells, DEVICE, print)
    assert costs == {kind(study.cells[0]): None}
    console = Console(width=80)
    with console.capture() as captured:
        console.print(make_table(planned(study, 1), costs, bfloat16=False))
    assert "too large" in captured.get()


@pytest.mark.parametrize("family", ["convmixer", "resnet", "vit"])
def test_counted_memory_is_what_two_real_steps_allocate(family: str) -> None:
    (cell,) = STUDIES["digits"].chosen(models=[family], strategies=["mp"]).cells
    cell = replace(cell, recipe=cell.recipe.changed(batch=256))
    gc.collect()  # whatever is freed meanwhile would be subtracted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step = training_step(cell, 256, DEVICE, compiled=False)
        step()
        step()
    held = peak = 0
    assert profiled.profiler is not None
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    counted = size(cell, bfloat16=False)
    assert counted.memory - counted.images == pytest.approx(peak, rel=0.2)


@pytest.mark.parametrize("family", ["convmixer", "resnet", "vit"])
def test_counted_state_is_that_of_a_real_network(family: str) -> None:
    (cell,) = STUDIES["digits"].chosen(models=[family], strategies=["mp"]).cells
    network = make_network(cell, 0, DEVICE.torch)
    dense = sum(tensor.nbytes for tensor in network.model.state_dict().values())
    trained = sum(tensor.nbytes for tensor in network.trained)
    counted = size(cell, bfloat16=False)
    assert counted.state == dense + sum(tensor.nbytes for tensor in network.tensors.values())
    assert counted.gradients == trained
    moments = 1 if family == "resnet" else 2
    assert counted.optimizer == pytest.approx(moments * trained, rel=0.01)  # and the step counts
    assert counted.file == dense


def test_activations_grow_with_the_batch_and_nothing_else_does() -> None:
    (cell,) = DIGITS.chosen(strategies=["dense"]).cells
    one = size(cell, bfloat16=False)
    larger = replace(cell, recipe=cell.recipe.changed(batch=2 * cell.recipe.batch))
    two = size(larger, bfloat16=False)
    assert two._replace(activations=0) == one._replace(activations=0)
    once = 2 * one.activations - two.activations
    assert 0 < once < one.file / 4  # batch-norm statistics, but no weights
    assert one.images == 1797 * 64 * 4


def test_images_to_train_on_are_bytes_and_held_out_ones_float32() -> None:
    first = PAPER.chosen(datasets=["cifar10"]).cells[0]
    assert size(first, bfloat16=False).images == 50_000 * 3_072 + 10_000 * 3_072 * 4


def test_numbers_of_images_are_those_of_the_dataset() -> None:
    train, test = load("digits")
    assert (len(train), len(test)) == (DATASETS["digits"].train, DATASETS["digits"].test)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (119, "119 s"), (120, "2.0 min"), (7200, "2.0 h"), (1e8, "1,157 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
