"""ConvMixers match the paper in their number of weights and in structure."""

import pytest
import torch

import pemn_ref as pemn
from reproduce.models.convmixer import ConvMixer, MixerBlock


@pytest.mark.parametrize(("depth", "weights"), [(6, 437_248), (8, 581_120)])
def test_convmixer_has_the_weights_of_the_paper(depth: int, weights: int) -> None:
    with torch.device("meta"):
        model = ConvMixer(depth=depth, width=256, patch=2, kernel=5, channels=3, classes=10)
    shapes = pemn.maskable_shapes(model)
    assert sum(shape.numel() for shape in shapes.values()) == weights
    norms = sum(p.numel() for name, p in model.named_parameters() if name not in shapes)
    assert norms == (2 * depth + 1) * 2 * 256  # batch-norm only, no biases
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_convmixer_block_is_residual_around_its_depthwise_half() -> None:
    model = ConvMixer(depth=1, width=4, patch=2, kernel=3, channels=1, classes=2).eval()
    block = model.blocks[0]
    assert isinstance(block, MixerBlock)
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    patches = model.patches(images)
    assert patches.shape == (2, 4, 4, 4)
    torch.nn.init.zeros_(block.depthwise.conv.weight)
    # The depthwise half gives 0 (gelu(0), normalised by initial statistics): the residual remains.
    assert torch.equal(block(patches), block.pointwise(patches))
    mixed = block.pointwise(patches).mean(dim=(2, 3)) @ model.classifier.weight.T
    torch.testing.assert_close(model(images), mixed)
