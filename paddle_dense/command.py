"""What the commands share: exit statuses, KEY=VALUE arguments, how they complain, and how they are stopped."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from functools import wraps
from typing import Any, Callable, NoReturn

OK, FAILED, USAGE = 0, 1, 2
STOPPED = 128  # and the signal's number, as shells have it: 130 for SIGINT (Ctrl-C), 143 for SIGTERM
SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


def stoppable(main: Callable[..., int]) -> Callable[..., int]:
    """A command's main that SIGINT and SIGTERM end as errors do: cleaned up, one line on stderr, status 130 or 143."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    @wraps(main)
    def stopping(*arguments: Any) -> int:
        if threading.current_thread() is not threading.main_thread():
            return main(*arguments)  # others get no signals
        before = {number: signal.signal(number, stop) for number in SIGNALS}
        try:
            return main(*arguments)
        except KeyboardInterrupt as stopped:
            number = stopped.args[0] if stopped.args else signal.SIGINT
            complain(f"stopped by {signal.Signals(number).name}: what was written is whole, run it again for the rest")
            return STOPPED + number
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return stopping


def keep_signals() -> None:
    """Call this when Paddle has been imported: it takes SIGTERM for itself, and the handlers of Python get it back."""
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)
