"""What is generated is current; the vectors of the core are right, and can be wrong."""

import copy
import json
from pathlib import Path

import pytest

from spec_tests.core_reader import wrong

CORE = Path(__file__).parent / "vectors" / "core.json"


def test_what_is_generated_is_current() -> None:
    pytest.importorskip("torchvision")  # one clause needs it
    from spec_tests.document import documented, key
    from spec_tests.gallery import GALLERY

    for path, content in documented().items():
        assert path.read_bytes() == content, f"{path.name}: run python -m spec_tests document"
    assert len({key(mistake) for mistake in GALLERY}) == len(GALLERY)


def test_core_vectors() -> None:
    vectors = json.loads(CORE.read_text(encoding="utf-8"))
    assert CORE.stat().st_size < 200_000
    assert wrong(vectors) == []
    for part in vectors.keys() - {"specification"}:
        changed = copy.deepcopy(vectors)
        first, *others = changed[part]
        expected = first["expected"]
        first["expected"] = next(v["expected"] for v in others if v["expected"] != expected)
        assert wrong(changed) == [f"{part} 0"]
