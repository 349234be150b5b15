"""Makes ``vectors/core.json`` from the oracle: the core for whoever does not use Python.

``python -m spec_tests document`` writes it. No random stream has a part in it, so that it is the
same everywhere.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from spec_tests import oracle
from spec_tests.clauses import SPECIFICATION

DENSITIES = [1.0, 0.5, 0.1, 0.01, 1e-3, 1e-5, 1e-9, 0.29, 0.07, 0.57, 0.3, 0.9, 0.33, 0.14, 1 / 3]
SIZES = [1, 2, 3, 7, 10, 50, 90, 100, 1000, 9409, 10_000, 65_536, 16_777_217, 2**31 + 1]
SHAPES: list[list[tuple[int, ...]]] = [
    [(1, 1)],
    [(4, 5)],
    [(3, 4), (2, 5), (4, 3), (3, 4)],
    [(2, 3, 2, 2), (5, 4), (4, 3, 2), (3, 2, 2, 2), (5, 4)],
    [(2, 9), (9, 2), (3, 6), (18, 1)],
]
STRATEGIES = [("mask", 1.0), ("one_layer", 1.0), ("mp", 1.0)]
STRATEGIES += [("rp", ratio) for ratio in (1.0, 0.57, 0.3, 0.1, 1e-5)]
WORDS = {"float16": torch.int16, "bfloat16": torch.int16, "float32": torch.int32}
WORDS |= {"float64": torch.int64}

PLAIN = [0.3, -0.1, 2.5, -7.0, 0.017, 1.25, -0.6, 33.0, -0.004, 12.0, 0.09, -1.75]
TIED = [0.5, -0.5, 1.0, 0.0, -0.0, 0.5, -1.0, 2.0, 1.0, -2.0, 0.5, 0.0, -0.5]
SPECIAL = [math.nan, 1.0, math.inf, -math.inf, 0.0, -math.nan, -65504.0, 65472.0, -1.0, -0.0]
MASKED = [
    ("M3", "float32", PLAIN),
    ("M3", "float16", PLAIN),
    ("M3", "bfloat16", PLAIN),
    ("M3", "float64", [*PLAIN, 1 / 3, -(1 / 3 + 2**-54)]),
    ("M4", "float32", TIED),
    ("M4", "bfloat16", TIED),
    ("M4", "float32", 7 * [0.0]),
    ("M5", "float32", SPECIAL),
    ("M5", "float16", SPECIAL),
    ("M5", "bfloat16", SPECIAL),
    ("M5", "float64", [*SPECIAL, 1.7e308, -1.6e308]),
]
MANY = [("bfloat16", 300 * [1.0]), ("float16", 2100 * [-1.0])]  # more ties than the dtype counts
SUBNORMAL = [("float16", 6e-8), ("bfloat16", 1e-40), ("float32", 1.4e-45), ("float64", 5e-324)]


def vector(clause: str, given: list[Any], expected: Any) -> dict[str, Any]:
    """An input, what must come out, and the clauses that say so."""
    return {"clause": clause, "given": given, "expected": expected}


def bits(values: Sequence[float], dtype: str) -> str:
    """The bits of each value in the dtype, as hexadecimal words."""
    tensor = torch.tensor(values, dtype=torch.float64).to(getattr(torch, dtype))
    width = 8 * tensor.element_size()
    return " ".join(
        f"{word % 2**width:0{width // 4}x}" for word in tensor.view(WORDS[dtype]).tolist()
    )


def masks() -> Iterator[dict[str, Any]]:
    """Scores in each dtype, ties and special values among them, and which are kept."""
    cases = [(*case, density) for case in MASKED for density in (1.0, 0.5, 0.1, 0.29, 0.57, 0.9)]
    cases += [("M4", dtype, values, 0.1) for dtype, values in MANY]
    for clause, dtype, values, density in cases:
        yield masked(clause, dtype, values, density)
    for dtype, least in SUBNORMAL:
        values = [least, 2 * least, -3 * least, 0.0, 1.0]
        zeros = masked("M5", dtype, [0.0, 0.0, 0.0, 0.0, 1.0], 0.5)
        yield {**masked("M5", dtype, values, 0.5), "flushed": zeros["expected"]}


def masked(clause: str, dtype: str, values: Sequence[float], density: float) -> dict[str, Any]:
    """A vector of a mask."""
    scores = torch.tensor(values, dtype=torch.float64).to(getattr(torch, dtype))
    kept = oracle.mask(scores.double().numpy(), density).astype(int).tolist()
    given = [dtype, bits(values, dtype), repr(density)]
    return vector(clause, given, "".join(map(str, kept)))


def gradients() -> Iterator[dict[str, Any]]:
    """Gradients of the scores; all products are exact, so that their order does not matter."""
    upstream = [1.0, -2.0, 0.5, 3.0, -0.25, 0.0, 7.0, -1.5]
    weight = [0.5, 1.5, -2.0, 0.75, -1.0]
    for clause, values in (("G1", PLAIN), ("G3", SPECIAL), ("G3", TIED)):
        size = len(values)
        parts = [list(islice(cycle(part), size)) for part in (upstream, weight)]
        for dtype in WORDS:
            scores = torch.tensor(values, dtype=torch.float64).to(getattr(torch, dtype)).double()
            of_weight, weights = map(np.array, parts)
            expected = oracle.score_gradient(of_weight, weights, scores.numpy()) + 0.0
            given = [dtype, *(bits(part, dtype) for part in (*parts, values))]
            yield vector(clause, given, bits(expected.tolist(), dtype))


def fills() -> Iterator[dict[str, Any]]:
    """Which prototype each weight reads, and where."""
    for listed in SHAPES:
        shapes = {str(i): shape for i, shape in enumerate(listed)}
        for strategy, ratio in STRATEGIES:
            groups = [*oracle.groups(shapes, strategy).values()]
            lengths = [
                oracle.prototype_length(max(math.prod(shapes[name]) for name in names), ratio)
                for names in groups
            ]
            read = [next(p for p, names in enumerate(groups) if name in names) for name in shapes]
            index = [
                oracle.fill(range(lengths[p]), shape).astype(int).ravel().tolist()
                for p, shape in zip(read, listed, strict=True)
            ]
            weights = [[p, at] for p, at in zip(read, index, strict=True)]
            yield vector("F1 F2 F4", [strategy, repr(ratio), listed], [lengths, weights])


def costs() -> Iterator[dict[str, Any]]:
    """What a network costs to store, beside other tensors of so many bits."""
    from spec_tests.test_storage import PAPER  # which registers clauses

    networks = [(listed, others, STRATEGIES) for listed in SHAPES for others in (0, 1000)]
    plotted = [("mp", 1.0), ("rp", 0.1)]
    networks += [([*PAPER[i][0].values()], 0, plotted) for i in (0, 2)]
    for listed, others, strategies in networks:
        shapes = {str(i): shape for i, shape in enumerate(listed)}
        weights = sum(map(math.prod, listed))
        for strategy, ratio in strategies:
            unique = oracle.unique_values(shapes, strategy, ratio)
            masked, dense = weights + 32 * unique, 32 * weights
            paper = 1 - Fraction(masked, dense)
            whole = 1 - Fraction(masked + others, dense + others)
            sizes = [weights, unique, masked + others, dense + others]
            given = [strategy, repr(ratio), listed, others]
            yield vector("S1 S2 S4", given, [*sizes, str(paper), str(whole)])


def core() -> bytes:
    """All of it, a line a vector."""
    pairs = [(n, fraction) for n in SIZES for fraction in DENSITIES]
    parts: dict[str, Iterable[dict[str, Any]]] = {
        "prototype_length": [
            vector("P1", [n, repr(ratio)], oracle.prototype_length(n, ratio)) for n, ratio in pairs
        ],
        "kept": [vector("M1", [n, repr(density)], oracle.kept(n, density)) for n, density in pairs],
        "fill": fills(),
        "mask": masks(),
        "gradient": gradients(),
        "storage": costs(),
    }
    compact = json.JSONEncoder(separators=(",", ":")).encode
    text = ",\n".join(
        f'"{part}": [\n' + ",\n".join(map(compact, vectors)) + "\n]"
        for part, vectors in parts.items()
    )
    return f'{{"specification": "{SPECIFICATION}",\n{text}\n}}\n'.encode()
