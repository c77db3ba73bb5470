"""The presets by name, with fresh weights or released ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Callable

from paddle_dense.checkpoints import load_pretrained
from paddle_dense.files.atomic import PathLike
from paddle_dense.models import preset, presets
from paddle_dense.released import full_name, is_released, released, released_names


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names of the presets that match a shell pattern, family by family.

    Args:
        pattern: for example ``"cdnv2*"``.
        pretrained: those that weights can be downloaded for instead, once for each set, with its tag:
            ``"densenet121.tv_in1k"``; the first of a preset is what `pretrained=True` takes.
    """
    names = [entry.name for entry in presets()]
    if pretrained:
        names = [full for name in names for full in released_names(name)]
    return [name for name in names if fnmatchcase(name, pattern)]


def create_model(
    name: str,
    pretrained: bool | PathLike = False,
    return_transforms: bool = False,
    out_indices: Sequence[int] | None = None,
    **config: Any,
) -> Any:
    """Build a preset by name; every preset is a function of this module and of the package too, as in ppim and timm.

    Args:
        name: one of `list_models`, or of ``list_models(pretrained=True)`` to choose among several sets of weights.
        pretrained: False for fresh weights, True for the released ones (downloaded once and converted without
            PyTorch), the path of a file of either framework, or the name of a released set.
        return_transforms: return (model, transforms), the transforms taking a PIL image to a [3, H, W] tensor.
        out_indices: with ``features_only=True``, the levels of the pyramid to return, by number.
        config: arguments of the network that replace the preset's (`num_classes`, `in_channels`, ...).

    Returns:
        The `Network`, or a pair of it and the transforms.

    Raises:
        ValueError: there is no such preset or argument; the message lists what there is.
        WeightsError: the weights do not fit the network, or none are released.
    """
    base, _, tag = name.partition(".")
    model = preset(base).build(config)
    if out_indices is not None:
        model.choose_levels(out_indices)
    if tag:
        full_name(name)  # which has to be one
    if pretrained is True or (pretrained and is_released(pretrained)):
        found = released(name if pretrained is True else os.fspath(pretrained))
        load_pretrained(model, found.file)
        model.tag = found.entry["tag"]
        if model.config["in_channels"] == len(found.preprocessing.mean):
            model.preprocessing, model.input_size = found.preprocessing, found.preprocessing.input_size
    elif pretrained:
        load_pretrained(model, pretrained)
    return (model, model.preprocessing.transforms()) if return_transforms else model


def __getattr__(name: str) -> Callable[..., Any]:
    """Every preset as a function: ``cdnv2_a(num_classes=10)``."""
    if name.startswith("_") or name not in list_models():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(create_model, name)
