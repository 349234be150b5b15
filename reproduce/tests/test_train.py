"""One loop for every cell: what moves, what stays, and that a seed decides all of it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pemn_ref as pemn
from reproduce.cells import DIGITS, Cell, Recipe
from reproduce.data import Split, digits
from reproduce.networks import Network, make_model, make_network
from reproduce.train import Epoch, accuracy, rate, train

TINY = Recipe(name="t", version=1, epochs=1, batch=50, learning_rate=0.05, weight_decay=0.005)
CELLS = [
    replace(cell, model=replace(cell.model, width=8, depth=1), recipe=TINY) for cell in DIGITS.cells
]
by_strategy = pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])


def few_digits() -> Split:
    """A hundred images to train on and fifty to measure."""
    full = digits.load()
    return Split(
        full.train_images[:100],
        full.train_labels[:100],
        full.test_images[:50],
        full.test_labels[:50],
    )


def trained(cell: Cell, seed: int) -> tuple[Network, list[Tensor]]:
    """A network after training, and copies of its trained tensors from before."""
    network = make_network(cell, seed)
    before = [tensor.detach().clone() for tensor in network.trained]
    train(network, few_digits(), cell.recipe, seed=seed, on_epoch=lambda _: None)
    return network, before


@by_strategy
def test_every_trained_tensor_moves_and_nothing_else_does(cell: Cell) -> None:
    network, before = trained(cell, seed=0)
    assert all(not torch.equal(a, b) for a, b in zip(before, network.trained, strict=True))

    # Put back, they give the network that never was trained: frozen weights and scores are equal.
    for tensor, old in zip(network.trained, before, strict=True):
        tensor.data.copy_(old)
    images = few_digits().test_images
    fresh = make_network(cell, seed=0)
    network.model.train()
    assert torch.equal(network.logits(images), fresh.logits(images))


@by_strategy
def test_scores_and_rest_are_trained_of_a_masked_network_all_of_a_dense_one(cell: Cell) -> None:
    tensors = make_network(cell, seed=0).trained
    model = make_model(cell, seed=0)
    shapes = pemn.maskable_shapes(model)
    parameters = dict(model.named_parameters())
    if cell.name == "dense":
        expected: list[Tensor] = list(parameters.values())
    else:
        expected = [p for name, p in parameters.items() if name not in shapes]
        if cell.name != "control":
            expected += pemn.init_scores(shapes, seed=0).values()
    assert len(tensors) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def test_control_is_mp_at_the_same_seed_before_training() -> None:
    images = few_digits().test_images
    networks = {c.name: make_network(c, seed=3) for c in CELLS if c.name in ("mp", "control")}
    assert torch.equal(networks["mp"].logits(images), networks["control"].logits(images))
    assert networks["mp"].storage == networks["control"].storage
    shapes = {tuple(tensor.shape) for tensor in networks["control"].trained}
    assert shapes == {(8,)}  # batch-norm alone


@by_strategy
def test_same_seed_gives_the_same_history_whatever_the_global_state(cell: Cell) -> None:
    split = few_digits()
    histories = []
    for seed in (0, 0, 1):
        torch.rand(7)
        state = torch.get_rng_state()
        network = make_network(cell, seed)
        histories.append(
            train(network, split, cell.recipe, seed=seed, on_epoch=lambda _: None)[0].loss
        )
        assert torch.equal(torch.get_rng_state(), state)
    assert histories[0] == histories[1] != histories[2]


def test_learned_masks_learn() -> None:
    recipe = replace(TINY, epochs=10, batch=10)
    split = few_digits()
    network = make_network(DIGITS.only(["rp_1e-1"]).cells[0], seed=0)
    seen: list[Epoch] = []
    history = train(network, split, recipe, seed=0, on_epoch=seen.append)
    assert seen == history
    assert len(history) == 10
    assert history[-1].loss < history[0].loss / 2
    assert history[-1].accuracy == accuracy(network, split.test_images, split.test_labels)


def test_rate_is_that_of_the_published_schedule() -> None:
    recipe = replace(TINY, learning_rate=0.05)
    points = {0: 0, 0.2: 0.025, 0.4: 0.05, 0.6: 0.02625, 0.8: 0.0025, 0.9: 0.00125, 1: 0}
    assert {p: round(rate(recipe, p), 9) for p in points} == points


def test_last_step_has_rate_zero_and_the_decay_reaches_every_trained_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW) -> None:
        groups.append([(len(g["params"]), g["lr"], g["weight_decay"]) for g in self.param_groups])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    network, _ = trained(CELLS[1], seed=0)
    # Two steps of the one epoch end at 1/2 and at 1 of the run.
    number = len(network.trained)
    assert groups == [[(number, rate(TINY, 0.5), 0.005)], [(number, 0.0, 0.005)]]


def test_accuracy_counts_every_image_in_evaluation_mode() -> None:
    labels = torch.arange(10).repeat(60)
    logits = torch.nn.functional.one_hot(labels, 10).float()
    logits[:3] = logits[:3].roll(1, dims=1)
    model = torch.nn.Identity().train()
    network = Network(model, model, [], pemn.Storage(1, 1, 0, 0, 1, 1))
    assert accuracy(network, logits, labels) == 597 / 600
    assert not model.training


def test_non_finite_loss_is_said() -> None:
    split = few_digits()
    split.train_images[0] = torch.nan
    network = make_network(CELLS[0], seed=0)
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1"):
        train(network, split, TINY, seed=0, on_epoch=lambda _: None)


@by_strategy
def test_storage_is_counted_over_the_real_tensors(cell: Cell) -> None:
    size = make_network(cell, seed=0).storage
    model = make_model(cell, seed=0)
    dense_bits = sum(8 * t.element_size() * t.numel() for t in model.state_dict().values())
    weights = 8 * (1 * 4 + 25 + 8 + 10)
    values = {"dense": weights, "mask": weights, "one_layer": weights, "mp": 200, "control": 200}
    values |= {"rp_1e-1": 21, "rp_1e-2": 3, "rp_1e-3": 1, "rp_1e-4": 1}
    assert (size.weights, size.unique) == (weights, values[cell.name])
    assert size.dense_bits == dense_bits
    mask_bits = 0 if cell.name == "dense" else weights
    assert size.bits == dense_bits - 32 * weights + mask_bits + 32 * size.unique
    assert size.whole == 1 - size.bits / size.dense_bits
