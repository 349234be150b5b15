"""What the README shows is what happens: its example, its table of strategies, its picture."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pemn_ref as pemn
from reproduce.drawing import draw_algorithm
from reproduce.models.convmixer import ConvMixer

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="installed without the README")


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_example_trains_and_materialises() -> None:
    (example,) = python_blocks()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    names: dict[str, Any] = {"batches": [(images, torch.tensor([0, 1, 2, 3]))] * 2}
    exec(example, names)
    model, state = names["model"], names["state"]
    assert sum(bool((s.grad != 0).any()) for s in state.scores.values()) == len(state.scores)
    model.eval()
    masked = pemn.masked_forward(model, *state, images, density=0.5)
    torch.testing.assert_close(model(images), masked)


def test_table_of_strategies() -> None:
    with torch.device("meta"):
        model = ConvMixer(depth=6, width=256, patch=2, kernel=5, channels=3, classes=10)
    shapes = pemn.maskable_shapes(model)
    line = r"^\| `(pemn\.\S+)` \|[^|]*\| ([\d,]+) \| (-?[\d.]+) % \|$"
    rows = re.findall(line, README.read_text(), flags=re.MULTILINE)
    assert len(rows) == 7
    for strategy, unique, percent in rows:
        cost = pemn.storage(shapes, eval(strategy))
        assert int(unique.replace(",", "")) == cost.unique
        assert abs(float(percent) - 100 * cost.paper) <= 0.0051


def test_drawing_shows_all_four_steps(tmp_path: Path) -> None:
    picture = tmp_path / "algorithm.svg"
    draw_algorithm(picture)
    text = picture.read_text()
    # Three prototype rows would hide it if a step drew nothing: 13 + 3 * 288 cells are drawn.
    assert text.count("<path") > 13 + 3 * 288
