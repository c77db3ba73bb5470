"""The presets in PaddleClas: importing this makes each of them an ``Arch`` of its configurations.

::

    Arch:
      name: cdnv2_a
      class_num: 102
      pretrained: cdnv2_a.pdparams

`pretrained` is a file's path, with or without ``.pdparams``, or True for the released weights, which are downloaded;
files are read without executing what they say. Every argument of the network can be given, too. `class_num: 0` leaves
the classifier out, which makes the network the `Backbone` of a `RecModel`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module, util
from pathlib import Path
from typing import Any, Callable

from paddle import nn

from paddle_dense.models.network import Preset, presets
from paddle_dense.zoo import create_model

# A clone of PaddleClas, and the package that pip installs.
_HOMES = ("ppcls", "paddleclas.ppcls")


def register() -> None:
    """Add a function for every preset to the namespaces in which PaddleClas looks architectures up.

    Raises:
        ImportError: PaddleClas is not there, or does not import.
    """
    for home in _homes():
        try:
            namespaces = [import_module(f"{home}.arch"), import_module(f"{home}.arch.backbone")]
        except ImportError as error:
            raise ImportError(f"PaddleClas does not import ({error}): install what it says is missing") from error
        for preset in presets():
            for namespace in namespaces:
                setattr(namespace, preset.name, architecture(preset))


def _homes() -> Sequence[str]:
    loaded = [home for home in _HOMES if f"{home}.arch" in sys.modules]
    there = [home for home in _HOMES if util.find_spec(home.partition(".")[0])]
    if not there:
        raise ImportError("PaddleClas is not there: run in a clone of it, or pip install paddleclas")
    return loaded or there[:1]


def architecture(preset: Preset) -> Callable[..., nn.Layer]:
    """A preset as a function with PaddleClas' arguments `pretrained`, `use_ssld` and `class_num`, and the network's."""

    def build(
        pretrained: bool | str | os.PathLike = False, use_ssld: bool = False, class_num: int = 1000, **config: Any
    ) -> nn.Layer:
        if use_ssld:
            raise ValueError(f"no SSLD weights are released for {preset.name}: leave use_ssld out")
        return create_model(preset.name, _with_suffix(pretrained), num_classes=class_num, **config)

    build.__name__ = build.__qualname__ = preset.name
    build.__doc__ = f"{preset.network.__name__}: {preset.note}."
    return build


def _with_suffix(pretrained: bool | str | os.PathLike) -> bool | str | os.PathLike:
    """PaddleClas writes the names of its files without their suffix."""
    if pretrained and pretrained is not True:
        whole = Path(f"{os.fspath(pretrained)}.pdparams")
        return whole if whole.exists() else pretrained
    return bool(pretrained)


register()
