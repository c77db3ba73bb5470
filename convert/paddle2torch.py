"""The command ``python -m convert.paddle2torch``: Paddle weights in, checked PyTorch checkpoints out."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

try:
    from convert.command import add_conversion_options, add_options, convert_each
    from paddle_dense.cli import Parser, program, run
    from paddle_dense.process import FAILED, OK, USAGE, as_process
except ImportError as error:  # without Paddle; the message says what to install
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}")

__all__ = ["FAILED", "OK", "USAGE", "main", "parser"]

FORMATS = ("pth", "safetensors")


def parser() -> argparse.ArgumentParser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("paddle2torch", "convert.paddle2torch"),
        description="Convert Paddle weights to PyTorch checkpoints and check the two frameworks against each other. "
        "The network and its hyperparameters are read from the sidecar .json, or from the tensors; its form is kept. "
        "What convert.torch2paddle converted gets the names, order and counters of the original file back.",
        epilog="Exit status: 0 everything was written and checked, 1 a file or its check is bad, 2 wrong usage, "
        "130 or 143 stopped by a signal.",
    )
    command.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help=".pdparams or .safetensors")
    add_conversion_options(command, FORMATS)
    add_options(command)
    return command


main = partial(run, parser, partial(convert_each, framework="paddle", formats=FORMATS))


if __name__ == "__main__":
    as_process(main)
