"""Why a port computes something else: the usual causes are tried one at a time, and the one that explains it is named.

The first layer or function whose outputs differ is the place. What Paddle computes there is changed to what PyTorch
computes, or to what is usual, in one argument, weight or property of the input, and the network runs again up to the
place. If the outputs are equal then, that is the cause. The changes last for that run only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, permutations
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
import paddle

from convert.parity.forward import event_difference, relative_difference
from convert.parity.functions import (
    ACTIVATION,
    FUNCTIONS,
    WEIGHTS,
    Call,
    Setting,
    plain,
    value_in_pytorch,
    weight_in_pytorch,
)
from convert.parity.recording import Change, Event, OwnName, paddle_events, pairs, torch_events
from convert.parity.structures import as_array

if TYPE_CHECKING:
    import torch
    from paddle import nn

_ROUNDING = 1e-7  # what kernels that compute constants in float32 leave in float64
_RUNS = 80  # of the Paddle network, at most
_PLACES, _CALLS = 8, 12  # that are tried, at most
_ACTIVATIONS = (
    "relu",
    "relu6",
    "silu",
    "hardswish",
    "gelu",
    "leaky_relu",
    "elu",
    "sigmoid",
    "hardsigmoid",
    "tanh",
    "mish",
)


@dataclass(frozen=True)
class Cause:
    """The first place where two networks differ, and why.

    Attributes:
        place: a layer, or a function and the layers between which it is called.
        text: what makes it equal; or, if nothing does, what is known of it.
        explained: whether a change makes it equal.
    """

    place: str
    text: str
    explained: bool

    def __str__(self) -> str:
        return f"differs first in {self.place}; {self.text}"


@dataclass(frozen=True)
class _Variant:
    """Something else that a call of Paddle could compute, and what a sentence says of it."""

    text: str
    change: Change


def find_cause(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    inputs: Any,
    own_name: OwnName = str,
    atol: float = 1e-5,
    partial: bool = False,
) -> Cause | None:
    """The first place where two networks differ in the mode that they are in, and why; None where they do not.

    Args:
        torch_model: the PyTorch network.
        paddle_model: the Paddle network.
        inputs: arrays, see `structures.run`.
        own_name: what the Paddle network calls a layer of the PyTorch network; None for one that it does not have.
        atol: largest difference allowed, relative to each output's scale.
        partial: the Paddle network may fail on the inputs; what it computes before that is compared.
    """
    theirs = torch_events(torch_model, inputs, own_name, functions=True)
    ours = paddle_events(paddle_model, inputs, functions=True, partial=partial)
    search = _Search(torch_model, paddle_model, inputs, own_name, atol, theirs, ours)
    places = search.places()
    runs = iter(range(_RUNS))
    for place in places:
        if found := search.explained(place, runs):
            return found
    return search.unexplained(places[-1]) if places else None


class _Search:
    """What both networks computed, and how they compare."""

    def __init__(
        self,
        torch_model: torch.nn.Module,
        paddle_model: nn.Layer,
        inputs: Any,
        own_name: OwnName,
        atol: float,
        theirs: Sequence[Event],
        ours: Sequence[Event],
    ) -> None:
        self.paddle_model, self.inputs, self.atol = paddle_model, inputs, atol
        self.theirs, self.ours = theirs, ours
        named = torch_model.named_modules()
        self.modules = {(own_name(name) if name else "") or name: module for name, module in named}
        self.layers = dict(paddle_model.named_sublayers(include_self=True))
        self.pairs = {m: n for n, m in pairs(theirs, ours, by_order=True)}
        self.by_name = {m for _, m in pairs(theirs, ours, by_order=False)}
        sizes = {m: event_difference(theirs[n], ours[m]) for m, n in self.pairs.items()}
        self.differences = {m: np.nan_to_num(size, nan=np.inf) for m, size in sizes.items() if size is not None}
        self.equal = {m for m, size in self.differences.items() if size <= atol}

    def places(self) -> list[int]:
        """Events that differ, up to the first layer whose name says which one it is in PyTorch."""
        found = []
        for m in sorted(self.pairs):
            if m in self.differences and m not in self.equal:
                found.append(m)
                if m in self.by_name:
                    break
        # What only order pairs may be no pair; the layer that ends the list is one.
        return [*found[: _PLACES - 1], *found[-1:]] if len(found) > _PLACES else found

    def explained(self, place: int, runs: Iterator[int]) -> Cause | None:
        """What makes the place equal, None if nothing does."""
        best: tuple[float, Cause] | None = None
        for m in self.candidates(place):
            for variant in self.variants(m, place):
                if next(runs, None) is None:
                    return best and best[1]
                size = self.after(variant, m, place)
                if size <= self.atol and size <= 0.1 * self.differences[place]:
                    cause = Cause(self.name_of(m), variant.text, True)
                    if size <= _ROUNDING:
                        return cause
                    if best is None or size < best[0]:
                        best = size, cause
        return best and best[1]

    def candidates(self, place: int) -> Iterator[int]:
        """The calls that a difference may come from: in the place itself, then those before that nothing acquits."""
        event = self.ours[place]
        begun = place if event.call else event.begun
        acquitted = {n for m in self.equal for n in range(m if self.ours[m].call else self.ours[m].begun, m + 1)}
        inside = (m for m in range(begun, place + 1) if self.ours[m].call and m not in acquitted)
        before = (m for m in reversed(range(begun)) if self.ours[m].call and m not in acquitted)
        return islice(chain(inside, before), _CALLS)

    def after(self, variant: _Variant, m: int, place: int) -> float:
        """How far the place is from PyTorch's with a call changed."""
        change = (m, variant.change)
        # A change may leave nothing that the rest of the network can be run on.
        events = paddle_events(self.paddle_model, self.inputs, True, change, stop=place, partial=True)
        if len(events) <= place:
            return np.inf
        size = event_difference(self.theirs[self.pairs[place]], events[place])
        return np.inf if size is None or np.isnan(size) else size

    def variants(self, m: int, place: int) -> Iterator[_Variant]:
        """What the call could compute instead, the likeliest first."""
        call = self.ours[m].call
        if call is None:
            return
        theirs = self.theirs[self.pairs[m]].call if m in self.pairs else None
        if theirs and theirs.family != call.family:
            theirs = None
        if theirs:
            yield from self.with_pytorchs_activation(m)
            yield from _of_input(call.given, theirs.given)
            yield from self.with_pytorchs_padding(m)
        if m not in self.pairs:
            yield _Variant(f"equal without {call.function}", _alone(lambda x: x))
        yield from _of_function(call, theirs)
        if theirs:
            yield from _of_settings(call, theirs)
        yield from _of_weights(call, theirs)
        yield from _of_habits(call, theirs)
        if call.function == "pad":
            yield from _of_sides(call)

    def with_pytorchs_activation(self, m: int) -> Iterator[_Variant]:
        """The activations that PyTorch has before this call and Paddle has not, the nearest first."""
        known = set(self.pairs.values())
        before = (self.theirs[n].call for n in reversed(range(self.pairs[m])) if n not in known)
        for call in islice((call for call in before if call and call.family == ACTIVATION), 3):
            yield _on_input(f"{call.function} before it (PyTorch's; missing here)", _activation(call))

    def with_pytorchs_padding(self, m: int) -> Iterator[_Variant]:
        """The padding of PyTorch's call and of the pad right before it, if there is one."""
        n = self.pairs[m]
        theirs, ours = self.theirs[n].call, self.ours[m].call
        pad = next((event for event in reversed(self.theirs[:n]) if event.call and event.call.function == "pad"), None)
        if not (theirs and ours and pad and pad.call and "padding" in ours.arguments):
            return
        if not np.array_equal(pad.outputs[0], theirs.given) or isinstance(theirs.arguments.get("padding"), str):
            return
        axes = theirs.given.ndim - 2
        explicit = [*pad.call.arguments["pad"], *[0] * 2 * axes][: 2 * axes]  # the last axis first
        own = theirs.arguments.get("padding", 0)
        own = [*own] if isinstance(own, (tuple, list)) else [own] * axes
        padding = [
            int(explicit[2 * (axes - 1 - axis) + side]) + int(own[axis * (len(own) > 1)])
            for axis in range(axes)
            for side in (0, 1)
        ]
        yield from _changed(ours, "padding", "padding, before and after each axis,", padding, True)

    def name_of(self, m: int) -> str:
        """What a sentence calls the place."""
        event = self.ours[m]
        layer = self.layers.get(event.name)
        if event.call is None or (event.name and layer is not None and not [*layer.children()]):
            return event.name or "the network's output"
        same = [other for other in self.ours[: m + 1] if other.call and other.call.function == event.call.function]
        call = sum(other.name not in self.layers or bool([*self.layers[other.name].children()]) for other in same)
        before = next((other.name for other in reversed(self.ours[:m]) if other.leaf and other.name), None)
        after = next((other.name for other in self.ours[m + 1 :] if other.leaf and other.name), None)
        where = (
            f"between {before} and {after}" if before and after else f"before {after}" if after else f"after {before}"
        )
        return f"F.{event.call.function}, call {call}, {where if before or after else 'of the network'}"

    def unexplained(self, place: int) -> Cause:
        """What is known of a difference that none of the usual causes explains."""
        event, other = self.ours[place], self.theirs[self.pairs[place]]
        inside = [m for m in range(event.begun, place) if self.ours[m].call and m in self.pairs]
        call = place if event.call else inside[0] if len(inside) == 1 else None
        theirs = self.theirs[self.pairs[call]].call if call is not None else None
        ours = self.ours[call].call if call is not None else None
        layer, module = self.layers.get(event.name), self.modules.get(other.name)
        both = f"PyTorch has {_described(module)} and Paddle {_described(layer)}"
        if ours and theirs and relative_difference(ours.given, theirs.given) <= self.atol:
            text = f"its input is equal, so it computes something else, and no usual cause explains what: {both}"
        elif last := next((self.ours[m].name for m in reversed(range(place)) if self.is_equal_layer(m)), None):
            text = f"no usual cause explains it, and {last} is the last layer that is equal: {both}"
        else:
            text = f"no usual cause explains it, and no layer before it is equal: {both}"
        shapes = [" and ".join(str(list(shape)) for shape in side.shapes) or "none" for side in (event, other)]
        if shapes[0] != shapes[1]:
            text += f"; the shape of its output is {shapes[0]}, and PyTorch's {shapes[1]}"
        return Cause(self.name_of(place), text, False)

    def is_equal_layer(self, m: int) -> bool:
        """Whether a layer is equal, by the name that both have or because it is no more than one layer."""
        return m in self.equal and not self.ours[m].call and (m in self.by_name or self.ours[m].leaf)


def _described(layer: Any) -> str:
    """A layer's class and settings, on one line."""
    text = f"{type(layer).__name__}({layer.extra_repr()})" if layer is not None else "no layer of this name"
    return text if len(text) <= 160 else f"{text[:160]}..."


def _spoken(value: Any) -> str:
    """A value as sentences give it."""
    value = plain(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _of_pytorch(known: bool) -> str:
    return "PyTorch's; " if known else ""


def _changed(call: Call, name: str, word: str, value: Any, of_pytorch: bool) -> Iterator[_Variant]:
    """The same call with another value of one argument, if that can be computed."""
    if _has_outputs(call, {name: value}):
        here = f"{_spoken(value)} ({_of_pytorch(of_pytorch)}here {_spoken(call.arguments[name])})"
        yield _with(f"{word} {here}", **{name: value})


def _with(text: str, **arguments: Any) -> _Variant:
    """The same call with some arguments changed."""
    return _Variant(f"equal with {text}", lambda function, given: function(**{**given, **arguments}))


def _activation(call: Call) -> Callable[[Any], Any]:
    """Paddle's function with the settings of PyTorch's call."""
    settings = FUNCTIONS[call.function].settings
    values = {setting.ours: value_in_pytorch(setting, call) for setting in settings if setting.theirs}
    return partial(getattr(paddle.nn.functional, call.function), **values)


def _alone(change: Callable[[Any], Any]) -> Change:
    """Another function of the first argument only."""
    return lambda function, arguments: change(next(iter(arguments.values())))


def _of_settings(call: Call, theirs: Call) -> Iterator[_Variant]:
    """PyTorch's arguments, each alone and then together."""
    in_pytorch = {setting.ours: setting for setting in FUNCTIONS[theirs.function].settings}
    differing = list[tuple[Setting, Any]]()
    for setting in _settings(call):
        if setting.ours in in_pytorch:
            value = value_in_pytorch(in_pytorch[setting.ours], theirs)
            if not _same(value, call.arguments[setting.ours]):
                differing.append((setting, value))
    for setting, value in differing:
        yield from _changed(call, setting.ours, setting.word or setting.ours, value, True)
    changes = {setting.ours: value for setting, value in differing}
    if len(differing) > 1 and _has_outputs(call, changes):
        said = [f"{setting.word or setting.ours} {_spoken(value)}" for setting, value in differing]
        yield _with(f"{', '.join(said[:-1])} and {said[-1]} (PyTorch's)", **changes)


def _of_habits(call: Call, theirs: Call | None) -> Iterator[_Variant]:
    """The usual values of what PyTorch's call does not show."""
    for setting in _settings(call):
        for value in setting.usual if not (theirs and setting.theirs) else ():
            if not _same(value, call.arguments[setting.ours]):
                yield from _changed(call, setting.ours, setting.word or setting.ours, value, False)


def _settings(call: Call) -> list[Setting]:
    return [setting for setting in FUNCTIONS[call.function].settings if setting.ours in call.arguments]


def _has_outputs(call: Call, changes: Mapping[str, Any]) -> bool:
    """Whether a convolution or pooling would fit into its input; Paddle's kernels crash where it does not."""
    if call.family not in ("convolution", "pool"):
        return True
    arguments = {**call.arguments, **changes}
    axes = call.given.ndim - 2
    weight, padding = arguments.get("weight"), arguments["padding"]
    kernel = tuple(weight.shape[2:]) if weight is not None else _for_each(arguments["kernel_size"], axes)
    dilation = _for_each(arguments.get("dilation", 1), axes)
    around = [0] * 2 * axes if isinstance(padding, str) else _around(padding, axes)
    return all(
        call.given.shape[2 + axis] + around[2 * axis] + around[2 * axis + 1] > dilation[axis] * (kernel[axis] - 1)
        for axis in range(axes)
    )


def _for_each(value: Any, axes: int) -> list[int]:
    return [int(part) for part in value] if isinstance(value, (tuple, list)) else [int(value)] * axes


def _around(padding: Any, axes: int) -> list[int]:
    """Padding before and after each axis: of one number, of one for each axis, or of both sides."""
    values = [int(value) for value in np.ravel(padding)]
    if (len(values) == 2 * axes and axes > 1) or (len(values) == 2 and axes == 1):
        return values
    return [value for value in (values * axes)[:axes] for _ in range(2)]


def _same(one: Any, other: Any) -> bool:
    one, other = plain(one), plain(other)
    if isinstance(one, float) and isinstance(other, (int, float)):
        return bool(np.isclose(one, other, rtol=1e-6, atol=0))
    return type(one) is type(other) and one == other


def _of_function(call: Call, theirs: Call | None) -> Iterator[_Variant]:
    """Another function of the family: PyTorch's, or for want of it the usual ones."""
    functional = paddle.nn.functional
    if theirs and theirs.function != call.function:
        yield _Variant(f"equal with {theirs.function} (PyTorch's; here {call.function})", _alone(_activation(theirs)))
    elif not theirs and call.family == ACTIVATION:
        for name in _ACTIVATIONS:
            if name != call.function:
                yield _Variant(f"equal with {name} (here {call.function})", _alone(getattr(functional, name)))


def _of_weights(call: Call, theirs: Call | None) -> Iterator[_Variant]:
    """Weights and statistics in another place or layout, and PyTorch's where they are other numbers."""
    ours = {name: call.arguments[name] for name in WEIGHTS if name in call.arguments}
    if ours.get("running_mean") is not None and ours.get("running_var") is not None:
        mean, variance = ours["running_mean"], ours["running_var"]
        yield _with("mean and variance exchanged", running_mean=variance, running_var=mean)
        # Copies, because training changes them.
        own = {"running_mean": mean.clone(), "running_var": variance.clone(), "training": True}
        yield _with("the statistics of the inputs themselves (here the running ones)", **own)
    weight = ours.get("weight")
    if weight is not None and weight.ndim >= 2:
        axes = list(range(weight.ndim))
        if weight.shape[0] == weight.shape[1] or call.function == "linear":
            yield _with("its weight transposed", weight=weight.transpose([1, 0, *axes[2:]]))
        if weight.ndim == 4 and weight.shape[2] == weight.shape[3] > 1:
            yield _with("height and width of its weight exchanged", weight=weight.transpose([0, 1, 3, 2]))
    if theirs is None:
        return
    for name in WEIGHTS:
        expected = weight_in_pytorch(name, theirs)
        here = ours.get(name)
        if name not in call.arguments or (expected is None and here is None):
            continue
        if expected is None:
            yield _with(f"no {name} (PyTorch has none)", **{name: None})
        elif here is None or not _equal(as_array(here).reshape(-1), expected.reshape(-1)):
            like = here if here is not None else weight
            said = "none" if here is None else "other numbers"
            value = paddle.to_tensor(np.ascontiguousarray(expected), dtype=like.dtype if like is not None else None)
            value = value.reshape(here.shape) if here is not None and here.size == value.size else value
            yield _with(f"PyTorch's {name} (here {said})", **{name: value})


def _of_sides(call: Call) -> Iterator[_Variant]:
    """A pad on the other side of each axis."""
    pad = plain([*map(int, np.ravel(as_array(call.arguments["pad"])))])
    if isinstance(pad, list):
        other = [value for start in range(0, len(pad), 2) for value in reversed(pad[start : start + 2])]
        yield from _changed(call, "pad", "padding on the other side,", other, False)


def _of_input(ours: np.ndarray, theirs: np.ndarray) -> Iterator[_Variant]:
    """What was done to the input in one framework only, read from the two inputs."""
    if ours.dtype.kind != "f" or _equal(ours, theirs):
        return
    if ours.size == theirs.size:
        yield from _of_axes(ours, theirs)
    if ours.shape != theirs.shape:
        return
    if ours.ndim >= 2 and (order := _order_of_channels(ours, theirs)) is not None:
        yield _on_input(
            f"the channels of its input in another order: {_shown_order(order)}",
            lambda x: x.index_select(paddle.to_tensor(order), axis=1),
        )
    scale = float(np.vdot(ours, theirs) / (np.vdot(ours, ours) or 1.0))
    if _equal(ours * scale, theirs):
        yield _on_input(f"its input times {scale:.6g}", lambda x: x * scale)
    for name in _ACTIVATIONS:
        yield _on_input(f"{name} before it (missing here)", getattr(paddle.nn.functional, name))


def _on_input(text: str, change: Callable[[Any], Any]) -> _Variant:
    def changed(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        first, *others = arguments
        return function(**{first: change(arguments[first]), **{name: arguments[name] for name in others}})

    return _Variant(f"equal with {text}", changed)


def _of_axes(ours: np.ndarray, theirs: np.ndarray) -> Iterator[_Variant]:
    """The input's numbers in another shape, or its axes in another order."""
    if ours.shape != theirs.shape and _equal(ours.reshape(theirs.shape), theirs):
        shape = list(theirs.shape)
        yield _on_input(
            f"its input reshaped to {shape} (here {list(ours.shape)})", partial(paddle.reshape, shape=shape)
        )
    for axes in permutations(range(ours.ndim)) if ours.ndim <= 5 else ():
        moved = ours.transpose(axes)
        if axes != tuple(range(ours.ndim)) and moved.shape == theirs.shape and _equal(moved, theirs):
            yield _on_input(f"the axes of its input in the order {list(axes)}", partial(paddle.transpose, perm=axes))


def _order_of_channels(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray | None:
    """Which channels (axis 1) of the one make the other; None if they are no permutation."""
    both = [np.moveaxis(array, 1, 0).reshape(array.shape[1], -1) for array in (ours, theirs)]
    direction = np.random.default_rng(0).standard_normal(both[0].shape[1])
    sorted_ours, sorted_theirs = (np.argsort(array @ direction, kind="stable") for array in both)
    order = np.empty_like(sorted_ours)
    order[sorted_theirs] = sorted_ours
    return order if _equal(both[0][order], both[1]) else None


def _shown_order(order: np.ndarray) -> str:
    """A permutation in words: parts joined the other way round, or channels read across groups, or its beginning."""
    n = len(order)
    if (order == np.roll(np.arange(n), -order[0])).all():
        first = n - order[0]
        return f"the last {first} before the first {n - first}, as if parts were joined the other way round"
    for groups in range(2, n):
        if n % groups == 0 and (order == np.arange(n).reshape(groups, -1).T.reshape(-1)).all():
            return (
                f"as {groups} by {n // groups} transposed, as where channels are shuffled, or an input is flattened "
                f"with the channels last"
            )
    return f"{', '.join(map(str, order[:8]))}{', ...' if n > 8 else ''}"


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and relative_difference(one, other) <= 1e-6
