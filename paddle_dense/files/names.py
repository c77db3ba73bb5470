"""Names of tensors: the one way to give them others, and which framework they are those of."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from itertools import count
from typing import Callable, TypeVar

from paddle_dense.errors import WeightsError, shown

Value = TypeVar("Value")

# What PyTorch and Paddle call the statistics of a batch normalisation.
STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}
COUNTER = "num_batches_tracked"  # of batches, in PyTorch alone


def renamed(state: Mapping[str, Value], rule: Callable[[str], str]) -> dict[str, Value]:
    """The state with every name as `rule` gives it, in the same order.

    Raises:
        WeightsError: two names would become one, and one tensor would take the other's place.
    """
    names: dict[str, str] = {}
    for name in state:
        new = rule(name)
        if new in names:
            raise two_names(names[new], name, new)
        names[new] = name
    return {new: state[name] for new, name in names.items()}


class TwoNamesError(WeightsError):
    """A file has one tensor under two names."""


def two_names(first: str, second: str, one: str) -> TwoNamesError:
    """What is wrong with a file that has a tensor twice."""
    meaning = "" if one in (first, second) else f", both of which mean {shown(one)}"
    return TwoNamesError(
        f"holds one tensor under two names, {shown(first)} and {shown(second)}{meaning}: leave out the one that is not "
        f"the network's and save it again"
    )


def count_from_0(names: Container[str], template: str) -> int:
    """How many of the names with 0, 1, 2, ... in the template's place there are without a gap."""
    return next(number for number in count() if template.format(number) not in names)


def pytorch_sign(
    names: Iterable[str], metadata: Mapping[str, str] | None = None, own: Container[str] = ()
) -> str | None:
    """What shows that PyTorch's state_dict has been saved, as the end of "has ..."; None where nothing shows it.

    Args:
        names: of the tensors.
        metadata: the header's texts, of a .safetensors file.
        own: names that the Paddle network has itself, which show nothing.
    """
    names = list(names)
    sign = _first((name for name in names if name not in own), (*STATISTICS, COUNTER))
    if sign:
        return f"PyTorch's names ({shown(sign)})"
    if (metadata or {}).get("format") == "pt" and not paddle_sign(names):
        return "PyTorch's mark in its header (format: pt)"
    return None


def paddle_sign(names: Iterable[str]) -> str | None:
    """What shows that Paddle's state_dict has been saved, as the end of "has ..."; None where nothing shows it."""
    sign = _first(names, STATISTICS.values())
    return f"Paddle's names ({shown(sign)})" if sign else None


def refuse_mixture(names: Iterable[str]) -> None:
    """WeightsError for names of both frameworks, of which nobody can say how the linear layers lie."""
    names = list(names)
    theirs, ours = pytorch_sign(names), paddle_sign(names)
    if theirs and ours:
        raise WeightsError(
            f"has {theirs} and {ours}, and the two lay linear layers out differently: save one framework's "
            f"model.state_dict()"
        )


def _first(names: Iterable[str], leaves: Iterable[str]) -> str | None:
    leaves = set(leaves)
    return next((name for name in names if name.rpartition(".")[2] in leaves), None)
