r"""Sparse feature reactivation (SFR): each group of *inputs* chooses the out/C outputs that it reactivates.

The mirror image of LGC (`paddle_dense.layers.lgc`). Column c of the weight W [out, in] belongs to group ``c mod G``.
Columns sorted by group read the shuffled input, and each output row of the grouped convolution belongs to one earlier
feature, named by a 1 in `index`::

    BN -> activation -> ShuffleLayerTrans(G) -> grouped 1x1 convolution -> scatter-add of channels

For group g and its p-th kept output i::

    index[g * out/C + p, i] = 1        w'[g * out/C + p, m] = w[i, m * G + g]

It is an equality, not an approximation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

from paddle_dense.layers import choices
from paddle_dense.layers.activation import activation as make_activation
from paddle_dense.layers.budget import check_budget
from paddle_dense.layers.choices import Arrays
from paddle_dense.layers.conv import conv2d, is_untouched
from paddle_dense.layers.learned import LearnedConnections
from paddle_dense.layers.shuffle import ShuffleLayerTrans


class SFR(LearnedConnections):
    """Sparse feature reactivation in training: every group of inputs chooses out/C of the outputs to reactivate.

    See `LearnedConnections` for arguments and buffers (CondenseNet V2, arXiv 2104.04382, section 3.2).
    """

    _grouped_axis = 1


class CondenseSFR(nn.Layer):
    """A condensed SFR: each group of inputs updates its own choice of outputs, [N, in, H, W] -> [N, out, H, W].

    The buffer ``index`` [rows, out] holds one 1 in every row: row i of the grouped convolution is added to the output
    channel that its 1 names. A column may hold several (features that several groups reactivate) or none. The original
    multiplies the activations by this matrix, at rows * out operations a pixel; here the ones only say where each row
    of the grouped weight belongs in the dense 1x1 weight [out, in] to which the layer amounts, and that one is run.
    Where the grouped convolution must itself be called, for a quantized one or a hook, it is done as in the original.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        groups: number of groups G.
        activation: ``"ReLU"`` or ``"HS"``.
        rows: rows of the grouped convolution, out * G / C; `out_channels` (C = G) unless given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        activation: str = "ReLU",
        rows: int | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.groups = groups
        rows = rows or out_channels
        self.norm = nn.BatchNorm2D(in_channels)
        self.activation = make_activation(activation)
        self.conv = conv2d(in_channels, rows, 1, groups=groups)
        check_budget(rows, out_channels)
        index = F.one_hot(paddle.arange(rows) % out_channels, out_channels)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(x))
        if is_untouched(self.conv):
            return F.conv2d(x, self.dense_weight())
        rows = self.conv(ShuffleLayerTrans(x, self.groups))
        return F.conv2d(rows, self.index.t().unsqueeze([2, 3]).astype(rows.dtype))

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
        """The one 1x1 convolution weight [out, in, 1, 1] that shuffle, grouped convolution and scatter amount to."""
        weight = self.conv.weight
        rows, per_group = weight.shape[:2]
        group = paddle.arange(rows, dtype="int64") // (rows // self.groups)
        # Column m of a row of group g reads input channel m * G + g: build [G, out, in / G], then interleave.
        grouped = paddle.scatter_nd_add(
            paddle.zeros([self.groups * self.out_channels, per_group], dtype=weight.dtype),
            (group * self.out_channels + self.targets()).unsqueeze(1),
            weight.flatten(1),
        )
        grouped = grouped.reshape([self.groups, self.out_channels, per_group])
        return grouped.transpose([1, 2, 0]).reshape([self.out_channels, -1, 1, 1])


def grouped_convolutions(model: nn.Layer) -> set[nn.Layer]:
    """The convolutions within condensed SFRs: a hook there, unlike one of the SFR itself, changes what is computed."""
    return {layer.conv for layer in model.sublayers(include_self=True) if isinstance(layer, CondenseSFR)}


def condense_sfr(layer: Mapping[str, np.ndarray], groups: int, condense_factor: int, name: str = "SFR") -> Arrays:
    """Arrays of a CondenseSFR that equals a trained SFR; arguments and errors as `choices.kept_by_group`."""
    kept = choices.kept_by_group(layer, SFR._grouped_axis, groups, condense_factor, name)
    outputs = len(layer["conv.weight"])
    weight = layer["conv.weight"].reshape(outputs, -1, groups).transpose(2, 0, 1)
    weight = np.take_along_axis(weight, kept[:, :, None], axis=1)
    index = np.zeros((kept.size, outputs), np.float32)
    index[np.arange(kept.size), kept.reshape(-1)] = 1
    condensed = {"index": index, "conv.weight": weight.reshape(kept.size, -1, 1, 1)}
    condensed.update({key: layer[key] for key in layer if key.startswith("norm.")})
    return condensed
