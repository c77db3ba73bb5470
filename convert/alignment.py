"""Which layer of a PyTorch file is which of a Paddle network: by names, and then by order and shapes.

A layer with tensors of its own is a unit. Units pair from the root down: where two layers are paired, those in them of
equal name are; then those that are the only ones of their shapes in there; then the rest, where both have the same
shapes in the same order. Only names and what is alone of its shapes is certain, and nothing is under an uncertain pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Callable, NamedTuple, Union

import numpy as np

from paddle_dense.files.layout import Formula

Shape = tuple[int, ...]
NAME, ONLY, ORDER = "equal name", "the only one of these shapes", "order and shape"
_MAX_PARTS = 32  # of a name; what is nested deeper counts as one part
_MAX_UNITS = 2000  # of a file, without a place by their names, of which others are looked for
_MAX_CELLS = 1_000_000  # of the table that aligns two sequences of different lengths
_PARAMETRISED = ".parametrizations."  # stands between a layer's name and those of the parts of its weight


class Place(NamedTuple):
    """A tensor of a Paddle layer, and what the PyTorch layer of the same kind has in its place.

    Attributes:
        name: the Paddle tensor's.
        leaves: of PyTorch's tensors, from the layer on.
        formula: makes the one of the others.
        shape: of the Paddle tensor.
        optional: it can also be made of nothing.
    """

    name: str
    leaves: tuple[str, ...]
    formula: Formula
    shape: Shape
    optional: bool = False

    def is_made_of(self, shapes: Sequence[Shape]) -> bool:
        """Whether PyTorch's tensors of these shapes make one of this shape."""
        return shape_of(self.formula, shapes) == self.shape


@dataclass(frozen=True)
class Wanted:
    """A layer as the Paddle network has it, under the name that PyTorch's would have: its path, and its tensors."""

    path: str
    places: tuple[Place, ...]

    @cached_property
    def signature(self) -> tuple:
        """The same for layers that are made of the same."""
        return tuple((*place.leaves, place.formula.text, place.shape, place.optional) for place in self.places)


@dataclass(frozen=True)
class Stored:
    """A layer as the file has it: its path, and the shapes of its tensors by their names from the layer on."""

    path: str
    shapes: Mapping[str, Shape]

    @cached_property
    def signature(self) -> tuple:
        """The same for layers with the same tensors."""
        return tuple(self.shapes.items())


Unit = Union[Wanted, Stored]


class Found(NamedTuple):
    """What a tensor of Paddle is made of.

    Attributes:
        place: the tensor.
        wanted: its layer's path, as in `Wanted`.
        stored: path of the file's layer.
        leaves: of the file's tensors, from that layer on.
        basis: how it was found.
        is_certain: there is no other way.
    """

    place: Place
    wanted: str
    stored: str
    leaves: tuple[str, ...]
    basis: str
    is_certain: bool


def shape_of(formula: Formula, shapes: Iterable[Shape]) -> Shape | None:
    """The shape of what the formula makes of tensors of these shapes; None if it makes nothing of them."""
    return _shape_of(formula, tuple(shapes))


@lru_cache(maxsize=1 << 16)
def _shape_of(formula: Formula, shapes: tuple[Shape, ...]) -> Shape | None:
    try:
        return formula.make([np.broadcast_to(np.float32(0), shape) for shape in shapes]).shape
    except (ValueError, IndexError, TypeError):
        return None


def split(name: str) -> tuple[str, str]:
    """A tensor's name in two: its layer, and its name from there on."""
    layer, parametrised, part = name.partition(_PARAMETRISED)
    if parametrised:
        return layer, parametrised[1:] + part
    layer, _, leaf = name.rpartition(".")
    return layer, leaf


def joined(layer: str, leaf: str) -> str:
    """The name of what is called `leaf` from a layer on."""
    return f"{layer}.{leaf}" if layer else leaf


def align(
    wanted: Iterable[Wanted],
    stored: Iterable[Stored],
    rank: Callable[[Unit], tuple] | None = None,
) -> Alignment:
    """Pair the layers of a Paddle network and of a file, see the module.

    Args:
        wanted, stored: all layers with tensors, in the order in which they come.
        rank: a key that sorts them otherwise.
    """
    wanted, stored = list(wanted), list(stored)
    alignment = Alignment(
        {unit.path: unit for unit in wanted},
        {unit.path: unit for unit in stored},
        rank or (lambda unit: ()),
    )
    alignment.run(_tree(wanted), _tree(stored))
    return alignment


class _Node:
    """A part of a name: the layer up to there, those in it, and all units from there on."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.children: dict[str, _Node] = {}
        self.unit: Unit | None = None
        self.units: list[Unit] = []


def _tree(units: Iterable[Unit]) -> _Node:
    root = _Node("")
    for unit in units:
        node = root
        node.units.append(unit)
        for part in unit.path.split(".", _MAX_PARTS) if unit.path else ():
            node = node.children.setdefault(part, _Node(joined(node.path, part)))
            node.units.append(unit)
        node.unit = unit
    return root


@dataclass
class Alignment:
    """What was paired.

    Attributes:
        found: by the Paddle tensor's name.
        too_many: the file has so many other layers that none was looked for by its shapes.
    """

    _wanted: dict[str, Wanted]
    _stored: dict[str, Stored]
    _rank: Callable[[Unit], tuple]
    found: dict[str, Found] = field(default_factory=dict)
    too_many: bool = False
    _labels: dict[tuple, int] = field(default_factory=dict)
    _alone: set[int] = field(default_factory=set)  # labels that one layer has on either side

    def run(self, wanted: _Node, stored: _Node) -> None:
        """Pair what is under two roots."""
        self._names(wanted, stored, True, NAME)
        self.too_many = len(self._stored) > _MAX_UNITS
        if not self.too_many:
            self._labels = _labels(self._wanted.values(), self._stored.values())
            mine, theirs = (
                Counter(self._labels[unit.signature] for unit in units.values())
                for units in (self._wanted, self._stored)
            )
            self._alone = {label for label, count in mine.items() if count == theirs[label] == 1}
            self._shapes(wanted, stored, True)
            self._common_sequence()

    # By names

    def _names(self, wanted: _Node, stored: _Node, certain: bool, basis: str) -> None:
        """Pair two layers, and what has equal names in them."""
        if isinstance(wanted.unit, Wanted) and isinstance(stored.unit, Stored):
            self._tensors(wanted.unit, stored.unit, certain, basis)
        for part in _equal_names(wanted, stored):
            self._names(wanted.children[part], stored.children[part], certain, basis)

    def _tensors(self, wanted: Wanted, stored: Stored, certain: bool, basis: str) -> None:
        """Pair the tensors of two layers; not one of them if some that have equal names do not fit."""
        if self._wanted.get(wanted.path) is not wanted or self._stored.get(stored.path) is not stored:
            return
        if self._labels:
            label = self._labels[wanted.signature]
            if label != self._labels[stored.signature]:
                return
            if label in self._alone:
                certain, basis = True, ONLY
        if _clash(wanted, stored):
            return
        equal = [place for place in wanted.places if all(leaf in stored.shapes for leaf in place.leaves)]
        used = {leaf for place in equal for leaf in place.leaves}
        rest = [place for place in wanted.places if place not in equal and not (equal and place.optional)]
        others = {leaf: shape for leaf, shape in stored.shapes.items() if leaf not in used}
        by_shape = _by_shape(rest, others) or {}
        if not equal and not by_shape:
            return
        del self._wanted[wanted.path], self._stored[stored.path]
        for place in equal:
            self._found(place, wanted, stored, place.leaves, basis, certain)
        for place in rest:
            if place.name in by_shape:
                self._found(place, wanted, stored, (by_shape[place.name],), ORDER, False)

    def _found(
        self, place: Place, wanted: Wanted, stored: Stored, leaves: tuple[str, ...], basis: str, certain: bool
    ) -> None:
        self.found[place.name] = Found(place, wanted.path, stored.path, leaves, basis, certain)

    # By order and shapes

    def _shapes(self, wanted: _Node, stored: _Node, certain: bool) -> None:
        """Pair what has no place by its name in two layers that are paired: first in their layers, then here."""
        equal = _equal_names(wanted, stored)
        for part in equal:
            self._shapes(wanted.children[part], stored.children[part], certain)
        self._children(wanted, stored, equal, certain)
        self._sequence(self._open(wanted), self._open(stored), certain)

    def _children(self, wanted: _Node, stored: _Node, equal: Collection[str], certain: bool) -> None:
        """Pair layers that are made of the same: all, where both sides have the same ones in the same order."""
        mine, theirs = self._open_children(wanted, equal), self._open_children(stored, equal)
        counts = [Counter(child.key for child in children) for children in (mine, theirs)]
        in_order = [child.key for child in mine] == [child.key for child in theirs]
        everything = [self._label_counts(node) for node in (wanted, stored)]
        for place, child in enumerate(mine):
            is_one = counts[0][child.key] == counts[1][child.key] == 1
            if not in_order and not is_one:
                continue
            other = theirs[place] if in_order else next(other for other in theirs if other.key == child.key)
            # Nothing of the same shapes is elsewhere in the two layers, either.
            alone = is_one and all(
                count == in_all[label] for label, count in child.labels.items() for in_all in everything
            )
            sure = certain and alone
            self._names(child.node, other.node, sure, ONLY if sure else ORDER)
            self._shapes(child.node, other.node, sure)

    def _open_children(self, node: _Node, equal: Collection[str]) -> list[_Child]:
        """The layers in one that have no place by their names and hold units that have none, in order."""
        found = [
            _Child(child, self._label_counts(child), self._rank(units[0]))
            for part, child in node.children.items()
            if part not in equal and (units := self._open(child))
        ]
        return sorted(found, key=lambda child: child.rank)

    def _sequence(self, wanted: Sequence[Wanted], stored: Sequence[Stored], certain: bool) -> None:
        """Pair layers of either side: all, where they come in the same order, otherwise those that are alone."""
        mine, theirs = ([self._labels[unit.signature] for unit in units] for units in (wanted, stored))
        counts = Counter(mine), Counter(theirs)
        first = {label: number for number, label in reversed(list(enumerate(theirs)))}
        for number, unit in enumerate(wanted):
            label = mine[number]
            alone = counts[0][label] == counts[1][label] == 1
            if mine == theirs:
                self._pair(unit, stored[number], certain and alone)
            elif alone:
                self._pair(unit, stored[first[label]], certain)

    def _common_sequence(self) -> None:
        """Pair what is left in the one order in which most of it pairs, as far as there is but one."""
        wanted = sorted(self._wanted.values(), key=self._rank)
        stored = sorted(self._stored.values(), key=self._rank)
        mine, theirs = ([self._labels[unit.signature] for unit in units] for units in (wanted, stored))
        for i, j in _certain_pairs(mine, theirs):
            self._pair(wanted[i], stored[j], False)

    def _pair(self, wanted: Wanted, stored: Stored, certain: bool) -> None:
        if fits(wanted, stored) or _by_shape(wanted.places, stored.shapes):
            self._tensors(wanted, stored, certain, ONLY if certain else ORDER)

    def _open(self, node: _Node) -> list:
        """The units from a node on that have no place yet, in order."""
        there = [
            unit
            for unit in node.units
            if (self._wanted if isinstance(unit, Wanted) else self._stored).get(unit.path) is unit
        ]
        return sorted(there, key=self._rank)

    def _label_counts(self, node: _Node) -> Counter[int]:
        return Counter(self._labels[unit.signature] for unit in self._open(node))


class _Child(NamedTuple):
    """A layer in another, with what it is made of."""

    node: _Node
    labels: Counter[int]
    rank: tuple

    @property
    def key(self) -> frozenset[tuple[int, int]]:
        return frozenset(self.labels.items())


def _equal_names(wanted: _Node, stored: _Node) -> list[str]:
    """Names of the layers that both have in them; without numbers that cannot mean the same on both sides."""
    equal = [part for part in wanted.children if part in stored.children]
    numbers = [{part for part in node.children if part.isdecimal()} for node in (wanted, stored)]
    nested = numbers[0] <= numbers[1] or numbers[1] <= numbers[0]
    if nested and not any(_differ(wanted.children[part], stored.children[part]) for part in equal if part.isdecimal()):
        return equal
    return [part for part in equal if not part.isdecimal()]


def _differ(wanted: _Node, stored: _Node) -> bool:
    """Whether two layers of equal numbers cannot be the same: one has tensors of its own, or others."""
    if isinstance(wanted.unit, Wanted) and isinstance(stored.unit, Stored):
        if _clash(wanted.unit, stored.unit):
            return True
    elif (wanted.unit or stored.unit) and not ((wanted.unit and wanted.children) or (stored.unit and stored.children)):
        return True
    return any(
        _differ(node, stored.children[part]) for part, node in wanted.children.items() if part in stored.children
    )


def _clash(wanted: Wanted, stored: Stored) -> bool:
    """Whether the file's layer has tensors of the right names and wrong shapes."""
    return any(
        all(leaf in stored.shapes for leaf in place.leaves)
        and not place.is_made_of([stored.shapes[leaf] for leaf in place.leaves])
        for place in wanted.places
    )


def fits(wanted: Wanted, stored: Stored) -> bool:
    """Whether a layer of the file has what one of Paddle needs, and nothing else."""
    used: set[str] = set()
    for place in wanted.places:
        if not all(leaf in stored.shapes for leaf in place.leaves):
            if not place.optional:
                return False
        elif place.is_made_of([stored.shapes[leaf] for leaf in place.leaves]):
            used.update(place.leaves)
        else:
            return False
    return used == stored.shapes.keys()


def _by_shape(places: Sequence[Place], shapes: Mapping[str, Shape]) -> dict[str, str] | None:
    """Which of a layer's tensors each place could be made of, whatever they are called; None unless it comes out even.

    In their order, or where each fits but one.
    """
    if len(places) != len(shapes) or not places or any(len(place.leaves) != 1 for place in places):
        return None
    in_order = dict(zip(places, shapes))
    if all(place.is_made_of([shapes[leaf]]) for place, leaf in in_order.items()):
        return {place.name: leaf for place, leaf in in_order.items()}
    fitting = {place.name: [leaf for leaf, shape in shapes.items() if place.is_made_of([shape])] for place in places}
    chosen = {name: leaves[0] for name, leaves in fitting.items() if len(leaves) == 1}
    return chosen if len(set(chosen.values())) == len(places) else None


def _labels(wanted: Iterable[Wanted], stored: Iterable[Stored]) -> dict[tuple, int]:
    """One number for all signatures of layers that can be each other; by names of the tensors before their order."""
    mine = {unit.signature: unit for unit in wanted}
    theirs = {unit.signature: unit for unit in stored}
    pairs = [(a, b) for a, unit in mine.items() for b, other in theirs.items() if fits(unit, other)]
    known = {signature for pair in pairs for signature in pair}
    pairs += [
        (a, b)
        for a, unit in mine.items()
        for b, other in theirs.items()
        if a not in known and b not in known and _by_shape(unit.places, other.shapes)
    ]
    labels = {signature: number for number, signature in enumerate((*mine, *theirs))}
    for a, b in pairs:
        old, new = labels[b], labels[a]
        labels = {signature: new if label == old else label for signature, label in labels.items()}
    return labels


def _certain_pairs(mine: Sequence[int], theirs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Places of two sequences that pair in every longest common subsequence of them."""
    if len(mine) * len(theirs) > _MAX_CELLS:
        return
    before = _lengths(mine, theirs)
    after = _lengths(mine[::-1], theirs[::-1])
    longest = before[-1][-1]
    by_rank: dict[int, list[tuple[int, int]]] = {}
    for i, label in enumerate(mine):
        for j, other in enumerate(theirs):
            if label == other and before[i][j] + 1 + after[len(mine) - i - 1][len(theirs) - j - 1] == longest:
                by_rank.setdefault(before[i][j], []).append((i, j))
    yield from (pairs[0] for pairs in by_rank.values() if len(pairs) == 1)


def _lengths(mine: Sequence[int], theirs: Sequence[int]) -> list[list[int]]:
    """[i][j]: of the longest common subsequence of the first i and the first j."""
    rows = [[0] * (len(theirs) + 1)]
    for label in mine:
        row, last = [0], rows[-1]
        for j, other in enumerate(theirs):
            row.append(last[j] + 1 if label == other else max(row[j], last[j + 1]))
        rows.append(row)
    return rows
