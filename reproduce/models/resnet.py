"""ResNet for small images (He et al., "Deep Residual Learning", CVPR 2016, arXiv 1512.03385).

Follows section 4.2: a 3x3 convolution; three stages of n blocks, each of two 3x3 convolutions, with
widths 16, 32 and 64, where the second and third stage halve the resolution; average pooling and a
linear classifier. That makes 6n + 2 layers. Shortcuts are the parameter-free ones of option A. The
paper does not say where the new channels go: here half of them on either side, as in the widely
used PyTorch version by Y. Idelbayev (pytorch_resnet_cifar10). Initialisation is PyTorch's default.
"""

from torch import Tensor, nn
from torch.nn.functional import pad, relu


class Block(nn.Module):
    """Two convolutions, each with batch-norm, and a shortcut around both."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every ``stride``-th pixel, and zeros for the new channels."""
        if self.stride == 1:
            return x
        before = self.new_channels // 2
        after = self.new_channels - before
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, after))

    def forward(self, x: Tensor) -> Tensor:
        """Images in, images out; the last ReLU comes after the sum."""
        y = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Images (n, channels, height, width) -> logits (n, classes).

    ``width`` is the width of the first stage.

    Raises:
        ValueError: if ``depth`` is not 6n + 2.
    """

    def __init__(self, *, depth: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 8, 14, 20, ... (6n + 2), got {depth}")
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks = []
        inputs = width
        for stage in range(3):
            for block in range((depth - 2) // 6):
                outputs = width * 2**stage
                blocks.append(Block(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, not probabilities."""
        x = self.blocks(relu(self.norm(self.conv(x))))
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits
