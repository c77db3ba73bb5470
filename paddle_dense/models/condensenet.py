"""CondenseNet: an efficient DenseNet using learned group convolutions (arXiv 1711.09224).

Every layer reads, through a learned group convolution, the features of all layers before it, at every resolution: the
transitions between blocks are 2x2 average pools and nothing else, and the growth rate doubles from block to block::

    x --- conv_1 (learned group conv, 1x1) --- conv_2 (grouped 3x3) --- y        output: concat([x, y])

In the trained form conv_1 is a masked dense convolution that loses connections while the network learns
(`LearnedGroupConv`); in the condensed form, equal number for number, it is a grouped convolution with an index
(`CondenseConv`). The original's converter also halves the classifier's inputs (`CondenseLinear`), which does change the
outputs; the released checkpoints are such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
import paddle
from paddle import Tensor, nn

from paddle_dense.data import CIFAR_10, Preprocessing
from paddle_dense.errors import WeightsError, shown
from paddle_dense.files.spelling import Spelling
from paddle_dense.layers import CondenseConv, CondenseLinear, Conv, LearnedGroupConv, conv2d, linear, share
from paddle_dense.layers.choices import learned_layers
from paddle_dense.layers.lgc import condense_lgc
from paddle_dense.models.arguments import Count, Counts, FromZero, OptionalCount, Share
from paddle_dense.models.network import Network, Published, Recognised, Size, register_model, register_network
from paddle_dense.models.reading import condensed_groups, count_classes, count_layers, trained_groups

ANCHORS = ("features.init_conv.weight", "features.denseblock_1.denselayer_1.conv_2.conv.weight")
PARTS = "parts (the condensation factor)"


class DenseLayer(nn.Layer):
    """One layer: [N, in, H, W] -> [N, in + growth, H, W], the first `in` channels passed on, the others new."""

    def __init__(
        self,
        in_channels: int,
        growth: int,
        bottleneck: int,
        group_1x1: int,
        group_3x3: int,
        condense_factor: int,
        condensed: bool,
        dropout_rate: float = 0.0,
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        hidden = bottleneck * growth
        if condensed:
            gathered = share(in_channels, condense_factor, PARTS) * group_1x1
            self.conv_1: nn.Layer = CondenseConv(gathered, hidden, group_1x1, activation, in_channels)
        else:
            self.conv_1 = LearnedGroupConv(in_channels, hidden, group_1x1, condense_factor, dropout_rate, activation)
        self.conv_2 = Conv(hidden, growth, 3, padding=1, groups=group_3x3, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return paddle.concat([x, self.conv_2(self.conv_1(x))], axis=1)


class DenseFeatures(nn.Sequential):
    """Stem, dense blocks and pools of CondenseNet and CondenseNet V2: [N, in_channels, H, W] -> [N, C, H', W'].

    Args:
        in_channels: channels of the images.
        stages: layers in each dense block.
        growth: channels that each layer of a block adds.
        init_stride: stride of the first convolution.
        dense_layer: makes a layer from (block, channels of its input, growth rate); blocks count from 0.

    Attributes:
        channels: channels after each block.
        strides: pixels of the image for each pixel after each block.

    Raises:
        ValueError: stages and growth are empty or differ in length.
    """

    def __init__(
        self,
        in_channels: int,
        stages: Sequence[int],
        growth: Sequence[int],
        init_stride: int,
        dense_layer: Callable[[int, int, int], nn.Layer],
    ) -> None:
        super().__init__()
        if not stages or len(stages) != len(growth):
            raise ValueError(f"stages {list(stages)} and growth {list(growth)} must have the same length, 1 or more")
        channels = 2 * growth[0]
        self.channels: list[int] = []
        self.strides = [init_stride * 2**block for block in range(len(stages))]
        self.add_sublayer("init_conv", conv2d(in_channels, channels, 3, init_stride, padding=1))
        for block, (layers, k) in enumerate(zip(stages, growth)):
            dense = nn.Sequential()
            for layer in range(layers):
                dense.add_sublayer(f"denselayer_{layer + 1}", dense_layer(block, channels, k))
                channels += k
            self.channels.append(channels)
            self.add_sublayer(f"denseblock_{block + 1}", dense)
            if block + 1 < len(stages):
                self.add_sublayer(f"transition_{block + 1}", nn.AvgPool2D(2, 2))
        self.add_sublayer("norm_last", nn.BatchNorm2D(channels))
        self.add_sublayer("relu_last", nn.ReLU())

    def maps(self, x: Tensor) -> Tensor:
        """The output of the last block, after the last BN and ReLU."""
        for name, layer in self.named_children():
            if name == "pool_last":
                break
            x = layer(x)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """What follows after `maps`, as [N, C]."""
        names = list(self._sub_layers)
        for name in names[names.index("pool_last") :]:
            x = self._sub_layers[name](x)
        return x.flatten(1)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The output of each block, the last one after the last BN and ReLU."""
        pyramid = []
        for name, layer in self.named_children():
            x = layer(x)
            if name.startswith("denseblock_"):
                pyramid.append(x)
        return [*pyramid[:-1], x]


@register_network
class CondenseNet(Network):
    """CondenseNet: [N, in_channels, H, W] -> [N, num_classes], H and W 32 pixels or more.

    Args:
        stages: layers in each dense block.
        growth: channels that each layer of a block adds.
        group_1x1: groups G of conv_1.
        group_3x3: groups of conv_2.
        bottleneck: conv_1 has this many times `growth` outputs.
        condense_factor: the condensation factor C of conv_1; `group_1x1` unless given.
        dropout_rate: dropout before the convolution of conv_1, in the trained form.
        num_classes: classes; 0 leaves the classifier out and returns its [N, C] input.
        in_channels: channels of the images.
        init_stride: stride of the first convolution; 1 for fewer than five blocks (CIFAR), else 2.
        condensed: the condensed form; False for the form that is trained and loses connections.
        condense_classifier: in the condensed form, the classifier reads half of its inputs, as the released ones do.
        features_only: return the pyramid instead of logits, one tensor for each block.

    Attributes:
        feature_channels: channels of each tensor of the pyramid.
        feature_strides: pixels of the image for each pixel of it.

    Raises:
        ValueError: stages and growth differ in length, or channels do not divide into the groups.
    """

    anchors = ANCHORS
    spellings = (
        Spelling(
            "pytorchcv",
            (
                ("features.init_block.conv", "features.init_conv"),
                ("features.stage{b}.unit{l}.conv{k}.bn", "features.denseblock_{b}.denselayer_{l}.conv_{k}.norm"),
                ("features.stage{b}.unit{l}.conv{k}", "features.denseblock_{b}.denselayer_{l}.conv_{k}"),
                ("features.post_activ.bn", "features.norm_last"),
                ("output", "classifier"),
            ),
        ),
    )

    def __init__(
        self,
        stages: Counts,
        growth: Counts,
        group_1x1: Count = 4,
        group_3x3: Count = 4,
        bottleneck: Count = 4,
        condense_factor: OptionalCount = None,
        dropout_rate: Share = 0.0,
        num_classes: FromZero = 1000,
        in_channels: Count = 3,
        init_stride: OptionalCount = None,
        condensed: bool = True,
        condense_classifier: bool = True,
        features_only: bool = False,
    ) -> None:
        super().__init__(locals())
        stride = init_stride or default_init_stride(stages)
        factor = condense_factor or group_1x1
        self.features = DenseFeatures(
            in_channels,
            stages,
            growth,
            stride,
            lambda block, channels, k: DenseLayer(
                channels, k, bottleneck, group_1x1, group_3x3, factor, condensed, dropout_rate
            ),
        )
        self.describe(32 if stride == 1 else 224, self.features.channels, self.features.strides)
        if features_only:
            return
        self.features.add_sublayer("pool_last", nn.AdaptiveAvgPool2D(1))
        if num_classes:
            halved = condensed and condense_classifier
            channels = self.feature_channels[-1]
            self.classifier = (
                CondenseLinear(channels, num_classes) if halved else linear(channels, num_classes, zero_bias=True)
            )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.features_only:
            return self.chosen(self.features.pyramid(x))
        x = self.features(x).flatten(1)
        return self.classifier(x) if self.num_classes else x

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features.maps(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.features.pooled(x)
        return self.classifier(x) if self.num_classes and not pre_logits else x

    @staticmethod
    def recognise(state: Mapping[str, np.ndarray]) -> Recognised | None:
        """Read the constructor's arguments from a state_dict in Paddle's layout; None if it is another network's."""
        prefix = "features.denseblock_1.denselayer_1."
        if f"{prefix}conv_1.conv.weight" not in state or f"{prefix}sfr.conv.weight" in state:
            return None
        transition = next((name for name in state if name.startswith("features.transition_1.")), None)
        if transition:
            raise WeightsError(
                f"has {shown(transition)}, so it is a DenseNet_LGC or a DenseNet of CondenseNet's authors, whose "
                f"transitions have weights, and not a CondenseNet: see 'Add a model' in the documentation"
            )
        config, guesses = read_dense_blocks(state)
        config["condense_classifier"] = "classifier.index" in state
        return Recognised(config, tuple(guesses))

    @staticmethod
    def condensing(layer: str, config: Mapping[str, Any]) -> tuple:
        """How to condense one learned layer: see `paddle_dense.condensing.condense_state`."""
        return condense_lgc, config["group_1x1"], config["condense_factor"] or config["group_1x1"]


def default_init_stride(stages: Sequence[int]) -> int:
    """Stride of the first convolution: 1 for the CIFAR form (fewer than five blocks), 2 for ImageNet's."""
    return 1 if len(stages) < 5 else 2


def read_dense_blocks(state: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], list[str]]:
    """The arguments that CondenseNet and CondenseNet V2 share, and those of which the file holds no trace."""
    stages = count_layers(state, "features.denseblock_{}.denselayer_{}.conv_2.conv.weight")
    blocks = [f"features.denseblock_{block + 1}.denselayer_1." for block in range(len(stages))]
    growth = [len(state[f"{block}conv_2.conv.weight"]) for block in blocks]
    hidden = state[f"{blocks[0]}conv_2.norm.weight"].size
    config: dict[str, Any] = {
        "stages": stages,
        "growth": growth,
        "group_3x3": hidden // state[f"{blocks[0]}conv_2.conv.weight"].shape[1],
        "bottleneck": hidden // growth[0],
        "num_classes": count_classes(state, "classifier"),
        "in_channels": state["features.init_conv.weight"].shape[1],
        "init_stride": default_init_stride(stages),
        "condensed": not learned_layers(state),
    }
    keys = ("group_1x1", "condense_factor")
    if not config["condensed"]:
        return config, ["init_stride", *read_trained_groups(state, config, keys, "conv_1", axis=0)]
    inputs = len(state["features.init_conv.weight"])
    config.update(zip(keys, condensed_groups(state, "features.denseblock_1.denselayer_1.conv_1", inputs)))
    return config, ["init_stride"]


def read_trained_groups(
    state: Mapping[str, np.ndarray], config: dict[str, Any], keys: tuple[str, str], kind: str, axis: int
) -> list[str]:
    """Put `trained_groups` into the config, under these keys; those of them that were hidden."""
    groups, factor, hidden = trained_groups(state, kind, axis, config["group_3x3"])
    config.update(zip(keys, (groups, factor)))
    return [key for key, unseen in zip(keys, hidden) if unseen]


# The papers' tables; the sizes are exact: parameters, MACs as the paper counts, and as executed.
_IMAGENET = {"stages": [4, 6, 8, 10, 8], "growth": [8, 16, 32, 64, 128], "init_stride": 2}
# fmt: off
for _groups, _figures, _size in (
    (4, Published(4.8, 529, 26.2, 8.3), Size(4_773_944, 529_327_264, 516_640_576)),
    (8, Published(2.9, 274, 29.0, 10.0), Size(2_935_416, 274_232_480, 261_545_792)),
):
    register_model(
        f"condensenet74_c{_groups}", CondenseNet, Preprocessing(), _figures, _size,
        group_1x1=_groups, group_3x3=_groups, **_IMAGENET,
    )
for _depth, _layers, _growth, _params, _macs, _error, _size in (
    (50, 8, 8, 0.22, 28.6, 6.22, Size(214_186, 28_639_504, 27_183_376)),
    (74, 12, 8, 0.41, 51.9, 5.28, Size(402_026, 51_893_616, 49_204_592)),
    (86, 14, 8, 0.52, 65.8, 5.06, Size(516_202, 65_812_384, 62_377_888)),
    (98, 16, 8, 0.65, 81.3, 4.83, Size(643_882, 81_258_960, 76_992_976)),
    (110, 18, 8, 0.79, 98.2, 4.63, Size(785_066, 98_233_344, 93_049_856)),
    (122, 20, 8, 0.95, 116.7, 4.48, Size(939_754, 116_735_536, 110_548_528)),
    (182, 30, 12, 4.2, 513, 3.76, Size(4_209_226, 512_658_864, 493_916_592)),
):
    _dropout = {"dropout_rate": 0.1} if _depth == 182 else {}
    register_model(
        f"condensenet{_depth}", CondenseNet, CIFAR_10,
        Published(_params, _macs, _error, data="CIFAR-10", remark="trained with dropout" if _dropout else ""), _size,
        stages=3 * [_layers], growth=[_growth, 2 * _growth, 4 * _growth], init_stride=1, num_classes=10, **_dropout,
    )
# fmt: on
