"""PyTorch twin of `paddle_dense.models.condensenet`, key for key the original's (arXiv 1711.09224)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from convert.torch_models.condensenetv2 import DenseLayer, dense_features, pyramid


class CondenseLinear(nn.Module):
    """Reads the half of its inputs that `index` names."""

    index: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.zeros(in_features // 2, dtype=torch.int64))
        self.linear = nn.Linear(in_features // 2, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, self.index])


class CondenseNet(nn.Module):
    """The twin of `paddle_dense.models.CondenseNet`; see there for the arguments."""

    def __init__(
        self,
        stages: Sequence[int],
        growth: Sequence[int],
        group_1x1: int = 4,
        group_3x3: int = 4,
        bottleneck: int = 4,
        condense_factor: int | None = None,
        dropout_rate: float = 0.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        init_stride: int | None = None,
        condensed: bool = True,
        condense_classifier: bool = True,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.features_only = features_only
        factor = condense_factor or group_1x1
        groups = (group_1x1, group_3x3, 0)
        self.features, channels = dense_features(
            in_channels,
            stages,
            growth,
            init_stride,
            lambda _, inputs, k: DenseLayer(
                inputs, k, bottleneck, groups, (factor,), "ReLU", False, condensed, dropout_rate
            ),
        )
        self.features.pool_last = nn.AdaptiveAvgPool2d(1)
        if features_only or not num_classes:
            self.classifier: nn.Module = nn.Identity()
        elif condensed and condense_classifier:
            self.classifier = CondenseLinear(channels, num_classes)
        else:
            whole = nn.Linear(channels, num_classes)
            nn.init.zeros_(whole.bias)
            self.classifier = whole

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return pyramid(self.features, x) if self.features_only else self.classifier(self.features(x).flatten(1))

    @torch.no_grad()
    def condense_classifier(self) -> None:
        """Keep the half of the classifier's inputs whose weights have the largest L1 norm, as the original does."""
        full = cast("nn.Linear", self.classifier)
        halved = CondenseLinear(full.in_features, full.out_features)
        order = full.weight.abs().sum(0).sort(stable=True).indices
        halved.index.copy_(order[full.in_features - full.in_features // 2 :])
        halved.linear.weight.copy_(full.weight[:, halved.index])
        halved.linear.bias.copy_(full.bias)
        self.classifier = halved
