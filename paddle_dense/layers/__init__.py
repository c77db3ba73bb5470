"""Building blocks of the densely connected networks, one idea a file."""

from paddle_dense.layers.activation import HS, activation
from paddle_dense.layers.condense import CondenseConv, CondenseLGC, CondenseLinear, CondenseSFR
from paddle_dense.layers.conv import Conv, conv2d, linear
from paddle_dense.layers.learned_group import LGC, SFR, LearnedGroupConv
from paddle_dense.layers.se import SELayer
from paddle_dense.layers.shuffle import ShuffleLayer, ShuffleLayerTrans

__all__ = [
    "HS",
    "LGC",
    "SFR",
    "CondenseConv",
    "CondenseLGC",
    "CondenseLinear",
    "CondenseSFR",
    "Conv",
    "LearnedGroupConv",
    "SELayer",
    "ShuffleLayer",
    "ShuffleLayerTrans",
    "activation",
    "conv2d",
    "linear",
]
