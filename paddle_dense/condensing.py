"""From the trained form to the condensed form, exactly: `condense_state` for a state_dict, `condense` for a model.

The trained form multiplies a dense weight by a 0/1 mask; the condensed form holds only what the mask left, as a grouped
convolution and an index. The formulas stand beside the layers: `paddle_dense.layers.lgc`, `paddle_dense.layers.sfr`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Callable

import numpy as np
from paddle import nn

from paddle_dense.layers import LGC, SFR, CondenseLGC, CondenseSFR
from paddle_dense.layers.choices import Arrays, learned_layers
from paddle_dense.layers.learned import LearnedConnections
from paddle_dense.layers.lgc import condense_lgc
from paddle_dense.layers.sfr import condense_sfr
from paddle_dense.models.network import Network, name_parameters
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
        owner = next((key[:end] for end in _dots(key) if key[:end] in layers), None)
        if owner is None:
            condensed[key] = value
        else:
            layers[owner][key[len(owner) + 1 :]] = value
    for name, layer in layers.items():
        condense_layer, groups, condense_factor = rule(name)
        arrays = condense_layer(layer, groups, condense_factor, name)
        condensed.update({f"{name}.{key}": value for key, value in arrays.items()})
    return condensed


def _dots(key: str) -> list[int]:
    return [position for position, character in enumerate(key) if character == "."]


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
    condensed = rewrite(model, {LGC: partial(_condensed_lgc, names), SFR: partial(_condensed_sfr, names)})
    if hasattr(condensed, "config"):
        # The classifier of a CondenseNet stays whole: halving it would change the outputs.
        now = {"condensed": True, "condense_classifier": False}
        condensed.config = {key: now.get(key, value) for key, value in condensed.config.items()}
    if isinstance(condensed, Network):
        name_parameters(condensed)
    return condensed


def _condensed_lgc(names: Mapping[nn.Layer, str], layer: LGC) -> nn.Layer:
    arrays = condense_lgc(_arrays(layer), layer.groups, layer.condense_factor, names[layer] or "LGC")
    return _filled(
        CondenseLGC(
            arrays["index"].size,
            layer.out_channels,
            groups=layer.groups,
            activation=layer.activation_name,
            source_channels=layer.in_channels,
        ),
        arrays,
        layer,
    )


def _condensed_sfr(names: Mapping[nn.Layer, str], layer: SFR) -> nn.Layer:
    arrays = condense_sfr(_arrays(layer), layer.groups, layer.condense_factor, names[layer] or "SFR")
    return _filled(
        CondenseSFR(
            layer.in_channels,
            layer.out_channels,
            groups=layer.groups,
            activation=layer.activation_name,
            rows=len(arrays["index"]),
        ),
        arrays,
        layer,
    )


def _arrays(layer: nn.Layer) -> Arrays:
    return {key: value.numpy() for key, value in layer.state_dict().items()}


def _filled(new: nn.Layer, arrays: Arrays, old: nn.Layer) -> nn.Layer:
    new.set_state_dict(arrays)  # type: ignore[arg-type]  # it takes arrays as well
    new.train() if old.training else new.eval()
    return new
