"""The core in numpy, from ``vectors/CORE.md`` alone, and which of the vectors it gets wrong."""

import math
from fractions import Fraction
from typing import Any

import numpy as np


def floats(dtype: str, words: str) -> Any:
    """Values from their bits; numpy has no bfloat16, which is the upper half of a float32."""
    bits = np.array([int(word, 16) for word in words.split()], f"<u{len(words.split()[0]) // 2}")
    return (bits.astype("<u4") << 16).view("<f4") if dtype == "bfloat16" else bits.view(dtype)


def prototype_length(numel: int, ratio: str) -> int:
    return min(numel, math.floor(numel * Fraction(ratio)) + 1)


def kept(numel: int, density: str) -> int:
    return max(1, math.ceil(numel * Fraction(round(Fraction(density) * 10**12), 10**12)))


def fill(strategy: str, ratio: str, shapes: list[list[int]]) -> Any:
    keys = [{"mask": i, "one_layer": str(s)}.get(strategy, "") for i, s in enumerate(shapes)]
    numel = dict(sorted(zip(keys, map(math.prod, shapes), strict=True), key=lambda pair: pair[1]))
    lengths = [prototype_length(numel[key], ratio) for key in dict.fromkeys(keys)]
    read = [[*dict.fromkeys(keys)].index(key) for key in keys]
    at = [[i % lengths[p] for i in range(math.prod(s))] for p, s in zip(read, shapes, strict=True)]
    return [lengths, [list(pair) for pair in zip(read, at, strict=True)]]


def mask(dtype: str, words: str, density: str) -> str:
    scores = floats(dtype, words)
    order = np.argsort(np.nan_to_num(np.abs(scores), nan=np.inf, posinf=np.inf), kind="stable")
    dropped = {*order[: len(scores) - kept(len(scores), density)].tolist()}
    return "".join("01"[i not in dropped] for i in range(len(scores)))


def gradient(dtype: str, *parts: str) -> Any:
    upstream, weight, scores = (floats(dtype, words) for words in parts)
    return (upstream * weight * np.where(np.isfinite(scores), np.sign(scores), 0)).tolist()


def storage(strategy: str, ratio: str, shapes: list[list[int]], others: int) -> list[Any]:
    weights = sum(map(math.prod, shapes))
    unique = len({(p, i) for p, index in fill(strategy, ratio, shapes)[1] for i in index})
    masked, dense = weights + 32 * unique, 32 * weights
    saved = [str(1 - Fraction(masked + o, dense + o)) for o in (0, others)]
    return [weights, unique, masked + others, dense + others, *saved]


def wrong(vectors: dict[str, Any]) -> list[str]:
    """The vectors that this module gets wrong, as part and number: none, if all is well."""
    found = []
    for part in (prototype_length, kept, fill, mask, gradient, storage):
        for number, vector in enumerate(vectors[part.__name__]):
            given, expected = vector["given"], vector["expected"]
            right = floats(given[0], expected).tolist() if part is gradient else expected
            found += [f"{part.__name__} {number}"] * (part(*given) != right)
    return found
