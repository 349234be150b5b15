"""Known limits of a functional call, pinned: no clauses, but facts that the documentation states.

One that goes red says that torch has lifted the limit, and the documentation may drop it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
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
