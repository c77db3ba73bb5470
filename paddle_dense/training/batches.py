"""The order of the training data, as a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from paddle import distributed
from paddle.io import BatchSampler


class TrainingBatches(BatchSampler):
    """Batches of (epoch, number of the image), from one step of the training to its end, for one device of many.

    Every epoch has its own permutation, made from the seed and the epoch, so a continued run sees what an uninterrupted
    one sees. A batch is the same images on one device or many; each device takes its part. What is left over at the
    end of an epoch is left out.

    Args:
        images: how many there are.
        batch_size: images in a batch, over all devices.
        epochs: passes over the data.
        seed: of the permutations.
        start_step: batches that are done already.
        accumulate: batches in an update; an epoch has a multiple of it.

    Attributes:
        steps_per_epoch: batches in an epoch.
        total_steps: batches in the whole training.

    Raises:
        ValueError: the batch cannot be divided among the devices, or is larger than the data.
    """

    def __init__(
        self, images: int, batch_size: int, epochs: int, seed: int, start_step: int = 0, accumulate: int = 1
    ) -> None:
        self.rank, devices = distributed.get_rank(), distributed.get_world_size()
        if batch_size % devices:
            raise ValueError(f"a batch of {batch_size} images cannot be divided among {devices} devices: change it")
        if batch_size * accumulate > images:
            times = f"{accumulate} times " if accumulate > 1 else ""
            raise ValueError(
                f"{times}a batch of {batch_size} is more than the {images} training images: make it smaller"
            )
        self.images = images
        self.share = batch_size // devices
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.steps_per_epoch = images // (batch_size * accumulate) * accumulate
        self.total_steps = self.steps_per_epoch * epochs

    # Paddle's has plain numbers; a loader hands on to the dataset whatever stands in the lists.
    def __iter__(self) -> Iterator[list[tuple[int, int]]]:  # type: ignore[override]
        for step in range(self.start_step, self.total_steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if number == 0 or step == self.start_step:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
            first = number * self.batch_size + self.rank * self.share
            yield [(epoch, int(image)) for image in order[first : first + self.share]]

    def __len__(self) -> int:
        return self.total_steps - self.start_step
