"""The command ``python -m paddle_dense``, or ``paddle-dense``: all commands under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from paddle_dense.commands import COMMANDS
from paddle_dense.process import OK, USAGE, as_process, complain, stoppable


@stoppable
def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the arguments over to a command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["-h"], ["--help"]):
        print(_help())
        return OK
    if arguments[:1] == ["--version"]:
        from paddle_dense import __version__

        print(f"paddle_dense {__version__}")
        return OK
    if not arguments or arguments[0] not in COMMANDS:
        what = f"there is no command {arguments[0]!r}" if arguments else "no command is given"
        complain(f"{what}: choose one of {', '.join(COMMANDS)} (see --help)")
        return USAGE
    # Only the module that is needed: most of them load Paddle, and one chooses the environment that it starts in.
    return import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])


def _help() -> str:
    lines = [f"  {name:<14}{text}" for name, (_, text) in COMMANDS.items()]
    called = "paddle-dense" if Path(sys.argv[0]).name == "paddle-dense" else "python -m paddle_dense"
    return "\n".join(
        [f"usage: {called} COMMAND [ARGUMENT ...]", "", *lines, "", f"{called} COMMAND --help describes one of them."]
    )


if __name__ == "__main__":
    as_process(main)
