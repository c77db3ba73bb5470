"""Looking at a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import Tensor, nn


def name_of(model: nn.Layer) -> str:
    """What a model is called: its preset, or its class."""
    return getattr(model, "arch", type(model).__name__)


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


def as_arrays(outputs: Tensor | Sequence[Tensor]) -> list[np.ndarray]:
    """What a network answers, one tensor or several."""
    return [output.numpy() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference of two answers, relative to each output's scale; infinite for other shapes."""
    if [output.shape for output in found] != [output.shape for output in expected]:
        return float("inf")
    # Not Python's max, which may pass over a NaN.
    return float(
        np.max([np.abs(there - wanted).max() / (np.abs(wanted).max() or 1.0) for there, wanted in zip(found, expected)])
    )
