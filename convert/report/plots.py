"""Numbers as paths of SVG, in units that the page stretches to its width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convert.parity.forward import LayerPrecision
    from convert.report.weights import Histogram

SIZE = 1000  # of a plot, in its own units
_MOST_LABELS = 6


@dataclass(frozen=True)
class Dot:
    """A point of a plot, and what it says when it is pointed at."""

    x: float
    y: float
    kind: str
    said: str


@dataclass(frozen=True)
class Dots:
    """The differences of layers, on a logarithmic axis.

    Attributes:
        dots: float64 first, so that float32 lies on top; kind is ``"single"``, ``"double"`` or ``"broken"``.
        labels: of the vertical axis, from the top down, at equal distances.
        grid: heights of the labels.
        limit: height of the allowed difference, where there is one on the plot.
        allowed: the same in words.
        first, last: names of the outermost layers.
    """

    dots: tuple[Dot, ...]
    labels: tuple[str, ...]
    grid: tuple[float, ...]
    limit: float | None
    allowed: str
    first: str
    last: str


@dataclass(frozen=True)
class Bars:
    """A histogram: the path of its bars, where zero is, and the ends of its axis."""

    kind: str
    path: str
    zero: float | None
    low: str
    high: str


def dots(layers: Sequence[LayerPrecision], atol: float | None) -> Dots:
    """Every layer's difference in both precisions. What is 0 stands on the lowest line, NaN and infinity on the top."""
    values = [value for layer in layers for value in (layer.float32, layer.float64)]
    positive = [value for value in [*values, atol or 0.0] if 0 < value < math.inf] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    step = max(1, math.ceil((high - low) / (_MOST_LABELS - 1)))
    count = max(1, math.ceil((high - low) / step))
    low = high - count * step

    def height(value: float) -> float:
        if value == 0:
            return SIZE
        share = (high - math.log10(value)) / (high - low) if 0 < value < math.inf else 0.0
        return round(SIZE * share, 1)

    found = []
    for kind, attribute in (("double", "float64"), ("single", "float32")):
        for number, layer in enumerate(layers):
            value = getattr(layer, attribute)
            said = f"{layer.name}: {value:.1e} ({attribute})"
            x = round(SIZE * (number + 0.5) / len(layers), 1)
            found.append(Dot(x, height(value), kind if math.isfinite(value) else "broken", said))
    return Dots(
        dots=tuple(found),
        labels=tuple(f"1e{high - number * step}" for number in range(count + 1)),
        grid=tuple(round(SIZE * number / count, 1) for number in range(count + 1)),
        limit=height(atol) if atol else None,
        allowed=f"{atol:.0e}" if atol else "",
        first=layers[0].name,
        last=layers[-1].name,
    )


def bars(histogram: Histogram) -> Bars:
    """The histogram with logarithmic heights, so that a single outlier is seen next to thousands."""
    width, largest = SIZE / len(histogram.counts), math.log1p(max(histogram.counts))
    path = ""
    for number, count in enumerate(histogram.counts):
        if count:
            # One of one is seen as well.
            tall = SIZE * max(math.log1p(count) / largest, 0.03)
            path += f"M{number * width:.1f} {SIZE}v{-tall:.1f}h{width:.1f}v{tall:.1f}z"
    low, high = histogram.min, histogram.max
    zero = round(SIZE * -low / (high - low), 1) if low < 0 < high else None
    return Bars(histogram.kind, path, zero, f"{low:.2g}", f"{high:.2g}")
