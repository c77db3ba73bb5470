"""What a whole pickled module states of its layers, beside the network that its tensors make.

A file of tensors shows neither an epsilon nor a stride nor an activation. A pickled module does, layer by layer, and
what it states has to be what the network computes: `compare` finds where it is not.

Layers are compared by name, once the file's names are those of this package. Two kinds of layers need more:

* An activation or a pool can stand in one network as a layer and in the other as a call in `forward`. A layer of the
  file that the network has not is compared with what the network computes at that place, and what the network computes
  but the file does not list is a contradiction only inside an ``nn.Sequential``, which computes what it lists.
* What a class that nobody knows computes is not in the file. It is no contradiction, but has to be said.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Callable

from paddle import nn

from paddle_dense.errors import WeightsError, shown
from paddle_dense.files.torch_file import Checkpoint, Layers
from paddle_dense.models.arguments import check_arguments
from paddle_dense.models.effects import (
    ADAPTIVE_POOL,
    LINEAR,
    MEAN_POOL,
    NOTHING,
    SEQUENTIAL,
    Effect,
    MaybeEffect,
    called_by,
    effect_in_file,
    effect_in_network,
    is_known,
)
from paddle_dense.models.matching import Match
from paddle_dense.models.network import Network, config_keys, presets
from paddle_dense.models.recognise import Architecture, Stated, differences, full_config

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

_PLAIN_SEQUENTIAL = "torch.nn.modules.container.Sequential"
_PROBABLE = ("Sigmoid", "Softmax", "LogSoftmax", "LogSigmoid")  # of logits; they leave their order as it is
_MAX_LAYERS = 20_000  # the networks of this package have up to some 1500


class _Network:
    """What a network computes, by the names of its layers."""

    def __init__(self, outline: nn.Layer) -> None:
        self.layers = dict(outline.named_sublayers(include_self=True))
        self.effects = {name: effect_in_network(layer) for name, layer in self.layers.items()}
        self._inside: dict[str, list[Effect]] = {}
        self.last_side = outline.input_size // outline.feature_strides[-1]

    def children(self, name: str) -> list[str]:
        prefix = f"{name}." if name else ""
        return [f"{prefix}{child}" for child, _ in self.layers[name].named_children()]

    def after(self, name: str) -> tuple[str, Effect] | None:
        """The activation or pool that follows a layer with tensors, and its name; None where none does."""
        while name:
            parent, _, leaf = name.rpartition(".")
            called = called_by(self.layers[parent]).get(leaf)
            if called:
                return f"{name}.forward", called[0]
            siblings = self.children(parent)
            for sibling in siblings[siblings.index(name) + 1 :]:
                effect = self.effects[sibling]
                if effect is None or effect.is_anchor:
                    return None
                if _is_between(effect):
                    return sibling, effect
            if type(self.layers[parent]) is not nn.Sequential:
                return None
            name = parent
        return None

    def inside(self, name: str) -> list[Effect]:
        """The different activations and pools of a layer that is made of others."""
        if name not in self._inside:
            found = self._inside[name] = []
            for other in self.names_inside(name):
                here = [self.effects[other], *self.called(other)]
                found += [effect for effect in here if _is_between(effect) and effect not in found]
        return self._inside[name]

    def names_inside(self, name: str) -> list[str]:
        """The layers that one is made of, and itself."""
        prefix = f"{name}." if name else ""
        return [other for other in self.layers if other == name or other.startswith(prefix)]

    def called(self, name: str) -> list[Effect]:
        """The activations and pools that a layer's `forward` calls."""
        return [effect for effects in called_by(self.layers[name]).values() for effect in effects]

    def nearest(self, name: str) -> str:
        """The innermost layer of the network that holds what has this name in the file."""
        while name not in self.layers:
            name = name.rpartition(".")[0]
        return name


def _is_linear(effect: MaybeEffect) -> bool:
    return effect is not None and effect.kind == LINEAR


def _is_between(effect: MaybeEffect) -> TypeGuard[Effect]:
    """Whether it is an activation, a pool or the like, which stands between layers with tensors."""
    return effect is not None and effect is not NOTHING and not effect.is_anchor


# The comparison


@dataclass(frozen=True)
class Contradiction:
    """A layer, by its name in the file, of which the file states what the network does not compute."""

    layer: str
    stated: str
    computed: str


@dataclass(frozen=True)
class Comparison:
    """What came of comparing a file with a network.

    Attributes:
        contradictions: what the file states otherwise.
        unknown: classes of the file, in words, whose computation it does not show.
        hooked: layers of the file that run more than their class does.
        last: activations after the classifier, in words.
    """

    contradictions: Sequence[Contradiction]
    unknown: Sequence[str]
    hooked: Sequence[str]
    last: Sequence[str] = ()

    def warnings(self) -> list[str]:
        """What could not be compared, one sentence each."""
        unknown, hooked = _listed("class", "classes", self.unknown), _listed("layer", "layers", self.hooked)
        said = [f"the file's own {unknown} may compute what the file does not reveal"] if self.unknown else []
        if self.hooked:
            said.append(f"the file's {hooked} may run more than their class, which the file does not reveal")
        advice = "compare with the network itself, --reference MODULE:FACTORY"
        return [*self.left_off(), *(f"{fault}: {advice}" for fault in said)]

    def left_off(self) -> list[str]:
        """What the network here leaves to its users, in one sentence."""
        said = (
            f"the file ends with {' and '.join(self.last)}, which is left off: the network returns the logits before it"
        )
        return [said] if self.last else []

    def fault(self, arch: str) -> str | None:
        """The first contradiction, as the beginning of a sentence, and how many there are; None if there is none."""
        if not self.contradictions:
            return None
        first, more = self.contradictions[0], len(self.contradictions) - 1
        others = f", and {more} more such contradictions" if more else ""
        return f"states that layer {shown(first.layer)} {first.stated}, where {arch} {first.computed}{others}"


def _listed(one: str, many: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{one if len(names) == 1 else many} {', '.join(map(shown, names[:8]))}{more}"


def compare(checkpoint: Checkpoint, matched: Match, outline: nn.Layer) -> Comparison:
    """Compare what a file states with what a network computes.

    Args:
        checkpoint: the file, with what it states of each layer: plain values by attribute, and "class".
        matched: which of its layers are the network's.
        outline: the network; it needs no memory.

    Raises:
        WeightsError: the file has more layers than any network.
    """
    if not checkpoint.layers:
        return Comparison(list(_of_epsilon(checkpoint.stated, outline)), [], [])
    stated = {**checkpoint.layers, **checkpoint.around}
    if len(stated) > _MAX_LAYERS:
        raise WeightsError(f"has {len(stated)} layers, more than any network here: save the state_dict alone")
    own = dict.fromkeys(told["class"] for told in stated.values() if not is_known(told))
    hooked = [name for name, told in stated.items() if told.get("hooks")]
    last = [f"{_a(Effect(kind))}, {shown(name)}" for name, kind in _last_activations(checkpoint, matched).items()]
    return Comparison(list(_Pairing(checkpoint, matched, outline).contradictions()), list(own), hooked, last)


def _last_activations(checkpoint: Checkpoint, matched: Match) -> dict[str, str]:
    """What turns logits into probabilities, after the classifier in ``nn.Sequential``s: names and kinds."""
    layers = checkpoint.layers
    effects = {name: effect_in_file(told) for name, told in layers.items()}
    classifier = matched.network.classifier_name
    place = next((name for name in layers if matched.layer(name) == classifier and _is_linear(effects[name])), "")
    found: dict[str, str] = {}
    while place:
        parent = place.rpartition(".")[0]
        if layers.get(parent, {}).get("class") == _PLAIN_SEQUENTIAL:
            siblings = [name for name in layers if name and name.rpartition(".")[0] == parent]
            after = {name: effects[name] for name in siblings[siblings.index(place) + 1 :]}
            found.update((name, effect.kind) for name, effect in after.items() if effect and effect.kind in _PROBABLE)
        place = parent
    return found


def _of_epsilon(stated: Mapping[str, Any], outline: nn.Layer) -> Iterator[Contradiction]:
    """The epsilon that a training script says its network has, where this one has another."""
    epsilon = stated.get("bn_eps")
    if not isinstance(epsilon, float) or "bn_eps" in outline.config:  # which the script's value went into
        return
    norms = [(name, layer) for name, layer in outline.named_sublayers() if isinstance(layer, nn.BatchNorm2D)]
    for name, norm in norms[:1]:
        if not _equal(epsilon, norm._epsilon):
            yield Contradiction(name, f"has eps={_number(epsilon)}", f"has eps={_number(norm._epsilon)}")


def _by_own_names(checkpoint: Checkpoint, matched: Match) -> tuple[dict[str, str], Layers]:
    """The file's name for each of the network's layers, by this package's, and what stands around the network."""
    found = {name: matched.layer(name) for name in checkpoint.layers if not matched.leaves_out(name)}
    around = {name: checkpoint.layers[name] for name, ours in found.items() if ours is None}
    return {ours: name for name, ours in found.items() if ours is not None}, {**checkpoint.around, **around}


def _canonical_layers(checkpoint: Checkpoint, matched: Match) -> Layers:
    """The layers of a file by this package's names."""
    return {ours: checkpoint.layers[theirs] for ours, theirs in _by_own_names(checkpoint, matched)[0].items()}


class _Pairing:
    """The layers of a file, by this package's names, beside those of a network."""

    def __init__(self, checkpoint: Checkpoint, matched: Match, outline: nn.Layer) -> None:
        self.network = _Network(outline)
        self.own_names, around = _by_own_names(checkpoint, matched)
        self.last = _last_activations(checkpoint, matched)
        self.told = {ours: checkpoint.layers[theirs] for ours, theirs in self.own_names.items()}
        self.effects = {name: effect_in_file(told) for name, told in self.told.items()}
        self._by_parent = defaultdict[str, list[str]](list)
        for name in self.told:
            self._by_parent[name.rpartition(".")[0]].append(name)
        self._complete_at: dict[str, list[Effect]] = {}
        self.around = {name: effect_in_file(told) for name, told in around.items()}

    def contradictions(self) -> Iterator[Contradiction]:
        for name, effect in self.effects.items():
            if name in self.network.layers:
                yield from self._beside(name, effect)
            elif effect not in (None, NOTHING) and self.own_names[name] not in self.last:
                # The ReLU6 inside of the authors' hard-swish is no layer of its own.
                owner = self.effects.get(name.rpartition(".")[0])
                if (owner, effect) != (Effect("Hardswish"), Effect("ReLU6")):
                    yield from self._additional(name, effect)
        for name in self.network.layers:
            yield from self._left_out(name)
            yield from self._in_another_order(name)
        for name, effect in self.around.items():
            if effect not in (None, NOTHING) and name not in self.last:
                yield Contradiction(name, f"is {_a(effect)}", "has no such layer")

    def _beside(self, name: str, effect: MaybeEffect) -> Iterator[Contradiction]:
        """A layer that both have."""
        computed = self.network.effects[name]
        if computed is None:
            return
        if effect is None or effect is NOTHING:
            known = effect is NOTHING or self.told[name]["class"] in SEQUENTIAL
            if known and computed is not NOTHING and not self._below(name):
                yield self._contradiction(name, NOTHING, computed)
            return
        yield from self._differing(name, self._unpadded_by_itself(name, effect), computed)
        has_own_activation = self.told[name]["class"].endswith((".BatchNormAct2d", ".SyncBatchNormAct"))
        after = self.network.after(name) if has_own_activation else None
        if after and after[0] not in self.told and not self._below(name):
            yield self._contradiction(name, NOTHING, after[1])

    def _unpadded_by_itself(self, name: str, effect: Effect) -> Effect:
        """The effect without its padding where there is none and the file's own class may pad before it."""
        parent, numbers = name.rpartition(".")[0], dict(effect.numbers)
        beside = [other for other in self._by_parent.get(parent, []) if self.effects[other] is None]
        if numbers.get("padding") == (0, 0) and any(other not in self.network.layers for other in beside):
            del numbers["padding"], numbers["padding_mode"]
        return Effect(effect.kind, numbers)

    def _below(self, name: str) -> list[str]:
        """What the file has below a layer that computes something, or may."""
        return [
            other for other, effect in self.effects.items() if other.startswith(f"{name}.") and effect is not NOTHING
        ]

    def _additional(self, name: str, effect: Effect) -> Iterator[Contradiction]:
        """A layer that only the file has: an equal one has to be computed at that place."""
        place = self.network.nearest(name)
        computed = self.network.effects[place]
        if computed is None:
            others = self.network.inside(place)
            if not self._is_among(effect, others):
                alike = next((other for other in others if other.kind == effect.kind), None)
                yield from self._differing(name, effect, alike or NOTHING)
            elif self._lists_all(name.rpartition(".")[0]) and self._is_among(effect, self._complete(place)):
                yield self._contradiction(name, effect, NOTHING)
        elif computed.is_anchor:
            after = self.network.after(place)
            yield from self._differing(name, effect, after[1] if after else NOTHING)
        else:
            yield from self._differing(name, effect, computed)

    def _complete(self, place: str) -> list[Effect]:
        """The activations and pools of the network at a place all of which the file has, so that one more is one."""
        if place not in self._complete_at:
            names = self.network.names_inside(place)
            missing = [self.network.effects[name] for name in names if name not in self.told]
            missing += [effect for name in names for effect in self.network.called(name)]
            found = self.network.inside(place)
            self._complete_at[place] = [effect for effect in found if effect not in missing]
        return self._complete_at[place]

    def _left_out(self, name: str) -> Iterator[Contradiction]:
        """An activation or pool that only the network has, where an nn.Sequential of the file would list it."""
        effect = self.network.effects[name]
        parent = name.rpartition(".")[0]
        if name in self.told or not _is_between(effect):
            return
        if not self._lists_all(parent) or not self._goes_on(name):
            return
        elsewhere = [other for other in self._below(parent) if other not in self.network.layers]
        if not any(self.effects[other] is None or self.effects[other] == effect for other in elsewhere):
            yield Contradiction(name, "is not there", f"has {_a(effect)}")

    def _in_another_order(self, name: str) -> Iterator[Contradiction]:
        """An nn.Sequential of the file computes in the order in which it lists."""
        if self.network.effects[name] is None and self._lists_all(name):
            stated = [layer for layer in self._by_parent.get(name, []) if layer in self.network.layers]
            computed = [layer for layer in self.network.children(name) if layer in self.told]
            for layer, other in zip(stated, computed):
                if layer != other:
                    at = f"stands in the place of {shown(self.own_names[other])}"
                    yield Contradiction(self.own_names[layer], at, "computes in another order")
                    return

    def _lists_all(self, name: str) -> bool:
        """Whether the file's layer of this name computes what it lists and nothing else."""
        return name in self.told and self.told[name]["class"] in SEQUENTIAL

    def _goes_on(self, name: str) -> bool:
        """Whether the file has something behind this place that is surely computed after it."""
        while name and self._lists_all(parent := name.rpartition(".")[0]):
            siblings = self.network.children(parent)
            if any(sibling in self.told for sibling in siblings[siblings.index(name) + 1 :]):
                return True
            name = parent
        # What holds it calls nothing else after it if its class is known.
        return bool(name) and parent in self.told and is_known(self.told[parent])

    def _differing(self, name: str, effect: Effect, computed: Effect) -> Iterator[Contradiction]:
        key = self._differ(effect, computed)
        if key is not None:
            yield self._contradiction(name, effect, computed, key)

    def _is_among(self, effect: Effect, others: Sequence[Effect]) -> bool:
        return any(self._differ(effect, other) is None for other in others)

    def _differ(self, effect: Effect, computed: Effect) -> str | None:
        """The first number that differs, "" if they are of two kinds, None if they are equal."""
        if effect.kind == MEAN_POOL and computed.kind == ADAPTIVE_POOL:
            sides = (self.network.last_side, self.network.last_side)
            return None if effect.numbers.get("kernel_size") == sides else ""
        if effect.kind != computed.kind:
            return ""
        shared = (key for key in effect.numbers if key in computed.numbers)
        return next((key for key in shared if not _equal(effect.numbers[key], computed.numbers[key])), None)

    def _contradiction(self, name: str, effect: Effect, computed: Effect, key: str = "") -> Contradiction:
        own = self.own_names[name]
        if key:
            stated, built = effect.numbers[key], computed.numbers[key]
            return Contradiction(own, f"has {key}={_number(stated)}", f"has {key}={_number(built)}")
        return Contradiction(own, f"computes {_a(effect)}", f"computes {_a(computed)}")


def _equal(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def _a(effect: Effect) -> str:
    if effect is NOTHING:
        return effect.kind
    sizes = [f"{key}={_number(effect.numbers[key])}" for key in ("kernel_size", "output_size") if key in effect.numbers]
    article = "an" if effect.kind[0] in "aeiouAEIOU" else "a"
    return f"{article} {effect.kind}" + (f" of {sizes[0]}" if sizes else "")


def _number(value: object) -> str:
    """A number as --config has it; text from a file is quoted."""
    if isinstance(value, tuple):
        return "x".join(map(_number, value))
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


# The arguments that it states

_NAMES_OF_NETWORKS = {"arch", "architecture", "backbone", "base_model", "model", "model_name", "name", "net", "network"}


def read_statements(checkpoint: Checkpoint, matched: Match) -> Stated:
    """What a file states of its network with one voice: its layers before its training script's arguments."""
    script = {name.lower(): value for name, value in checkpoint.stated.items()}
    found = {key: script[key.lower()] for key in config_keys(matched.network) if key.lower() in script}
    if checkpoint.layers and len(checkpoint.layers) <= _MAX_LAYERS:
        layers = _canonical_layers(checkpoint, matched)
        by_layers = {key: find(layers) for key, find in _UNSEEN.items() if key in config_keys(matched.network)}
        found.update({key: values[0] for key, values in by_layers.items() if len(values) == 1})
    read = {key: _as_list(value) for key, value in found.items()}
    names = {_preset_name(script[key]) for key in _NAMES_OF_NETWORKS & script.keys()}
    named = [entry for entry in presets() if entry.name in names]
    return Stated(
        {key: value for key, value in read.items() if _is_usable(matched.network, key, value)},
        named[0] if len(named) == 1 else None,
    )


def _as_list(value: Any) -> Any:
    """What the command lines of training scripts have as ``"4-6-8"``."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}(-[0-9]{1,6})+", value):
        return [int(part) for part in value.split("-")]
    return value


def _is_usable(network: type[Network], key: str, value: Any) -> bool:
    """Whether the network takes an argument of this kind and range."""
    try:
        check_arguments(network.__init__, {key: value})
    except ValueError:
        return False
    return True


def _preset_name(value: Any) -> str:
    """A network's name as presets have it, without the tag of timm's weights."""
    return str(value).partition(".")[0].lower().replace("-", "_")


# What fixes it


def check_stated(
    checkpoint: Checkpoint | None,
    matched: Match,
    found: Architecture,
    outline: nn.Layer,
    given: Mapping[str, Any],
    settled_by: str | None = None,
) -> list[str]:
    """What a whole pickled module states of its layers, held against the network that is built; warnings.

    Args:
        checkpoint: what was read; None for a Paddle file, which states nothing.
        matched: which of its tensors are the network's.
        found: the network in the checkpoint's form.
        outline: the same, built.
        given: the arguments that the user has set.
        settled_by: what will settle who is right, so that a contradiction is a warning.

    Raises:
        WeightsError: the file states something else than the network computes, and nothing will settle it.
    """
    if not checkpoint:
        return []
    compared = compare(checkpoint, matched, outline)
    fault = compared.fault(found.arch)
    if settled_by:
        return [*([f"{fault}: {settled_by} settles which is right"] if fault else []), *compared.left_off()]
    if fault and not matched.found.config:  # of a network that the caller has built
        raise WeightsError(f"{fault}: build the network with what the file states, or load the file with load_model")
    if fault:
        option = remedy(checkpoint, matched, found, given)
        other = (
            "it is another network, see 'Add a model' in the documentation, unless the network itself, --reference "
            "MODULE:FACTORY, shows that the file states it wrongly"
        )
        raise WeightsError(f"{fault}: {_in_python(option) if option else other}")
    return compared.warnings()


def _in_python(option: str) -> str:
    """What to do about a contradiction, where functions are called and where commands are."""
    name, value = option.split(" ", 1)
    call = f"use create_model({value!r}, pretrained=PATH)" if name == "--arch" else f"give {value.replace(',', ', ')}"
    return f"in Python {call}, and on a command line give {option}"


def remedy(checkpoint: Checkpoint, matched: Match, found: Architecture, given: Mapping[str, Any]) -> str | None:
    """The option with which the network computes what the file states; None if there is none.

    Args:
        checkpoint, matched: see `compare`.
        found: the network that does not.
        given: the arguments that the user has set with --config.
    """
    for option, other in _others(_canonical_layers(checkpoint, matched), matched, found, given):
        try:
            if not compare(checkpoint, matched, other.outline()).contradictions:
                return option
        except ValueError:  # no network has such a number
            continue
    return None


def _others(
    layers: Layers, matched: Match, found: Architecture, given: Mapping[str, Any]
) -> Iterator[tuple[str, Architecture]]:
    """Networks that have the same tensors: presets, then other values of what no tensor shows.

    Args:
        layers: by this package's names.
        matched, found, given: see `remedy`.
    """
    for entry in presets(found.network):
        if all(key in given for key, _ in differences(entry, matched.found)):
            numbers = full_config(entry.network, entry.config)
            unseen = {key: value for key, value in numbers.items() if key in _UNSEEN and key not in given}
            in_python = f"create_model({entry.name!r}, pretrained=PATH)"
            yield (
                f"--arch {entry.name} (in Python: {in_python})",
                replace(found, arch=entry.name, config={**found.config, **unseen}),
            )
    choices = {key: [found.config[key], *find(layers)] for key, find in _UNSEEN.items() if key in found.config}
    for values in product(*choices.values()):
        changed = {key: value for key, value in zip(choices, values) if value != found.config[key]}
        if changed:
            said = ",".join(f"{key}={value}" for key, value in {**given, **changed}.items())
            yield f"--config {said}", replace(found, config={**found.config, **changed})


def _stated(layers: Layers, key: str, name: str = "") -> list[Any]:
    """The different values that layers of the file, or those of one name, state for an attribute; a few at most."""
    found: list[Any] = []
    for layer, told in layers.items():
        value = told.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, (int, float)) and value not in found and (not name or layer.endswith(name)):
            found.append(value)
    return found[:4]


def _first_hard_swish(layers: Layers) -> list[int]:
    """The first block of a CondenseNet V2 that has it, from 0, or else the number of blocks; then other choices."""
    blocks: dict[int, list[MaybeEffect]] = {}
    for name, told in layers.items():
        block = re.match(r"features\.denseblock_(\d{1,3})\.(?!.*\.se\.)", name)
        if block:
            blocks.setdefault(int(block[1]) - 1, []).append(effect_in_file(told))
    first = min((block for block, effects in blocks.items() if Effect("Hardswish") in effects), default=len(blocks))
    silent = [block for block, effects in blocks.items() if block < first and Effect("ReLU") not in effects]
    without = [block + 1 for block, effects in blocks.items() if block >= first and Effect("ReLU") in effects]
    return [first, *silent, *without]


def _pads_as_tensorflow(layers: Layers) -> list[bool]:
    """Of an EfficientNet; a layer without padding says nothing, as its class may pad before it."""
    stem = effect_in_file(layers["conv_stem"]) if "conv_stem" in layers else None
    padding = stem.numbers.get("padding") if stem else None
    return [] if padding in (None, (0, 0)) else [padding == "SAME"]


# Arguments that leave no trace in the tensors, and where a file's layers show which they are.
_UNSEEN: dict[str, Callable[[Layers], list[Any]]] = {
    "same_padding": _pads_as_tensorflow,
    "bn_eps": lambda layers: _stated(layers, "eps"),
    "HS_start_block": _first_hard_swish,
    "init_stride": lambda layers: _stated(layers, "stride", "init_conv"),
}
