"""How the networks are trained, as data: each family's recipe, and where each part comes from.

A recipe that changes gets a new version.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; ``train`` defines what the words mean.

    ``known`` names the parts that the released code or the paper's supplement states, ``inferred``
    those taken from the work whose style the authors follow. The others are ours.
    """

    name: str
    version: int
    epochs: int
    batch: int
    optimizer: Literal["adamw", "adam", "sgd"]
    learning_rate: float
    """The highest rate of the schedule."""
    momentum: float
    """Of SGD; the other optimizers use their defaults."""
    weight_decay: float
    """Applied to scores and rest alike."""
    schedule: Literal["piecewise", "cosine", "steps"]
    augmentation: str
    """One of the names in ``data.augment``."""
    known: tuple[str, ...]
    inferred: tuple[str, ...]

    def changed(self, **parts: Any) -> "Recipe":
        """The same recipe with other ``parts``, which then count as ours."""
        return replace(
            self,
            known=tuple(part for part in self.known if part not in parts),
            inferred=tuple(part for part in self.inferred if part not in parts),
            **parts,
        )


# Known for masked networks of depth 6 and width 256 on CIFAR-10, and used for all others.
CONVMIXER = Recipe(
    name="convmixer",
    version=1,
    epochs=100,
    batch=512,
    optimizer="adamw",
    learning_rate=0.05,
    momentum=0.0,
    weight_decay=0.005,
    schedule="piecewise",
    augmentation="convmixer",
    known=(
        *("epochs", "batch", "optimizer", "learning_rate", "weight_decay"),
        *("schedule", "augmentation"),
    ),
    inferred=(),
)

# Random crop and flip are known; the patch size of the model is not.
TINY_IMAGENET = replace(CONVMIXER, name="convmixer-tiny-imagenet", augmentation="tiny-imagenet")

VIT = Recipe(
    name="vit",
    version=1,
    epochs=200,
    batch=256,
    optimizer="adam",
    learning_rate=1e-4,
    momentum=0.0,
    weight_decay=0.0,
    schedule="cosine",
    augmentation="vit",
    known=("epochs", "batch", "learning_rate"),
    inferred=("optimizer", "weight_decay", "schedule", "augmentation"),
)

RESNET = Recipe(
    name="resnet",
    version=1,
    epochs=200,
    batch=128,
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="steps",
    augmentation="crop-flip",
    known=("momentum", "weight_decay"),
    inferred=("epochs", "batch", "optimizer", "learning_rate", "schedule", "augmentation"),
)
