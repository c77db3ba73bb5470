"""The command ``python -m paddle_dense``, or ``paddle-dense``: all commands under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from paddle_dense.command import OK, USAGE, as_process, complain, stoppable

# The modules have `parser()` and `main(arguments)`.
COMMANDS = {
    "info": ("paddle_dense.info", "say what a file of weights is"),
    "list": ("paddle_dense.catalogue", "list the presets"),
    "torch2paddle": ("convert.torch2paddle", "convert PyTorch checkpoints to Paddle"),
    "paddle2torch": ("convert.paddle2torch", "convert Paddle weights to PyTorch"),
    "parity": ("convert.parity.__main__", "compare a checkpoint's network in both frameworks"),
    "train": ("paddle_dense.training.__main__", "train, continue, fine-tune, evaluate"),
    "deploy": ("paddle_dense.deploy.__main__", "make a network fast and export it"),
    "completion": ("paddle_dense.completion", "print a script that completes these commands in a shell"),
}


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
        [f"usage: {called} COMMAND [ARGUMENT ...]", "", *lines, "", f"{called} COMMAND --help tells more."]
    )


if __name__ == "__main__":
    as_process(main)
