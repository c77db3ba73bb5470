"""Mixup and CutMix of whole batches, and the loss for mixed targets and weighted classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor, distributed, nn
from paddle.nn import functional as F

_STREAM = 1  # of random numbers, apart from those of the data's order


class Mixing:
    """Mixes each image of a batch with the one at the mirrored place, as timm's ``Mixup`` does in batch mode.

    Mixup (arXiv 1710.09412) takes ``share * image + (1 - share) * other``, CutMix (arXiv 1905.04899) puts a rectangle
    of the other into the image; with both, either is drawn for each batch. What is drawn depends on seed, device and
    step alone.

    Args:
        classes: how many there are.
        mixup: the share is drawn from Beta(mixup, mixup); 0 for none.
        cutmix: the same for CutMix, where it is the share of the area that is left.
        seed: of the run.
    """

    def __init__(self, classes: int, mixup: float, cutmix: float, seed: int) -> None:
        self.classes, self.mixup, self.cutmix, self.seed = classes, mixup, cutmix, seed

    def __call__(self, step: int, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Images [N, C, H, W] and classes [N] of a step to mixed images and targets [N, classes]."""
        random = np.random.default_rng([self.seed, _STREAM, distributed.get_rank(), step])
        cut = self.cutmix > 0 and (self.mixup == 0 or random.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = float(random.beta(alpha, alpha))
        if cut:
            mask, share = _rectangle(random, share, *images.shape[2:])
            kept = paddle.to_tensor(mask, dtype=images.dtype)
        else:
            kept = paddle.full([], share, dtype=images.dtype)
        targets = F.one_hot(labels, self.classes)
        return [
            images * kept + images.flip([0]) * (1 - kept),
            targets * share + targets.flip([0]) * (1 - share),
        ]


def _rectangle(random: np.random.Generator, share: float, height: int, width: int) -> tuple[np.ndarray, float]:
    """1 outside a rectangle with about ``1 - share`` of the area, 0 inside, and the share that is left of the image."""
    sides = np.array([height, width])
    centre = (random.random(2) * sides).astype(int)
    half = (sides * (1 - share) ** 0.5).astype(int) // 2
    (top, left), (bottom, right) = (centre - half).clip(0), np.minimum(centre + half, sides)
    mask = np.ones([height, width], np.float32)
    mask[top:bottom, left:right] = 0
    return mask, float(mask.mean(dtype="f8"))


class WeightedCrossEntropy(nn.Layer):
    """Cross entropy with a weight for each class, of classes [N] or of mixed targets [N, classes].

    ``sum(w[c] * smoothed[n, c] * -log p[n, c]) / sum(w[c] * target[n, c])``: for classes [N] that is what PyTorch's
    `CrossEntropyLoss` computes, with label smoothing too.

    Args:
        weights: of the classes.
        label_smoothing: share of the target that is spread over all classes.
    """

    def __init__(self, weights: Sequence[float], label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.weights = paddle.to_tensor(np.asarray(weights, np.float32))
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        count = len(self.weights)
        if targets.ndim == 1 or targets.shape[1] == 1 < count:
            targets = F.one_hot(targets.reshape([-1]), count)
        smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / count
        losses = -(F.log_softmax(logits.astype("float32"), axis=1) * smoothed * self.weights).sum()
        return losses / (targets * self.weights).sum()


class SharedLoss(nn.Layer):
    """A loss divided by the number of batches whose gradients are added up before an update.

    Args:
        loss: of a batch.
        batches: how many.
    """

    def __init__(self, loss: nn.Layer, batches: int) -> None:
        super().__init__()
        self.loss, self.batches = loss, batches

    def forward(self, *outputs_and_labels: Tensor) -> Tensor:
        return self.loss(*outputs_and_labels) / self.batches


def class_weights(text: str, labels: Sequence[int], classes: int) -> list[float]:
    """The weights of the classes.

    Args:
        text: ``"balanced"``, for weights inversely proportional to the number of images, 1 on average over these; or
            a number for each class, with commas between.
        labels: of the training images.
        classes: how many there are.

    Raises:
        ValueError: these are no weights for so many classes.
    """
    if text == "balanced":
        counts = np.bincount(np.asarray(labels), minlength=classes)
        return (len(labels) / (classes * np.maximum(counts, 1))).tolist()
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != classes or not all(0 <= weight < float("inf") for weight in weights) or not sum(weights):
        raise ValueError(
            f"--class-weights {text[:80]!r} must be 'balanced', or {classes} numbers from 0 with commas between, one "
            f"for each class"
        )
    return weights
