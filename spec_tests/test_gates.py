"""Gated mistakes: what is read from a call, where a mistake is wrong, what is counted."""

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pemn_ref as pemn
from spec_tests import gates
from spec_tests.gallery import GALLERY

(RELEASED,) = (m for m in GALLERY if m.text.startswith("the released count"))
TOLD, HOLE = (RELEASED.named, "numel > 10,000"), (RELEASED.named, "seed >= 2**16")


def call(**arguments: Any) -> gates.Call:
    return gates.Call(arguments, gates.Seen())


def test_what_a_call_tells() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    state = pemn.init(model, pemn.rp(0.005), seed=2**40)
    state.scores["2.weight"].data.fill_(-0.5)
    whole = call(model=model, state=state, density=1.0, strategy=pemn.rp(0.005), seed=2**40)
    held = {text for text, gate in gates.GATES.items() if gate.ask(whole)}
    assert held >= {"evaluation", "density 1", "ratio < 0.01", "strategy rp", "seed >= 2**32"}
    assert held >= {"float64", "4 dimensions", "depthwise: one channel in", "scores all equal"}
    assert not held & {"training", "no rest", "3 dimensions", "density < 0.01", "odd seed", "vmap"}
    silent = {text for text, gate in gates.GATES.items() if gate.ask(whole) is None}
    assert silent >= {"batch of one", "several inputs or keywords"}
    alone = call(scores=torch.zeros(3, 5), density=0.5)
    assert gates.GATES["odd numel"].ask(alone)
    assert gates.GATES["the only layer"].ask(alone) is None


def test_a_mistake_of_layers_is_wrong_in_those_alone() -> None:
    def wrong(weights: Any, scores: Any, *, density: float) -> Any:
        return {name: torch.full_like(weight, 7) for name, weight in weights.items()}

    told: Counter[str] = Counter()
    gate = gates.GATES["numel < 10"]
    behind = gates.gated(pemn.apply_mask, wrong, gate, "apply_mask", told)
    weights = {"small": torch.ones(2, 2), "large": torch.ones(4, 4)}
    masked = behind(weights, weights, density=1.0)
    assert masked["small"].eq(7).all()
    assert masked["large"].eq(1).all()
    large = {"large": weights["large"]}
    assert behind(large, large, density=1.0)["large"].eq(1).all()
    assert told["held"] == 1


def test_one_pair_for_each_function_and_gate() -> None:
    (other,) = (m for m in GALLERY if m.text.startswith("density read as"))  # of kept, too
    (prototype,) = (m for m in GALLERY if m.text.startswith("gain 1"))
    asked = [TOLD, (other.named, TOLD[1]), (prototype.named, TOLD[1]), (other.named, HOLE[1])]
    assert gates.one_a_cell(asked) == [asked[0], asked[2], asked[3]]


def test_summary() -> None:
    alike = f"{RELEASED.named} | density 1"
    assert gates.reason_of(alike) == "all weights are kept"
    assert gates.reason_of(f"{RELEASED.named} | density != 0.5") is None
    page = gates.summary(9, {" | ".join(TOLD): "M1", " | ".join(HOLE): "", alike: ""})
    assert "| of the others caught | 1 of 2 (50.0 %) |" in page
    assert f"**all weights are kept** (1)\n\n- {alike}\n" in page
    assert f"**No reason: a hole** (1)\n\n- {' | '.join(HOLE)}\n" in page


def test_every_reason_is_of_mistakes_and_gates_that_there_are() -> None:
    for alike in gates.ALIKE:
        for pattern in alike.mistakes:
            assert any(fnmatchcase(m.named, pattern) for m in gates.mistakes()), pattern
        for pattern in alike.gates:
            assert any(fnmatchcase(gate, pattern) for gate in gates.GATES), pattern


@pytest.mark.parametrize(("recorded", "code"), [(True, 0), (False, 1)])
def test_a_sample_fails_where_a_survivor_is_not_recorded(
    recorded: bool, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gates, "table", dict)
    monkeypatch.setattr(gates, "pairs", lambda cells: {TOLD: ["M1"], HOLE: ["M1"]})
    monkeypatch.setattr(gates, "MEASURED", tmp_path / "gates.json")
    monkeypatch.setattr(gates, "SUMMARY", tmp_path / "GATES.md")
    name = " | ".join(HOLE)
    gates.MEASURED.write_text(f'{{"{name}": "{"" if recorded else "M1"}"}}', encoding="utf-8")
    assert gates.gates(everything=True, sample=2) == code
    assert not gates.SUMMARY.exists()
