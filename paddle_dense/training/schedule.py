"""Learning rates of the papers' recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import paddle
from paddle.optimizer.lr import LRScheduler


class WarmupCosine(LRScheduler):
    """The learning rate rises linearly to its full value and then falls to 0 along a half cosine.

    The cosine runs over the whole training and the warm-up replaces its first part, as in CondenseNet V2's recipe. The
    rate is a function of the step alone, so a continued run has the rate of an uninterrupted one.

    Args:
        learning_rate: the full value.
        total_steps: calls of `step` in the whole training.
        warmup_steps: how many of them the rate rises.
        warmup_start: the rate at step 0, if there is a warm-up.
        last_epoch: the last step done; -1 at the start.

    Raises:
        ValueError: the warm-up takes longer than the training.
    """

    def __init__(
        self,
        learning_rate: float,
        total_steps: int,
        warmup_steps: int = 0,
        warmup_start: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"WarmupCosine: warmup_steps={warmup_steps} must be 0 or more and fewer than total_steps={total_steps}"
            )
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.warmup_start = warmup_start
        super().__init__(learning_rate, last_epoch)

    def get_lr(self) -> float:
        step = min(self.last_epoch, self.total_steps)
        if step < self.warmup_steps:
            return self.warmup_start + (self.base_lr - self.warmup_start) * step / self.warmup_steps
        return self.base_lr * (1 + math.cos(math.pi * step / self.total_steps)) / 2


class WarmupDecay(LRScheduler):
    """The learning rate rises linearly to its full value and then falls by the same factor again and again.

    A function of the step alone, as `WarmupCosine`. The decay is counted from the start and not from the end of the
    warm-up, as timm does.

    Args:
        learning_rate: the full value.
        decay_rate: what the rate is multiplied with.
        decay_steps: after so many steps each time.
        warmup_steps: during which the rate rises.
        warmup_start: the rate at step 0, if there is a warm-up.
        last_epoch: the last step done; -1 at the start.
    """

    def __init__(
        self,
        learning_rate: float,
        decay_rate: float,
        decay_steps: float,
        warmup_steps: int = 0,
        warmup_start: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.decay_rate = decay_rate
        self.decay_steps = decay_steps
        self.warmup_steps = warmup_steps
        self.warmup_start = warmup_start
        super().__init__(learning_rate, last_epoch)

    def get_lr(self) -> float:
        if self.last_epoch < self.warmup_steps:
            return self.warmup_start + (self.base_lr - self.warmup_start) * self.last_epoch / self.warmup_steps
        return self.base_lr * self.decay_rate ** (self.last_epoch // self.decay_steps)


class RateOfUpdates(paddle.callbacks.LRScheduler):
    """Paddle's callback, with one rate for all batches whose gradients are added up.

    Args:
        batches: in an update.
    """

    def __init__(self, batches: int = 1) -> None:
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, step: int, logs: Mapping[str, Any] | None = None) -> None:
        if (step + 1) % self.batches == 0:
            for _ in range(self.batches):
                super().on_train_batch_end(step, None)
