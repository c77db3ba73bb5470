"""PyTorch twin of `paddle_dense.models.condconv`, key for key timm's (arXiv 1904.04971), and the article's CondConv2D.

Every sample is convolved alone with its own kernel, which is the definition: the Paddle layers never do that.
"""

from __future__ import annotations

from math import ceil, prod, sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Routing(nn.Module):
    """Weights of the experts: [B, C] -> [B, E]."""

    def __init__(self, channels: int, num_experts: int, dropout_rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(channels, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(self.dropout(x)))


class CondConv2D(nn.Conv2d):
    """The twin of `paddle_dense.layers.CondConv2D`; see there for the arguments."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        num_experts: int = 3,
        dropout_rate: float = 0.2,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        self._routing_fn = Routing(in_channels, num_experts, dropout_rate)
        self.weight = nn.Parameter(torch.empty(num_experts, *self.weight.shape))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        kernels = torch.einsum("be,eoihw->boihw", self._routing_fn(x.mean((2, 3))), self.weight)
        return torch.cat([self._conv_forward(xi, k, self.bias) for xi, k in zip(x.split(1), kernels)])


class RoutedCondConv2D(nn.Module):
    """A convolution whose routing comes from outside; weight [E, out * in/groups * k * k]."""

    def __init__(self, conv: nn.Conv2d, num_experts: int) -> None:
        super().__init__()
        self.shape, self.stride, self.padding, self.groups = conv.weight.shape, conv.stride, conv.padding, conv.groups
        fan_out = self.shape[0] * prod(self.shape[2:]) // conv.groups
        self.weight = nn.Parameter(torch.randn(num_experts, prod(self.shape)) * sqrt(2 / fan_out))

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        pairs = zip(x.split(1), (routing @ self.weight).view(-1, *self.shape))
        return torch.cat([F.conv2d(xi, k, None, self.stride, self.padding, groups=self.groups) for xi, k in pairs])


class Same(nn.Module):
    """TensorFlow's SAME padding before a convolution: what is uneven goes to the right and bottom."""

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size in (x.shape[3], x.shape[2]):
            pad = max((ceil(size / self.stride) - 1) * self.stride + self.kernel_size - size, 0)
            pads += [pad // 2, pad - pad // 2]
        return F.pad(x, pads)


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    padded: bool = True,
    bias: bool = False,
    num_experts: int = 0,
) -> nn.Module:
    """A convolution, of experts or not; `padded` unless the caller pads."""
    padding = kernel_size // 2 if padded else 0
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
    nn.init.normal_(layer.weight, 0, sqrt(2 * groups / (kernel_size**2 * out_channels)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return RoutedCondConv2D(layer, num_experts) if num_experts else layer


def linear(in_features: int, out_features: int, bound: float) -> nn.Linear:
    """A linear layer drawn from U(-bound, bound), its bias 0."""
    layer = nn.Linear(in_features, out_features)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


class SqueezeExcite(nn.Module):
    """Squeeze and excitation of 1x1 convolutions with biases."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = conv(channels, reduced, bias=True)
        self.conv_expand = conv(reduced, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv_expand(F.silu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Block(nn.Module):
    """What both kinds of blocks share: padding before conv_dw, and the way round the block."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, same: bool, drop: float
    ) -> None:
        super().__init__()
        self.pad = Same(kernel_size, stride) if same else nn.Identity()
        self.skip = stride == 1 and in_channels == out_channels
        self.drop = drop

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.skip:
            return y
        if self.training and self.drop:
            y = y * (torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop) / (1 - self.drop)
        return x + y


class DepthwiseSeparable(Block):
    """Block of the first stage."""

    def __init__(
        self, c: int, out: int, k: int, stride: int, expansion: int, experts: int, same: bool, eps: float, drop: float
    ) -> None:
        super().__init__(c, out, k, stride, same, drop)
        self.conv_dw = conv(c, c, k, stride, c, padded=not same)
        self.bn1 = nn.BatchNorm2d(c, eps)
        self.se = SqueezeExcite(c, round(c * 0.25))
        self.conv_pw = conv(c, out)
        self.bn2 = nn.BatchNorm2d(out, eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(F.silu(self.bn1(self.conv_dw(self.pad(x)))))
        return self.residual(x, self.bn2(self.conv_pw(y)))


class InvertedResidual(Block):
    """Block of the other stages; its convolutions have experts in the last three."""

    def __init__(
        self, c: int, out: int, k: int, stride: int, expansion: int, experts: int, same: bool, eps: float, drop: float
    ) -> None:
        super().__init__(c, out, k, stride, same, drop)
        hidden = c * expansion
        self.conv_pw = conv(c, hidden, num_experts=experts)
        self.bn1 = nn.BatchNorm2d(hidden, eps)
        self.conv_dw = conv(hidden, hidden, k, stride, hidden, padded=not same, num_experts=experts)
        self.bn2 = nn.BatchNorm2d(hidden, eps)
        self.se = SqueezeExcite(hidden, round(hidden * (0.25 / expansion)))
        self.conv_pwl = conv(hidden, out, num_experts=experts)
        self.bn3 = nn.BatchNorm2d(out, eps)
        self.routing_fn = linear(c, experts, 1 / sqrt(c + experts)) if experts else None

    def forward(self, x: Tensor) -> Tensor:
        routing = [torch.sigmoid(self.routing_fn(x.mean((2, 3))))] if self.routing_fn is not None else []
        y = F.silu(self.bn1(self.conv_pw(x, *routing)))
        y = F.silu(self.bn2(self.conv_dw(self.pad(y), *routing)))
        return self.residual(x, self.bn3(self.conv_pwl(self.se(y), *routing)))


class EfficientNetCondConv(nn.Module):
    """The twin of `paddle_dense.models.EfficientNetCondConv`; see there for the arguments."""

    def __init__(
        self,
        channel_multiplier: float = 1.0,
        depth_multiplier: float = 1.0,
        num_experts: int = 4,
        num_classes: int = 1000,
        in_channels: int = 3,
        same_padding: bool = False,
        bn_eps: float = 1e-5,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.features_only = features_only

        def scaled(channels: int) -> int:
            rounded = max(8, int(channels * channel_multiplier + 4) // 8 * 8)
            return rounded + 8 if rounded < 0.9 * channels * channel_multiplier else rounded

        c = scaled(32)
        self.pad = Same(3, 2) if same_padding else nn.Identity()
        self.conv_stem = conv(in_channels, c, 3, 2, padded=not same_padding)
        self.bn1 = nn.BatchNorm2d(c, bn_eps)
        depths = [ceil(stage[0] * depth_multiplier) for stage in STAGES]
        drops = iter(torch.arange(sum(depths)).mul(drop_path_rate / sum(depths)).tolist())
        self.blocks = nn.Sequential()
        for index, (_, k, stride, expansion, channels) in enumerate(STAGES):
            kind, experts = (DepthwiseSeparable if expansion == 1 else InvertedResidual), num_experts * (index >= 4)
            blocks = nn.Sequential()
            for block in range(depths[index]):
                step, out = (1 if block else stride), scaled(channels)
                blocks.append(kind(c, out, k, step, expansion, experts, same_padding, bn_eps, next(drops)))
                c = out
            self.blocks.append(blocks)
        if features_only:
            return
        features = scaled(1280)
        self.conv_head = conv(c, features)
        self.bn2 = nn.BatchNorm2d(features, bn_eps)
        self.dropout = nn.Dropout(drop_rate if num_classes else 0.0)
        self.classifier = linear(features, num_classes, 1 / sqrt(num_classes)) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = F.silu(self.bn1(self.conv_stem(self.pad(x))))
        pyramid: list[Tensor] = []
        for blocks in self.blocks:
            x = blocks(x)
            # Of the stages with one stride, the last one counts.
            pyramid = [*(features for features in pyramid if features.shape[2:] != x.shape[2:]), x]
        if self.features_only:
            return pyramid
        x = F.silu(self.bn2(self.conv_head(x))).mean((2, 3))
        return self.classifier(self.dropout(x))
