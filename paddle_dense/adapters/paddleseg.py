"""The presets in PaddleSeg: importing this makes each of them a backbone.

::

    model:
      type: DeepLabV3P
      num_classes: 19
      backbone_indices: [0, 3]
      backbone:
        type: cdnv2_a
        pretrained: cdnv2_a.pdparams

`pretrained` reads a file without executing what it says. Unless `out_index` chooses others, a backbone returns the
levels of its pyramid that have stride 4 or more: 4, 8, 16 and 32 in most networks, as PaddleSeg's own do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Callable

from paddle_dense.adapters.pyramid import Pyramid
from paddle_dense.models.network import presets

try:
    from paddleseg.cvlibs import manager
except ImportError as error:
    raise ImportError(
        f"PaddleSeg does not import ({error}): run in a clone of it, or pip install paddleseg, and install what it "
        f"says is missing"
    ) from error


def backbone(name: str) -> Callable[..., Pyramid]:
    """A preset as a function of PaddleSeg's form.

    The function takes `pretrained` (a file's path, or nothing), `in_channels`, `out_index` (places in the network's
    `feature_strides`) and the network's arguments; what it returns has `feat_channels`.
    """

    def build(
        pretrained: bool | str | os.PathLike | None = None,
        in_channels: int = 3,
        out_index: Sequence[int] | None = None,
        **config: Any,
    ) -> Pyramid:
        return Pyramid(name, out_index, pretrained, in_channels=in_channels, **config)

    build.__name__ = build.__qualname__ = name
    return build


manager.BACKBONES.add_component([backbone(preset.name) for preset in presets()])
