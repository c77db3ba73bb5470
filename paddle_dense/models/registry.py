"""The named networks: how presets are declared, found and built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Callable, Literal, overload

from paddle import nn

from paddle_dense.data import Preprocessing
from paddle_dense.layers.room import check_room
from paddle_dense.models.arguments import check_arguments
from paddle_dense.writing import PathLike

_NETWORKS: dict[str, type[nn.Layer]] = {}
_PRESETS: dict[str, Preset] = {}


@dataclass(frozen=True)
class Preset:
    """A named network of a paper: calling it builds the network, as ppim's and timm's functions do.

    Attributes:
        name: the name that `create_model` takes.
        network: the class of the network.
        config: the constructor's arguments that make this preset.
        preprocessing: how the pictures were prepared that the published figure was measured on.
        note: the published figures, in one line.
    """

    name: str
    network: type[nn.Layer]
    config: dict[str, Any] = field(compare=False)
    preprocessing: Preprocessing
    note: str

    @overload
    def __call__(
        self, pretrained: bool | PathLike = False, return_transforms: Literal[False] = False, **config: Any
    ) -> nn.Layer: ...
    @overload
    def __call__(
        self, pretrained: bool | PathLike = False, *, return_transforms: Literal[True], **config: Any
    ) -> tuple[nn.Layer, Callable]: ...
    @overload
    def __call__(
        self, pretrained: bool | PathLike = False, return_transforms: bool = False, **config: Any
    ) -> nn.Layer | tuple[nn.Layer, Callable]: ...
    def __call__(
        self, pretrained: bool | PathLike = False, return_transforms: bool = False, **config: Any
    ) -> nn.Layer | tuple[nn.Layer, Callable]:
        """Build the network.

        Args:
            pretrained: False for fresh weights, True for the released ones (downloaded once), or a file's path.
            return_transforms: return (model, transforms), the transforms taking a PIL image to a [3, H, W] tensor.
            config: arguments of the network that replace the preset's (`num_classes`, `in_channels`, ...).

        Raises:
            ValueError: there is no such argument.
            WeightsError: the weights do not fit the network.
        """
        model = self._build(config)
        if pretrained:
            from paddle_dense.checkpoints import load_pretrained

            load_pretrained(model, self.name if pretrained is True else pretrained)
        return (model, self.preprocessing.transforms()) if return_transforms else model

    def _build(self, config: dict[str, Any]) -> nn.Layer:
        model = build_network(self.network.__name__, {**self.config, **_with_alias(config)})
        model.arch = self.name
        model.preprocessing = self.preprocessing
        model.input_size = self.preprocessing.input_size
        return model


def register_network(network: type[nn.Layer]) -> type[nn.Layer]:
    """Class decorator: `network` can be rebuilt from its `config`, which then holds every constructor argument.

    The arguments are checked beforehand (`check_arguments`), and that something is left of a picture afterwards. It
    also accepts `class_dim`, the name that ppim gives to `num_classes`.
    """
    init = network.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recording_init(self: nn.Layer, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **_with_alias(kwargs))
        bound.apply_defaults()
        # Lists are copied: a model's config is its own, whoever changes the preset's or the caller's.
        config: dict[str, Any] = {
            key: list(value) if isinstance(value, (list, tuple)) else value
            for key, value in list(bound.arguments.items())[1:]
        }
        check_arguments(init.__annotations__, config)
        init(self, **config)
        if self.feature_strides[-1] > self.input_size:
            raise ValueError(
                f"{network.__name__} would leave nothing of a picture of {self.input_size} pixels, one for every "
                f"{self.feature_strides[-1]}: take fewer blocks or smaller strides"
            )
        self.config = config
        self.arch = network.__name__
        check_room(config["in_channels"])
        self.preprocessing = Preprocessing.for_network(self.input_size, config["in_channels"])

    network.__init__ = recording_init  # type: ignore[method-assign]
    _NETWORKS[network.__name__] = network
    return network


def register_model(
    name: str, network: type[nn.Layer], note: str, preprocessing: Preprocessing, **config: Any
) -> Preset:
    """Declare a preset next to its network; returns the callable that builds it."""
    _PRESETS[name] = Preset(name, network, config, preprocessing, note)
    return _PRESETS[name]


def _with_alias(config: dict[str, Any]) -> dict[str, Any]:
    if "class_dim" not in config:
        return config
    if "num_classes" in config:
        raise ValueError("class_dim and num_classes are two names for one argument: give one of them")
    config = dict(config)
    return {"num_classes": config.pop("class_dim"), **config}


def config_keys(network: type[nn.Layer]) -> Sequence[str]:
    """Names of the arguments that a network's constructor takes."""
    return list(inspect.signature(network.__init__).parameters)[1:]


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(_PRESETS)}")
    return _PRESETS[name]


def presets(network: type[nn.Layer] | None = None) -> list[Preset]:
    """All presets, family by family, or those of one network."""
    return [entry for entry in _PRESETS.values() if network in (None, entry.network)]


def network_class(arch: str) -> type[nn.Layer]:
    """The class behind the name of a preset or of a network.

    Raises:
        ValueError: there is no such name; the message lists what there is.
    """
    if arch in _PRESETS:
        return _PRESETS[arch].network
    if arch not in _NETWORKS:
        raise ValueError(f"unknown network {arch!r}: choose one of {', '.join([*_PRESETS, *_NETWORKS])}")
    return _NETWORKS[arch]


def networks() -> list[type[Any]]:
    """The networks that presets are made of, one or more for each paper."""
    return list(_NETWORKS.values())


def build_network(arch: str, config: dict[str, Any]) -> nn.Layer:
    """Build a network from the name of its class, or of a preset, and a complete or partial config.

    Raises:
        ValueError: the name or an argument is unknown, or no network has such numbers.
    """
    network = network_class(arch)
    if arch in _PRESETS:
        return _PRESETS[arch]._build(config)
    unknown = set(config) - set(config_keys(network))
    if unknown:
        raise ValueError(f"{arch} takes no argument {sorted(unknown)[0]!r}: it takes {', '.join(config_keys(network))}")
    try:
        return network(**config)
    except (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, SystemError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ValueError(f"{arch} cannot be built with the arguments {config}: {reason[0]}") from error


def list_models(pattern: str = "*") -> list[str]:
    """Names of the presets that match a shell pattern, family by family.

    Args:
        pattern: for example ``"cdnv2*"``.
    """
    return [name for name in _PRESETS if fnmatchcase(name, pattern)]


@overload
def create_model(
    name: str, pretrained: bool | PathLike = False, return_transforms: Literal[False] = False, **config: Any
) -> nn.Layer: ...
@overload
def create_model(
    name: str, pretrained: bool | PathLike = False, *, return_transforms: Literal[True], **config: Any
) -> tuple[nn.Layer, Callable]: ...
@overload
def create_model(
    name: str, pretrained: bool | PathLike = False, return_transforms: bool = False, **config: Any
) -> nn.Layer | tuple[nn.Layer, Callable]: ...
def create_model(
    name: str, pretrained: bool | PathLike = False, return_transforms: bool = False, **config: Any
) -> nn.Layer | tuple[nn.Layer, Callable]:
    """Build a preset by name; see `Preset.__call__` for the arguments.

    Raises:
        ValueError: there is no such preset or argument; the message lists what there is.
    """
    build: Callable[..., Any] = preset(name)
    return build(pretrained, return_transforms, **config)
