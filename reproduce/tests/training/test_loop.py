"""One loop for every cell: what changes, what stays, and that the seed decides everything."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from msgspec import structs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pemn_ref as pemn
from reproduce.data.augment import Augmentation
from reproduce.data.batches import Batch, TrainingBatches, evaluation_batches
from reproduce.data.datasets import load
from reproduce.data.images import Images
from reproduce.rows.row import Epoch
from reproduce.study.cells import PRUNED, Cell, ConvMixer, ResNet, ViT
from reproduce.study.recipes import CONVMIXER, RESNET, VIT, Recipe
from reproduce.study.studies import STUDIES
from reproduce.training.device import open_device
from reproduce.training.loop import accuracy, rate, train
from reproduce.training.networks import Network, make_model, make_network
from reproduce.training.step import make_optimizer

DEVICE = open_device("cpu")
SIZES: dict[str, ConvMixer | ResNet | ViT] = {
    "convmixer": ConvMixer(depth=1, width=8, patch=2, kernel=5),
    "resnet": ResNet(depth=8, width=4),
    "vit": ViT(depth=1, width=8, heads=2, head_width=4, mlp=8, patch=4, dropout=0.2),
}


def tiny(recipe: Recipe) -> Recipe:
    """One epoch of two batches."""
    return recipe.changed(epochs=1, batch=50, augmentation="plain", learning_rate=0.05)


CELLS = [
    replace(cell, model=SIZES[cell.model.family], recipe=tiny(cell.recipe))
    for cell in STUDIES["digits"].cells
]
CELLS += [
    replace(CELLS[0], strategy=strategy, density=0.1)
    for strategy in ("prune_random", "prune_minimum")
]
CONVMIXERS = [cell for cell in CELLS if cell.model.family == "convmixer"]
OTHERS = [cell for cell in CELLS if cell.model.family != "convmixer"]


def of_all(cells: Sequence[Cell]) -> pytest.MarkDecorator:
    ids = [f"{cell.model.family}-{cell.name}" for cell in cells]
    return pytest.mark.parametrize("cell", cells, ids=ids)


def make(cell: Cell, seed: int) -> Network:
    return make_network(cell, seed, DEVICE.torch)


def few_digits() -> tuple[Images, list[Batch]]:
    """A hundred images to train on, and one batch of fifty to measure."""
    train_images, test_images = load("digits")
    return train_images[:100], evaluation_batches(test_images[:50], Augmentation(), batch=50)


def run(network: Network, recipe: Recipe, seed: int, images: Images | None = None) -> list[Epoch]:
    """Train on the few digits, or on ``images``; the history has no times, which never repeat."""
    some, held_out = few_digits()
    batches = TrainingBatches(images or some, Augmentation(), seed=seed, batch=recipe.batch)
    history = train(
        network, batches, held_out, recipe, seed=seed, device=DEVICE, on_epoch=lambda _: None
    )
    return [structs.replace(epoch, seconds=0.0) for epoch in history]


def trained(cell: Cell, seed: int) -> tuple[Network, list[Tensor]]:
    """A network after training, and copies of its trained tensors from before."""
    network = make(cell, seed)
    before = [tensor.detach().clone() for tensor in network.trained]
    run(network, cell.recipe, seed)
    return network, before


@of_all(CELLS)
def test_every_trained_tensor_moves_and_nothing_else_does(cell: Cell) -> None:
    network, before = trained(cell, seed=0)
    assert all(not torch.equal(a, b) for a, b in zip(before, network.trained, strict=True))

    # Restoring them gives the untrained network, so frozen weights and scores did not change.
    for tensor, old in zip(network.trained, before, strict=True):
        tensor.data.copy_(old)
    (images, _), *_ = few_digits()[1]
    logits = []
    for one in (network, make(cell, seed=0)):
        one.model.train()
        torch.manual_seed(0)  # for dropout
        logits.append(one.logits(images))
    assert torch.equal(*logits)


@of_all(CELLS)
def test_scores_and_rest_are_trained_of_a_masked_network_weights_of_others(cell: Cell) -> None:
    tensors = make(cell, seed=0).trained
    model = make_model(cell, seed=0)
    shapes = pemn.maskable_shapes(model)
    parameters = dict(model.named_parameters())
    if cell.name == "dense":
        expected: list[Tensor] = list(parameters.values())
    else:
        expected = [p for name, p in parameters.items() if name not in shapes]
        if cell.strategy in PRUNED:
            expected += [parameters[name] for name in shapes]
        elif cell.name != "control":
            expected += pemn.init_scores(shapes, seed=0).values()
    assert len(tensors) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def test_control_is_mp_at_the_same_seed_before_training() -> None:
    (images, _), *_ = few_digits()[1]
    networks = {c.name: make(c, seed=3) for c in CONVMIXERS if c.name in ("mp", "control")}
    assert torch.equal(networks["mp"].logits(images), networks["control"].logits(images))
    assert networks["mp"].storage == networks["control"].storage
    state = networks["control"].state
    assert state is not None
    assert not any(scores.requires_grad for scores in state.scores.values())
    shapes = {tuple(tensor.shape) for tensor in networks["control"].trained}
    assert shapes == {(8,)}  # batch-norm only


@of_all([cell for cell in OTHERS if cell.name not in ("dense", "control")])
def test_first_step_reaches_the_scores_of_every_layer(cell: Cell) -> None:
    network = make(cell, seed=0)
    (images, labels), *_ = few_digits()[1]
    torch.nn.functional.cross_entropy(network.logits(images), labels).backward()
    names = pemn.maskable_shapes(make_model(cell, seed=0))
    scores = network.trained[-len(names) :]
    for name, score in zip(names, scores, strict=True):
        assert score.grad is not None, name
        assert torch.isfinite(score.grad).all(), name
        assert (score.grad != 0).any(), name
        # not only kept weights
        reached = (score.grad != 0) & ~pemn.score_mask(score.detach(), density=0.5).bool()
        assert reached.any(), name


@of_all(CELLS)
def test_same_seed_gives_the_same_history_whatever_the_global_state(cell: Cell) -> None:
    histories = []
    for seed in (0, 0, 1):
        torch.rand(7)
        state = torch.get_rng_state()
        histories.append(run(make(cell, seed), cell.recipe, seed)[0].loss)
        assert torch.equal(torch.get_rng_state(), state)
    assert histories[0] == histories[1] != histories[2]


def test_dropout_differs_from_epoch_to_epoch() -> None:
    cell = next(cell for cell in OTHERS if cell.name == "control" and cell.model.family == "vit")
    still = replace(cell.recipe, epochs=3, batch=100, learning_rate=0.0)
    same = few_digits()[0][torch.zeros(100, dtype=torch.long)]  # equal, whatever their order
    losses = {epoch.loss for epoch in run(make(cell, 0), still, 0, images=same)}
    assert len(losses) == 3


def test_learned_masks_learn() -> None:
    cell = STUDIES["digits"].chosen(strategies=["rp_1e-1"]).cells[0]
    recipe = replace(tiny(CONVMIXER), epochs=10, batch=10)
    images, held_out = few_digits()
    network = make(cell, seed=0)
    seen: list[Epoch] = []
    batches = TrainingBatches(images, Augmentation(), seed=0, batch=10)
    history = train(
        network,
        batches,
        held_out,
        recipe,
        seed=0,
        device=DEVICE,
        on_epoch=lambda epochs: seen.append(epochs[-1]),
    )
    assert seen == history
    assert len(history) == 10
    assert all(epoch.seconds > 0 for epoch in history)
    assert history[-1].loss < history[0].loss / 2
    assert history[-1].accuracy == accuracy(network, held_out)


class Reads(TorchDispatchMode):
    """Counts how often the value of a tensor is read by the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        self.count += function is torch.ops.aten.nonzero.default
        return function(*args, **(kwargs or {}))


@of_all([cell for cell in CELLS if cell.name in ("dense", "rp_1e-2")])
def test_no_step_reads_a_value(cell: Cell) -> None:
    counts = []
    for batch in (50, 10):  # 2 steps, 10 steps
        # SGD, since Adam keeps its step counts in tensors on the host.
        recipe = tiny(RESNET).changed(learning_rate=0.001, batch=batch)
        with Reads() as reads:
            run(make(cell, seed=0), recipe, seed=0)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


PIECEWISE = {0: 0, 0.2: 0.025, 0.4: 0.05, 0.6: 0.02625, 0.8: 0.0025, 0.9: 0.00125, 1: 0}
COSINE = {0: 1e-4, 0.25: 8.5355339e-5, 0.5: 5e-5, 0.75: 1.4644661e-5, 1: 0}
# 200 epochs: the last step of epoch 100, the first of 100 steps in the next one, and so on
STEPS = {0.005: 0.1, 0.5: 0.1, 100.01 / 200: 0.01, 0.75: 0.01, 150.01 / 200: 0.001, 1: 0.001}


@pytest.mark.parametrize(
    ("recipe", "points"), [(CONVMIXER, PIECEWISE), (VIT, COSINE), (RESNET, STEPS)]
)
def test_rate_follows_the_schedule_of_the_recipe(
    recipe: Recipe, points: dict[float, float]
) -> None:
    for progress, expected in points.items():
        assert rate(recipe, progress) == pytest.approx(expected, rel=1e-7, abs=1e-12), progress


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # decay w * (1 - 0.05 * 0.005), then a step of the rate: the gradient's size cancels
        (CONVMIXER, [2 * 0.99975 - 0.05, (2 * 0.99975 - 0.05) * 0.99975 - 0.05]),
        (VIT, [2 - 1e-4, 2 - 2e-4]),
        # velocity 0.5 + 0.0005 * 2, then 0.9 of it + 0.5 + 0.0005 * 1.9499
        (RESNET, [2 - 0.1 * 0.501, 1.9499 - 0.1 * (0.9 * 0.501 + 0.5 + 0.0005 * 1.9499)]),
    ],
    ids=["convmixer", "vit", "resnet"],
)
def test_optimizer_of_the_recipe_takes_its_steps(recipe: Recipe, expected: list[float]) -> None:
    w = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimizer = make_optimizer(recipe, [w], fused=False)
    for value in expected:
        w.grad = torch.full_like(w, 0.5)
        optimizer.step()
        assert float(w.detach()) == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize(
    ("recipe", "optimizer"),
    [(CONVMIXER, torch.optim.AdamW), (VIT, torch.optim.Adam), (RESNET, torch.optim.SGD)],
    ids=["convmixer", "vit", "resnet"],
)
def test_each_step_has_the_rate_of_its_end_and_decay_reaches_every_trained_tensor(
    recipe: Recipe, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = []
    step = optimizer.step

    def spy(self: torch.optim.Optimizer) -> None:
        groups.append([(len(g["params"]), g["lr"], g["weight_decay"]) for g in self.param_groups])
        step(self)

    monkeypatch.setattr(optimizer, "step", spy)
    recipe = tiny(recipe)
    network, _ = trained(replace(CONVMIXERS[1], recipe=recipe), seed=0)
    # The two steps of the only epoch end at 1/2 and at 1 of the run.
    number, decay = len(network.trained), recipe.weight_decay
    rates = [rate(recipe, 0.5), rate(recipe, 1.0)]
    assert groups == [[(number, rate, decay)] for rate in rates]


def test_accuracy_counts_every_image_in_evaluation_mode() -> None:
    labels = torch.arange(10).repeat(60)
    logits = torch.nn.functional.one_hot(labels, 10).float()
    logits[:3] = logits[:3].roll(1, dims=1)
    model = torch.nn.Identity().train()
    network = Network(model, model, [], pemn.Storage(1, 1, 0, 0, 1, 1), None)
    batches = list(zip(logits.split(250), labels.split(250), strict=True))
    assert accuracy(network, batches) == 597 / 600
    assert not model.training


def test_non_finite_loss_is_said() -> None:
    images, _ = few_digits()
    broken = Images(images.pixels.clone(), images.labels)
    broken.pixels[0] = torch.nan
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1"):
        run(make(CELLS[0], seed=0), CELLS[0].recipe, seed=0, images=broken)


@of_all([cell for cell in CONVMIXERS if cell.strategy in PRUNED])
def test_pruned_weights_are_the_largest_of_a_dense_network_or_any(cell: Cell) -> None:
    network, _ = trained(cell, seed=0)
    state = network.state
    assert state is not None
    model = make_model(cell, seed=0)
    before = {name: model.get_parameter(name).detach() for name in state.weights}
    after = pemn.apply_mask(state.weights, state.scores, density=0.1)
    for name, weight in before.items():
        kept = after[name] != 0
        assert int(kept.sum()) == pemn.kept(weight.numel(), 0.1)
        assert not torch.equal(after[name][kept], weight[kept])
        smallest, largest = weight[kept].abs().min(), weight[~kept].abs().max()
        assert (smallest >= largest) == (cell.strategy == "prune_minimum")
    assert network.storage.unique == sum(pemn.kept(w.numel(), 0.1) for w in before.values())
    assert network.storage.paper == pytest.approx(1 - 1 / 32 - 0.1, abs=0.01)


@of_all([cell for cell in CONVMIXERS if cell.strategy in ("control", "prune_random")])
def test_masks_that_never_change_are_of_the_tensors_that_a_checkpoint_brings(cell: Cell) -> None:
    """Another processor may have drawn them with other last digits."""
    network = make(cell, seed=0)
    assert network.state is not None
    assert cell.density is not None
    with torch.no_grad():
        for tensor in (*network.state.weights.values(), *network.state.scores.values()):
            tensor.copy_(tensor.flip(0))
    network.model.eval()
    (images, _), *_ = few_digits()[1]
    expected = pemn.masked_forward(network.model, *network.state, images, density=cell.density)
    assert torch.equal(network.logits(images), expected)


@of_all([cell for cell in CONVMIXERS if cell.strategy not in PRUNED])
def test_storage_is_counted_over_the_real_tensors(cell: Cell) -> None:
    size = make(cell, seed=0).storage
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
