"""What the command lines share: parsing, KEY=VALUE arguments, and how errors become a line and an exit status."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NoReturn

from paddle_dense.errors import WeightsError
from paddle_dense.process import FAILED, USAGE, complain, is_of_output, stoppable

# Paddle's own words, which are no news to someone who runs a command.
_NO_NEWS = ("No ccache found", "When training, we now always track global mean", "To copy construct from a tensor")


class UsageError(ValueError):
    """A command was called in a way that no file can fix."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def program(word: str, module: str) -> str:
    """How the running command was called, for its usage.

    Args:
        word: the command's name, as a console script or after ``paddle-dense``.
        module: what ``python -m`` takes to run it.
    """
    started = Path(sys.argv[0])
    if started.name == word:
        return word
    if started.name == "paddle-dense":
        return f"paddle-dense {word}"
    if started.parts[-2:] == ("paddle_dense", "__main__.py"):
        return f"python -m paddle_dense {word}"
    return f"python -m {module}"


def key_values(text: str) -> dict[str, Any]:
    """``"stages=2-2-2,HS_start_block=1"`` -> ``{"stages": [2, 2, 2], "HS_start_block": 1}``, as an argument's type."""
    config = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise argparse.ArgumentTypeError(f"{item!r} must have the form KEY=VALUE")
        if key.strip() in config:
            raise argparse.ArgumentTypeError(f"{key.strip()!r} is given twice: give it once")
        config[key.strip()] = _value(value.strip())
    return config


def check_least(args: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Refuse numbers below those in `least`, by argument; UsageError names the option."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be {smallest} or more")


def _value(text: str) -> Any:
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    parts = text.split("-")
    if len(parts) > 1 and all(part.isascii() and part.isdigit() for part in parts):
        return [int(part) for part in parts]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


@stoppable
def run(
    parser: Callable[[], argparse.ArgumentParser],
    work: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a command; what goes wrong is one line on stderr.

    Args:
        parser: makes the command line.
        work: does what it says and returns the exit status.
        arguments: of the command; those of the process unless given.

    Returns:
        The exit status: that of `work`, or 1 for files and results, 2 for wrong usage, 130 or 143 for a signal.
    """
    for message in _NO_NEWS:
        warnings.filterwarnings("ignore", message=message)
    try:
        return work(parser().parse_args(arguments))
    except (WeightsError, OSError, ImportError) as error:
        if is_of_output(error):
            raise
        complain(error)
        return FAILED
    except ValueError as error:  # UsageError, or an argument that a network cannot have
        complain(error)
        return USAGE
