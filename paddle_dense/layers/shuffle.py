"""Channel shuffles: the two permutations that go with a grouped convolution."""

from __future__ import annotations

from paddle import Tensor
from paddle.nn import functional as F


def ShuffleLayer(x: Tensor, groups: int) -> Tensor:
    """Interleave the groups: channel ``g * (C / groups) + k`` moves to ``k * groups + g`` (arXiv 1707.01083).

    Args:
        x: [N, C, H, W], C a multiple of `groups`.
        groups: number of groups.
    """
    return F.channel_shuffle(x, groups)


def ShuffleLayerTrans(x: Tensor, groups: int) -> Tensor:
    """Undo `ShuffleLayer`: channel ``k * groups + g`` moves to ``g * (C / groups) + k``.

    Args:
        x: [N, C, H, W], C a multiple of `groups`.
        groups: number of groups.
    """
    return F.channel_shuffle(x, x.shape[1] // groups)
