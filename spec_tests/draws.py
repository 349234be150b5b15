"""What the clauses draw: shape sets, ratios, densities, scores. And the profiles."""

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from spec_tests.subject import pemn

# No explanation of failures: with many of them it takes longer than all else.
settings.register_profile(
    "ci",
    max_examples=50,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
# For a run of the suite per mutant: few examples, none made smaller once one has failed, and no
# failure because the machine is slow.
settings.register_profile(
    "mutation",
    settings.get_profile("ci"),
    max_examples=20,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
# For implementations that compile anew for each shape; what is drawn then is in ``or_fixed``.
settings.register_profile(
    "fixed",
    settings.get_profile("ci"),
    max_examples=10,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("random", max_examples=50, deadline=None, print_blob=True)
settings.register_profile("thorough", max_examples=500, deadline=None, print_blob=True)


Some = TypeVar("Some")


def few() -> settings:
    """A tenth of the profile's examples, for properties that build whole networks."""
    profile = settings.default
    assert profile is not None
    return settings(max_examples=profile.max_examples // 10)


def or_fixed(
    strategy: st.SearchStrategy[Some], fixed: st.SearchStrategy[Some]
) -> st.SearchStrategy[Some]:
    """What the first strategy draws, but in the profile ``fixed`` the second, of a few sizes."""
    return st.none().flatmap(
        lambda _: fixed if settings.get_current_profile_name() == "fixed" else strategy
    )


Shapes = dict[str, torch.Size]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
seeds = st.integers(0, 2**63 - 1)
dtypes = st.sampled_from(DTYPES)

# As people write them: a few decimals; and any float, which is also a decimal.
fractions = st.one_of(
    st.sampled_from([1.0, 0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 0.29, 0.07, 0.57]),
    st.integers(1, 999).map(lambda k: k / 1000),
    st.floats(1e-6, 1.0),
)

shape = or_fixed(
    st.lists(st.integers(1, 7), min_size=2, max_size=4).map(torch.Size),
    st.sampled_from([torch.Size(sizes) for sizes in ((4, 5), (5, 4), (3, 2, 2, 2))]),
)
shape_sets = st.lists(shape, min_size=1, max_size=6).map(
    lambda drawn: {f"layer{i}.weight": shape for i, shape in enumerate(drawn)}
)


@st.composite
def repeated_shape_sets(draw: st.DrawFn) -> Shapes:
    """Shape sets in which shapes come twice, also transposed: equal numel, another shape."""
    drawn = draw(st.lists(shape, min_size=1, max_size=3))
    again = draw(st.lists(st.sampled_from(drawn), max_size=3))
    turned = [torch.Size(reversed(shape)) for shape in draw(st.permutations(drawn))]
    return {f"layer{i}.weight": shape for i, shape in enumerate(drawn + again + turned)}


class Drawn(NamedTuple):
    """A strategy by its name and ratio, independent of the implementation that is judged."""

    name: str
    ratio: float = 1.0

    @property
    def value(self) -> Any:
        """The implementation's value for it."""
        return pemn.rp(self.ratio) if self.name == "rp" else getattr(pemn, self.name)


@st.composite
def strategies(draw: st.DrawFn) -> Drawn:
    """Any strategy, rp with any ratio."""
    name = draw(st.sampled_from(["mask", "one_layer", "mp", "rp"]))
    return Drawn(name, draw(fractions)) if name == "rp" else Drawn(name)


def reshaped(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """The values in the most square two-dimensional shape that holds them all."""
    rows = next(r for r in range(math.isqrt(len(values)), 0, -1) if len(values) % r == 0)
    return torch.tensor(values, dtype=dtype).reshape(rows, -1)


# Few distinct values, so that ties are the rule; the special ones of every width.
tied_values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0])
special_values = st.sampled_from(
    [math.inf, -math.inf, math.nan, 0.0, -0.0, 5.9e-8, -5.9e-8, 65504.0, -65504.0, 1.0, -1.0]
)
# Short and long significands: only the long ones show a mask that is not exact.
plain_values = st.one_of(st.floats(-100, 100, width=16), st.floats(-1, 1))


@st.composite
def score_tensors(
    draw: st.DrawFn, values: st.SearchStrategy[float] = plain_values, max_size: int = 40
) -> Tensor:
    """A two-dimensional tensor of scores in one of the floating dtypes."""
    any_number = st.lists(values, min_size=1, max_size=max_size)
    drawn = draw(or_fixed(any_number, st.lists(values, min_size=12, max_size=12)))
    return reshaped(drawn, draw(dtypes))


def random_scores(size: Sequence[int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal scores of a shape, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(size), generator=generator, dtype=torch.float64).to(dtype)


def random_states() -> list[Any]:
    """The global random states of torch, numpy and Python, comparable with ``==``."""
    numpys: Any = np.random.get_state(legacy=False)
    numpys = {**numpys["state"], "key": numpys["state"]["key"].tolist()}
    return [torch.get_rng_state().tolist(), numpys, random.getstate()]
