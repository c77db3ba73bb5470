"""What each tensor of a Paddle network is made of: PyTorch's names and layouts, by the layer that owns the tensor."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from paddle_dense.errors import WeightsError, naming, shown
from paddle_dense.evaluation import name_of
from paddle_dense.files.layout import (
    AS_IT_IS,
    FLAT,
    LAYOUTS,
    SUBLAYERS,
    WITHOUT_PLACE,
    Formula,
    Row,
    flat,
    layer_kind,
    parts_of_spectral_norm,
    parts_of_weight_norm,
    rows_of,
    whole_of_parts,
    with_padding,
)
from paddle_dense.files.names import COUNTER


class Source(NamedTuple):
    """PyTorch's tensors that one tensor of Paddle is made of, and how.

    Attributes:
        names: of PyTorch's tensors, in the order in which the formula takes them; none for what needs none.
        formula: makes Paddle's tensor of them.
    """

    names: tuple[str, ...]
    formula: Formula


def sources(network: nn.Layer) -> dict[str, tuple[Source, ...]]:
    """For each tensor of the network, what it may be made of where layers have the same names; the likeliest first.

    A layer that is made of others, as attention is, may have a source for their tensors; it comes before their own. A
    tensor of a layer without a row, such as a parameter of the user's, is PyTorch's tensor of the same name. One that
    the network has under several names has the sources of all, its own first.

    Raises:
        WeightsError: a layer is one of Paddle's whose layout is not known.
    """
    tensors = network.state_dict()
    found: dict[str, tuple[Source, ...]] = {}
    for names in names_of_one_tensor(tensors):
        rows = _rows_of_tensor(network, names, tensors[names[0]])
        for name in names:
            by_names: dict[tuple[str, ...], Source] = {}
            for row in (row for other in sorted(names, key=name.__ne__) for row in rows[other]):
                by_names.setdefault(row.theirs, Source(row.theirs, row.formula))
            found[name] = tuple(by_names.values())
    return {name: found[name] for name in tensors}


def names_of_one_tensor(tensors: Mapping[str, Tensor]) -> Iterable[list[str]]:
    """The names of a state_dict, those of one tensor together."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return names.values()


def chosen(possible: Mapping[str, Iterable[Source]], names: Container[str]) -> dict[str, Source]:
    """For each tensor of Paddle the first of its sources whose names there are; nothing where there is none.

    Args:
        possible: what `sources` gave.
        names: of PyTorch's tensors.
    """
    first = {
        name: next((source for source in some if all(theirs in names for theirs in source.names)), None)
        for name, some in possible.items()
    }
    return {name: source for name, source in first.items() if source is not None}


def made_of(tensors: Mapping[str, np.ndarray], chosen: Mapping[str, Source]) -> dict[str, np.ndarray]:
    """Paddle's tensors, each from its source.

    Raises:
        WeightsError: PyTorch's tensors have not the shapes of which one can be made.
    """
    made = {}
    for name, source in chosen.items():
        # What is not finite is reported as such where the numbers are checked.
        with naming(f"holds {shown(source.names[0] if source.names else name)}", colon=""), np.errstate(all="ignore"):
            made[name] = np.asarray(source.formula.make([tensors[theirs] for theirs in source.names]))
    return made


def second_names(
    tensors: Mapping[str, np.ndarray],
    possible: Mapping[str, Iterable[Source]],
    made: Mapping[str, np.ndarray],
    rest: Container[str],
) -> set[str]:
    """Those of PyTorch's tensors of which no Paddle tensor was made, as it was made of the same under another name.

    Args:
        tensors: PyTorch's.
        possible: what `sources` gave.
        made: Paddle's tensors, what `made_of` gave.
        rest: names of PyTorch's that were not used.
    """
    other_names = [(ours, source) for ours, some in possible.items() for source in some if len(source.names) == 1]
    return {
        source.names[0]
        for ours, source in other_names
        if ours in made and source.names[0] in rest and _equal(made_of(tensors, {ours: source})[ours], made[ours])
    }


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.array_equal(first, second, equal_nan=True))


def without_place(network: nn.Layer, names: Collection[str]) -> dict[str, str]:
    """Those of PyTorch's tensors that Paddle's layer of the same name has no place for, and what to do about it.

    Args:
        network: the Paddle network.
        names: of PyTorch's tensors that no source has taken.

    Returns:
        By name what to do, as the end of a sentence; "" for what PyTorch computes nothing with.
    """
    found = {name: "" for name in names if name.rpartition(".")[2] == COUNTER}
    for path, layer in _network(network).named_sublayers(include_self=True):
        leaves, advice = WITHOUT_PLACE.get(layer_kind(type(layer).__mro__) or "", ((), ""))
        if leaves:
            *_, owner = _owners(network, f"{path}.any" if path else "any")
            found.update({p + leaf: advice for p in owner.theirs for leaf in leaves if p + leaf in names})
    return found


class _Owner(NamedTuple):
    """A layer that a tensor is in.

    Attributes:
        layer: the layer.
        ours: its name in Paddle, with a dot after it; "" for the network.
        theirs: the names that it may have in PyTorch, the same.
    """

    layer: nn.Layer
    ours: str
    theirs: tuple[str, ...]

    @property
    def kind(self) -> str | None:
        return layer_kind(type(self.layer).__mro__)


def _network(network: nn.Layer) -> nn.Layer:
    """The network in DataParallel, whose tensors have the names that they have there."""
    return network._layers if isinstance(network, paddle.DataParallel) else network


def _owners(network: nn.Layer, name: str) -> Iterator[_Owner]:
    """The layers that a tensor is in, from the network to the one that has it itself.

    By attributes, as what has two names in a network has but one among its sublayers.
    """
    owner = _Owner(_network(network), "", ("",))
    yield owner
    child = ""
    for part in name.split(".")[:-1]:
        child = f"{child}.{part}" if child else part
        layer = getattr(owner.layer, child, None)
        if isinstance(layer, nn.Layer):
            names = dict.fromkeys((SUBLAYERS.get(owner.kind or "", {}).get(child, child), child))
            theirs = tuple(f"{before}{name}." for before in owner.theirs for name in names)
            owner, child = _Owner(layer, f"{owner.ours}{child}.", theirs), ""
            yield owner


def _rows_of_tensor(network: nn.Layer, names: Sequence[str], tensor: Tensor) -> dict[str, list[Row]]:
    """The rows of one tensor under each of its names.

    Where the table says something of one name, that is so for the others: Paddle's recurrent layers also have their
    cells' tensors, some under names of others, and what the user calls a second name lies as the layer's does.
    """
    rows = {name: list(_rows(network, name, tensor.ndim)) for name in names}
    known = next((row.formula for some in rows.values() for row in some if len(row.theirs) == 1), None)
    for name in names:
        *_, owner = _owners(network, name)
        of_cells = any("." in row.name for row in LAYOUTS[owner.kind or "Layer"])
        if not rows[name] and not (known and of_cells):
            leaf = name[len(owner.ours) :]
            plain = [Row(name, (before + leaf,), known or AS_IT_IS) for before in owner.theirs]
            rows[name] = [made for row in plain for made in _with_parts(row, tensor.ndim, owner)]
    if _is_no_bias(network, names, tensor):
        rows[names[-1]].append(Row(names[-1], (), _zeros(tensor.shape)))
    return rows


def _rows(network: nn.Layer, name: str, dimensions: int) -> Iterator[Row]:
    """The rows of the table for a tensor, under full names."""
    owners = list(_owners(network, name))
    owner = owners[-1]
    if owner.kind is None:
        raise WeightsError(
            f"{type(owner.layer).__name__} {shown(owner.ours[:-1])} of {name_of(network)} is a layer of Paddle's whose "
            f"layout is not known here: build the network with a layer of paddle.nn in its place"
        )
    norm = _norm_of(owner.layer, name[len(owner.ours) :])
    whole = owner.ours + norm.name if norm else name
    rows = [row for outer in owners for row in _rows_in(outer, whole)]
    if not norm:
        yield from (made for row in rows for made in _with_parts(row, dimensions, owner))
        return
    for row in rows or [Row(whole, (theirs + norm.name,), AS_IT_IS) for theirs in owner.theirs]:
        yield from (part for part in _parts(row, norm, owner.layer) if part.name == name)


def _rows_in(owner: _Owner, name: str) -> Iterator[Row]:
    """The rows that one of the layers has for a tensor in it."""
    padding = getattr(owner.layer, "_padding_idx", None) if owner.kind == "Embedding" else None
    for row in rows_of(owner.kind, name[len(owner.ours) :]):
        formula = flat(owner.layer._normalized_shape) if row.formula is FLAT else row.formula
        formula = formula if padding is None else with_padding(padding)
        for before in owner.theirs:
            yield Row(name, tuple(before + theirs for theirs in row.theirs), formula)


def _with_parts(row: Row, dimensions: int, owner: _Owner) -> Iterator[Row]:
    """A row, and of a weight also those for a file in which PyTorch computes it of parts."""
    yield row
    if dimensions > 1 and row.theirs[0].rpartition(".")[2].startswith("weight"):
        yield from whole_of_parts(row, usual=int("Transpose" in (owner.kind or "")))


class _Norm(NamedTuple):
    """Paddle's weight_norm or spectral_norm of a layer: it computes the tensor `name` of parts, along an axis."""

    name: str
    axis: int


def _norm_of(layer: nn.Layer, leaf: str) -> _Norm | None:
    """What computes a tensor of this one."""
    for hook in layer._forward_pre_hooks.values():
        norm = _Norm(getattr(hook, "name", ""), getattr(hook, "dim", 0))
        if leaf in {f"{norm.name}_{part}" for part in ("g", "v", "u", "orig")}:
            return norm
    return None


def _parts(row: Row, norm: _Norm, layer: nn.Layer) -> Iterator[Row]:
    if hasattr(layer, f"{norm.name}_orig"):
        return parts_of_spectral_norm(row, norm.axis)
    return parts_of_weight_norm(row, norm.axis if norm.axis >= 0 else None, getattr(layer, f"{norm.name}_v").shape)


def _is_no_bias(network: nn.Layer, names: Iterable[str], tensor: Tensor) -> bool:
    """Whether this stands for a bias that a recurrent layer was built without, which Paddle's keeps as zeros."""
    owners = [(list(_owners(network, name))[-1].kind or "", name.rpartition(".")[2]) for name in names]
    is_bias = any(kind.endswith("Cell") and leaf.startswith("bias") for kind, leaf in owners)
    return is_bias and tensor.stop_gradient and not bool(tensor.any())


def _zeros(shape: Sequence[int]) -> Formula:
    return Formula("0, as the layer is built without it", lambda _: np.zeros(shape, np.float32))
