"""What the arguments of networks and runs may be: a wrong one is refused where it is given, not where it is used."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from numbers import Integral, Real
from typing import Any

_FROM_ZERO = {"num_classes", "HS_start_block", "SE_start_block", "num_experts", "seed"}
_SHARES = {"drop_rate", "dropout_rate", "drop_path_rate"}
_LARGEST = 2**63 - 1
_LARGEST_EPSILON = 0.1  # of a batch normalisation, whose variances are near 1
_LONGEST = 100  # characters of a value that a message repeats


def check_arguments(annotations: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """Refuse arguments of another kind than their annotations say, or out of their range.

    Whole numbers and the members of lists are 1 or more, a few 0 or more; ``True`` is none. Rates of dropout are in
    [0, 1], other fractions above 0.

    Args:
        annotations: the kinds by name, as text: ``"int | None"``, ``"Sequence[float]"``, ...
        values: the arguments by name.

    Raises:
        ValueError: it names the argument and its value.
    """
    for name, value in values.items():
        kind, _, optional = annotations.get(name, "").partition(" | ")
        if optional and value is None:
            continue
        fault = _fault(name, kind, value)
        if fault:
            said = str(value)
            raise ValueError(f"{name}={said[:_LONGEST]}{'...' if len(said) > _LONGEST else ''} must be {fault}")


def _fault(name: str, kind: str, value: Any) -> str | None:
    """What an argument should be instead, if it cannot be used."""
    if kind.startswith("Sequence["):
        if not isinstance(value, (list, tuple)) or not value:
            return "a list of one number or more"
        return next((fault for fault in (_fault(name, kind[9:-1], item) for item in value) if fault), None)
    if kind == "bool":
        return None if isinstance(value, bool) else "true or false"
    if kind == "str":
        return None if isinstance(value, str) else "a text"
    if kind not in ("int", "float"):
        return None
    whole = kind == "int"
    wanted: Any = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        return "a whole number" if whole else "a number"
    if whole:
        least = 0 if name in _FROM_ZERO else 1
        return None if least <= value <= _LARGEST else f"{least} or more" if value < least else "below 2**63"
    if name in _SHARES:
        return None if 0 <= value <= 1 else "from 0 to 1"
    if name.endswith("_eps"):
        return None if 0 < value <= _LARGEST_EPSILON else f"above 0 and at most {_LARGEST_EPSILON}"
    return None if 0 < value < inf else "above 0 and finite"
