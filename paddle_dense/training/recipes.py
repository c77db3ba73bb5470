"""The papers' training recipes, by name."""

from __future__ import annotations

from dataclasses import dataclass, field

from paddle.optimizer.lr import LRScheduler, PiecewiseDecay

from paddle_dense.errors import shown
from paddle_dense.training.augment import Augmentation
from paddle_dense.training.schedule import WarmupCosine


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum 0.9 in all recipes here.

    Attributes:
        source: where the numbers come from.
        epochs: passes over the data.
        batch_size: images in a batch, over all devices.
        learning_rate: the full learning rate, for this batch size.
        weight_decay: L2 penalty on all parameters.
        warmup_epochs: epochs during which the rate rises.
        warmup_start: the rate that it rises from; it changes with the full rate.
        milestones: shares of the training after which the rate falls to a tenth; along a half cosine if there are none.
        label_smoothing: share of the target that is spread over all classes.
        group_lasso: weight of the group lasso, for networks that learn connections.
        ema_decay: of the EMA weights, with ``--ema``.
        augmentation: what is done to the training images.
    """

    source: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: float = 0.0
    warmup_start: float = 0.0
    milestones: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    group_lasso: float = 1e-5
    ema_decay: float = 0.9998
    augmentation: Augmentation = field(default_factory=Augmentation)

    def schedule(self, learning_rate: float, steps_per_epoch: int, epochs: int) -> LRScheduler:
        """The learning rate at every step of a training, which may be shorter than the recipe's, warm-up and all."""
        total = steps_per_epoch * epochs
        if self.milestones:
            boundaries = [round(total * share) for share in self.milestones]
            return PiecewiseDecay(boundaries, [learning_rate * 0.1**n for n in range(len(boundaries) + 1)])
        start = self.warmup_start * learning_rate / self.learning_rate
        return WarmupCosine(learning_rate, total, int(total * self.warmup_epochs / self.epochs), start)


_CIFAR = Augmentation(crop="pad", flip=True)
_IMAGENET = Augmentation(crop="resized", flip=True)
_V2 = Augmentation(crop="resized", flip=True, rand_augment=(2, 9, 0.5), random_erasing=0.2)
_CONDENSENET = "CondenseNet, arXiv 1711.09224, section 4.1"
_DENSENET = "DenseNet, arXiv 1608.06993, section 4.2"

# Those in one line: source, epochs, batch size, learning rate, weight decay.
RECIPES = {
    "condensenetv2-imagenet": Recipe(
        "CondenseNet V2, arXiv 2104.04382 and its code",
        epochs=350,
        batch_size=1024,
        learning_rate=0.4,
        weight_decay=4e-5,
        warmup_epochs=5,
        warmup_start=0.1,
        label_smoothing=0.1,
        augmentation=_V2,
    ),
    "condensenet-imagenet": Recipe(_CONDENSENET, 120, 256, 0.1, 1e-4, augmentation=_IMAGENET),
    "condensenet-cifar": Recipe(_CONDENSENET, 300, 64, 0.1, 1e-4, augmentation=_CIFAR),
    "condensenet182-cifar": Recipe("CondenseNet, arXiv 1711.09224, table 2", 600, 64, 0.1, 1e-4, augmentation=_CIFAR),
    "densenet-imagenet": Recipe(_DENSENET, 90, 256, 0.1, 1e-4, milestones=(1 / 3, 2 / 3), augmentation=_IMAGENET),
    "densenet-cifar": Recipe(_DENSENET, 300, 64, 0.1, 1e-4, milestones=(1 / 2, 3 / 4), augmentation=_CIFAR),
    "digits": Recipe(
        "weights/README.md",
        epochs=100,
        batch_size=64,
        learning_rate=0.1,
        weight_decay=5e-4,
        augmentation=Augmentation(crop="affine"),
        label_smoothing=0.1,
        ema_decay=0.99,
    ),
    "scratch": Recipe(
        "a start for images of one's own, fewer than 10,000, without weights to begin with",
        epochs=100,
        batch_size=16,
        learning_rate=0.05,
        weight_decay=5e-4,
        warmup_epochs=5,
        augmentation=Augmentation(crop="resized", scale=(0.35, 1.0), flip=True),
        label_smoothing=0.1,
        ema_decay=0.99,
    ),
    "finetune": Recipe(
        "a start for images of one's own",
        epochs=20,
        batch_size=64,
        learning_rate=0.01,
        weight_decay=1e-4,
        warmup_epochs=1,
        augmentation=_IMAGENET,
        label_smoothing=0.1,
        ema_decay=0.99,
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {shown(name)}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
