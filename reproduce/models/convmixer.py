"""ConvMixer (Trockman and Kolter, "Patches Are All You Need?", TMLR 2023, arXiv 2201.09792).

Follows the paper's figure 2 and appendix: a patch embedding, then ``depth`` times a depthwise
convolution with a residual around it and a pointwise convolution, each convolution followed by GELU
and batch-norm; average pooling and a linear classifier. There are no biases, as in PEMN.
"""

from torch import Tensor, nn
from torch.nn.functional import gelu


class ConvBlock(nn.Module):
    """Convolution, GELU, batch-norm."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int, padding: int, groups: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images in, images out."""
        y: Tensor = self.norm(gelu(self.conv(x)))
        return y


class MixerBlock(nn.Module):
    """Mix over space in each channel, with a residual; then over channels at each place."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = ConvBlock(
            width, width, kernel, stride=1, padding=kernel // 2, groups=width
        )
        self.pointwise = ConvBlock(width, width, 1, stride=1, padding=0, groups=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, height, width) in and out."""
        y: Tensor = self.pointwise(x + self.depthwise(x))
        return y


class ConvMixer(nn.Module):
    """Images (n, channels, height, width) -> logits (n, classes). ``kernel`` is odd."""

    def __init__(
        self, *, depth: int, width: int, patch: int, kernel: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.patches = ConvBlock(channels, width, patch, stride=patch, padding=0, groups=1)
        self.blocks = nn.Sequential(*[MixerBlock(width, kernel) for _ in range(depth)])
        self.classifier = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, not probabilities."""
        x = self.blocks(self.patches(x))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits
