"""The papers' training recipes, by name."""

from __future__ import annotations

from dataclasses import dataclass, field

from paddle.optimizer.lr import LRScheduler, PiecewiseDecay

from paddle_dense.errors import shown
from paddle_dense.training.augment import Augmentation
from paddle_dense.training.schedule import WarmupCosine, WarmupDecay


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        source: where the numbers come from.
        epochs: passes over the data.
        batch_size: images in a batch, over all devices.
        learning_rate: the full learning rate, for this batch size.
        weight_decay: L2 penalty on all parameters.
        warmup_epochs: epochs during which the rate rises.
        warmup_start: the rate that it rises from; it changes with the full rate.
        optimizer: one of `OPTIMIZERS`.
        decay: factor, and after how many epochs each time the rate is multiplied with it.
        milestones: shares of the training after which the rate falls to a tenth; along a half cosine if there are none.
        label_smoothing: share of the target that is spread over all classes.
        group_lasso: weight of the group lasso, for networks that learn connections.
        ema_decay: of the EMA weights, with ``--ema``.
        ema: keep EMA weights without being asked, which follow faster at the start.
        mixup, cutmix: see `Mixing`.
        clip_norm: the largest norm of all gradients together.
        network: arguments for networks that take them.
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
    ema: bool = False
    optimizer: str = "sgd"
    decay: tuple[float, float] | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_norm: float | None = None
    network: dict[str, float] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def schedule(self, learning_rate: float, steps_per_epoch: int, epochs: int) -> LRScheduler:
        """The learning rate at every step of a training, which may be shorter than the recipe's, warm-up and all."""
        total = steps_per_epoch * epochs
        if self.milestones:
            boundaries = [round(total * share) for share in self.milestones]
            return PiecewiseDecay(boundaries, [learning_rate * 0.1**n for n in range(len(boundaries) + 1)])
        start = self.warmup_start * learning_rate / self.learning_rate
        warmup = int(total * self.warmup_epochs / self.epochs)
        if self.decay:
            rate, every = self.decay
            return WarmupDecay(learning_rate, rate, total * every / self.epochs, warmup, start)
        return WarmupCosine(learning_rate, total, warmup, start)


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
    "cspnet-imagenet": Recipe(
        "timm's RandAugment recipe, as its examples give it for EfficientNet-B2 and its CSPNets are said to be trained",
        epochs=450,
        batch_size=256,
        learning_rate=0.016,
        weight_decay=1e-5,
        warmup_epochs=3,
        warmup_start=1e-6,
        label_smoothing=0.1,
        ema_decay=0.9999,
        ema=True,
        optimizer="rmsprop",
        decay=(0.97, 2.4),
        augmentation=_V2,
    ),
    "condconv-imagenet": Recipe(
        "EfficientNet, arXiv 1905.11946, section 5.2, with the mixup of CondConv, arXiv 1904.04971",
        epochs=350,
        batch_size=4096,
        learning_rate=0.256,
        weight_decay=1e-5,
        warmup_epochs=5,
        label_smoothing=0.1,
        ema_decay=0.9999,
        ema=True,
        optimizer="rmsprop",
        decay=(0.97, 2.4),
        mixup=0.2,
        network={"drop_rate": 0.2, "drop_path_rate": 0.2},
        augmentation=Augmentation(crop="resized", flip=True, rand_augment=(2, 9, 0.5)),
    ),
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
        batch_size=16,
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
