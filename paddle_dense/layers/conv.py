"""Convolutions as the original networks initialise them."""

from __future__ import annotations

from math import sqrt

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Normal

from paddle_dense.layers.activation import activation as make_activation


def conv2d(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Conv2D:
    """A convolution without bias, drawn from N(0, sqrt(2 / fan_out)) with ``fan_out = kernel_size**2 * out_channels``.

    Paddle's own ``KaimingNormal`` counts the inputs (fan-in), which the papers' code does not, and 2.6 cannot be told
    otherwise.
    """
    for channels in (in_channels, out_channels):
        share(channels, groups)
    return nn.Conv2D(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=padding,
        groups=groups,
        weight_attr=fan_out(kernel_size, out_channels),
        bias_attr=False,
    )


def fan_out(kernel_size: int, out_channels: int) -> ParamAttr:
    """A weight drawn from N(0, sqrt(2 / fan_out)), as `conv2d` says."""
    return ParamAttr(initializer=Normal(0.0, sqrt(2.0 / (kernel_size * kernel_size * out_channels))))


# Below, the four operators take longer to call than they save.
_FEW_PIXELS = 256


def convolve(conv: nn.Conv2D, x: Tensor) -> Tensor:
    """What the layer answers, sooner for a narrow 3x3 one on a CPU: [N, in, H, W] -> [N, out, H, W].

    Paddle's kernel for CPUs copies every input to nine places and multiplies image after image and group after
    group. With tap d of the kernel at offset d from the centre,

        y[p] = sum_d W_d x[p + d] = sum_d m_d[p + d],    m_d = W_d x

    so one product of matrices does for all, which makes nine maps of every *output* where the copies were nine of
    every input, four times as many in dense networks. `F.fold` adds the maps up, map d moved by -d: it spreads where a
    convolution collects, hence `tap_products` has the taps in reverse.
    """
    if not paddle.in_dynamic_mode() or paddle.get_device() != "cpu" or not _spreads_less(conv):
        return conv(x)
    # The fold of Paddle 2.6 takes no single row or column.
    if 1 in x.shape[2:] or x.shape[0] * x.shape[2] * x.shape[3] < _FEW_PIXELS:
        return conv(x)
    return spread(tap_products(conv.weight, conv._groups), x)


def spread(products: Tensor, x: Tensor) -> Tensor:
    """The convolution whose `tap_products` these are: [N, in, H, W] -> [N, out, H, W]; N, H and W must be known."""
    _, groups, rows, per_group = products.shape
    maps = paddle.matmul(products, x.reshape([0, groups, per_group, -1]))
    return F.fold(maps.reshape([0, groups * rows, -1]), x.shape[2:], 3, paddings=1)


def _spreads_less(conv: nn.Conv2D) -> bool:
    """Whether it is a plain 3x3 convolution with fewer outputs than inputs, untouched."""
    if not is_untouched(conv) or conv.bias is not None:
        return False
    geometry = (conv._kernel_size, conv._stride, conv._updated_padding, conv._dilation, conv._padding_mode)
    return geometry == ([3, 3], [1, 1], [1, 1], [1, 1], "zeros") and conv._out_channels < conv._in_channels


def is_untouched(conv: nn.Layer) -> bool:
    """Whether nobody has replaced a convolution, as quantization does, or listens to it, as `paddle.summary` does.

    Only then may something equal be computed without calling it.
    """
    return type(conv) is nn.Conv2D and not conv._forward_pre_hooks and not conv._forward_post_hooks


def tap_products(weight: Tensor, groups: int) -> Tensor:
    """The taps of a 3x3 kernel as rows of a matrix for each group.

    [out, in/groups, 3, 3] -> [1, groups, 9 out/groups, in/groups]. The nine rows of an output are in the reverse order
    of its taps, as `F.fold` wants them.
    """
    outputs, per_group = weight.shape[:2]
    taps = weight.flatten(2).flip([2]).reshape([groups, outputs // groups, per_group, 9])
    return taps.transpose([0, 1, 3, 2]).reshape([1, groups, -1, per_group])


def share(channels: int, parts: int, what: str = "groups of a convolution") -> int:
    """Channels of each of so many equal parts.

    Raises:
        ValueError: the channels do not divide into these parts; `what` says what they are.
    """
    if channels % parts:
        raise ValueError(
            f"{channels} channels do not divide into {parts} {what}: change either number, or the network's growth rate"
        )
    return channels // parts


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

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.conv, self.activation(self.norm(x)))


class ConvNormAct(nn.Sequential):
    """Convolution, batch normalisation and, unless `act` is False, LeakyReLU: [N, in, H, W] -> [N, out, H', W'].

    Args:
        in_channels: channels of the input, a multiple of `groups`.
        out_channels: channels of the output, a multiple of `groups`.
        kernel_size: side of the kernel in pixels; half of it is padded with zeros on every side.
        stride: step of the kernel in pixels.
        groups: number of groups of the convolution.
        act: end with the activation.
        slope: of the activation below 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        slope: float = 0.01,
    ) -> None:
        layers = [
            ("conv", conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups)),
            ("bn", nn.BatchNorm2D(out_channels)),
        ]
        if act:
            layers.append(("act", nn.LeakyReLU(slope)))
        super().__init__(*layers)
