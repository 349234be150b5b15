"""The contract: what an implementation offers under which names.

An implementation is a module, or anything with these attributes. ``shapes`` maps the name of each
maskable weight, as ``model.named_parameters()`` gives it, to its shape, in that order. Tensors are
keyed by the same names. ``SPEC.md`` says what must hold of them.

A name that is missing fails the clauses that need it, and no others. The names of the compressed
file may be in a submodule or package ``file``, which is imported when they are needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Shapes = Mapping[str, Sequence[int]]
Tensors = Mapping[str, Tensor]
Density = float | Mapping[str, float]
"""Of all layers, or of each by name."""


class Storage(Protocol):
    """What a masked network costs. Compressions are fractions saved of the dense size."""

    @property
    def weights(self) -> int:
        """N: maskable weights."""

    @property
    def unique(self) -> int:
        """U: distinct values by index, over all prototypes."""

    @property
    def paper(self) -> float:
        """1 - (N + 32 U) / (32 N)."""

    @property
    def whole(self) -> float | None:
        """1 - bits / dense_bits; None where the other tensors were not given."""

    @property
    def bits(self) -> int:
        """N + 32 U + the bits of all other tensors, 0 where they were not given."""

    @property
    def dense_bits(self) -> int:
        """32 N + the bits of all other tensors, 0 where they were not given."""


class State(Protocol):
    """The tensors of a masked network; iterates over its four parts in this order."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Filled, frozen."""

    @property
    def scores(self) -> dict[str, Tensor]:
        """One per weight, leaves that want gradients."""

    @property
    def rest(self) -> dict[str, Tensor]:
        """All parameters that are not maskable."""

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The model's, persistent or not."""

    def __iter__(self) -> Any: ...
    def _replace(self, **parts: Any) -> Any: ...


class Implementation(Protocol):
    """The functions and values of an implementation."""

    @property
    def mask(self) -> Any:
        """The strategy in which every weight has a value of its own."""

    @property
    def one_layer(self) -> Any:
        """The strategy with one prototype per weight shape."""

    @property
    def mp(self) -> Any:
        """The strategy with one prototype as long as the largest weight."""

    def rp(self, ratio: float, /) -> Any:
        """The strategy with ``ratio`` times that length. ValueError outside (0, 1]."""

    def Strategy(self, name: str, ratio: float = 1.0, /) -> Any:  # noqa: N802  a class, there
        """A strategy by name. ValueError for an unknown name, or a ratio where none belongs."""

    def prototype_length(self, numel: int, ratio: float, /) -> int:
        """Values in the prototype for a largest weight of ``numel``. ValueError as above."""

    def make_prototype(self, shapes: Shapes, strategy: Any, /, *, seed: int) -> dict[str, Tensor]:
        """Group -> 1-D float32 CPU tensor; the names of groups are the implementation's own.

        Every seed from 0 to 2**63 is taken, and at least its lower 32 bits count.

        ValueError for no shapes, an empty weight, a seed that is not an int.
        """

    def fill_weights(
        self, prototype: Tensors, shapes: Shapes, strategy: Any, /
    ) -> dict[str, Tensor]:
        """Name -> filled weight in the prototype's dtype, without gradient. ValueError as above.

        Each weight has memory of its own.
        """

    def init_scores(self, shapes: Shapes, /, *, seed: int) -> dict[str, Tensor]:
        """Name -> float32 CPU scores. ValueError as above."""

    def kept(self, numel: int, density: float, /) -> int:
        """Weights kept of ``numel``. ValueError for a density outside (0, 1]."""

    def score_mask(self, scores: Tensor, /, *, density: float) -> Tensor:
        """One layer's mask, in the dtype of the scores, straight-through. ValueError as above.

        Exactly 0.0 or 1.0; no negative zero.
        """

    def apply_mask(
        self, weights: Tensors, scores: Tensors, /, *, density: Density
    ) -> dict[str, Tensor]:
        """Name -> weight times mask, in the dtype of the weight. ValueError as above."""

    def maskable_shapes(self, model: nn.Module, /) -> dict[str, torch.Size]:
        """The shapes of a model. ValueError where a maskable weight is lazy or computed."""

    def masked_forward(
        self,
        model: nn.Module,
        weights: Tensors,
        scores: Tensors,
        rest: Tensors,
        buffers: Tensors,
        /,
        *inputs: Any,
        density: Density,
        **kwargs: Any,
    ) -> Any:
        """The model's output. ValueError where names or shapes are not the model's.

        Afterwards the model holds the same tensors as before, under each of their names.
        """

    def init(
        self, model: nn.Module, strategy: Any, /, *, seed: int, shapes: Shapes | None = None
    ) -> Any:
        """A ``State`` on the device and in the dtype of the model. ValueError as above.

        ``shapes``, a part of ``maskable_shapes``, says which weights are masked; by default all.
        """

    def materialize(self, model: nn.Module, state: Any, /, *, density: Density) -> dict[str, Any]:
        """The dense ``state_dict``. ValueError for another model's state or non-finite scores."""

    def save(
        self,
        path: Path,
        model: nn.Module,
        state: Any,
        strategy: Any,
        /,
        *,
        density: Density,
        tag: str = "",
        half: bool = False,
    ) -> None:
        """Write a file. ValueError for a state that is not the model's or the strategy's."""

    def load(self, path: Path, model: nn.Module, /) -> tuple[Any, Any]:
        """A ``State`` and an ``Info``. ValueError for a file that is not right or the model's."""

    def load_dense(self, path: Path, /) -> dict[str, Tensor]:
        """The dense ``state_dict``, on the CPU. ValueError for a file that is not right."""

    def inspect(self, path: Path, /) -> Any:
        """The ``Info``: strategy, density, shapes, prototype, rest, buffers, tied, tag."""

    def storage(
        self, shapes: Shapes, strategy: Any, others: Iterable[Tensor] | None = None, /
    ) -> Storage:
        """What it costs; ``others`` are the tensors of rest and persistent buffers, read once."""
