"""From the trained form to the condensed form, exactly: `condense_state` for a state_dict, `condense` for a model.

The trained form multiplies a dense weight by a 0/1 mask; the condensed form holds only what the mask left, as a grouped
convolution and an index. The formulas are with the layers: `paddle_dense.layers.lgc`, `paddle_dense.layers.sfr`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Callable

import numpy as np
from paddle import nn

from paddle_dense.layers import LGC, CondenseLGC, CondenseSFR
from paddle_dense.layers.choices import Arrays, learned_layers
from paddle_dense.layers.learned import LearnedConnections
from paddle_dense.layers.lgc import condense_lgc
from paddle_dense.layers.sfr import condense_sfr
from paddle_dense.models.network import Network, name_parameters
from paddle_dense.models.recognise import Architecture
from paddle_dense.surgery import rewrite


def condense_state(
    state: Mapping[str, np.ndarray], rule: Callable[[str], tuple[Callable[..., Arrays], int, int]]
) -> Arrays:
    """Condense every learned layer of a state_dict; other entries are passed on as they are.

    Args:
        state: a state_dict in the trained form.
        rule: from a layer's name to (`condense_lgc` or `condense_sfr`, groups, condensation factor).

    Raises:
        WeightsError: a layer is not condensed far enough, or its mask does not fit.
    """
    layers: dict[str, Arrays] = {name: {} for name in learned_layers(state)}
    condensed: Arrays = {}
    for key, value in state.items():
        parents = accumulate(key.split("."), "{}.{}".format)
        owner = next((parent for parent in parents if parent in layers), None)
        if owner is None:
            condensed[key] = value
        else:
            layers[owner][key[len(owner) + 1 :]] = value
    for name, layer in layers.items():
        condense_layer, groups, condense_factor = rule(name)
        arrays = condense_layer(layer, groups, condense_factor, name)
        condensed.update({f"{name}.{key}": value for key, value in arrays.items()})
    return condensed


def condensed_form(source: Mapping[str, np.ndarray], found: Architecture) -> tuple[Arrays, Architecture]:
    """State and network of a checkpoint in the trained form, condensed.

    Raises:
        WeightsError: it is not condensed far enough.
    """
    state = condense_state(source, lambda layer: found.network.condensing(layer, found.config))
    return state, replace(found, config={**found.config, "condensed": True})


def condense(model: nn.Layer) -> nn.Layer:
    """A copy of a trained model in which every LGC and SFR is a CondenseLGC or CondenseSFR; outputs are the same.

    Args:
        model: any Paddle network with `LGC` or `SFR` layers; it stays as it is.

    Raises:
        WeightsError: a layer is not condensed yet; its name and density are given.
        ValueError: the model holds no learned layer.
    """
    model = copy.deepcopy(model)
    names = {layer: name for name, layer in model.named_sublayers(include_self=True)}
    if not any(isinstance(layer, LearnedConnections) for layer in names):
        raise ValueError(f"this {type(model).__name__} has no LGC or SFR layer: it is condensed already")
    condensed = rewrite(model, {LearnedConnections: partial(_condensed, names)})
    if hasattr(condensed, "config"):
        # The classifier of a CondenseNet stays whole: halving it would change the outputs.
        now = {"condensed": True, "condense_classifier": False}
        condensed.config = {key: now.get(key, value) for key, value in condensed.config.items()}
    if isinstance(condensed, Network):
        name_parameters(condensed)
    return condensed


def _condensed(names: Mapping[nn.Layer, str], layer: LearnedConnections) -> nn.Layer:
    arrays = {key: value.numpy() for key, value in layer.state_dict().items()}
    how = (layer.groups, layer.condense_factor, names[layer] or type(layer).__name__)
    new: nn.Layer
    if isinstance(layer, LGC):
        arrays = condense_lgc(arrays, *how)
        gathered = arrays["index"].size
        new = CondenseLGC(gathered, layer.out_channels, layer.groups, layer.activation_name, layer.in_channels)
    else:
        arrays = condense_sfr(arrays, *how)
        rows = len(arrays["index"])
        new = CondenseSFR(layer.in_channels, layer.out_channels, layer.groups, layer.activation_name, rows)
    new.set_state_dict(arrays)  # type: ignore[arg-type]  # it takes arrays as well
    new.train() if layer.training else new.eval()
    return new
