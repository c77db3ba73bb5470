"""Which network a file of weights belongs to, read from the names and shapes of its tensors, never from its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from paddle import nn

from paddle_dense.errors import WeightsError
from paddle_dense.models.registry import Preset, build_network, config_keys, networks, preset, presets

# Arguments that differ between two uses of one preset.
_USE = ("num_classes", "in_channels", "condensed", "features_only")


@dataclass(frozen=True)
class Recognised:
    """What one network reads from a state_dict.

    Attributes:
        config: the constructor's arguments.
        guesses: the arguments of which the file holds no trace, filled in as the released checkpoints have them.
    """

    config: dict[str, Any]
    guesses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """A network and its numbers.

    Attributes:
        arch: name of the preset, or of the network's class where no preset has these numbers.
        network: class of the network.
        config: the constructor's arguments.
        warnings: guesses that the user should know of, one sentence each.
    """

    arch: str
    network: type[nn.Layer]
    config: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())

    def build(self) -> nn.Layer:
        """A new network with these numbers."""
        return build_network(self.arch, self.config)


def recognise(
    state: Mapping[str, np.ndarray], arch: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Architecture:
    """Find the network and its numbers from the tensors.

    Args:
        state: a state_dict in Paddle's layout (see `convert.mapping`).
        arch: the preset that it is said to be; it settles what the tensors do not show.
        overrides: arguments of the network that the caller knows better.

    Raises:
        WeightsError: no known network has such tensors, or `arch` has other numbers.
        ValueError: `arch` or a key of `overrides` is unknown.
    """
    overrides = dict(overrides or {})
    wanted = preset(arch) if arch else None
    network, found = _find(state)
    if wanted and wanted.network is not network:
        raise WeightsError(f"the tensors are those of a {network.__name__} and {arch} is a {wanted.network.__name__}")
    for key in overrides:
        if key not in config_keys(network):
            raise ValueError(
                f"{network.__name__} takes no argument {key!r}: it takes {', '.join(config_keys(network))}"
            )
    if wanted:
        for key, value in _differences(wanted, found):
            if key not in overrides:
                raise WeightsError(f"the tensors have {key}={found.config[key]} and {arch} has {key}={value}")
    entry = wanted or next((entry for entry in presets(network) if not _differences(entry, found)), None)
    if entry:
        numbers = {key: value for key, value in _full(entry.network, entry.config).items() if key not in _USE}
        config = {**found.config, **numbers, **overrides}
        return Architecture(entry.name, network, config)
    warnings = tuple(
        f"a {network.__name__} file does not show {key}: {key}={found.config[key]} is assumed, "
        f"and --config {key}=VALUE corrects it"
        for key in found.guesses
        if key not in overrides
    )
    return Architecture(network.__name__, network, {**found.config, **overrides}, warnings)


def _find(state: Mapping[str, np.ndarray]) -> tuple[type[nn.Layer], Recognised]:
    for network in networks():
        try:
            found = network.recognise(state)
        except KeyError as error:
            raise WeightsError(f"the file looks like a {network.__name__} but tensor {error} is missing") from None
        except WeightsError:
            raise
        except (ArithmeticError, IndexError, TypeError, ValueError):
            raise WeightsError(
                f"the file looks like a {network.__name__} but the shapes of its tensors do not fit together"
            ) from None
        if found:
            return network, found
    known = ", ".join(network.__name__ for network in networks())
    first = ", ".join(repr(name)[:80] for name in list(state)[:3])
    raise WeightsError(f"none of the known networks ({known}) has tensors named like these: {first}")


def _full(network: type[nn.Layer], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the constructor's defaults filled in."""
    parameters = list(inspect.signature(network.__init__).parameters.values())[1:]
    return {p.name: config.get(p.name, p.default) for p in parameters}


def _differences(entry: Preset, found: Recognised) -> list[tuple[str, Any]]:
    """The numbers of a preset that the file shows to be others."""
    numbers = _full(entry.network, entry.config)
    shown = (key for key in found.config if key not in _USE and key not in found.guesses)
    return [(key, numbers[key]) for key in shown if numbers[key] != found.config[key]]


def count_layers(state: Mapping[str, np.ndarray], template: str) -> list[int]:
    """Layers in each block, counted from the names.

    Args:
        state: a state_dict.
        template: a name with two places, block and layer, both counted from 1.
    """
    stages: list[int] = []
    while template.format(len(stages) + 1, 1) in state:
        layers = 1
        while template.format(len(stages) + 1, layers + 1) in state:
            layers += 1
        stages.append(layers)
    return stages
