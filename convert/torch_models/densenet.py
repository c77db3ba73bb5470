"""PyTorch twin of `paddle_dense.models.densenet`, key for key torchvision's (arXiv 1608.06993)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """All features so far -> the new ones."""

    def __init__(self, in_channels: int, growth_rate: int, bn_size: int, drop_rate: float) -> None:
        super().__init__()
        hidden = bn_size * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.has_bottleneck = bn_size > 0
        if self.has_bottleneck:
            self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(hidden)
            self.relu2 = nn.ReLU()
            self.conv2 = nn.Conv2d(hidden, growth_rate, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, growth_rate, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        y = self.conv1(self.relu1(self.norm1(torch.cat(list(features), 1))))
        if self.has_bottleneck:
            y = self.conv2(self.relu2(self.norm2(y)))
        return self.dropout(y)


class DenseBlock(nn.Module):
    """Layers, each of which reads all features before it."""

    def __init__(self, num_layers: int, in_channels: int, growth_rate: int, bn_size: int, drop_rate: float) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.out_channels = in_channels + num_layers * growth_rate
        for index in range(num_layers):
            layer = DenseLayer(in_channels + index * growth_rate, growth_rate, bn_size, drop_rate)
            self.add_module(f"denselayer{index + 1}", layer)

    def grow(self, x: Tensor) -> list[Tensor]:
        features = [x]
        for index in range(self.num_layers):
            features.append(self.get_submodule(f"denselayer{index + 1}")(features))
        return features

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.grow(x), 1)


def transition(channels: int, out_channels: int, pool: bool = True, linear: bool = False) -> nn.Sequential:
    """Fewer channels, and half the sides unless `pool` is False; a linear one's convolution has a name of its own."""
    layers = nn.Sequential()
    layers.norm = nn.BatchNorm2d(channels)
    if not linear:
        layers.relu = nn.ReLU()
    layers.add_module("linear_conv" if linear else "conv", nn.Conv2d(channels, out_channels, 1, bias=False))
    if pool:
        layers.pool = nn.AvgPool2d(2, 2)
    return layers


class DenseNet(nn.Module):
    """The twin of `paddle_dense.models.DenseNet`; see there for the arguments, and for one that CSPDenseNet fills in.

    `memory_efficient` changes no number, so the twin has nothing to do for it.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        drop_rate: float = 0.0,
        num_classes: int = 1000,
        memory_efficient: bool = False,
        in_channels: int = 3,
        features_only: bool = False,
        small_inputs: bool = False,
        compression: float | None = 0.5,
        linear_transitions: bool = False,
        *,
        block: Callable[..., DenseBlock] = DenseBlock,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        if small_inputs:
            self.features.conv0 = nn.Conv2d(in_channels, num_init_features, 3, padding=1, bias=False)
        else:
            self.features.conv0 = nn.Conv2d(in_channels, num_init_features, 7, 2, padding=3, bias=False)
            self.features.norm0 = nn.BatchNorm2d(num_init_features)
            self.features.relu0 = nn.ReLU()
            self.features.pool0 = nn.MaxPool2d(3, 2, padding=1)
        channels = num_init_features
        for number, num_layers in enumerate(block_config, start=1):
            layers = block(num_layers, channels, growth_rate, bn_size, drop_rate)
            channels = layers.out_channels
            self.features.add_module(f"denseblock{number}", layers)
            if compression is not None and number < len(block_config):
                kept = int(channels * compression)
                self.features.add_module(f"transition{number}", transition(channels, kept, linear=linear_transitions))
                channels = kept
        self.features.norm5 = nn.BatchNorm2d(channels)
        self.relu5 = nn.ReLU()
        self.pool5 = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes) if num_classes and not features_only else nn.Identity()
        self.features_only = features_only
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        pyramid: list[Tensor] = []
        for name, layer in self.features.named_children():
            if name in ("pool0", "denseblock1") and not pyramid:
                pyramid.append(x)
            x = layer(x)
            if name.startswith("denseblock"):
                pyramid.append(x)
        x = self.relu5(x)
        return [*pyramid[:-1], x] if self.features_only else self.classifier(self.pool5(x).flatten(1))
