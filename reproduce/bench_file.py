"""What a compressed model costs in time and memory, as ratios: both sides alternate in one process.

Packing and unpacking against a plain copy of the same masks; loading a ResNet-50 to a dense
state_dict against ``torch.load`` of its dense checkpoint, and the memory that it takes.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision  # type: ignore[import-untyped]

import pemn_ref as pemn
from pemn_ref.file import load_dense, pack, save, unpack


class Ratio(NamedTuple):
    """One thing measured against another: the median over the rounds, and how many there were."""

    what: str
    against: str
    ratio: float
    rounds: int


def ratio(what: str, mine: Callable[[], Any], against: str, theirs: Callable[[], Any]) -> Ratio:
    """Seconds of one call over seconds of the other, at least 5 rounds and about 2 seconds."""
    mine(), theirs()  # the first calls map memory
    ratios: list[float] = []
    began = time.perf_counter()
    while len(ratios) < 5 or time.perf_counter() - began < 2:
        start = time.perf_counter()
        mine()
        middle = time.perf_counter()
        theirs()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return Ratio(what, against, statistics.median(ratios), len(ratios))


def bench_packing(sizes: Sequence[int] = (10**5, 10**6, 10**7, 10**8)) -> list[Ratio]:
    """Time of packing and unpacking, over that of ``clone`` of the bools; sizes by eights."""
    rows = []
    for size in sizes:
        mask = torch.rand(size) < 0.5
        packed = pack(mask)
        rows += [
            ratio(f"pack {size:,}", lambda: pack(mask), "copy", mask.clone),  # noqa: B023
            ratio(f"unpack {size:,}", lambda: unpack(packed), "copy", mask.clone),  # noqa: B023
        ]
    return rows


def bench_loading() -> list[Ratio]:
    """Time and peak memory of a compressed ResNet-50, rp 1e-2, to its dense state_dict."""
    model, strategy = torchvision.models.resnet50(), pemn.rp(1e-2)
    state = pemn.init(model, strategy, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        file, dense = Path(folder) / "model.safetensors", Path(folder) / "dense.pt"
        save(file, model, state, strategy, density=0.5)
        tensors = pemn.materialize(model, state, density=0.5)
        torch.save(tensors, dense)
        seconds = ratio(
            "load_dense of ResNet-50", lambda: load_dense(file),
            "torch.load", lambda: torch.load(dense, weights_only=True),
        )  # fmt: skip
        # In a process of its own, since a peak is not forgotten.
        command = [sys.executable, "-m", "reproduce.bench_file", str(file)]
        grown = int(subprocess.run(command, check=True, capture_output=True).stdout)
    size = sum(tensor.nbytes for tensor in tensors.values())
    return [seconds, Ratio("memory of load_dense", "the dense tensors", grown / size, 1)]


def peak_of_loading(file: Path) -> int:
    """Bytes by which the peak of this process grows when it loads the file."""
    before = _peak()
    load_dense(file)
    return _peak() - before


def _peak() -> int:
    """Linux only: ``resource`` would give the peak of the process that started this one."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(line)


if __name__ == "__main__":
    print(peak_of_loading(Path(sys.argv[1])))
