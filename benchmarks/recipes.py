"""Every training recipe on the handwritten digits with a small network: ``python -m benchmarks.recipes``.

The recipes are made for ImageNet or CIFAR and hundreds of epochs; this shows that each of them learns. Of the 450
held-out digits it prints the share that is right before training and after it, with the weights of the last epoch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

V2 = {"stages": [1, 2, 3], "growth": [8, 16, 32], "fc_channel": 128, "init_stride": 1}
V2.update(group_1x1=4, group_3x3=4, group_trans=4)
CONDENSENET = {"stages": [2, 2, 2], "growth": [8, 16, 32], "init_stride": 1}
DENSENET = {"growth_rate": 12, "block_config": [4, 4, 4], "num_init_features": 24, "small_inputs": True}
CSP = {"growth_rate": 12, "block_config": [2, 2, 2], "num_init_features": 24}
CONDCONV = {"channel_multiplier": 0.5, "depth_multiplier": 0.5}
# Recipe -> the class of the network, and its arguments.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "condensenetv2-imagenet": ("CondenseNetV2", V2),
    "condensenet-imagenet": ("CondenseNet", CONDENSENET),
    "condensenet-cifar": ("CondenseNet", CONDENSENET),
    "condensenet182-cifar": ("CondenseNet", CONDENSENET),
    "densenet-imagenet": ("DenseNet", DENSENET),
    "densenet-cifar": ("DenseNet", DENSENET),
    "cspnet-imagenet": ("CSPDenseNet", CSP),
    "condconv-imagenet": ("EfficientNetCondConv", CONDCONV),
    "scratch": ("CondenseNetV2", V2),
    "digits": ("CondenseNetV2", V2),
}


def row(recipe: str, epochs: int) -> str:
    """Train by one recipe; one line of the table, in Markdown."""
    from paddle_dense.training.run import Run, Settings

    network, config = NETWORKS[recipe]
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings("digits", recipe, model=network, config=config, epochs=epochs, batch_size=32)
        run = Run(settings, Path(folder))
        before = run.evaluate().top1
        result = run.train()
        after = next(result.accuracies[file] for file in reversed(result.accuracies) if file.stem.endswith("_last"))
    return f"| `{recipe}` | {network} | {before:.1%} | {after.top1:.1%} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Train a small network on the digits by every recipe.")
    parser.add_argument("recipes", nargs="*", help=f"some of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    print("| recipe | network | before | after |\n| --- | --- | ---: | ---: |")
    for recipe in options.recipes or NETWORKS:
        print(row(recipe, options.epochs), flush=True)


if __name__ == "__main__":
    main()
