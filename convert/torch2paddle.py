"""The command ``python -m convert.torch2paddle``: PyTorch checkpoints in, checked Paddle weights out."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

try:
    from convert.command import (
        add_choice_of_weights,
        add_conversion_options,
        add_options,
        add_own_network,
        convert_each,
    )
    from paddle_dense.cli import Parser, program, run
    from paddle_dense.process import FAILED, OK, USAGE, as_process
except ImportError as error:  # without Paddle; the message says what to install
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}")

__all__ = ["FAILED", "OK", "USAGE", "main", "parser"]

FORMATS = ("pdparams", "safetensors")


def parser() -> argparse.ArgumentParser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("torch2paddle", "convert.torch2paddle"),
        description="Convert PyTorch checkpoints to Paddle and check the two frameworks against each other. "
        "The architecture and its hyperparameters are read from the tensors; a checkpoint in the trained form is "
        "condensed.",
        epilog="Exit status: 0 everything was written and checked, 1 a file or its check is bad, 2 wrong usage, "
        "130 or 143 stopped by a signal.",
    )
    add = command.add_argument
    add("checkpoints", nargs="+", type=Path, metavar="CKPT", help=".pth, .pt, .pth.tar, .safetensors, or .index.json")
    add_conversion_options(command, FORMATS)
    add(
        "--compact",
        action="store_true",
        help="write SFR's indices, most of a condensed CondenseNet V2, as one number for each row: only this package "
        "reads such files, paddle.load and ppim do not",
    )
    add("--keep-trained-form", action="store_true", help="do not condense a checkpoint in the trained form")
    add(
        "--condense-classifier",
        action="store_true",
        help="halve the classifier's inputs as CondenseNet's own converter does; this changes the outputs",
    )
    add_choice_of_weights(command)
    add_options(command)
    add_own_network(command).add_argument(
        "--propose",
        metavar="FILE.csv",
        type=Path,
        help="write which tensor could be made of which, by names, order and shapes, and convert nothing; with "
        "--reference, the order is that in which the layers of both networks run",
    )
    return command


main = partial(run, parser, partial(convert_each, framework="pytorch", formats=FORMATS))


if __name__ == "__main__":
    as_process(main)
