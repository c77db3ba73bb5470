"""Which of a file's sets of weights is taken: EMA weights before the best ones before the last ones, or one by its key.

A set is a dict of tensors by name, a whole pickled module, or the list of a module's parameters that torch_ema saves.
Its key is that of the dict it is under; where dicts stand in dicts, theirs joined by dots.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from paddle_dense.errors import WeightsError, listed, shown
from paddle_dense.files.foreign import sharded
from paddle_dense.files.modules import SAVE, Layers, entries_of, is_module
from paddle_dense.files.names import COUNTER, STATISTICS
from paddle_dense.files.unpickle import Inert, Lazy, describe

BARE, MODULE = "bare", "module"  # the keys of a file that is nothing but one set

_PLAIN_KEYS = ("state_dict", "model", "model_state_dict", "net", "params")
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged|shadow)(_|$)", re.IGNORECASE)
_BEST = re.compile(r"(^|_)best(_|$)", re.IGNORECASE)
# Next to EMA weights: the plain ones, kept while the EMA weights are in the network. And what optimizers average.
_NOT_TAKEN = re.compile(r"(backup|collected_params|optim(iz\w*)?|\w*scheduler\w*)$", re.IGNORECASE)
_UPDATES = ("n_averaged", "steps")  # how often PyTorch's and MMEngine's averages were updated, in their state_dicts
# Buffers by their last name, in the networks known here. All else is a parameter.
_BUFFERS = {*STATISTICS, COUNTER, "index", "_mask", "_count", "_stage"}

_MAX_DEPTH = 4  # of dicts and lists in which weights are looked for
_MAX_MODULES = 8  # whose names are compared
_MAX_KEY = 200  # characters
_BY_KEY = "with --key NAME (in Python: key=)"


@dataclass(frozen=True)
class Set:
    """A set of weights in a file.

    Attributes:
        key: where it is.
        value: the dict, module or list.
        averaged: its key says that these are EMA weights, or averaged in another way.
        best: its key says that they are the best of a training.
    """

    key: str
    value: Any
    averaged: bool = False
    best: bool = False

    @cached_property
    def entries(self) -> Mapping[Any, Any]:
        """What it holds by name; nothing of a list, or of a module that is none, which nobody asked for."""
        if isinstance(self.value, dict):
            return self.value
        try:
            return entries_of(self.value)[0] if is_module(self.value) else {}
        except WeightsError:
            return {}

    @cached_property
    def tensors(self) -> dict[str, Lazy]:
        """Those that make a network, by name."""
        return _tensors(self.entries)

    @cached_property
    def parameters(self) -> list[str]:
        """The names of those that are no buffers."""
        return [name for name in self.tensors if _leaf(name) not in _BUFFERS]

    def could_be(self, network: Set) -> bool:
        """Whether it has enough tensors for most of a network's parameters, which is quickly seen."""
        return 2 * (len(self.value) if self.is_list else len(self.tensors)) > len(network.parameters)

    @property
    def is_list(self) -> bool:
        """Whether it is a list of tensors without names."""
        return isinstance(self.value, (list, tuple))


@dataclass(frozen=True)
class Taken:
    """The set that was taken.

    Attributes:
        key: where it was.
        averaged: these are EMA weights, or averaged in another way.
        entries: what it holds by name.
        layers: of a module, what it states of its layers.
        module: the module itself, or None for a dict or list.
        sets: the keys of all sets for the same network, this one first.
        warnings: what the user should know of the choice, one sentence each.
    """

    key: str
    averaged: bool
    entries: Mapping[Any, Any]
    layers: Layers = field(default_factory=dict)
    module: Any = None
    sets: Sequence[str] = ()
    warnings: Sequence[str] = ()


def take(saved: Any, ema: bool = True, key: str | None = None) -> Taken:
    """Find the network's weights in what a file holds.

    Args:
        saved: all that the file holds.
        ema: take EMA weights where there are some.
        key: take the set with this key instead.

    Raises:
        WeightsError: there are none, nobody can say which are meant, or the set lacks tensors.
    """
    if is_module(saved):
        sets = [Set(MODULE, saved)]
    elif isinstance(saved, dict):
        sets = _with_roles(saved, list(_sets_in(saved)))
    else:
        raise WeightsError(f"holds {describe(saved)} instead of a state_dict: {SAVE}")
    plain = sets[0] if is_module(saved) else _plain_set(saved, sets)
    if key is not None:
        taken, entries = _by_key(saved, sets, plain, key)
    else:
        taken, entries = _preferred(saved, sets, plain, ema)
    module = taken.value if is_module(taken.value) else None
    layers = entries_of(module)[1] if module else {}
    network = Set(taken.key, dict(entries))
    others = [other for other in sets if other.value is not taken.value and _is_like(other, network)]
    others.sort(key=lambda other: not other.averaged)
    wanted = [] if key is not None else [other for other in others if ema or not other.averaged]
    warnings = _said_of(taken, plain, wanted, [] if key is not None or not ema else _unread(sets, taken, others))
    keys = [taken.key, *(other.key for other in others)]
    return Taken(taken.key, taken.averaged, _without_updates(entries), layers, module, keys, warnings)


# All sets of a file


def _sets_in(saved: Mapping[Any, Any]) -> Iterator[Set]:
    """Every set in a file, the outer ones first; nothing is looked at twice, and few modules at all."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), saved)])
    seen: set[int] = set()
    modules = 0
    while waiting:
        path, value = waiting.popleft()
        if id(value) in seen or any(map(_NOT_TAKEN.match, path)):
            continue
        seen.add(id(value))
        modules += is_module(value)
        averaged, best = (any(map(words.search, path)) for words in (_AVERAGED, _BEST))
        if (_has_tensors(value) and modules <= _MAX_MODULES) or (averaged and _is_list(value)):
            yield Set(".".join(path) or BARE, value, averaged, best)
        if len(path) < _MAX_DEPTH and not is_module(value):
            inside = [(name, part) for name, part in _inside(value) if isinstance(part, (dict, Inert, list, tuple))]
            waiting += [((*path, _part(name)), part) for name, part in inside]


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Lazy) for item in value)


def _inside(value: object) -> Iterable[tuple[Any, Any]]:
    """What is in a dict, a list or an object, by name or number."""
    inside = value.state if isinstance(value, Inert) else value
    if isinstance(inside, (list, tuple)):
        return enumerate(inside)
    return inside.items() if isinstance(inside, dict) else ()


def _part(name: object) -> str:
    return name if isinstance(name, str) and len(name) <= _MAX_KEY else shown(name)


def _has_tensors(value: object) -> bool:
    return is_module(value) or (isinstance(value, dict) and _count(value) > 0)


def _count(entries: Mapping[Any, Any]) -> int:
    return sum(isinstance(value, Lazy) for value in entries.values())


def _with_roles(saved: Mapping[Any, Any], sets: list[Set]) -> list[Set]:
    """The sets, where two libraries swap them: the EMA weights are under the plain name, ready for use.

    MMEngine's EMAHook saves the trained weights as "ema_state_dict", those of a model that counts its "steps";
    Lightning's WeightAveraging saves them as "current_model_state".
    """
    ema = saved.get("ema_state_dict")
    by_mmengine = isinstance(ema, dict) and "steps" in ema and all(_in_average(name) for name in ema)
    by_lightning = "averaging_state" in saved and "current_model_state" in saved
    if not (_has_tensors(saved.get("state_dict")) and (by_mmengine or by_lightning)):
        return sets
    roles = {"state_dict": True, "ema_state_dict" if by_mmengine else "current_model_state": False}
    return [replace(one, averaged=roles.get(one.key, one.averaged)) for one in sets]


def _in_average(name: object) -> bool:
    return name in _UPDATES or (isinstance(name, str) and name.startswith("module."))


# The choice


def _plain_set(saved: Mapping[Any, Any], sets: Sequence[Set]) -> Set | None:
    """The set with the network's weights as they were trained; None where nothing says which it is."""
    by_id = {id(one.value): one for one in sets}
    chosen = [one for one in sets if not one.averaged and any(name not in _UPDATES for name in one.entries)]
    for wanted in ([one for one in chosen if not one.best], chosen):
        kept = {id(one.value) for one in wanted}
        level = {key: value for key, value in saved.items() if id(value) in kept}
        found = _plain(saved, level)
        if found:
            return replace(by_id[id(found[1])], key=found[0])
    inner = [one for one in chosen if one.key.count(".") == 1 and one.key.rpartition(".")[2] in _PLAIN_KEYS]
    return inner[0] if len(inner) == 1 else None


def _plain(saved: Mapping[Any, Any], level: Mapping[Any, Any]) -> tuple[str, Any] | None:
    """The key and the set among the entries `level` of a file."""
    for key in _PLAIN_KEYS:
        if _has_tensors(level.get(key)):
            return key, level[key]
    # One object under several names is one object.
    named = {id(value): (key, value) for key, value in level.items() if isinstance(key, str)}.values()
    nested = [(key, value) for key, value in named if _has_tensors(value)]
    own = _count(saved)
    # A tensor or two next to the weights are a random state or the like.
    if own and all(isinstance(value, dict) and _count(value) <= own for _, value in nested):
        return BARE, saved
    return nested[0] if len(nested) == 1 else None


def _preferred(
    saved: Mapping[Any, Any], sets: Sequence[Set], plain: Set | None, ema: bool
) -> tuple[Set, Mapping[Any, Any]]:
    """The set that is taken unless the user says which."""
    better = sorted((one for one in sets if one.averaged and (ema or plain is None)), key=lambda one: not one.best)
    better += [one for one in sets if one.best and not one.averaged]
    for one in better:
        entries = _complete(one, plain)
        if entries is not None:
            return one, entries
    if plain is not None:
        return plain, plain.entries
    found = listed(f"{shown(key)}, {describe(value)}" for key, value in saved.items())
    if not all(one.is_list for one in sets):
        raise WeightsError(f"holds several dicts of tensors, among {found}: take one {_BY_KEY}, or {SAVE}")
    parts = (sharded(*part) for inside in (saved, *filter(_is_dict, saved.values())) for part in inside.items())
    raise WeightsError(next(filter(None, parts), f"holds no dict of tensors, among {found}: {SAVE}"))


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _by_key(saved: Any, sets: Sequence[Set], plain: Set | None, key: str) -> tuple[Set, Mapping[Any, Any]]:
    """The set that the user names, or the only one inside what the user names."""
    named = [plain] if plain and plain.key == key else [one for one in sets if one.key == key]
    named = named or [one for one in sets if one.key.startswith(f"{key}.")] or _under_another_key(saved, sets, key)
    if len(named) != 1:
        keys = listed(shown(one.key) for one in (named or sets))
        advice = f"give one of {keys}" if keys else SAVE
        raise WeightsError(f"holds {'several sets' if named else 'no weights'} under {shown(key)}: {advice}")
    entries = _complete(named[0], plain)
    if entries is None and named[0].is_list:
        raise WeightsError(f"holds a list of tensors without names under {shown(key)}: give another key, or {SAVE}")
    return named[0], named[0].entries if entries is None else entries


def _under_another_key(saved: Any, sets: Sequence[Set], key: str) -> list[Set]:
    """The sets at a key, or inside what is there, that were found under another one: an object can have several."""
    found = _at(saved, key)
    exact = [one for one in sets if one.value is found]
    inside = {id(one.value) for one in _sets_in(found)} if found is not None else set()
    return [replace(one, key=key) for one in exact or sets if exact or id(one.value) in inside]


def _at(value: Any, key: str) -> Any:
    """What is at a key in a dict, a list or an object; None for nothing."""
    for name, part in _inside(value):
        start = _part(name)
        if start == key:
            return part
        if key.startswith(f"{start}.") and (found := _at(part, key[len(start) + 1 :])) is not None:
            return found
    return None


def _complete(one: Set, plain: Set | None) -> Mapping[Any, Any] | None:
    """The entries of a set with all names of the plain ones; buffers that it has none of are those of the plain set.

    Returns:
        None for a set of another network, or without all tensors of a kind that is no buffer.

    Raises:
        WeightsError: it lacks single tensors, which nobody leaves out, so one of the two is damaged; or it is the list
            of a network's parameters and those of the plain set are others.
    """
    if one.is_list:
        return _named(one, plain)
    if plain is None or plain.value is one.value:
        return one.entries
    if not one.could_be(plain):
        return None
    names, found = _aligned(plain, one)
    lacking, kinds = names.keys() - found.keys(), {_leaf(name) for name in found}
    single = [shown(name) for name in sorted(lacking) if _leaf(name) in kinds]
    if single and 2 * len(lacking) < len(names):
        raise WeightsError(
            f"has {'EMA ' * one.averaged}weights under {shown(one.key)} without {listed(single)}, which the plain "
            f"ones have: take the plain ones with {_option(one, plain)}, or save the right ones alone with torch.save"
        )
    if not lacking:
        return one.entries
    if single or not {_leaf(name) for name in lacking} <= _BUFFERS:
        return None
    return {**plain.entries, **{name: one.entries[found[common]] for common, name in names.items() if common in found}}


def _option(one: Set, plain: Set) -> str:
    if one.averaged:
        return "--no-ema (in Python: ema=False)"
    return f"--key {shown(plain.key)} (in Python: key={shown(plain.key)})"


def _named(one: Set, plain: Set | None) -> Mapping[Any, Any] | None:
    """The entries of a list of all parameters, as torch_ema saves it: in the order of the plain set, which names them.

    Raises:
        WeightsError: it is called as torch_ema calls it and has other shapes.
    """
    if plain is None:
        return None
    expected = [name for name in plain.parameters if plain.tensors[name].form()[1]]
    if expected and _forms(one.value) == _forms(plain.tensors[name] for name in expected):
        return {**plain.entries, **dict(zip(expected, one.value))}
    if one.key.rpartition(".")[2] == "shadow_params":
        raise WeightsError(
            f"has a list of {len(one.value)} EMA weights under {shown(one.key)}, which are not, one by one, those "
            f"of the {len(expected)} parameters under {shown(plain.key)}: take the latter with "
            f"{_option(replace(one, averaged=True), plain)}"
        )
    return None


# What the user should know


def _is_like(one: Set, network: Set) -> bool:
    """Whether a set is for the same network as another: it has most of the parameters' names, or is their list."""
    if not one.could_be(network):
        return False
    if one.is_list:
        return _forms(one.value) == _forms(network.tensors[name] for name in network.parameters)
    names, found = _aligned(network, one)
    wanted = {name for name in names if _leaf(name) not in _BUFFERS}
    return 2 * len(wanted & found.keys()) > len(wanted)


def _forms(tensors: Iterable[Lazy]) -> list[tuple[tuple[int, ...] | None, bool]]:
    """Shapes of tensors, and whether they are floats."""
    return [tensor.form() for tensor in tensors]


def _unread(sets: Sequence[Set], taken: Set, others: Collection[Set]) -> list[str]:
    """Keys of EMA weights that could not be used; the outermost ones where they are under several."""
    known = {id(one.value) for one in (taken, *others)}
    return [one.key for one in sets if one.averaged and id(one.value) not in known]


def _said_of(taken: Set, plain: Set | None, others: Sequence[Set], unread: Sequence[str]) -> list[str]:
    """What else the file has of the same network, in one sentence; nothing where the user chose."""
    left_out = list(dict.fromkeys([*unread, *(one.key for one in others)]))
    if not left_out:
        return []
    from_plain = taken.averaged and plain and len(taken.value if taken.is_list else taken.tensors) < len(plain.tensors)
    buffers = f", with the buffers of those under {shown(plain.key)}" if plain and from_plain else ""
    return [
        f"took the weights under {shown(taken.key)}{buffers}, and left out those under {listed(map(shown, left_out))}"
        f"{' (--no-ema takes the plain ones)' if taken.averaged and plain else ''}: to convert others, name them "
        f"{_BY_KEY}"
    ]


# Names


def _tensors(entries: Mapping[Any, Any]) -> dict[str, Lazy]:
    """The tensors that make a network."""
    return {
        name: value
        for name, value in entries.items()
        if isinstance(value, Lazy) and isinstance(name, str) and _leaf(name) not in (COUNTER, *_UPDATES)
    }


def _aligned(one: Set, other: Set) -> tuple[dict[str, str], dict[str, str]]:
    """The names of the tensors in two sets by what they have in common: one may be wrapped and the other not."""
    names, others = one.tensors, other.tensors
    starts = _prefix(names), _prefix(others)
    while starts[0] and starts[1] and starts[0].split(".")[-2] == starts[1].split(".")[-2]:
        starts = _outer(starts[0]), _outer(starts[1])
    whole = {name: name for name in names}, {name: name for name in others}
    cut = {name[len(starts[0]) :]: name for name in names}, {name[len(starts[1]) :]: name for name in others}
    return max(whole, cut, key=lambda pair: len(pair[0].keys() & pair[1].keys()))


def _prefix(names: Collection[str]) -> str:
    """The part of all names up to a dot that they share."""
    if not names:
        return ""
    first, last = min(names), max(names)  # what these two share, all share
    shared = next((at for at, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return first[: first.rfind(".", 0, shared) + 1]


def _outer(prefix: str) -> str:
    return prefix[: prefix[:-1].rfind(".") + 1]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _without_updates(entries: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A state_dict of MMEngine's EMA model without the number of its updates, the only name without a prefix."""
    if "steps" in entries and all(_in_average(name) for name in entries):
        return {name: value for name, value in entries.items() if name != "steps"}
    return entries
