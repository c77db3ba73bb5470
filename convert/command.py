"""What the commands on checkpoints share: their options, and how they go from file to file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, TypeVar

from paddle_dense.command import FAILED, OK, USAGE, UsageError, complain, key_values
from paddle_dense.errors import WeightsError

Options = TypeVar("Options")


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what says which network a checkpoint is and what it is compared with."""
    add = command.add_argument
    add("--arch", metavar="NAME", help="the preset it is, where the tensors leave a choice")
    add(
        "--config",
        metavar="KEY=VALUE,...",
        type=key_values,
        default={},
        help="arguments of the network that the file does not show",
    )
    add(
        "--no-ema",
        dest="ema",
        action="store_false",
        help="take the plain weights where the file has averaged ones too",
    )
    add(
        "--atol",
        type=float,
        default=1e-5,
        help="largest difference, relative to the scale of what is compared (default: 1e-5)",
    )
    add("--images", metavar="DIR", type=Path, help="compare on these pictures too")
    add("--reference", metavar="MODULE:FACTORY", help="check against your own PyTorch network")
    add("--json", action="store_true", help="print one JSON object for each input on stdout")


def read_options(args: argparse.Namespace, kind: type[Options]) -> Options:
    """What the command line says, as a dataclass whose fields are named like the options.

    Raises:
        UsageError: an option cannot be used.
    """
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
    names = kind.__dataclass_fields__
    return kind(**{name: value for name, value in vars(args).items() if name in names and value is not None})


def for_each(paths: Sequence[Path], work: Callable[[int], int], failure: dict[str, Any] | None) -> int:
    """Do one file after the other; a bad one does not stop the others.

    Args:
        paths: the files.
        work: does and reports the file of this number, and returns its exit status.
        failure: what is printed as JSON of a bad file, beside its name and the error; None to print nothing.

    Returns:
        The worst exit status.
    """
    from tqdm import tqdm

    status = OK
    # disable=None: a bar for a terminal, nothing for a file or a pipe.
    quiet = None if len(paths) > 1 else True
    for number, path in enumerate(tqdm(paths, unit="file", file=sys.stderr, disable=quiet)):
        try:
            status = max(status, work(number))
        except (WeightsError, OSError) as error:
            status = max(status, FAILED)
            _report_failure(path, error, failure)
        except ValueError as error:
            status = USAGE
            _report_failure(path, error, failure)
    return status


def _report_failure(path: Path, error: Exception, failure: dict[str, Any] | None) -> None:
    if failure is not None:
        print(json.dumps({"input": str(path), **failure, "verified": False, "error": str(error)}))
    complain(error if str(path) in str(error) else f"{path}: {error}")
