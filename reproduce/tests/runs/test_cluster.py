"""Runs on a real cluster on this machine; its processes are killed by their id."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reproduce.data.datasets import load
from reproduce.rows.row import Measured
from reproduce.runs.store import RunStore
from reproduce.study.studies import STUDIES
from reproduce.tests.conftest import Command, exit_code
from reproduce.tests.runs.test_run import times_aside

needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="needs the extra ray")

CELL = STUDIES["digits"].chosen(strategies=["rp_1e-2"]).shortened(10).cells[0]
RUNS = ("run", "--strategy", "rp_1e-2", "--epochs", "10", "--seeds", "3")

# python -m reproduce with a checkpoint after each step.
DRIVER = """
import sys
from functools import partial
from reproduce.runs import study
from reproduce.__main__ import main
study.run_study = partial(study.run_study, every=0)
sys.exit(main())
"""


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """For a cluster of two cores that listens on loopback only and sends nothing anywhere."""
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # paths of sockets must be short
        yield {
            "HOME": folder,
            "RAY_TMPDIR": folder,
            "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}',
            # Otherwise Ray replaces 127.0.0.1 by the machine's own address.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "PYTHONUNBUFFERED": "1",
            "PATH": os.environ["PATH"],
        }
        deadline = time.monotonic() + 60
        while left := processes_of(folder):
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.1)


def processes_of(folder: str) -> list[str]:
    """The command lines of Ray processes that name the folder."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            commands.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # gone
    return [command for command in commands if f"{folder}/ray/" in command]


class Driver:
    """The command in its own process, which leads its process group, as in a terminal."""

    def __init__(self, out: Path, environment: dict[str, str], *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for the next line that matches ``pattern``; return the match."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        pytest.fail(f"no {pattern!r} in {''.join(self.lines)}{self.end()[1]}")

    def end(self) -> tuple[int, str]:
        """Wait for the end; return exit code and standard error."""
        output, errors = self.process.communicate()
        self.lines += output.splitlines(keepends=True)
        return self.process.returncode, errors

    def epochs(self, seed: int) -> list[int]:
        """The epochs that a run has reported."""
        pattern = rf"seed {seed}  epoch (\d+) of 10 "
        return [int(match[1]) for line in self.lines if (match := re.search(pattern, line))]


def rows(out: Path) -> list[dict[str, Any]]:
    found = [
        json.loads(line) for line in (out / "digits.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return times_aside(sorted(found, key=lambda row: row["run"]))


def train_here(out: Path) -> None:
    """Train the runs one after the other, without Ray."""
    assert exit_code(*RUNS, "--device", "cpu", "--out", out) == 0


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs trained without Ray."""
    out = tmp_path_factory.mktemp("single")
    train_here(out)
    return out


def assert_same(out: Path, single: Path) -> None:
    """Every row is there once, all is equal to runs without Ray, and nothing is left over."""
    assert len(rows(out)) == 3
    assert rows(out) == rows(single)
    names = [f"{CELL.run_id(seed)}.safetensors" for seed in range(3)]
    assert sorted(path.name for path in (out / "files").iterdir()) == names
    for name in names:
        assert (out / "files" / name).read_bytes() == (single / "files" / name).read_bytes()
    assert not list((out / "checkpoints").iterdir())


@needs_ray
def test_killed_worker_and_ctrl_c_lose_and_double_nothing(
    tmp_path: Path, environment: dict[str, str], single: Path
) -> None:
    driver = Driver(tmp_path, environment, *RUNS, "--ray")
    worker = int(driver.wait_for(r"seed 0  starts: .* process (\d+)$")[1])
    driver.wait_for("seed 0  epoch 2 ")
    with RunStore(tmp_path, "digits", print).claim(CELL.run_id(0)) as ours:
        assert not ours
    os.kill(worker, signal.SIGKILL)
    again = int(driver.wait_for(r"seed 0  resumes: .* process (\d+)$")[1])
    assert again != worker
    before = driver.epochs(0)
    driver.wait_for("seed 0  epoch ")
    assert driver.epochs(0)[len(before)] >= before[-1]

    os.killpg(driver.process.pid, signal.SIGINT)
    code, errors = driver.end()
    assert code == 130
    assert errors.splitlines()[-1].startswith("stopped: all is kept in")
    assert list((tmp_path / "checkpoints").iterdir())
    train_here(tmp_path)
    assert_same(tmp_path, single)


@needs_ray
def test_runs_go_on_where_the_process_that_tells_of_them_is_killed(
    tmp_path: Path, environment: dict[str, str], single: Path
) -> None:
    driver = Driver(tmp_path, environment, *RUNS, "--ray")
    driver.wait_for("seed 0  epoch 2 ")
    folder = environment["RAY_TMPDIR"].encode()
    tellers = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone
            ours = folder in (process / "environ").read_bytes()
            if ours and (process / "cmdline").read_bytes().startswith(b"ray::_QueueActor"):
                tellers.append(int(process.name))
    (teller,) = tellers
    os.kill(teller, signal.SIGKILL)
    assert driver.end()[0] == 0
    assert_same(tmp_path, single)


@needs_ray
def test_killed_driver_goes_on_where_it_was_on_a_running_cluster(
    tmp_path: Path, environment: dict[str, str], single: Path
) -> None:
    start = ("start", "--head", "--block", "--port=0", "--include-dashboard=false")
    cluster = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        named = Path(environment["RAY_TMPDIR"], "ray", "ray_current_cluster")
        while not named.exists():
            assert cluster.poll() is None
            time.sleep(0.1)
        address = named.read_text(encoding="utf-8")
        assert address.startswith("127.0.0.1:")

        first = Driver(tmp_path, environment, *RUNS, "--ray", address)
        first.wait_for("seed 0  epoch 2 ")
        first.process.kill()
        assert first.end()[0] == -signal.SIGKILL
        assert [*tmp_path.glob("locks/driver-*")]
        second = Driver(tmp_path, environment, *RUNS, "--ray", address)
        second.wait_for("seed 0  resumes: ")
        assert second.end()[0] == 0
        assert second.epochs(0)[0] >= 2
        assert not [*tmp_path.glob("locks/driver-*")]
        assert_same(tmp_path, single)

        greedy = Driver(tmp_path, environment, "run", "--ray", address, "--cells-per-gpu", "4")
        assert greedy.end() == (
            2,
            "error: Invalid value for --ray: a cell takes 0 CPUs and 0.25 GPUs, but the cluster"
            " has 2 and 0\n",
        )
    finally:
        cluster.terminate()
        cluster.wait()


def test_without_ray_a_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.delitem(sys.modules, "reproduce.runs.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, output, errors = command("run", "--ray")
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "pip install '.[ray]'" in errors


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["127.0.0.1:6379"], "127.0.0.1:6379 needs --ray"),
        (["--cells-per-gpu", "4"], "--cells-per-gpu needs --ray"),
        *(
            pytest.param(["--ray", *arguments], named, marks=needs_ray)
            for arguments, named in (
                (["127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1: [Errno 111]"),
                (["127.0.0.1:99999"], "no Ray cluster at 127.0.0.1:99999"),
                (["nonsense"], "HOST:PORT or auto, got 'nonsense'"),
                (["--device", "cuda:1"], "cpu or cuda (Ray picks which one), got 'cuda:1'"),
                (["--device", "cpu", "--cells-per-gpu", "4"], "4 cells per GPU, but --device cpu"),
            )
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], named: str, command: Command
) -> None:
    code, output, errors = command("run", *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert named in errors


@needs_ray
def test_where_the_folder_is_not_seen_a_run_starts_from_the_beginning(tmp_path: Path) -> None:
    from reproduce.runs.cluster import Cluster, train_task

    class News(list[Any]):
        put = list.append

    news = News()
    cell = replace(CELL, recipe=CELL.recipe.changed(epochs=1))
    checkpoint = tmp_path / "of-another-machine.pt"
    checkpoint.write_bytes(b"not to be read")
    row, network = train_task(
        cell,
        0,
        load("digits"),
        Cluster("cpu", 1, 0),
        checkpoint,
        tmp_path / "no-mark",
        0,
        news,
    )
    assert isinstance(row, Measured)
    assert (len(row.history), row.bytes) == (1, len(network))
    (_, (_, begins)), (_, (_, epoch, *_)) = news
    assert begins.startswith("starts from the beginning, since its machine does not see the runs")
    assert epoch == "epoch 1 of 1"
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


@needs_ray
def test_terminal_shows_a_table_and_only_starts_as_lines() -> None:
    from reproduce.runs.cluster import _Progress

    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, highlight=False)
    with _Progress(console) as progress:
        progress.show(
            [("one", ("first", "starts: here, process 1")), ("two", ("second", "resumes"))]
        )
        progress.show([("one", ("first", "epoch 1 of 2", "50.0 %", "200 images/s", "0:01 left"))])
        progress.end("two")
        progress.show([])
    shown = output.getvalue()
    assert "first  starts: here, process 1\n" in shown
    assert re.search("first +epoch 1 of 2 +50.0 % +200 images/s +0:01 left", shown)
    assert "second" not in shown[shown.rindex("first") :]


def test_job_scripts_run_what_there_is(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    page = Path(__file__).parents[2] / "CLUSTER.md"
    ray_job, array = re.findall(
        r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    cells = STUDIES["paper"].chosen().cells
    assert f"--array=0-{len(cells) - 1} " in array
    # Slurm's commands and the run itself are printed, not run.
    only_print = f"""
        scontrol() {{ echo one; echo two; }}
        srun() {{ echo "$@"; }}
        python() {{ if [ "$1" = -c ]; then "{sys.executable}" "$@"; else echo python "$@"; fi; }}
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    slurm = {"JOB_NODELIST": "", "JOB_NUM_NODES": 2, "CPUS_PER_TASK": 64, "ARRAY_TASK_ID": 160}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    commands = [
        subprocess.run(
            ["bash", "-euc", only_print + script], check=True, capture_output=True, encoding="utf-8"
        ).stdout
        for script in (ray_job, array)
    ]
    assert commands[0].startswith(
        "ray symmetric-run --address one:6379 --min-nodes 2 --num-cpus 64"
    )
    assert f"--only {cells[-1].id} " in commands[1]
    code, known, _ = command("run", "--help")
    assert code == 0
    for line in commands:
        _, options = line.split("python -m reproduce run ")
        assert all(option in known for option in re.findall("--[a-z-]+", options))
