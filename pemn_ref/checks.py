"""One clear ValueError for each kind of bad input, naming the value and what would be right."""

from collections.abc import Collection, Mapping, Sequence
from numbers import Real

from torch import Tensor, nn

Shapes = Mapping[str, Sequence[int]]
"""Name of each maskable weight -> its shape, in the order of ``model.named_parameters()``."""
Tensors = Mapping[str, Tensor]
"""Tensors by name: of a parameter or buffer of the model, or of a prototype."""


Density = float | Mapping[str, float]
"""The fraction of weights kept, in (0, 1]: one for every layer, or one for each by name."""


def each_density(density: Density, names: Collection[str]) -> dict[str, float]:
    """Name of each layer -> its density.

    Raises:
        ValueError: if a value lies outside (0, 1], or a mapping does not have exactly these names.
    """
    if not isinstance(density, Mapping):
        density = dict.fromkeys(names, density)
    for name in sorted({*names} ^ {*density}, key=str):
        found = "is missing" if name in names else "is not masked"
        raise ValueError(f"density must have one value for each masked weight: {name} {found}")
    for value in density.values():
        check_fraction("density", value)
    return {name: density[name] for name in names}


def check_fraction(what: str, value: float) -> None:
    """A density or a ratio lies in (0, 1]."""
    # NaN fails, too, and a fraction so small that it is 0 as a float.
    if not (isinstance(value, Real) and 0 < value <= 1 and float(value) > 0):
        raise ValueError(f"{what} must be a number in (0, 1], got {value!r}")


def check_shapes(shapes: Shapes) -> None:
    """There is something to mask, and every layer has weights."""
    if not shapes:
        raise ValueError("nothing to mask: there is no convolution, linear or attention weight")
    for name, shape in shapes.items():
        if any(size < 1 for size in shape):
            raise ValueError(f"{name} of shape {tuple(shape)} is empty: every layer needs a weight")


def check_same(what: str, got: Tensors, want: Tensors) -> None:
    """``got`` has the names and shapes of ``want``; the message names the first difference."""
    for name, tensor in want.items():
        if name not in got:
            raise ValueError(f"{what}: {name} is missing")
        if got[name].shape != tensor.shape:
            raise ValueError(
                f"{what}: {name} has shape {tuple(got[name].shape)}, not {tuple(tensor.shape)}"
            )
    for name in got:
        if name not in want:
            raise ValueError(f"{what}: {name} is not expected")


def check_model(model: nn.Module, weights: Tensors, rest: Tensors, buffers: Tensors) -> None:
    """A state has all tensors of ``model``: where one is missing functional_call uses its own."""
    for name in weights:
        if name in rest:  # which would run in place of the masked weight
            raise ValueError(f"{name} is in both weights and rest: it belongs in one of them")
    parameters = {**weights, **rest}
    check_same("the state does not fit the model", parameters, dict(model.named_parameters()))
    check_same(
        "the buffers do not fit the model (if its forward resizes them, call it once before init)",
        buffers,
        dict(model.named_buffers()),
    )


def check_finite(scores: Tensors) -> None:
    """No score is infinite or NaN."""
    for name, values in scores.items():
        if bad := int((~values.isfinite()).sum()):
            raise ValueError(f"{name}: {bad} of {values.numel()} scores are not finite")
