"""What Paddle has no place for: the names, order and counters of the original file, kept in the sidecar.

Paddle's BN counts no batches, and this project has one name for a tensor where PyTorch's libraries have several. What
`record_origin` gives goes into the sidecar of the Paddle file, and `restore_origin` is given it from there, so that the
way back gives the state_dict that the way there began with.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_paddle, to_torch
from paddle_dense.files.names import COUNTER
from paddle_dense.files.sidecar import sidecar_path, unreadable_sidecar


def origin_path(path: Path) -> Path:
    """Where a PyTorch file's origin is kept: not in ``NAME.json``, which is the Paddle file's own."""
    return path.with_name(f"{path.name}.json")


def record_origin(names: Iterable[str], state: Mapping[str, np.ndarray], kept: Iterable[str]) -> dict[str, Any]:
    """What the way back needs to know of a checkpoint, as the sidecar has it under ``source``.

    Args:
        names: the checkpoint's own names, in its order.
        state: the same tensors under the original network's names, in the same order.
        kept: names of the Paddle tensors that are written, in their order.

    Returns:
        ``num_batches_tracked``: one number for all BN layers, or one for each by name, or None if the file has none;
        and ``names``, only if the file's names or their order are not those that `to_torch` gives: the tensor, or the
        counter's number, by the file's own name.
    """
    names, kept = list(names), list(kept)
    counts = {name.rpartition(".")[0]: _count(state[name]) for name in state if name.rpartition(".")[2] == COUNTER}
    layers = [name.rpartition(".")[0] for name in kept if name.endswith("._variance")]
    origin: dict[str, Any] = {COUNTER: None}
    if counts:
        [(usual, _)] = Counter(counts.values()).most_common(1)
        same = all(counts.get(layer) == usual for layer in layers)
        origin[COUNTER] = usual if same else {layer: counts[layer] for layer in layers if layer in counts}
    if len(names) == len(state) and set(to_paddle(state)) == set(kept):
        usual_names = list(restore_origin({name: np.empty(0) for name in kept}, origin))
        if names != usual_names:
            origin["names"] = {
                theirs: counts[name.rpartition(".")[0]] if name.rpartition(".")[2] == COUNTER else name
                for theirs, name in zip(names, state)
            }
    return origin


def read_origin(path: str | os.PathLike, sidecar: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the sidecar of a Paddle file keeps of the original file; nothing where there is none.

    Args:
        path: the file.
        sidecar: what `read_sidecar` gave for it.

    Raises:
        WeightsError: the sidecar is not what `convert.torch2paddle` writes.
    """
    source = (sidecar or {}).get("source")
    known = {key: source[key] for key in (COUNTER, "names") if key in source} if isinstance(source, dict) else {}
    counts, names = known.get(COUNTER), known.get("names", {})
    counts = list(counts.values()) if isinstance(counts, dict) else [counts or 0]
    numbers = [name for name in names.values() if not isinstance(name, str)] if isinstance(names, dict) else [None]
    if not all(type(number) is int and 0 <= number < 2**63 for number in [*counts, *numbers]):
        raise unreadable_sidecar(sidecar_path(path))
    return known


def restore_origin(state: Mapping[str, np.ndarray], origin: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A PyTorch state_dict from Paddle's tensors and what `read_origin` gives of the original file.

    Without such knowledge the names are those of the original network and the counters are 0.

    Raises:
        WeightsError: it belongs to other tensors.
    """
    mapped = to_torch(state)
    counts = origin.get(COUNTER, 0)
    for name in [name for name in mapped if name.rpartition(".")[2] == COUNTER]:
        count = counts.get(name.rpartition(".")[0]) if isinstance(counts, Mapping) else counts
        if count is None:
            del mapped[name]
        else:
            mapped[name] = np.array(count, np.int64)
    if "names" not in origin:
        return mapped
    names = origin["names"]
    tensors = [name for name in names.values() if isinstance(name, str)]
    if sorted(tensors) != sorted(name for name in mapped if name.rpartition(".")[2] != COUNTER):
        raise WeightsError(
            "the sidecar .json names other tensors than the file holds: delete it to get the original "
            "network's own names"
        )
    return {
        theirs: mapped[name] if isinstance(name, str) else np.array(name, np.int64) for theirs, name in names.items()
    }


def _count(value: np.ndarray) -> int:
    """The counter as a number; EMA weights may have a fraction there, and a foreign file anything."""
    if value.size != 1 or not np.isfinite(value).all():
        return 0
    return int(np.clip(np.round(value.reshape(-1)[0]), 0, 2**62))
