"""Densely connected networks in PaddlePaddle: CondenseNet V2 and its relatives.

The names of this package load on first use, so that a command can still choose the environment that Paddle starts in.
"""

from __future__ import annotations

import zlib  # noqa: F401  Paddle 2.6 crashes if this is first imported after it.
from importlib import import_module, util
from typing import Any

from paddle_dense.process import signals_waiting

with signals_waiting():  # for NumPy starts threads, through which signals would reach Paddle while it is imported
    import numpy  # noqa: F401

__version__ = "0.1.0"

if util.find_spec("paddle") is None:
    raise ImportError(
        "paddle_dense needs PaddlePaddle 2.6 or newer: pip install paddlepaddle, or paddlepaddle-gpu for a GPU"
    )

import lazy_loader

_load, _, _names = lazy_loader.attach(
    __name__,
    submodules=["deploy", "training"],
    submod_attrs={
        "checkpoints": ["load_model", "load_weights", "save_weights"],
        "condensing": ["condense"],
        "layers": [
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
        ],
        "models": [
            "CSPDenseNet",
            "CSPNet",
            "CondenseNet",
            "CondenseNetV2",
            "DenseNet",
            "EfficientNetCondConv",
            "Network",
        ],
        "prediction": ["predict"],
        "profiling": ["Profile", "profile"],
        "zoo": ["create_model", "list_models"],
    },
)
__all__ = ["__version__", *_names]


def __getattr__(name: str) -> Any:
    if name in _names or name.startswith("_"):
        return _load(name)
    try:  # what is in no list may be a preset, such as cdnv2_a
        return getattr(import_module(f"{__name__}.zoo"), name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return __all__
