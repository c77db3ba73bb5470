"""Entry points of ``paddle.hub``: every preset under its name.

::

    paddle.hub.list("path/to/clone", source="local")
    paddle.hub.help("path/to/clone", "cdnv2_a", source="local")
    paddle.hub.load("path/to/clone", "cdnv2_a", source="local", pretrained=True)
"""

from typing import Any as _Any
from typing import Callable as _Callable

from paddle_dense.models.network import Preset as _Preset
from paddle_dense.models.network import presets as _presets
from paddle_dense.zoo import create_model as _create_model

dependencies = ["paddle", "numpy"]


def _entry_point(preset: _Preset) -> _Callable:
    """A preset as a function: paddle.hub shows the docstring of what it finds here."""

    def build(pretrained: bool = False, return_transforms: bool = False, **config: _Any) -> _Any:
        return _create_model(preset.name, pretrained, return_transforms, **config)

    config = ", ".join(f"{key}={value!r}" for key, value in preset.config.items())
    build.__name__ = build.__qualname__ = preset.name
    build.__doc__ = f"""{preset.note}.

    {preset.network.__name__}({config})

    Args:
        pretrained: False for fresh weights, True for the released ones (downloaded once by pooch), or the path of
            a file of either framework.
        return_transforms: return (model, transforms), the transforms taking a PIL image to a [3, H, W] tensor.
        config: arguments of the network that replace the preset's: num_classes, in_channels, features_only, ...
    """
    return build


globals().update({_preset.name: _entry_point(_preset) for _preset in _presets()})
