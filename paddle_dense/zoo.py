"""The presets by name, with fresh weights or released ones."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Callable

from paddle_dense.checkpoints import load_pretrained
from paddle_dense.files.atomic import PathLike
from paddle_dense.models import preset, presets
from paddle_dense.pretrained import download


def list_models(pattern: str = "*") -> list[str]:
    """Names of the presets that match a shell pattern, family by family.

    Args:
        pattern: for example ``"cdnv2*"``.
    """
    return [entry.name for entry in presets() if fnmatchcase(entry.name, pattern)]


def create_model(name: str, pretrained: bool | PathLike = False, return_transforms: bool = False, **config: Any) -> Any:
    """Build a preset by name; every preset is a function of this module and of the package too, as in ppim and timm.

    Args:
        name: one of `list_models`.
        pretrained: False for fresh weights, True for the released ones (downloaded once), or a file's path.
        return_transforms: return (model, transforms), the transforms taking a PIL image to a [3, H, W] tensor.
        config: arguments of the network that replace the preset's (`num_classes`, `in_channels`, ...).

    Returns:
        The `Network`, or a pair of it and the transforms.

    Raises:
        ValueError: there is no such preset or argument; the message lists what there is.
        WeightsError: the weights do not fit the network, or none are released.
    """
    model = preset(name).build(config)
    if pretrained:
        load_pretrained(model, _weights(name if pretrained is True else pretrained))
    return (model, model.preprocessing.transforms()) if return_transforms else model


def __getattr__(name: str) -> Callable[..., Any]:
    """Every preset as a function: ``cdnv2_a(num_classes=10)``."""
    if name.startswith("_") or name not in list_models():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(create_model, name)


def _weights(source: PathLike) -> PathLike:
    """The file itself, or that of a released checkpoint's name."""
    return source if Path(source).suffix or Path(source).exists() else download(str(source))
