r"""Learned group convolution (LGC): each group of *outputs* chooses in/C of the inputs.

Trained and condensed form are two faces of one layer. With the mask fixed, the rows of the weight W [out, in] that
belong to group g (row r belongs to group ``r mod G``) all read the same in/C inputs. Gathering those inputs group by
group and sorting the rows by group turns the masked dense convolution into

    index_select -> BN -> activation -> grouped 1x1 convolution -> ShuffleLayer(G)

where the shuffle puts the rows back into their order. For group g and its p-th kept input j::

    index[g * in/C + p] = j        w'[g * out/G + k, p] = w[k * G + g, j]

and the statistics of channel j move to ``g * in/C + p``. It is an equality, not an approximation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle
from paddle import Tensor, nn

from paddle_dense.layers import choices
from paddle_dense.layers.activation import activation as make_activation
from paddle_dense.layers.budget import check_budget
from paddle_dense.layers.choices import Arrays, ChosenInputs
from paddle_dense.layers.conv import conv2d
from paddle_dense.layers.learned import LearnedConnections
from paddle_dense.layers.shuffle import ShuffleLayer


class LGC(LearnedConnections):
    """Learned group convolution in training: every group of outputs chooses in/C of the inputs.

    See `LearnedConnections` for arguments and buffers (CondenseNet V2, arXiv 2104.04382, section 3.1).
    """

    _grouped_axis = 0


class CondenseLGC(ChosenInputs, nn.Layer):
    """A condensed LGC: each group of outputs reads its own choice of inputs, [N, any, H, W] -> [N, out, H, W].

    The buffer ``index`` [in_channels] says which input channel each of the gathered channels is; a new layer takes them
    in turn, a converted one as they were learned.

    Args:
        in_channels: channels after gathering, in * G / C.
        out_channels: channels of the output.
        groups: number of groups G.
        activation: ``"ReLU"`` or ``"HS"``.
        source_channels: channels of the layer's input; `in_channels` unless given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        activation: str = "ReLU",
        source_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.source_channels = source_channels or in_channels
        self.norm = nn.BatchNorm2D(in_channels)
        self.activation = make_activation(activation)
        self.conv = conv2d(in_channels, out_channels, 1, groups=groups)
        check_budget(in_channels)
        self.register_buffer("index", paddle.arange(in_channels, dtype="int64") % self.source_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = paddle.index_select(x, self.index, axis=1)
        x = self.conv(self.activation(self.norm(x)))
        return ShuffleLayer(x, self.groups)


# The names that CondenseNet's paper has for the same layers, always with ReLU.
LearnedGroupConv, CondenseConv = LGC, CondenseLGC


def condense_lgc(layer: Mapping[str, np.ndarray], groups: int, condense_factor: int, name: str = "LGC") -> Arrays:
    """Arrays of a CondenseLGC that equals a trained LGC; arguments and errors as `choices.kept_by_group`."""
    kept = choices.kept_by_group(layer, LGC._grouped_axis, groups, condense_factor, name)
    outputs, inputs = layer["conv.weight"].shape[:2]
    weight = layer["conv.weight"].reshape(-1, groups, inputs).transpose(1, 0, 2)
    weight = np.take_along_axis(weight, kept[:, None, :], axis=2)
    condensed = {"index": kept.reshape(-1), "conv.weight": weight.reshape(outputs, -1, 1, 1)}
    for key in layer:
        if key.startswith("norm."):
            # num_batches_tracked is one number for all channels.
            condensed[key] = layer[key][condensed["index"]] if layer[key].ndim else layer[key]
    return condensed
