"""Channels in parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import paddle
from paddle import Tensor

# Channels that oneDNN keeps together in memory on processors with AVX-512.
_BLOCK = 16


def split_channels(x: Tensor, sections: Sequence[int]) -> list[Tensor]:
    """Neighbouring channels together, as many in each part as `sections` says: [N, C, H, W] -> [N, section, H, W] each.

    The same as `paddle.split`, which Paddle Inference 3.3 does not run with oneDNN where the last block of channels is
    filled up with zeros: there, a static graph has slices instead.
    """
    if paddle.in_dynamic_mode() or sum(sections) % _BLOCK == 0:
        return paddle.split(x, sections, axis=1)
    return [x[:, end - section : end] for section, end in zip(sections, accumulate(sections))]
