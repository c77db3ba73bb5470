"""How often a network is right, on one device or many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle
from paddle import distributed, nn
from paddle.io import Dataset
from paddle.nn import functional as F

from paddle_dense.evaluation import evaluation
from paddle_dense.training.data import ImageLoader, Unreadable


@dataclass(frozen=True)
class Accuracy:
    """The result on a whole dataset.

    Attributes:
        loss: mean cross entropy.
        top1: share of the images whose class is the first answer.
        images: how many there were, every one counted once.
    """

    loss: float
    top1: float
    images: int


def measure_accuracy(
    network: nn.Layer, dataset: Dataset, batch_size: int = 64, workers: int = 0, unreadable: Unreadable | None = None
) -> Accuracy:
    """Run a network over a dataset; the devices share the images, and all get the same result.

    Args:
        network: logits [N, classes]; its mode is left as it is.
        dataset: gives (image [C, H, W], class).
        batch_size: images at once, on each device.
        workers: processes that prepare images.
        unreadable: takes note of the images that cannot be read, which are left out.

    Raises:
        ValueError: there are no images, or none can be read.
    """
    if not len(dataset):
        raise ValueError("there is no image to evaluate on: add some to the test part of the data")
    mine = range(distributed.get_rank(), len(dataset), distributed.get_world_size())
    batches = [list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]
    # Whole numbers and a sum in float64: the result does not depend on how the images were shared.
    sums = np.zeros(3)
    with evaluation(network):
        for images, labels in ImageLoader(dataset, batches, workers, unreadable):
            logits = network(images)
            losses = F.cross_entropy(logits.astype("float32"), labels, reduction="none")
            sums += (losses.numpy().sum(dtype="f8"), (logits.argmax(1) == labels).sum().item(), len(labels))
    if distributed.is_initialized():
        total = paddle.to_tensor(sums)
        distributed.all_reduce(total)
        sums = total.numpy()
    if not sums[2]:
        raise ValueError("no image to evaluate on can be read: replace those of the test part of the data")
    return Accuracy(sums[0] / sums[2], sums[1] / sums[2], int(sums[2]))
