"""Which of a PyTorch file's tensors each tensor of a Paddle network is made of.

`pair` finds out, and `refuse` says what it left open; `convert.mapping_file` has what a user says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import numpy as np
import paddle
from paddle import nn

from convert.alignment import (
    ONLY,
    Alignment,
    Place,
    Shape,
    Stored,
    Unit,
    Wanted,
    align,
    joined,
    shape_of,
    split,
)
from convert.file_names import FileNames
from paddle_dense.errors import WeightsError, did_you_mean, listed, shown
from paddle_dense.files.names import COUNTER
from paddle_dense.files.spelling import EVERYTHING, Selection
from paddle_dense.models.matching import is_bystander
from paddle_dense.models.sources import Source, names_of_one_tensor, sources, without_place

if TYPE_CHECKING:
    import torch

_GIVEN, _TIED, _OF_NOTHING = "mapping file", "the same tensor as {}", "made of no tensor"
AND = " + "  # between the names of several tensors of which one is made
_MAX_NAMED = 3  # tensors of either side, in one message
_MAX_COMPARED, _MAX_LENGTH = 100, 100  # names that the nearest is looked for among, and how much of their ends
_SEE = "write all pairs with --propose map.csv, read and complete them, and give them back with --map map.csv"


class Given(NamedTuple):
    """What a user says of pairs.

    Attributes:
        pairs: PyTorch's name for each of Paddle's, names of several with " + " between them, "" for what stays as the
            network was built.
        left_out: PyTorch's tensors that have no place on purpose.
    """

    pairs: Mapping[str, str]
    left_out: Collection[str] = ()


class Order(NamedTuple):
    """In which order the layers of each network are run, see `executed`."""

    paddle: Sequence[str]
    pytorch: Sequence[str]


@dataclass(frozen=True)
class Pairing:
    """Which of a file's tensors each tensor of a Paddle network is made of.

    Attributes:
        chosen: what is certain: Paddle's tensor -> its source.
        proposed: what goes by order and shape only and could also be otherwise, the same.
        layers: Paddle's layer -> PyTorch's, as far as certain.
        missing: Paddle's tensors that have no source.
        untouched: Paddle's tensors that stay as the network was built on purpose.
        unplaced: PyTorch's tensors that have no place, though the PyTorch network may compute with them.
        left_out: PyTorch's tensors that have no place and need none.
        notes: what was done, one sentence each.
        basis: for each tensor of `chosen` and `proposed`, how it was found.
        misfits: tensors of `missing` and those of `unplaced` that have their names, and shapes that do not fit.
        advice: for tensors of `unplaced` that Paddle's layer of the same kind has no place for, what to do.
        file_shapes: of PyTorch's tensors.
    """

    chosen: dict[str, Source]
    proposed: dict[str, Source]
    layers: dict[str, str]
    missing: tuple[str, ...]
    untouched: tuple[str, ...]
    unplaced: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    basis: dict[str, str]
    misfits: Mapping[str, str]
    advice: Mapping[str, str]
    file_shapes: Mapping[str, Shape] = field(repr=False)
    _network: _Network = field(repr=False)
    _plain: Callable[[str], str | None] = field(repr=False)

    @property
    def summary(self) -> str:
        """How many tensors were paired in which way."""
        only = sum(self.basis[name] == ONLY for name in self.chosen)
        by_name = len(self.chosen) - only
        parts = [
            f"{by_name} tensor{'' if by_name == 1 else 's'} by name",
            *([f"{only} without another choice"] if only else []),
            *([f"{len(self.proposed)} by order and shape only"] if self.proposed else []),
            *([f"{len(self.missing)} of the network's without any"] if self.missing else []),
            *([f"{len(self.unplaced)} of the file's without a place"] if self.unplaced else []),
        ]
        return ", ".join(parts)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Of Paddle's tensors."""
        return self._network.shapes

    @cached_property
    def _own_names(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in self.layers.items()}

    def own_name(self, theirs: str) -> str | None:
        """The Paddle network's name for a layer of the PyTorch network; None for one that it does not have."""
        if theirs in self._own_names:
            return self._own_names[theirs]
        plain = self._plain(theirs)
        return None if plain is None or self.layers.get(plain, theirs) != theirs else plain

    def nearest(self, ours: str) -> list[str]:
        """The file's tensors without a place that one of Paddle's is most likely made of, at most two."""
        fitting = [shape for shape in self._unplaced if self._network.fits(ours, [shape])]
        names = [name for shape in fitting or self._unplaced for name in self._unplaced[shape]]
        return _most_alike(self._network.expected_name(ours), {name: name for name in names})

    @cached_property
    def _unplaced(self) -> dict[Shape, list[str]]:
        by_shape: dict[Shape, list[str]] = {}
        for name in self.unplaced:
            by_shape.setdefault(self.file_shapes[name], []).append(name)
        return by_shape

    def nearest_place(self, theirs: str) -> list[str]:
        """The Paddle network's tensors without a source that one of the file's is most likely for, at most two."""
        fitting = [name for name in self.missing if self._network.fits(name, [self.file_shapes[theirs]])]
        return _most_alike(theirs, {name: self._network.expected_name(name) for name in fitting or self.missing})

    def ours_with_shape(self, name: str) -> str:
        """One of Paddle's tensors as a message shows it."""
        return f"{shown(name)} {list(self._network.shapes[name])}"

    def theirs_with_shape(self, name: str) -> str:
        """One of PyTorch's tensors as a message shows it."""
        return f"{shown(name)} {list(self.file_shapes[name])}"


def pair(
    network: nn.Layer,
    tensors: Mapping[str, np.ndarray],
    selection: Selection = EVERYTHING,
    given: Given | Mapping[str, str] | None = None,
    order: Order | None = None,
) -> Pairing:
    """Find out which of a PyTorch file's tensors each tensor of a Paddle network is made of.

    What the user says comes first, then equal names, apart from a prefix and what wrappers add; then order and shapes,
    see `convert.alignment`.

    Args:
        network: of Paddle.
        tensors: of PyTorch, by the file's names.
        selection: which of them, and their names.
        given: pairs that the user gives.
        order: of the layers, in place of that of the two state_dicts.

    Raises:
        WeightsError: what the user says does not fit; the file has several such networks, or two tensors in place of
            one of Paddle's.
    """
    return _Pairing(_Network.of(network), tensors, selection, _as_given(given), order).result()


def refuse(pairing: Pairing) -> None:
    """WeightsError for what is not certain, or has no counterpart.

    Raises:
        WeightsError: with the first such tensors, the nearest that there are, and what to do.
    """
    for ours, theirs in pairing.misfits.items():
        formula = pairing._network.possible[ours][0].formula
        raise WeightsError(
            f"has {pairing.theirs_with_shape(theirs)}, of which the network's {pairing.ours_with_shape(ours)} cannot "
            f"be made ({formula.text}): build the network with the file's sizes, or give the tensor another place with "
            f"--rename OLD=NEW (in Python: rename={{OLD: NEW}})"
        )
    if pairing.advice:
        theirs, advice = next(iter(pairing.advice.items()))
        raise WeightsError(f"has {pairing.theirs_with_shape(theirs)}, which has no place in the network: {advice}")
    if pairing.missing or pairing.unplaced:
        raise WeightsError(_without_counterpart(pairing))
    if pairing.proposed:
        ours, source = next(iter(pairing.proposed.items()))
        one = len(pairing.proposed) == 1
        them = "it" if one else "them"
        raise WeightsError(
            f"has {'a pair that goes' if one else f'{len(pairing.proposed)} pairs that go'} by order and shape only, "
            f"such as {shown(ours)} = {shown(AND.join(source.names))}: write {them} with --propose map.csv, read "
            f"{them}, and give {them} back with --map map.csv (in Python: write_proposal, mapping='map.csv')"
        )


def _without_counterpart(pairing: Pairing) -> str:
    """The sentence on tensors that have no counterpart, with the nearest."""
    said = []
    if pairing.unplaced:
        names = [
            _with_nearest(pairing.theirs_with_shape(name), map(pairing.ours_with_shape, pairing.nearest_place(name)))
            for name in pairing.unplaced[:_MAX_NAMED]
        ]
        said.append(f"has {_listed(names, len(pairing.unplaced))} without a place in the network")
    if pairing.missing:
        names = [
            _with_nearest(pairing.ours_with_shape(name), map(pairing.theirs_with_shape, pairing.nearest(name)))
            for name in pairing.missing[:_MAX_NAMED]
        ]
        said.append(f"{'' if said else 'has '}no tensor for the network's {_listed(names, len(pairing.missing))}")
    fixes = ["say which are which with --rename OLD=NEW", f"{_SEE} (in Python: rename=, drop=, mapping=)"]
    if pairing.unplaced:
        fixes.insert(1, "leave out with --drop PATTERN what the outputs do not depend on")
    return f"{' and '.join(said)}: {', '.join(fixes[:-1])}, or {fixes[-1]}"


def _with_nearest(name: str, nearest: Iterable[str]) -> str:
    return "".join([name, *(f" (nearest: {other})" for other in islice(nearest, 1))])


def _listed(names: Sequence[str], number: int) -> str:
    """These names, of so many."""
    return ", ".join(names) + (f" and {number - len(names)} more" if number > len(names) else "")


def _most_alike(name: str, others: Mapping[str, str]) -> list[str]:
    """Of the keys the two whose values are most like a name."""
    matcher = SequenceMatcher(b=name[-_MAX_LENGTH:], autojunk=False)

    def likeness(key: str) -> float:
        matcher.set_seq1(others[key][-_MAX_LENGTH:])
        return -matcher.ratio()

    return sorted(islice(others, _MAX_COMPARED), key=likeness)[:2]


@dataclass(frozen=True)
class _Network:
    """A Paddle network, as far as it matters here.

    Attributes:
        layer: the network.
        shapes: of its tensors.
        possible: what each may be made of.
        groups: its names, those of one tensor together.
    """

    layer: nn.Layer
    shapes: dict[str, Shape]
    possible: Mapping[str, tuple[Source, ...]]
    groups: Sequence[Sequence[str]]

    @classmethod
    def of(cls, network: nn.Layer) -> _Network:
        tensors = network.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return cls(network, shapes, sources(network), list(names_of_one_tensor(tensors)))

    @cached_property
    def expected(self) -> dict[str, None]:
        """Every name that some tensor may be made of."""
        return dict.fromkeys(name for some in self.possible.values() for source in some for name in source.names)

    def alternatives(self, group: Sequence[str]) -> list[Source]:
        """What the tensor of these names may be made of, the likeliest first."""
        return list(dict.fromkeys(source for name in group for source in self.possible[name]))

    def expected_name(self, name: str) -> str:
        """What PyTorch would call one of the tensors, or the first of those that it is made of."""
        return next(source.names[0] for source in self.possible[name] if source.names)

    def fits(self, name: str, shapes: Sequence[Shape]) -> bool:
        """Whether a tensor can be made of some of these shapes."""
        return any(
            len(source.names) == len(shapes) and shape_of(source.formula, shapes) == self.shapes[name]
            for source in self.possible[name]
        )


class _Pairing:
    """The work of `pair`, step by step."""

    def __init__(
        self,
        network: _Network,
        tensors: Mapping[str, np.ndarray],
        selection: Selection,
        given: Given,
        order: Order | None,
    ) -> None:
        self._network, self._tensors, self._order, self._given = network, tensors, order, given
        self._kept = [
            name
            for name in tensors
            if selection.keeps(name) and (name.rpartition(".")[2] != COUNTER or name in network.expected)
        ]
        self._chosen: dict[str, Source] = {}
        self._proposed: dict[str, Source] = {}
        self._basis: dict[str, str] = {}
        self._owners: dict[str, tuple[str, str]] = {}  # of Paddle's tensors: the layer's path, and the file's
        self._twins: list[str] = []  # PyTorch's second names for a tensor
        self._take_given()
        out = {*given.left_out, *(name for source in self._chosen.values() for name in source.names)}
        wanted = [[source.names for source in network.alternatives(group)] for group in network.groups]
        self._names = FileNames([name for name in self._kept if name not in out], wanted, selection)
        self._alignment = self._align()
        self._take_found()
        self._take_second_names()

    def _shapes(self, names: Iterable[str]) -> list[Shape]:
        return [self._tensors[name].shape for name in names]

    # What the user says

    def _take_given(self) -> None:
        """Pair what the user pairs.

        Raises:
            WeightsError: there are no such tensors, or one cannot be made of the other.
        """
        for name in self._given.left_out:
            self._refuse_unknown(name)
        for ours, text in self._given.pairs.items():
            if ours not in self._network.shapes:
                raise WeightsError(
                    f"the mapping names {shown(ours)}, which the network does not have"
                    f"{did_you_mean(ours, self._network.shapes)}: take the names of its state_dict()"
                )
            if text:
                names = (text,) if text in self._tensors else tuple(text.split(AND))
                for name in names:
                    self._refuse_unknown(name)
                self._choose(ours, self._given_source(ours, names), _GIVEN)
            elif self._of_nothing(ours):
                self._choose(ours, self._of_nothing(ours)[0], _OF_NOTHING)

    def _refuse_unknown(self, name: str) -> None:
        if name not in self._tensors:
            raise WeightsError(
                f"the mapping names {shown(name)}, which the file does not have{did_you_mean(name, self._tensors)}: "
                f"take the names in the file"
            )

    def _given_source(self, ours: str, names: tuple[str, ...]) -> Source:
        """How one of Paddle's tensors is made of these of PyTorch."""
        leaves = [split(name)[1] for name in names]
        known = [source for source in self._network.possible[ours] if len(source.names) == len(names)]
        for source in sorted(known, key=lambda source: [split(name)[1] for name in source.names] != leaves):
            if shape_of(source.formula, self._shapes(names)) == self._network.shapes[ours]:
                self._owners[ours] = split(source.names[0])[0], split(names[0])[0]
                return Source(names, source.formula)
        theirs = AND.join(f"{shown(name)} {list(shape)}" for name, shape in zip(names, self._shapes(names)))
        raise WeightsError(
            f"the mapping pairs {shown(ours)} {list(self._network.shapes[ours])} with {theirs}, of which it cannot be "
            f"made ({(known or self._network.possible[ours])[0].formula.text}): name another tensor"
        )

    # What is found

    def _align(self) -> Alignment:
        """Pair layers of the network and of the file."""
        shapes: dict[str, dict[str, Shape]] = {}
        for plain, name in self._names.names.items():
            layer, leaf = split(plain)
            shapes.setdefault(layer, {})[leaf] = self._tensors[name].shape
        leaves = {leaf for layer in shapes.values() for leaf in layer}
        places: dict[str, list[Place]] = {}
        for group in self._network.groups:
            if not any(name in self._chosen or name in self._given.pairs for name in group):
                layer, place = self._place(group, leaves)
                places.setdefault(layer, []).append(place)
        wanted = [Wanted(layer, tuple(some)) for layer, some in places.items()]
        stored = [Stored(layer, some) for layer, some in shapes.items()]
        return align(wanted, stored, self._rank() if self._order else None)

    def _place(self, group: Sequence[str], leaves: Collection[str]) -> tuple[str, Place]:
        """The layer of one of Paddle's tensors and its place there, in the form that the file has it in."""
        shape = self._network.shapes[group[0]]
        known = [source for source in self._network.alternatives(group) if source.names]

        def likeliness(source: Source) -> tuple[bool, bool, bool]:
            there = [self._names.names[name] for name in source.names if name in self._names.names]
            whole = len(there) == len(source.names)
            fits = whole and shape_of(source.formula, self._shapes(there)) == shape
            return fits, whole, all(split(name)[1] in leaves for name in source.names)

        source = max(known, key=likeliness)
        layer, _ = split(source.names[0])
        skipped = len(layer) + 1 if layer else 0
        is_optional = bool(self._of_nothing(group[0]))
        return layer, Place(group[0], tuple(n[skipped:] for n in source.names), source.formula, shape, is_optional)

    def _of_nothing(self, ours: str) -> list[Source]:
        return [source for source in self._network.possible[ours] if not source.names]

    def _rank(self) -> Callable[[Unit], tuple]:
        """The key that sorts layers as they are run; what is not run itself, as parts of attention, as its layer."""
        assert self._order
        ours = {name: number for number, name in reversed(list(enumerate(self._order.paddle)))}
        plain = [self._names.layer(name) for name in self._order.pytorch]
        theirs = {name: number for number, name in reversed(list(enumerate(plain))) if name is not None}

        def rank(unit: Unit) -> tuple:
            places, path = ours if isinstance(unit, Wanted) else theirs, unit.path
            while path and path not in places:
                path = path.rpartition(".")[0]
            return (places.get(path, len(places)),)

        return rank

    def _take_found(self) -> None:
        """Take over what the alignment paired, and give the tensors that need none what they need."""
        placed = set()
        for ours, found in self._alignment.found.items():
            names = tuple(self._names.names[joined(found.stored, leaf)] for leaf in found.leaves)
            self._owners[ours] = found.wanted, split(names[0])[0]
            placed.add(found.wanted)
            self._choose(ours, Source(names, found.place.formula), found.basis, found.is_certain)
        for name in self._network.shapes:
            free = self._of_nothing(name)
            if free and not self._has_source(name) and split(self._network.expected_name(name))[0] in placed:
                self._choose(name, free[0], _OF_NOTHING)

    def _choose(self, ours: str, source: Source, basis: str, is_certain: bool = True) -> None:
        (self._chosen if is_certain else self._proposed)[ours] = source
        self._basis[ours] = basis

    def _has_source(self, ours: str) -> bool:
        return ours in self._chosen or ours in self._proposed

    # One tensor under several names

    def _take_second_names(self) -> None:
        """Give all of Paddle's names for one tensor the same source.

        Raises:
            WeightsError: the file has other values for another of the names.
        """
        for group in self._network.groups:
            first = next((name for name in group if self._has_source(name)), None)
            if first is None or len(group) == 1:
                continue
            source = self._chosen.get(first) or self._proposed[first]
            for name in group:
                for own in self._second_names(name, source):
                    self._refuse_other_values(first, name, own, source)
                if not self._has_source(name):
                    self._choose(name, source, _TIED.format(first), first in self._chosen)

    def _second_names(self, ours: str, source: Source) -> Iterator[tuple[str, ...]]:
        """What the file has under another of a tensor's names, besides what was taken for it."""
        used = self._used()
        if self._has_source(ours):
            yield (self._chosen.get(ours) or self._proposed[ours]).names
        for other in self._network.possible[ours]:
            names = [self._names.names.get(name, "") for name in other.names]
            if names and all(name and name not in used for name in names) and len(names) == len(source.names):
                yield tuple(names)

    def _refuse_other_values(self, first: str, second: str, names: tuple[str, ...], source: Source) -> None:
        for name, other in zip(names, source.names):
            if not np.array_equal(self._tensors[name], self._tensors[other]):
                raise WeightsError(
                    f"has other numbers in {shown(name)} than in {shown(other)}, and the network has one tensor for "
                    f"both, {shown(first)} and {shown(second)}: build the network without sharing it, or leave out "
                    f"what is not wanted with --drop PATTERN (in Python: drop=[PATTERN])"
                )
            self._twins.append(name)

    def _used(self) -> set[str]:
        return {name for some in (self._chosen, self._proposed) for source in some.values() for name in source.names}

    def _copies(self, names: Iterable[str]) -> dict[str, str]:
        """Those of the tensors that are a placed one again, and which: PyTorch saves a shared one under each name."""
        by_shape: dict[Shape, list[str]] = {}
        for name in self._used():
            by_shape.setdefault(self._tensors[name].shape, []).append(name)
        copies: dict[str, str] = {}
        for name in names:
            array = self._tensors[name]
            if array.ndim < 2 or array.size < 2 or (array == array.flat[0]).all():
                continue  # what many layers begin with, so its being equal shows nothing
            for other in by_shape.get(array.shape, ()):
                if np.array_equal(self._tensors[other], array):
                    copies[name] = other
        return copies

    # What became of it

    def result(self) -> Pairing:
        """All of it."""
        untouched = tuple(name for name, text in self._given.pairs.items() if not text and not self._has_source(name))
        missing = [name for name in self._network.shapes if not self._has_source(name) and name not in untouched]
        used = self._used().union(self._twins)
        rest = [name for name in self._kept if name not in used]
        copies = self._copies(rest)
        needless = {*self._given.left_out, *copies, *filter(is_bystander, rest)}
        dropped = set(self._tensors).difference(self._kept)
        dropped = {name for name in dropped if name.rpartition(".")[2] != COUNTER}
        unplaced = tuple(name for name in rest if name not in needless)
        left_out = tuple(n for n in self._tensors if n not in used and (n in dropped or n in needless))
        return Pairing(
            chosen={name: self._chosen[name] for name in self._network.shapes if name in self._chosen},
            proposed={name: self._proposed[name] for name in self._network.shapes if name in self._proposed},
            layers=self._layers(),
            missing=tuple(missing),
            untouched=untouched,
            unplaced=unplaced,
            left_out=left_out,
            notes=tuple(self._notes(copies, left_out, untouched)),
            basis=self._basis,
            misfits=self._misfits(missing, unplaced),
            advice=self._advice(unplaced),
            file_shapes={name: array.shape for name, array in self._tensors.items()},
            _network=self._network,
            _plain=self._names.layer,
        )

    def _misfits(self, missing: Iterable[str], unplaced: Iterable[str]) -> dict[str, str]:
        open_names = set(unplaced)
        there = {plain: name for plain, name in self._names.names.items() if name in open_names}
        return {
            ours: there[source.names[0]]
            for ours in missing
            for source in self._network.possible[ours]
            if source.names and all(name in there for name in source.names)
        }

    def _advice(self, unplaced: Iterable[str]) -> dict[str, str]:
        """What to do about tensors that Paddle's layers of the same kind have no place for."""
        wanted = {theirs: ours for ours, theirs in self._owners.values()}
        names: dict[str, str] = {}
        for name in unplaced:
            layer, leaf = split(name)
            names[joined(wanted[layer], leaf) if layer in wanted else self._names.plain(name)] = name
        return {names[name]: advice for name, advice in without_place(self._network.layer, names).items()}

    def _notes(self, copies: Mapping[str, str], left_out: Sequence[str], untouched: Sequence[str]) -> Iterator[str]:
        yield from self._names.notes()
        only = [
            f"{shown(ours)} = {shown(AND.join(source.names))}"
            for ours, source in self._chosen.items()
            if self._basis[ours] == ONLY
        ]
        if only:
            yield f"paired by shape what has no other choice: {listed(only)}"
        if copies:
            pairs = (f"{shown(name)} = {shown(other)}" for name, other in copies.items())
            yield f"left out what is another tensor again: {listed(pairs)}"
        others = [shown(name) for name in left_out if name not in copies]
        if others:
            yield f"left out what is no part of the network: {listed(others)}"
        if untouched:
            yield f"left as the network was built, as the mapping says: {listed(map(shown, untouched))}"
        if self._alignment.too_many:
            yield "looked for no layer by its shapes, since the file has so many without a place"

    def _layers(self) -> dict[str, str]:
        """Paddle's layers and PyTorch's, also those that others are in, where all certain pairs agree on them."""
        found: dict[str, set[str]] = {}
        for name, (ours, theirs) in self._owners.items():
            if name not in self._chosen:
                continue
            found.setdefault(ours, set()).add(theirs)
            while ours and theirs and ours.rpartition(".")[2] == theirs.rpartition(".")[2]:
                ours, theirs = ours.rpartition(".")[0], theirs.rpartition(".")[0]
                if ours and theirs:
                    found.setdefault(ours, set()).add(theirs)
        back = Counter(next(iter(theirs)) for theirs in found.values() if len(theirs) == 1)
        one = {ours: next(iter(theirs)) for ours, theirs in found.items() if len(theirs) == 1}
        return {ours: theirs for ours, theirs in one.items() if back[theirs] == 1}


def _as_given(given: Given | Mapping[str, str] | None) -> Given:
    return given if isinstance(given, Given) else Given(given or {})


# The order in which layers are run


def executed(network: nn.Layer | torch.nn.Module, run: Callable[[], Any]) -> list[str]:
    """Names of a network's layers, of either framework, in the order in which each is first run.

    Args:
        network: of Paddle or PyTorch.
        run: runs it on some inputs.
    """
    layers: Iterable[tuple[str, Any]] = (
        network.named_sublayers() if isinstance(network, nn.Layer) else network.named_modules()
    )
    names: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: names.setdefault(name)

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers if name]
    try:
        with paddle.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(names)
