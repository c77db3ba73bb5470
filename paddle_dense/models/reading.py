"""What names and shapes of tensors show of a network's arguments: layers, classes, groups, condensation factors."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm

import numpy as np

from paddle_dense.layers.choices import binary_mask, learned_layers


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
