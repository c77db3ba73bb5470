"""The console commands ``torch2paddle``, ``paddle2torch`` and ``paddle-dense``, as pip installs them.

They stand in a module that imports nothing: where Paddle is missing, the user reads one sentence, no traceback.
"""

from __future__ import annotations

import sys
from importlib import import_module


def torch2paddle() -> int:
    """``python -m convert.torch2paddle``."""
    return _run("convert.torch2paddle")


def paddle2torch() -> int:
    """``python -m convert.paddle2torch``."""
    return _run("convert.paddle2torch")


def paddle_dense() -> int:
    """``python -m paddle_dense``."""
    return _run("paddle_dense.__main__")


def _run(module: str) -> int:
    try:
        main = import_module(module).main
    except ImportError as error:
        sys.exit(f"error: {error}")
    return main()
