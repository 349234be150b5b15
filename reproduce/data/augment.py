"""The augmentation of each recipe: torchvision's own transforms, image by image, on PIL."""

from torchvision import transforms as t  # type: ignore[import-untyped]

from reproduce.data.batches import Transform
from reproduce.data.datasets import Dataset

# What comes before, on PIL, and after conversion to a normalised tensor. RandAugment's defaults
# are those of the recipes: nearest neighbour, black where an image was moved away.
_STEPS = {
    "plain": ([], []),
    "convmixer": (
        [t.RandomHorizontalFlip(), t.RandAugment(2, 12), t.ColorJitter(0.2, 0.2, 0.2)],
        [t.RandomErasing(p=0.2)],
    ),
    "vit": ([t.RandomCrop(32, padding=4), t.RandomHorizontalFlip(), t.RandAugment(2, 14)], []),
    "crop-flip": ([t.RandomCrop(32, padding=4), t.RandomHorizontalFlip()], []),
    "tiny-imagenet": ([t.RandomCrop(64, padding=8), t.RandomHorizontalFlip()], []),
}


def make_transform(augmentation: str, dataset: Dataset) -> Transform | None:
    """From an image of ``dataset`` to the tensor that a model sees; ``plain`` to evaluate.

    None where images come as such tensors.

    Raises:
        ValueError: for an unknown augmentation, or one that does not fit the dataset.
    """
    if augmentation not in _STEPS:
        raise ValueError(f"augmentation must be one of {', '.join(_STEPS)}, got {augmentation!r}")
    before, after = _STEPS[augmentation]
    if not dataset.mean:
        if before:
            raise ValueError(f"tensors take no augmentation but plain, got {augmentation!r}")
        return None
    for step in before:
        if isinstance(step, t.RandomCrop) and step.size != (dataset.size, dataset.size):
            raise ValueError(
                f"{augmentation!r} cuts images of {step.size[0]}, the dataset's are {dataset.size}"
            )
    transform: Transform = t.Compose(
        [*before, t.ToTensor(), t.Normalize(dataset.mean, dataset.std), *after]
    )
    return transform
