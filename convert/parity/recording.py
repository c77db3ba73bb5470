"""What the layers of both networks answer, and the functions that they call, in the order in which they finish."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import wraps
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np
import paddle

from convert.parity.functions import FUNCTIONS, Call, bound, torch_call
from convert.parity.structures import as_array, for_paddle, for_torch, named_arrays, run
from paddle_dense.layers.sfr import grouped_convolutions

if TYPE_CHECKING:
    import torch
    from paddle import nn

OwnName = Callable[[str], Optional[str]]
Change = Callable[[Callable[..., Any], dict[str, Any]], Any]
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True)
class Event:
    """One call of a layer or function.

    Attributes:
        name: the layer's, or that of the layer in which the function was called: Paddle's name for PyTorch's, where it
            has one.
        number: which call of this layer, or of functions in it, this is, from 0.
        kind: the layer's class or the function's family, in lower case.
        outputs: all the arrays that it answered, in order.
        call: of a function.
        leaf: of a layer, whether it has no layers in it.
        known: whether the other network may have a layer of this name.
        begun: how many events had finished when a layer began.
    """

    name: str
    number: int
    kind: str
    outputs: Sequence[np.ndarray]
    call: Call | None = None
    leaf: bool = False
    known: bool = True
    begun: int = 0

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the outputs."""
        return tuple(array.shape for array in self.outputs)


class _EnoughError(BaseException):
    """A run is stopped where nothing that follows is asked for; no network's own `except` takes it for a mistake."""


@dataclass
class _Recorder:
    """Collects events; hooks and functions tell it."""

    stop: int | None = None
    events: list[Event] = field(default_factory=list)
    inside: list[tuple[str, bool, int]] = field(default_factory=list)
    numbers: Counter = field(default_factory=Counter)

    def add(self, kind: str, output: Any, name: str, known: bool, call: Call | None = None, **of_layer: Any) -> None:
        try:
            outputs = [np.array(array) for array in named_arrays(output).values()]
        except ValueError:  # an object of the user's own
            outputs = []
        counted = (name, known, call is not None)
        self.events.append(Event(name, self.numbers[counted], kind, outputs, call, known=known, **of_layer))
        self.numbers[counted] += 1
        if self.stop is not None and len(self.events) > self.stop:
            raise _EnoughError

    def owner(self) -> tuple[str, bool]:
        """The layer in which a function is called: the innermost that both networks may have."""
        return next(((name, True) for name, known, _ in reversed(self.inside) if known), ("", True))

    @contextmanager
    def hooked(self, layers: Mapping[tuple[str, bool], Any], after: str) -> Iterator[None]:
        """Within, the layers tell what they answer."""
        handles = []
        for (name, known), layer in layers.items():
            leaf = not [*layer.children()]

            def begin(layer: Any, inputs: Any, place: tuple[str, bool] = (name, known)) -> None:
                self.inside.append((*place, len(self.events)))

            def end(layer: Any, inputs: Any, output: Any, leaf: bool = leaf) -> None:
                name, known, begun = self.inside.pop()
                self.add(type(layer).__name__.lower(), output, name, known, leaf=leaf, begun=begun)

            handles += [layer.register_forward_pre_hook(begin), getattr(layer, after)(end)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def torch_events(model: torch.nn.Module, inputs: Any, own_name: OwnName = str, functions: bool = False) -> list[Event]:
    """Run a PyTorch network, in the mode that it is in.

    Args:
        model: the network.
        inputs: arrays, see `structures.run`.
        own_name: what the Paddle network calls a layer of it; None for one that it does not have.
        functions: record the calls of functions too.
    """
    recorder = _Recorder()
    layers = {}
    for theirs, module in model.named_modules():
        ours = own_name(theirs) if theirs else ""
        layers[(theirs, False) if ours is None else (ours, True)] = module
    with ExitStack() as stack:
        stack.enter_context(recorder.hooked(layers, "register_forward_hook"))
        if functions:
            stack.enter_context(_torch_functions(recorder))
        run(model, for_torch(inputs, model))
    return recorder.events


def _torch_functions(recorder: _Recorder) -> Any:
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            call = torch_call(getattr(function, "__name__", ""), args, kwargs or {})
            output = function(*args, **(kwargs or {}))
            if call:
                recorder.add(call.family, output, *recorder.owner(), call)
            return output

    return Mode()


def paddle_events(
    model: nn.Layer,
    inputs: Any,
    functions: bool = False,
    change: tuple[int, Change] | None = None,
    stop: int | None = None,
    partial: bool = False,
) -> list[Event]:
    """Run a Paddle network, in the mode that it is in.

    Args:
        model: the network.
        inputs: arrays, see `structures.run`.
        functions: record the calls of functions too.
        change: the number of the event that is to be computed otherwise, a call, and how.
        stop: the number of the last event that is asked for.
        partial: of a network that fails on the inputs, return what came before; a call that failed has no outputs.
    """
    recorder = _Recorder(stop)
    within = grouped_convolutions(model)
    named = model.named_sublayers(include_self=True)
    layers = {(name, True): layer for name, layer in named if layer not in within}
    with ExitStack() as stack:
        stack.enter_context(recorder.hooked(layers, "register_forward_post_hook"))
        if functions:
            stack.enter_context(_paddle_functions(recorder, model, change))
        try:
            run(model, for_paddle(inputs, model))
        except Exception:
            if not partial:
                raise
        except _EnoughError:
            pass
    return recorder.events


@contextmanager
def _paddle_functions(recorder: _Recorder, model: nn.Layer, change: tuple[int, Change] | None) -> Iterator[None]:
    """Within, the functions of the table tell what they answer, called by Paddle's layers or by the network's."""
    functional = paddle.nn.functional
    originals = {name: getattr(functional, name) for name in FUNCTIONS if hasattr(functional, name)}
    of_layers = getattr(functional.conv, "_conv_nd", None)
    nested: list[str] = []

    def told(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            arguments = None if nested else bound(original, args, kwargs)
            if arguments is None:
                return original(*args, **kwargs)
            public = _as_public_call(arguments) if name == "_conv_nd" else (name, original, arguments)
            key = next(iter(public[2]))
            given = public[2][key]
            call = Call(public[0], {k: v for k, v in public[2].items() if k != key}, np.array(as_array(given)))
            nested.append(name)
            try:
                if change and change[0] == len(recorder.events):
                    output = change[1](public[1], public[2])
                else:
                    output = original(*args, **kwargs)
            except Exception:
                recorder.add(call.family, None, *recorder.owner(), call)
                raise
            finally:
                nested.pop()
            recorder.add(call.family, output, *recorder.owner(), call)
            return output

        return function

    replaced = {id(original): told(name, original) for name, original in originals.items()}
    if of_layers is not None:
        replaced[id(of_layers)] = told("_conv_nd", of_layers)
    with _replaced_functions(model, replaced):
        yield


@contextmanager
def _replaced_functions(model: nn.Layer, replaced: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
    """Within, Paddle's layers and the network's call other functions.

    Args:
        model: the network.
        replaced: the others, by the identity of those that they replace.
    """
    # Layers keep some as an attribute, such as the activation of a Transformer's.
    changed = [
        (owner, name, value)
        for owner in [*_modules(model), *model.sublayers(include_self=True)]
        for name, value in list(vars(owner).items())
        if id(value) in replaced
    ]
    try:
        for owner, name, value in changed:
            setattr(owner, name, replaced[id(value)])
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


@contextmanager
def without_dropout(model: Any, called: list[str]) -> Iterator[None]:
    """Within, functions called for dropout leave everything as it is.

    Args:
        model: a network of either framework.
        called: gets the names of those that would have drawn random numbers.
    """
    if not isinstance(model, paddle.nn.Layer):
        with _torch_without_dropout(called):
            yield
        return

    def calm(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            arguments = bound(original, args, kwargs)
            if not arguments or not arguments["p"] or not arguments["training"]:
                return original(*args, **kwargs)
            called.append(name)
            return arguments["x"]

        return function

    names = [name for name in _DROPOUTS if hasattr(paddle.nn.functional, name)]
    originals = {name: getattr(paddle.nn.functional, name) for name in names}
    with _replaced_functions(model, {id(value): calm(name, value) for name, value in originals.items()}):
        yield


def _torch_without_dropout(called: list[str]) -> Any:
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            name = getattr(function, "__name__", "")
            named = dict(kwargs or {})
            if name == "scaled_dot_product_attention":
                named = {**dict(zip(_ATTENTION, args)), **named}
                if named.get("dropout_p"):
                    called.append(name)
                return function(**{**named, "dropout_p": 0.0})
            if name.rstrip("_") in _DROPOUTS:
                given = {"p": 0.5, "training": True, **dict(zip(("input", "p", "training"), args)), **named}
                if given["p"] and given.get("train", given["training"]):
                    called.append(name)
                    return given["input"]
            return function(*args, **named)

    return Mode()


def _as_public_call(arguments: Mapping[str, Any]) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    """What Paddle's convolution layers call, as one calls it: conv2d with its arguments."""
    name = f"conv{arguments['weight'].ndim - 2}d"
    names = ("x", "weight", "bias", "stride", "padding", "dilation", "groups", "data_format")
    public = {key: arguments[key] for key in names}
    if arguments["padding_algorithm"] != "EXPLICIT":
        public["padding"] = arguments["padding_algorithm"]
    return name, getattr(paddle.nn.functional, name), public


def _modules(model: nn.Layer) -> list[Any]:
    """Where the functions may be called from: Paddle's own modules, and those of the network's classes."""
    own = {kind.__module__ for layer in model.sublayers(include_self=True) for kind in type(layer).__mro__}
    return [
        module
        for name, module in list(sys.modules.items())
        if module is not None and (name == "paddle" or name.startswith("paddle.nn") or name in own)
    ]


def pairs(theirs: Sequence[Event], ours: Sequence[Event], by_order: bool) -> list[tuple[int, int]]:
    """Which events are the same, as numbers of PyTorch's and of Paddle's, in Paddle's order.

    Layers pair by name and call. With `by_order`, so do the rest: by kind, shapes and the order among those that pair
    by name, and where two stretches are equally long, by shapes alone.
    """
    numbers = {(event.name, event.number): n for n, event in enumerate(theirs) if event.known and not event.call}
    found = {
        n: numbers.pop((event.name, event.number))
        for n, event in enumerate(ours)
        if not event.call and (event.name, event.number) in numbers
    }
    if by_order:
        taken = set(found.values())
        common = {ours[n].name for n in found}
        for n, m in _aligned(theirs, ours, common):
            if m not in found and n not in taken:
                found[m] = n
    return [(found[n], n) for n in sorted(found)]


def _key(event: Event, common: set[str]) -> tuple[Any, ...] | None:
    """What events that may pair have in common; None for a layer made of others, which only a name pairs."""
    if event.call:
        return ("call", event.kind, event.name if event.name in common else "")
    if event.name in common:
        return ("layer", event.name)
    return ("leaf", event.kind, event.shapes) if event.leaf else None


def _aligned(theirs: Sequence[Event], ours: Sequence[Event], common: set[str]) -> Iterator[tuple[int, int]]:
    """The numbers of what is the same by name, kind or shape, in the order of both."""
    both = []
    for events in (theirs, ours):
        keys = [_key(event, common) for event in events]
        both.append([(key, number) for number, key in enumerate(keys) if key])
    matcher = SequenceMatcher(None, [key for key, _ in both[0]], [key for key, _ in both[1]], autojunk=False)
    for same, i, i_end, j, j_end in matcher.get_opcodes():
        if i_end - i == j_end - j and same in ("equal", "replace"):
            for (key, n), (other, m) in zip(both[0][i:i_end], both[1][j:j_end]):
                # An activation may be another one, and a function may be called in another place.
                alike = key[0] == other[0] == "leaf" or key[:2] == other[:2]
                if same == "equal" or (alike and theirs[n].shapes == ours[m].shapes):
                    yield n, m
