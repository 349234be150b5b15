"""Each family against a plain formula in numpy, its gradients, and what it keeps."""

import contextlib
import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pemn_ref as pemn
from reproduce.frontier.families import FAMILIES, Choice, Code, first_tensors, make_weights

SHAPES = {"conv.weight": torch.Size((4, 3, 3, 3)), "fc.weight": torch.Size((5, 8))}
NUMEL = {"conv.weight": 108, "fc.weight": 40}
GAIN = {"conv.weight": math.sqrt(2 / 27), "fc.weight": math.sqrt(2 / 8)}
RATIO, DENSITY = 0.25, 0.3
Array = np.ndarray[Any, Any]
NAMES = [*FAMILIES]


def learned(family: str, seed: int = 0) -> dict[str, Tensor]:
    """Scores, and what stands beside them; the scales are not all 1."""
    tensors: dict[str, Tensor] = dict(pemn.init_scores(SHAPES, seed=seed))
    for name, tensor in first_tensors(FAMILIES[family], choice(), seed=seed).items():
        noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed))
        tensors[name] = tensor if name == "prototype" else tensor + noise
    return tensors


def choice() -> Choice:
    return Choice(SHAPES, RATIO, DENSITY)


def weights_of(family: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(make_weights(FAMILIES[family], tensors, choice(), lambda tensor, _: tensor))


def largest(scores: Array, number: int) -> Array:
    """1 where a |score| is one of so many largest."""
    mask = np.zeros(scores.size)
    mask[np.argsort(-np.abs(scores.ravel()))[:number]] = 1
    return mask.reshape(scores.shape)


def formula(family: str, tensors: dict[str, Tensor]) -> dict[str, Array]:
    """What the docstrings say, in numpy."""
    plain = {name: tensor.numpy().astype(float) for name, tensor in tensors.items()}
    prototype = plain["prototype"]
    assert len(prototype) == 28  # a quarter of 108, and one
    ranked = np.concatenate([plain[n].ravel() / GAIN[n] for n in SHAPES])  # 1/gain ~ sqrt(fan_in)
    overall = largest(ranked, math.ceil(DENSITY * 148))
    globally = {"conv.weight": overall[:108], "fc.weight": overall[108:]}
    found = {}
    for name, shape in SHAPES.items():
        s, gain = plain[name], GAIN[name]
        filled = np.resize(prototype, NUMEL[name]).reshape(shape)
        mask = largest(s, math.ceil(DENSITY * NUMEL[name]))
        signs = np.where(s >= 0, 1.0, -1.0)
        everywhere = globally[name].reshape(shape)
        step = (np.abs(s.reshape(shape[0], -1)).max(1) / 126.9).astype(np.float16).astype(float)
        step = step.reshape(-1, *[1] * (len(shape) - 1))
        tile = np.resize(signs.ravel()[: math.ceil(RATIO * NUMEL[name])], NUMEL[name])
        mixed = np.sign(filled).ravel()
        mixed[::2] = signs.ravel()[::2]
        found[name] = {
            "mp": filled * mask,
            "rp": filled * mask,
            "control": filled * mask,
            "rescaled": filled * mask * gain / GAIN["conv.weight"],
            "signed": gain * np.sign(filled) * mask,
            "signed-scaled": gain * np.sign(filled) * mask,
            "global": gain * np.sign(filled) * everywhere,
            "global-scaled": gain * np.sign(filled) * everywhere,
            "signs": gain * signs,
            "scaled": gain * signs,
            "tiled": gain * tile.reshape(shape),
            "frozen": gain * mixed.reshape(shape),
            "ternary": gain * signs * mask,
            "global-ternary": gain * signs * everywhere,
            "pruned": s.astype(np.float16) * mask,
            "int8": np.round(s / step) * step,
            "float16": s.astype(np.float16),
            "float32": s,
        }[family]
        if f"{name} scale" in plain:
            found[name] = found[name] * plain[f"{name} scale"].astype(np.float16)
    return found


@pytest.mark.parametrize("family", NAMES)
def test_weights_are_those_of_the_formula(family: str) -> None:
    tensors = learned(family)
    weights = weights_of(family, tensors)
    expected = formula(family, tensors)
    assert [*weights] == [*SHAPES]
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, expected[name], rtol=2e-6, atol=1e-7)


def upstream(name: str) -> Tensor:
    """A gradient that reaches the weights."""
    return torch.linspace(-1, 1, NUMEL[name]).view(SHAPES[name])


SLOPES: dict[str, Callable[[dict[str, Tensor], str], Tensor]] = {
    # What the gradient of a weight is multiplied with on the way to its score.
    **dict.fromkeys(("signs", "ternary", "global-ternary"), lambda _, n: torch.tensor(GAIN[n])),
    "scaled": lambda t, n: GAIN[n] * t[f"{n} scale"].half().float(),
    **dict.fromkeys(("float32", "float16", "int8", "pruned"), lambda t, n: torch.ones(())),
    **dict.fromkeys(("mp", "rp", "control"), lambda t, n: filled(t)[n] * t[n].sign()),
    "rescaled": lambda t, n: filled(t)[n] * t[n].sign() * GAIN[n] / GAIN["conv.weight"],
    "signed": lambda t, n: GAIN[n] * filled(t)[n].sign() * t[n].sign(),
    # In the units that scores are ranked in: gain times sqrt(fan_in).
    "global": lambda t, n: math.sqrt(2) * filled(t)[n].sign() * t[n].sign(),
    "signed-scaled": lambda t, n: (
        GAIN[n] * filled(t)[n].sign() * t[n].sign() * t[f"{n} scale"].half().float()
    ),
}


def filled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return pemn.fill_weights({"all": tensors["prototype"]}, SHAPES, pemn.rp(RATIO))


@pytest.mark.parametrize("family", SLOPES)
def test_gradients_are_straight_through(family: str) -> None:
    tensors = learned(family)
    for name in SHAPES:
        tensors[name].requires_grad_()
    for name, weight in weights_of(family, tensors).items():
        weight.backward(upstream(name), retain_graph=True)
    for name in SHAPES:
        with torch.no_grad():
            expected = upstream(name) * SLOPES[family](tensors, name)
        torch.testing.assert_close(tensors[name].grad, expected)


@pytest.mark.parametrize("family", ["tiled", "frozen"])
def test_only_scores_that_are_used_are_moved(family: str) -> None:
    tensors = learned(family)
    score = tensors["fc.weight"].requires_grad_()
    weights_of(family, tensors)["fc.weight"].backward(upstream("fc.weight"))
    assert score.grad is not None
    grad, through = score.grad.flatten(), upstream("fc.weight").flatten() * GAIN["fc.weight"]
    if family == "frozen":
        expected = through * torch.tensor([1.0, 0.0]).repeat(20)
    else:
        expected = torch.cat([through.view(4, 10).sum(0), torch.zeros(30)])
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("family", ["scaled", "signed-scaled", "global-scaled"])
def test_scale_gets_the_gradient_of_its_channel(family: str) -> None:
    tensors = learned(family)
    scale = tensors["fc.weight scale"].requires_grad_()
    weight = weights_of(family, tensors)["fc.weight"]
    weight.backward(upstream("fc.weight"))
    unscaled = weight.detach() / scale.detach().half().float()
    expected = (upstream("fc.weight") * unscaled).sum(1, keepdim=True)
    torch.testing.assert_close(scale.grad, expected)


@pytest.mark.parametrize("family", NAMES)
def test_what_is_kept_is_all_that_there_is(family: str) -> None:
    """With what one network keeps, another of the same shapes has its weights, bit for bit."""
    kept: list[Tensor] = []
    codes: list[Code | torch.dtype] = []

    def note(tensor: Tensor, code: Code | torch.dtype) -> Tensor:
        kept.append(tensor.detach().clone())
        codes.append(code)
        return tensor

    weights = make_weights(FAMILIES[family], learned(family), choice(), note)
    found = iter(zip(kept, codes, strict=True))

    def give_back(tensor: Tensor, code: Code | torch.dtype) -> Tensor:
        was, as_code = next(found)
        assert (tensor.shape, code) == (was.shape, as_code)
        return was

    again = make_weights(FAMILIES[family], learned(family, seed=1), choice(), give_back)
    for name, weight in weights.items():
        assert torch.equal(again[name], weight)
    assert next(found, None) is None


@pytest.mark.parametrize("family", NAMES)
def test_what_is_kept_is_of_its_code(family: str) -> None:
    def check(tensor: Tensor, code: Code | torch.dtype) -> Tensor:
        values = tensor.detach()
        if isinstance(code, Code):
            assert {*values.flatten().tolist()} <= {*code.values}
            assert sum(code.chances) == pytest.approx(1)
        else:
            assert torch.equal(values.to(code).to(values.dtype), values)
        return tensor

    make_weights(FAMILIES[family], learned(family), choice(), check)


def test_signs_by_a_seed_are_the_bits_of_shake_256() -> None:
    """A stored seed gives all of them; the tensors that the reader starts from do not matter."""
    seed = 7
    by_seed = choice()._replace(ratio=0.0)
    tensors = {**pemn.init_scores(SHAPES, seed=0)}
    tensors |= first_tensors(FAMILIES["frozen"], by_seed, seed=seed)
    assert "prototype" not in tensors
    found = make_weights(FAMILIES["frozen"], tensors, by_seed, lambda tensor, _: tensor)
    digest = hashlib.shake_256(b"signs 7").digest(19)  # for 148 weights
    bits = "".join(f"{byte:08b}" for byte in digest)[:148]
    expected = torch.tensor([2.0 * int(bit) - 1 for bit in bits])
    flat = torch.cat([(found[n] / GAIN[n]).flatten() for n in SHAPES])
    # The conv has an even number of weights: every other one of all is learned.
    torch.testing.assert_close(flat[1::2], expected[1::2])
    assert not torch.equal(flat[::2].sign(), expected[::2])


class OneDevice(TorchDispatchMode):
    """Every operation has all of its tensors on one device, numbers aside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Check and run it."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        assert len({tensor.device for tensor in tensors if tensor.ndim}) <= 1, operation
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", NAMES)
def test_weights_are_made_where_the_scores_lie(family: str) -> None:
    tensors = {name: tensor.to("meta") for name, tensor in learned(family).items()}
    with OneDevice(), contextlib.suppress(NotImplementedError):  # what needs values ends there
        weights_of(family, tensors)
