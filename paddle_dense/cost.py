"""What running a network may cost: a small file can be of one that computes with gigabytes.

What each layer reads and makes is counted from the shapes of its input and of its weight before it runs, so that a
network beyond the bounds ends before it has cost more than they allow. For one image,

- all layers together may take `_ALL` times as much as the weights. Of the networks that this package knows, CSPDenseNet
  takes the most: 122 times as much;
- a single layer may take `_ONE` times as much as the weights, which is four times what any of these takes;
- small files have less weight than a network needs images: `_ALL_SPARE` and `_ONE_SPARE` bytes are always allowed;
- the layer at hand has to fit into the memory that is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, prod
from typing import Any, Callable

import paddle
from paddle import Tensor, nn

from paddle_dense.errors import WeightsError
from paddle_dense.evaluation import evaluation
from paddle_dense.files.weights import free_memory
from paddle_dense.layers import CondConv2D, CondConvLinear, CondenseLGC, CondenseSFR, RoutedCondConv2D
from paddle_dense.layers.sfr import grouped_convolutions

_ALL, _ALL_SPARE = 128, 1 << 30
_ONE, _ONE_SPARE = 4, 1 << 28
_COPIES = 2  # at one time, of what a layer reads and makes: the layer before it and the one after it have theirs
_BYTES = 4  # of a float32


class CostError(WeightsError):
    """Running a network would cost out of all proportion to its file, or more memory than is free."""


@contextmanager
def affordable(model: nn.Layer, fix: str, size: int | None = None, batch: int = 1) -> Iterator[None]:
    """Inside, the model runs within bounds: a pass ends before the layer that would go beyond them.

    Args:
        model: a network of this package with a file's tensors.
        fix: what the user can do, the end of the error's sentence.
        size: side of the images in pixels; the network's own unless given; larger ones are allowed as
            much more.
        batch: images that go through it at once.

    Raises:
        CostError: it goes beyond them, at once if the images do by themselves.
    """
    own: int = model.input_size
    size = size or own
    weights = _BYTES * sum(prod(tensor.shape) for tensor in model.state_dict().values())
    larger = max(1.0, (size / own) ** 2)
    most, most_of_one = larger * max(_ALL * weights, _ALL_SPARE), larger * max(_ONE * weights, _ONE_SPARE)
    spent = 0

    def spend(numbers: int) -> None:
        nonlocal spent
        taken = _BYTES * numbers
        spent += taken
        what = f"running this network on an image of {size} x {size} pixels takes"
        if spent > most or taken > most_of_one:
            raise CostError(
                f"{what} {max(spent, taken) / 1e6:,.0f} MB and more for {weights / 1e6:,.1f} MB of weights, out of all "
                f"proportion: {fix}"
            )
        needed, free = _COPIES * batch * taken, free_memory()
        if needed > free:
            raise CostError(f"{what} {needed / 1e6:,.0f} MB of memory and {free / 1e6:,.0f} MB are free: {fix}")

    def begin(*_: Any) -> None:
        nonlocal spent
        spent = 0
        spend(pixels)

    pixels = model.config["in_channels"] * size**2
    begin()
    within = grouped_convolutions(model)
    layers = [layer for layer in model.sublayers() if layer not in within]
    hooks = [(model, begin), *((layer, _counting(layer, spend)) for layer in layers)]
    # Paddle's annotations want a result of hooks.
    handles = [layer.register_forward_pre_hook(hook) for layer, hook in hooks if hook]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_cost(model: nn.Layer, fix: str, size: int | None = None) -> None:
    """Run a black image through the model, within bounds.

    Args:
        model, fix, size: as of `affordable`.

    Raises:
        CostError: it goes beyond them.
    """
    side = size or model.input_size
    with affordable(model, fix, size), evaluation(model):
        model(paddle.zeros([1, model.config["in_channels"], side, side]))


def _convolved(x: Tensor, kernel: Sequence[int], stride: Any) -> int:
    """Numbers of a convolution's output, and of its input copied to each place of the kernel, as Paddle's CPU has it.

    `kernel` is the shape [out, in/groups, kh, kw].
    """
    strides = stride if isinstance(stride, (list, tuple)) else [stride] * 2
    places = prod(ceil(side / step) for side, step in zip(x.shape[2:], strides))
    copied = prod(kernel[1:]) if prod(kernel[2:]) > 1 else 0
    return (kernel[0] + copied) * places


# Numbers that a layer makes of its input for one image. Layers inside of it count by themselves.
_RULES: tuple[tuple[type | tuple[type, ...], Callable[[Any, Tensor], int]], ...] = (
    (
        (CondConv2D, RoutedCondConv2D),
        lambda layer, x: prod(layer.kernel_shape) + _convolved(x, layer.kernel_shape, layer.stride),
    ),
    (CondConvLinear, lambda layer, x: prod(layer.weight.shape[:2])),
    (
        CondenseSFR,  # its dense weight first
        lambda layer, x: layer.out_channels * x.shape[1] + _convolved(x, [layer.out_channels, x.shape[1], 1, 1], 1),
    ),
    (CondenseLGC, lambda layer, x: layer.index.shape[0] * prod(x.shape[2:])),
    (nn.Conv2D, lambda layer, x: _convolved(x, layer.weight.shape, layer._stride)),
    (nn.Linear, lambda layer, x: layer.weight.shape[1]),
)


def _counting(layer: nn.Layer, spend: Callable[[int], None]) -> Callable[[nn.Layer, tuple], None] | None:
    """A hook that tells what a layer is about to make; None for one that only calls others."""
    rule = next((rule for kinds, rule in _RULES if isinstance(layer, kinds)), None)
    if rule is None and layer._sub_layers:
        return None

    def hook(layer: Any, inputs: tuple) -> None:
        x = inputs[0]
        taken = prod(x.shape[1:])
        spend(taken + (rule(layer, x) if rule else taken))

    return hook
