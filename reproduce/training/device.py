"""Everything that depends on the device; nothing else in the experiments asks which it is."""

import ctypes
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor, autocast

from reproduce.data.batches import Batch

Gradients = Callable[[Batch], Tensor]
"""Returns the loss of a batch and fills ``.grad`` of the trained tensors."""


@dataclass(frozen=True)
class Device:
    """A device and how to train on it."""

    torch: torch.device
    hardware: str
    """Its name, for people."""
    bfloat16: bool
    """Whether training runs in mixed precision."""

    def put(self, batch: Batch) -> Batch:
        """The batch on the device, images in channels-last order, which later layers keep."""
        images, labels = batch
        return images.to(self.torch, memory_format=torch.channels_last), labels.to(self.torch)

    def mixed_precision(self) -> autocast:
        """The context in which to train."""
        return autocast(self.torch.type, torch.bfloat16, enabled=self.bfloat16)

    def synchronize(self) -> None:
        """Wait until all work is done; call it before reading a clock."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)

    def runner(
        self, tensors: Sequence[Tensor], *, record: bool
    ) -> Callable[[Gradients, Batch], Tensor]:
        """What calls a function that fills ``.grad`` of ``tensors``, step after step.

        On a GPU it may ``record`` the function and replay it: see ``Recorder``.
        """
        return Recorder(tensors) if record and not self._on_cpu else _call

    @property
    def fused(self) -> bool:
        """Whether the optimizer updates all tensors in a few launches.

        Not on a CPU, where it would save nothing and change the bits of rows.
        """
        return not self._on_cpu

    @property
    def slow(self) -> bool:
        """See ``is_slow``."""
        return is_slow(self.torch)

    @property
    def repeats(self) -> bool:
        """Whether the same run, repeated, gives the same bits."""
        return self._on_cpu

    def free_memory(self) -> int:
        """Bytes available for tensors."""
        if self._on_cpu:
            return available_memory()
        self.release_memory()  # what PyTorch caches counts as used
        return torch.cuda.mem_get_info(self.torch)[0]

    def release_memory(self) -> None:
        """Release the memory that PyTorch caches for later tensors."""
        if not self._on_cpu:
            torch.cuda.empty_cache()

    def peak_memory(self, run: Callable[[], object]) -> int | None:
        """Peak bytes that PyTorch holds while ``run`` runs, those of recorded steps among them.

        None on a CPU, where nobody counts them.
        """
        if self._on_cpu:
            return None
        torch.cuda.reset_peak_memory_stats(self.torch)
        run()
        return torch.cuda.max_memory_reserved(self.torch)

    @contextmanager
    def full_float32(self) -> Iterator[None]:
        """Inside, a GPU does not round float32 to TensorFloat-32, as convolutions otherwise do."""
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
        """Restore the device's global random stream, from which dropout draws, at the end."""
        with torch.random.fork_rng(devices=[] if self._on_cpu else [self.torch.index]):
            yield

    def draw_from(self, stream: Generator) -> None:
        """Seed dropout like ``stream``, so that it does not depend on what was drawn before."""
        generators = [torch.default_generator] if self._on_cpu else torch.cuda.default_generators
        generators[self.torch.index or 0].manual_seed(stream.initial_seed())

    @property
    def _on_cpu(self) -> bool:
        return self.torch.index is None


class Recording(NamedTuple):
    """A CUDA graph with the tensors that it reads and those that it overwrites."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss: Tensor
    gradients: list[Tensor | None]


def _call(gradients: Gradients, batch: Batch) -> Tensor:
    return gradients(batch)


class Recorder:
    """Runs a function as a CUDA graph: the host launches all of its kernels at once.

    A small network has hundreds of kernels, each shorter than its launch. The first calls with
    batches of a size run as usual, since libraries prepare themselves then; the next one is
    recorded, and from then on replayed. Each call overwrites the loss that the last one returned.
    """

    USUAL = 2
    """How many calls run before one is recorded."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.calls: Counter[torch.Size] = Counter()
        self.recordings: dict[torch.Size, Recording] = {}
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, gradients: Gradients, batch: Batch) -> Tensor:
        """Return the loss and fill ``.grad``; ``gradients`` is the same function each time."""
        size = batch[0].shape
        self.calls[size] += 1
        if self.calls[size] <= self.USUAL:
            return self._usual(gradients, batch)
        if size not in self.recordings:
            self.recordings[size] = self._record(gradients, batch)
        recording = self.recordings[size]
        for place, given in zip(recording.batch, batch, strict=True):
            place.copy_(given)
        recording.graph.replay()
        for tensor, gradient in zip(self.tensors, recording.gradients, strict=True):
            tensor.grad = gradient  # another recording has its own
        return recording.loss

    def _usual(self, gradients: Gradients, batch: Batch) -> Tensor:
        """Run on the stream on which to record, as PyTorch's manual asks for."""
        current = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            loss = gradients(batch)
        current.wait_stream(self.stream)
        return loss

    def _record(self, gradients: Gradients, batch: Batch) -> Recording:
        graph = torch.cuda.CUDAGraph()
        images, labels = batch[0].clone(), batch[1].clone()
        # They run one after the other, so all may use the same memory.
        pool = next((each.graph.pool() for each in self.recordings.values()), None)
        with torch.cuda.graph(graph, pool, self.stream):
            loss = gradients((images, labels))
        return Recording(graph, (images, labels), loss, [tensor.grad for tensor in self.tensors])


def find_device(name: str | None = None) -> torch.device:
    """Find ``cpu``, ``cuda`` or ``cuda:N``, by default the best one present, without opening it.

    Raises:
        ValueError: if ``name`` is none of these, or there is no such device.
    """
    present = gpus()
    name = name or ("cuda" if present else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if not match:
        raise ValueError(f"the device must be cpu, cuda or cuda:N, got {name!r}")
    index = int(match[1] or 0)
    if index >= present:
        raise ValueError(f"no {name!r} here: PyTorch sees {present} CUDA devices that it can use")
    return torch.device("cuda", index)


def open_device(name: str | None = None) -> Device:
    """Open the device that ``find_device`` finds, ready to train on.

    Raises:
        ValueError: as ``find_device``, or if it cannot be opened, such as a GPU in exclusive use.
    """
    where = find_device(name)
    if is_slow(where):
        keep_freed_memory()
        # Weights before GELU and batch-norm grow in training. Gradients through GELU's tail then
        # become subnormal, which made a backward pass seven times as slow (measured).
        torch.set_flush_denormal(True)
        # bfloat16 was slower than float32 on a CPU (backward pass of depthwise convolutions).
        return Device(where, processor(), bfloat16=False)
    try:
        torch.cuda.set_device(where)  # else code that names no device opens the first GPU, too
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]  # the other lines say how to debug a kernel
        raise ValueError(f"{where} cannot be opened: {reason}") from error
    return Device(
        where,
        torch.cuda.get_device_name(where),
        bfloat16=torch.cuda.get_device_capability(where) >= (8, 0),  # older GPUs emulate it, slowly
    )


def is_slow(where: torch.device) -> bool:
    """Whether a cell of the paper takes days on this device; trials are then small."""
    return where.index is None


def gpus() -> int:
    """How many GPUs PyTorch can use; it also counts those with too old a driver, and warns."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def processor() -> str:
    """The processor's name, as given by the system."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():  # Linux, where the standard library knows only the architecture
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def available_memory() -> int:
    """Bytes of memory that are not in use, if the system tells; else all of the machine's."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of handing it back to the system.

    Otherwise every large tensor is mapped anew, page fault by page fault.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)  # M_MMAP_MAX; older versions refuse a high M_MMAP_THRESHOLD
