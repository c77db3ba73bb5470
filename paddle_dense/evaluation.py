"""Looking at a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import paddle
from paddle import nn


@contextmanager
def evaluation(model: nn.Layer) -> Iterator[None]:
    """The model in evaluation mode and without gradients; afterwards every layer is in the mode that it was in."""
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        with paddle.no_grad():
            yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextmanager
def on_cpu() -> Iterator[None]:
    """Paddle on the CPU, where float32 is float32; the device is put back afterwards."""
    device = paddle.get_device()
    paddle.set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(device)
