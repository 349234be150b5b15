"""What some seeds draw, as one digest: in this process, or in another that was told to.

``python -m spec_tests.elsewhere MODULE`` prints it, for clause P14.
"""

import hashlib
import importlib
import os
import subprocess
import sys

import torch

from spec_tests.draws import Drawn
from spec_tests.subject import judging, pemn, subject

SHAPES = {"b.weight": torch.Size([4, 3, 2]), "a.weight": torch.Size([5, 6])}
STRATEGIES = [Drawn(name) for name in ("mask", "one_layer", "mp")] + [Drawn("rp", 0.3)]


def digest() -> str:
    """Of all bits of weights and scores, by name."""
    bits = hashlib.sha256()
    for seed in (0, 7, 2**40 + 7):
        for strategy in STRATEGIES:
            prototype = pemn.make_prototype(SHAPES, strategy.value, seed=seed)
            weights = pemn.fill_weights(prototype, SHAPES, strategy.value)
            for tensors in (weights, pemn.init_scores(SHAPES, seed=seed)):
                for name in sorted(tensors):
                    bits.update(tensors[name].contiguous().numpy().tobytes())
    return bits.hexdigest()


def digest_elsewhere() -> str:
    """The same of a new process, where texts have other hashes and something was drawn before."""
    named = getattr(subject.implementation, "mistake", subject.implementation.__name__)
    others = {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    result = subprocess.run(
        [sys.executable, "-m", __name__, named],
        env={**os.environ, **others, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, f"another process cannot draw with {named}: {result.stderr}"
    return result.stdout.splitlines()[-1]  # behind what the module prints when it is imported


def main() -> None:
    """Draw something, then print the digest."""
    from spec_tests.gallery import GALLERY

    built = [m.build() for m in GALLERY if m.named == sys.argv[1]]
    with judging(built[0] if built else importlib.import_module(sys.argv[1])):
        torch.rand(3)
        pemn.make_prototype({"other.weight": (2, 2)}, pemn.mp, seed=1)
        print(digest())


if __name__ == "__main__":
    main()
