"""Which features a densely connected network uses: the papers' heat map of its connections.

Row s, column l is the mean absolute weight with which dense layer l reads the features of source s (DenseNet, arXiv
1608.06993, figure 5; CondenseNet V2, arXiv 2104.04382, figure 7). For CondenseNet V2 a second map shows which features
each layer changes through sparse feature reactivation. `connectivity` computes the maps, `plot_connectivity` and the
command ``python -m paddle_dense.training plot`` draw them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from paddle import Tensor, nn

from paddle_dense.evaluation import name_of
from paddle_dense.files.atomic import PathLike, atomic_write
from paddle_dense.layers import LGC, SFR, CondenseLGC, CondenseSFR
from paddle_dense.layers.learned import LearnedConnections
from paddle_dense.models.condensenet import DenseFeatures
from paddle_dense.training import PLOT_FORMATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


@dataclass(frozen=True)
class Connectivity:
    """How the dense layers of a network use the features before them.

    Attributes:
        sources: who made the features, a label for each row: ``"stem"``, or ``"in 2"`` for the input of block 2 where
            blocks are dense only within themselves, and ``"2-3"`` for layer 3 of block 2.
        layers: who uses them, a label for each column.
        source_blocks: block of each source, from 1; 0 for the stem.
        layer_blocks: block of each layer, from 1.
        reads: [sources, layers], float64: mean absolute weight of the 1x1 convolution through which a layer reads the
            channels of a source. Connections that were dropped count as 0; NaN where a layer cannot see a source.
        reactivates: the same for the weights through which a layer's SFR changes those channels; None without SFR.
        density: share of the connections that are left, of reading and reactivating together.
    """

    sources: tuple[str, ...]
    layers: tuple[str, ...]
    source_blocks: tuple[int, ...]
    layer_blocks: tuple[int, ...]
    reads: np.ndarray
    reactivates: np.ndarray | None
    density: float


def connectivity(model: nn.Layer) -> Connectivity:
    """Measure which features each layer reads and reactivates; the trained and the condensed form give the same answer.

    Args:
        model: a CondenseNet or CondenseNet V2, in the trained form (however many connections are left) or condensed, a
            DenseNet or a CSPDenseNet.

    Raises:
        ValueError: the network has no dense layers, or weights that are no numbers any more.
    """
    blocks = _dense_blocks(model)
    if isinstance(model.features, DenseFeatures):
        # Every layer sees all earlier ones, whatever block they are in.
        parts = [(("stem", 0), [layer for block in blocks for layer in block])]
    else:
        parts = [((f"in {number}", number), block) for number, block in enumerate(blocks, start=1)]
    layers = [layer for _, part in parts for layer in part]
    sources = [source for start, part in parts for source in (start, *(layer[:2] for layer in part[:-1]))]
    reads = [[layer.reads for layer in part] for _, part in parts]
    reactivates = [[layer.reactivates for layer in part if layer.reactivates is not None] for _, part in parts]
    left, possible = np.sum([layer.connections for layer in layers], axis=0)
    return Connectivity(
        sources=tuple(label for label, _ in sources),
        layers=tuple(layer.label for layer in layers),
        source_blocks=tuple(block for _, block in sources),
        layer_blocks=tuple(layer.block for layer in layers),
        reads=_by_source(reads),
        reactivates=_by_source(reactivates) if list(map(len, reactivates)) == list(map(len, reads)) else None,
        density=float(left / possible),
    )


def plot_connectivity(model: nn.Layer, path: PathLike) -> None:
    """Draw the connectivity of a network; each column is scaled to the source that its layer uses most.

    Args:
        model: see `connectivity`.
        path: the image, ``.png``, ``.svg`` or ``.pdf``; what stood there is replaced, in one step.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the network has no dense layers, or the name another suffix.
        WeightsError: the image cannot be written there.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in PLOT_FORMATS:
        raise ValueError(f"{os.fspath(path)} is no name of an image: end the name in {' or '.join(PLOT_FORMATS)}")
    figure = _figure(connectivity(model), name_of(model))
    with atomic_write(path) as file:
        figure.savefig(file, format=suffix[1:], dpi=150)


class _DenseLayer(NamedTuple):
    label: str
    block: int
    reads: np.ndarray  # mean absolute weight of each channel that the layer reads, [in]
    reactivates: np.ndarray | None  # and of each that it updates, [in]
    connections: np.ndarray  # how many are left, and how many there were


def _dense_blocks(model: nn.Layer) -> list[list[_DenseLayer]]:
    blocks = [
        [_dense_layer(block, number, layer) for number, layer in enumerate(_children(dense, "denselayer"), start=1)]
        for block, dense in enumerate(_children(getattr(model, "features", None), "denseblock"), start=1)
    ]
    if not any(blocks):
        raise ValueError(
            f"{name_of(model)} has no dense layers to plot: take a CondenseNet, CondenseNetV2, DenseNet or CSPDenseNet"
        )
    return blocks


def _children(layer: nn.Layer | None, prefix: str) -> list[nn.Layer]:
    children = layer.named_children() if isinstance(layer, nn.Layer) else ()
    return [child for name, child in children if name.startswith(prefix)]


def _dense_layer(block: int, number: int, layer: nn.Layer) -> _DenseLayer:
    conv = getattr(layer, "conv_1", getattr(layer, "conv1", None))
    sfr = getattr(layer, "sfr", None)
    if not isinstance(conv, (LGC, CondenseLGC, nn.Conv2D)) or not isinstance(sfr, (SFR, CondenseSFR, type(None))):
        raise ValueError("the dense layers have been rewritten: plot the network as it was before")
    weight, left = _dense_weight(conv)
    reactivates, connections = None, np.array([left, weight.size], float)
    if sfr is not None:
        updates, left = _dense_weight(sfr)
        reactivates = updates.mean(axis=1)
        connections += (left, updates.size)
    return _DenseLayer(f"{block}-{number}", block, weight.mean(axis=0), reactivates, connections)


def _absolute(weight: Tensor) -> np.ndarray:
    """[out, in], the mean over the kernel."""
    # float32 first: numpy has no bfloat16.
    values = np.abs(weight.astype("float32").numpy().astype(np.float64))
    if not np.isfinite(values).all():
        raise ValueError("the weights hold NaN or infinity: take a checkpoint from before the training diverged")
    return values.mean(axis=(2, 3))


def _dense_weight(conv: nn.Layer) -> tuple[np.ndarray, float]:
    """Absolute weights [out, in] of a convolution, 0 where nothing is connected, and how many connections it has."""
    if isinstance(conv, LearnedConnections):
        return _absolute(conv.conv.weight * conv._mask), conv._mask.sum().item()
    if isinstance(conv, CondenseSFR):
        return _absolute(conv.dense_weight()), conv.conv.weight.size
    if isinstance(conv, CondenseLGC):
        weight = _absolute(conv.conv.weight)
        dense = np.zeros([len(weight), conv.source_channels])
        read = conv.index.numpy().reshape([conv.groups, -1]).repeat(len(weight) // conv.groups, axis=0)
        np.add.at(dense, (np.arange(len(weight))[:, None], read), weight)  # added: a group may name a channel twice
        return dense, weight.size
    weight = _absolute(conv.weight)
    return weight, weight.size


def _by_source(parts: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Average values per channel over the sources that made the channels: [sources, layers], NaN between parts.

    A layer has one value per channel that it sees: those of the part's input, and of every earlier layer in turn.
    """
    size = sum(map(len, parts))
    matrix = np.full((size, size), np.nan)
    first = 0
    for part in parts:
        ends = [len(values) for values in part]  # the next layer sees as much, and then what this one adds
        for layer, values in enumerate(part):
            means = [channels.mean() for channels in np.split(values, ends[:layer])]
            matrix[first : first + layer + 1, first + layer] = means
        first += len(part)
    return matrix


# The image

_LABELS = 30  # as many fit next to each other
_CELL, _SIDE = 0.1, (4.6, 9.0)  # inches: a cell of the map, and its smallest and largest side


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; without pyplot it belongs to nobody's session and needs no display.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib draws the plot: pip install "paddle_dense[report]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def _figure(found: Connectivity, name: str) -> Figure:
    maps = [("features that a layer reads", found.reads)]
    if found.reactivates is not None:
        maps.append(("features that a layer reactivates (SFR)", found.reactivates))
    side = min(max(_CELL * len(found.layers), _SIDE[0]), _SIDE[1])
    figure = new_figure((side + 0.6) * len(maps) + 1.2, side + 1.1)
    figure.suptitle(f"{name}: {100 * found.density:.3g}% of the connections left")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    panels[0].set_ylabel("source of the features")
    for axes, (title, values) in zip(panels, maps):
        image = _draw_map(axes, title, values, found)
    bar = figure.colorbar(image, ax=list(panels), fraction=0.05, pad=0.02)
    bar.set_label("mean |weight| of a connection, 1 = the layer's strongest source")
    return figure


def _draw_map(axes: Axes, title: str, values: np.ndarray, found: Connectivity) -> AxesImage:
    strongest = np.nanmax(values, axis=0)
    # A layer without any weight is all 0.
    scaled = values / np.where(strongest > 0, strongest, 1)
    seen = np.ma.masked_invalid(scaled)
    image = axes.imshow(seen, cmap="viridis", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("layer, as block-number (white: it does not see the source)")
    for axis, labels in ((axes.xaxis, found.layers), (axes.yaxis, found.sources)):
        step = -(-len(labels) // _LABELS)
        axis.set_ticks(range(0, len(labels), step), labels[::step], fontsize=7)
    axes.tick_params(axis="x", rotation=90)
    for line, blocks in ((axes.axvline, found.layer_blocks), (axes.axhline, found.source_blocks)):
        for border in np.flatnonzero(np.diff(blocks)):
            line(border + 0.5, color="0.55", linewidth=0.7)
    return image
