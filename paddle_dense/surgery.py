"""Replace the layers of a network by rule: condensing, fusing and exporting are three tables of rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from paddle import nn

# Takes a layer, which it may take apart, and returns what stands in its place.
Rule = Callable[[Any], nn.Layer]
Rules = Mapping[type[nn.Layer], Rule]


def rewrite(layer: nn.Layer, rules: Rules) -> nn.Layer:
    """A layer with everything in it rewritten that a rule is for; a layer in two places stays one.

    Args:
        layer: it is changed, not copied.
        rules: by class; the rule of the nearest class applies. What a rule returns is looked through, too.
    """
    return _rewrite(layer, rules, {})


def _rewrite(layer: nn.Layer, rules: Rules, done: dict[nn.Layer, nn.Layer]) -> nn.Layer:
    if layer not in done:
        rule = next((rules[kind] for kind in type(layer).__mro__ if kind in rules), None)
        new = layer if rule is None else rule(layer)
        done[layer] = done[new] = new
        # Not `named_children`, which names a layer that stands in two places only once.
        for name, child in list(new._sub_layers.items()):
            if child is not None:
                setattr(new, name, _rewrite(child, rules, done))
    return done[layer]
