"""Names and layouts: what a PyTorch state_dict is called and how it lies in Paddle.

The whole mapping, for every network of this project:

=========================== ===================== ==========================================
PyTorch                     Paddle                values
=========================== ===================== ==========================================
``*.running_mean``          ``*._mean``           as they are
``*.running_var``           ``*._variance``       as they are
``*.num_batches_tracked``   in the sidecar        see `convert.origin`
``*.weight``, 2-D (Linear)  ``*.weight``          transposed: [out, in] -> [in, out]
``*.conv*.weight``, 2-D     the same name         as they are: rows of experts, [E, numbers of a kernel]
anything else               the same name         as they are
=========================== ===================== ==========================================

`to_paddle` reads it from left to right and `to_torch` from right to left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

import numpy as np

from paddle_dense.files.names import COUNTER, STATISTICS, renamed


@dataclass(frozen=True)
class Formula:
    """How a tensor of Paddle is made of tensors of PyTorch.

    Attributes:
        text: the formula in words.
        make: PyTorch's arrays -> Paddle's.
    """

    text: str
    make: Callable[[Sequence[np.ndarray]], np.ndarray]


AS_IT_IS = Formula("as it is", lambda arrays: arrays[0])
TRANSPOSED = Formula("transposed", lambda arrays: arrays[0].T)

# Class of a Paddle layer -> for its tensors: their name, PyTorch's names, the formula. Of several lines for one tensor
# the first applies whose names the file has. A name that stands in no line is PyTorch's as well.
LAYOUTS: dict[str, tuple[tuple[str, tuple[str, ...], Formula], ...]] = {
    "Linear": (("weight", ("weight",), TRANSPOSED),),
    "_BatchNormBase": (("_mean", ("running_mean",), AS_IT_IS), ("_variance", ("running_var",), AS_IT_IS)),
}


def rows_of(classes: Iterable[type], tensors: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...], Formula]]:
    """The lines of the table for a layer: its class is the first of these that is Paddle's and has some.

    Args:
        classes: the layer's class and those that it is derived from, in Python's order of resolution.
        tensors: names of its tensors, from the layer on.
    """
    known = next(
        (LAYOUTS[c.__name__] for c in classes if c.__module__.startswith("paddle.") and c.__name__ in LAYOUTS), ()
    )
    return (row for row in known if row[0] in set(tensors))


def to_paddle(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A PyTorch state_dict under Paddle's names and in Paddle's layout; arrays are views where they can be.

    Raises:
        WeightsError: two names would become one.
    """
    kept = {name: value for name, value in state.items() if name.rpartition(".")[2] != COUNTER}
    return _transposed(renamed(kept, with_paddles_leaf))


def to_torch(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A Paddle state_dict under PyTorch's names and in PyTorch's layout; arrays are views where they can be.

    PyTorch's BN also counts its batches. Paddle keeps no such number, and only a BN without a momentum reads it, so it
    is 0.

    Raises:
        WeightsError: two names would become one.
    """
    names = {ours: theirs for theirs, ours in STATISTICS.items()}
    mapped: dict[str, np.ndarray] = {}
    for name, value in _transposed(renamed(state, lambda name: _with_leaf(name, names))).items():
        mapped[name] = value
        owner, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            mapped.setdefault(f"{owner}.{COUNTER}", np.zeros((), np.int64))
    return mapped


def with_paddles_leaf(name: str) -> str:
    """A tensor's name as Paddle's layers call it."""
    return _with_leaf(name, STATISTICS)


def _with_leaf(name: str, leaves: Mapping[str, str]) -> str:
    """The name with its last part as `leaves` gives it."""
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.{leaves[leaf]}" if leaf in leaves else name


def _transposed(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.T if is_linear(name, value) else value for name, value in state.items()}


def is_linear(name: str, value: np.ndarray) -> bool:
    """Whether this is the weight of a linear layer, the one kind of tensor that lies transposed in Paddle."""
    owner, _, leaf = name.rpartition(".")
    return value.ndim == 2 and leaf == "weight" and not owner.rpartition(".")[2].startswith("conv")
