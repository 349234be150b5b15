"""How devices are set up, and which names are understood or refused. Needs no GPU."""

import os
from collections.abc import Iterator

import pytest
import torch

from reproduce.tests.conftest import Command
from reproduce.training.device import find_device, open_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where PyTorch sees two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))


def test_cpu_trains_in_full_precision() -> None:
    cpu = open_device("cpu")
    assert cpu.torch == torch.device("cpu")
    assert not cpu.bfloat16
    assert cpu.hardware
    with cpu.mixed_precision():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), (None, 0)])
def test_gpu_trains_in_mixed_precision(name: str | None, index: int) -> None:
    gpu = open_device(name)
    assert gpu.torch == torch.device("cuda", index)
    assert gpu.hardware == f"GPU {index}"
    assert gpu.bfloat16


@pytest.mark.usefixtures("two_gpus")
def test_bfloat16_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not open_device("cuda").bfloat16


@pytest.mark.usefixtures("two_gpus")
def test_gpu_that_does_not_open_is_one_line(
    monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    def refuse(_: torch.device) -> None:
        raise RuntimeError("CUDA error: all devices are busy\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    for arguments in (("run",), ("plan",), ("bench", "steps")):
        code, output, errors = command(*arguments, "--device", "cuda:1")
        assert (code, output) == (2, "")
        why = "cuda:1 cannot be opened: CUDA error: all devices are busy"
        assert errors == f"error: Invalid value for --device: {why}\n"


@pytest.mark.usefixtures("two_gpus")
def test_no_other_gpu_is_opened_and_none_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no GPU is named, PyTorch opens the current one, which is number 0 at first."""
    current, opened = [0], set()

    def name_of(device: torch.device) -> str:
        opened.add(current[-1])
        return f"GPU {device.index}"

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    monkeypatch.setattr(torch.cuda, "get_device_name", name_of)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert (current, opened) == ([0], set())
    open_device("cuda:1")
    assert opened == {1}


def test_best_device_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert open_device().torch == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
def test_gpu_whose_driver_is_too_old_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # device_count is still 2
    assert open_device().torch == torch.device("cpu")
    with pytest.raises(ValueError, match="no 'cuda' here: PyTorch sees 0"):
        open_device("cuda")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "must be cpu, cuda or cuda:N, got 'tpu'"),
        ("cuda:", "got 'cuda:'"),
        ("cuda:-1", "got 'cuda:-1'"),
        ("cuda:2", "no 'cuda:2' here: PyTorch sees 2 CUDA devices"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_device(name)


@pytest.fixture
def rounding() -> Iterator[None]:
    """Allow TensorFloat-32 in products as well as in convolutions, as PyTorch can be told to."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("rounding")
def test_float32_is_not_rounded_inside_and_as_before_afterwards() -> None:
    def fail() -> None:
        with open_device("cpu").full_float32():
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_memory_of_a_cpu_is_that_of_the_machine_and_nobody_counts_tensors() -> None:
    cpu = open_device("cpu")
    assert 0 < cpu.free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert cpu.peak_memory(lambda: 1 / 0) is None
    assert (cpu.slow, cpu.repeats) == (True, True)


@pytest.mark.usefixtures("two_gpus")
def test_memory_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated = {0: 5, 1: 7}
    peaks = {0: 90, 1: 90}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (100 - allocated[d.index], 100))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda d: peaks[d.index])
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda d: peaks.update({d.index: allocated[d.index]})
    )
    gpu = open_device("cuda:1")
    assert gpu.free_memory() == 93
    assert gpu.peak_memory(lambda: peaks.update({1: 70})) == 70
    assert gpu.peak_memory(lambda: None) == 7
    assert (gpu.slow, gpu.repeats) == (False, False)


def test_images_are_put_in_channels_last_order_with_their_labels() -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    x, y = open_device("cpu").put((images, labels))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, images)
    assert torch.equal(y, labels)


def test_global_stream_is_lent_and_given_back() -> None:
    before = torch.get_rng_state()
    device = open_device("cpu")
    with device.own_stream():
        device.draw_from(torch.Generator().manual_seed(3))
        drawn = torch.rand(5)
    assert torch.equal(drawn, torch.rand(5, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(torch.get_rng_state(), before)
