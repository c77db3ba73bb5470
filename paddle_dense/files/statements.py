"""What a training script saved next to the weights: its arguments, the network's configuration, the network's name.

Scripts keep these in an ``argparse.Namespace`` or a dict, as timm's "args" and Lightning's "hyper_parameters", in
attributes of a whole module, or as JSON in the header of a .safetensors file. Only plain values are taken.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from paddle_dense.files.modules import is_plain
from paddle_dense.files.sidecar import LONGEST_NAME
from paddle_dense.files.unpickle import Inert

# The entries of a checkpoint, or attributes of a module, that are looked into.
_GROUPS = {
    *("args", "arguments", "cfg", "config", "configuration", "conf", "opt", "opts", "options", "flags", "kwargs"),
    *("hparams", "hyper_parameters", "hyperparameters", "hyperparams", "default_cfg", "pretrained_cfg"),
    *("model_args", "model_cfg", "model_config", "model_kwargs", "model_params", "network_config", "init_args"),
}
# Where scripts keep the names of the classes: Lightning's and MMEngine's data have groups of their own.
_GROUPS_OF_DATA = {"meta", "dataset_meta", "data_config", "datamodule_hyper_parameters"}
_LISTS_OF_CLASSES = {"classes", "class_names", "label_names", "CLASSES"}
_NUMBERS_BY_CLASS = {"class_to_idx", "label2id"}
_CLASSES_BY_NUMBER = {"idx_to_class", "id2label"}
_NAME = re.compile(r"[A-Za-z][\w-]{0,80}", re.ASCII)
_MAX_VALUES, _MAX_LIST = 5000, 16
_MAX_CLASSES = 100_000


def statements(*holders: object) -> dict[str, Any]:
    """Plain values by name; a name that stands there with different values is left out.

    Args:
        holders: what a file holds: dicts, modules.
    """
    found: dict[str, list[Any]] = {}
    for name, value in islice(_values(holders), _MAX_VALUES):
        different = found.setdefault(name.replace("-", "_"), [])
        if value not in different:
            different.append(value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def class_names(*holders: object) -> list[str] | None:
    """The name of each class, by number, as torchvision's ``class_to_idx`` or a list has them; None where none is sure.

    Args:
        holders: what a file holds: dicts, modules.
    """
    groups = [value for holder in holders for name, value in _entries(holder) if name in _GROUPS | _GROUPS_OF_DATA]
    found: list[list[str]] = []
    for name, value in (entry for holder in (*holders, *groups) for entry in _entries(holder)):
        names = _classes(name, value)
        if names and names not in found:
            found.append(names)
    return found[0] if len(found) == 1 else None


def _classes(key: str, value: Any) -> list[str] | None:
    """The names in an entry that is known to have such, by number."""
    if key in _LISTS_OF_CLASSES and isinstance(value, (list, tuple)):
        names = dict(enumerate(value))
    elif key in _NUMBERS_BY_CLASS and isinstance(value, dict):
        names = {number: name for name, number in value.items() if type(number) is int}
    elif key in _CLASSES_BY_NUMBER and isinstance(value, dict):
        names = {int(number) if str(number).isdecimal() else -1: name for number, name in value.items()}
    else:
        return None
    if not 0 < len(names) == len(value) <= _MAX_CLASSES or names.keys() != set(range(len(names))):
        return None
    in_order = [names[number] for number in range(len(names))]
    return in_order if all(isinstance(name, str) and 0 < len(name) <= LONGEST_NAME for name in in_order) else None


def header_statements(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The same of the header of a .safetensors file, where groups of values are JSON."""
    return statements({name: _from_json(text) if name in _GROUPS else text for name, text in metadata.items()})


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _values(holders: Sequence[object]) -> Iterator[tuple[str, Any]]:
    """The plain values of dicts and objects and of the groups in them; in a group, of all that is in it."""
    waiting = deque((holder, False) for holder in holders)
    seen: set[int] = set()
    while waiting:
        holder, in_group = waiting.popleft()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        for name, value in _entries(holder):
            if isinstance(value, (list, tuple)) and 0 < len(value) <= _MAX_LIST and all(map(is_plain, value)):
                yield name, list(value)
            elif is_plain(value) and value is not None:
                yield name, value
            elif in_group or name in _GROUPS:
                waiting.append((value, True))


def _entries(holder: object) -> list[tuple[str, Any]]:
    """What is in a dict or object, by name."""
    inside = holder.state if isinstance(holder, Inert) else holder
    if not isinstance(inside, dict):
        return []
    content = inside.get("_content")
    if isinstance(content, dict):  # OmegaConf's
        inside = {name: _omegaconf_value(value) for name, value in content.items()}
    return [(name, value) for name, value in inside.items() if isinstance(name, str) and _NAME.fullmatch(name)]


def _omegaconf_value(node: object) -> object:
    state = node.state if isinstance(node, Inert) else None
    return state["_val"] if isinstance(state, dict) and "_val" in state else node
