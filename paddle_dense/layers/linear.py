"""Linear layers as the original networks initialise them, and the one of CondenseNet that reads half its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np
import paddle
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Constant, Uniform

from paddle_dense.layers.budget import check_budget
from paddle_dense.layers.choices import Arrays, ChosenInputs


def linear(in_features: int, out_features: int, bias: bool = True, zero_bias: bool = False) -> nn.Linear:
    """A linear layer drawn from U(-b, b), ``b = 1 / sqrt(in_features)``, as PyTorch does; the bias too, or 0."""
    bound = 1.0 / sqrt(in_features)
    bias_initializer = Constant(0.0) if zero_bias else Uniform(-bound, bound)
    return nn.Linear(
        in_features,
        out_features,
        weight_attr=ParamAttr(initializer=Uniform(-bound, bound)),
        bias_attr=ParamAttr(initializer=bias_initializer) if bias else False,
    )


class CondenseLinear(ChosenInputs, nn.Layer):
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
        check_budget(kept)
        self.register_buffer("index", paddle.arange(kept, dtype="int64"))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(paddle.index_select(x, self.index, axis=1))


def condense_linear(layer: Mapping[str, np.ndarray], drop_rate: float = 0.5) -> Arrays:
    """Arrays of a CondenseLinear with the most important inputs of a linear layer; its outputs are not the same.

    Args:
        layer: ``weight`` [in, out] and ``bias`` [out], as Paddle lays them out.
        drop_rate: share of the inputs to keep: those with the largest L1 weight, least important first.
    """
    importance = np.abs(layer["weight"]).sum(axis=1)
    kept = int(len(importance) * drop_rate)
    index = importance.argsort(kind="stable")[len(importance) - kept :]
    return {"index": index, "linear.weight": layer["weight"][index], "linear.bias": layer["bias"]}
