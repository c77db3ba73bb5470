"""The networks, one file a paper."""

from paddle_dense.models.condconv import EfficientNetCondConv
from paddle_dense.models.condensenet import CondenseNet
from paddle_dense.models.condensenetv2 import CondenseNetV2
from paddle_dense.models.cspnet import CSPDenseNet, CSPNet
from paddle_dense.models.densenet import DenseNet
from paddle_dense.models.registry import build_network, create_model, list_models, preset

__all__ = [
    "CSPDenseNet",
    "CSPNet",
    "CondenseNet",
    "CondenseNetV2",
    "DenseNet",
    "EfficientNetCondConv",
    "build_network",
    "create_model",
    "list_models",
    "preset",
]


def __getattr__(name: str) -> object:
    """Every preset is a name of this package too: ``paddle_dense.models.cdnv2_a``."""
    if name in list_models():
        return preset(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
