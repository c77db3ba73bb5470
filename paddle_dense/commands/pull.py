"""The command ``python -m paddle_dense pull``: released weights into the cache, before they are needed."""

from __future__ import annotations

import argparse
from functools import partial

from paddle_dense.cli import Parser, program, run
from paddle_dense.process import FAILED, OK, complain, load_paddle


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("pull", "paddle_dense pull"),
        description="Download released weights and keep them as Paddle's in the cache folder, $PADDLE_DENSE_HOME; what "
        "is there already is left alone.",
        epilog="Exit status: 0 everything is in the cache, 1 something could not be had, 2 wrong usage, 130 or 143 "
        "stopped by a signal.",
    )
    command.add_argument(
        "names", nargs="+", metavar="NAME", help="a preset, or one of its sets, such as densenet121.tv_in1k"
    )
    return command


def _run(args: argparse.Namespace) -> int:
    load_paddle()
    from paddle_dense.errors import WeightsError
    from paddle_dense.models import preset
    from paddle_dense.released import released

    for name in args.names:
        preset(name.partition(".")[0])  # a wrong name ends the command before anything is downloaded
    status = OK
    for name in args.names:
        try:
            found = released(name)
        except WeightsError as error:
            complain(error)
            status = FAILED
        else:
            print(f"{found.name}: {found.file.path}, {found.file.size / 1e6:,.1f} MB")
    return status


main = partial(run, parser, _run)
