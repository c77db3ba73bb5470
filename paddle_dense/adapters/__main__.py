"""The command ``python -m paddle_dense.adapters``: another package's script, with this package's networks."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from paddle_dense.process import FAILED, OK, USAGE, complain

PACKAGES = ("paddleclas", "paddledet", "paddleseg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Register the networks with a package and run a script; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: python -m paddle_dense.adapters {{{','.join(PACKAGES)}}} SCRIPT [ARGUMENT ...]")
        return OK
    if len(arguments) < 2 or arguments[0] not in PACKAGES:
        complain(f"name one of {', '.join(PACKAGES)}, then the script and its arguments (see --help)")
        return USAGE
    package, script = arguments[:2]
    if not Path(script).is_file():
        complain(f"{script} is not a file: give the path of a script, such as tools/train.py")
        return USAGE
    try:
        import_module(f"paddle_dense.adapters.{package}")
    except ImportError as error:
        complain(error)
        return FAILED
    # As `python SCRIPT` would have it.
    sys.argv = arguments[1:]
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")
    return OK


if __name__ == "__main__":
    sys.exit(main())
