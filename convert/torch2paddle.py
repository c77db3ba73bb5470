"""The command ``python -m convert.torch2paddle``: PyTorch checkpoints in, checked Paddle weights out."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

try:
    from convert.command import (
        add_conversion_options,
        add_ema_option,
        add_options,
        for_each,
        read_options,
        refuse_written,
        targets,
        tell_conversion,
    )
    from convert.conversion import Options, convert_checkpoint, origin_path
    from convert.report import Section
    from paddle_dense.command import FAILED, OK, USAGE, Parser, UsageError, as_process, complain, program, stoppable
    from paddle_dense.sidecar import sidecar_path
except ImportError as error:  # without Paddle; the message says what to install
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}")

__all__ = ["FAILED", "OK", "USAGE", "convert_all", "main", "parser"]

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
    add_ema_option(command)
    add_options(command)
    return command


@stoppable
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    # Paddle says on import that it found no compiler cache, which is no news to someone who converts a file.
    warnings.filterwarnings("ignore", message="No ccache found")
    try:
        args = parser().parse_args(arguments)
        outputs = targets(args, FORMATS, sidecar_path, origin_path)
        options = read_options(args, Options)
    except UsageError as error:
        complain(error)
        return USAGE
    return convert_all(args.checkpoints, outputs, options, args.json)


def convert_all(paths: Sequence[Path], outputs: Sequence[Path], options: Options, as_json: bool) -> int:
    """Convert one file after the other; a bad one does not stop the others."""

    def work(number: int, section: Section) -> int:
        refuse_written(outputs, number)
        tell_conversion(convert_checkpoint(paths[number], outputs[number], options, section), as_json)
        return OK

    return for_each(paths, work, {"output": None} if as_json else None, options.report, options.force)


if __name__ == "__main__":
    as_process(main)
