"""What other code calls the tensors of a network here: tables of names, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Callable

import numpy as np

# {b} stands for a number, {b+1} for the number after it, {part} for any part of a name between dots.
_PLACE = re.compile(r"\{([a-z]+)([+-][0-9]+)?\}")
_NUMBER, _PART = "(0|[1-9][0-9]{0,5})", r"([^.]+)"


class Template:
    """The beginning of a name, with places for what differs: ``features.denseblock{b}.denselayer{l}.norm{k}``."""

    def __init__(self, text: str) -> None:
        literals = _PLACE.split(text)[::3]
        self._places = [(key, int(offset or 0)) for key, offset in _PLACE.findall(text)]
        groups = [_NUMBER if len(key) == 1 else _PART for key, _ in self._places]
        pattern = "".join(re.escape(literal) + group for literal, group in zip(literals, [*groups, ""]))
        self.places = frozenset(key for key, _ in self._places)
        self._start = literals[0]
        self._pattern = re.compile(pattern + r"(?=\.|$)")
        self._text = text

    def match(self, name: str) -> tuple[dict[str, str], str] | None:
        """What stands in the places of a name that begins so, and the rest of it; None for another name."""
        match = self._pattern.match(name) if name.startswith(self._start) else None
        if not match:
            return None
        values: dict[str, str] = {}
        for (key, offset), text in zip(self._places, match.groups()):
            value = str(int(text) - offset) if len(key) == 1 else text
            if value.startswith("-") or values.setdefault(key, value) != value:
                return None
        return values, name[match.end() :]

    def fill(self, values: Mapping[str, str]) -> str:
        """The beginning with these values in its places."""

        def value(place: re.Match[str]) -> str:
            return str(int(values[place[1]]) + int(place[2])) if place[2] else values[place[1]]

        return _PLACE.sub(value, self._text)


@dataclass(frozen=True)
class Spelling:
    """What one code base calls the tensors of a network.

    Attributes:
        source: whose names they are.
        rows: beginnings of names, theirs and ours; the first row that matches applies, and other names stay.
        reorder: puts a state under this package's names into this package's order of channels, where theirs is another;
            its second argument says whether linear layers lie as in PyTorch.
    """

    source: str
    rows: Sequence[tuple[str, str]] = ()
    reorder: Callable[[Mapping[str, np.ndarray], bool], dict[str, np.ndarray]] | None = None

    @cached_property
    def _templates(self) -> list[tuple[Template, Template]]:
        return [(Template(theirs), Template(ours)) for theirs, ours in self.rows]

    def ours(self, name: str) -> str:
        """This package's name for what they call `name`."""
        for theirs, ours in self._templates:
            found = theirs.match(name)
            if found:
                return ours.fill(found[0]) + found[1]
        return name

    def theirs(self, name: str) -> str:
        """Their name for what this package calls `name`."""
        return self.all_theirs(name)[0]

    def all_theirs(self, name: str) -> list[str]:
        """Every name that they have, or had, for what this package calls `name`; rows that cannot tell are left out."""
        found = [(theirs, ours.match(name)) for theirs, ours in self._templates]
        return [
            theirs.fill(match[0]) + match[1] for theirs, match in found if match and theirs.places <= match[0].keys()
        ] or [name]


@dataclass(frozen=True)
class Selection:
    """What the user says of a file's tensors.

    Attributes:
        drop: patterns of names, as of files (``criterion.*``), of tensors to leave out.
        rename: beginnings of names, old and new, as rows of a `Spelling`.
        part: the beginning of the names to convert, of a file with several networks.
    """

    drop: Sequence[str] = ()
    rename: Sequence[tuple[str, str]] = ()
    part: str = ""

    def keeps(self, name: str) -> bool:
        """Whether a tensor of this name is wanted."""
        return self.renamed(name).startswith(self.part) and not any(fnmatchcase(name, drop) for drop in self.drop)

    def renamed(self, name: str) -> str:
        """The name as the user's rules give it."""
        new = self._spelling.ours(name)
        return name if new == name else new.removeprefix(".")

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling("yours", self.rename)


EVERYTHING = Selection()
