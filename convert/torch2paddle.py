"""The command ``python -m convert.torch2paddle``: PyTorch checkpoints in, checked Paddle weights out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from convert.command import (
        add_choice_of_weights,
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

FORMATS = ("pdparams", "safetensors")


def parser() -> argparse.ArgumentParser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("torch2paddle", "convert.torch2paddle"),
        description="Convert PyTorch checkpoints to Paddle and check the two frameworks against each other. The "
        "architecture and its numbers are read from the tensors; a checkpoint in the trained form is condensed.",
        epilog="Exit status: 0 everything was written and checked, 1 a file or its check is bad, 2 wrong usage, "
        "130 or 143 stopped by a signal.",
    )
    add = command.add_argument
    add("checkpoints", nargs="+", type=Path, metavar="CKPT", help=".pth, .pt, .pth.tar or .safetensors")
    add_conversion_options(command, FORMATS)
    add("--keep-trained-form", action="store_true", help="do not condense a checkpoint in the trained form")
    add(
        "--condense-classifier",
        action="store_true",
        help="halve the classifier's inputs as CondenseNet's own converter does; this changes the outputs",
    )
    add_choice_of_weights(command)
    add_options(command)
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run(parser, _run, arguments)


def _run(args: argparse.Namespace) -> int:
    outputs = targets(args, FORMATS, sidecar_path, origin_path)
    options = read_options(args, Options)

    def work(number: int, result: Result) -> int:
        refuse_written(outputs, number)
        # Read first: a bad file is told of before Paddle is loaded, which takes seconds.
        file = open_weights(args.checkpoints[number], "pytorch", options.ema, ("sha256",), options.key)
        with importing():
            from convert.conversion import convert_checkpoint
        tell_conversion(convert_checkpoint(file, outputs[number], options, result), args.json)
        return OK

    return for_each(args.checkpoints, work, {"output": None} if args.json else None, options.report, options.force)


if __name__ == "__main__":
    as_process(main)
