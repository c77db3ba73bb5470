"""EfficientNet-CondConv: conditionally parameterised convolutions in EfficientNet (arXiv 1904.04971, section 4.3).

EfficientNet (arXiv 1905.11946, table 1) whose last three stages have E experts for every convolution of a block; the
block's input decides once how all of them are mixed::

    x --+-- conv_pw (1x1, expands) -- conv_dw (k x k, depthwise) -- se -- conv_pwl (1x1, projects) --+-- y
        |           |                          |                                 |                   |
        +-- pool -- routing_fn -- sigmoid -----+---------------------------------+                   |
        |                                                                                            |
        +------------------------ where stride and channels allow -------------------------------- (+)

A batch normalisation follows each convolution, and SiLU the first two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import Any, Callable, ClassVar, Literal

import numpy as np
from paddle import ParamAttr, Tensor, nn
from paddle.nn import functional as F
from paddle.nn.initializer import Constant, Normal, Uniform

from paddle_dense.data import Preprocessing
from paddle_dense.errors import WeightsError
from paddle_dense.files.names import count_from_0
from paddle_dense.layers import silu
from paddle_dense.layers.condconv import RoutedCondConv2D
from paddle_dense.models.arguments import Count, Epsilon, Factor, FromZero, Share
from paddle_dense.models.network import Network, Published, Recognised, Size, register_model, register_network
from paddle_dense.models.reading import count_classes

STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
# Each stage of EfficientNet-B0: blocks, kernel size, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
FIRST_CONDCONV_STAGE = 4
SE_RATIO = 0.25


def scaled_channels(channels: int, multiplier: float) -> int:
    """The multiple of 8 that is nearest to ``channels * multiplier``, at least 8 and no less than 90 % of it."""
    scaled = channels * multiplier
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def scaled_depth(blocks: int, multiplier: float) -> int:
    """Blocks of a stage, rounded up."""
    return ceil(blocks * multiplier)


class SqueezeExcite(nn.Layer):
    """Squeeze and excitation (arXiv 1709.01507) of 1x1 convolutions with biases, SiLU between them."""

    called_after: ClassVar = {"conv_reduce": ["SiLU"], "conv_expand": ["Sigmoid"]}

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = _conv(channels, reduced, bias=True)
        self.conv_expand = _conv(reduced, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv_expand(silu(self.conv_reduce(x.mean([2, 3], keepdim=True))))
        return x * F.sigmoid(gate)


class Block(nn.Layer):
    """The way around a block, where stride and channels allow one."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.skip = stride == 1 and in_channels == out_channels
        self.drop_path = drop_path

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """Input plus output; in training, `drop_path` of the samples keep the input alone (arXiv 1603.09382)."""
        return x + F.dropout(y, self.drop_path, axis=0, training=self.training) if self.skip else y


class DepthwiseSeparable(Block):
    """Block of the first stage, which expands nothing: depthwise, squeeze and excitation, 1x1."""

    called_after: ClassVar = {"bn1": ["SiLU"]}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        same_padding: bool,
        bn_eps: float,
        drop_path: float,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, drop_path)
        self.conv_dw = _conv(in_channels, in_channels, kernel_size, stride, in_channels, same_padding)
        self.bn1 = nn.BatchNorm2D(in_channels, epsilon=bn_eps)
        self.se = SqueezeExcite(in_channels, round(in_channels * SE_RATIO))
        self.conv_pw = _conv(in_channels, out_channels)
        self.bn2 = nn.BatchNorm2D(out_channels, epsilon=bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(silu(self.bn1(self.conv_dw(x))))
        return self.residual(x, self.bn2(self.conv_pw(y)))


class InvertedResidual(Block):
    """Block of the other stages, drawn above; `num_experts` 0 makes it EfficientNet's own."""

    called_after: ClassVar = {"bn1": ["SiLU"], "bn2": ["SiLU"]}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expansion: int,
        num_experts: int,
        same_padding: bool,
        bn_eps: float,
        drop_path: float,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, drop_path)
        hidden = in_channels * expansion
        bound = 1.0 / sqrt(in_channels + num_experts)
        self.routing_fn = _linear(in_channels, num_experts, bound) if num_experts else None
        self.conv_pw = _conv(in_channels, hidden, num_experts=num_experts)
        self.bn1 = nn.BatchNorm2D(hidden, epsilon=bn_eps)
        self.conv_dw = _conv(hidden, hidden, kernel_size, stride, hidden, same_padding, num_experts=num_experts)
        self.bn2 = nn.BatchNorm2D(hidden, epsilon=bn_eps)
        self.se = SqueezeExcite(hidden, round(hidden * (SE_RATIO / expansion)))
        self.conv_pwl = _conv(hidden, out_channels, num_experts=num_experts)
        self.bn3 = nn.BatchNorm2D(out_channels, epsilon=bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        # What each convolution takes beside its input.
        routing = () if self.routing_fn is None else (F.sigmoid(self.routing_fn(x.mean([2, 3]))),)
        y = silu(self.bn1(self.conv_pw(x, *routing)))
        y = silu(self.bn2(self.conv_dw(y, *routing)))
        return self.residual(x, self.bn3(self.conv_pwl(self.se(y), *routing)))


@register_network
class EfficientNetCondConv(Network):
    """EfficientNet-CondConv: [N, in_channels, H, W] -> [N, num_classes], H and W 32 pixels or more.

    Args:
        channel_multiplier: scales the channels of every stage; the results are multiples of 8.
        depth_multiplier: scales the blocks of every stage, rounded up.
        num_experts: experts of every convolution of the last three stages.
        num_classes: classes; 0 leaves the classifier out and returns its [N, C] input.
        in_channels: channels of the images.
        same_padding: pad as TensorFlow's SAME does, where a stride of 2 often adds more zeros at the right and bottom
            than at the left and top; False adds half a kernel on every side.
        bn_eps: epsilon of the batch normalisations; 1e-3 in the released networks.
        drop_rate: dropout before the classifier; the paper trains with 0.2.
        drop_path_rate: share of the samples that skip the last block in training, falling linearly to 0 for the first;
            the paper trains with 0.2.
        features_only: return the pyramid instead of logits, one tensor for each stride.

    Attributes:
        feature_channels: channels of each tensor of the pyramid.
        feature_strides: pixels of the image for each pixel of it.
    """

    anchors = ("conv_stem.weight", f"blocks.{FIRST_CONDCONV_STAGE}.0.routing_fn.bias")
    head_prefixes = ("conv_head.", "bn2.", "classifier.")
    folds = (
        ("conv_stem", "bn1"),
        ("blocks.0.{b}.conv_dw", "blocks.0.{b}.bn1"),
        ("blocks.0.{b}.conv_pw", "blocks.0.{b}.bn2"),
        ("blocks.{s}.{b}.conv_pw", "blocks.{s}.{b}.bn1"),
        ("blocks.{s}.{b}.conv_dw", "blocks.{s}.{b}.bn2"),
        ("blocks.{s}.{b}.conv_pwl", "blocks.{s}.{b}.bn3"),
        ("conv_head", "bn2"),
    )
    called_after: ClassVar = {"bn1": ["SiLU"], "bn2": ["SiLU", "mean"]}

    def __init__(
        self,
        channel_multiplier: Factor = 1.0,
        depth_multiplier: Factor = 1.0,
        num_experts: FromZero = 4,
        num_classes: FromZero = 1000,
        in_channels: Count = 3,
        same_padding: bool = False,
        bn_eps: Epsilon = 1e-5,
        drop_rate: Share = 0.0,
        drop_path_rate: Share = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__(locals())
        pyramid: list[tuple[int, int]] = []  # channels and strides
        channels = scaled_channels(STEM_CHANNELS, channel_multiplier)
        self.conv_stem = _conv(in_channels, channels, 3, 2, same_padding=same_padding)
        self.bn1 = nn.BatchNorm2D(channels, epsilon=bn_eps)
        self.blocks = nn.LayerList()
        depths = [scaled_depth(stage[0], depth_multiplier) for stage in STAGES]
        total_stride = 2
        for index, (_, kernel_size, stride, expansion, base_channels) in enumerate(STAGES):
            out_channels = scaled_channels(base_channels, channel_multiplier)
            blocks: list[nn.Layer] = []
            for block in range(depths[index]):
                drop_path = drop_path_rate * (sum(depths[:index]) + block) / sum(depths)
                sizes = (channels, out_channels, kernel_size, stride if block == 0 else 1)
                common = (same_padding, bn_eps, drop_path)
                if expansion == 1:
                    blocks.append(DepthwiseSeparable(*sizes, *common))
                else:
                    experts = num_experts if index >= FIRST_CONDCONV_STAGE else 0
                    blocks.append(InvertedResidual(*sizes, expansion, experts, *common))
                channels = out_channels
            self.blocks.append(nn.Sequential(*blocks))
            total_stride *= stride
            if index in _LAST_OF_STRIDE:
                pyramid.append((channels, total_stride))
        self.describe(224, *zip(*pyramid))
        if features_only:
            return
        features = scaled_channels(HEAD_CHANNELS, channel_multiplier)
        self.conv_head = _conv(channels, features)
        self.bn2 = nn.BatchNorm2D(features, epsilon=bn_eps)
        self.dropout = nn.Dropout(drop_rate)
        if num_classes:
            self.classifier = _linear(features, num_classes, 1.0 / sqrt(num_classes))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if not self.features_only:
            return self.forward_head(self.forward_features(x))
        x = silu(self.bn1(self.conv_stem(x)))
        pyramid = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in _LAST_OF_STRIDE:
                pyramid.append(x)
        return self.chosen(pyramid)

    def forward_features(self, x: Tensor) -> Tensor:
        x = silu(self.bn1(self.conv_stem(x)))
        for stage in self.blocks:
            x = stage(x)
        return silu(self.bn2(self.conv_head(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean([2, 3])
        return self.classifier(self.dropout(x)) if self.num_classes and not pre_logits else x

    @staticmethod
    def recognise(state: Mapping[str, np.ndarray]) -> Recognised | None:
        """Read the constructor's arguments from a state_dict in Paddle's layout; None if it is another network's."""
        routing = f"blocks.{FIRST_CONDCONV_STAGE}.0.routing_fn.bias"
        if routing not in state:
            return None
        last_norms = ["bn1", *(f"blocks.{stage}.0.bn{3 if stage else 2}" for stage in range(len(STAGES))), "bn2"]
        widths = [state[f"{name}.weight"].size for name in last_norms if f"{name}.weight" in state]
        depths = [count_from_0(state, f"blocks.{stage}.{{}}.bn1.weight") for stage in range(len(STAGES))]
        base_widths = [STEM_CHANNELS, *(stage[-1] for stage in STAGES), HEAD_CHANNELS]
        config = {
            "channel_multiplier": _multiplier(scaled_channels, base_widths, widths, "channels"),
            "depth_multiplier": _multiplier(scaled_depth, [stage[0] for stage in STAGES], depths, "blocks"),
            "num_experts": state[routing].size,
            "num_classes": count_classes(state, "classifier"),
            "in_channels": state["conv_stem.weight"].shape[1],
            "same_padding": True,
            "bn_eps": 1e-3,
        }
        if "conv_head.weight" not in state:  # timm's features_only
            config["features_only"] = True
        # Neither leaves a trace in a file: these are the values of the released checkpoints.
        return Recognised(config, ("same_padding", "bn_eps"))


# The stages whose output is the last of its stride.
_LAST_OF_STRIDE = [index for index in range(len(STAGES)) if index + 1 == len(STAGES) or STAGES[index + 1][2] == 2]


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    same_padding: bool = False,
    bias: bool = False,
    num_experts: int = 0,
) -> nn.Layer:
    """A convolution drawn from N(0, sqrt(2 / fan_out)), ``fan_out = kernel_size**2 * out_channels / groups``."""
    padding: int | Literal["SAME"] = "SAME" if same_padding else kernel_size // 2
    if num_experts:
        return RoutedCondConv2D(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, num_experts=num_experts
        )
    std = sqrt(2.0 * groups / (kernel_size * kernel_size * out_channels))
    return nn.Conv2D(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding,
        groups=groups,
        weight_attr=ParamAttr(initializer=Normal(0.0, std)),
        bias_attr=ParamAttr(initializer=Constant(0.0)) if bias else False,
    )


def _linear(in_features: int, out_features: int, bound: float) -> nn.Linear:
    """A linear layer drawn from U(-bound, bound), its bias 0."""
    return nn.Linear(
        in_features,
        out_features,
        weight_attr=ParamAttr(initializer=Uniform(-bound, bound)),
        bias_attr=ParamAttr(initializer=Constant(0.0)),
    )


def _multiplier(scaled: Callable[[int, float], int], base: Sequence[int], found: Sequence[int], what: str) -> float:
    """The multiplier nearest to 1, in tenths or else hundredths, that makes the base numbers those found.

    A network without its head has one number less.
    """
    for steps in (10, 100):
        for multiplier in sorted((n / steps for n in range(1, 10 * steps)), key=lambda m: abs(m - 1.0)):
            if all(scaled(number, multiplier) == there for number, there in zip(base, found)):
                return multiplier
    raise WeightsError(
        f"the stages have {list(found)} {what} and no multiple of EfficientNet-B0's {list(base)} gives these: "
        f"give the checkpoint of an EfficientNet-CondConv scaled by multipliers"
    )


# Table 3 of the paper. The forms with TensorFlow's padding come first: a file fits both, and only they have released
# checkpoints. The sizes are exact: parameters, MACs with and without activations.
_INCEPTION: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_SIZES = {
    "b0_4e": Size(13_314_116, 396_513_888, 396_513_888),
    "b0_8e": Size(24_013_284, 407_213_024, 407_213_024),
    "b1_8e": Size(39_715_968, 723_282_704, 723_282_704),
}
_NETWORKS: list[tuple[str, dict[str, Any], tuple[int, int], float, float | None, float]] = [
    ("b0_4e", {"num_experts": 4}, (224, 256), 13.3, 402, 22.7),
    ("b0_8e", {"num_experts": 8}, (224, 256), 24.0, 413, 22.1),
    ("b1_8e", {"num_experts": 8, "depth_multiplier": 1.1}, (240, 272), 39.7, None, 20.7),
]
for _tensorflow in (True, False):
    for _name, _numbers, _pixels, _params, _macs, _error in _NETWORKS:
        register_model(
            f"{'tf_' if _tensorflow else ''}efficientnet_cc_{_name}",
            EfficientNetCondConv,
            Preprocessing(*_pixels, "bicubic", **(_INCEPTION if _tensorflow else {})),
            Published(
                _params, _macs, _error if _tensorflow else None, remark="" if _macs else "614 M MACs at 224 pixels"
            ),
            _SIZES[_name],
            **_numbers,
            **({"same_padding": True, "bn_eps": 1e-3} if _tensorflow else {}),
        )
