"""What is generated is current; the vectors of the core can be wrong; a profile has few shapes."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from torch import Tensor

from spec_tests import draws
from spec_tests.core_reader import wrong

CORE = Path(__file__).parent / "vectors" / "core.json"


def test_what_is_generated_is_current() -> None:
    pytest.importorskip("torchvision")  # one clause needs it
    from spec_tests.document import documented
    from spec_tests.gallery import GALLERY

    for path, content in documented().items():
        assert path.read_bytes() == content, f"{path.name}: run python -m spec_tests document"
    assert len({mistake.named for mistake in GALLERY}) == len(GALLERY)


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


@pytest.mark.parametrize(("profile", "most"), [("fixed", 4), ("ci", 200)])
def test_profile_of_few_shapes(profile: str, most: int) -> None:
    before, seen = settings.get_current_profile_name(), set()
    settings.load_profile(profile)
    try:

        @settings(settings.get_profile(profile), max_examples=100)
        @given(draws.shape, draws.score_tensors())
        def look(shape: tuple[int, ...], scores: Tensor) -> None:
            seen.update({shape, scores.shape})

        look()
    finally:
        settings.load_profile(before)
    assert most // 10 < len(seen) <= most
