"""EMA weights: a second network that follows the one in training, slowly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import paddle
from paddle import Tensor, nn

_CHOICES = ("_mask", "_count", "_stage", "index")


class ModelEMA(paddle.callbacks.Callback):
    """An exponential moving average of a network: ``average = decay * average + (1 - decay) * weight`` at each update.

    Parameters and BN statistics are averaged; masks, counters and indices are copied, so the average of a condensed
    network is condensed as well (the original averages its masks too, and its files hold 0.99997 where a 1 belongs).
    Use it as a callback of `paddle.Model.fit`, or call `update` after each optimizer step.

    Args:
        network: the network in training; its weights are where the average begins.
        decay: the share of the average that is kept at an update, in [0, 1).
        updates: updates done before. If given, the first updates keep less, ``(1 + n) / (10 + n)`` after n of them, as
            in TensorFlow's EfficientNets: a short training would else end with the weights that it began with.

    Attributes:
        network: the averaged network, in evaluation mode.

    Raises:
        ValueError: the decay is not in [0, 1).
    """

    model: paddle.Model

    def __init__(self, network: nn.Layer, decay: float = 0.9998, updates: int | None = None) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"ModelEMA: decay={decay} must be in [0, 1)")
        self.decay = decay
        self.updates = updates
        self.network = copy.deepcopy(network)
        self.network.eval()
        for parameter in self.network.parameters():
            parameter.stop_gradient = True

    def on_train_batch_end(self, step: int, logs: Mapping[str, Any] | None = None) -> None:
        accumulate = getattr(self.model, "_accumulate", 1)
        if (step + 1) % accumulate == 0 or step + 1 == self.params.get("steps"):
            self.update(self.model.network)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        # Connections may have gone after the last update.
        self.copy_choices(self.model.network)

    @paddle.no_grad()
    def update(self, network: nn.Layer) -> None:
        """Move the average towards a network, which must be a later state of the one that it began with."""
        self.copy_choices(network)
        current, decay = network.state_dict(), self.decay
        if self.updates is not None:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
            self.updates += 1
        for name, average in self.network.state_dict().items():
            if not _is_choice(name, average):
                # In float32 whatever the weights are in: 0.0002 of a half-precision weight is often nothing.
                moved = average.astype("float32") * decay + current[name].astype("float32") * (1 - decay)
                average.set_value(moved.astype(average.dtype))

    @paddle.no_grad()
    def copy_choices(self, network: nn.Layer) -> None:
        """Take over which connections a network has: masks, counters and indices."""
        current = network.state_dict()
        for name, average in self.network.state_dict().items():
            if _is_choice(name, average):
                average.set_value(current[name])


def _is_choice(name: str, tensor: Tensor) -> bool:
    """Whether an average would spoil it."""
    return name.rpartition(".")[2] in _CHOICES or not tensor.is_floating_point()
