"""What the arguments of networks and runs may be: a wrong one is refused where it is given, not where it is used.

The range of an argument is part of its annotation::

    def __init__(self, stages: Counts, HS_start_block: FromZero = 2, drop_rate: Share = 0.0, ...) -> None:
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Annotated, Any, Callable, Optional, Union, get_args, get_origin, get_type_hints

# What `int | None` is, since Python 3.10, besides `Optional[int]`.
_UNIONS = (Union, getattr(types, "UnionType", Union))


@dataclass(frozen=True)
class Range:
    """Where a number has to be, and how an error says so."""

    includes: Callable[[Any], bool]
    words: str


_BELOW = Range(lambda number: number < 2**63, "below 2**63")
Count = Annotated[int, Range(lambda number: number >= 1, "1 or more"), _BELOW]
Counts = Sequence[Count]
OptionalCount = Optional[Count]
FromZero = Annotated[int, Range(lambda number: number >= 0, "0 or more"), _BELOW]
Factor = Annotated[float, Range(lambda number: 0 < number < inf, "above 0 and finite")]
Factors = Sequence[Factor]
OptionalFactor = Optional[Factor]
OptionalText = Optional[str]
Share = Annotated[float, Range(lambda number: 0 <= number <= 1, "from 0 to 1")]
OptionalShare = Optional[Annotated[float, Range(lambda number: 0 < number < 1, "above 0 and below 1")]]
OptionalShareFromZero = Optional[Share]
OptionalFromZero = Optional[Annotated[float, Range(lambda number: 0 <= number < inf, "0 or more and finite")]]
OptionalSide = Optional[Annotated[int, Range(lambda number: 32 <= number <= 4096, "from 32 to 4096")]]
SomeShare = Annotated[float, Range(lambda number: 0 < number <= 1, "above 0 and at most 1")]
# Of a batch normalisation, whose variances are near 1.
Epsilon = Annotated[float, Range(lambda number: 0 < number <= 0.1, "above 0 and at most 0.1")]

_LONGEST = 100  # characters of a value that a message repeats
_KINDS = {
    bool: Range(lambda value: isinstance(value, bool), "true or false"),
    str: Range(lambda value: isinstance(value, str), "a text"),
    int: Range(lambda value: isinstance(value, Integral) and not isinstance(value, bool), "a whole number"),
    float: Range(lambda value: isinstance(value, Real) and not isinstance(value, bool), "a number"),
    type(None): Range(lambda value: value is None, "left out"),
}


def check_arguments(owner: Callable[..., Any] | type, values: Mapping[str, Any]) -> None:
    """Refuse arguments of another kind than their annotations say, or out of their range; ``True`` is no number.

    Args:
        owner: the function or dataclass that is annotated. Arguments without annotation, or with one that says
            something else than a number, bool, text or list of these, are not checked.
        values: the arguments by name.

    Raises:
        ValueError: it names the argument and its value.
    """
    kinds = _annotations(owner)
    for name, value in values.items():
        fault = _fault(kinds.get(name), value)
        if fault:
            text = str(value)
            raise ValueError(f"{name}={text[:_LONGEST]}{'...' if len(text) > _LONGEST else ''} must be {fault}")


def _annotations(owner: Callable[..., Any] | type) -> dict[str, Any]:
    """The annotations as types; a file with ``from __future__ import annotations`` keeps them as text."""
    module = sys.modules.get(owner.__module__)
    namespace = getattr(owner, "__globals__", vars(module) if module else {})
    kinds: dict[str, Any] = {}
    for name, annotation in getattr(owner, "__annotations__", {}).items():
        one: Any = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            kinds.update(get_type_hints(one, namespace, include_extras=True))
        except (NameError, TypeError):  # imported for type checkers alone; or "int | None", on Python 3.9
            continue
    return kinds


def _fault(kind: Any, value: Any) -> str | None:
    """What an argument should be instead, if it cannot be used."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        ranges = (part for part in parts[1:] if isinstance(part, Range))
        return _fault(parts[0], value) or next((part.words for part in ranges if not part.includes(value)), None)
    if origin in _UNIONS:
        faults = [_fault(part, value) for part in parts]
        return None if None in faults else faults[0]
    if parts and isinstance(origin, type) and issubclass(origin, (Sequence, list, tuple)):
        if not isinstance(value, (list, tuple)) or not value:
            return "a list of one number or more"
        return next((fault for fault in (_fault(parts[0], item) for item in value) if fault), None)
    return _KINDS[kind].words if kind in _KINDS and not _KINDS[kind].includes(value) else None
