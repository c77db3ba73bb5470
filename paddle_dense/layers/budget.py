"""The budget that a weight file gives a network: what stands next to the tensors must not make anything large.

Within a `Budget`, building ends as soon as there are many more layers than the file has tensors, or buffers with many
more elements. What was built is compared with the file afterwards, tensor by tensor; these bounds see to it that there
is an afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod

import numpy as np
from paddle.utils import unique_name

_NAMES = 8  # that Paddle may give to layers and parameters, for each tensor of the file: it needs three
_ELEMENTS = 16  # of buffers, for each of the file: a condensed network has more than the trained one
_SPARE = 1000


@dataclass(frozen=True)
class Budget:
    """How large a network may be.

    Attributes:
        tensors: how many the file has.
        elements: how many these have together.
    """

    tensors: int
    elements: int

    @classmethod
    def of(cls, state: Mapping[str, np.ndarray]) -> Budget:
        """The budget that a file's tensors give."""
        return cls(len(state), sum(array.size for array in state.values()))


class _Allowance:
    def __init__(self, left: int, things: str) -> None:
        self.left, self.things = left, things

    def spend(self, count: int) -> None:
        self.left -= max(count, 0)
        if self.left < 0:
            raise ValueError(f"it would have far more {self.things} than the file has tensors for")


_buffers: ContextVar[_Allowance | None] = ContextVar("buffers", default=None)


@contextmanager
def within(budget: Budget | None) -> Iterator[None]:
    """Builds networks within this budget, or without bounds if it is None.

    Raises:
        ValueError: the block builds a larger one.
    """
    if budget is None:
        yield
        return
    layers = _Allowance(_NAMES * budget.tensors + _SPARE, "layers")

    def name(key: str) -> str:
        layers.spend(1)
        return generate(key)

    token = _buffers.set(_Allowance(_ELEMENTS * budget.elements + _SPARE, "numbers"))
    generate, checker = unique_name.switch(name)
    try:
        yield
    finally:
        unique_name.switch(generate, checker)
        _buffers.reset(token)


def check_budget(*shape: int) -> None:
    """Takes a buffer of this shape from the budget before it is made.

    Raises:
        ValueError: the budget does not allow it.
    """
    left = _buffers.get()
    if left is not None:
        left.spend(prod(shape))
