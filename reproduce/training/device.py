"""All that depends on the device. Nothing else in the experiments asks which one it is."""

import ctypes
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, autocast

from reproduce.data.batches import Batch


@dataclass(frozen=True)
class Device:
    """A device and how to train on it."""

    torch: torch.device
    hardware: str
    """What it is, for people."""
    bfloat16: bool
    """Whether training runs in mixed precision."""

    def put(self, batch: Batch) -> Batch:
        """The batch on the device; images in channels-last order, and what comes of them too."""
        images, labels = batch
        return images.to(self.torch, memory_format=torch.channels_last), labels.to(self.torch)

    def mixed_precision(self) -> autocast:
        """The context to train in."""
        return autocast(self.torch.type, torch.bfloat16, enabled=self.bfloat16)

    def synchronize(self) -> None:
        """Wait until all work is done, before a clock is read."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)

    @property
    def fused(self) -> bool:
        """Whether the optimizer updates all tensors in a few launches.

        Not on a CPU, where that would save nothing and give rows other bits.
        """
        return not self._on_cpu

    @property
    def slow(self) -> bool:
        """As ``is_slow``."""
        return is_slow(self.torch)

    @property
    def repeats(self) -> bool:
        """Whether the same run, repeated, gives the same bits."""
        return self._on_cpu

    def free_memory(self) -> int:
        """Bytes that can be had for tensors."""
        if self._on_cpu:
            return available_memory()
        self.release_memory()  # what is kept counts as used
        return torch.cuda.mem_get_info(self.torch)[0]

    def release_memory(self) -> None:
        """Hand back what PyTorch keeps for the next tensor."""
        if not self._on_cpu:
            torch.cuda.empty_cache()

    def peak_memory(self, run: Callable[[], object]) -> int | None:
        """Bytes of all tensors there while ``run`` runs, at most; None where nobody counts them."""
        if self._on_cpu:
            return None
        torch.cuda.reset_peak_memory_stats(self.torch)
        run()
        return torch.cuda.max_memory_allocated(self.torch)

    @contextmanager
    def full_float32(self) -> Iterator[None]:
        """Inside, float32 is not rounded to TensorFloat-32 as a GPU does in convolutions."""
        products = torch.backends.cuda.matmul.allow_tf32
        convolutions = torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = products
            torch.backends.cudnn.allow_tf32 = convolutions

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """Dropout draws from the global stream of the device, which is as before afterwards."""
        with torch.random.fork_rng(devices=[] if self._on_cpu else [self.torch.index]):
            yield

    def draw_from(self, stream: Generator) -> None:
        """Dropout draws what ``stream`` would give, whatever was drawn before."""
        generators = [torch.default_generator] if self._on_cpu else torch.cuda.default_generators
        generators[self.torch.index or 0].manual_seed(stream.initial_seed())

    @property
    def _on_cpu(self) -> bool:
        return self.torch.index is None


def find_device(name: str | None = None) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:N``; by default the best that is present. It is not opened.

    Raises:
        ValueError: if it is none of these, or not there.
    """
    present = gpus()
    name = name or ("cuda" if present else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if not match:
        raise ValueError(f"a device is cpu, cuda or cuda:N, got {name!r}")
    index = int(match[1] or 0)
    if index >= present:
        raise ValueError(f"no {name!r} here: PyTorch sees {present} CUDA devices that it can use")
    return torch.device("cuda", index)


def open_device(name: str | None = None) -> Device:
    """The device that ``find_device`` finds, ready to train on.

    Raises:
        ValueError: as ``find_device``.
    """
    where = find_device(name)
    if is_slow(where):
        keep_freed_memory()
        # Weights before GELU and batch-norm grow as they train, and gradients through GELU's tail
        # then lie below the smallest normal number: a backward pass seven times as slow (measured).
        torch.set_flush_denormal(True)
        # bfloat16 was slower than float32 there (the backward of depthwise convolutions).
        return Device(where, processor(), bfloat16=False)
    torch.cuda.set_device(where)  # else what names no device opens the first GPU, too
    return Device(
        where,
        torch.cuda.get_device_name(where),
        bfloat16=torch.cuda.get_device_capability(where) >= (8, 0),  # else emulated, and slow
    )


def is_slow(where: torch.device) -> bool:
    """Whether a cell of the paper takes days there: trials are small then."""
    return where.index is None


def gpus() -> int:
    """GPUs that PyTorch can use: it counts one whose driver is too old for it, too, and warns."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def processor() -> str:
    """The name of the processor as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():  # on Linux, where the standard library knows the architecture at most
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def available_memory() -> int:
    """Bytes of the machine that are not in use, where the system says it; else all."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of handing it back to the system.

    Else every large tensor is mapped afresh, page fault by page fault.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)  # M_MMAP_MAX; older versions refuse a high M_MMAP_THRESHOLD
