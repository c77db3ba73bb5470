"""Draw the figures of the documents with the project's own layers.

The same numbers on every machine: all weights come from one seeded generator.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import matplotlib
import numpy as np
import paddle
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import paddle_dense as pd_  # noqa: E402
from paddle_dense.data import load_digits  # noqa: E402
from paddle_dense.evaluation import evaluation  # noqa: E402
from paddle_dense.explanation import grad_cam  # noqa: E402
from paddle_dense.layers import LGC, SFR, CondConv2D, CondenseSFR  # noqa: E402
from paddle_dense.layers.condconv import mixed_conv2d  # noqa: E402
from paddle_dense.layers.learned import LearnedConnections, due_stage  # noqa: E402
from paddle_dense.layers.sfr import condense_sfr  # noqa: E402
from paddle_dense.models import condensenet, condensenetv2, densenet  # noqa: E402
from paddle_dense.training import plot_connectivity  # noqa: E402

CHANNELS, GROUPS = 16, 4
BLUE, ORANGE, GREEN, GREY = "#3557b7", "#d9822b", "#3d8b57", "0.75"
STYLE = {"font.size": 9, "svg.hashsalt": "paddle_dense", "axes.spines.top": False, "axes.spines.right": False}


def fill(layer: paddle.nn.Layer, seed: int = 0) -> paddle.nn.Layer:
    """Draw a layer's parameters again, the same ones on every machine."""
    random = np.random.default_rng(seed)
    for parameter in layer.parameters():
        parameter.set_value(random.standard_normal(parameter.shape).astype("float32"))
    return layer


def show(axes: Axes, matrix: np.ndarray, title: str, across: str, down: str = "") -> None:
    """A matrix as an image: white is 0, blue and orange are the signs."""
    scale = np.abs(matrix).max() or 1.0
    axes.imshow(matrix, cmap="PuOr", vmin=-scale, vmax=scale, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(True)


def masked(layer: LearnedConnections) -> np.ndarray:
    """The weight that a learned layer uses, [out, in]; its rows and columns as they are."""
    return (layer.conv.weight * layer._mask).numpy()[:, :, 0, 0]


def dense() -> Figure:
    """Channels that each layer reads, in three networks."""
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    axes = figure.subplots()
    for name, colour in (("densenet121", GREY), ("condensenet74_c4", BLUE), ("cdnv2_a", ORANGE)):
        axes.plot(read_channels(pd_.create_model(name)), label=name, color=colour, marker=".", linewidth=1)
    axes.set_xlabel("layer")
    axes.set_ylabel("channels that it reads")
    axes.legend(frameon=False)
    return figure


def read_channels(model: paddle.nn.Layer) -> list[int]:
    """Channels that each dense layer can see, in order."""
    seen = []
    for layer in model.sublayers():
        if isinstance(layer, densenet.DenseLayer):
            seen.append(layer.norm1.weight.shape[0])
        elif isinstance(layer, (condensenet.DenseLayer, condensenetv2.DenseLayer)):
            seen.append(layer.conv_1.source_channels)
    return seen


def lgc() -> Figure:
    """The weight of an LGC after each of its stages, its rows sorted by group, and the grouped weight that is left."""
    layer = fill(LGC(CHANNELS, CHANNELS, groups=GROUPS))
    order = np.argsort(np.arange(CHANNELS) % GROUPS, kind="stable")
    figure = Figure(figsize=(7.2, 2.2), layout="constrained")
    panels = figure.subplots(1, GROUPS)
    for stage, axes in enumerate(panels):
        layer.set_progress(stage / (GROUPS - 1) / 2)
        show(axes, masked(layer)[order], f"stage {layer.stage}: {layer.density:.0%} left", "inputs")
        for border in range(1, GROUPS):
            axes.axhline(border * CHANNELS / GROUPS - 0.5, color="black", linewidth=0.6)
    panels[0].set_ylabel("outputs, by group")
    return figure


def schedule() -> Figure:
    """The share of connections that is left during training, for three condensation factors."""
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    axes = figure.subplots()
    progress = np.linspace(0, 1, 1001)
    for factor, colour in ((4, BLUE), (6, GREEN), (8, ORANGE)):
        left = [1 - due_stage(p, factor) / factor for p in progress]
        axes.plot(progress, left, label=f"C = {factor}", color=colour)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("share of training done")
    axes.set_ylabel("connections left")
    axes.legend(frameon=False)
    return figure


def sfr() -> Figure:
    """An SFR at the end of training, the grouped weight and the index it is condensed to, and the dense weight run."""
    layer = fill(SFR(CHANNELS, CHANNELS, groups=GROUPS), seed=1)
    layer.set_progress(1.0)
    arrays = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    condensed = CondenseSFR(CHANNELS, CHANNELS, groups=GROUPS)
    parts = condense_sfr(arrays, GROUPS, GROUPS)
    condensed.set_state_dict({name: paddle.to_tensor(parts[name]) for name in condensed.state_dict()})
    with paddle.no_grad():
        dense_weight = condensed.dense_weight().numpy()[:, :, 0, 0]
    if not np.array_equal(dense_weight, masked(layer)):
        raise AssertionError("the condensed SFR is not the trained one")
    figure = Figure(figsize=(7.2, 2.3), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=[4, 1.3, 4, 4])
    show(panels[0], masked(layer), "trained: masked weight", "inputs", "outputs")
    show(panels[1], parts["conv.weight"][:, :, 0, 0], "grouped", f"{CHANNELS // GROUPS} inputs", "rows")
    show(panels[2], parts["index"], "index: one 1 a row", "outputs", "rows")
    show(panels[3], dense_weight, "run: dense weight", "inputs", "outputs")
    return figure


def csp() -> Figure:
    """Parameters and multiply-accumulates of DenseNet-121 and its three cross stage partial forms."""
    names = ["densenet121", "stand", "fusionfirst", "fusionlast"]
    sizes = [
        pd_.profile(pd_.densenet121() if name == "densenet121" else pd_.cspdensenet121(mode=name)) for name in names
    ]
    figure = Figure(figsize=(7.2, 2.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    bars(left, names, [size.params / 1e6 for size in sizes], "million parameters")
    bars(right, names, [size.executed_macs / 1e9 for size in sizes], "billion multiply-accumulates")
    right.set_yticklabels([])
    return figure


def bars(axes: Axes, names: Sequence[str], values: Sequence[float], label: str) -> None:
    """Horizontal bars, the first one at the top, each with its number."""
    drawn = axes.barh(range(len(names)), values, color=[GREY, *[BLUE] * (len(names) - 1)])
    axes.bar_label(drawn, [f" {value:.1f}" for value in values], fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(values))
    axes.set_xlabel(label)


def condconv() -> Figure:
    """Routing weights of three images, and the kernels that are mixed of four experts for each of them."""
    images, experts, size = 3, 4, 7
    layer = fill(CondConv2D(4, 1, size, padding=size // 2, num_experts=experts), seed=2)
    layer.eval()
    x = paddle.to_tensor(np.random.default_rng(3).standard_normal([images, 4, 12, 12]), "float32")
    x = x + paddle.to_tensor([[2.0, -1, 0, 0], [0, 0, 2, -2], [-1, 2, 0, 1]]).reshape([images, 4, 1, 1])
    with paddle.no_grad():
        routing = layer._routing_fn(x.mean([2, 3]))
        kernels = paddle.matmul(routing, layer.weight.flatten(1)).reshape([images, *layer.weight.shape[1:]])
        outputs = sum(
            routing[:, e].reshape([-1, 1, 1, 1]) * paddle.nn.functional.conv2d(x, layer.weight[e], padding=size // 2)
            for e in range(experts)
        )
        mixed = mixed_conv2d(x, routing, layer.weight, padding=size // 2)
        if float((mixed - outputs).abs().max() / outputs.abs().max()) > 1e-5:
            raise AssertionError("mixing kernels is not mixing outputs")
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    panels = figure.subplots(2, experts)
    for expert in range(experts):
        show(panels[0, expert], layer.weight.numpy()[expert, 0, 0], f"expert {expert + 1}", "")
    axes = panels[1, 0]
    for image, colour in enumerate((BLUE, ORANGE, GREEN)):
        axes.barh(np.arange(experts) + 0.27 * (image - 1), routing.numpy()[image], 0.25, color=colour)
        show(panels[1, image + 1], kernels.numpy()[image, 0, 0], f"image {image + 1}: its kernel", "")
        panels[1, image + 1].title.set_color(colour)
    axes.set_yticks(range(experts), [f"expert {e + 1}" for e in range(experts)], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("routing weights", fontsize=9)
    return figure


def digits() -> Figure:
    """Handwritten digits that training never saw, and where the included network looks when it names them."""
    shown = np.linspace(0, len(load_digits().test_images) - 1, 9).astype(int)
    images = load_digits().test_images[shown]
    model = pd_.load_model(ROOT / "weights" / "cdnv2_digits.pdparams")
    with evaluation(model):
        chances = paddle.nn.functional.softmax(model(paddle.to_tensor(images))).numpy()
    figure = Figure(figsize=(7.2, 1.9), layout="constrained")
    panels = figure.subplots(2, len(images))
    for image, heat, chance, (above, below) in zip(images, grad_cam(model, images), chances, panels.T):
        above.imshow(image[0], cmap="gray_r")
        above.set_title(f"{chance.argmax()}: {chance.max():.0%}", fontsize=9)
        below.imshow(image[0], cmap="gray_r")
        extent = (-0.5, image.shape[2] - 0.5, image.shape[1] - 0.5, -0.5)
        below.imshow(heat, cmap="Oranges", alpha=0.65 * heat, extent=extent, interpolation="bilinear")
    for axes in panels.flat:
        axes.axis("off")
    return figure


def floors() -> Figure:
    """The floors of the source, as import-linter's contract in pyproject.toml has them: imports go down only."""
    import tomllib  # of Python 3.11; the other figures are drawn, and tested, on 3.9 too

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = [floor.split(" | ") for floor in contracts[0]["layers"]]
    figure = Figure(figsize=(7.2, 0.3 * len(layers)), layout="constrained")
    axes = figure.subplots()
    for height, floor in enumerate(reversed(layers)):
        for number, module in enumerate(floor):
            width = 1 / len(floor)
            colour = ORANGE if module == "convert" else BLUE
            axes.barh(height, width - 0.01, 0.86, left=number * width, color=colour, alpha=0.16)
            axes.text(
                (number + 0.5) * width,
                height,
                module.replace("paddle_dense.", ""),
                ha="center",
                va="center",
                fontsize=8,
            )
    axes.annotate("", (-0.03, -0.3), (-0.03, len(layers) - 0.7), arrowprops={"arrowstyle": "->", "color": "0.4"})
    axes.text(-0.05, len(layers) / 2, "imports", rotation=90, ha="center", va="center", fontsize=8, color="0.4")
    axes.set_xlim(-0.07, 1)
    axes.axis("off")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "digits": digits,
    "floors": floors,
    "dense": dense,
    "lgc": lgc,
    "schedule": schedule,
    "sfr": sfr,
    "csp": csp,
    "condconv": condconv,
}


def draw(folder: Path) -> None:
    """Write every figure into a folder."""
    paddle.set_device("cpu")
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # matplotlib writes the date into SVG files
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, figure in FIGURES.items():
            figure().savefig(folder / f"{name}.svg")
    with matplotlib.rc_context({**STYLE, "font.size": 11}):  # a wide figure, which pages scale down
        plot_connectivity(pd_.load_model(ROOT / "weights" / "cdnv2_digits.pdparams"), folder / "connections.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "figures", help="default: docs/figures")
    draw(parser.parse_args().folder)
