"""The command ``python -m convert.torch2paddle``: PyTorch checkpoints in, checked Paddle weights out."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

try:
    from convert.command import add_options, for_each, read_options
    from convert.conversion import Conversion, Options, convert_checkpoint, default_target
    from paddle_dense.command import FAILED, OK, USAGE, Parser, UsageError, complain
except ImportError as error:  # without Paddle; the message says what to install
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}")

__all__ = ["FAILED", "OK", "USAGE", "convert_all", "main", "parser"]


def parser() -> argparse.ArgumentParser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog="python -m convert.torch2paddle",
        description="Convert PyTorch checkpoints to Paddle and check the two frameworks against each other. The "
        "architecture and its numbers are read from the tensors; a checkpoint in the trained form is condensed.",
        epilog="Exit status: 0 everything was written and checked, 1 a file or its check is bad, 2 wrong usage.",
    )
    add = command.add_argument
    add("checkpoints", nargs="+", type=Path, metavar="CKPT", help=".pth, .pt, .pth.tar or .safetensors")
    add("-o", "--output", metavar="FILE|DIR", help="where to write (default: NAME.pdparams beside the input)")
    add(
        "--format",
        choices=("pdparams", "safetensors"),
        help="format of the output (default: pdparams, or by -o FILE)",
    )
    add("--keep-trained-form", action="store_true", help="do not condense a checkpoint in the trained form")
    add(
        "--condense-classifier",
        action="store_true",
        help="halve the classifier's inputs as CondenseNet's own converter does; this changes the outputs",
    )
    add("--no-verify", dest="verify", action="store_false", help="do not run both frameworks")
    add("--force", action="store_true", help="overwrite existing files")
    add_options(command)
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    # Paddle says on import that it found no compiler cache, which is no news to someone who converts a file.
    warnings.filterwarnings("ignore", message="No ccache found")
    try:
        args = parser().parse_args(arguments)
        targets = _targets(args)
        options = read_options(args, Options)
    except UsageError as error:
        complain(error)
        return USAGE
    return convert_all(args.checkpoints, targets, options, args.json)


def convert_all(paths: Sequence[Path], targets: Sequence[Path], options: Options, as_json: bool) -> int:
    """Convert one file after the other; a bad one does not stop the others."""

    def work(number: int) -> int:
        _report(convert_checkpoint(paths[number], targets[number], options), as_json)
        return OK

    return for_each(paths, work, {"output": None} if as_json else None)


def _targets(args: argparse.Namespace) -> list[Path]:
    """One target for each input."""
    if args.output and not args.format:
        args.format = "safetensors" if args.output.endswith(".safetensors") else "pdparams"
    suffix = args.format or "pdparams"
    targets = [default_target(path, suffix) for path in args.checkpoints]
    if args.output:
        output = Path(args.output)
        if output.is_dir() or args.output.endswith(("/", "\\")):
            targets = [output / target.name for target in targets]
        elif len(targets) > 1:
            raise UsageError(f"-o {output} is one file for {len(targets)} inputs: give a folder")
        elif output.suffix != f".{suffix}":
            raise UsageError(f"-o {output} must end in .{suffix}, or be a folder that exists or ends in /")
        else:
            targets = [output]
    for number, target in enumerate(targets):
        if target in targets[:number]:
            raise UsageError(f"two inputs would both be written to {target}: convert them one at a time with -o")
    return targets


def _report(result: Conversion, as_json: bool) -> None:
    for warning in result.warnings:
        print(f"warning: {result.input}: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(asdict(result), ensure_ascii=False))
        return
    checked = (
        f"PyTorch and Paddle agree to {result.max_rel_diff:.1e} of the logits' scale, "
        f"top-1 on {result.top1_agreement:.0%} of the inputs"
        if result.verified
        else "not checked against PyTorch"
    )
    print(f"{result.input} -> {result.output}: {result.arch}, {result.params:,} parameters, {result.seconds:.1f} s")
    print(f"  {checked}")


if __name__ == "__main__":
    sys.exit(main())
