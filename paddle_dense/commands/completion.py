"""The command ``python -m paddle_dense completion``: scripts with which a shell completes the console commands.

They are static: completing starts no Python, and the commands know nothing of it.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from importlib import import_module

from paddle_dense.cli import Parser, program, run
from paddle_dense.commands import COMMANDS
from paddle_dense.process import OK

PROGRAMS = ("paddle-dense", "torch2paddle", "paddle2torch")
SHELLS = ("bash", "zsh")
_TAKES_A_PRESET = ("arch", "model", "pattern")


def script(shell: str, program: str = "paddle-dense") -> str:
    """The script that teaches a shell one of the console commands.

    Args:
        shell: ``"bash"`` or ``"zsh"``.
        program: one of `PROGRAMS`.

    Raises:
        ImportError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ImportError("completion needs shtab: pip install 'paddle_dense[completion]'") from None

    if program in COMMANDS:
        command = import_module(COMMANDS[program][0]).parser()
        command.prog = program
        _prepare(command)
    else:
        command = argparse.ArgumentParser(prog=program)
        commands = command.add_subparsers(dest="command")
        for name, (module, text) in COMMANDS.items():
            parent = import_module(module).parser()
            _prepare(parent)
            commands.add_parser(name, help=text, parents=[parent], add_help=False)
    return shtab.complete(command, shell)


def _prepare(command: argparse.ArgumentParser) -> None:
    """Tell shtab which arguments are files, folders and presets."""
    import shtab

    from paddle_dense.zoo import list_models

    for action in command._actions:
        if action.dest in _TAKES_A_PRESET:
            action.choices = list_models()
        elif action.dest == "data" or re.search("FILE|CKPT", str(action.metavar)):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif "DIR" in str(action.metavar):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("completion", "paddle_dense completion"),
        description="Print a script with which a shell completes a console command: options, files, presets. For bash: "
        "paddle-dense completion bash > ~/.local/share/bash-completion/completions/paddle-dense; for zsh, into a file "
        "_paddle-dense in a folder of $fpath. Print it again after an update.",
        epilog="Exit status: 0 done, 1 shtab is missing, 2 wrong usage.",
    )
    command.add_argument("shell", choices=SHELLS)
    command.add_argument("program", nargs="?", choices=PROGRAMS, default=PROGRAMS[0], help="(default: paddle-dense)")
    return command


def _run(args: argparse.Namespace) -> int:
    print(script(args.shell, args.program))
    return OK


main = partial(run, parser, _run)
