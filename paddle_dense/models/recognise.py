"""Which network a file of weights belongs to, read from the names and shapes of its tensors, never from its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from paddle import LazyGuard, nn

from paddle_dense.errors import WeightsError
from paddle_dense.layers.budget import Budget, within
from paddle_dense.models.fitting import check_state, set_state
from paddle_dense.models.matching import Match, match
from paddle_dense.models.network import (
    Network,
    Preset,
    Recognised,
    build_network,
    config_keys,
    name_parameters,
    preset,
    presets,
)

# Arguments that differ between two uses of one preset.
_USE = ("num_classes", "in_channels", "condensed", "condense_classifier", "features_only")


@dataclass(frozen=True)
class Architecture:
    """A network and its numbers.

    Attributes:
        arch: name of the preset, or of the network's class where no preset has these numbers.
        network: class of the network.
        config: the constructor's arguments.
        warnings: guesses that the user should know of, one sentence each.
        budget: how large the network can be, for the file that the numbers come with or from.
    """

    arch: str
    network: type[Any]
    config: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())
    budget: Budget | None = None

    def build(self) -> Network:
        """A new network with these numbers; ValueError if there can be none."""
        return build_network(self.arch, self.config)

    def outline(self) -> Network:
        """The same without memory for its parameters: enough to compare shapes before `materialise` makes it a network.

        Raises:
            ValueError: there can be none with these numbers, or not with the tensors that the file has.
        """
        with LazyGuard(), within(self.budget):
            return self.build()

    def fit(self, state: Mapping[str, np.ndarray], allow_nonfinite: bool = False) -> Network:
        """The network with a file's tensors in it.

        Args:
            state: under this package's names, in Paddle's layout.
            allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.

        Raises:
            ValueError: there can be none with these numbers.
            WeightsError: the tensors do not fit, or are no numbers that a network has.
        """
        outline = self.outline()
        state = check_state(state, outline, allow_nonfinite=allow_nonfinite)
        model = materialise(outline)
        set_state(model, state)
        return model


def materialise(outline: Network) -> Network:
    """An outline made the network that building would have given, in a third of the time that building it takes."""
    for parameter in outline.parameters():
        parameter.initialize()
    return name_parameters(outline)


def recognise(
    state: Mapping[str, np.ndarray],
    arch: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    stated: Mapping[str, Any] | None = None,
) -> Architecture:
    """Find the network and its numbers from the tensors; see `settle`.

    Args:
        state: a state_dict in Paddle's layout (see `paddle_dense.files.layout`).
        arch, overrides, stated: see `settle`.

    Raises:
        WeightsError: no known network has such tensors, or `arch` has other numbers.
        ValueError: `arch` or a key of `overrides` is unknown.
    """
    return settle(match(state), arch, overrides, stated)


def settle(
    matched: Match,
    arch: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    stated: Mapping[str, Any] | None = None,
) -> Architecture:
    """The numbers of a network that has been found: what its tensors show, and for the rest a preset's.

    Args:
        matched: the network and its tensors.
        arch: the preset that it is said to be; it settles what the tensors do not show.
        overrides: arguments of the network that the caller knows better.
        stated: arguments that the file states next to its tensors: what it confirms needs no warning.

    Raises:
        WeightsError: `arch` has other numbers.
        ValueError: `arch` or a key of `overrides` is unknown.
    """
    overrides, stated = dict(overrides or {}), dict(stated or {})
    wanted = preset(arch) if arch else None
    network, found, budget = matched.network, matched.found, Budget.of(matched.state)
    if wanted and wanted.network is not network:
        raise WeightsError(f"the tensors are those of a {network.__name__} and {arch} is a {wanted.network.__name__}")
    for key in overrides:
        if key not in config_keys(network):
            raise ValueError(
                f"{network.__name__} takes no argument {key!r}: it takes {', '.join(config_keys(network))}"
            )
    if wanted:
        for key, value in differences(wanted, found):
            if key not in overrides:
                raise WeightsError(f"the tensors have {key}={found.config[key]} and {arch} has {key}={value}")
    matching = [wanted] if wanted else [entry for entry in presets(network) if not differences(entry, found)]
    if matching:
        entry = matching[0]
        numbers = {key: value for key, value in full_config(network, entry.config).items() if key not in _USE}
        others = " or ".join(f"--arch {other.name}" for other in matching[1:] if not _contradicts(stated, other))
        said = [] if wanted else _settled(entry, _unconfirmed(found.guesses, overrides, stated, numbers))
        if others:
            said.append(f"the tensors fit other networks as well: {entry.name} is assumed; use {others} to change it")
        config = {**found.config, **numbers, **overrides}
        return Architecture(entry.name, network, config, tuple(said), budget)
    warnings = tuple(
        f"a {network.__name__} file does not reveal {key}: {key}={found.config[key]} is assumed; "
        f"use --config {key}=VALUE (in Python: {key}=VALUE) to change it"
        for key in _unconfirmed(found.guesses, overrides, stated, found.config)
    )
    return Architecture(network.__name__, network, {**found.config, **overrides}, warnings, budget)


def _unconfirmed(
    guesses: Sequence[str], overrides: Mapping[str, Any], stated: Mapping[str, Any], numbers: Mapping[str, Any]
) -> dict[str, Any]:
    """The guesses, with their values, that neither the caller gives nor the file states."""
    confirmed = {key for key in stated if stated[key] == numbers.get(key)}
    return {key: numbers[key] for key in guesses if key not in overrides and key not in confirmed}


def _contradicts(stated: Mapping[str, Any], entry: Preset) -> bool:
    """Whether a file states other arguments than a preset has."""
    numbers = full_config(entry.network, entry.config)
    return any(key in numbers and numbers[key] != value for key, value in stated.items())


def _settled(entry: Preset, believed: Mapping[str, Any]) -> list[str]:
    """What no tensor shows and the preset was believed in, in one sentence; none where nothing is left to believe."""
    settled = [f"{key}={value}" for key, value in believed.items()]
    if not settled:
        return []
    return [
        f"a {entry.network.__name__} file does not reveal {', '.join(settled)}, which {entry.name} has: "
        f"use --config KEY=VALUE (in Python: KEY=VALUE) to change it, or --arch {entry.name} to confirm it"
    ]


def full_config(network: type[nn.Layer], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the constructor's defaults filled in."""
    parameters = list(inspect.signature(network.__init__).parameters.values())[1:]
    return {p.name: config.get(p.name, p.default) for p in parameters}


def differences(entry: Preset, found: Recognised) -> list[tuple[str, Any]]:
    """The numbers of a preset that the file shows to be others."""
    numbers = full_config(entry.network, entry.config)
    shown = (key for key in found.config if key not in _USE and key not in found.guesses)
    return [(key, numbers[key]) for key in shown if numbers[key] != found.config[key]]
