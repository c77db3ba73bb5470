"""The networks, one file a paper."""

from paddle_dense.models.condconv import EfficientNetCondConv
from paddle_dense.models.condensenet import CondenseNet
from paddle_dense.models.condensenetv2 import CondenseNetV2
from paddle_dense.models.cspnet import CSPDenseNet, CSPNet
from paddle_dense.models.densenet import DenseNet
from paddle_dense.models.network import Network, build_network, preset, presets

__all__ = [
    "CSPDenseNet",
    "CSPNet",
    "CondenseNet",
    "CondenseNetV2",
    "DenseNet",
    "EfficientNetCondConv",
    "Network",
    "build_network",
    "preset",
    "presets",
]
