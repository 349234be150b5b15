"""The walk-through runs from start to end, and these are the answers to its exercises."""

import math
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from torch import Tensor

import pemn_ref as pemn
from reproduce.models.convmixer import ConvMixer

DOCUMENT = Path(__file__).parents[2] / "tour" / "walkthrough.py"
PICTURES = (
    *("1-digits", "2-prototype", "3-filled", "4-scores-and-mask", "5-training"),
    *("6-filters", "6-masks", "7-counting", "7-density", "8-unique-values", "9-bytes"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the document runs."""
    return tmp_path_factory.mktemp("walkthrough")


@pytest.fixture(scope="module")
def walk(folder: Path) -> Iterator[dict[str, Any]]:
    """All that has a name in the document, after it has run."""
    mpl.use("agg")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.chdir(folder)
        names = runpy.run_module("reproduce.tour.walkthrough", run_name="__main__")
    yield names
    plt.close("all")
    torch.set_num_threads(threads)


def mask_bits(scores: dict[str, Tensor]) -> Tensor:
    """All masks of a network, one after the other."""
    layers = [pemn.score_mask(layer.detach(), density=0.5) for layer in scores.values()]
    return torch.cat([layer.flatten() for layer in layers]).bool()


@pytest.mark.usefixtures("walk")
def test_pictures_are_all_there_and_none_is_cut(folder: Path) -> None:
    files = sorted((folder / "runs/walkthrough").glob("*.png"))
    assert [file.stem for file in files] == [*PICTURES]
    for file in files:
        pixels = torch.from_numpy(plt.imread(file))[:, :, :3]
        border = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        assert torch.cat(border).min() == 1, f"{file.stem} has ink at its edge"
        assert pixels.min() < 0.5


def test_model_stays_as_it_is(walk: dict[str, Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        new = ConvMixer(depth=2, width=32, patch=2, kernel=5, channels=1, classes=10)
    tensors = walk["model"].state_dict()
    assert all(torch.equal(tensors[name], value) for name, value in new.state_dict().items())


def test_dense_and_loaded_networks_are_the_trained_one(walk: dict[str, Any]) -> None:
    images, model = walk["held_out"].pixels, walk["model"]
    logits = pemn.masked_forward(model.eval(), *walk["state"], images, density=0.5)
    again = pemn.masked_forward(model, *walk["again"], images, density=0.5)
    assert torch.equal(again, logits)
    torch.testing.assert_close(walk["ordinary"].eval()(images), logits)


def test_parts_of_the_files_are_all_of_their_bytes(walk: dict[str, Any], folder: Path) -> None:
    masked, dense = (sum(column) for column in zip(*walk["parts"].values(), strict=True))
    assert masked == (folder / walk["path"]).stat().st_size
    assert dense == walk["dense_bytes"]


def test_every_exercise_has_its_answer() -> None:
    exercises = re.findall(
        r"^# \*\*Exercise (\d+)\.\*\*", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE
    )
    answers = [match[1] for name in globals() if (match := re.match(r"test_exercise_(\d+)", name))]
    assert exercises == answers == [*"123456789"]


def test_every_answer_is_folded_under_its_exercise() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for exercise in text.split("# **Exercise ")[1:]:
        cell = exercise.partition("\n# %%")[0]
        # blank lines about the answer: else Markdown does not read its text
        assert re.search(
            r"\n#\n# <details><summary>Answer</summary>\n#\n# .+?\n#\n# </details>", cell, re.DOTALL
        )


def test_exercise_1_weights_and_biases_of_batch_norm(walk: dict[str, Any]) -> None:
    parameters = dict(walk["model"].named_parameters())
    rest = {name: parameters[name] for name in parameters if name not in walk["shapes"]}
    assert all(name.endswith(("norm.weight", "norm.bias")) for name in rest)
    assert sum(tensor.numel() for tensor in rest.values()) == 5 * (32 + 32)


def test_exercise_2_a_shorter_prototype_is_the_beginning_of_a_longer_one(
    walk: dict[str, Any],
) -> None:
    assert pemn.prototype_length(1024, 0.05) == 51 + 1
    assert pemn.prototype_length(1024, 0.0001) == 0 + 1
    for ratio, both in ((0.05, 11), (0.0001, 1)):
        (values,) = pemn.make_prototype(walk["shapes"], pemn.rp(ratio), seed=0).values()
        assert torch.equal(values[:both], walk["values"][:both])


def test_exercise_3_place_5(walk: dict[str, Any]) -> None:
    weight = walk["weights"]["blocks.0.depthwise.conv.weight"][3, 0, 1, 2]
    assert (3 * 25 + 1 * 5 + 2) % 11 == 5  # the filters before, the row before, the two before
    assert weight == walk["values"][5]


def test_exercise_4_the_two_that_were_dropped(walk: dict[str, Any]) -> None:
    scores = walk["toy_scores"].detach() - 2 * walk["toy_scores"].grad
    assert scores.tolist() == [1.0, 0.0, -5.5, 7.0]
    assert pemn.score_mask(scores, density=0.5).tolist() == [0, 0, 1, 1]


def test_exercise_5_nearly_half_of_the_bits_and_no_weight(walk: dict[str, Any]) -> None:
    turned = mask_bits(walk["scores"]) != mask_bits(walk["state"].scores)
    assert 0.4 < turned.double().mean() < 0.5  # two masks that have nothing in common: 0.5
    for name, weight in walk["weights"].items():
        assert torch.equal(walk["state"].weights[name], weight)


def test_exercise_6_two_in_three_positive_one_in_five_negative(walk: dict[str, Any]) -> None:
    weight = walk["weights"][walk["layer"]]
    positive = float(walk["mask_after"][weight > 0].mean())  # 0.68; 0.63 and 0.67 with seeds 1, 2
    negative = float(walk["mask_after"][weight < 0].mean())  # 0.18; 0.39 and 0.36
    assert positive > 0.58
    assert negative < 0.44


def test_there_are_masks_enough_and_half_gives_the_most(walk: dict[str, Any]) -> None:
    bits = walk["bits_of_masks"]
    assert bits(1.0) == 0 < bits(0.9) < bits(0.5)
    assert bits(0.5) == max(bits(density / 20) for density in range(1, 21))
    # one image: guessed with 1 in 10; all of them: 10^1297 labellings
    needed = walk["needed"]
    assert needed[0] == 0
    assert needed[-1] == pytest.approx(1297 * math.log2(10))
    assert 0.9 < walk["lucky"] / 1297 < walk["ours"] / 1297


def test_half_is_the_best_density_of_the_sweep(walk: dict[str, Any]) -> None:
    densities = walk["densities"]
    assert max(densities, key=densities.get) == 0.5
    assert densities[1.0] < walk["control"]


def test_exercise_7_96_bits_and_44() -> None:
    assert math.log2(math.comb(100, 50)) == pytest.approx(96.3, abs=0.05)
    assert math.log2(math.comb(100, 10)) == pytest.approx(43.98, abs=0.005)


def test_exercise_8_batch_norm(walk: dict[str, Any]) -> None:
    start = pemn.init(walk["model"], pemn.mp, seed=0)
    control = walk["control_state"]
    for name in control.scores:
        assert torch.equal(control.scores[name], start.scores[name])
        assert torch.equal(control.weights[name], start.weights[name])
    assert not any(torch.equal(control.rest[name], start.rest[name]) for name in start.rest)
    assert walk["untrained"] < 30 < walk["control"]
    assert walk["control"] < fmean(walk["results"].values()) < walk["dense"]


def test_exercise_9_54920_bytes_of_1748992() -> None:
    with torch.device("meta"):
        model = ConvMixer(depth=6, width=256, patch=2, kernel=5, channels=3, classes=10)
    cost = pemn.storage(pemn.maskable_shapes(model), pemn.rp(0.001))
    assert cost.bits == 8 * (437_248 // 8 + 4 * 66) == 8 * 54_920
    assert cost.dense_bits == 8 * 4 * 437_248 == 8 * 1_748_992
