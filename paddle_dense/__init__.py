"""Densely connected networks in PaddlePaddle: CondenseNet V2 and its relatives.

The names of this package load on first use, so that a command can still choose the environment that Paddle starts in.
"""

from __future__ import annotations

import zlib  # noqa: F401  Paddle 2.6 crashes if this is first imported after it.
from importlib import import_module, util
from typing import Any

__version__ = "0.1.0"

if util.find_spec("paddle") is None:
    raise ImportError(
        "paddle_dense needs PaddlePaddle 2.6 or newer: pip install paddlepaddle, or paddlepaddle-gpu for a GPU"
    )

_HOMES = {
    "paddle_dense.checkpoints": ("load_model", "load_weights", "save_weights"),
    "paddle_dense.condensing": ("condense",),
    "paddle_dense.layers": (
        "CondConv2D",
        "CondConvLinear",
        "CondenseConv",
        "CondenseLGC",
        "CondenseLinear",
        "CondenseSFR",
        "Conv",
        "HS",
        "LGC",
        "LearnedGroupConv",
        "SELayer",
        "SFR",
        "ShuffleLayer",
        "ShuffleLayerTrans",
    ),
    "paddle_dense.models": (
        "CSPDenseNet",
        "CSPNet",
        "CondenseNet",
        "CondenseNetV2",
        "DenseNet",
        "EfficientNetCondConv",
        "Network",
    ),
    "paddle_dense.profiling": ("Profile", "profile"),
    "paddle_dense.zoo": ("create_model", "list_models"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_SUBPACKAGES = ("deploy", "training")

__all__ = ["__version__", *_SUBPACKAGES, *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    # What is in no list may be a preset, such as cdnv2_a.
    home = "paddle_dense.zoo" if name not in _HOME_OF and not name.startswith("_") else _HOME_OF.get(name)
    try:
        value = getattr(import_module(home), name) if home else None
    except AttributeError:
        value = None
    if value is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
