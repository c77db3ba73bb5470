"""Training: condensing while learning, EMA weights, schedules, recipes and the training command.

As in the package itself, names load on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "condensation": ["CondensationCallback", "CondensationLoss", "learned_connections", "set_progress"],
        "ema": ["ModelEMA"],
        "plot": ["connectivity", "plot_connectivity"],
        "recipes": ["RECIPES", "Recipe"],
        "resume": ["Checkpoints"],
        "schedule": ["WarmupCosine"],
    },
)

PLOT_FORMATS = (".png", ".svg", ".pdf")
LEAST = {"epochs": 1, "batch_size": 1, "seed": 0, "accumulate": 1, "patience": 1}  # of the settings of a run
