"""The residual networks match the paper in their number of weights and in structure."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

import pemn_ref as pemn
from reproduce.models.resnet import Block, ResNet


@pytest.mark.parametrize(
    ("depth", "classes", "weights"),
    [(32, 10, 461_872), (56, 10, 848_944), (32, 100, 461_872 + 90 * 64)],
)
def test_resnet_has_the_weights_of_the_paper(depth: int, classes: int, weights: int) -> None:
    with torch.device("meta"):
        model = ResNet(depth=depth, width=16, channels=3, classes=classes)
    shapes = pemn.maskable_shapes(model)
    assert len(shapes) == depth  # shortcuts have none
    assert sum(shape.numel() for shape in shapes.values()) == weights
    assert max(shape.numel() for shape in shapes.values()) == 36_864
    rest = sum(p.numel() for name, p in model.named_parameters() if name not in shapes)
    blocks = (depth - 2) // 6
    assert rest == 2 * (16 + 2 * blocks * (16 + 32 + 64)) + classes  # batch-norm, one bias
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, classes)


def test_stages_halve_the_resolution_twice() -> None:
    model = ResNet(depth=14, width=4, channels=1, classes=10).eval()
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = model.conv(images)
    sizes = []
    for block in model.blocks:
        x = block(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(4, 8, 8), (4, 8, 8), (8, 4, 4), (8, 4, 4), (16, 2, 2), (16, 2, 2)]
    assert model(images).shape == (2, 10)


def test_shortcut_is_every_second_place_and_zeros_for_new_channels() -> None:
    block = Block(2, 4, stride=2).eval()
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(1, 1, 2, 2)
    expected = torch.cat([zeros, x[:, :, [0, 2]][..., [0, 2]], zeros], dim=1)
    assert torch.equal(block.shortcut(x), expected)
    torch.nn.init.zeros_(block.conv2.weight)  # only the shortcut remains
    assert torch.equal(block(x), expected.relu())
    assert Block(2, 2, stride=1).shortcut(x) is x


def test_classifier_reads_the_mean_over_places() -> None:
    model = ResNet(depth=8, width=2, channels=1, classes=3).eval()
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    features = model.blocks(model.norm(model.conv(images)).relu())
    pooled = avg_pool2d(features, 2).flatten(1)
    torch.testing.assert_close(model(images), model.classifier(pooled))


@pytest.mark.parametrize("depth", [2, 30, 34])
def test_depth_must_be_6n_plus_2(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"6n \+ 2.*got {depth}"):
        ResNet(depth=depth, width=16, channels=3, classes=10)
