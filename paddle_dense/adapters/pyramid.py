"""A preset as the packages for detection and segmentation want a backbone: some levels of its pyramid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from paddle import Tensor, nn

from paddle_dense.models.network import check_levels
from paddle_dense.zoo import create_model


class Pyramid(nn.Layer):
    """A preset without its head: [N, in_channels, H, W] -> the chosen levels, [N, feat_channels[i], H', W'] each.

    Args:
        arch: name of the preset.
        levels: places in the network's `feature_strides`, ascending; unless given, all levels of stride 4 or more.
        pretrained: weights of the whole network: a file's path, True for the released ones, or nothing.
        config: arguments of the network.

    Attributes:
        network: the network, with ``features_only=True``.
        feat_channels: channels of each level.
        feat_strides: pixels of the image for each pixel of it.

    Raises:
        ValueError: there is no such preset, level or argument.
        WeightsError: the weights do not fit the network.
    """

    def __init__(
        self,
        arch: str,
        levels: Sequence[int] | None = None,
        pretrained: bool | str | os.PathLike | None = None,
        **config: Any,
    ) -> None:
        super().__init__()
        self.network = create_model(arch, pretrained=pretrained or False, features_only=True, **config)
        strides = self.network.feature_strides
        if levels is None:
            levels = [level for level, stride in enumerate(strides) if stride >= 4]
        self.levels = check_levels(arch, levels, strides)
        self.feat_channels = [self.network.feature_channels[level] for level in self.levels]
        self.feat_strides = [strides[level] for level in self.levels]

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.network(x)
        return [features[level] for level in self.levels]
