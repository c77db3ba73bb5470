"""Every training recipe on the handwritten digits with a small network: ``python -m benchmarks.recipes``.

The recipes are made for ImageNet or CIFAR and for hundreds of epochs on many devices; this shows that each of them
learns. Of the 450 held-out digits it prints the share that is right before training, with the new network, and after
it, with the weights of the last epoch (the EMA weights where the recipe keeps them).

Augmentation for ImageNet leaves little of a digit: a tenth of its area, mirrored, inverted, in part erased. The less
of it a recipe has, the more is learned in 20 epochs. EfficientNet halves the image five times, so that of 32 pixels one
is left, of which it learns less still; its digits are enlarged to 64 pixels.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import fields
from pathlib import Path

# Paddle's convolutions gain nothing from a second thread when they are as small as here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from paddle_dense.commands.train import parser
from paddle_dense.training.run import Run, Settings

EPOCHS = 20
V2 = (
    "--model CondenseNetV2 --config "
    "stages=1-2-3,growth=8-16-32,fc_channel=128,init_stride=2,group_1x1=4,group_3x3=4,group_trans=4"
)
CONDENSENET = "--model CondenseNet --config stages=2-2-2,growth=8-16-32,init_stride=2"
DENSENET = "--model DenseNet --config growth_rate=8,block_config=2-2-2,num_init_features=16,small_inputs=true"
CSP = "--model CSPDenseNet --config growth_rate=12,block_config=2-2-2,num_init_features=24"
CONDCONV = "--model EfficientNetCondConv --config channel_multiplier=0.25,depth_multiplier=0.25"
# Recipe -> options of the training command.
TASKS = {
    "condensenetv2-imagenet": V2,
    "condensenet-imagenet": CONDENSENET,
    "densenet-imagenet": DENSENET,
    "cspnet-imagenet": CSP,
    "condconv-imagenet": f"{CONDCONV} --size 64",
    "condensenet-cifar": CONDENSENET,
    "condensenet182-cifar": CONDENSENET,
    "densenet-cifar": DENSENET,
    "scratch": V2,
    "finetune": "--model cdnv2_cifar10 --pretrained cdnv2_cifar10",
    "digits": V2,
}


def settings(recipe: str, epochs: int) -> Settings:
    """What the training command makes of the recipe's options."""
    common = ["--data", "digits", "--recipe", recipe, "--epochs", str(epochs), "--batch-size", "32"]
    given = vars(parser().parse_args([*common, *TASKS[recipe].split()]))
    names = [setting.name for setting in fields(Settings) if given[setting.name] is not None]
    return Settings(**{name: given[name] for name in names})


def row(recipe: str, epochs: int) -> str:
    """Train by one recipe; one line of the table, in Markdown."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(settings(recipe, epochs), Path(folder))
        before = run.evaluate().top1
        result = run.train()
    after = next(result.accuracies[file] for file in reversed(result.accuracies) if file.stem.endswith("_last"))
    minutes = (time.process_time() - start) / 60
    return f"| `{recipe}` | `{TASKS[recipe]}` | {before:.1%} | {after.top1:.1%} | {minutes:.1f} |"


def main() -> None:
    """Print the table."""
    command = argparse.ArgumentParser(description="Train a small network on the digits by every recipe.")
    command.add_argument("recipes", nargs="*", help=f"some of {', '.join(TASKS)} (default: all)")
    command.add_argument("--epochs", type=int, default=EPOCHS)
    options = command.parse_args()
    print("| recipe | network | before | after | CPU minutes |\n| --- | --- | ---: | ---: | ---: |")
    for recipe in options.recipes or TASKS:
        print(row(recipe, options.epochs), flush=True)


if __name__ == "__main__":
    main()
