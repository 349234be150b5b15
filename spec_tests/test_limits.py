"""Known limits of a functional call, pinned: no clauses, but facts that the documentation states.

One that goes red says that torch has lifted the limit, and the documentation may drop it.
"""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

from spec_tests.models import built
from spec_tests.subject import pemn


def test_rebound_buffer() -> None:
    """A module that rebinds a buffer instead of changing it loses the update."""

    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            out: Tensor = self.linear(x)
            return out

    model = built(Counting, 0)
    state = pemn.init(model, pemn.mp, seed=0)
    pemn.masked_forward(model, *state, torch.ones(1, 3), density=0.5)
    assert state.buffers["count"] == 0
    assert model.count == 0


def test_activation_checkpointing() -> None:
    """Activation checkpointing recomputes outside the call, with the model's own
    weights, so that the gradients are not the masked network's.
    """

    class Checkpointed(nn.Module):
        def __init__(self, recompute: bool) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
            self.recompute = recompute

        def block(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(self.first(x).tanh())
            return out

        def forward(self, x: Tensor) -> Tensor:
            if self.recompute:
                out: Tensor = checkpoint(self.block, x, use_reentrant=False)
                return out
            return self.block(x)

    gradients = []
    for recompute in (True, False):
        model = built(partial(Checkpointed, recompute), 0)
        state = pemn.init(model, pemn.mp, seed=0)
        x = torch.ones(1, 3)
        pemn.masked_forward(model, *state, x, density=0.5).sum().backward()
        gradients.append(state.scores["first.weight"].grad)
    assert not torch.allclose(*gradients)
    # The way out: the whole call within the checkpoint.
    state = pemn.init(model, pemn.mp, seed=0)
    call = partial(pemn.masked_forward, model, *state, density=0.5)
    checkpoint(call, x, use_reentrant=False).sum().backward()
    assert torch.equal(state.scores["first.weight"].grad, gradients[1])


def test_module_with_two_names() -> None:
    """torch's own functional_call leaves the tensors that it was given in a module with two names.

    ``masked_forward`` gives one name for each attribute, which this fact alone makes necessary.
    """
    linear = nn.Linear(4, 4)
    model = nn.Sequential(linear, linear)
    given = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    functional_call(model, given, torch.ones(1, 4))
    assert linear.weight is given["0.weight"]


def test_two_threads_on_one_model() -> None:
    """During a call the model holds the masked weights, so two threads corrupt one another.

    A deep copy of the model for each is the way out.
    """
    inside, overlapped = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, wait_for: threading.Event) -> Tensor:
            inside.set()
            assert wait_for.wait(60)
            out: Tensor = self.linear(x)
            return out

    def call(model: nn.Module, state: Any, wait_for: threading.Event) -> Tensor:
        out: Tensor = pemn.masked_forward(model, *state, torch.ones(1, 4), wait_for, density=0.5)
        return out

    def concurrently(model: nn.Module, other: nn.Module) -> tuple[Tensor, Tensor]:
        """The first call ends while the second is inside."""
        for event in (inside, overlapped):
            event.clear()
        done = threading.Event()
        with ThreadPoolExecutor() as pool:
            first = pool.submit(call, model, states[0], overlapped)
            assert inside.wait(60)
            inside.clear()
            second = pool.submit(call, other, states[1], done)
            assert inside.wait(60)
            overlapped.set()
            first.result()
            done.set()
            return first.result(), second.result()

    model = built(Slow, 0)
    own, states = (
        model.get_parameter("linear.weight"),
        [pemn.init(model, pemn.mp, seed=seed) for seed in (0, 1)],
    )
    overlapped.set()
    expected = [call(model, state, overlapped) for state in states]
    alone = concurrently(model, copy.deepcopy(model))
    assert all(torch.equal(a, b) for a, b in zip(alone, expected, strict=True))
    assert model.get_parameter("linear.weight") is own
    together = concurrently(model, model)
    assert not all(torch.equal(a, b) for a, b in zip(together, expected, strict=True))
    assert dict(model.named_parameters()).get("linear.weight") is not own


def test_weight_held_elsewhere() -> None:
    """A weight that forward takes from elsewhere than its module's attribute is not masked."""

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4, bias=False)
            self.weights = [self.linear.weight]

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weights[0].T

    model, x = built(Held, 0), torch.ones(1, 4)
    state = pemn.init(model, pemn.mp, seed=0)
    out = pemn.masked_forward(model, *state, x, density=0.5)
    assert torch.equal(out, model(x))
    assert state.scores["linear.weight"].grad is None


def test_buffers_that_forward_resizes() -> None:
    """A forward that resizes a buffer does so in the state: the next call says what to do."""

    class Observer(nn.Module):
        largest: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("largest", torch.zeros(0))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x)
            self.largest.resize_(3).copy_(out.detach().amax(0))
            return out

    model, x = built(Observer, 0), torch.ones(2, 4)
    state = pemn.init(model, pemn.mp, seed=0)
    pemn.masked_forward(model, *state, x, density=0.5)
    with pytest.raises(ValueError, match=r"call it once before init\): largest has shape \(3,\)"):
        pemn.masked_forward(model, *state, x, density=0.5)
    model(x)
    state = pemn.init(model, pemn.mp, seed=0)
    for _ in range(2):
        pemn.masked_forward(model, *state, x, density=0.5)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (lambda: nn.BatchNorm1d(3, momentum=None), "item"),
        (lambda: nn.Sequential(nn.Dropout(0.5)), "randomness"),
    ],
    ids=["batch-norm with momentum=None", "dropout without a randomness"],
)
def test_blocks_that_vmap_refuses(block: Callable[[], nn.Module], message: str) -> None:
    """These do not run under vmap in training, masked or not."""
    model = built(lambda: nn.Sequential(nn.Linear(3, 3), block()), 0)
    state = pemn.init(model, pemn.mp, seed=0)
    scores = {name: torch.stack([s, s]) for name, s in state.scores.items()}
    buffers = {name: torch.stack([b, b]) for name, b in state.buffers.items()}

    def run(scores: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
        x = torch.ones(4, 3)
        return pemn.masked_forward(
            model, state.weights, scores, state.rest, buffers, x, density=0.5
        )

    with pytest.raises(RuntimeError, match=message):
        vmap(run)(scores, buffers)
