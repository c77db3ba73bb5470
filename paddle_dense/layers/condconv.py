"""Conditionally parameterised convolutions (arXiv 1904.04971): every sample is convolved with its own kernel.

Equation 2 of the paper: with E experts W_e and routing weights r_e(x),

    y = (r_1(x) W_1 + ... + r_E(x) W_E) * x,    r(x) = sigmoid(fc(dropout(global_average_pool(x))))

Two parameterisations circulate. `CondConv2D` computes its own routing and keeps the experts as [E, out, in/g, kh, kw];
`RoutedCondConv2D`, which EfficientNet-CondConv is made of, is given the routing, which all convolutions of a block
share, and keeps every expert as a row of [E, out * in/g * kh * kw]. `mixed_conv2d` computes both.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Literal, Union, get_args

import paddle
from paddle import ParamAttr, Tensor, nn
from paddle.nn import functional as F
from paddle.nn.initializer import Constant, Initializer, Normal, Uniform

from paddle_dense.layers.conv import share
from paddle_dense.layers.linear import linear

Pair = Union[int, tuple[int, int], list[int]]
Geometry = tuple[Pair, Union[Pair, Literal["SAME"]], Pair]  # stride, padding, dilation
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

_PADDING_MODES = get_args(PaddingMode)


def mixed_conv2d(
    x: Tensor,
    routing: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | Literal["SAME"] = 0,
    dilation: Pair = 1,
    groups: int = 1,
    copies: bool = False,
) -> Tensor:
    """Convolve every sample with its own mixture of the experts' kernels: [B, in, H, W] -> [B, out, H', W'].

    A 1x1 kernel is one batched matrix product. Any other batch is one convolution: of a single image with B * groups
    groups, each sample's channels meeting its own kernel, or, in a static graph, of every sample with all experts,
    whose outputs are mixed afterwards. That is the same by linearity, ``(sum_e r_e W_e) * x = sum_e r_e (W_e * x)``,
    and E times the work. But a static graph may not know B, and Paddle Inference with oneDNN keeps the kernels that a
    convolution had for the first images.

    Args:
        x: the samples.
        routing: weight of each expert for each sample, [B, E].
        weight: the experts' kernels, [E, out, in/groups, kh, kw].
        bias: [out], or one for each expert, mixed as the kernels are: [E, out].
        stride: step of the kernel in pixels, one number or (height, width), as for the next two.
        padding: zeros added on every side, in pixels, or ``"SAME"`` for TensorFlow's padding.
        dilation: distance of the kernel's elements in pixels.
        groups: number of groups of the convolution.
        copies: in a static graph, give every expert of a depthwise convolution a copy of the channels: engines have
            kernels for depthwise convolutions alone, while Paddle's own take twice as long for so many channels.
    """
    if _is_pointwise(weight.shape[3:], stride, padding):
        y = _matrix_product(x, routing, weight, groups)
    elif paddle.in_dynamic_mode():
        y = _grouped_convolution(x, routing, weight, (stride, padding, dilation), groups)
    else:
        depthwise = tuple(weight.shape[1:3]) == (groups, 1)
        mixture = _mixture_of_depthwise if copies and depthwise else _mixture_of_outputs
        y = mixture(x, routing, weight, (stride, padding, dilation), groups)
    if bias is None:
        return y
    # One row for each sample either way: Paddle's CPU kernel adds a single row to a batch many times as slowly.
    bias = paddle.matmul(routing, bias) if bias.ndim == 2 else bias + paddle.zeros_like(routing[:, :1])
    return y + bias.reshape([-1, weight.shape[1], 1, 1])


def _matrix_product(x: Tensor, routing: Tensor, weight: Tensor, groups: int) -> Tensor:
    out_channels, per_group = weight.shape[1:3]
    kernels = paddle.matmul(routing, weight.flatten(1)).reshape([-1, groups, out_channels // groups, per_group])
    y = paddle.matmul(kernels, x.reshape([0, groups, per_group, -1]))
    return y.reshape([-1, out_channels, x.shape[2], x.shape[3]])


def _grouped_convolution(x: Tensor, routing: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    batch, out_channels = x.shape[0], weight.shape[1]
    kernels = paddle.matmul(routing, weight.flatten(1)).reshape([batch * out_channels, *weight.shape[2:]])
    y = F.conv2d(x.flatten(0, 1).unsqueeze(0), kernels, None, *geometry, batch * groups)
    return y.reshape([batch, out_channels, 0, 0])  # 0: as it was


def _mixture_of_outputs(x: Tensor, routing: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    experts, out_channels = weight.shape[:2]
    # A group's outputs must lie together, so the experts come after the groups.
    kernels = weight.reshape([experts, groups, -1]).transpose([1, 0, 2])
    y = F.conv2d(x, kernels.reshape([experts * out_channels, *weight.shape[2:]]), None, *geometry, groups)
    mixed = paddle.matmul(routing.unsqueeze([1, 2]), y.reshape([0, groups, experts, -1]))
    return mixed.reshape([-1, out_channels, y.shape[2], y.shape[3]])


def _mixture_of_depthwise(x: Tensor, routing: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    experts = weight.shape[0]
    kernels = weight.reshape([experts * groups, *weight.shape[2:]])
    y = F.conv2d(paddle.concat([x] * experts, axis=1), kernels, None, *geometry, experts * groups)
    mixed = paddle.matmul(routing.unsqueeze(1), y.reshape([0, experts, -1]))
    return mixed.reshape([-1, groups, y.shape[2], y.shape[3]])


class Routing(nn.Layer):
    """Weight of each expert for each sample: [B, C] -> [B, E], every one between 0 and 1.

    Args:
        channels: features C of a sample.
        num_experts: experts E.
        dropout_rate: share of the features that training drops.
    """

    def __init__(self, channels: int, num_experts: int, dropout_rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = linear(channels, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        return F.sigmoid(self.fc(self.dropout(x)))


class CondConv2D(nn.Layer):
    """A convolution whose kernel each sample mixes for itself: [B, in, H, W] -> [B, out, H', W'].

    Stands where `nn.Conv2D` does, grouped and depthwise ones included. Its weight is [E, out, in/groups, kh, kw].

    Args:
        in_channels: channels of the input, a multiple of `groups`.
        out_channels: channels of the output, a multiple of `groups`.
        kernel_size: size of the kernel in pixels, one number or (height, width), as for the next three.
        stride: step of the kernel in pixels.
        padding: pixels added on every side.
        dilation: distance of the kernel's elements in pixels.
        groups: number of groups of the convolution.
        bias: add a bias [out], the same for all experts.
        padding_mode: what is added: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        num_experts: experts E.
        dropout_rate: dropout before the routing's linear layer.

    Attributes:
        copies: see `mixed_conv2d`.

    Raises:
        ValueError: the channels do not divide into the groups, or the padding mode is unknown.
    """

    copies = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        num_experts: int = 3,
        dropout_rate: float = 0.2,
    ) -> None:
        super().__init__()
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"unknown padding mode {padding_mode!r}: choose one of {', '.join(_PADDING_MODES)}")
        self.kernel_shape = _kernel_shape(in_channels, out_channels, kernel_size, groups)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.padding_mode = padding_mode
        self._routing_fn = Routing(in_channels, num_experts, dropout_rate)
        # The original draws all experts as one tensor, so that its bound counts the outputs as well as the inputs.
        bound = 1.0 / sqrt(prod(self.kernel_shape))
        self.weight = _parameter(self, [num_experts, *self.kernel_shape], Uniform(-bound, bound))
        self.bias = _parameter(self, [out_channels], Uniform(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        routing = self._routing_fn(x.mean([2, 3]))
        padding = self.padding
        if self.padding_mode != "zeros":
            height, width = _pair(padding)
            x, padding = F.pad(x, [width, width, height, height], self.padding_mode), 0
        geometry = self.stride, padding, self.dilation
        return mixed_conv2d(x, routing, self.weight, self.bias, *geometry, self.groups, self.copies)


class RoutedCondConv2D(nn.Layer):
    """A `CondConv2D` that is given the routing: [B, in, H, W] and [B, E] -> [B, out, H', W'].

    Its weight is [E, out * in/groups * kh * kw], as in the released EfficientNet-CondConv checkpoints, and drawn as
    there from N(0, sqrt(2 / fan_out)) with ``fan_out = kh * kw * out / groups``.

    Args:
        in_channels: channels of the input, a multiple of `groups`.
        out_channels: channels of the output, a multiple of `groups`.
        kernel_size: size of the kernel in pixels, one number or (height, width), as for the next three.
        stride: step of the kernel in pixels.
        padding: zeros added on every side, in pixels, or ``"SAME"`` for TensorFlow's padding.
        dilation: distance of the kernel's elements in pixels.
        groups: number of groups of the convolution.
        bias: add a bias, mixed from one for each expert, [E, out].
        num_experts: experts E.

    Attributes:
        copies: see `mixed_conv2d`.

    Raises:
        ValueError: the channels do not divide into the groups.
    """

    copies = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | Literal["SAME"] = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = False,
        num_experts: int = 4,
    ) -> None:
        super().__init__()
        self.kernel_shape = _kernel_shape(in_channels, out_channels, kernel_size, groups)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        fan_out = out_channels * prod(self.kernel_shape[2:]) // groups
        self.weight = _parameter(self, [num_experts, prod(self.kernel_shape)], Normal(0.0, sqrt(2.0 / fan_out)))
        self.bias = _parameter(self, [num_experts, out_channels], Constant(0.0)) if bias else None

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        weight = self.weight.reshape([-1, *self.kernel_shape])
        geometry = self.stride, self.padding, self.dilation
        return mixed_conv2d(x, routing, weight, self.bias, *geometry, self.groups, self.copies)


class CondConvLinear(nn.Layer):
    """A linear layer whose matrix each sample mixes for itself: [B, in] -> [B, out].

    The same as a `CondConv2D` with a 1x1 kernel on images of one pixel, and so are its parameters: the weight is
    [E, out, in] in Paddle and PyTorch alike. One vector meets each matrix, so the experts' outputs are mixed and not
    their matrices: the result is the same, and no matrix is made for each sample.

    Args:
        in_features: length of the input.
        out_features: length of the output.
        bias: add a bias [out], the same for all experts.
        num_experts: experts E.
        dropout_rate: dropout before the routing's linear layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        num_experts: int = 3,
        dropout_rate: float = 0.2,
    ) -> None:
        super().__init__()
        self._routing_fn = Routing(in_features, num_experts, dropout_rate)
        bound = 1.0 / sqrt(in_features * out_features)
        self.weight = _parameter(self, [num_experts, out_features, in_features], Uniform(-bound, bound))
        self.bias = _parameter(self, [out_features], Uniform(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        experts, out_features, _ = self.weight.shape
        y = paddle.matmul(x, self.weight.flatten(0, 1), transpose_y=True)
        y = paddle.matmul(self._routing_fn(x).unsqueeze(1), y.reshape([-1, experts, out_features])).squeeze(1)
        return y if self.bias is None else y + self.bias


def _is_pointwise(kernel_size: Sequence[int], stride: Pair, padding: Pair | Literal["SAME"]) -> bool:
    unpadded = padding == "SAME" or sum(_pair(padding)) == 0
    return prod(kernel_size) == 1 and prod(_pair(stride)) == 1 and unpadded


def _pair(size: Pair) -> Sequence[int]:
    return (size, size) if isinstance(size, int) else size


def _kernel_shape(in_channels: int, out_channels: int, kernel_size: Pair, groups: int) -> list[int]:
    """Shape of one expert's kernel, [out, in/groups, kh, kw]."""
    share(out_channels, groups)
    return [out_channels, share(in_channels, groups), *_pair(kernel_size)]


def _parameter(layer: nn.Layer, shape: list[int], initializer: Initializer) -> Tensor:
    return layer.create_parameter(shape, attr=ParamAttr(initializer=initializer))
