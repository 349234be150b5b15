"""What some seeds draw, as one digest: in this process, or in another that was told to.

``python -m spec_tests.elsewhere MODULE FILE`` writes it into the file, for clause P14: whatever the
module prints, it is not mixed up with that.
"""

import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

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
    with TemporaryDirectory() as folder:
        file = Path(folder) / "digest"
        result = subprocess.run(
            [sys.executable, "-m", __name__, named, str(file)],
            env={**os.environ, **others, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        assert file.exists(), f"another process cannot draw with {named}: {result.stderr}"
        return file.read_text(encoding="utf-8")


def main() -> None:
    """Draw something, then write the digest."""
    from spec_tests.gallery import GALLERY

    built = [m.build() for m in GALLERY if m.named == sys.argv[1]]
    with judging(built[0] if built else importlib.import_module(sys.argv[1])):
        torch.rand(3)
        pemn.make_prototype({"other.weight": (2, 2)}, pemn.mp, seed=1)
        Path(sys.argv[2]).write_text(digest(), encoding="utf-8")


if __name__ == "__main__":
    main()
