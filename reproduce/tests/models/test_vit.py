"""The vision transformers match the paper in their number of weights and in structure."""

from typing import Any

import pytest
import torch

import pemn_ref as pemn
from reproduce.models.vit import Attention, ViT

PAPER = {"heads": 8, "head_width": 64, "mlp": 512, "patch": 4, "dropout": 0.1}
CIFAR10 = {"size": 32, "channels": 3, "classes": 10}


def tiny(**changed: Any) -> ViT:
    """A ViT for the digits: 8x8, one channel."""
    sizes: dict[str, Any] = {
        "depth": 2,
        "width": 6,
        "heads": 2,
        "head_width": 4,
        "mlp": 10,
        "patch": 4,
        "dropout": 0.5,
        "size": 8,
        "channels": 1,
        "classes": 10,
    }
    return ViT(**{**sizes, **changed})


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("width", "depth", "weights", "largest"),
    [
        (256, 6, 4_733_440, 393_216),
        (256, 8, 6_306_304, 393_216),
        (512, 6, 9_466_880, 786_432),
        (512, 8, 12_612_608, 786_432),
    ],
)
def test_vit_has_the_weights_of_the_paper(
    width: int, depth: int, weights: int, largest: int
) -> None:
    with torch.device("meta"):
        model = ViT(width=width, depth=depth, **PAPER, **CIFAR10)  # type: ignore[arg-type]
    shapes = pemn.maskable_shapes(model)
    assert len(shapes) == 4 * depth + 2
    assert sum(shape.numel() for shape in shapes.values()) == weights
    assert max(shapes.values(), key=torch.Size.numel) == (1536, width)
    assert 1536 * width == largest
    rest = sum(p.numel() for name, p in model.named_parameters() if name not in shapes)
    norms, biases = 2 * width * (2 * depth + 1), width + depth * (2 * width + 512) + 10
    assert rest == norms + biases + (1 + 65) * width  # class token, position embedding
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_attention_is_softmax_of_scaled_products_by_head() -> None:
    attention = Attention(6, heads=2, head_width=4, dropout=0.5).eval()
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    query, key, value = attention.qkv.weight.split(8)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        q, k, v = x @ query[head].T, x @ key[head].T, x @ value[head].T
        heads.append((q @ k.transpose(1, 2) / 4**0.5).softmax(dim=2) @ v)
    expected = torch.cat(heads, dim=2) @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x), expected)


def test_attention_drops_weights_and_outputs_in_training_only() -> None:
    torch.manual_seed(0)
    attention = Attention(6, heads=2, head_width=4, dropout=0.5)
    x = torch.randn(3, 5, 6)
    y = attention(x)
    plain = attention.eval()(x)
    assert torch.equal(attention(x), plain)
    assert 20 < int((y == 0).sum()) < 70  # of 90
    doubled = y[y != 0] / plain[y != 0]
    assert not torch.allclose(doubled, torch.full_like(doubled, 2))  # weights were dropped, too


def test_norms_lie_inside_of_the_residuals() -> None:
    model: Any = tiny().eval()
    for block in model.blocks:
        for layer in (block.attention.out, block.mlp[3]):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    token = (model.class_token + model.position[:, :1])[:, 0]
    expected = model.classifier(model.norm(token)).expand(2, -1)
    torch.testing.assert_close(model(images(2)), expected)
    mlp = model.blocks[0].mlp
    torch.nn.init.ones_(mlp[3].bias)
    assert torch.allclose(model.blocks[0](token[:, None]), token[:, None] + 1)


def test_tokens_are_the_class_token_and_the_patches_row_by_row() -> None:
    model: Any = tiny().eval()
    x = images(1)
    seen: list[torch.Tensor] = []
    model.dropout.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(x)
    weight, bias = model.patches.weight.flatten(1), model.patches.bias
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    patches = [weight @ x[0, :, i : i + 4, j : j + 4].flatten() + bias for i, j in corners]
    expected = torch.stack([model.class_token[0, 0], *patches]) + model.position[0]
    torch.testing.assert_close(seen[0][0], expected)


def test_dropout_acts_on_the_embedding() -> None:
    torch.manual_seed(0)
    model = tiny(depth=0, dropout=0.9)
    x = images(1).expand(8, -1, -1, -1)
    training, evaluation = model(x), model.eval()(x)
    assert (training[1:] - training[0]).abs().max() > 0.1
    torch.testing.assert_close(evaluation, evaluation[:1].expand_as(evaluation))


def test_patch_must_divide_the_image() -> None:
    with pytest.raises(ValueError, match="patch must divide the image size 8, got 3"):
        tiny(patch=3)
