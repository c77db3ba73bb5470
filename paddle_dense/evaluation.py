"""Looking at a model without changing it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import paddle
from paddle import Tensor, nn

Model = TypeVar("Model", bound=Any)


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


def rounded(value: float) -> float:
    """A number as float32 has it."""
    return float(np.float32(value))


def copied(model: Model) -> Model:
    """A copy of a network of either framework.

    Some layers keep a weight that they compute in each pass, as those with weight_norm do, which neither copies.
    """
    layers = model.modules() if hasattr(model, "modules") else model.sublayers(include_self=True)
    computed = (value for layer in layers for value in vars(layer).values() if not getattr(value, "is_leaf", True))
    return copy.deepcopy(model, {id(value): value.detach() for value in computed})


def brought_to_cpu(network: nn.Layer) -> nn.Layer:
    """A copy with its tensors on the CPU, or the network itself where they are there already."""
    elsewhere = any(not tensor.place.is_cpu_place() for tensor in network.state_dict().values())
    return copied(network).to(device="cpu") if elsewhere else network


def paddle_in_double_precision(model: nn.Layer) -> nn.Layer:
    """A copy of the model in float64, to be run within `double_precision`; integers such as an index stay integers."""
    model = copied(model)
    integers = [
        (layer, name, buffer.clone())
        for layer in model.sublayers(include_self=True)
        for name, buffer in layer.named_buffers(include_sublayers=False)
        if not paddle.is_floating_point(buffer)
    ]
    model.to(dtype="float64")
    for layer, name, buffer in integers:
        layer.register_buffer(name, buffer)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.AdaptiveAvgPool2D):
            # Paddle's annotations want a result of hooks, and one input.
            layer.register_forward_post_hook(_average_exactly)  # type: ignore[arg-type]
    return model


def _average_exactly(layer: nn.Layer, inputs: tuple[Tensor], output: Tensor) -> None:
    """Undo that the gradient of Paddle's average over n pixels is multiplied by 1/n in float32, whatever its dtype."""
    share = math.prod(output.shape[2:]) / math.prod(inputs[0].shape[2:])
    if paddle.in_dynamic_mode() and not output.stop_gradient:
        output.register_hook(lambda gradient: gradient * (share / rounded(share)))


@contextmanager
def double_precision() -> Iterator[None]:
    """Paddle networks built inside compute in float64, and those of `paddle_in_double_precision` can be run."""
    default = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    try:
        yield
    finally:
        paddle.set_default_dtype(default)
