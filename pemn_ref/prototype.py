"""The prototype: a small random vector that is drawn once and never trained."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral

import torch
from torch import Tensor

from pemn_ref.checks import Shapes, check_fraction, check_shapes


@dataclass(frozen=True)
class Strategy:
    """Which weights share a prototype, and how long it is (paper, section 3).

    Use :data:`mask`, :data:`one_layer`, :data:`mp` or :func:`rp`.

    Raises:
        ValueError: for an unknown name, a ratio outside (0, 1], or a ratio with anything but
            ``rp``.

    >>> [s.group("conv.weight", (8, 3, 5, 5)) for s in (mask, one_layer, mp, rp(0.1))]
    ['conv.weight', '8x3x5x5', 'all', 'all']
    """

    name: str
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("mask", "one_layer", "mp", "rp"):
            raise ValueError(f"strategy must be mask, one_layer, mp or rp, got {self.name!r}")
        check_fraction("ratio", self.ratio)
        if self.name != "rp" and self.ratio != 1:
            raise ValueError(f"only rp takes a ratio, got {self.ratio!r} for {self.name!r}")

    def group(self, name: str, shape: Sequence[int]) -> str:
        """The name of the prototype that fills the weight ``name`` of this ``shape``."""
        if self.name == "mask":
            return name
        if self.name == "one_layer":
            return "x".join(map(str, shape))
        return "all"


mask = Strategy("mask")
"""Every weight has its own random value: edge-popup, the paper's baseline."""
one_layer = Strategy("one_layer")
"""One prototype per weight shape: layers of equal shape hold equal values (paper, section 3)."""
mp = Strategy("mp")
"""Max-layer padding (paper, section 3): one vector, as long as the largest weight.

Smaller weights take its beginning.
"""


def rp(ratio: float) -> Strategy:
    """Random-vector padding: ``mp`` cut to ``ratio`` of its length, and tiled (paper, section 3).

    Raises:
        ValueError: if ``ratio`` lies outside (0, 1].

    >>> shapes = {"conv.weight": (8, 3, 5, 5), "fc.weight": (10, 8)}
    >>> len(make_prototype(shapes, rp(0.1), seed=0)["all"])
    61
    """
    return Strategy("rp", ratio)


def prototype_length(numel: int, ratio: float) -> int:
    """Values in a prototype: ``min(numel, floor(numel * ratio) + 1)`` (released code).

    ``numel`` is the number of elements of the largest weight to fill. The ratio is read as the
    decimal it was written as: binary floating point would sometimes lose a value.

    Raises:
        ValueError: if ``numel`` is not positive or ``ratio`` lies outside (0, 1].

    >>> prototype_length(262_144, 1e-3), prototype_length(1000, 0.29), prototype_length(7, 1)
    (263, 291, 7)
    """
    if numel < 1:
        raise ValueError(f"numel must be at least 1, got {numel!r}")
    check_fraction("ratio", ratio)
    return min(numel, math.floor(numel * Fraction(str(float(ratio)))) + 1)


def prototype_groups(shapes: Shapes, strategy: Strategy) -> dict[str, tuple[int, str]]:
    """Group name -> length of its prototype, and name of its giver.

    The giver is the group's largest weight, the first of several equal ones. It holds every value
    of the prototype.

    Raises:
        ValueError: if ``shapes`` is empty, a weight has no elements or ``strategy`` is not
            a Strategy.

    >>> prototype_groups({"a": (2, 3), "b": (10, 30)}, rp(0.1))
    {'all': (31, 'b')}
    """
    check_shapes(shapes)
    if not isinstance(strategy, Strategy):
        raise ValueError(f"strategy must be mask, one_layer, mp or rp(ratio), got {strategy!r}")
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    givers: dict[str, str] = {}
    for name, shape in shapes.items():
        group = strategy.group(name, shape)
        if group not in givers or numel[name] > numel[givers[group]]:
            givers[group] = name
    return {
        group: (prototype_length(numel[giver], strategy.ratio), giver)
        for group, giver in givers.items()
    }


def fan_in(shape: Sequence[int]) -> int:
    """``fan_in`` as torch counts it: all sizes but the first, even of a transposed convolution."""
    return math.prod(shape[1:])


def random_stream(name: str, seed: int) -> torch.Generator:
    """A separate generator for each named use of a seed (ours).

    If weights and scores shared one stream, they would correlate at r = -0.34 (measured). There
    are 2**32 streams: on the CPU, torch uses only 32 bits of a seed.

    Raises:
        ValueError: if ``seed`` is not an int.
    """
    if not isinstance(seed, Integral):  # numpy's too
        raise ValueError(f"seed must be an int, got {seed!r}")
    digest = hashlib.sha256(f"{name} {int(seed)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def make_prototype(shapes: Shapes, strategy: Strategy, *, seed: int) -> dict[str, Tensor]:
    """Draw the prototypes: Kaiming normal with gain sqrt(2) of the giver (released code).

    Returns group -> values of shape ``(length,)``, float32, without gradient, with standard
    deviation ``sqrt(2 / fan_in)``. They are on the CPU, since other devices draw other numbers. At
    the same seed ``rp(r)`` is a prefix of ``mp``. The global random state is not used or changed.

    Raises:
        ValueError: if ``shapes`` is empty, a weight has no elements, ``strategy`` is not a
            Strategy or ``seed`` is not an int.

    >>> shapes = {"conv.weight": (8, 3, 5, 5), "fc.weight": (10, 8)}
    >>> {group: len(values) for group, values in make_prototype(shapes, mp, seed=0).items()}
    {'all': 600}
    """
    generator = random_stream("prototype", seed)
    prototype = {}
    for group, (length, giver) in prototype_groups(shapes, strategy).items():
        # Draw all, then cut: a shorter draw is not the beginning of a longer one.
        shape = shapes[giver]
        numel = math.prod(shape)
        values = torch.randn(numel, generator=generator, dtype=torch.float32, device="cpu")
        prototype[group] = values[:length] * math.sqrt(2 / fan_in(shape))
    return prototype
