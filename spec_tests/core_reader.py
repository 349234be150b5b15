"""The core in numpy, from ``vectors/CORE.md`` alone, and which of the vectors it gets wrong."""

import math
from fractions import Fraction
from typing import Any

import numpy as np

BITS = {"float16": "<u2", "bfloat16": "<u2", "float32": "<u4", "float64": "<u8"}


def floats(dtype: str, words: str) -> Any:
    """Values from their bits; numpy has no bfloat16, which is the upper half of a float32."""
    bits = np.array([int(word, 16) for word in words.split()], BITS[dtype])
    return (bits.astype("<u4") << 16).view("<f4") if dtype == "bfloat16" else bits.view(dtype)


def prototype_length(numel: int, ratio: str) -> int:
    return min(numel, math.floor(numel * Fraction(ratio)) + 1)


def kept(numel: int, density: str) -> int:
    return max(1, math.ceil(numel * Fraction(round(Fraction(density) * 10**12), 10**12)))


def fill(strategy: str, ratio: str, shapes: list[list[int]]) -> Any:
    """Lengths of the prototypes, and for each weight its prototype and the indices into it."""
    keys = [{"mask": i, "one_layer": tuple(s)}.get(strategy, "all") for i, s in enumerate(shapes)]
    numel = [math.prod(shape) for shape in shapes]
    largest = {key: max(n for k, n in zip(keys, numel, strict=True) if k == key) for key in keys}
    lengths = {key: prototype_length(n, ratio) for key, n in largest.items()}
    at = [(np.arange(n) % lengths[k]).tolist() for k, n in zip(keys, numel, strict=True)]
    return [[*lengths.values()], [[[*lengths].index(k), i] for k, i in zip(keys, at, strict=True)]]


def mask(dtype: str, words: str, density: str) -> str:
    scores = floats(dtype, words)
    order = np.argsort(np.nan_to_num(np.abs(scores), nan=np.inf, posinf=np.inf), kind="stable")
    bits = np.ones(len(scores), int)
    bits[order[: len(scores) - kept(len(scores), density)]] = 0
    return "".join(map(str, bits))


def storage(strategy: str, ratio: str, shapes: list[list[int]], others: int) -> list[Any]:
    weights = sum(map(math.prod, shapes))
    unique = len({(p, i) for p, index in fill(strategy, ratio, shapes)[1] for i in index})
    masked, dense = weights + 32 * unique, 32 * weights
    whole = 1 - Fraction(masked + others, dense + others)
    sizes = [weights, unique, masked + others, dense + others]
    return [*sizes, str(1 - Fraction(masked, dense)), str(whole)]


def gradient(dtype: str, *parts: str) -> str:
    upstream, weight, scores = (floats(dtype, words) for words in parts)
    signs = np.where(np.isfinite(scores), np.sign(scores), 0)
    product = (upstream * weight * signs + 0).astype(scores.dtype)  # no negative zero
    bits = product.view("<u4") >> 16 if dtype == "bfloat16" else product.view(BITS[dtype])
    return " ".join(f"{word:0{2 * int(BITS[dtype][-1])}x}" for word in bits)


def wrong(vectors: dict[str, Any]) -> list[str]:
    """The vectors that this module gets wrong, as part and number: none, if all is well."""
    return [
        f"{part.__name__} {number}"
        for part in (prototype_length, kept, fill, mask, gradient, storage)
        for number, vector in enumerate(vectors[part.__name__])
        if part(*vector["given"]) != vector["expected"]
    ]
