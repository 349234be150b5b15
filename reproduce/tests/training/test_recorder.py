"""A recorded step without a GPU: what CUDA graphs do, done on the CPU, operation by operation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reproduce.data.datasets import load
from reproduce.study.cells import Cell
from reproduce.study.studies import STUDIES
from reproduce.training import device as module
from reproduce.training.device import Recorder, open_device
from reproduce.training.loop import train
from reproduce.training.networks import Network, make_network
from reproduce.training.run import held_out_batches, training_batches

DEVICE = open_device("cpu")
Operation = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]


class Graph(TorchDispatchMode):
    """In place of ``torch.cuda.CUDAGraph``: does each operation again, in the same memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.replays = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def pool(self) -> None:
        """They have no memory of their own."""

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, result in self.operations:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Stream:
    """In place of a stream of the GPU."""

    def wait_stream(self, other: "Stream") -> None:
        """There is nothing to wait for."""


def history(cell: Cell, network: Network) -> list[tuple[float, float]]:
    """Losses and accuracies of a few epochs on 150 digits, in batches of 64 and one of 22."""
    train_images, test_images = load("digits")
    epochs = train(
        network,
        training_batches(cell, train_images[:150], 0, DEVICE),
        held_out_batches(cell, test_images[:100], DEVICE),
        cell.recipe,
        seed=0,
        device=DEVICE,
        on_epoch=lambda _: None,
    )
    return [(epoch.loss, epoch.accuracy) for epoch in epochs]


@pytest.mark.parametrize("family", ["convmixer", "resnet", "vit"])
def test_recorded_steps_train_as_usual_ones(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although a replay reads and writes the same memory each time, for two sizes of batch."""
    (cell,) = STUDIES["digits"].chosen(models=[family], strategies=["mp"]).shortened(5).cells
    # Of ten full batches the first two run as usual, and of the five others, too.
    assert replays(cell, monkeypatch) == [8, 3]


def test_what_the_host_waits_for_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = next(cell for cell in STUDIES["frontier"].cells if cell.family == "pruned")
    recipe = cell.recipe.changed(epochs=2)
    assert replays(replace(cell, recipe=recipe), monkeypatch) == []


def replays(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often each recording was replayed; the network must become the same as without them."""
    cell = replace(cell, recipe=cell.recipe.changed(batch=64))
    usual = make_network(cell, 0, DEVICE.torch)
    expected = history(cell, usual)

    network = make_network(cell, 0, DEVICE.torch)
    graphs: list[Graph] = []

    @contextmanager
    def recording(graph: Graph, pool: object, stream: object) -> Iterator[None]:
        before = {name: tensor.detach().clone() for name, tensor in network.tensors.items()}
        with torch.random.fork_rng(devices=[]), graph:
            yield
        graphs.append(graph)
        with torch.no_grad():  # on a GPU nothing is computed or drawn while it is recorded
            for name, tensor in network.tensors.items():
                tensor.copy_(before[name])

    monkeypatch.setattr(
        module.Device,
        "runner",
        lambda _, tensors, record: Recorder(tensors) if record else lambda run, batch: run(batch),
    )
    for name, stand_in in {
        "CUDAGraph": Graph,
        "graph": recording,
        "Stream": Stream,
        "stream": lambda _: nullcontext(),
        "current_stream": Stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    assert history(cell, network) == expected
    for name, tensor in network.tensors.items():
        assert torch.equal(tensor, usual.tensors[name]), name
    return [graph.replays for graph in graphs]
