r"""CondenseLGC and CondenseSFR: LGC and SFR once 1/C of the connections is left, as grouped convolutions.

With the mask fixed, the rows of an LGC's weight that belong to group g all read the same in/C inputs. Gathering those
inputs group by group and sorting the rows by group turns the masked dense convolution into

    index_select -> BN -> activation -> grouped 1x1 convolution -> ShuffleLayer(G)

where the shuffle puts the rows back into their order. SFR is the mirror image: columns sorted by group read the
shuffled input, and each output row of the grouped convolution belongs to one earlier feature, named by a 1 in `index`:

    BN -> activation -> ShuffleLayerTrans(G) -> grouped 1x1 convolution -> scatter-add of channels

Both are equalities, not approximations. `paddle_dense.condense` does the rewriting.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

from paddle_dense.layers.activation import activation as make_activation
from paddle_dense.layers.conv import conv2d, linear
from paddle_dense.layers.room import check_room
from paddle_dense.layers.shuffle import ShuffleLayer


class CondenseLGC(nn.Layer):
    """A condensed LGC: each group of outputs reads its own choice of inputs, [N, any, H, W] -> [N, out, H, W].

    The buffer ``index`` [in_channels] says which input channel each of the gathered channels is; a new layer takes them
    in turn, a converted one as they were learned.

    Args:
        in_channels: channels after gathering, in * G / C.
        out_channels: channels of the output.
        kernel_size: side of the kernel in pixels.
        stride: step of the kernel in pixels.
        padding: zeros added on every side, in pixels.
        groups: number of groups G.
        activation: ``"ReLU"`` or ``"HS"``.
        source_channels: channels of the layer's input; `in_channels` unless given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        activation: str = "ReLU",
        source_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.source_channels = source_channels or in_channels
        self.norm = nn.BatchNorm2D(in_channels)
        self.activation = make_activation(activation)
        self.conv = conv2d(in_channels, out_channels, kernel_size, stride, padding, groups)
        check_room(in_channels)
        self.register_buffer("index", paddle.arange(in_channels, dtype="int64") % self.source_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = paddle.index_select(x, self.index, axis=1)
        x = self.conv(self.activation(self.norm(x)))
        return ShuffleLayer(x, self.groups)

    def index_fault(self, index: np.ndarray) -> str | None:
        """What is wrong with an `index` [in_channels], as the end of a sentence; None if it can be used."""
        return _out_of_range(index, self.source_channels)


# The name that CondenseNet's paper has for the same layer, always with ReLU.
CondenseConv = CondenseLGC


class CondenseLinear(nn.Layer):
    """A linear layer that reads a share of its inputs: [N, in_features] -> [N, out_features].

    CondenseNet's converter keeps the inputs with the largest L1 weight, which changes the outputs (arXiv 1711.09224).
    The buffer ``index`` [in_features * drop_rate] names them.

    Args:
        in_features: units of the input.
        out_features: units of the output.
        drop_rate: share of the inputs that is read.
    """

    def __init__(self, in_features: int, out_features: int, drop_rate: float = 0.5) -> None:
        super().__init__()
        self.source_channels = in_features
        kept = int(in_features * drop_rate)
        self.linear = linear(kept, out_features, zero_bias=True)
        check_room(kept)
        self.register_buffer("index", paddle.arange(kept, dtype="int64"))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(paddle.index_select(x, self.index, axis=1))

    def index_fault(self, index: np.ndarray) -> str | None:
        """What is wrong with an `index`, as the end of a sentence; None if it can be used."""
        return _out_of_range(index, self.source_channels)


def _out_of_range(index: np.ndarray, channels: int) -> str | None:
    wrong = index[(index < 0) | (index >= channels)]
    return f"names channel {wrong[0]} of {channels}, where 0 to {channels - 1} exist" if wrong.size else None


class CondenseSFR(nn.Layer):
    """A condensed SFR: each group of inputs updates its own choice of outputs, [N, in, H, W] -> [N, out, H, W].

    The buffer ``index`` [rows, out] holds one 1 in every row: row i of the grouped convolution is added to the output
    channel that its 1 names. A column may hold several (features that several groups reactivate) or none. The original
    multiplies the activations by this matrix, at rows * out operations a pixel; here the ones only say where each row
    of the grouped weight belongs in the dense 1x1 weight [out, in] to which the layer amounts, and that one is run.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel in pixels.
        stride: step of the kernel in pixels.
        padding: zeros added on every side, in pixels.
        groups: number of groups G.
        activation: ``"ReLU"`` or ``"HS"``.
        rows: rows of the grouped convolution, out * G / C; `out_channels` (C = G) unless given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        activation: str = "ReLU",
        rows: int | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride
        self.padding = padding
        self.groups = groups
        rows = rows or out_channels
        self.norm = nn.BatchNorm2D(in_channels)
        self.activation = make_activation(activation)
        self.conv = conv2d(in_channels, rows, kernel_size, stride, padding, groups)
        check_room(rows, out_channels)
        index = F.one_hot(paddle.arange(rows) % out_channels, out_channels)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(x))
        return F.conv2d(x, self.dense_weight(), stride=self.stride, padding=self.padding)

    def targets(self) -> Tensor:
        """Output channel of each row of the grouped convolution: int64, [rows]."""
        # A product with the channels' numbers, 256 * high + low. One 1 a row and numbers below 256 keep both parts
        # exact in any precision that automatic mixed precision may choose.
        index = self.index if self.index.dtype == paddle.float32 else self.index.astype("float32")
        numbers = paddle.arange(self.out_channels)
        high, low = (
            paddle.mv(index, part.astype("float32")).astype("int64") for part in (numbers // 256, numbers % 256)
        )
        return 256 * high + low

    def index_fault(self, index: np.ndarray) -> str | None:
        """What is wrong with an `index` [rows, out], as the end of a sentence; None if every row holds one 1."""
        # Counting is enough: one non-zero a row, and all of them are 1.
        wrong = np.nonzero((np.count_nonzero(index, axis=1) != 1) | (index.max(axis=1) != 1))[0]
        return f"has no single 1 in row {wrong[0]}, where each row should be one 1 and zeros" if wrong.size else None

    def dense_weight(self) -> Tensor:
        """The one convolution weight [out, in, k, k] that shuffle, grouped convolution and scatter amount to."""
        weight = self.conv.weight
        rows, per_group, height, width = weight.shape
        group = paddle.arange(rows, dtype="int64") // (rows // self.groups)
        # Column m of a row of group g reads input channel m * G + g: build [G, out, in / G, ...], then interleave.
        grouped = paddle.scatter_nd_add(
            paddle.zeros([self.groups * self.out_channels, per_group * height * width], dtype=weight.dtype),
            (group * self.out_channels + self.targets()).unsqueeze(1),
            weight.flatten(1),
        )
        grouped = grouped.reshape([self.groups, self.out_channels, per_group, height, width])
        return grouped.transpose([1, 2, 0, 3, 4]).reshape([self.out_channels, -1, height, width])
