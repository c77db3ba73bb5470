"""Which network a file of weights belongs to, read from the names and shapes of its tensors, never from its name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from typing import Any

import numpy as np
from paddle import LazyGuard, nn

from paddle_dense.errors import WeightsError
from paddle_dense.files.names import renamed
from paddle_dense.layers.budget import Room, within
from paddle_dense.layers.choices import binary_mask, learned_layers
from paddle_dense.models.fitting import check_state, set_state
from paddle_dense.models.network import (
    Network,
    Preset,
    build_network,
    config_keys,
    name_parameters,
    networks,
    preset,
    presets,
)

# Arguments that differ between two uses of one preset.
_USE = ("num_classes", "in_channels", "condensed", "condense_classifier", "features_only")


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
        room: how large the network can be, for the file that the numbers come with or from.
    """

    arch: str
    network: type[Any]
    config: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())
    room: Room | None = None

    def build(self) -> Network:
        """A new network with these numbers; ValueError if there can be none."""
        return build_network(self.arch, self.config)

    def outline(self) -> Network:
        """The same without memory for its parameters: enough to compare shapes before `materialise` makes it a network.

        Raises:
            ValueError: there can be none with these numbers, or not with the tensors that the file has.
        """
        with LazyGuard(), within(self.room):
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
    state: Mapping[str, np.ndarray], arch: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Architecture:
    """Find the network and its numbers from the tensors.

    Args:
        state: a state_dict in Paddle's layout (see `paddle_dense.files.layout`).
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
    matching = [wanted] if wanted else [entry for entry in presets(network) if not _differences(entry, found)]
    if matching:
        entry = matching[0]
        numbers = {key: value for key, value in full_config(network, entry.config).items() if key not in _USE}
        others = " or ".join(f"--arch {other.name}" for other in matching[1:])
        said = [] if wanted else _settled(entry, numbers, found.guesses, overrides)
        if others:
            said.append(f"the tensors fit other networks as well: {entry.name} is assumed, and {others} corrects it")
        config = {**found.config, **numbers, **overrides}
        return Architecture(entry.name, network, config, tuple(said), Room.of(state))
    warnings = tuple(
        f"a {network.__name__} file does not show {key}: {key}={found.config[key]} is assumed, "
        f"and --config {key}=VALUE (in Python: {key}=VALUE) corrects it"
        for key in found.guesses
        if key not in overrides
    )
    return Architecture(network.__name__, network, {**found.config, **overrides}, warnings, Room.of(state))


def _settled(
    entry: Preset, numbers: Mapping[str, Any], guesses: Sequence[str], overrides: Mapping[str, Any]
) -> list[str]:
    """What no tensor shows and the preset was believed in, in one sentence; none where nothing is left to believe."""
    settled = [f"{key}={numbers[key]}" for key in guesses if key not in overrides]
    if not settled:
        return []
    return [
        f"a {entry.network.__name__} file does not show {', '.join(settled)}, which {entry.name} has: "
        f"--config KEY=VALUE (in Python: KEY=VALUE) corrects it, and --arch {entry.name} says that it is so"
    ]


def _find(state: Mapping[str, np.ndarray]) -> tuple[type[Network], Recognised]:
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


def full_config(network: type[nn.Layer], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the constructor's defaults filled in."""
    parameters = list(inspect.signature(network.__init__).parameters.values())[1:]
    return {p.name: config.get(p.name, p.default) for p in parameters}


def _differences(entry: Preset, found: Recognised) -> list[tuple[str, Any]]:
    """The numbers of a preset that the file shows to be others."""
    numbers = full_config(entry.network, entry.config)
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


def count_classes(state: Mapping[str, np.ndarray], classifier: str) -> int:
    """Classes that a network's last layer tells apart; 0 where the state has no such layer.

    Raises:
        KeyError: the layer has no bias.
        ValueError: the bias is empty.
    """
    if not any(name.startswith(f"{classifier}.") for name in state):
        return 0
    names = (f"{classifier}.linear.bias", f"{classifier}.bias")
    classes = state[names[0] if names[0] in state else names[1]].size
    if not classes:
        raise ValueError("a classifier without classes")
    return classes


def condensed_groups(state: Mapping[str, np.ndarray], layer: str, inputs: int) -> tuple[int, int | None]:
    """Groups and factor (None where it is the number of groups) of one condensed LGC, from its shapes.

    Args:
        state: a state_dict.
        layer: name of the layer.
        inputs: channels that the layer chooses from.
    """
    per_group = state[f"{layer}.conv.weight"].shape[1]
    groups = state[f"{layer}.index"].size // per_group
    return groups, unless_same(inputs // per_group, groups)


def trained_groups(
    state: Mapping[str, np.ndarray], kind: str, axis: int, groups_3x3: int
) -> tuple[int, int | None, tuple[bool, bool]]:
    """Groups and factor of the learned layers, from what their masks repeat and how much of them is left.

    Masks that are still all ones hide the groups: those of the 3x3 convolution are taken. A mask that is not finished
    hides the factor: the groups are taken.

    Args:
        state: a state_dict in the trained form.
        kind: the last part of the layers' names.
        axis: of the mask, along which the groups alternate: 0 (outputs) for LGC, 1 (inputs) for SFR.
        groups_3x3: groups of the 3x3 convolution.

    Returns:
        Groups, factor (None where it is the number of groups), and whether each of them was hidden.
    """
    layers = [name for name in learned_layers(state) if name.endswith(f".{kind}")]
    masks = [np.moveaxis(binary_mask(state[f"{name}._mask"], name), axis, 0) for name in layers]
    period = lcm(*map(_period, masks))
    groups = groups_3x3 if period == 1 else period
    finished = _finished_factor(masks[0], state[f"{layers[0]}._stage"])
    return groups, unless_same(finished, groups), (period == 1, finished is None)


def unless_same(factor: int | None, groups: int) -> int | None:
    """The condensation factor as constructors take it: None where it is the number of groups."""
    return None if factor == groups else factor


def _period(mask: np.ndarray) -> int:
    """The smallest divisor g of the number of rows such that row r equals row ``r mod g`` everywhere."""
    rows = len(mask)
    divisors = (g for g in range(1, rows + 1) if rows % g == 0)
    return next(g for g in divisors if np.all(mask.reshape(-1, g, mask.shape[1]) == mask[:g]))


def _finished_factor(mask: np.ndarray, stage: np.ndarray) -> int | None:
    """The condensation factor C, if C - 1 stages are done and exactly 1/C of the mask is left."""
    factor = mask.size // max(int(mask.sum()), 1)
    finished = factor > 1 and mask.sum() * factor == mask.size and round(float(stage.reshape(-1)[0])) == factor - 1
    return factor if finished else None


def rename(state: Mapping[str, np.ndarray], rules: Sequence[tuple[re.Pattern, str]]) -> dict[str, np.ndarray]:
    """The state under other names: each rule, in turn, replaces its pattern in every name.

    Raises:
        WeightsError: two names would become one.
    """

    def rule(name: str) -> str:
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        return name

    return renamed(state, rule)


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names that this package's networks use, for a state_dict of any source that one of them knows.

    Raises:
        WeightsError: the state has one tensor under two names.
    """
    for network in networks():
        if hasattr(network, "canonical"):
            state = network.canonical(state)
    return dict(state)
