"""What a compressed model costs in time and memory, as ratios.

Packing and unpacking are compared with a plain copy of the same masks; loading a ResNet-50 into a
dense state_dict with ``torch.load`` of its dense checkpoint. That load's peak memory is compared
with the size of the dense tensors.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torchvision  # type: ignore[import-untyped]
from torch import nn

import pemn_ref as pemn
from pemn_ref.file import load_dense, pack, save, unpack
from reproduce.bench.timing import Ratio, compare


def bench_files(
    sizes: Sequence[int] = (10**5, 10**6, 10**7, 10**8),
    make: Callable[[], nn.Module] = torchvision.models.resnet50,
    *,
    pairs: int = 5,
    seconds: float = 2,
) -> Iterator[Ratio]:
    """Yield all ratios: for masks of these sizes, then for the files of a model with rp 1e-2."""
    for size in sizes:
        mask = torch.rand(size) < 0.5
        packed = pack(mask)
        for what, run in (("pack", partial(pack, mask)), ("unpack", partial(unpack, packed))):
            name = f"{what} {size:,} bits / copy them as bools"
            yield compare(name, run, mask.clone, pairs=pairs, seconds=seconds)

    model, strategy = make(), pemn.rp(1e-2)
    state = pemn.init(model, strategy, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        file, dense = Path(folder) / "model.safetensors", Path(folder) / "dense.pt"
        save(file, model, state, strategy, density=0.5)
        tensors = pemn.materialize(model, state, density=0.5)
        torch.save(tensors, dense)
        yield compare(
            f"load {type(model).__name__} to dense / torch.load dense",
            lambda: load_dense(file),
            lambda: torch.load(dense, weights_only=True),
            pairs=pairs,
            seconds=seconds,
        )
        # In its own process, since a peak cannot be reset.
        command = [sys.executable, "-m", "reproduce.bench.files", str(file)]
        grown = int(subprocess.run(command, check=True, capture_output=True).stdout)
    ratio = grown / sum(tensor.nbytes for tensor in tensors.values())
    yield Ratio("peak memory of that load / the dense tensors", ratio, ratio, ratio, 1, None)


def peak_of_loading(file: Path) -> int:
    """Bytes by which this process's peak memory grows when it loads the file."""
    before = _peak()
    load_dense(file)
    return _peak() - before


def _peak() -> int:
    """Peak memory in bytes, on Linux only; ``resource`` would include the parent process's peak."""
    (line,) = re.findall(
        r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")
    )
    return 1024 * int(line)


if __name__ == "__main__":
    print(peak_of_loading(Path(sys.argv[1])))
