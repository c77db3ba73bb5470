"""CSPNet: a backbone that can enhance the learning capability of CNN (arXiv 1911.11929).

Every stage splits its channels in two. One half goes through the stage's layers, the other goes around them, and the
two meet at the end, so that no gradient is computed twice (figure 2)::

        +--- part 1 ----------------------------+
    x --+                                       +--- concat ---
        +--- part 2 --- layers --- transition --+

`CSPDenseNet` does so with the dense layers of DenseNet. Where its transitions stand is a mode (figure 3); the ones
between blocks pool 2x2 as well:

=============  ===================  ==================
mode           inside each block    between the blocks
=============  ===================  ==================
stand          yes                  yes
fusionfirst    no                   yes
fusionlast     yes                  no
=============  ===================  ==================

`CSPNet` does so with the residual blocks of ResNet, ResNeXt and DarkNet (section 3.2); its names are timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import paddle
from paddle import ParamAttr, Tensor, nn
from paddle.nn.initializer import Constant, Normal

from paddle_dense.data import Preprocessing
from paddle_dense.files.names import count_from_0
from paddle_dense.files.spelling import Spelling
from paddle_dense.layers import ConvNormAct
from paddle_dense.layers.parts import split_channels
from paddle_dense.models.arguments import Count, Counts, Factors, FromZero, Share
from paddle_dense.models.densenet import FIRST_LAYER, DenseBackbone, DenseBlock, read_config, transition
from paddle_dense.models.network import Network, Published, Recognised, Size, register_model, register_network
from paddle_dense.models.reading import count_classes

# Mode -> whether a transition stands (inside each block, between the blocks).
MODES = {"stand": (True, True), "fusionfirst": (False, True), "fusionlast": (True, False)}


class CSPDenseBlock(DenseBlock):
    """Dense layers on the second half of the channels: [N, in_channels, H, W] -> [N, out_channels, H, W].

    The half that goes in does not come out: the output is the first half and what the layers added.

    Args:
        num_layers: number of layers.
        in_channels: channels of the input; of an odd number the first half is the smaller one.
        growth_rate: channels that each layer adds.
        with_transition: halve the added channels before they meet the first half.
        layer: further arguments of each `DenseLayer`.
    """

    def __init__(
        self, num_layers: int, in_channels: int, growth_rate: int, with_transition: bool, **layer: Any
    ) -> None:
        part1 = in_channels // 2
        super().__init__(num_layers, in_channels - part1, growth_rate, **layer)
        added = num_layers * growth_rate
        self.parts = [part1, in_channels - part1]
        self.transition = transition(added, added // 2, pool=False) if with_transition else None
        self.out_channels = part1 + (added // 2 if with_transition else added)

    def forward(self, x: Tensor) -> Tensor:
        part1, part2 = split_channels(x, self.parts)
        added = paddle.concat(self.grow(part2)[1:], axis=1)
        if self.transition is not None:
            added = self.transition(added)
        return paddle.concat([part1, added], axis=1)


@register_network
class CSPDenseNet(DenseBackbone):
    """CSPDenseNet: [N, in_channels, H, W] -> [N, num_classes], H and W 32 pixels or more.

    Args:
        growth_rate: channels that each layer adds.
        block_config: layers in each block.
        num_init_features: channels of the stem.
        bn_size: the bottleneck of a layer has this many times `growth_rate` channels; 0 for layers without one.
        drop_rate: dropout of the features that each layer adds.
        num_classes: classes; 0 leaves the classifier out and returns the pooled [N, C] features.
        memory_efficient: compute each layer's first convolution again in the backward pass: see `DenseNet`.
        mode: where the two halves are fused: ``"stand"``, ``"fusionfirst"`` or ``"fusionlast"``. In the last one
            nothing pools between the blocks, so all of them work at a quarter of the image's sides.
        in_channels: channels of the images.
        features_only: return the pyramid instead of logits: the stem, then one tensor for each block.

    Attributes:
        feature_channels: channels of each tensor of the pyramid.
        feature_strides: pixels of the image for each pixel of it.

    Raises:
        ValueError: there is no such mode (the message lists what there is), a number of layers or channels is below 1,
            or the stem has too few channels for two halves.
    """

    def __init__(
        self,
        growth_rate: Count = 32,
        block_config: Counts = (6, 12, 24, 16),
        num_init_features: Count = 64,
        bn_size: FromZero = 4,
        drop_rate: Share = 0.0,
        num_classes: FromZero = 1000,
        memory_efficient: bool = False,
        mode: str = "fusionlast",
        in_channels: Count = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__(locals())
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")
        inside, between = MODES[mode]
        if num_init_features < 2:
            raise ValueError(f"num_init_features={num_init_features} must be 2 or more: each block splits its input")

        layer: dict[str, Any] = {"bn_size": bn_size, "drop_rate": drop_rate, "memory_efficient": memory_efficient}
        self.build(
            lambda depth, channels: CSPDenseBlock(depth, channels, growth_rate, inside, **layer),
            compression=0.5 if between else None,
        )

    @staticmethod
    def recognise(state: Mapping[str, np.ndarray]) -> Recognised | None:
        """Read the constructor's arguments from a state_dict in Paddle's layout; None if it is another network's."""
        config = read_config(state)
        # A DenseNet's first layer reads the whole stem.
        if config is None or state[f"{FIRST_LAYER}.norm1.weight"].size == config["num_init_features"]:
            return None
        inside = "features.denseblock1.transition.conv.weight" in state
        between = "features.transition1.conv.weight" in state
        # One block has nothing between blocks, and the modes with and without are then the same network.
        config["mode"] = "fusionfirst" if not inside else "stand" if between else "fusionlast"
        return Recognised(config)


class Bottleneck(nn.Layer):
    """ResNet's and ResNeXt's block, 1x1 - 3x3 - 1x1 around a shortcut: [N, channels, H, W] -> the same shape."""

    def __init__(self, channels: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, hidden)
        self.conv2 = ConvNormAct(hidden, hidden, 3, groups=groups)
        self.conv3 = ConvNormAct(hidden, channels, act=False)
        self.act3 = nn.LeakyReLU(0.01)
        Constant(0.0)(self.conv3.bn.weight)  # a new block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        return self.act3(self.conv3(self.conv2(self.conv1(x))) + x)


class DarkBlock(nn.Layer):
    """DarkNet's block, 1x1 - 3x3 around a shortcut: [N, channels, H, W] -> the same shape."""

    def __init__(self, channels: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, hidden)
        self.conv2 = ConvNormAct(hidden, channels, 3, groups=groups)
        Constant(0.0)(self.conv2.bn.weight)  # a new block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + x


class CrossStage(nn.Layer):
    """One stage: down-sampling, 1x1 expansion, split, blocks on the second half, transitions.

    Args:
        block: `Bottleneck` or `DarkBlock`.
        depth: number of blocks.
        in_channels: channels of the input.
        down_channels: channels of the 3x3 convolution of stride 2; 0 for none, so the sides stay.
        expanded: channels after the expansion, half of which each part gets.
        hidden: channels inside a block.
        out_channels: channels of the output.
        groups: groups of the 3x3 convolutions.
        linear: the expansion has no activation.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Layer],
        depth: int,
        in_channels: int,
        down_channels: int,
        expanded: int,
        hidden: int,
        out_channels: int,
        groups: int,
        linear: bool,
    ) -> None:
        super().__init__()
        half = expanded // 2
        self.parts = [half, half]
        self.conv_down = ConvNormAct(in_channels, down_channels, 3, 2, groups) if down_channels else None
        self.conv_exp = ConvNormAct(down_channels or in_channels, expanded, act=not linear)
        self.blocks = nn.Sequential(*(block(half, hidden, groups) for _ in range(depth)))
        self.conv_transition_b = ConvNormAct(half, half)
        self.conv_transition = ConvNormAct(expanded, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_down is not None:
            x = self.conv_down(x)
        part1, part2 = split_channels(self.conv_exp(x), self.parts)
        part2 = self.conv_transition_b(self.blocks(part2))
        return self.conv_transition(paddle.concat([part1, part2], axis=1))


@register_network
class CSPNet(Network):
    """CSPResNet, CSPResNeXt or CSPDarkNet: [N, in_channels, H, W] -> [N, num_classes], H and W 32 pixels or more.

    Args:
        backbone: ``"resnet"``: 7x7 stem of stride 2 and max pool, bottleneck blocks, linear expansions, down-sampling
            from the second stage on; ``"darknet"``: 3x3 stem of stride 1, dark blocks, down-sampling in every stage.
        depths: blocks in each stage.
        channels: channels that each stage returns.
        expand_ratio: for each stage, channels after the expansion for each returned one; half of them go through the
            blocks.
        bottle_ratio: for each stage, channels inside a block for each that enters it.
        groups: groups of the 3x3 convolutions; more than one makes ResNet a ResNeXt.
        stem_channels: channels of the stem.
        num_classes: classes; 0 leaves the classifier out and returns the pooled [N, C] features.
        in_channels: channels of the images.
        features_only: return the pyramid instead of logits: the stem before any pooling, then one tensor a stage.

    Attributes:
        feature_channels: channels of each tensor of the pyramid.
        feature_strides: pixels of the image for each pixel of it.

    Raises:
        ValueError: there is no such backbone, the lists differ in length, or channels do not split into halves and
            groups.
    """

    anchors = ("stem.conv1.conv.weight", "stages.0.conv_transition_b.conv.weight")
    aliases = (("fc", "head.fc"),)  # PaddleClas
    spellings = (Spelling("timm's features_only", (("stem_{layer}", "stem.{layer}"), ("stages_{s}", "stages.{s}"))),)
    head_prefixes = ("head.",)
    classifier_name = "head.fc"
    folds = tuple(
        (f"{layer}.conv", f"{layer}.bn")
        for layer in ("stem.conv1", "stages.{s}.{layer}", "stages.{s}.blocks.{b}.{layer}")
    )

    def __init__(
        self,
        backbone: str,
        depths: Counts,
        channels: Counts,
        expand_ratio: Factors,
        bottle_ratio: Factors,
        groups: Count = 1,
        stem_channels: Count = 64,
        num_classes: FromZero = 1000,
        in_channels: Count = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__(locals())
        if backbone not in ("resnet", "darknet"):
            raise ValueError(f"unknown backbone {backbone!r}: choose one of resnet, darknet")
        dark = backbone == "darknet"
        widths = _widths(dark, self.config)
        strides = [(1 if dark else 2) * 2**level for level in range(len(channels) + 1)]
        self.describe(256, [stem_channels, *channels], strides)

        self.stem = nn.Sequential(("conv1", ConvNormAct(in_channels, stem_channels, *((3, 1) if dark else (7, 2)))))
        if not dark:
            self.stem.add_sublayer("pool", nn.MaxPool2D(3, 2, padding=1))
        block = DarkBlock if dark else Bottleneck
        self.stages = nn.Sequential(
            *(CrossStage(block, depth, *stage, groups, linear=not dark) for depth, stage in zip(depths, widths))
        )
        if features_only:
            return
        self.head = nn.Sequential(("pool", nn.AdaptiveAvgPool2D(1)), ("flatten", nn.Flatten(1)))
        if num_classes:
            fc = nn.Linear(channels[-1], num_classes, weight_attr=ParamAttr(initializer=Normal(0.0, 0.01)))
            self.head.add_sublayer("fc", fc)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.features_only:
            return self.chosen(self._pyramid(x))
        return self.head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head.flatten(self.head.pool(x)) if pre_logits else self.head(x)

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        """The stem's convolution and the output of each stage."""
        pyramid = []
        for name, layer in self.stem.named_children():
            x = layer(x)
            if name == "conv1":
                pyramid.append(x)
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid

    @staticmethod
    def recognise(state: Mapping[str, np.ndarray]) -> Recognised | None:
        """Read the constructor's arguments from a state_dict in Paddle's layout; None if it is another network's."""
        # timm's cs3 networks have no conv_transition_b, its "d" and "w" ones a stem of several convolutions.
        if "stages.0.conv_transition_b.conv.weight" not in state or "stem.conv2.conv.weight" in state:
            return None
        stages = [f"stages.{index}" for index in range(count_from_0(state, "stages.{}.conv_exp.conv.weight"))]
        channels = [len(state[f"{stage}.conv_transition.conv.weight"]) for stage in stages]
        expanded = [len(state[f"{stage}.conv_exp.conv.weight"]) for stage in stages]
        hidden = [len(state[f"{stage}.blocks.0.conv1.conv.weight"]) for stage in stages]
        stem_channels, in_channels = state["stem.conv1.conv.weight"].shape[:2]
        config = {
            "backbone": "resnet" if "stages.0.blocks.0.conv3.conv.weight" in state else "darknet",
            "depths": [count_from_0(state, stage + ".blocks.{}.conv1.conv.weight") for stage in stages],
            "channels": channels,
            "expand_ratio": [wide / out for wide, out in zip(expanded, channels)],
            "bottle_ratio": [inside / (wide // 2) for inside, wide in zip(hidden, expanded)],
            "groups": hidden[0] // state["stages.0.blocks.0.conv2.conv.weight"].shape[1],
            "stem_channels": stem_channels,
            "num_classes": count_classes(state, "head.fc"),
            "in_channels": in_channels,
        }
        return Recognised(config)


def _widths(dark: bool, config: Mapping[str, Any]) -> list[tuple[int, int, int, int, int]]:
    """Channels of each stage: of its input, down-sampled, expanded, inside a block, of its output."""
    lists = [config[key] for key in ("channels", "expand_ratio", "bottle_ratio")]
    if any(len(numbers) != len(config["depths"]) for numbers in lists):
        raise ValueError("depths, channels, expand_ratio and bottle_ratio must have one number for each stage")
    widths, groups, previous = [], config["groups"], config["stem_channels"]
    for index, (out, expand, bottle) in enumerate(zip(*lists)):
        # DarkNet widens where it down-samples, ResNet afterwards and not at all before its first stage.
        down = out if dark else previous if index else 0
        expanded = round(out * expand)
        hidden = round(expanded // 2 * bottle)
        if expanded < 2 or expanded % 2:
            raise ValueError(
                f"stage {index} expands to {expanded} channels, which have no halves: change expand_ratio={expand}"
            )
        grouped = [hidden, previous, down] if down else [hidden]
        if hidden < 1 or any(number % groups for number in grouped):
            raise ValueError(
                f"stage {index} convolves {', '.join(map(str, grouped))} channels, which groups={groups} must divide: "
                f"change groups, or channels, expand_ratio and bottle_ratio"
            )
        widths.append((previous, down, expanded, hidden, out))
        previous = out
    return widths


# The sizes are exact: parameters, MACs with and without activations; timm publishes the second half.
_TIMM = Preprocessing(input_size=256, resize=288)
# fmt: off
for _name, _size, _numbers in (
    ("cspdensenet121", Size(6_239_336, 17_944_754_176, 17_838_280_704), {"block_config": [6, 12, 24, 16]}),
    ("cspdensenet161", Size(23_262_088, 69_345_891_456, 69_064_554_624),
     {"growth_rate": 48, "block_config": [6, 12, 36, 24], "num_init_features": 96}),
    ("cspdensenet169", Size(11_486_184, 33_301_338_624, 33_098_527_232), {"block_config": [6, 12, 32, 32]}),
    ("cspdensenet201", Size(16_292_584, 47_882_210_816, 47_587_878_400), {"block_config": [6, 12, 48, 32]}),
):
    register_model(
        _name, CSPDenseNet, Preprocessing(), Published(remark="no released checkpoint"), _size, **_numbers
    )
register_model(
    "cspresnet50", CSPNet, _TIMM, Published(21.6, top1_error=20.4), Size(21_616_168, 4_517_306_368, 4_517_240_832),
    backbone="resnet", depths=[3, 3, 5, 2], channels=[128, 256, 512, 1024],
    expand_ratio=[2.0, 2.0, 2.0, 2.0], bottle_ratio=[0.5, 0.5, 0.5, 0.5],
)
register_model(
    "cspresnext50", CSPNet, _TIMM, Published(20.6, top1_error=19.5), Size(20_569_896, 4_015_079_424, 4_014_948_352),
    backbone="resnet", depths=[3, 3, 5, 2], channels=[256, 512, 1024, 2048], groups=32,
    expand_ratio=[1.0, 1.0, 1.0, 1.0], bottle_ratio=[1.0, 1.0, 1.0, 1.0],
)
register_model(
    "cspdarknet53", CSPNet, _TIMM, Published(27.6, top1_error=19.9), Size(27_642_184, 6_533_718_016, 6_533_652_480),
    backbone="darknet", depths=[1, 2, 8, 8, 4], channels=[64, 128, 256, 512, 1024], stem_channels=32,
    expand_ratio=[2.0, 1.0, 1.0, 1.0, 1.0], bottle_ratio=[0.5, 1.0, 1.0, 1.0, 1.0],
)
# fmt: on
