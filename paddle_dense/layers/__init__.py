"""Building blocks of the densely connected networks, one idea a file."""

from paddle_dense.layers.activation import HS, activation, silu
from paddle_dense.layers.condconv import CondConv2D, CondConvLinear, RoutedCondConv2D
from paddle_dense.layers.conv import Conv, ConvNormAct, conv2d, share
from paddle_dense.layers.fusion import ExactFusion, Maxout
from paddle_dense.layers.lgc import LGC, CondenseConv, CondenseLGC, LearnedGroupConv
from paddle_dense.layers.linear import CondenseLinear, linear
from paddle_dense.layers.se import SELayer
from paddle_dense.layers.sfr import SFR, CondenseSFR
from paddle_dense.layers.shuffle import ShuffleLayer, ShuffleLayerTrans

__all__ = [
    "HS",
    "LGC",
    "SFR",
    "CondConv2D",
    "CondConvLinear",
    "CondenseConv",
    "CondenseLGC",
    "CondenseLinear",
    "CondenseSFR",
    "Conv",
    "ConvNormAct",
    "ExactFusion",
    "LearnedGroupConv",
    "Maxout",
    "RoutedCondConv2D",
    "SELayer",
    "ShuffleLayer",
    "ShuffleLayerTrans",
    "activation",
    "conv2d",
    "linear",
    "share",
    "silu",
]
