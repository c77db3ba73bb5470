"""The Exact Fusion Model (EFM) of CSPNet (arXiv 1911.11929, section 3.2 and figure 6c).

YOLOv3 assigns one prior to each object. If priors are as large as what a cell of their scale sees, the boxes of scale s
lie between those of the scales s-1 and s+1, so each scale of the pyramid assembles the features of these three::

    finer    --- Maxout --- down ---+
    its own  --- Maxout ------------+--- concat --- 1x1 --- 3x3 ---
    coarser  --- Maxout --- up -----+

The paper compresses with Maxout, to save memory, and does not say more. What is decided here:

- Every level is compressed before the concatenation, as the authors did, and all of them to the same number of
  channels, unless given that of the level with the fewest.
- Which channels compete is as in Darknet, with which the authors trained (see `Maxout`).
- Finer levels come down by max pooling 2x2, coarser ones up by repeating pixels as in YOLOv3. Neither has parameters,
  and a maximum over channels is the same before and after them.
- What is concatenated is fused by a pair of convolutions like YOLOv3's: 1x1 to half of the channels, then 3x3, each
  with batch normalisation and LeakyReLU(0.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

from paddle_dense.layers.conv import ConvNormAct
from paddle_dense.layers.parts import split_channels


class Maxout(nn.Layer):
    """The largest of several channels, at every pixel: [N, in_channels, H, W] -> [N, out_channels, H, W].

    Output channel g is the maximum of the input channels g, g + out_channels, g + 2 out_channels, ..., the order of
    Darknet's ``maxpool_depth``; `paddle.nn.Maxout` takes neighbouring channels together. Where `out_channels` is no
    divisor of `in_channels`, the last outputs have one input less.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.

    Raises:
        ValueError: there are to be fewer than 1 or more than `in_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if not 1 <= out_channels <= in_channels:
            raise ValueError(
                f"Maxout cannot make {out_channels} of {in_channels} channels: give a number from 1 to {in_channels}"
            )
        rounds, self.rest = divmod(in_channels, out_channels)
        self.sections = [out_channels] * rounds + [self.rest] * bool(self.rest)

    def forward(self, x: Tensor) -> Tensor:
        # Not `amax` of a reshaped tensor, whose gradient takes Paddle's CPU kernel ten times as long as all of this.
        parts = split_channels(x, self.sections)
        last = parts.pop() if self.rest else None
        largest = parts[0]
        for part in parts[1:]:
            largest = paddle.maximum(largest, part)
        if last is None:
            return largest
        first, others = split_channels(largest, [self.rest, self.sections[0] - self.rest])
        return paddle.concat([paddle.maximum(first, last), others], axis=1)


class ExactFusion(nn.Layer):
    """Fuse each level of a pyramid with its neighbours: N levels [B, in, H, W] -> as many [B, out, H, W].

    The levels are in the order of a network's ``features_only=True``, finest first, each half as high and wide as the
    one before, rounded up or down; see the module for what is computed.

    Args:
        in_channels: channels of each level.
        out_channels: channels of each fused level, one number for all or one for each.
        maxout_channels: channels that Maxout compresses each level to; unless given, the fewest of `in_channels`.

    Raises:
        ValueError: there are fewer than two levels, or not as many `out_channels`; a number of channels is too small,
            or `maxout_channels` larger than one of `in_channels`; or a pyramid has other levels than these.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int | Sequence[int], maxout_channels: int | None = None
    ) -> None:
        super().__init__()
        levels = len(in_channels)
        if levels < 2:
            raise ValueError(f"in_channels={list(in_channels)} are not those of neighbours: give two levels or more")
        widths = [out_channels] * levels if isinstance(out_channels, int) else list(out_channels)
        if len(widths) != levels or min(widths) < 2:
            raise ValueError(
                f"out_channels={out_channels} do not fit {levels} levels: give one number, or one for each level, each "
                f"2 or more"
            )
        compressed = min(in_channels) if maxout_channels is None else maxout_channels
        self.in_channels, self.out_channels = list(in_channels), widths
        self.maxout = nn.LayerList(Maxout(channels, compressed) for channels in in_channels)
        self.fuse = nn.LayerList(
            nn.Sequential(
                ConvNormAct((2 if level in (0, levels - 1) else 3) * compressed, width // 2, slope=0.1),
                ConvNormAct(width // 2, width, 3, slope=0.1),
            )
            for level, width in enumerate(widths)
        )

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        channels = [level.shape[1] for level in pyramid]
        if channels != self.in_channels:
            raise ValueError(
                f"the levels have {channels} channels, but this ExactFusion fuses levels of {self.in_channels}: give "
                f"it those, finest first"
            )
        levels = [maxout(level) for maxout, level in zip(self.maxout, pyramid)]
        fused = []
        for place, (own, fuse) in enumerate(zip(levels, self.fuse)):
            assembled = [own]
            if place > 0:
                assembled.insert(0, _resized(F.max_pool2d(levels[place - 1], 2, ceil_mode=True), own))
            if place + 1 < len(levels):
                assembled.append(_resized(levels[place + 1], own))
            fused.append(fuse(paddle.concat(assembled, axis=1)))
        return fused


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """As high and wide as another level, by the nearest pixels: whichever way a network rounds odd sides, it fits.

    `F.interpolate` computes the same, but Paddle Inference 3.3 does not run it with oneDNN, its default on a CPU.
    """
    for axis in (2, 3):
        found, wanted = x.shape[axis], like.shape[axis]
        # A static graph for any size knows neither.
        if not (isinstance(found, int) and found == wanted):
            x = paddle.index_select(x, paddle.arange(wanted) * found // wanted, axis)
    return x
