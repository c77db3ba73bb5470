"""A file's names of tensors as a network has them: prefixes and what wrappers add are taken off, where that helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import takewhile

from convert.alignment import split
from paddle_dense.errors import shown
from paddle_dense.files.names import two_names
from paddle_dense.files.spelling import Selection
from paddle_dense.models.matching import several_networks, unwrapped

_MAX_CUTS, _MAX_PREFIXES = 12, 16  # places of a name after which a prefix can end, and prefixes that are tried


class FileNames:
    """What a network calls the tensors of a file: as the user says, and without prefixes and wrappers.

    Attributes:
        names: the file's, by the network's.
    """

    def __init__(self, names: Sequence[str], wanted: Sequence[Sequence[tuple[str, ...]]], selection: Selection) -> None:
        """The names as the network has them.

        Args:
            names: the file's.
            wanted: for each tensor of the network the names of what it may be made of.
            selection: what the user says of them.

        Raises:
            WeightsError: there are several networks, or two names become one.
        """
        self._selection, self._unwraps, self._old, self._new = selection, False, "", ""
        self._find(names, wanted)
        self.names: dict[str, str] = {}
        for name in names:
            plain = self.plain(name)
            if plain in self.names:
                raise two_names(self.names[plain], name, plain)
            self.names[plain] = name

    def _find(self, names: Sequence[str], wanted: Sequence[Sequence[tuple[str, ...]]]) -> None:
        """Choose the beginnings with which most tensors of the network have names of the file's.

        If the prefix gives less than half of them their names, it is that of a part, which has a place by itself.
        """
        expected = dict.fromkeys(name for some in wanted for together in some for name in together)

        def hits(found: Iterable[str]) -> int:
            there = set(found)
            return sum(any(together and there.issuperset(together) for together in some) for some in wanted)

        best, several = hits(self._renamed(name, False) for name in names), [""]
        for unwraps in (False, True):
            renamed = dict.fromkeys(self._renamed(name, unwraps) for name in names)
            for old, new in _prefixes(renamed, expected):
                found = hits(_replaced(name, old, new) for name in renamed)
                under = hits(_replaced(name, old, new) for name in renamed if name.startswith(old))
                if found > best and 2 * under > min(len(names), len(wanted)):
                    best, several = found, [old]
                    self._unwraps, self._old, self._new = unwraps, old, new
                elif found == best and (unwraps, new) == (self._unwraps, self._new) and _are_apart(old, several):
                    several.append(old)
        if len(several) > 1:
            raise several_networks(several)

    def plain(self, name: str) -> str:
        """The network's name for a tensor, or for a layer with a dot after it."""
        return _replaced(self._renamed(name, self._unwraps), self._old, self._new)

    def layer(self, name: str) -> str | None:
        """The network's name for a layer; None if it is not under the prefix."""
        if not name:
            return ""
        renamed = self._renamed(f"{name}.", self._unwraps)
        return _replaced(renamed, self._old, self._new)[:-1] if renamed.startswith(self._old) else None

    def _renamed(self, name: str, unwraps: bool) -> str:
        renamed = self._selection.renamed(name)
        return unwrapped(renamed) if unwraps else renamed

    def notes(self) -> Iterator[str]:
        """What was done to the names."""
        if self._unwraps:
            yield "took what wrappers put into names, such as 'module.', out of them"
        if self._old or self._new:
            done = [f"took {shown(self._old)} off"] if self._old else []
            done += [f"put {shown(self._new)} before"] if self._new else []
            yield f"{' and '.join(done)} the file's names"


def _replaced(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name.startswith(old) else name


def _are_apart(prefix: str, others: Sequence[str]) -> bool:
    """Whether what is under a prefix is under none of the others, and the other way round."""
    return not any(prefix.startswith(other) or other.startswith(prefix) for other in others)


def _prefixes(names: Collection[str], expected: Collection[str]) -> list[tuple[str, str]]:
    """Beginnings of names, the file's and what stands for it in the network, with which some names are expected."""
    pairs = Counter({("", ""): 1})
    pairs.update((old, "") for name in names for old, rest in _cuts(name) if rest in expected)
    pairs.update(("", new) for name in expected for new, rest in _cuts(name) if rest in names)
    pairs[_common_prefix(names), _common_prefix(expected)] += len(names)
    return [prefixes for prefixes, _ in pairs.most_common(_MAX_PREFIXES)]


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """A name in two, after each of its first dots."""
    at = -1
    for _ in range(_MAX_CUTS):
        at = name.find(".", at + 1)
        if at < 0:
            return
        yield name[: at + 1], name[at + 1 :]


def _common_prefix(names: Collection[str]) -> str:
    """What the layers of all names begin with, whole parts and a dot."""
    layers = [split(name)[0].split(".") for name in names]
    common = list(takewhile(lambda parts: len(set(parts)) == 1 and parts[0], zip(*layers)))
    return "".join(f"{parts[0]}." for parts in common)
