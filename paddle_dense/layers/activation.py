"""Activations, by the names that the papers' code gives them."""

from __future__ import annotations

from paddle import Tensor, nn
from paddle.nn import functional as F


class HS(nn.Layer):
    """Hard-swish, ``x * relu6(x + 3) / 6``, element by element (MobileNetV3, arXiv 1905.02244, section 5.2)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x)


def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``, element by element (arXiv 1710.05941)."""
    # The gradient of Paddle's `F.silu` is NaN on a CPU where x is below -88: it divides infinity by infinity.
    return F.swish(x)


_ACTIVATIONS = {"ReLU": nn.ReLU, "HS": HS}


def activation(name: str) -> nn.Layer:
    """A new activation layer.

    Args:
        name: ``"ReLU"`` or ``"HS"``.

    Raises:
        ValueError: the name is neither of them.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: choose one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()
