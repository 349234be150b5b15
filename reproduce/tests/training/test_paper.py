"""Every network of the paper, at full size and masked in every way, takes two real steps."""

import pytest
import torch
from torch import Tensor

import pemn_ref as pemn
from reproduce.data.augment import Augmentation
from reproduce.data.batches import TrainingBatches, evaluation_batches
from reproduce.data.datasets import DATASETS
from reproduce.data.images import Images
from reproduce.study.cells import PRUNED, Cell
from reproduce.study.studies import STUDIES
from reproduce.training.device import open_device
from reproduce.training.loop import train
from reproduce.training.networks import make_network

DEVICE = open_device("cpu")


def ways(cell: Cell) -> tuple[str, str, str]:
    """A key: cells that differ only in ratio or density are built in the same way."""
    return cell.model.label, cell.dataset, "pruned" if cell.strategy in PRUNED else cell.strategy


DISTINCT = list({ways(cell): cell for cell in reversed(STUDIES["paper"].cells)}.values())


@pytest.mark.parametrize("cell", DISTINCT, ids=lambda cell: "-".join(ways(cell)))
def test_two_steps_at_full_size_move_what_is_trained_and_nothing_else(cell: Cell) -> None:
    take_two_steps(cell)


def take_two_steps(cell: Cell) -> None:
    dataset = DATASETS[cell.dataset]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, dataset.channels, dataset.size, dataset.size, generator=generator)
    images = Images(noise, 7 * torch.arange(16) % dataset.classes)
    batches = TrainingBatches(images, Augmentation(), seed=0, batch=8)
    network = make_network(cell, 0, DEVICE.torch)
    parts = network.state._asdict() if network.state else {"rest": network.tensors}
    before = {part: copied(tensors) for part, tensors in parts.items()}
    recipe = cell.recipe.changed(epochs=1, batch=8)
    held_out = evaluation_batches(images[:1], Augmentation(), batch=1)
    train(network, batches, held_out, recipe, seed=0, device=DEVICE, on_epoch=lambda _: None)

    def moved(part: str) -> dict[str, bool]:
        return {n: not torch.equal(t, before[part][n]) for n, t in parts[part].items()}

    assert all(moved("rest").values()), moved("rest")
    if network.state is None:
        return
    assert all(moved("buffers").values()), moved("buffers")
    if cell.strategy in PRUNED:
        assert all(moved("weights").values())
        assert not any(moved("scores").values())
        assert_reached(network.state.weights)
    else:
        assert not any(moved("weights").values())
        assert any(moved("scores").values()) == (cell.strategy != "control")
        if cell.strategy != "control":
            assert_reached(network.state.scores)
    assert network.state.weights.keys() == pemn.maskable_shapes(network.model).keys()


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_reached(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        assert tensor.grad is not None, name
        assert torch.isfinite(tensor.grad).all(), name
        assert tensor.grad.count_nonzero(), name
