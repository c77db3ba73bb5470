"""The command ``python -m convert.torch2paddle``: PyTorch checkpoints in, checked Paddle weights out."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

try:
    from convert.conversion import Conversion, Options, convert_checkpoint, default_target
    from paddle_dense.errors import WeightsError
except ImportError as error:  # without Paddle; the message says what to install
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}")

OK, FAILED, USAGE = 0, 1, 2


class UsageError(ValueError):
    """The command was called in a way that no file can mend."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def parser() -> argparse.ArgumentParser:
    """The command line, as `docs` and ``--help`` show it."""
    command = _Parser(
        prog="python -m convert.torch2paddle",
        description="Convert PyTorch checkpoints to Paddle and check the two frameworks against each other. The "
        "architecture and its numbers are read from the tensors; a checkpoint in the trained form is condensed.",
        epilog="Exit status: 0 everything was written and checked, 1 a file or its check is bad, 2 wrong usage.",
    )
    add = command.add_argument
    add("checkpoints", nargs="+", type=Path, metavar="CKPT", help=".pth, .pt, .pth.tar or .safetensors")
    add("-o", "--output", metavar="FILE|DIR", help="where to write (default: NAME.pdparams beside the input)")
    add("--arch", metavar="NAME", help="the preset it is, where the tensors leave a choice")
    add(
        "--config",
        metavar="KEY=VALUE,...",
        type=_config,
        default={},
        help="arguments of the network that the file does not show",
    )
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
    add(
        "--no-ema",
        dest="ema",
        action="store_false",
        help="take the plain weights where the file has averaged ones too",
    )
    add("--no-verify", dest="verify", action="store_false", help="do not run both frameworks")
    add(
        "--atol",
        type=float,
        default=1e-5,
        help="largest difference, relative to the logits' scale (default: 1e-5)",
    )
    add("--images", metavar="DIR", type=Path, help="compare on these pictures too")
    add("--reference", metavar="MODULE:FACTORY", help="check against your own PyTorch network")
    add("--json", action="store_true", help="print one JSON object for each input on stdout")
    add("--force", action="store_true", help="overwrite existing files")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    # Paddle says on import that it found no compiler cache, which is no news to someone who converts a file.
    warnings.filterwarnings("ignore", message="No ccache found")
    try:
        args = parser().parse_args(arguments)
        targets = _targets(args)
        options = _options(args)
    except UsageError as error:
        _complain(error)
        return USAGE
    return convert_all(args.checkpoints, targets, options, args.json)


def convert_all(paths: Sequence[Path], targets: Sequence[Path], options: Options, as_json: bool) -> int:
    """Convert one file after the other; a bad one does not stop the others."""
    from tqdm import tqdm

    status = OK
    # disable=None: a bar for a terminal, nothing for a file or a pipe.
    quiet = None if len(paths) > 1 else True
    for path, target in tqdm(list(zip(paths, targets)), unit="file", file=sys.stderr, disable=quiet):
        try:
            result = convert_checkpoint(path, target, options)
        except (WeightsError, OSError) as error:
            status = max(status, FAILED)
            _report_failure(path, error, as_json)
        except ValueError as error:
            status = USAGE
            _report_failure(path, error, as_json)
        else:
            _report(result, as_json)
    return status


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


def _options(args: argparse.Namespace) -> Options:
    if args.images and not args.images.is_dir():
        raise UsageError(f"--images {args.images} is not a folder")
    if args.reference and not all(args.reference.partition(":")):
        raise UsageError(f"--reference {args.reference} must have the form MODULE:FACTORY")
    if not args.atol >= 0:
        raise UsageError(f"--atol {args.atol} must be 0 or more")
    if args.arch:
        from paddle_dense.models.registry import preset

        try:
            preset(args.arch)
        except ValueError as error:
            raise UsageError(f"--arch: {error}") from None
    names = Options.__dataclass_fields__
    return Options(**{name: value for name, value in vars(args).items() if name in names and value is not None})


def _config(text: str) -> dict[str, Any]:
    """``"stages=2-2-2,HS_start_block=1"`` -> ``{"stages": [2, 2, 2], "HS_start_block": 1}``."""
    config = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise argparse.ArgumentTypeError(f"{item!r} must have the form KEY=VALUE")
        config[key.strip()] = _value(value.strip())
    return config


def _value(text: str) -> Any:
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    parts = text.split("-")
    if len(parts) > 1 and all(part.isdigit() for part in parts):
        return [int(part) for part in parts]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


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


def _report_failure(path: Path, error: Exception, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"input": str(path), "output": None, "verified": False, "error": str(error)}))
    _complain(error if str(path) in str(error) else f"{path}: {error}")


def _complain(message: object) -> None:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
