"""Parameters and multiply-accumulates, counted as the papers count them and as the network executes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Callable

import numpy as np
import paddle
from paddle import Tensor, nn

from paddle_dense.evaluation import evaluation
from paddle_dense.layers import HS, CondConv2D, CondConvLinear, CondenseSFR, RoutedCondConv2D
from paddle_dense.layers.learned import LearnedConnections, MaskedConv2D
from paddle_dense.layers.sfr import grouped_convolutions

Count = Callable[[Any, Tensor, Tensor], int]  # of multiply-accumulates: (layer, input, output)


@dataclass(frozen=True)
class Profile:
    """What `profile` found.

    Attributes:
        params: parameters as the papers count them: a learned layer counts what will be left, 1/C of its weight.
        macs: multiply-accumulates for one image, as the papers count them.
        executed_macs: multiply-accumulates of the convolutions and matrix products that really run for one image.
        layers: name, parameters and MACs (as the papers count) of each layer that has any.
    """

    params: int
    macs: int
    executed_macs: int
    layers: tuple[tuple[str, int, int], ...]

    def __str__(self) -> str:
        return (
            f"{self.params:,} parameters, {self.macs / 1e6:.2f} M MACs as the papers count, "
            f"{self.executed_macs / 1e6:.2f} M executed"
        )


def profile(model: nn.Layer, input_shape: Sequence[int] | None = None) -> Profile:
    """Count parameters and multiply-accumulates by running one black image through the model.

    The papers count the products of convolutions and linear layers, 1 for each element of a ReLU or ReLU6, the window's
    area for each output of an average pool, 1 for each input of a global one and 2 for each element of a sigmoid;
    normalisation, gathers and shuffles are free. `executed_macs` are the products that run: a trained form executes its
    dense masked weights, and SFR the dense 1x1 convolution that its scatter-add amounts to.

    Args:
        model: any Paddle network; its state and mode are left as they were.
        input_shape: (channels, height, width) of the image; the network's own channels and size, or (3, 224, 224)
            for a network of another package, unless given.
    """
    if input_shape is None:
        size = getattr(model, "input_size", 224)
        input_shape = (model.config["in_channels"] if hasattr(model, "config") else 3, size, size)
    counted: dict[str, int] = {}
    executed: dict[str, int] = {}

    def record(name: str, rule: Count, layer: nn.Layer, inputs: tuple, output: Tensor) -> None:
        macs = int(rule(layer, inputs[0], output))
        counted[name] = counted.get(name, 0) + macs
        executed[name] = executed.get(name, 0) + _executed_macs(layer, macs, output)

    within = grouped_convolutions(model)  # counted with the layer around them, as masked ones are
    layers: Any = model.named_sublayers(include_self=True)  # Paddle's annotations want a result of hooks
    rules = (
        (name, layer, _rule(layer))
        for name, layer in layers
        if layer not in within and not isinstance(layer, MaskedConv2D)
    )
    handles = [layer.register_forward_post_hook(partial(record, name, rule)) for name, layer, rule in rules if rule]
    try:
        with evaluation(model):
            model(paddle.zeros([1, *input_shape]))
    finally:
        for handle in handles:
            handle.remove()

    params = _counted_params(model)
    names = list(dict.fromkeys([*params, *counted]))
    rows = ((name, params.get(name, 0), counted.get(name, 0)) for name in names)
    return Profile(
        sum(params.values()),
        sum(counted.values()),
        sum(executed.values()),
        tuple(row for row in rows if row[1] or row[2]),
    )


def _per_output(weight: Tensor, output: Tensor) -> int:
    """Products of a convolution: kernel height * width * inputs of a group, for each element of the output."""
    return prod(weight.shape[1:]) * prod(output.shape[1:])


# What the papers count, by kind of layer.
_COUNTED: tuple[tuple[type | tuple[type, ...], Count], ...] = (
    (
        (CondConv2D, RoutedCondConv2D),
        lambda layer, x, y: prod(layer.kernel_shape[1:]) * prod(y.shape[1:]) + layer.weight.size,
    ),
    (CondConvLinear, lambda layer, x, y: layer.weight.size),
    (LearnedConnections, lambda layer, x, y: _per_output(layer.conv.weight, y) // layer.condense_factor),
    (CondenseSFR, lambda layer, x, y: int(layer.conv.weight.size) * prod(y.shape[2:])),
    (nn.Conv2D, lambda layer, x, y: _per_output(layer.weight, y)),
    (nn.Linear, lambda layer, x, y: layer.weight.size),
    ((nn.ReLU, nn.ReLU6, HS), lambda layer, x, y: prod(x.shape[1:])),
    (nn.AvgPool2D, lambda layer, x, y: prod(y.shape[1:]) * int(np.prod(np.broadcast_to(layer.ksize, 2)))),
    (nn.AdaptiveAvgPool2D, lambda layer, x, y: prod(x.shape[1:])),
    (nn.Sigmoid, lambda layer, x, y: 2 * prod(x.shape[1:])),
)

_PRODUCTS = (nn.Conv2D, nn.Linear, CondConv2D, RoutedCondConv2D, CondConvLinear)


def _rule(layer: nn.Layer) -> Count | None:
    return next((rule for kinds, rule in _COUNTED if isinstance(layer, kinds)), None)


def _executed_macs(layer: nn.Layer, counted: int, output: Tensor) -> int:
    if isinstance(layer, LearnedConnections):
        return _per_output(layer.conv.weight, output)
    if isinstance(layer, CondenseSFR):
        return _per_output(layer.conv.weight, output) * layer.groups
    return counted if isinstance(layer, _PRODUCTS) else 0


def _counted_params(model: nn.Layer) -> dict[str, int]:
    layers = dict(model.named_sublayers(include_self=True))
    learned = {f"{n}.conv": x.condense_factor for n, x in layers.items() if isinstance(x, LearnedConnections)}
    return {
        name: sum(
            int(parameter.size)
            for key, parameter in layer.named_parameters(include_sublayers=False)
            if key not in ("_mean", "_variance")  # Paddle files the running statistics under parameters
        )
        // learned.get(name, 1)
        for name, layer in layers.items()
    }
