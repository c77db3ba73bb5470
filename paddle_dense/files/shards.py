"""A PyTorch checkpoint in several files: the index ``model.safetensors.index.json`` says which tensor is in which."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np

from paddle_dense.errors import AGAIN, WeightsError, naming, shown
from paddle_dense.files.foreign import foreign_by_name
from paddle_dense.files.packed import ONE_OF_SEVERAL, unpacked
from paddle_dense.files.weights import check_name, parse_json, read_file, unique_names

_MAX_INDEX = 10_000_000  # bytes; one of 100,000 tensors has as many
_MAX_SHARDS = 1000
# Of a file, of nothing in another folder or on another drive, and of no other index.
_NAME = re.compile(r"(?!\.{1,2}$)(?!.*\.json$)[^/\\:\0]{1,255}", re.IGNORECASE | re.DOTALL)
_BAD = f"is no valid index of shards: {AGAIN}"
_APART = "so they do not belong together: download the index and all shards again, into an empty folder"


@dataclass(frozen=True)
class Shards:
    """An index and the files that it names.

    Attributes:
        index: its content.
        places: the name of the shard with a tensor, by the tensor's name.
        contents: those of the shards by name, in the names' order.
    """

    index: memoryview
    places: Mapping[str, str]
    contents: Mapping[str, memoryview]

    def joined(self, read: Callable[[memoryview], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The tensors of all shards, in the shards' order.

        Args:
            read: gives the tensors in the content of a shard.

        Raises:
            WeightsError: a shard cannot be read, lacks a tensor that the index places there, or holds another one.
        """
        arrays: dict[str, np.ndarray] = {}
        for shard, content in self.contents.items():
            with naming(f"shard {shown(shard)}", ""):
                found = read(content)
            for name in found:
                if self.places.get(name) != shard:
                    where = f"places in {shown(self.places[name])}" if name in self.places else "does not name"
                    raise WeightsError(
                        f"shard {shown(shard)} holds tensor {shown(name)}, which the index {where}, {_APART}"
                    )
            arrays.update(found)
        for name, shard in self.places.items():
            if name not in arrays:
                raise WeightsError(
                    f"places tensor {shown(name)} in shard {shown(shard)}, which does not hold it, {_APART}"
                )
        return arrays


def contents(path: str | os.PathLike, data: memoryview) -> memoryview | Shards:
    """What a file holds: an archive's only checkpoint, an index's shards, and any other file itself.

    Args:
        path: of the file, next to which its shards are.
        data: what `read_file` gave for it.

    Raises:
        WeightsError: an index or archive cannot be used, or the file is a shard without its index.
    """
    name = os.path.basename(os.fspath(path))
    if said := foreign_by_name(name):
        raise WeightsError(said)
    if ONE_OF_SEVERAL.search(name):
        raise WeightsError(
            "is one of several shards of a checkpoint: give the index of all of them, such as "
            "model.safetensors.index.json or pytorch_model.bin.index.json, from the same folder"
        )
    places = _places(data)
    if places is None:
        inner = unpacked(data)
        if inner is not data and _places(inner) is not None:
            raise WeightsError("is an archive with an index of shards: unpack it next to the shards and give the index")
        return inner
    names = sorted(set(places.values()))
    if len(names) > _MAX_SHARDS:
        raise WeightsError(f"names more than {_MAX_SHARDS:,} shards, which no checkpoint has: do not use this file")
    return Shards(data, places, {shard: _read(Path(path), shard) for shard in names})


def _places(data: memoryview) -> dict[str, str] | None:
    """The shard of every tensor, as an index says it; None for a file that is none."""
    if not bytes(data[:64]).lstrip().startswith(b"{"):
        return None
    head = bytes(data[: _MAX_INDEX + 1])
    if b'"weight_map"' not in head:
        return None
    if len(head) > _MAX_INDEX:
        raise WeightsError(f"is an index of shards with more than {_MAX_INDEX:,} bytes: do not use this file")
    try:
        index: Any = parse_json(head, unique_names)
    except ValueError as error:
        raise WeightsError(_BAD) from error
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise WeightsError(_BAD)
    for name, shard in places.items():
        check_name(name)
        if not isinstance(shard, str) or not _NAME.fullmatch(shard):
            raise WeightsError(
                f"places tensor {shown(name)} in {shown(shard)}, which is no name of a weight file next to it: do "
                f"not use this file"
            )
    return places


def _read(index: Path, shard: str) -> memoryview:
    """The content of a shard, which is next to the index, or in the folder that the index is a link into.

    The latter is how huggingface_hub keeps what it downloads.
    """
    place = index.parent / shard
    if not os.path.isfile(place):
        raise WeightsError(f"needs shard {shown(shard)}, which is not next to it: download it into the same folder")
    folders = [os.path.realpath(index.parent), os.path.dirname(os.path.realpath(index))]
    if os.path.dirname(os.path.realpath(place)) not in folders:
        raise WeightsError(
            f"needs shard {shown(shard)}, which is a link to another folder: put the file itself next to the index"
        )
    with naming(f"shard {shown(shard)}", ""):
        return read_file(place)
