"""What the commands share: exit statuses, KEY=VALUE arguments, and how they complain."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

OK, FAILED, USAGE = 0, 1, 2


class UsageError(ValueError):
    """A command was called in a way that no file can mend."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def key_values(text: str) -> dict[str, Any]:
    """``"stages=2-2-2,HS_start_block=1"`` -> ``{"stages": [2, 2, 2], "HS_start_block": 1}``, as an argument's type."""
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


def complain(message: object) -> None:
    """Print an error as one line on stderr."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
