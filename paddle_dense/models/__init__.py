"""The networks, one file a paper."""

from paddle_dense.models.condensenetv2 import CondenseNetV2, cdnv2_a, cdnv2_b, cdnv2_c
from paddle_dense.models.registry import build_network, create_model, list_models

__all__ = [
    "CondenseNetV2",
    "build_network",
    "cdnv2_a",
    "cdnv2_b",
    "cdnv2_c",
    "create_model",
    "list_models",
]
