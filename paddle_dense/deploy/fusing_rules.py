"""What each layer is rewritten to, for each kind of runtime: tables from classes to functions.

A function takes a layer, which it may take apart, and returns what stands in its place. Networks keep their own
`forward`: a layer's parts are replaced by equal parts under the same names, and by `nn.Identity` where nothing is left.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from paddle import nn

from paddle_dense.deploy.fused_layers import (
    DepthwiseSums,
    GatheredConvolution,
    GatheredProduct,
    PartedStage,
    PoolingProduct,
    SpreadConvolution,
    convolution,
    copied_for_experts,
    dense_lgc,
    fold_norm,
    fused_sfr,
    merged_groups,
    to_array,
)
from paddle_dense.environment import vector_lanes
from paddle_dense.layers import CondConv2D, CondenseLGC, CondenseSFR, ConvNormAct, RoutedCondConv2D
from paddle_dense.models import condconv, condensenet, cspnet, densenet
from paddle_dense.surgery import Rule, Rules


def condensed_for_paddle(layer: nn.Layer) -> nn.Layer:
    """A dense layer of CondenseNet or CondenseNet V2, for Paddle's own kernels."""
    lgc, (norm, activation, conv) = layer.conv_1, layer.conv_2.children()
    layer.conv_1 = GatheredProduct(lgc, norm)
    layer.conv_2 = nn.Sequential(activation, SpreadConvolution(conv) if _spreads(conv) else conv)
    return layer


def dense_for_paddle(layer: densenet.DenseLayer) -> nn.Layer:
    """A dense layer of DenseNet, for Paddle's own kernels."""
    name = "conv2" if layer.has_bottleneck else "conv1"
    conv = getattr(layer, name)
    if _spreads(conv) and conv._out_channels < conv._in_channels:
        setattr(layer, name, SpreadConvolution(conv))
    return layer


def condensed_for_engines(layer: nn.Layer, runtime: str) -> nn.Layer:
    """The same for engines that compile the graph."""
    norm, activation, conv = layer.conv_2.children()
    layer.conv_1 = lgc_for_engines(layer.conv_1, norm, runtime=runtime)
    layer.conv_2 = nn.Sequential(activation, grouped_for_engines(conv))
    return layer


def grouped_for_engines(conv: nn.Conv2D) -> nn.Layer:
    """A grouped 3x3 convolution for engines."""
    groups = conv._groups
    if conv._out_channels <= 2 * groups:
        return DepthwiseSums(conv)
    merge = _merged(conv)
    weight = merged_groups(to_array(conv.weight), groups, merge)
    return convolution(weight, conv.weight, padding=conv._padding, groups=groups // merge)


# Of the processor that fuses: a group with fewer outputs leaves the rest of them idle.
LANES = vector_lanes()
# Source channels up to which the dense form of an LGC is the faster one, measured on two cores
# (`python -m benchmarks.fused_forms`). OpenVINO keeps the channels of a pixel side by side, where gathering costs less.
DENSE_UP_TO = {"compiled": 128 if LANES > 8 else 256, "openvino": 128}


def lgc_for_engines(lgc: CondenseLGC, norm: nn.BatchNorm2D | None = None, *, runtime: str) -> nn.Layer:
    """A condensed LGC, and the BN after it, for engines."""
    dense = dense_lgc(lgc, norm) if lgc.source_channels <= DENSE_UP_TO[runtime] else None
    return GatheredConvolution(lgc, norm, channels_last=runtime == "openvino") if dense is None else dense


def _merged(conv: nn.Conv2D) -> int:
    """How many neighbouring groups to make one, for engines: for the fewest products, idle lanes included.

    A merged group multiplies zeros; a group with fewer outputs than lanes computes what nobody reads.
    """
    groups, inputs, outputs = conv._groups, conv._in_channels, conv._out_channels

    def cost(merge: int) -> tuple[int, int]:
        lanes = -(-merge * outputs // groups // LANES) * LANES
        return inputs * lanes, groups // merge

    return min((n for n in range(1, groups + 1) if groups % n == 0), key=cost)


def _halves(pool: nn.AvgPool2D) -> bool:
    """Whether it averages 2x2 without overlap, as the transitions do."""
    return (pool.ksize, pool.stride, pool.padding, pool.ceil_mode) == (2, 2, 0, False)


def _spreads(conv: nn.Conv2D) -> bool:
    """Whether a `SpreadConvolution` is the faster form: not where there are few outputs, as in the first blocks."""
    return conv._out_channels >= 12


def fold_norms(layer: nn.Layer, pairs: tuple[tuple[str, str], ...]) -> nn.Layer:
    """Fold batch normalisations into the convolutions before them.

    Args:
        layer: the layer that holds both.
        pairs: paths of (convolution, batch normalisation). A network without a head lacks those of the head; a stem or
            layer of CIFAR's DenseNets has no norm after its convolution.
    """
    held: dict[str, Any] = dict(layer.named_sublayers())
    for conv_path, norm_path in pairs:
        if norm_path not in held:
            continue
        fold_norm(held[conv_path], held[norm_path])
        parent, _, name = norm_path.rpartition(".")
        setattr(held[parent] if parent else layer, name, nn.Identity())
    return layer


def pool_early(layer: nn.Layer) -> nn.Layer:
    """Pool before the 1x1 convolutions of the transitions, on whose outputs the pooling works: a quarter of the work.

    Both are linear, one over channels and the other over pixels, so they can change places.
    """
    for name, child in layer.features.named_children():
        if name.startswith("transition"):
            order = sorted(child.named_children(), key=lambda part: part[0].endswith("conv"))
            setattr(layer.features, name, nn.Sequential(*order))
    return layer


_EVERYWHERE: Rules = {
    nn.Dropout: lambda dropout: nn.Identity(),
    CondenseSFR: fused_sfr,
    densenet.DenseBackbone: pool_early,
}

# Paddle's own kernels on a CPU. No BN is folded: it would leave a bias, which costs them more (see `fuse`).
_PADDLE: Rules = {
    **_EVERYWHERE,
    condensenet.DenseLayer: condensed_for_paddle,
    densenet.DenseLayer: dense_for_paddle,
    CondenseLGC: GatheredProduct,
    nn.AvgPool2D: lambda pool: PoolingProduct() if _halves(pool) else pool,
}


def _folding(*pairs: tuple[str, str]) -> Rule:
    return partial(fold_norms, pairs=pairs)


def parted_stage(stage: cspnet.CrossStage) -> nn.Layer:
    """A stage of a CSPNet for engines."""
    fold_norms(stage, (("conv_exp.conv", "conv_exp.bn"), ("conv_transition.conv", "conv_transition.bn")))
    return PartedStage(stage)


def _engines(runtime: str) -> Rules:
    return {
        **_EVERYWHERE,
        condensenet.DenseLayer: partial(condensed_for_engines, runtime=runtime),
        CondenseLGC: partial(lgc_for_engines, runtime=runtime),
        densenet.DenseBackbone: lambda layer: _folding(("features.conv0", "features.norm0"))(pool_early(layer)),
        densenet.DenseLayer: _folding(("conv1", "norm2")),
        ConvNormAct: _folding(("conv", "bn")),
        cspnet.CrossStage: parted_stage,
        CondConv2D: copied_for_experts,
        RoutedCondConv2D: copied_for_experts,
        condconv.EfficientNetCondConv: _folding(("conv_stem", "bn1"), ("conv_head", "bn2")),
        condconv.DepthwiseSeparable: _folding(("conv_dw", "bn1"), ("conv_pw", "bn2")),
        condconv.InvertedResidual: _folding(("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    }


RULES: dict[str, Rules] = {"paddle": _PADDLE, "compiled": _engines("compiled"), "openvino": _engines("openvino")}
