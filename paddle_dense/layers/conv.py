"""Convolutions and linear layers as the original networks initialise them."""

from __future__ import annotations

from math import sqrt

from paddle import ParamAttr, nn
from paddle.nn.initializer import Constant, Normal, Uniform

from paddle_dense.layers.activation import activation as make_activation


def conv2d(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Conv2D:
    """A convolution without bias, drawn from N(0, sqrt(2 / fan_out)) with ``fan_out = kernel_size**2 * out_channels``.

    Paddle's own ``KaimingNormal`` counts the inputs (fan-in), which the papers' code does not, and 2.6 cannot be told
    otherwise.
    """
    for channels in (in_channels, out_channels):
        share(channels, groups, "groups of a convolution")
    std = sqrt(2.0 / (kernel_size * kernel_size * out_channels))
    return nn.Conv2D(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=padding,
        groups=groups,
        weight_attr=ParamAttr(initializer=Normal(0.0, std)),
        bias_attr=False,
    )


def share(channels: int, parts: int, what: str) -> int:
    """Channels of each of so many equal parts.

    Raises:
        ValueError: the channels do not divide into these parts; `what` says what they are.
    """
    if channels % parts:
        raise ValueError(f"{channels} channels do not divide into {parts} {what}: change the growth rate or the number")
    return channels // parts


def linear(in_features: int, out_features: int, bias: bool = True, zero_bias: bool = False) -> nn.Linear:
    """A linear layer drawn from U(-b, b), ``b = 1 / sqrt(in_features)``, as PyTorch does; the bias too, or 0."""
    bound = 1.0 / sqrt(in_features)
    bias_initializer = Constant(0.0) if zero_bias else Uniform(-bound, bound)
    return nn.Linear(
        in_features,
        out_features,
        weight_attr=ParamAttr(initializer=Uniform(-bound, bound)),
        bias_attr=ParamAttr(initializer=bias_initializer) if bias else False,
    )


class Conv(nn.Sequential):
    """Batch normalisation, activation, then a grouped convolution: [N, in, H, W] -> [N, out, H', W'].

    Args:
        in_channels: channels of the input, a multiple of `groups`.
        out_channels: channels of the output, a multiple of `groups`.
        kernel_size: side of the kernel in pixels.
        stride: step of the kernel in pixels.
        padding: zeros added on every side, in pixels.
        groups: number of groups of the convolution.
        activation: ``"ReLU"`` or ``"HS"``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        activation: str = "ReLU",
    ) -> None:
        super().__init__(
            ("norm", nn.BatchNorm2D(in_channels)),
            ("activation", make_activation(activation)),
            ("conv", conv2d(in_channels, out_channels, kernel_size, stride, padding, groups)),
        )
