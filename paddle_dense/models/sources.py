"""What each tensor of a Paddle network is made of: PyTorch's names and layouts, by the layer that owns the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from paddle import nn

from paddle_dense.files.layout import AS_IT_IS, Formula, rows_of


class Source(NamedTuple):
    """PyTorch's tensors that one tensor of Paddle is made of, and how.

    Attributes:
        names: of PyTorch's tensors, in the order in which the formula takes them.
        formula: makes Paddle's tensor of them.
    """

    names: tuple[str, ...]
    formula: Formula


def sources(network: nn.Layer) -> dict[str, tuple[Source, ...]]:
    """For each tensor of the network, what it may be made of where layers have the same names; the likeliest first.

    A layer that is made of others, as attention is, may have a source for their tensors; it comes before their own. A
    tensor of a layer without a row, such as a parameter of the user's, is PyTorch's tensor of the same name.
    """
    found: dict[str, list[Source]] = {name: [] for name in network.state_dict()}
    for path, layer in network.named_sublayers(include_self=True):
        prefix = f"{path}." if path else ""
        own = {name[len(prefix) :]: name for name in found if name.startswith(prefix)}
        for leaf, theirs, formula in rows_of(type(layer).__mro__, own):
            found[own[leaf]].append(Source(tuple(prefix + name for name in theirs), formula))
    return {name: tuple(some) or (Source((name,), AS_IT_IS),) for name, some in found.items()}


def made_of(tensors: Mapping[str, np.ndarray], chosen: Mapping[str, Source]) -> dict[str, np.ndarray]:
    """Paddle's tensors, each from its source."""
    return {name: source.formula.make([tensors[theirs] for theirs in source.names]) for name, source in chosen.items()}
