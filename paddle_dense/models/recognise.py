"""Which network a file of weights belongs to, read from the names and shapes of its tensors, never from its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from paddle import LazyGuard, nn

from paddle_dense.errors import WeightsError, did_you_mean
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

# Arguments that differ between two uses of one preset: no file is wrong about them.
_USE = ("num_classes", "in_channels", "condensed", "condense_classifier", "features_only")


@dataclass(frozen=True)
class Stated:
    """What a file states of its network next to the tensors.

    Attributes:
        arguments: the constructor's, by name.
        preset: the one that the file says it is.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    preset: Preset | None = None

    def contradicted(self, found: Recognised, network: type[Network], overrides: Mapping[str, Any]) -> list[str]:
        """What the tensors show to be otherwise, in one sentence; none where the caller says the same."""
        differing = {
            key: value
            for key, value in self.arguments.items()
            if key in found.config
            and key not in (*found.guesses, *overrides, *_USE)
            and found.config[key] is not None
            and found.config[key] != value
        }
        said = [f"{key}={value}, where the tensors have {key}={found.config[key]}" for key, value in differing.items()]
        if self.preset and self.preset.network is not network:
            said.append(f"arch={self.preset.name}, where the tensors are those of a {network.__name__}")
        elif self.preset:
            said += [
                f"arch={self.preset.name}, which has {key}={value} where the tensors have {key}={found.config[key]}"
                for key, value in differences(self.preset, found)[:1]
            ]
        return [f"the file states {', and '.join(said)}: the tensors decide"] if said else []

    def overridden(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The caller's arguments of which the file states others."""
        stated = {key: self.arguments[key] for key in overrides if key in self.arguments and key not in _USE}
        return {key: overrides[key] for key, value in stated.items() if value != overrides[key]}


NOTHING_STATED = Stated()


@dataclass(frozen=True)
class Architecture:
    """A network and its numbers.

    Attributes:
        arch: name of the preset, or of the network's class where no preset has these numbers.
        network: class of the network.
        config: the constructor's arguments.
        assumed: those of the arguments that neither the tensors show nor anybody states.
        warnings: what the user should know of the arguments, one sentence each.
        budget: how large the network can be, for the file that the numbers come with or from.
    """

    arch: str
    network: type[Any]
    config: dict[str, Any]
    assumed: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
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
    stated: Stated = NOTHING_STATED,
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
    stated: Stated = NOTHING_STATED,
) -> Architecture:
    """The numbers of a network that has been found: what its tensors show, and for the rest what is stated.

    Of what the tensors do not show, the caller's word holds before the file's, and that before a preset's.

    Args:
        matched: the network and its tensors.
        arch: the preset that it is said to be; it settles what the tensors do not show.
        overrides: arguments of the network that the caller knows better.
        stated: what the file states next to its tensors.

    Raises:
        WeightsError: `arch` has other numbers.
        ValueError: `arch` or a key of `overrides` is unknown.
    """
    overrides = dict(overrides or {})
    wanted = preset(arch) if arch else None
    network, found, budget = matched.network, matched.found, Budget.of(matched.state)
    if wanted and wanted.network is not network:
        raise WeightsError(f"the tensors are those of a {network.__name__} and {arch} is a {wanted.network.__name__}")
    for key in overrides:
        if key not in config_keys(network):
            raise ValueError(
                f"{network.__name__} takes no argument {key!r}{did_you_mean(key, config_keys(network))}: it takes "
                f"{', '.join(config_keys(network))}"
            )
    if wanted:
        for key, value in differences(wanted, found):
            if key not in overrides:
                raise WeightsError(f"the tensors have {key}={found.config[key]} and {arch} has {key}={value}")
    fitting = [entry for entry in presets(network) if not differences(entry, found)]
    named = stated.preset if stated.preset in fitting else None
    believed = {key: value for key, value in stated.arguments.items() if key in found.guesses}
    possible = [entry for entry in fitting if not _contradicts(believed, entry)]
    entry = wanted or named or next(iter(possible), None)
    numbers = _numbers(entry) if entry else found.config
    certain = set(found.guesses) if wanted or named else {*overrides, *believed}
    assumed = {key: numbers[key] for key in found.guesses if key not in certain}
    warnings = [] if wanted else stated.contradicted(found, network, overrides)
    warnings += _said_of(entry, network, assumed)
    for key, value in stated.overridden(overrides).items():
        assumed[key] = value
        warnings.append(f"{key}={value} is used as given, where the file states {key}={stated.arguments[key]}")
    if entry and not (wanted or named) and len(possible) > 1:
        others = possible[1:]
        options = " or ".join(f"--arch {other.name}" for other in others)
        warnings.append(f"the tensors fit other networks as well: {entry.name} is assumed; use {options} to change it")
        assumed["arch"] = entry.name
    config = {**found.config, **numbers, **({} if wanted else believed), **overrides}
    return Architecture(entry.name if entry else network.__name__, network, config, assumed, tuple(warnings), budget)


def _numbers(entry: Preset) -> dict[str, Any]:
    """What a preset says of its network, without what differs between two uses of it."""
    return {key: value for key, value in full_config(entry.network, entry.config).items() if key not in _USE}


def _contradicts(believed: Mapping[str, Any], entry: Preset) -> bool:
    """Whether a file states other arguments than a preset has."""
    numbers = _numbers(entry)
    return any(key in numbers and numbers[key] != value for key, value in believed.items())


def _said_of(entry: Preset | None, network: type[Network], assumed: Mapping[str, Any]) -> list[str]:
    """What no tensor shows and nobody states: one sentence for a preset, or else one for each argument."""
    settled = [f"{key}={value}" for key, value in assumed.items()]
    if entry and settled:
        return [
            f"a {network.__name__} file does not reveal {', '.join(settled)}, which {entry.name} has: "
            f"use --config KEY=VALUE (in Python: KEY=VALUE) to change it, or --arch {entry.name} to confirm it"
        ]
    return [
        f"a {network.__name__} file does not reveal {key}: {key}={value} is assumed; "
        f"use --config {key}=VALUE (in Python: {key}=VALUE) to change it"
        for key, value in assumed.items()
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
