"""PyTorch twins of `paddle_dense.models.cspnet` (arXiv 1911.11929); the keys of `CSPNet` are timm's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convert.torch_models.densenet import DenseBlock, DenseNet, transition

# Mode -> whether a transition stands (inside each block, between the blocks).
MODES = {"stand": (True, True), "fusionfirst": (False, True), "fusionlast": (True, False)}


class CSPDenseBlock(DenseBlock):
    """Dense layers on the second half of the channels."""

    def __init__(
        self, num_layers: int, in_channels: int, growth_rate: int, bn_size: int, drop_rate: float, with_transition: bool
    ) -> None:
        part1 = in_channels // 2
        super().__init__(num_layers, in_channels - part1, growth_rate, bn_size, drop_rate)
        added = num_layers * growth_rate
        self.part1 = part1
        self.transition = transition(added, added // 2, pool=False) if with_transition else nn.Identity()
        self.out_channels = part1 + (added // 2 if with_transition else added)

    def forward(self, x: Tensor) -> Tensor:
        added = torch.cat(self.grow(x[:, self.part1 :])[1:], 1)
        return torch.cat([x[:, : self.part1], self.transition(added)], 1)


class CSPDenseNet(DenseNet):
    """The twin of `paddle_dense.models.CSPDenseNet`; see there for the arguments."""

    def __init__(self, *args: Any, mode: str = "fusionlast", **kwargs: Any) -> None:
        inside, between = MODES[mode]
        block = partial(CSPDenseBlock, with_transition=inside)
        super().__init__(*args, block=block, **{**kwargs, "compression": 0.5 if between else None})


class ConvNormAct(nn.Sequential):
    """Convolution, BN and LeakyReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        if act:
            self.act = nn.LeakyReLU(0.01)


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1 around a shortcut."""

    def __init__(self, channels: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, hidden)
        self.conv2 = ConvNormAct(hidden, hidden, 3, groups=groups)
        self.conv3 = ConvNormAct(hidden, channels, act=False)
        self.act3 = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.act3(self.conv3(self.conv2(self.conv1(x))) + x)


class DarkBlock(nn.Module):
    """1x1 - 3x3 around a shortcut."""

    def __init__(self, channels: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, hidden)
        self.conv2 = ConvNormAct(hidden, channels, 3, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + x


class CrossStage(nn.Module):
    """Down-sampling, expansion, split, blocks on the second half, transitions."""

    def __init__(
        self,
        blocks: nn.Module,
        in_channels: int,
        down_channels: int,
        expanded: int,
        out: int,
        groups: int,
        linear: bool,
    ) -> None:
        super().__init__()
        half = expanded // 2
        down = bool(down_channels)
        self.conv_down = ConvNormAct(in_channels, down_channels, 3, 2, groups) if down else nn.Identity()
        self.conv_exp = ConvNormAct(down_channels or in_channels, expanded, act=not linear)
        self.blocks = blocks
        self.conv_transition_b = ConvNormAct(half, half)
        self.conv_transition = ConvNormAct(expanded, out)

    def forward(self, x: Tensor) -> Tensor:
        part1, part2 = self.conv_exp(self.conv_down(x)).chunk(2, 1)
        part2 = self.conv_transition_b(self.blocks(part2))
        return self.conv_transition(torch.cat([part1, part2], 1))


class CSPNet(nn.Module):
    """The twin of `paddle_dense.models.CSPNet`; see there for the arguments."""

    def __init__(
        self,
        backbone: str,
        depths: Sequence[int],
        channels: Sequence[int],
        expand_ratio: Sequence[float],
        bottle_ratio: Sequence[float],
        groups: int = 1,
        stem_channels: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.features_only = features_only
        dark = backbone == "darknet"
        self.stem = nn.Sequential()
        self.stem.conv1 = ConvNormAct(in_channels, stem_channels, *((3, 1) if dark else (7, 2)))
        if not dark:
            self.stem.pool = nn.MaxPool2d(3, 2, padding=1)
        block = DarkBlock if dark else Bottleneck
        self.stages = nn.Sequential()
        previous = stem_channels
        for index, (depth, out, expand, bottle) in enumerate(zip(depths, channels, expand_ratio, bottle_ratio)):
            expanded = round(out * expand)
            hidden = round(expanded // 2 * bottle)
            down = out if dark else previous if index else 0
            blocks = nn.Sequential(*(block(expanded // 2, hidden, groups) for _ in range(depth)))
            self.stages.append(CrossStage(blocks, previous, down, expanded, out, groups, linear=not dark))
            previous = out
        self.head = nn.Sequential()
        self.head.pool = nn.AdaptiveAvgPool2d(1)
        self.head.flatten = nn.Flatten(1)
        if num_classes and not features_only:
            self.head.fc = nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.conv3.bn.weight)
            elif isinstance(module, DarkBlock):
                nn.init.zeros_(module.conv2.bn.weight)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        pyramid = [self.stem[0](x)] if self.features_only else []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid if self.features_only else self.head(x)
