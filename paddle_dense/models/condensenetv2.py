"""CondenseNet V2: sparse feature reactivation for deep networks (arXiv 2104.04382).

A dense block in which every layer both chooses what it reads and updates what was computed before::

    x --- conv_1 (LGC, 1x1) --- conv_2 (grouped 3x3) --- se? ---+--- y
    |                                                           |
    +-------------------- (+) <------- sfr (1x1) ---------------+
                           |
                          x'            output: concat([x', y])

Between blocks stands a 2x2 average pool and nothing else. In the trained form conv_1 and sfr are masked dense
convolutions that lose connections while the network learns (`LGC`, `SFR`); in the condensed form, equal number for
number, they are grouped convolutions with an index (`CondenseLGC`, `CondenseSFR`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle
from paddle import Tensor, nn

from paddle_dense.data import CIFAR_10, Preprocessing
from paddle_dense.layers import HS, SFR, CondenseSFR, SELayer, linear, share
from paddle_dense.layers.lgc import condense_lgc
from paddle_dense.layers.sfr import condense_sfr
from paddle_dense.models import condensenet
from paddle_dense.models.arguments import Count, Counts, FromZero, OptionalCount
from paddle_dense.models.condensenet import (
    ANCHORS,
    PARTS,
    DenseFeatures,
    default_init_stride,
    read_dense_blocks,
    read_trained_groups,
)
from paddle_dense.models.network import Network, Published, Recognised, Size, register_model, register_network
from paddle_dense.models.reading import unless_same


class DenseLayer(condensenet.DenseLayer):
    """One layer: [N, in, H, W] -> [N, in + growth, H, W], the first `in` channels updated, the others new."""

    def __init__(
        self,
        in_channels: int,
        growth: int,
        bottleneck: int,
        groups: tuple[int, int, int],
        factors: tuple[int, int],
        activation: str,
        use_se: bool,
        condensed: bool,
    ) -> None:
        group_1x1, group_3x3, group_trans = groups
        factor, trans_factor = factors
        super().__init__(
            in_channels, growth, bottleneck, group_1x1, group_3x3, factor, condensed, activation=activation
        )
        if condensed:
            rows = share(in_channels, trans_factor, PARTS) * group_trans
            self.sfr: nn.Layer = CondenseSFR(growth, in_channels, group_trans, activation, rows)
        else:
            self.sfr = SFR(growth, in_channels, group_trans, trans_factor, activation=activation)
        self.se = SELayer(growth, reduction=1) if use_se else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_2(self.conv_1(x))
        if self.se is not None:
            y = self.se(y)
        return paddle.concat([x + self.sfr(y), y], axis=1)


@register_network
class CondenseNetV2(Network):
    """CondenseNet V2: [N, in_channels, H, W] -> [N, num_classes], H and W 32 pixels or more.

    Args:
        stages: layers in each dense block.
        growth: channels that each layer of a block adds.
        HS_start_block: first block (from 0) with hard-swish in place of ReLU.
        SE_start_block: first block (from 0) whose layers have squeeze and excitation.
        fc_channel: units of the hidden layer before the classifier.
        group_1x1: groups G of conv_1.
        group_3x3: groups of conv_2.
        group_trans: groups G of sfr.
        bottleneck: conv_1 has this many times `growth` outputs.
        last_se_reduction: reduction of the squeeze and excitation before the classifier.
        num_classes: classes; 0 leaves the classifier out and returns its [N, fc_channel] input.
        in_channels: channels of the images.
        init_stride: stride of the first convolution; 1 for fewer than five blocks (CIFAR), else 2.
        condense_factor: the condensation factor C of conv_1; `group_1x1` unless given.
        trans_factor: the condensation factor C of sfr; `group_trans` unless given.
        condensed: the condensed form; False for the form that is trained and loses connections.
        features_only: return the pyramid instead of logits, one tensor for each block.

    Attributes:
        feature_channels: channels of each tensor of the pyramid.
        feature_strides: pixels of the image for each pixel of it.

    Raises:
        ValueError: stages and growth differ in length, or channels do not divide into the groups.
    """

    anchors = ANCHORS
    head_prefixes = ("features.se_last.", "fc.", "classifier.")

    def __init__(
        self,
        stages: Counts,
        growth: Counts,
        HS_start_block: FromZero = 2,
        SE_start_block: FromZero = 3,
        fc_channel: Count = 1024,
        group_1x1: Count = 8,
        group_3x3: Count = 8,
        group_trans: Count = 8,
        bottleneck: Count = 4,
        last_se_reduction: Count = 16,
        num_classes: FromZero = 1000,
        in_channels: Count = 3,
        init_stride: OptionalCount = None,
        condense_factor: OptionalCount = None,
        trans_factor: OptionalCount = None,
        condensed: bool = True,
        features_only: bool = False,
    ) -> None:
        super().__init__(locals())
        groups = (group_1x1, group_3x3, group_trans)
        factors = (condense_factor or group_1x1, trans_factor or group_trans)
        stride = init_stride or default_init_stride(stages)

        def dense_layer(block: int, channels: int, k: int) -> DenseLayer:
            activation = "HS" if block >= HS_start_block else "ReLU"
            use_se = block >= SE_start_block
            return DenseLayer(channels, k, bottleneck, groups, factors, activation, use_se, condensed)

        self.features = DenseFeatures(in_channels, stages, growth, stride, dense_layer)
        self.describe(32 if stride == 1 else 224, self.features.channels, self.features.strides)
        if features_only:
            return
        channels = self.feature_channels[-1]
        self.features.add_sublayer("pool_last", nn.AdaptiveAvgPool2D(1))
        self.features.add_sublayer("se_last", SELayer(channels, last_se_reduction))
        self.fc = linear(channels, fc_channel)
        self.fc_act = HS()
        if num_classes:
            self.classifier = linear(fc_channel, num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.features_only:
            return self.chosen(self.features.pyramid(x))
        x = self.fc_act(self.fc(self.features(x).flatten(1)))
        return self.classifier(x) if self.num_classes else x

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features.maps(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.fc_act(self.fc(self.features.pooled(x)))
        return self.classifier(x) if self.num_classes and not pre_logits else x

    @staticmethod
    def recognise(state: Mapping[str, np.ndarray]) -> Recognised | None:
        """Read the constructor's arguments from a state_dict in Paddle's layout; None if it is another network's."""
        prefix = "features.denseblock_1.denselayer_1."
        if f"{prefix}sfr.conv.weight" not in state:
            return None
        config, guesses = read_dense_blocks(state)
        blocks = range(len(config["stages"]))
        with_se = [block for block in blocks if f"features.denseblock_{block + 1}.denselayer_1.se.fc.0.weight" in state]
        config["HS_start_block"] = 2  # which leaves no trace in a file: the presets' value
        config["SE_start_block"] = with_se[0] if with_se else len(blocks)
        if "fc.weight" in state or "features.se_last.fc.0.weight" in state:
            last = state["features.norm_last.weight"].size
            config["fc_channel"] = state["fc.bias"].size
            hidden = state["features.se_last.fc.0.weight"].size // last
            config["last_se_reduction"] = 16 if last // 16 == hidden else last // hidden  # the presets' where it fits
        else:
            config["features_only"] = True
        if config["condensed"]:
            rows, per_group = state[f"{prefix}sfr.conv.weight"].shape[:2]
            groups = config["group_trans"] = config["growth"][0] // per_group
            inputs = len(state["features.init_conv.weight"])
            config["trans_factor"] = unless_same(inputs * groups // rows, groups)
        else:
            guesses += read_trained_groups(state, config, ("group_trans", "trans_factor"), "sfr", axis=1)
        return Recognised(config, ("HS_start_block", *guesses))

    @staticmethod
    def condensing(layer: str, config: Mapping[str, object]) -> tuple:
        """How to condense one learned layer: see `paddle_dense.condensing.condense_state`."""
        if layer.endswith(".sfr"):
            return condense_sfr, config["group_trans"], config["trans_factor"] or config["group_trans"]
        return condense_lgc, config["group_1x1"], config["condense_factor"] or config["group_1x1"]


# Table 2 of the paper; the sizes are exact: parameters, MACs as the paper counts, and as executed.
_BICUBIC = Preprocessing(interpolation="bicubic")
# fmt: off
register_model(
    "cdnv2_a", CondenseNetV2, _BICUBIC, Published(2.0, 46, 35.6), Size(2_038_444, 45_874_350, 64_568_928),
    stages=[1, 1, 4, 6, 8], growth=[8, 8, 16, 32, 64], fc_channel=828, init_stride=2,
)
register_model(
    "cdnv2_b", CondenseNetV2, _BICUBIC, Published(3.6, 146, 28.1), Size(3_592_662, 146_469_057, 203_878_576),
    stages=[2, 4, 6, 8, 6], growth=[6, 12, 24, 48, 96], init_stride=2, group_1x1=6, group_3x3=6, group_trans=6,
)
register_model(
    "cdnv2_c", CondenseNetV2, Preprocessing(), Published(6.1, 309, 24.1), Size(6_177_512, 309_740_977, 514_605_088),
    stages=[4, 6, 8, 10, 8], growth=[8, 16, 32, 64, 128], init_stride=2,
)
# Of this package: weights/train_cifar.py.
register_model(
    "cdnv2_cifar10", CondenseNetV2, CIFAR_10, Published(0.16, 8.7, 16.54, data="CIFAR-10"),
    Size(156_730, 8_656_166, 9_849_696),
    stages=[1, 3, 5], growth=[8, 16, 32], fc_channel=256, group_1x1=4, group_3x3=4, group_trans=4, init_stride=1,
    num_classes=10,
)
# fmt: on
