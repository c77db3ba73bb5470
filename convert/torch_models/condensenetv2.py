"""PyTorch twin of `paddle_dense.models.condensenetv2`, key for key the original's (arXiv 2104.04382).

The condensed SFR multiplies by its `index` matrix as the original does: the twin is the reference that the Paddle
network, which never forms that product, is checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"ReLU": nn.ReLU, "HS": nn.Hardswish}


class SELayer(nn.Module):
    """Squeeze and excitation without biases."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class Conv(nn.Sequential):
    """BN, activation, 3x3 grouped convolution."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, activation: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.activation = ACTIVATIONS[activation]()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=groups, bias=False)


class LearnedConnections(nn.Module):
    """What LGC and SFR share in training: BN, activation, masked dense 1x1 convolution."""

    _count: Tensor
    _stage: Tensor
    _mask: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, factor: int, activation: str, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.groups, self.factor = groups, factor
        self.register_buffer("_count", torch.zeros(1))
        self.register_buffer("_stage", torch.zeros(1))
        self.register_buffer("_mask", torch.ones(out_channels, in_channels, 1, 1))
        self.norm = nn.BatchNorm2d(in_channels)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.dropout(self.activation(self.norm(x))), self.conv.weight * self._mask)

    @torch.no_grad()
    def set_progress(self, progress: float) -> None:
        """Drop whatever is due: stage i of C - 1 is due from half of its share of the training on."""
        edges = [(i + 1) / (self.factor - 1) for i in range(self.factor - 1)]
        stage = next((i for i, edge in enumerate(edges) if 2 * progress < edge), self.factor - 1)
        if stage <= int(self._stage.round()):
            return
        alive = self.per_group(self._mask.squeeze((2, 3))) > 0
        strength = self.per_group((self.conv.weight * self._mask).abs().squeeze((2, 3)))
        dropped = stage * (strength.shape[1] // self.factor)
        order = strength.masked_fill(~alive, -1).argsort(dim=1)
        keep = torch.ones_like(strength).scatter_(1, order[:, :dropped], 0)
        self._mask.copy_(self.spread(keep)[:, :, None, None])
        self._count.fill_(dropped)
        self._stage.fill_(stage)

    def group_lasso(self) -> Tensor:
        """Sum of the L2 norms of the weights that a group and a candidate share; 0 once G - 1 stages are done."""
        if int(self._stage.round()) >= self.groups - 1:
            return self.conv.weight.new_zeros(())
        squares = (self.conv.weight * self._mask).squeeze((2, 3)).square()
        return self.per_group(squares).clamp(min=1e-6).sqrt().sum()

    def per_group(self, weight: Tensor) -> Tensor:
        """Sum [out, in] over what a group shares: [G, candidates]."""
        return self.grouped(weight).unflatten(0, (-1, self.groups)).sum(0)

    def spread(self, keep: Tensor) -> Tensor:
        """Lay each group's choice [G, candidates] over all weights: [out, in]."""
        return self.grouped(keep.repeat(len(self.grouped(self._mask[:, :, 0, 0])) // self.groups, 1))

    @staticmethod
    def grouped(weight: Tensor) -> Tensor:
        """[out, in] with what alternates between the groups as rows, and back."""
        return weight


class LGC(LearnedConnections):
    """Learned group convolution: row r belongs to group r mod G, groups choose inputs."""


class SFR(LearnedConnections):
    """Sparse feature reactivation: column c belongs to group c mod G, groups choose outputs."""

    @staticmethod
    def grouped(weight: Tensor) -> Tensor:
        return weight.T


class CondenseLGC(nn.Module):
    """Condensed LGC: gather, BN, activation, grouped 1x1 convolution, shuffle."""

    index: Tensor

    def __init__(self, in_channels: int, out_channels: int, groups: int, activation: str) -> None:
        super().__init__()
        self.register_buffer("index", torch.zeros(in_channels, dtype=torch.int64))
        self.norm = nn.BatchNorm2d(in_channels)
        self.activation = ACTIVATIONS[activation]()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.activation(self.norm(x[:, self.index])))
        return x.unflatten(1, (self.conv.groups, -1)).transpose(1, 2).flatten(1, 2)


class CondenseSFR(nn.Module):
    """Condensed SFR: BN, activation, shuffle, grouped 1x1 convolution, product with the 0/1 matrix `index`."""

    index: Tensor

    def __init__(self, in_channels: int, rows: int, out_channels: int, groups: int, activation: str) -> None:
        super().__init__()
        self.register_buffer("index", torch.zeros(rows, out_channels))
        self.norm = nn.BatchNorm2d(in_channels)
        self.activation = ACTIVATIONS[activation]()
        self.conv = nn.Conv2d(in_channels, rows, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(x)).unflatten(1, (-1, self.conv.groups))
        x = self.conv(x.transpose(1, 2).flatten(1, 2))
        return torch.einsum("nihw,ij->njhw", x, self.index)


class DenseLayer(nn.Module):
    """LGC, 3x3, squeeze and excitation where used, SFR: [N, in, H, W] -> [N, in + growth, H, W].

    CondenseNet's has neither of the last two: its `group_trans` is 0.
    """

    def __init__(
        self,
        channels: int,
        k: int,
        bottleneck: int,
        groups: tuple,
        factors: tuple,
        activation: str,
        se: bool,
        condensed: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        group_1x1, group_3x3, group_trans = groups
        if condensed:
            gathered = channels // factors[0] * group_1x1
            self.conv_1: nn.Module = CondenseLGC(gathered, bottleneck * k, group_1x1, activation)
        else:
            self.conv_1 = LGC(channels, bottleneck * k, group_1x1, factors[0], activation, dropout)
        self.conv_2 = Conv(bottleneck * k, k, group_3x3, activation)
        self.se = SELayer(k, 1) if se else None
        self.sfr: nn.Module | None = None
        if group_trans and condensed:
            self.sfr = CondenseSFR(k, channels // factors[1] * group_trans, channels, group_trans, activation)
        elif group_trans:
            self.sfr = SFR(k, channels, group_trans, factors[1], activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_2(self.conv_1(x))
        if self.se is not None:
            y = self.se(y)
        return torch.cat([x if self.sfr is None else x + self.sfr(y), y], 1)


def dense_features(
    in_channels: int,
    stages: Sequence[int],
    growth: Sequence[int],
    init_stride: int | None,
    dense_layer: Callable[[int, int, int], nn.Module],
) -> tuple[nn.Sequential, int]:
    """Stem, dense blocks and pools of both CondenseNets, initialised as the original does, and the channels after them.

    Args:
        dense_layer: makes a layer from (block, channels of its input, growth rate).
    """
    channels = 2 * growth[0]
    stride = init_stride or (1 if len(stages) < 5 else 2)
    features = nn.Sequential()
    features.init_conv = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
    for block, (layers, k) in enumerate(zip(stages, growth)):
        dense = nn.Sequential()
        for layer in range(layers):
            dense.add_module(f"denselayer_{layer + 1}", dense_layer(block, channels, k))
            channels += k
        features.add_module(f"denseblock_{block + 1}", dense)
        if block + 1 < len(stages):
            features.add_module(f"transition_{block + 1}", nn.AvgPool2d(2, 2))
    features.norm_last = nn.BatchNorm2d(channels)
    features.relu_last = nn.ReLU()
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5)
    return features, channels


def pyramid(features: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each dense block gives the pool after it, the last one what it gives the pool before the classifier."""
    found = []
    for name, layer in features.named_children():
        if name.startswith("transition_") or name == "pool_last":
            found.append(x)
        x = layer(x)
    return found


class CondenseNetV2(nn.Module):
    """The twin of `paddle_dense.models.CondenseNetV2`; see there for the arguments."""

    def __init__(
        self,
        stages: Sequence[int],
        growth: Sequence[int],
        HS_start_block: int = 2,
        SE_start_block: int = 3,
        fc_channel: int = 1024,
        group_1x1: int = 8,
        group_3x3: int = 8,
        group_trans: int = 8,
        bottleneck: int = 4,
        last_se_reduction: int = 16,
        num_classes: int = 1000,
        in_channels: int = 3,
        init_stride: int | None = None,
        condense_factor: int | None = None,
        trans_factor: int | None = None,
        condensed: bool = True,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.features_only = features_only
        groups = (group_1x1, group_3x3, group_trans)
        factors = (condense_factor or group_1x1, trans_factor or group_trans)

        def dense_layer(block: int, channels: int, k: int) -> DenseLayer:
            activation = "HS" if block >= HS_start_block else "ReLU"
            return DenseLayer(channels, k, bottleneck, groups, factors, activation, block >= SE_start_block, condensed)

        self.features, channels = dense_features(in_channels, stages, growth, init_stride, dense_layer)
        self.features.pool_last = nn.AdaptiveAvgPool2d(1)
        if features_only:
            return
        self.features.se_last = SELayer(channels, last_se_reduction)
        self.fc = nn.Linear(channels, fc_channel)
        self.fc_act = nn.Hardswish()
        self.classifier = nn.Linear(fc_channel, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.features_only:
            return pyramid(self.features, x)
        return self.classifier(self.fc_act(self.fc(self.features(x).flatten(1))))
