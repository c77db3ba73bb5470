"""Deployment: exact rewriting for speed, export, and the environment that a CPU needs.

As in the package itself, names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME_OF = {
    "cpu_environment": "environment",
    "set_cpu_environment": "environment",
    "export": "export",
    "fuse": "fuse",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
