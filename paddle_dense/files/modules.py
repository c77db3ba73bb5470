"""Whole pickled modules of PyTorch: the state_dict that such a module would give, and what its layers state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddle_dense.errors import DAMAGED, WeightsError, shown
from paddle_dense.files.unpickle import Inert, describe

Layers = dict[str, dict[str, Any]]
SAVE = "save it again with torch.save(model.state_dict(), path)"

_MAX_NAMES = 4_000_000  # characters of all names in a module
_MAX_PREFIX = 1000
_MAX_TEXT, _MAX_LIST = 200, 8  # of what a layer states


def is_module(value: object) -> bool:
    """Whether an object of a file is a pickled torch.nn.Module."""
    return isinstance(value, Inert) and isinstance(value.state, dict) and "_parameters" in value.state


def entries_of(root: Any) -> tuple[Mapping[Any, Any], Layers]:
    """A state_dict as it is; that of a pickled torch.nn.Module put together from its parts, and what these state."""
    if isinstance(root, dict):
        return root, {}
    entries: dict[str, Any] = {}
    layers_of_all: Layers = {}
    seen: dict[int, dict[str, Any]] = {}
    waiting = [("", root)]
    visited = 0
    while waiting:
        prefix, module = waiting.pop()
        if not is_module(module):
            raise WeightsError(f"holds {describe(module)} as layer {shown(prefix)}: {SAVE}")
        parts = [module.state.get(part, {}) for part in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, dict) and all(isinstance(name, str) for name in part) for part in parts):
            raise WeightsError(f"holds a layer {shown(prefix)} that is no ordinary module: {SAVE}")
        visited += 1 + sum(1 + len(prefix) + len(name) for part in parts for name in part)
        if visited > _MAX_NAMES or len(prefix) > _MAX_PREFIX:
            raise WeightsError(f"holds modules inside modules without end, {DAMAGED}")
        if id(module.state) not in seen:
            seen[id(module.state)] = _facts(module.name, module.state)
        layers_of_all[prefix[:-1]] = seen[id(module.state)]
        parameters, buffers, layers = parts
        temporary = module.state.get("_non_persistent_buffers_set")
        temporary = {name for name in temporary if isinstance(name, str)} if isinstance(temporary, list) else set()
        kept = {**parameters, **{name: value for name, value in buffers.items() if name not in temporary}}
        for name, value in kept.items():
            if prefix + name in entries or (name in parameters and name in buffers):
                raise WeightsError(f"holds two tensors under the name {shown(prefix + name)}, {DAMAGED}")
            if value is not None:
                entries[prefix + name] = value
        waiting += [(f"{prefix}{name}.", layer) for name, layer in reversed(layers.items()) if layer is not None]
    return entries, layers_of_all


def _facts(kind: str, state: Mapping[Any, Any]) -> dict[str, Any]:
    """What a pickled layer states of itself: plain values by attribute, and its class under "class".

    What is no plain value, or a long one, is described in words. "hooks" is there if calling the layer runs more than
    its class does.
    """
    facts = {
        name: _stated(value)
        for name, value in state.items()
        if isinstance(name, str) and name[:1] != "_" and len(name) <= _MAX_TEXT
    }
    if "forward" in state or any(state.get(hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks")):
        facts["hooks"] = True
    facts["class"] = kind
    return facts


def _stated(value: object) -> object:
    if isinstance(value, (list, tuple)) and len(value) <= _MAX_LIST and all(map(is_plain, value)):
        return list(value)
    return value if is_plain(value) else describe(value)


def is_plain(value: object) -> bool:
    """Whether it is a number, a short text or None."""
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float)
