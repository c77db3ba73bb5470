"""The command ``python -m convert.paddle2torch``: Paddle weights in, checked PyTorch checkpoints out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from convert.command import (
        add_conversion_options,
        add_options,
        for_each,
        read_options,
        refuse_written,
        targets,
        tell_conversion,
    )
    from convert.options import Options
    from convert.origin import origin_path
    from convert.result import Result
    from paddle_dense.cli import Parser, program, run
    from paddle_dense.files.opened import open_weights
    from paddle_dense.files.sidecar import sidecar_path
    from paddle_dense.process import FAILED, OK, USAGE, as_process, importing
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run(parser, _run, arguments)


def _run(args: argparse.Namespace) -> int:
    outputs = targets(args, FORMATS, origin_path, sidecar_path)
    options = read_options(args, Options)

    def work(number: int, result: Result) -> int:
        refuse_written(outputs, number)
        # Read first: a bad file is told of before Paddle is loaded, which takes seconds.
        file = open_weights(args.checkpoints[number], "paddle", hashes=("sha256",))
        with importing():
            from convert.conversion import convert_back
        tell_conversion(convert_back(file, outputs[number], options, result), args.json)
        return OK

    return for_each(args.checkpoints, work, {"output": None} if args.json else None, options.report, options.force)


if __name__ == "__main__":
    as_process(main)
