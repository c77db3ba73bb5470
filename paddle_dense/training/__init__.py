"""Training: condensing while learning, averaged weights, schedules, recipes and the training command.

As in the package itself, names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME_OF = {
    "CondensationCallback": "condensation",
    "CondensationLoss": "condensation",
    "learned_connections": "condensation",
    "set_progress": "condensation",
    "ModelEMA": "ema",
    "WarmupCosine": "schedule",
    "Checkpoints": "resume",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "connectivity": "plot",
    "plot_connectivity": "plot",
}

__all__ = sorted(_HOME_OF)

PLOT_FORMATS = (".png", ".svg", ".pdf")
LEAST = {"epochs": 1, "batch_size": 1, "seed": 0}  # of the settings of a run


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
