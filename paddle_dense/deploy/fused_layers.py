r"""The layers that fused networks are made of, each with the algebra that makes it equal to what it stands for.

A batch normalisation in evaluation mode is ``s * x + t`` for every channel, with ``s = weight / sqrt(variance + eps)``
and ``t = bias - s * mean``. Everything below follows from that and from convolutions being linear. New weights are
computed once, in float64, and stored in the precision of the old ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

from paddle_dense.layers import CondConv2D, CondenseLGC, CondenseSFR, ConvNormAct, RoutedCondConv2D, ShuffleLayer
from paddle_dense.layers.conv import spread, tap_products
from paddle_dense.models.cspnet import CrossStage


def scale_and_shift(norm: nn.BatchNorm2D) -> tuple[np.ndarray, np.ndarray]:
    """s and t of a batch normalisation in evaluation mode, float64 [C] each."""
    tensors = cast("tuple[Tensor, ...]", (norm.weight, norm.bias, norm._mean, norm._variance))
    weight, bias, mean, variance = (to_array(x) for x in tensors)
    scale = weight / np.sqrt(variance + norm._epsilon)
    return scale, bias - scale * mean


def affine(scale: np.ndarray, shift: np.ndarray, like: Tensor) -> nn.BatchNorm2D:
    """``scale * x + shift`` for every channel, as a batch normalisation: the operator for it that all runtimes have."""
    norm = nn.BatchNorm2D(scale.size, epsilon=0.0, use_global_stats=True)
    norm.eval()
    for name, values in (("weight", scale), ("bias", shift), ("_mean", 0.0 * scale), ("_variance", 0.0 * scale + 1.0)):
        setattr(norm, name, _parameter(norm, values, like))
    return norm


def convolution(weight: np.ndarray, like: Tensor, bias: np.ndarray | None = None, **geometry: Any) -> nn.Conv2D:
    """A convolution with these weights [out, in/groups, kh, kw]; `geometry` as `nn.Conv2D` takes it."""
    out_channels, per_group, *kernel_size = weight.shape
    in_channels = per_group * geometry.get("groups", 1)
    conv = nn.Conv2D(in_channels, out_channels, kernel_size, bias_attr=False, **geometry)
    conv.weight = _parameter(conv, weight, like)
    if bias is not None:
        conv.bias = _parameter(conv, bias, like)
    return conv


def fold_norm(conv: nn.Layer, norm: nn.BatchNorm2D) -> nn.Layer:
    """One convolution for a convolution and the batch normalisation after it.

    ``s * (W * x + b) + t = (s W) * x + (s b + t)``. The kernels that a `RoutedCondConv2D` mixes are all scaled:
    ``s * (sum_e r_e W_e) * x + t = (sum_e r_e (s W_e)) * x + t``.
    """
    scale, shift = scale_and_shift(norm)
    weight = to_array(conv.weight)
    if isinstance(conv, RoutedCondConv2D):
        weight = weight.reshape([len(weight), scale.size, -1]) * scale[:, None]
    else:
        weight = weight * scale[:, None, None, None]
    if conv.bias is not None:
        shift = shift + scale * to_array(conv.bias)
    like = conv.weight
    conv.weight = _parameter(conv, weight.reshape(like.shape), like)
    conv.bias = _parameter(conv, shift, like)
    return conv


def merged_groups(weight: np.ndarray, groups: int, merge: int) -> np.ndarray:
    """Weights of a grouped convolution with every `merge` neighbouring groups made one: [out, in/groups * merge, ...].

    A group of the result reads the inputs of all its parts, at zero weight where they are another part's. The rows of
    one part stand on the diagonal: for ``merge == groups`` it is the dense convolution that equals the grouped one.
    """
    outputs, per_group, *kernel = weight.shape
    merged = np.zeros([groups // merge, merge, outputs // groups, merge, per_group, *kernel], weight.dtype)
    parts = np.arange(merge)
    merged[:, parts, :, parts] = np.moveaxis(
        weight.reshape([groups // merge, merge, outputs // groups, per_group, *kernel]), 1, 0
    )
    return merged.reshape([outputs, merge * per_group, *kernel])


class DepthwiseSums(nn.Layer):
    """A grouped convolution as depthwise ones, and 1x1 convolutions that add up: [N, in, H, W] -> [N, out, H, W].

    ``y_o = sum_c W_oc * x_c``: the maps ``W_oc * x_c`` first, by one depthwise convolution for the first outputs of all
    groups, one for the second ones and so on. More numbers in memory, but no idle lane where a group has few outputs.
    """

    def __init__(self, conv: nn.Conv2D) -> None:
        super().__init__()
        weight, groups = to_array(conv.weight), conv._groups
        outputs, per_group, *kernel = weight.shape
        geometry = {"stride": conv._stride, "padding": conv._padding, "groups": groups * per_group}
        self.maps, self.sums = nn.LayerList(), nn.LayerList()
        for place in range(outputs // groups):
            mine = np.arange(place, outputs, outputs // groups)  # one of each group
            sums = np.zeros([outputs, groups, per_group])
            sums[mine, np.arange(groups)] = 1
            self.maps.append(convolution(weight[mine].reshape([-1, 1, *kernel]), conv.weight, **geometry))
            self.sums.append(convolution(sums.reshape([outputs, -1, 1, 1]), conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (add(maps(x)) for maps, add in zip(self.maps, self.sums))
        return sum(others, first)


def copied_for_experts(conv: CondConv2D | RoutedCondConv2D) -> nn.Layer:
    """A depthwise mixture of convolutions as one depthwise convolution, see `mixed_conv2d`."""
    conv.copies = True
    return conv


def fused_sfr(sfr: CondenseSFR) -> nn.Sequential:
    """A condensed SFR whose one dense weight, shuffle, groups and scatter included, is computed here once and for all.

    BN and activation stay: the layer's input goes elsewhere too, so that the BN cannot move into what makes it.
    """
    weight = to_array(sfr.dense_weight())
    conv = convolution(weight, sfr.conv.weight)
    return nn.Sequential(sfr.norm, sfr.activation, conv)


class GroupedRows:
    """The weights of a condensed LGC and of a batch normalisation after it, as float64 arrays.

    Output row r = g * n + k of the grouped convolution, n rows a group, is channel ``k * G + g`` after the shuffle.
    A batch normalisation there scales that row and shifts it.

    Attributes:
        groups: number of groups G.
        index: the gathered channels, [G, in/G].
        scale: s of the BN before the activation, [G, in/G].
        shift: t of it, [G, in/G].
        weight: the rows, those of a group together, [G, out/G, in/G].
        bias: what is added to each row, [G, out/G]; zeros where no BN follows.
        channels: channel of each row after the shuffle, [G, out/G].
    """

    def __init__(self, lgc: CondenseLGC, norm: nn.BatchNorm2D | None) -> None:
        weight = to_array(lgc.conv.weight)
        self.groups = groups = lgc.groups
        self.index = lgc.index.numpy().reshape([groups, -1])
        self.scale, self.shift = (x.reshape([groups, -1]) for x in scale_and_shift(lgc.norm))
        self.channels = np.arange(len(weight)).reshape([-1, groups]).T
        self.weight = weight.reshape([groups, len(weight) // groups, -1])
        self.bias = np.zeros(self.channels.shape)
        if norm is not None:
            scale, shift = scale_and_shift(norm)
            self.weight = self.weight * scale[self.channels][:, :, None]
            self.bias = shift[self.channels]

    def in_channel_order(self, rows: np.ndarray) -> np.ndarray:
        """Rows [G, out/G, ...] in the order of the channels after the shuffle: [out, ...]."""
        return rows.swapaxes(0, 1).reshape([-1, *rows.shape[2:]])


class GatheredProduct(nn.Layer):
    """A condensed LGC, and the BN after it, as one batched matrix product: [N, in, H, W] -> [N, out, H, W].

    For Paddle's own kernels, where a product with G matrices is one call and a grouped convolution G of them, and where
    adding a bias costs more than a whole batch normalisation. So the bias takes part in the product: every group
    gathers one channel more, whose BN makes it the constant 3 whatever it is, ``0 * x + 3``; both activations leave
    3 as it is; and its weight is a third of the bias.
    """

    def __init__(self, lgc: CondenseLGC, norm: nn.BatchNorm2D | None = None) -> None:
        super().__init__()
        rows, like = GroupedRows(lgc, norm), lgc.conv.weight
        self.groups, self.out_channels = rows.groups, rows.bias.size
        one = np.ones([rows.groups, 1])
        index = np.concatenate([rows.index, rows.index[:, :1]], axis=1)
        scale = np.concatenate([rows.scale, 0 * one], axis=1)
        shift = np.concatenate([rows.shift, 3 * one], axis=1)
        weight = np.concatenate([rows.weight, rows.bias[:, :, None] / 3], axis=2)
        self.register_buffer("index", paddle.to_tensor(index.reshape(-1), dtype="int32", place=like.place))
        self.norm = affine(scale.reshape(-1), shift.reshape(-1), like)
        self.activation = lgc.activation
        self.weight = _parameter(self, weight[None], like)

    def forward(self, x: Tensor) -> Tensor:
        height, width = _sides(x)
        x = self.activation(self.norm(paddle.gather(x, self.index, axis=1)))
        y = paddle.matmul(self.weight, x.reshape([0, self.groups, self.weight.shape[-1], -1]))
        return ShuffleLayer(y.reshape([-1, self.out_channels, height, width]), self.groups)


class GatheredConvolution(nn.Layer):
    """A condensed LGC, and the BN after it, as a grouped convolution with bias: [N, in, H, W] -> [N, out, H, W].

    For engines that compile the graph.

    Args:
        lgc: the condensed LGC.
        norm: the BN after it.
        channels_last: gather, normalise and activate [N, H, W, in]. An engine that keeps all maps so has nothing to
            turn; another one turns them twice.
    """

    def __init__(self, lgc: CondenseLGC, norm: nn.BatchNorm2D | None = None, channels_last: bool = False) -> None:
        super().__init__()
        rows, like = GroupedRows(lgc, norm), lgc.conv.weight
        self.channels_last = channels_last
        self.register_buffer("index", paddle.to_tensor(rows.index.reshape(-1), dtype="int32", place=like.place))
        if channels_last:
            self.scale = _parameter(self, rows.scale.reshape(-1), like)
            self.shift = _parameter(self, rows.shift.reshape(-1), like)
        else:
            self.norm = lgc.norm
        self.activation = lgc.activation
        self.conv = convolution(
            rows.weight.reshape([rows.bias.size, -1, 1, 1]), like, rows.bias.reshape(-1), groups=rows.groups
        )
        self.groups, self.rows = rows.bias.shape

    def forward(self, x: Tensor) -> Tensor:
        height, width = _sides(x)
        if self.channels_last:
            x = paddle.gather(x.transpose([0, 2, 3, 1]), self.index, axis=3)
            x = self.activation(x * self.scale + self.shift).transpose([0, 3, 1, 2])
        else:
            x = self.activation(self.norm(paddle.gather(x, self.index, axis=1)))
        x = self.conv(x)
        # Not `channel_shuffle`, which cannot be exported to ONNX; and not -1, past which Paddle 2.6 knows no channels.
        return x.reshape([0, self.groups, self.rows, height, width]).transpose([0, 2, 1, 3, 4]).flatten(1, 2)


def dense_lgc(lgc: CondenseLGC, norm: nn.BatchNorm2D | None = None) -> nn.Sequential | None:
    """A condensed LGC, and the BN after it, as one dense 1x1 convolution that reads all inputs, most at zero weight.

    BN and activation work on each channel by itself, so they can come before the gathering, which the zeros then do.
    That needs every input channel to have one BN, however often it is gathered; None if it has several, as in a network
    that was trained further in the condensed form. What is not gathered needs none.
    """
    rows, like = GroupedRows(lgc, norm), lgc.conv.weight
    scale, shift = np.zeros(lgc.source_channels), np.zeros(lgc.source_channels)
    scale[rows.index], shift[rows.index] = rows.scale, rows.shift
    if not (np.array_equal(scale[rows.index], rows.scale) and np.array_equal(shift[rows.index], rows.shift)):
        return None
    weight = np.zeros([*rows.channels.shape, lgc.source_channels])
    for group, index in enumerate(rows.index):
        # Added, since a group may name a channel twice.
        np.add.at(weight[group].T, index, rows.weight[group].T)
    weight, bias = rows.in_channel_order(weight), rows.in_channel_order(rows.bias)
    return nn.Sequential(affine(scale, shift, like), lgc.activation, convolution(weight[:, :, None, None], like, bias))


class PartedStage(nn.Layer):
    """A stage of a CSPNet whose two parts have convolutions of their own: [N, in, H, W] -> [N, out, H', W'].

    ``split(W * x)`` is ``W_1 * x`` and ``W_2 * x``, and ``W * concat(a, b)`` is ``W_1 * a + W_2 * b``: nothing is
    copied, and engines add while they convolve. The batch normalisations of both must be folded already.
    """

    def __init__(self, stage: CrossStage) -> None:
        super().__init__()
        self.conv_down, self.blocks, self.conv_transition_b = stage.conv_down, stage.blocks, stage.conv_transition_b
        conv = stage.conv_exp.conv
        parts = zip(*(np.split(to_array(x), 2) for x in (conv.weight, conv.bias)))
        convs = [convolution(weight, conv.weight, bias) for weight, bias in parts]
        self.expansions = nn.LayerList([nn.Sequential(part, *_activation(stage.conv_exp)) for part in convs])
        conv = stage.conv_transition.conv
        first, second = np.split(to_array(conv.weight), 2, axis=1)
        self.transitions = nn.LayerList(
            [convolution(first, conv.weight, to_array(conv.bias)), convolution(second, conv.weight)]
        )
        self.activation = nn.Sequential(*_activation(stage.conv_transition))

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_down is not None:
            x = self.conv_down(x)
        part1, part2 = (expansion(x) for expansion in self.expansions)
        part2 = self.conv_transition_b(self.blocks(part2))
        first, second = self.transitions
        return self.activation(first(part1) + second(part2))


def _activation(conv: ConvNormAct) -> list[nn.Layer]:
    """What stands after convolution and batch normalisation: nothing or an activation."""
    return list(conv.children())[2:]


class SpreadConvolution(nn.Layer):
    """A 3x3 convolution of stride 1, the product before the spreading: [N, in, H, W] -> [N, out, H, W].

    For Paddle's own kernels, in static graphs too; the algebra is that of `paddle_dense.layers.conv.convolve`.
    """

    def __init__(self, conv: nn.Conv2D) -> None:
        super().__init__()
        self.groups = conv._groups
        weight = to_array(tap_products(conv.weight, conv._groups))
        self.weight = _parameter(self, weight, conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        _, groups, rows, per_group = self.weight.shape
        if not _is_known(x.shape) or 1 in x.shape[2:]:
            # `F.fold` must be told batch and size, and that of Paddle 2.6 takes no single row or column.
            weight = self.weight.reshape([groups * rows // 9, 9, per_group]).flip([1]).transpose([0, 2, 1])
            return F.conv2d(x, weight.reshape([groups * rows // 9, per_group, 3, 3]), padding=1, groups=groups)
        return spread(self.weight, x)


class PoolingProduct(nn.Layer):
    """Average pooling of 2x2 as a matrix product: [N, C, H, W] -> [N, C, H // 2, W // 2].

    For Paddle's own kernels, whose pooling takes one number at a time. Two rows lie side by side in memory, as 2 W
    numbers; the product with a matrix [2 W, W // 2] of quarters and zeros averages them. For a small image making the
    matrix takes longer than the product saves.
    """

    SMALL = 100_000  # numbers in an image

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        if not _is_known(x.shape[1:]) or height % 2 or width % 2 or channels * height * width < self.SMALL:
            return F.avg_pool2d(x, 2)
        pairs = paddle.eye(width // 2, dtype=x.dtype).repeat_interleave(2, axis=0) * 0.25
        y = paddle.matmul(x.reshape([-1, 2 * width]), paddle.concat([pairs, pairs]))
        return y.reshape([-1, channels, height // 2, width // 2])


def _is_known(shape: Sequence[object]) -> bool:
    """Whether a static graph leaves none of these sides open."""
    return all(isinstance(side, int) and side > 0 for side in shape)


def _sides(x: Tensor) -> Sequence[int | Tensor]:
    """Height and width: numbers, or tensors where a static graph leaves them open."""
    if _is_known(x.shape[2:]):
        return x.shape[2:]
    shape = paddle.shape(x)
    return shape[2], shape[3]


def to_array(x: Tensor) -> np.ndarray:
    """The numbers of a tensor, in float64."""
    return x.numpy().astype(np.float64)


def _parameter(layer: nn.Layer, values: np.ndarray, like: Tensor) -> Tensor:
    """A constant of a layer, with the precision and on the device of `like`."""
    parameter = layer.create_parameter(list(values.shape), dtype=like.dtype)
    parameter.set_value(paddle.to_tensor(np.ascontiguousarray(values), dtype=like.dtype, place=like.place))
    parameter.stop_gradient = True
    return parameter
