"""Which network a file's tensors belong to, whatever stands before their names and whoever gave these.

Every network is tried in every spelling, from every place in the names from which on they could be its own. What covers
most of the file's tensors is the network. Tensors outside of it are left out if they compute nothing or the user says
so; any other is an error, since the original network may compute something with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
from paddle import LazyGuard

from paddle_dense.errors import WeightsError, listed, shown
from paddle_dense.files.layout import to_paddle
from paddle_dense.files.names import COUNTER, STATISTICS, TwoNamesError, renamed
from paddle_dense.files.spelling import EVERYTHING, Selection, Spelling
from paddle_dense.layers.budget import Budget, within
from paddle_dense.models.network import Network, Recognised, build_network, config_keys, networks, presets

# What wrappers put between the parts of a name: DataParallel, torch.compile, Opacus, FSDP, DeepSpeed, Paddle's own.
_WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_layers)\."
)
# Tensors that no forward pass reads: counters of thop and of SWA, torchxrayvision's thresholds, losses, metrics, and
# the heads that only training has.
_BYSTANDERS = re.compile(
    r"(.*\.)?(total_ops|total_params|n_averaged|op_threshs)"
    r"|([^.]+\.)?([a-z0-9]+_)?(criteri(on|a)|loss(es)?(_?fn|_?func|_?function)?|metrics?|acc|accuracy|auroc|auc|f1)[0-9]*"
    r"\..*"
    r"|([^.]+\.)?aux(iliary)?(_?(head|classifier|logits|fc|net))?[0-9]*\..*",
    re.IGNORECASE,
)
# Under which a network's last layer is kept, beside the network's own name for it.
_HEADS = ("classifier", "fc", "head", "heads", "output", "last_linear", "linear", "class_layers", "logits", "cls_head")
_FOLDED = (
    "subtracted the biases {} from the running means of the batch normalisations after them, which computes the same: "
    "the network here has no such biases"
)
_THRESHOLDS = (
    "torchxrayvision computes probabilities from the logits, with a sigmoid and the thresholds {}: the network here "
    "returns the logits"
)
_NUMBER = re.compile(r"[0-9]+")
_IN_PYTORCH = {ours: theirs for theirs, ours in STATISTICS.items()}
_MAX_COMPARED, _MAX_PARTS = 2000, 12  # names, and parts of each, that the nearest network is looked for by
_MAX_PREFIXES = 32  # places from which on one file's names can be a network's
_OWN = Spelling("this package")


@dataclass(frozen=True)
class Match:
    """A network and the tensors of a file that are its.

    Attributes:
        network: the class.
        found: what the tensors show of its arguments.
        state: the tensors under this package's names, in the file's own layout and order.
        names: the file's name of each.
        folded: names of the file's biases that went into running means.
        of_head: names of the file's tensors of a classifier that nobody wants.
        left_out: names of all tensors of the file that are not the network's.
        notes: what was done to tensors beside giving them names, one sentence each.
        prefix: what stood before the network's names.
        spelling: whose names they are.
        inner_head: the file's name of a classifier inside another layer, after which that may compute more.
    """

    network: type[Network]
    found: Recognised
    state: dict[str, np.ndarray]
    names: dict[str, str]
    folded: Sequence[str]
    of_head: Sequence[str]
    left_out: Sequence[str]
    notes: Sequence[str]
    prefix: str
    spelling: Spelling
    inner_head: str
    _candidate: _Candidate = field(repr=False)

    def used(self) -> set[str]:
        """Names of the file's tensors that the network has, under whatever name or in another tensor."""
        return {*self.names.values(), *self.folded}

    @property
    def is_anchored(self) -> bool:
        """Whether one of the network's anchors stands directly under the prefix."""
        return any(anchor in self.state for anchor in self.network.anchors)

    def is_apart_from(self, other: Match) -> bool:
        """Whether the two are different networks in the file, not two readings of one."""
        places = {name: own for own, name in other.names.items()}
        return self.is_anchored and not any(places.get(name) == own for own, name in self.names.items())

    def original_names(self) -> list[str]:
        """What the original file would call the tensors: this package's names where their order is another one."""
        return list(self.names) if self.spelling.reorder else list(self.names.values())

    def layer(self, name: str) -> str | None:
        """This package's name for a layer of the file, "" for the network itself; None for one that is outside."""
        return self._candidate.layer(name)

    def leaves_out(self, name: str) -> bool:
        """Whether a layer of the file is of the head that nobody wants."""
        own = self.layer(name)
        return own is not None and self._candidate.is_unwanted(f"{own}.")

    def warnings(self) -> list[str]:
        """What was done to tensors and which were left out, one sentence each."""
        left_out = [f"left out what is no part of the network: {listed(map(shown, self.left_out))}"]
        return [*self.notes, *(left_out if self.left_out else [])]


def match(
    tensors: Mapping[str, np.ndarray],
    in_pytorch: bool = False,
    selection: Selection = EVERYTHING,
    known: type[Network] | None = None,
    headless: bool = False,
    features_only: bool = False,
    strict: bool = True,
) -> Match:
    """Find the network whose tensors these are.

    Args:
        tensors: by the file's names.
        in_pytorch: they lie as PyTorch lays them out, and not as Paddle.
        selection: what the user says of them.
        known: the network, where that is known: its arguments are then not asked of the tensors.
        headless: leave the classifier out, whatever it is.
        features_only: leave the head out, whatever it is.
        strict: tensors outside of the network are an error, unless they are known to compute nothing.

    Raises:
        WeightsError: no network has such tensors, several have, or some of them belong to none.
    """
    kept = {name: value for name, value in tensors.items() if selection.keeps(name) and not is_bystander(name)}
    matches: list[Match] = []
    failures: list[tuple[int, WeightsError, _Candidate]] = []
    for candidate in _candidates(kept, selection, known, headless, features_only):
        try:
            found = candidate.match(kept, in_pytorch, recognise=known is None)
        except WeightsError as error:
            failures.append((len(candidate.covered), error, candidate))
            continue
        if found:
            matches.append(found)
    if not matches:
        raise _refusal(tensors, kept, selection, failures)
    best = _nearest(matches)
    used = best.used()
    own = used.union(best.of_head)
    for size, failure, candidate in failures:
        # What covers more of the file, or would be the same tensor again, is nearer to it than what merely fits a part.
        if candidate.network is best.network and (size > len(own) or isinstance(failure, TwoNamesError)):
            raise failure
    if strict:
        _refuse_others(best, own, matches, kept)
    left_out = [name for name in tensors if name not in used]
    thresholds = [shown(name) for name in left_out if name.rpartition(".")[2] == "op_threshs"]
    notes = [_THRESHOLDS.format(listed(thresholds))] if thresholds else []
    return replace(best, left_out=left_out, notes=[*best.notes, *notes])


def _nearest(matches: Sequence[Match]) -> Match:
    """The match that covers most of the file; of several, the one that has a place for most of it."""

    def size(found: Match) -> tuple[int, bool]:
        return len(found.names), found.is_anchored

    most = max(map(size, matches))
    nearest = [found for found in matches if size(found) == most]
    return nearest[0] if len(nearest) == 1 else max(nearest, key=_places)


def _places(found: Match) -> int:
    """How many of the tensors the network has."""
    try:
        with LazyGuard(), within(Budget.of(found.state)):
            model = build_network(found.network.__name__, found.found.config)
    except ValueError:
        return 0
    return len(found.names.keys() & model.state_dict().keys())


def _refuse_others(best: Match, own: set[str], matches: Sequence[Match], kept: Mapping[str, np.ndarray]) -> None:
    """WeightsError for tensors outside of the network, which has those named `own`: another one's, or nobody's."""
    several = [best]
    for other in sorted(matches, key=lambda found: -len(found.names)):
        if all(other.is_apart_from(found) for found in several):
            several.append(other)
    if len(several) > 1:
        raise several_networks(found.prefix for found in several)
    strangers = [name for name in kept if name not in own]
    if strangers:
        one = len(strangers) == 1
        them, their = ("it", "its") if one else ("them", "their")
        raise WeightsError(
            f"has {'a tensor' if one else f'{len(strangers)} tensors'} next to the {best.network.__name__} under "
            f"{shown(best.prefix)}, {listed(map(shown, strangers))}: if the network's outputs do not depend on {them}, "
            f"leave {them} out with --drop PATTERN (in Python: drop=[PATTERN]), otherwise give {them} {their} place in "
            f"it with --rename OLD=NEW (in Python: rename={{OLD: NEW}})"
        )


def several_networks(prefixes: Iterable[str]) -> WeightsError:
    """What is wrong with a file that has a network under each of these prefixes."""
    return WeightsError(
        f"holds several networks, under {listed(map(shown, prefixes))}: choose one with --part PREFIX, or leave the "
        f"others out with --drop 'PREFIX*' (in Python: part=PREFIX or drop=['PREFIX*'])"
    )


def _refusal(
    tensors: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
    selection: Selection,
    failures: Sequence[tuple[int, WeightsError, _Candidate]],
) -> WeightsError:
    """Why no network has these tensors: what is wrong with the nearest, or the names of the first."""
    if failures:
        return max(failures, key=lambda failure: (failure[0], isinstance(failure[1], TwoNamesError)))[1]
    if not kept and tensors:
        under = f" under {shown(selection.part)}" if selection.part else ""
        return WeightsError(f"has no tensor left{under}: check --part and --drop (in Python: part= and drop=)")
    known = ", ".join(network.__name__ for network in networks())
    if not kept:
        return WeightsError(f"holds no tensors, so none of the known networks ({known}): take a file with weights")
    names = [name for name in kept if not name.endswith(COUNTER)] or list(kept)
    nearest, strange = _nearest_by_names(names[:_MAX_COMPARED], selection)
    named = [f"{shown(name)} {list(kept[name].shape)}" for name in strange]
    has = f"and the nearest, {nearest}, has none like" if nearest else "and none has tensors named like"
    if not strange:
        return WeightsError(
            f"holds none of the known networks ({known}): all tensors have names of the nearest, {nearest}, but others "
            f"of its own are missing, so take a complete file, or see 'Add a model' in the documentation"
        )
    return WeightsError(
        f"holds none of the known networks ({known}), {has} {listed(named[:1] if nearest else named[:3])}: if it is "
        f"one of them under other names, say which are which with --rename OLD=NEW (in Python: rename={{OLD: NEW}}), "
        f"and otherwise see 'Add a model' in the documentation"
    )


def _nearest_by_names(names: Sequence[str], selection: Selection) -> tuple[str, list[str]]:
    """The network that has most of these names under one prefix, and those that it has not; "" if none has a tenth."""
    ends = {name: _ends(unwrapped(selection.renamed(name))) for name in names}
    nearest, placed = "", set(names[: len(names) // 10])
    for network in networks():
        for spelling in (_OWN, *network.spellings):
            theirs = {_NUMBER.sub("#", other) for name in _own_names(network) for other in spelling.all_theirs(name)}
            by_prefix: dict[str, set[str]] = {}
            for name, endings in ends.items():
                for prefix, end in endings:
                    if end in theirs:
                        by_prefix.setdefault(prefix, set()).add(name)
            most = max(by_prefix.values(), key=len, default=set())
            if len(most) > len(placed):
                nearest, placed = network.__name__, most
    return nearest, [name for name in names if not nearest or name not in placed]


def _ends(name: str) -> list[tuple[str, str]]:
    """A name in two, at each of its dots but the last; the second half with one sign for all numbers."""
    parts = name.split(".")
    starts = range(max(0, len(parts) - _MAX_PARTS), max(1, len(parts) - 1))
    return [(".".join(parts[:start]), _NUMBER.sub("#", ".".join(parts[start:]))) for start in starts]


@cache
def _own_names(network: type[Network]) -> Sequence[str]:
    """What a network's tensors are called in PyTorch, in all of its forms; of names that differ in numbers, one."""
    forms: Sequence[Mapping[str, bool]] = [{}, {"condensed": False}] if "condensed" in config_keys(network) else [{}]
    names: dict[str, str] = {}
    for form in forms:
        with LazyGuard():
            model = presets(network)[0].build(form)
        for name in model.state_dict():
            layer, _, leaf = name.rpartition(".")
            name = f"{layer}.{_IN_PYTORCH.get(leaf, leaf)}"
            names.setdefault(_NUMBER.sub("#", name), name)
    return list(names.values())


def _candidates(
    tensors: Iterable[str], selection: Selection, known: type[Network] | None, headless: bool, features_only: bool
) -> Iterator[_Candidate]:
    """Every network in every spelling, from every place in the names at which one of its anchors begins."""
    plain = {name: unwrapped(selection.renamed(name)) for name in tensors}
    ends: dict[str, list[str]] = {}
    for name in plain.values():
        ends.setdefault(_end(name), []).append(name)
    for network in [known] if known else networks():
        for spelling in (_OWN, *network.spellings):
            prefixes = [""] if spelling is _OWN and (known or not network.anchors) else []
            for anchor in _anchors(network, spelling):
                names = (name for name in ends.get(_end(anchor), ()) if name.endswith(anchor))
                before = (name[: len(name) - len(anchor)] for name in names)
                prefixes += [prefix for prefix in before if not prefix or prefix.endswith(".")]
            for prefix in sorted(dict.fromkeys(prefixes), key=len)[:_MAX_PREFIXES]:
                yield _Candidate(network, spelling, prefix, selection, headless, features_only, plain)


def _end(name: str) -> str:
    """The last two parts of a name, which every anchor has."""
    return ".".join(name.rsplit(".", 2)[-2:])


def _anchors(network: type[Network], spelling: Spelling) -> Iterator[str]:
    """What the network's anchors are called in a spelling, with older names of single layers and without."""
    older = _table(network.aliases)
    for anchor in network.anchors:
        for name in dict.fromkeys((anchor, *older.all_theirs(anchor))):
            yield from spelling.all_theirs(name)


@cache
def _table(rows: tuple[tuple[str, str], ...]) -> Spelling:
    """Rows of a network's own, compiled once for all candidates."""
    return Spelling("this package", rows)


def is_bystander(name: str) -> bool:
    """Whether a tensor of this name is none that a forward pass reads."""
    return bool(_BYSTANDERS.fullmatch(name))


def unwrapped(name: str) -> str:
    """A name without what wrappers put between its parts."""
    return _WRAPPERS.sub("", name)


@dataclass
class _Candidate:
    """A network, a spelling and a prefix that may be those of a file."""

    network: type[Network]
    spelling: Spelling
    prefix: str
    selection: Selection
    headless: bool
    features_only: bool
    plain: Mapping[str, str]  # the file's names without wrappers' parts, by the names themselves
    head: str = ""  # the file's classifier, as the network's names go, where it has another name

    @cached_property
    def covered(self) -> dict[str, str]:
        """The file's tensors under the prefix, and what the spelling makes of their names."""
        return {
            name: self._spelled(plain[len(self.prefix) :])
            for name, plain in self.plain.items()
            if plain.startswith(self.prefix)
        }

    def ours(self, name: str) -> str:
        """This package's name for a tensor under the prefix."""
        return self._with_head(self.covered[name])

    def layer(self, name: str) -> str | None:
        """This package's name for a layer of the file; None if it is outside."""
        plain = unwrapped(self.selection.renamed(f"{name}.")) if name else ""
        if not plain.startswith(self.prefix):
            return None
        return self._with_head(self._spelled(plain[len(self.prefix) : -1]))

    def _spelled(self, name: str) -> str:
        return _table(self.network.aliases).ours(self.spelling.ours(name))

    def _with_head(self, own: str) -> str:
        if self.head and f"{own}.".startswith(f"{self.head}."):
            return self.network.classifier_name + own[len(self.head) :]
        return own

    def match(self, tensors: Mapping[str, np.ndarray], in_pytorch: bool, recognise: bool) -> Match | None:
        """The network with the file's tensors; None if they are another network's.

        Raises:
            WeightsError: they are nearly those of this network.
        """
        kept = {name: tensors[name] for name in self.covered}
        without: list[str] = []
        if self.headless or self.features_only:
            without = [name for name in kept if self.is_unwanted(self.ours(name))]
            kept = {name: value for name, value in kept.items() if name not in set(without)}
        else:
            self.head = self._find_head(kept, several=not recognise)
        state = renamed(kept, self.ours)
        names = dict(zip(state, kept))
        notes = self._complete_head(state, names) if in_pytorch and not without else []
        folded = self._fold(state, names)
        self._refuse_other_dimensions(state, names)
        with self._reading():
            found = self.network.recognise(to_paddle(state) if in_pytorch else state) if recognise else Recognised({})
            if found is None:
                return None
            if self.spelling.reorder:
                state = self.spelling.reorder(state, in_pytorch)
        if found.config.get("features_only") and not self.features_only:
            notes.append("the file has no head, so the network returns its feature maps, as features_only=True")
        if folded:
            notes.append(_FOLDED.format(listed(map(shown, folded))))
        is_inner = self.head.startswith(f"{self.network.classifier_name}.") or self.head.rpartition(".")[2].isdigit()
        inner = names[f"{self.network.classifier_name}.weight"].rpartition(".")[0] if is_inner else ""
        return Match(
            self.network, found, state, names, folded, without, without, notes, self.prefix, self.spelling, inner, self
        )

    def _refuse_other_dimensions(self, state: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
        for anchor in self.network.anchors:
            if anchor in state and state[anchor].ndim in (3, 5):
                raise WeightsError(
                    f"has a convolution of {state[anchor].ndim - 2}-D inputs, {shown(names[anchor])} "
                    f"{list(state[anchor].shape)}, and {self.network.__name__} takes images: give a checkpoint of the "
                    f"2-D network"
                )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """WeightsError for whatever reading a network's tensors stumbles over."""
        try:
            yield
        except KeyError as error:
            raise WeightsError(f"the file looks like a {self.network.__name__} but tensor {error} is missing") from None
        except WeightsError:
            raise
        except (ArithmeticError, IndexError, TypeError, ValueError):
            raise WeightsError(
                f"the file looks like a {self.network.__name__} but the shapes of its tensors do not fit together"
            ) from None

    def is_unwanted(self, name: str) -> bool:
        """Whether a tensor is of the head that is to be left out."""
        if self.features_only and name.startswith(self.network.head_prefixes):
            return True
        return (self.headless or self.features_only) and self._is_of_head(name)

    def _is_of_head(self, name: str) -> bool:
        """Whether a tensor is the classifier's, or that of a layer in its place, and not another of the network's."""
        own = (f"{self.network.classifier_name}.",)
        others = tuple(prefix for prefix in self.network.head_prefixes if not own[0].startswith(prefix))
        if name.startswith(own):
            return True
        return name.partition(".")[0] in _HEADS and not name.startswith(others)

    def _find_head(self, tensors: Mapping[str, np.ndarray], several: bool) -> str:
        """The linear layer that is the classifier where none has the network's own name for it; "" for none.

        Raises:
            WeightsError: it could be one of several, which is no error of a network that is known.
        """
        names = {self.ours(name): value for name, value in tensors.items()}
        classifier = self.network.classifier_name
        if any(f"{classifier}.{leaf}" in names for leaf in ("weight", "linear.weight")):
            return ""
        weights = [name for name, value in names.items() if name.endswith(".weight") and value.ndim == 2]
        linear = [name.rpartition(".")[0] for name in weights if self._is_of_head(name)]
        if len(linear) > 1 and not several:
            raise WeightsError(
                f"has several linear layers, {listed(map(shown, linear))}, where {self.network.__name__} has one "
                f"classifier: --config num_classes=0 (in Python: num_classes=0) takes the network without them, up to "
                f"its pooled features"
            )
        return linear[0] if len(linear) == 1 else ""

    def _complete_head(self, state: dict[str, np.ndarray], names: dict[str, str]) -> list[str]:
        """Give PyTorch's classifier without a bias one of zeros, which changes nothing; that in words."""
        weight, bias = (f"{self.network.classifier_name}.{leaf}" for leaf in ("weight", "bias"))
        if weight not in state or bias in state or state[weight].ndim != 2:
            return []
        state[bias] = np.zeros(len(state[weight]), state[weight].dtype)
        names[bias] = names[weight][: -len("weight")] + "bias"
        return [
            f"the classifier has no bias, {shown(names[bias])}, in the file: zeros, which change nothing, are taken"
        ]

    def _fold(self, state: dict[str, np.ndarray], names: dict[str, str]) -> list[str]:
        """Take biases of convolutions, which the networks here have not, off the mean of the normalisation after them.

        A normalisation subtracts its mean, so what a bias adds before it is taken off there exactly.
        """
        folded: list[str] = []
        norms = _table(self.network.folds)
        for name in [name for name in state if name.endswith(".bias")]:
            norm = norms.ours(name)
            if norm == name:
                continue
            means = [norm[: -len("bias")] + leaf for pair in STATISTICS.items() for leaf in pair]
            mean = next((mean for mean in means if mean in state), None)
            if mean is None or state[mean].shape != state[name].shape:
                continue
            folded.append(names.pop(name))
            state[mean] = (state[mean].astype(np.float64) - state.pop(name)).astype(state[mean].dtype)
        return folded
