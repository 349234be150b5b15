"""From a cell to what the training loop sees: a function, its trained tensors, its size."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

import pemn_ref as pemn
from pemn_ref import fast
from pemn_ref.accounting import masked_storage
from pemn_ref.checks import Tensors, check_model
from pemn_ref.forward import places
from reproduce.data.datasets import DATASETS
from reproduce.frontier.families import FAMILIES, Choice, Family, first_tensors, make_weights
from reproduce.models.convmixer import ConvMixer
from reproduce.models.resnet import ResNet
from reproduce.models.vit import ViT
from reproduce.study.cells import Cell

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
    """None where dense: the tensors are those of ``model``. For a family of the byte frontier
    ``weights`` are what it has beside the scores."""
    recordable: bool = True
    """Whether a GPU can record its step: in most families of the byte frontier the host waits."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that it is made of, by name: the tensors themselves."""
        if self.state is None:
            return self.model.state_dict(keep_vars=True)
        parts = self.state._asdict()
        return {f"{part}/{name}": t for part in parts for name, t in parts[part].items()}


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
    return network_of(cell, make_model(cell, seed).to(device), seed)


def network_of(cell: Cell, model: nn.Module, seed: int) -> Network:
    """The network of a cell before training, made of its plain ``model``, wherever that lies."""
    if cell.family is not None:
        return _family_network(cell, model, seed)
    if cell.masking is not None:
        return masked_network(cell, model, pemn.init(model, cell.masking, seed=seed))
    if cell.density is not None:
        return _pruned_network(cell, model, seed)
    return dense_network(cell, model)


def dense_network(cell: Cell, model: nn.Module) -> Network:
    """A plain module with the tensors that it has."""
    return Network(model, model, list(model.parameters()), storage_of(cell, model), None)


def storage_of(cell: Cell, model: nn.Module) -> pemn.Storage:
    """What a network of the cell costs to store, counted on the shapes of its plain ``model``."""
    shapes, dense = pemn.maskable_shapes(model), model.state_dict()
    others = [tensor for name, tensor in dense.items() if name not in shapes]
    if cell.masking is not None:
        return pemn.storage(shapes, cell.masking, others)
    numbers = [shape.numel() for shape in shapes.values()]
    if cell.density is not None and cell.family is None:
        kept = sum(pemn.kept(number, cell.density) for number in numbers)
        # A bit for each weight says which are kept; the paper's percentages leave that bit out.
        return masked_storage(sum(numbers), kept, others)
    # Every weight is a value of its own and nothing is saved. (The byte frontier counts files.)
    bits = sum(8 * tensor.nbytes for tensor in dense.values())
    return pemn.Storage(sum(numbers), sum(numbers), 0.0, 0.0, bits, bits)


def choice_of(cell: Cell, model: nn.Module) -> tuple[Family, Choice]:
    """The family of a cell of the byte frontier, and what it is applied to."""
    assert cell.family is not None
    assert cell.density is not None
    shapes = pemn.maskable_shapes(model)
    ratio = 1.0 if cell.ratio is None else cell.ratio
    return FAMILIES[cell.family], Choice(shapes, ratio, cell.density)


def _family_network(cell: Cell, model: nn.Module, seed: int) -> Network:
    family, choice = choice_of(cell, model)
    state = pemn.init(model, pemn.mp, seed=seed)
    where = next(iter(state.scores.values())).device
    beside = {n: t.to(where) for n, t in first_tensors(family, choice, seed=seed).items()}
    trained = [*state.rest.values()]
    if family.trained:
        trained += state.scores.values()
    if family.scaled:
        trained += [t.requires_grad_() for name, t in beside.items() if name.endswith(" scale")]
    state = state._replace(weights=beside)

    def make() -> Tensors:
        return make_weights(family, {**state.scores, **beside}, choice, lambda tensor, _: tensor)

    logits = _called(model, make, {**state.rest, **state.buffers})
    return Network(model, logits, trained, storage_of(cell, model), state, recordable=False)


def masked_network(cell: Cell, model: nn.Module, state: pemn.State) -> Network:
    """The network of a cell with a prototype, made of a state of its ``model``."""
    assert cell.masking is not None
    trained = list(state.rest.values())
    if cell.strategy == "control":
        state = state._replace(scores={name: s.detach() for name, s in state.scores.items()})
    else:
        trained += state.scores.values()
    return Network(model, _masked(cell, model, state), trained, storage_of(cell, model), state)


def _pruned_network(cell: Cell, model: nn.Module, seed: int) -> Network:
    """Masks by scores that are not trained, over the weights of a dense network that are."""
    state = pemn.init(model, pemn.mask, seed=seed)
    weights = {n: model.get_parameter(n).detach().clone().requires_grad_() for n in state.weights}
    scores = state.scores if cell.strategy == "prune_random" else weights
    fixed = {name: score.detach().abs() for name, score in scores.items()}
    state = state._replace(weights=weights, scores=fixed)
    trained = [*state.rest.values(), *weights.values()]
    return Network(model, _masked(cell, model, state), trained, storage_of(cell, model), state)


def _masked(cell: Cell, model: nn.Module, state: pemn.State) -> Callable[[Tensor], Tensor]:
    """``masked_forward`` for a network that is run many times.

    What does not change is done once: the comparison of the state with the model, and, at the first
    call, after a checkpoint has been read, masks whose scores are not trained.
    """
    weights, scores, rest, buffers = state
    check_model(model, weights, rest, buffers)
    assert cell.density is not None
    make: Callable[[], Tensors]
    if _trained(scores):
        make = partial(fast.apply_mask, weights, scores, density=cell.density)
    elif _trained(weights):
        ones = {name: torch.ones_like(weight) for name, weight in weights.items()}
        masks = cache(partial(fast.apply_mask, ones, scores, density=cell.density))
        make = lambda: {name: weight * masks()[name] for name, weight in weights.items()}  # noqa: E731
    else:
        make = cache(partial(fast.apply_mask, weights, scores, density=cell.density))

    return _called(model, make, {**rest, **buffers})


def _called(
    model: nn.Module, make: Callable[[], Tensors], others: Tensors
) -> Callable[[Tensor], Tensor]:
    """``model`` as a function, with the weights that ``make`` gives at each call."""
    where = places(model)

    def logits(images: Tensor) -> Tensor:
        tensors: dict[str, Any] = {**make(), **others}
        placed: dict[str, Any] = {place: name and tensors[name] for place, name in where.items()}
        output: Tensor = functional_call(model, placed, images, tie_weights=False)
        return output

    return logits


def _trained(tensors: Tensors) -> bool:
    return any(tensor.requires_grad for tensor in tensors.values())
