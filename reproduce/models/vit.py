"""ViT (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929).

Follows the paper's figure 1: embedded patches and a class token, a learned position embedding;
``depth`` times attention and MLP, each after a layer norm and with a residual around it; a last
layer norm and a linear classifier on the class token. The paper has no small models, so the details
are those of P. Wang's vit-pytorch, which PEMN's sizes point to: the head width does not depend on
the model's width; query, key and value come from one matrix without bias; class token and position
embedding are drawn from a standard normal. Attention is PyTorch's function, for its fused kernels.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head self-attention with dropout on its weights and on its output."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) in and out."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (n, heads, tokens, head_width)
            for part in self.qkv(x).chunk(3, dim=2)
        )
        dropout = self.dropout.p if self.training else 0.0
        y = scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        y = y.transpose(1, 2).flatten(2)  # the heads side by side
        z: Tensor = self.dropout(self.out(y))
        return z


class MLP(nn.Sequential):
    """Two linear layers over the channels of each token."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )


class Block(nn.Module):
    """Attention over the tokens, then an MLP over the channels; norms are inside the residuals."""

    def __init__(self, width: int, heads: int, head_width: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, head_width, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) in and out."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class ViT(nn.Module):
    """Images (n, channels, size, size) -> logits (n, classes).

    ``dropout`` acts on the embedding, on the attention weights and after every linear layer of a
    block except qkv.

    Raises:
        ValueError: if ``patch`` does not divide ``size``.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        heads: int,
        head_width: int,
        mlp: int,
        patch: int,
        dropout: float,
        size: int,
        channels: int,
        classes: int,
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"patch must divide the image size {size}, got {patch}")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *[Block(width, heads, head_width, mlp, dropout) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, not probabilities."""
        x = self.patches(x).flatten(2).transpose(1, 2)  # (n, patches, width)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position
        x = self.blocks(self.dropout(x))
        logits: Tensor = self.classifier(self.norm(x[:, 0]))
        return logits
