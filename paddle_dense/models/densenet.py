"""DenseNet: densely connected convolutional networks (arXiv 1608.06993).

In a dense block every layer reads all features before it and adds `growth_rate` new ones (equation 2)::

    x0 --+--- layer --- y1 --+--- layer --- y2 --+---- ...       output: concat([x0, y1, y2, ...])
         |                   |                   |
         +-------------------+-------------------+---- ...

    layer: concat -> norm1 -> ReLU -> conv1 (1x1, to bn_size * growth_rate) -> norm2 -> ReLU -> conv2 (3x3)

Between blocks a 1x1 convolution and a 2x2 average pool halve channels and sides (table 1, the -BC form). For the 32x32
images of CIFAR and SVHN (section 3, table 2) the stem is a single 3x3 convolution, and there are networks whose layers
have no bottleneck, concat -> norm1 -> ReLU -> conv1 (3x3), and whose transitions keep all channels. The names are
torchvision's, the arguments those of gpleiss' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import count, takewhile
from math import floor, sqrt
from typing import Any, Callable

import numpy as np
import paddle
from paddle import ParamAttr, Tensor, nn
from paddle.distributed.fleet.utils import recompute
from paddle.nn.initializer import KaimingNormal, Uniform

from paddle_dense.data import CIFAR_10, Preprocessing
from paddle_dense.errors import WeightsError
from paddle_dense.files.spelling import Spelling
from paddle_dense.layers.conv import convolve
from paddle_dense.models.arguments import Count, Counts, FromZero, Share, SomeShare
from paddle_dense.models.network import Network, Published, Recognised, Size, register_model, register_network
from paddle_dense.models.reading import count_classes, count_layers


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2D:
    """A convolution without bias that keeps the sides at stride 1, drawn from N(0, sqrt(2 / fan_in))."""
    return nn.Conv2D(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        weight_attr=ParamAttr(initializer=KaimingNormal()),
        bias_attr=False,
    )


class DenseLayer(nn.Layer):
    """One layer: the features so far, in_channels all together -> the new ones, [N, growth_rate, H, W].

    Args:
        in_channels: channels of all features before it.
        growth_rate: new channels, k of the paper.
        bn_size: the bottleneck has this many times `growth_rate` channels; 0 for a single 3x3 convolution, conv1.
        drop_rate: dropout of the new features.
        memory_efficient: keep neither the concatenated nor the normalised input for the backward pass, but compute
            them and the first convolution a second time there (arXiv 1707.06990).
    """

    def __init__(
        self, in_channels: int, growth_rate: int, bn_size: int, drop_rate: float = 0.0, memory_efficient: bool = False
    ) -> None:
        super().__init__()
        hidden = bn_size * growth_rate
        self.memory_efficient = memory_efficient
        self.norm1 = nn.BatchNorm2D(in_channels)
        self.relu1 = nn.ReLU()
        self.has_bottleneck = bn_size > 0
        if self.has_bottleneck:
            self.conv1 = conv(in_channels, hidden, 1)
            self.norm2 = nn.BatchNorm2D(hidden)
            self.relu2 = nn.ReLU()
            self.conv2 = conv(hidden, growth_rate, 3)
        else:
            self.conv1 = conv(in_channels, growth_rate, 3)
        self.dropout = nn.Dropout(drop_rate) if drop_rate else None

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        # Graphs that to_static builds plan their memory themselves.
        if self.memory_efficient and paddle.in_dynamic_mode() and _need_gradients(features):
            y = self._recomputed_first(features)
        else:
            y = self._first(*features)
        if self.has_bottleneck:
            y = convolve(self.conv2, self.relu2(self.norm2(y)))
        return y if self.dropout is None else self.dropout(y)

    def _first(self, *features: Tensor) -> Tensor:
        return convolve(self.conv1, self.relu1(self.norm1(paddle.concat(features, axis=1))))

    def _recomputed_first(self, features: Sequence[Tensor]) -> Tensor:
        momentum = self.norm1._momentum
        calls = 0

        def first(*features: Tensor) -> Tensor:
            # The second call is the backward pass's: it must not move the running statistics once more.
            nonlocal calls
            calls += 1
            self.norm1._momentum = momentum if calls == 1 else 1.0
            try:
                return self._first(*features)
            finally:
                self.norm1._momentum = momentum

        return recompute(first, *features, preserve_rng_state=False)


def _need_gradients(features: Sequence[Tensor]) -> bool:
    return paddle.is_grad_enabled() and any(not feature.stop_gradient for feature in features)


class DenseBlock(nn.Layer):
    """A block of dense layers: [N, in_channels, H, W] -> [N, out_channels, H, W].

    Args:
        num_layers: number of layers.
        in_channels: channels of the input.
        growth_rate: channels that each layer adds.
        layer: further arguments of each `DenseLayer`.
    """

    def __init__(self, num_layers: int, in_channels: int, growth_rate: int, **layer: Any) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.out_channels = in_channels + num_layers * growth_rate
        for index in range(num_layers):
            self.add_sublayer(
                f"denselayer{index + 1}", DenseLayer(in_channels + index * growth_rate, growth_rate, **layer)
            )

    def grow(self, x: Tensor) -> list[Tensor]:
        """The input and what each layer adds, not yet concatenated."""
        features = [x]
        for index in range(self.num_layers):
            features.append(getattr(self, f"denselayer{index + 1}")(features))
        return features

    def forward(self, x: Tensor) -> Tensor:
        return paddle.concat(self.grow(x), axis=1)


def transition(channels: int, out_channels: int, pool: bool = True, linear: bool = False) -> nn.Sequential:
    """Fewer channels, and half the sides unless `pool` is False: [N, channels, H, W] -> [N, out_channels, H', W'].

    Without an activation, `linear`, the convolution has another name, by which a file shows it.
    """
    layers: list[tuple[str, nn.Layer]] = [("norm", nn.BatchNorm2D(channels))]
    if not linear:
        layers.append(("relu", nn.ReLU()))
    layers.append(("linear_conv" if linear else "conv", conv(channels, out_channels, 1)))
    if pool:
        layers.append(("pool", nn.AvgPool2D(2, 2)))
    return nn.Sequential(*layers)


class DenseBackbone(Network):
    """The frame of DenseNet and CSPDenseNet: stem, blocks with or without transitions, norm5, pooling, classifier."""

    anchors = ("features.denseblock1.denselayer1.conv1.weight",)  # `read_config` needs it; every code has a "conv1"
    # torchvision's released files, and whatever was trained from them before its names changed.
    aliases = (
        ("features.denseblock{b}.denselayer{l}.{layer}.{k}", "features.denseblock{b}.denselayer{l}.{layer}{k}"),
        ("features.norm_final", "features.norm5"),  # gpleiss' memory-efficient DenseNet
    )
    folds = (
        ("features.conv0", "features.norm0"),
        ("features.denseblock{b}.denselayer{l}.conv1", "features.denseblock{b}.denselayer{l}.norm2"),
    )

    def build(
        self,
        make_block: Callable[[int, int], DenseBlock],
        compression: float | None,
        small_inputs: bool = False,
        linear_transitions: bool = False,
    ) -> None:
        """Add the layers.

        Args:
            make_block: from (layers, channels of the input) to a block.
            compression: share of a block's channels that the transition after it keeps; None for no transitions.
            small_inputs: the stem of CIFAR, a single 3x3 convolution of stride 1.
            linear_transitions: transitions without an activation.

        Raises:
            ValueError: a transition would keep no channel.
        """
        in_channels, num_init_features, depths = (
            self.config[key] for key in ("in_channels", "num_init_features", "block_config")
        )
        self.features = _stem(in_channels, num_init_features, small_inputs)
        self.stem_end = "conv0" if small_inputs else "relu0"
        pyramid, strides = [num_init_features], [1 if small_inputs else 2]
        channels, stride = num_init_features, 1 if small_inputs else 4
        for number, depth in enumerate(depths, start=1):
            block = make_block(depth, channels)
            channels = block.out_channels
            self.features.add_sublayer(f"denseblock{number}", block)
            pyramid.append(channels)
            strides.append(stride)
            if compression is not None and number < len(depths):
                kept = int(channels * compression)
                if not kept:
                    raise ValueError(f"compression={compression} leaves none of {channels} channels: take a larger one")
                self.features.add_sublayer(f"transition{number}", transition(channels, kept, linear=linear_transitions))
                channels, stride = kept, stride * 2
        self.features.add_sublayer("norm5", nn.BatchNorm2D(channels))
        self.relu5 = nn.ReLU()
        self.describe(32 if small_inputs else 224, pyramid, strides)
        if self.features_only:
            return
        self.pool5 = nn.AdaptiveAvgPool2D(1)
        if self.num_classes:
            bound = 1 / sqrt(channels)
            # The bias starts at Paddle's default, 0, as the original's does.
            self.classifier = nn.Linear(
                channels, self.num_classes, weight_attr=ParamAttr(initializer=Uniform(-bound, bound))
            )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.features_only:
            return self.chosen(self._pyramid(x))
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.relu5(self.features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.pool5(x).flatten(1)
        return self.classifier(x) if self.num_classes and not pre_logits else x

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        """The stem and the output of each block, the last one after norm5 and ReLU."""
        pyramid = []
        for name, layer in self.features.named_children():
            x = layer(x)
            if name == self.stem_end or name.startswith("denseblock"):
                pyramid.append(x)
        return [*pyramid[:-1], self.relu5(x)]


def _stem(in_channels: int, channels: int, small_inputs: bool) -> nn.Sequential:
    """[N, in_channels, H, W] -> [N, channels, H / 4, W / 4], for small inputs [N, channels, H, W]."""
    if small_inputs:
        return nn.Sequential(("conv0", conv(in_channels, channels, 3)))
    return nn.Sequential(
        ("conv0", conv(in_channels, channels, 7, stride=2)),
        ("norm0", nn.BatchNorm2D(channels)),
        ("relu0", nn.ReLU()),
        ("pool0", nn.MaxPool2D(3, 2, padding=1)),
    )


# The children of `features`.
_PARTS = ("conv0", "norm0", "denseblock{b}", "transition{b}", "norm5")


def _dense_rows(last_norm: str, norm: str, conv: str, classifier: str) -> tuple[tuple[str, str], ...]:
    """Rows of the code that calls its blocks dense1, dense2, ..."""
    return (
        ("conv1", "features.conv0"),
        ("dense{b}.{l-1}.bn{k}", "features.denseblock{b}.denselayer{l}.norm{k}"),
        ("dense{b}.{l-1}.conv{k}", "features.denseblock{b}.denselayer{l}.conv{k}"),
        (f"trans{{b}}.{norm}", "features.transition{b}.norm"),
        (f"trans{{b}}.{conv}", "features.transition{b}.conv"),
        (last_norm, "features.norm5"),
        (classifier, "classifier"),
    )


def _new_channels_last(state: Mapping[str, np.ndarray], in_pytorch: bool) -> dict[str, np.ndarray]:
    """The state of a network whose layers put what they add in front of what they read, for one that appends it.

    Only what reads a concatenation has its input channels moved; the stem and what each layer adds keep their order.
    """
    moved = dict(state)

    def move(norm: str, reader: str, sizes: Sequence[int]) -> None:
        ends = np.cumsum(sizes[::-1])[::-1]  # of the parts in their order, the newest of which is the first
        index = np.concatenate([np.arange(end - size, end) for size, end in zip(sizes, ends)])
        for name in [name for name in moved if name.startswith(f"{norm}.") and moved[name].ndim]:
            moved[name] = moved[name][index]
        weight = f"{reader}.weight"
        if weight in moved:
            inputs = 1 if in_pytorch or moved[weight].ndim == 4 else 0
            moved[weight] = np.take(moved[weight], index, axis=inputs)

    depths = count_layers(state, "features.denseblock{}.denselayer{}.conv1.weight")
    first = len(state["features.conv0.weight"])
    for block, depth in enumerate(depths, start=1):
        sizes = [first]
        for layer in range(1, depth + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            move(f"{name}.norm1", f"{name}.conv1", sizes)
            sizes.append(len(state[f"{name}.{'conv2' if f'{name}.conv2.weight' in state else 'conv1'}.weight"]))
        transition = f"features.transition{block}"
        if f"{transition}.conv.weight" in state:
            move(f"{transition}.norm", f"{transition}.conv", sizes)
            first = len(state[f"{transition}.conv.weight"])
        else:
            move("features.norm5", "classifier", sizes)
    return moved


SPELLINGS = (
    # paddle.vision and PaddleClas, whose released files were trained without dropout: theirs scales at inference,
    # where this network's does nothing.
    Spelling(
        "paddle.vision",
        (
            ("conv1_func._conv", "features.conv0"),
            ("conv1_func._batch_norm", "features.norm0"),
            ("db_conv_{b+1}.conv{b+1}_{l}.bn_ac_func{k}._conv", "features.denseblock{b}.denselayer{l}.conv{k}"),
            (
                "db_conv_{b+1}.conv{b+1}_{l}.bn_ac_func{k}._batch_norm",
                "features.denseblock{b}.denselayer{l}.norm{k}",
            ),
            ("tr_conv{b+1}_blk.conv_ac_func._conv", "features.transition{b}.conv"),
            ("tr_conv{b+1}_blk.conv_ac_func._batch_norm", "features.transition{b}.norm"),
            ("batch_norm", "features.norm5"),
            ("out", "classifier"),
        ),
    ),
    Spelling(
        "pytorchcv",
        (
            ("features.init_block.conv", "features.conv0"),
            ("features.init_block.bn", "features.norm0"),
            ("features.stage{b}.unit{l}.conv{k}.conv", "features.denseblock{b}.denselayer{l}.conv{k}"),
            ("features.stage{b}.unit{l}.conv{k}.bn", "features.denseblock{b}.denselayer{l}.norm{k}"),
            ("features.stage{b+1}.trans{b+1}.conv.conv", "features.transition{b}.conv"),
            ("features.stage{b+1}.trans{b+1}.conv.bn", "features.transition{b}.norm"),
            ("features.post_activ.bn", "features.norm5"),
            ("output", "classifier"),
        ),
    ),
    Spelling(
        "MONAI",
        (("features.denseblock{b}.denselayer{l}.layers", "features.denseblock{b}.denselayer{l}"),),
    ),
    Spelling(
        "MMPretrain",
        (
            ("backbone.stem.0", "features.conv0"),
            ("backbone.stem.1", "features.norm0"),
            ("backbone.stages.{b-1}.block.{l-1}", "features.denseblock{b}.denselayer{l}"),
            ("backbone.transitions.{b}.0", "features.norm5"),
            ("backbone.transitions.{b-1}", "features.transition{b}"),
            ("head.fc", "classifier"),
        ),
    ),
    Spelling("features alone", tuple((part, f"features.{part}") for part in _PARTS)),
    Spelling("timm's features_only", tuple((f"features_{part}", f"features.{part}") for part in _PARTS)),
    Spelling("base", (("base", "features"),)),
    Spelling(
        "pytorchcv, CIFAR",
        (
            ("features.init_block", "features.conv0"),
            ("features.stage{b}.unit{l}.conv{k}.conv", "features.denseblock{b}.denselayer{l}.conv{k}"),
            ("features.stage{b}.unit{l}.conv{k}.bn", "features.denseblock{b}.denselayer{l}.norm{k}"),
            ("features.stage{b}.unit{l}.conv.conv", "features.denseblock{b}.denselayer{l}.conv1"),
            ("features.stage{b}.unit{l}.conv.bn", "features.denseblock{b}.denselayer{l}.norm1"),
            ("features.stage{b+1}.trans{b+1}.conv.conv", "features.transition{b}.conv"),
            ("features.stage{b+1}.trans{b+1}.conv.bn", "features.transition{b}.norm"),
            ("features.post_activ.bn", "features.norm5"),
            ("output", "classifier"),
        ),
    ),
    Spelling(
        "andreasveit",
        (
            ("conv1", "features.conv0"),
            ("block{b}.layer.{l-1}.bn{k}", "features.denseblock{b}.denselayer{l}.norm{k}"),
            ("block{b}.layer.{l-1}.conv{k}", "features.denseblock{b}.denselayer{l}.conv{k}"),
            ("trans{b}.bn1", "features.transition{b}.norm"),
            ("trans{b}.conv1", "features.transition{b}.conv"),
            ("bn1", "features.norm5"),
            ("fc", "classifier"),
        ),
    ),
    Spelling("bamos and bearpaw", (*_dense_rows("bn1", "bn1", "conv1", "fc"), ("bn", "features.norm5"))),
    Spelling("kuangliu", _dense_rows("bn", "bn", "conv", "linear"), reorder=_new_channels_last),
    Spelling(
        "weiaicunzai",
        (
            ("conv1", "features.conv0"),
            *(
                (
                    f"features.dense_block{middle}{{b-1}}.bottle_neck_layer_{{l-1}}.bottle_neck.{theirs}",
                    f"features.denseblock{{b}}.denselayer{{l}}.{ours}",
                )
                for middle in ("_layer_", "")
                for theirs, ours in enumerate(("norm1", "relu1", "conv1", "norm2", "relu2", "conv2"))
            ),
            ("features.transition_layer_{b-1}.down_sample.0", "features.transition{b}.norm"),
            ("features.transition_layer_{b-1}.down_sample.1", "features.transition{b}.linear_conv"),
            ("features.bn", "features.norm5"),
            ("linear", "classifier"),
        ),
    ),
)


@register_network
class DenseNet(DenseBackbone):
    """DenseNet: [N, in_channels, H, W] -> [N, num_classes], H and W 32 pixels or more.

    Args:
        growth_rate: channels that each layer adds, k of the paper.
        block_config: layers in each dense block.
        num_init_features: channels of the stem.
        bn_size: the bottleneck of a layer has this many times `growth_rate` channels; 0 for layers without one.
        drop_rate: dropout of the features that each layer adds.
        num_classes: classes; 0 leaves the classifier out and returns the pooled [N, C] features.
        memory_efficient: compute each layer's first convolution again in the backward pass instead of keeping its
            input: less memory, more time, the same numbers.
        in_channels: channels of the images.
        features_only: return the pyramid instead of logits: the stem, then one tensor for each block.
        small_inputs: the stem of CIFAR, a 3x3 convolution of stride 1 without norm, activation or pool.
        compression: share of a block's channels that the transition after it keeps, rounded down; the paper's theta.
        linear_transitions: transitions without an activation, as weiaicunzai's code has them.

    Attributes:
        feature_channels: channels of each tensor of the pyramid.
        feature_strides: pixels of the image for each pixel of it.

    Raises:
        ValueError: a number of layers or channels is below 1.
    """

    spellings = SPELLINGS

    def __init__(
        self,
        growth_rate: Count = 32,
        block_config: Counts = (6, 12, 24, 16),
        num_init_features: Count = 64,
        bn_size: FromZero = 4,
        drop_rate: Share = 0.0,
        num_classes: FromZero = 1000,
        memory_efficient: bool = False,
        in_channels: Count = 3,
        features_only: bool = False,
        small_inputs: bool = False,
        compression: SomeShare = 0.5,
        linear_transitions: bool = False,
    ) -> None:
        super().__init__(locals())
        layer: dict[str, Any] = {"bn_size": bn_size, "drop_rate": drop_rate, "memory_efficient": memory_efficient}

        def block(depth: int, channels: int) -> DenseBlock:
            return DenseBlock(depth, channels, growth_rate, **layer)

        self.build(block, compression, small_inputs, linear_transitions)

    @staticmethod
    def recognise(state: Mapping[str, np.ndarray]) -> Recognised | None:
        """Read the constructor's arguments from a state_dict in Paddle's layout; None if it is another network's."""
        config = read_config(state)
        if config is None or state[f"{FIRST_LAYER}.norm1.weight"].size != config["num_init_features"]:
            return None
        stem = state["features.conv0.weight"]
        config["small_inputs"] = stem.shape[2] == 3 and "features.norm0.weight" not in state
        if not config["small_inputs"] and stem.ndim == 4 and stem.shape[2:] != (7, 7):
            raise WeightsError(
                f"has a stem of {' x '.join(map(str, stem.shape[2:]))} pixels with a normalisation, "
                f"'features.conv0.weight' {list(stem.shape)}, which no DenseNet here has: see 'Add a model' in the "
                f"documentation"
            )
        config["linear_transitions"] = "features.transition1.linear_conv.weight" in state
        kind = "linear_conv" if config["linear_transitions"] else "conv"
        compression = _read_compression(state, f"features.transition{{}}.{kind}.weight")
        return Recognised(config if compression is None else {**config, "compression": compression})


FIRST_LAYER = "features.denseblock1.denselayer1"


def read_config(state: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """The arguments that DenseNet and CSPDenseNet share, or None if the tensors are neither's.

    Dropout and recomputation are left out: they leave no trace and change nothing in what the weights answer.
    """
    # timm's networks with a deep stem have a second convolution there.
    if f"{FIRST_LAYER}.conv1.weight" not in state or "features.conv1.weight" in state:
        return None
    conv1 = state[f"{FIRST_LAYER}.conv1.weight"]
    # A 1x1 convolution is a bottleneck's.
    growth_rate = len(conv1 if conv1.shape[2] == 3 else state[f"{FIRST_LAYER}.conv2.weight"])
    num_init_features, in_channels = state["features.conv0.weight"].shape[:2]
    return {
        "growth_rate": growth_rate,
        "block_config": count_layers(state, "features.denseblock{}.denselayer{}.conv1.weight"),
        "num_init_features": num_init_features,
        "bn_size": 0 if conv1.shape[2] == 3 else len(conv1) // growth_rate,
        "num_classes": count_classes(state, "classifier"),
        "in_channels": in_channels,
    }


def _read_compression(state: Mapping[str, np.ndarray], weight: str) -> float | None:
    """A share that makes every transition as wide as it is; None if there is no transition, or no such share.

    Rounding down hides the exact one. A half, which most networks have, is tried first, then the shortest decimals.

    Args:
        state: a state_dict.
        weight: name of a transition's weight, with a place for its number.
    """
    names = takewhile(state.__contains__, (weight.format(number) for number in count(1)))
    widths = [state[name].shape[:2] for name in names]
    if not widths:
        return None
    # The smallest share that is large enough for all, or one below it whose product is rounded up.
    least = max(Fraction(kept, channels) for kept, channels in widths)
    decimals = ((floor(least * 10**digits) + up) / 10**digits for digits in range(1, 17) for up in (0, 1))
    return next(
        (
            share
            for share in (0.5, *decimals)
            if 0 < share <= 1 and all(int(channels * share) == kept for kept, channels in widths)
        ),
        None,
    )


# Published parameters and errors are torchvision's; the sizes are exact: parameters, MACs with and without activations.
# fmt: off
for _name, _published, _size, _numbers in (
    ("densenet121", (8.0, 2834, 25.6), Size(7_978_856, 2_850_581_760, 2_834_161_664),
     {"block_config": [6, 12, 24, 16]}),
    ("densenet161", (28.7, 7728, 22.9), Size(28_681_000, 7_758_539_520, 7_727_907_072),
     {"growth_rate": 48, "block_config": [6, 12, 36, 24], "num_init_features": 96}),
    ("densenet169", (14.1, 3360, 24.4), Size(14_149_480, 3_379_675_392, 3_359_843_328),
     {"block_config": [6, 12, 32, 32]}),
    ("densenet201", (20.0, 4291, 23.1), Size(20_013_928, 4_316_943_104, 4_291_365_888),
     {"block_config": [6, 12, 48, 32]}),
):
    register_model(_name, DenseNet, Preprocessing(), Published(*_published), _size, **_numbers)
# Table 2, trained with flips and crops (C10+, C100+).
for _name, _params, _c10, _c100, _size, _numbers in (
    ("densenet40_k12", 1.0, 5.24, 24.42, Size(1_019_722, 267_339_648, 264_812_928),
     {"growth_rate": 12, "block_config": 3 * [12], "num_init_features": 16, "bn_size": 0, "compression": 1.0}),
    ("densenet_bc100_k12", 0.8, 4.51, 22.27, Size(769_162, 292_377_180, 287_929_692),
     {"growth_rate": 12, "block_config": 3 * [16], "num_init_features": 24}),
    ("densenet_bc190_k40", 25.6, 3.46, 17.18, Size(25_624_430, 9_346_309_900, 9_301_945_740),
     {"growth_rate": 40, "block_config": 3 * [31], "num_init_features": 80}),
    ("densenet_bc250_k24", 15.3, 3.62, 17.60, Size(15_324_406, 5_462_307_900, 5_418_785_724),
     {"growth_rate": 24, "block_config": 3 * [41], "num_init_features": 48}),
):
    register_model(
        _name, DenseNet, CIFAR_10,
        Published(_params, None, _c10, data="CIFAR-10 (C10+)", remark=f"{_c100:.2f} % on CIFAR-100 (C100+)"), _size,
        small_inputs=True, num_classes=10, **_numbers,
    )
# fmt: on
