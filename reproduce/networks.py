"""From a cell to what the training loop sees: a function, its trained tensors, its size."""

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pemn_ref as pemn
from reproduce.cells import Cell
from reproduce.data.datasets import DATASETS
from reproduce.models.convmixer import ConvMixer
from reproduce.models.resnet import ResNet
from reproduce.models.vit import ViT

_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "convmixer": ConvMixer,
    "resnet": ResNet,
    "vit": ViT,
}


class Network(NamedTuple):
    """A network of any cell. ``model`` serves to switch between training and evaluation."""

    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    trained: list[Tensor]
    storage: pemn.Storage
    state: pemn.State | None
    """None where dense: the tensors are those of ``model``."""


def make_model(cell: Cell, seed: int) -> nn.Module:
    """The plain module of a cell, with PyTorch's default initialisation drawn from ``seed``.

    The global random state is the same afterwards.
    """
    sizes = asdict(cell.model)
    family = sizes.pop("family")
    dataset = DATASETS[cell.dataset]
    sizes |= {"channels": dataset.channels, "classes": dataset.classes}
    if family == "vit":  # has a position embedding for each patch
        sizes["size"] = dataset.size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _FAMILIES[family](**sizes)


def make_network(cell: Cell, seed: int, device: torch.device) -> Network:
    """The network of a cell before training, the same on every device."""
    model = make_model(cell, seed).to(device)
    if cell.density is not None:
        return masked_network(cell, model, pemn.init(model, cell.masking, seed=seed))
    # Every weight is a value of its own and nothing is saved.
    weights = sum(shape.numel() for shape in pemn.maskable_shapes(model).values())
    bits = sum(8 * t.element_size() * t.numel() for t in model.state_dict().values())
    storage = pemn.Storage(weights, weights, 0.0, 0.0, bits, bits)
    return Network(model, model, list(model.parameters()), storage, None)


def masked_network(cell: Cell, model: nn.Module, state: pemn.State) -> Network:
    """The network of a cell that is not dense, made of a state of its ``model``."""
    density = cell.density
    assert density is not None
    shapes = pemn.maskable_shapes(model)
    others = [tensor for name, tensor in model.state_dict().items() if name not in shapes]
    trained = list(state.rest.values())
    if cell.strategy != "control":
        trained += state.scores.values()

    def logits(images: Tensor) -> Tensor:
        output: Tensor = pemn.masked_forward(model, *state, images, density=density)
        return output

    return Network(model, logits, trained, pemn.storage(shapes, cell.masking, others), state)
