"""The presets in PaddleDetection: importing this registers the backbone ``PaddleDense``, and a neck.

::

    architecture: RetinaNet

    RetinaNet:
      backbone: PaddleDense
      neck: FPN
      head: RetinaHead

    PaddleDense:
      arch: cdnv2_a
      return_idx: [2, 3, 4]
      freeze_at: 0
      freeze_norm: true
      pretrained: cdnv2_a.pdparams

    FPN:
      out_channel: 256
      spatial_scales: [0.125, 0.0625, 0.03125]
      extra_stage: 2
      has_extra_convs: true
      use_c5: false

    RetinaHead:
      bbox_assigner:
        name: MaxIoUAssigner
        positive_overlap: 0.5
        negative_overlap: 0.4

`pretrained` reads a file without executing what it says. PaddleDetection's own `pretrain_weights` takes the same files.

``PaddleDenseEFM`` is CSPNet's Exact Fusion Model. YOLOv3's head reads the coarsest level first::

    architecture: YOLOv3

    YOLOv3:
      backbone: PaddleDense
      neck: PaddleDenseEFM
      yolo_head: YOLOv3Head
      post_process: BBoxPostProcess

    PaddleDense:
      arch: cspresnet50
      return_idx: [2, 3, 4]
      pretrained: cspresnet50.pdparams

    PaddleDenseEFM:
      out_channels: [256, 512, 1024]
      coarse_first: true

    BBoxPostProcess:
      decode:
        name: YOLOBox
      nms:
        name: MultiClassNMS
        score_threshold: 0.01

RetinaNet's reads the finest level first and the same channels from all of them; in the first configuration, replace::

    RetinaNet:
      backbone: PaddleDense
      neck: PaddleDenseEFM
      head: RetinaHead

    PaddleDenseEFM:
      out_channels: 256

    RetinaHead:
      anchor_generator:
        name: RetinaAnchorGenerator
        strides: [8, 16, 32]
      bbox_assigner:
        name: MaxIoUAssigner
        positive_overlap: 0.5
        negative_overlap: 0.4
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import cast

import paddle
from paddle import Tensor, nn
from paddle.regularizer import L2Decay

from paddle_dense.adapters.pyramid import Pyramid
from paddle_dense.layers import ExactFusion
from paddle_dense.models.network import check_levels

try:
    from ppdet.core.workspace import register, serializable
    from ppdet.modeling.shape_spec import ShapeSpec
except ImportError as error:
    raise ImportError(
        f"PaddleDetection does not import ({error}): run in a clone of it, or pip install paddledet, and install what "
        f"it says is missing"
    ) from error


@register
@serializable
class PaddleDense(Pyramid):
    """Any preset of paddle_dense: {"image": [N, in_channels, H, W]} -> the chosen levels of its pyramid.

    Args:
        arch: name of the preset.
        return_idx: places in the network's `feature_strides`; unless given, all levels of stride 4 or more.
        freeze_at: do not train what the level at this place is computed from; -1 trains everything.
        norm_type: ``"bn"``, or ``"sync_bn"``, which PaddleDetection's trainer puts in place.
        freeze_norm: batch normalisation keeps its statistics and is not trained.
        norm_decay: weight decay of batch normalisation.
        pretrained: weights of the whole network: a file's path, or True for the released ones.
        in_channels: channels of the images.

    Raises:
        ValueError: there is no such preset or level, or the norm is none of these.
    """

    __shared__ = ("norm_type",)

    def __init__(
        self,
        arch: str = "cdnv2_c",
        return_idx: Sequence[int] | int | None = None,
        freeze_at: int = -1,
        norm_type: str = "bn",
        freeze_norm: bool = False,
        norm_decay: float = 0.0,
        pretrained: bool | str | os.PathLike | None = None,
        in_channels: int = 3,
    ) -> None:
        if norm_type not in ("bn", "sync_bn") or (norm_type == "sync_bn" and freeze_norm):
            raise ValueError(
                f"PaddleDense has no norm_type {norm_type!r} with freeze_norm={freeze_norm}: take bn, or sync_bn with "
                f"freeze_norm: false"
            )
        levels = [return_idx] if isinstance(return_idx, int) else return_idx
        super().__init__(arch, levels, pretrained, in_channels=in_channels)
        _prepare_norms(self.network, freeze_norm, norm_decay)
        if freeze_at >= 0:
            check_levels(arch, [freeze_at], self.network.feature_strides)
            _freeze(self.network, freeze_at, in_channels)

    @property
    def out_shape(self) -> list[ShapeSpec]:
        """Channels and stride of each level, for the neck."""
        return [ShapeSpec(channels=c, stride=stride) for c, stride in zip(self.feat_channels, self.feat_strides)]

    # As PaddleDetection calls it.
    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:  # type: ignore[override]
        return super().forward(inputs["image"])


@register
@serializable
class PaddleDenseEFM(ExactFusion):
    """CSPNet's Exact Fusion Model as a neck: the backbone's levels -> as many fused ones, [N, C, H, W] each.

    PaddleDetection reads the first two arguments from the backbone.

    Args:
        in_channels: channels of each level, finest first.
        strides: pixels of the image for each pixel of it.
        out_channels: channels of each fused level, one number for all or one for each, finest first.
        maxout_channels: channels that Maxout compresses each level to; unless given, the fewest of `in_channels`.
        coarse_first: return the coarsest level first, as YOLOv3's head reads them.
        norm_decay: weight decay of batch normalisation.

    Raises:
        ValueError: there are fewer than two levels, or their strides do not double; or the channels do not fit them.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        out_channels: int | Sequence[int] = 256,
        maxout_channels: int | None = None,
        coarse_first: bool = False,
        norm_decay: float = 0.0,
    ) -> None:
        if any(coarser != 2 * finer for finer, coarser in zip(strides, strides[1:])):
            raise ValueError(
                f"PaddleDenseEFM cannot fuse levels of the strides {list(strides)}, which do not double: choose others "
                f"with the backbone's return_idx"
            )
        super().__init__(in_channels, out_channels, maxout_channels)
        _prepare_norms(self, False, norm_decay)
        self.order = -1 if coarse_first else 1
        self.strides = list(strides)

    @classmethod
    def from_config(cls, cfg: Mapping[str, object], input_shape: Sequence[ShapeSpec]) -> dict[str, list[int]]:
        """The arguments that the backbone's `out_shape` says."""
        return {
            "in_channels": [level.channels for level in input_shape],
            "strides": [level.stride for level in input_shape],
        }

    @property
    def out_shape(self) -> list[ShapeSpec]:
        """Channels and stride of each fused level in the order of the outputs, for the head."""
        shapes = [ShapeSpec(channels=c, stride=stride) for c, stride in zip(self.out_channels, self.strides)]
        return shapes[:: self.order]

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        return super().forward(pyramid)[:: self.order]


def _prepare_norms(network: nn.Layer, frozen: bool, decay: float) -> None:
    for layer in network.sublayers():
        if not isinstance(layer, nn.BatchNorm2D):
            continue
        for parameter in cast("tuple[Tensor, ...]", (layer.weight, layer.bias)):
            parameter.regularizer = L2Decay(decay)
            parameter.stop_gradient = frozen
        if frozen:
            layer._use_global_stats = True


def _freeze(network: nn.Layer, level: int, in_channels: int) -> None:
    """Stop training whatever has a gradient of this level of the pyramid."""
    learning = [parameter for parameter in network.parameters() if not parameter.stop_gradient]
    network.eval()
    feature = network(paddle.zeros([1, in_channels, 32, 32]))[level]
    gradients = paddle.grad(feature.sum(), learning, allow_unused=True)
    network.train()
    for parameter, gradient in zip(learning, gradients):
        if gradient is not None:
            parameter.stop_gradient = True
