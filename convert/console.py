"""The console commands ``torch2paddle``, ``paddle2torch`` and ``paddle-dense``, as pip installs them.

They stand in a module that imports nothing: where Paddle is missing, the user reads one sentence, no traceback.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from typing import NoReturn


def _run(module: str) -> NoReturn:
    try:
        from paddle_dense.process import as_process

        main = import_module(module).main
    except ImportError as error:
        sys.exit(f"error: {error}")
    as_process(main)


torch2paddle = partial(_run, "convert.torch2paddle")
paddle2torch = partial(_run, "convert.paddle2torch")
paddle_dense = partial(_run, "paddle_dense.__main__")
