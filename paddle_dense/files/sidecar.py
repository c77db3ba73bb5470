"""The sidecar ``NAME.json`` of a weight file: which network it belongs to and where it came from.

Two files cannot be replaced in one step, so a sidecar says which tensors it belongs to (`tensors_sha256`), and one that
belongs to others is not used. While weights are being replaced, the sidecar describes the new ones and, under
``previous``, the old ones: whichever stand next to it after a power cut, they have their own.

The same entry is the mark by which a sidecar is known: other JSON of this name is the user's, and stays
unless `force` is given.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, TypeVar, Union

import numpy as np

from paddle_dense.errors import WeightsError, naming
from paddle_dense.files.atomic import new_file, turn
from paddle_dense.files.compact import compacted
from paddle_dense.files.weights import encoded_weights, parse_json, read_bounded, read_weights, tensors_sha256

PathLike = Union[str, os.PathLike]
Read = TypeVar("Read")

_MAX_SIZE = 1 << 20  # bytes of a sidecar that is read
_MAX_NUMBERS = 100  # of one argument of a network
_TENSORS = "tensors_sha256"
_PREVIOUS = "previous"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIXES = (".pdparams", ".safetensors")  # of weights that a sidecar may describe


class OtherTensorsError(WeightsError):
    """A sidecar describes other tensors than the weights next to it hold."""


def sidecar_path(path: PathLike) -> Path:
    """``NAME.json`` next to ``NAME.pdparams``."""
    return Path(path).with_suffix(".json")


def unreadable_sidecar(json_file: Path) -> WeightsError:
    """The error for a sidecar that is not what this package writes."""
    return WeightsError(
        f"{json_file} is not a readable sidecar: fix or delete it; the network is then recognised from the tensors"
    )


def with_its_sidecar(path: Path) -> tuple[Path, ...]:
    """A weight file and the sidecar that may describe it, which PyTorch's ``.pth`` has not."""
    return (path, sidecar_path(path)) if path.suffix.lower() in _SUFFIXES else (path,)


def write_with_sidecar(
    state: Mapping[str, np.ndarray],
    path: PathLike,
    sidecar: Mapping[str, Any],
    force: bool = False,
    compact: bool = False,
) -> None:
    """Write arrays and their sidecar, both or neither; of two writers at once, the last one's.

    Args:
        state: arrays by name.
        path: ends in ``.pdparams`` or ``.safetensors``.
        sidecar: what it shall say, as JSON takes it; empty for none, and an old one is removed.
        force: replace what stands under the sidecar's name even if it is none.
        compact: write indices in the compact form, which only this package reads; the sidecar is the same.

    Raises:
        WeightsError: they cannot be written, or another file has the sidecar's name; what stood there is unchanged.
    """
    json_file, content = sidecar_path(path), encoded_weights(compacted(state) if compact else state, path)
    with new_file(path) as weights, ThreadPoolExecutor(1) as while_writing:
        sha256 = while_writing.submit(tensors_sha256, state)
        weights.write(content)
        complete = {**sidecar, _TENSORS: sha256.result()}
        # All that may not fit on the disk is there before anything changes.
        with new_file(json_file) as interim, new_file(json_file) as final, turn(os.path.dirname(weights.target)):
            before = _content(json_file)
            if before is not None and not force and not _is_own(_parsed(before)):
                raise WeightsError(
                    f"{json_file} has the name that the sidecar of {os.fspath(path)} would have, and was not written "
                    f"here: give the weights another name"
                )
            final.write([_text(complete)])
            interim.write([_text({**complete, _PREVIOUS: _previous(before, weights.target)})])
            try:
                if sidecar or before is not None:
                    interim.put_in_place()
                weights.put_in_place()
            finally:
                if weights.in_place and sidecar:
                    final.put_in_place()
                elif weights.in_place or before is None:
                    json_file.unlink(missing_ok=True)
                else:
                    final.write([before])
                    final.put_in_place()


def network_in(entries: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Name and config of the network that some JSON describes, or None if they are nothing that a network has."""
    arch, config = entries.get("arch"), entries.get("config")
    if not (_is_plain(arch) and isinstance(config, dict) and all(map(_is_argument, [*config, *config.values()]))):
        return None
    return str(arch), config


def read_sidecar(path: PathLike, state: Mapping[str, np.ndarray] | None = None) -> dict[str, Any] | None:
    """All that a file's sidecar states of it, or None where there is no sidecar.

    A sidecar that does not say which tensors it belongs to, one written by hand for example, is used.

    Args:
        path: the weight file.
        state: its tensors, if they have been read already.

    Raises:
        OtherTensorsError: the sidecar describes other tensors.
        WeightsError: it is no JSON object.
    """
    json_file = sidecar_path(path)
    try:
        status = json_file.stat()
    except OSError:
        return None
    is_small = stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_SIZE
    sidecar = _parsed(_content(json_file)) if is_small else None
    if sidecar is None:
        raise unreadable_sidecar(json_file)
    if _TENSORS not in sidecar:
        return sidecar
    found = tensors_sha256(read_weights(path) if state is None else state)
    while isinstance(sidecar, dict) and sidecar.get(_TENSORS, found) != found:
        if _PREVIOUS not in sidecar:
            raise OtherTensorsError(
                f"{json_file} describes other tensors than {os.fspath(path)} holds: delete it, and the network is then "
                f"recognised from the tensors, or convert the checkpoint again"
            )
        sidecar = sidecar[_PREVIOUS]
    return sidecar if isinstance(sidecar, dict) else None


def in_one_moment(path: PathLike, read: Callable[[], Read]) -> Read:
    """Read weights and their sidecar as they stood together, though somebody may be replacing them.

    Args:
        path: the weight file.
        read: reads both; where they do not belong together, it is called once more, while no other process is
            replacing them.

    Raises:
        OtherTensorsError: they do not belong together then either.
        WeightsError: as `read`.
    """
    try:
        return read()
    except OtherTensorsError:
        pass  # and what was read is forgotten, before memory is needed for it again
    with turn(os.path.dirname(os.path.realpath(path))):
        return read()


def _is_argument(value: object) -> bool:
    """Whether a network could take this; nothing nested or long, since messages repeat it."""
    return all(map(_is_plain, value)) and len(value) <= _MAX_NUMBERS if isinstance(value, list) else _is_plain(value)


def _is_plain(value: object) -> bool:
    return len(value) <= _MAX_NUMBERS if isinstance(value, str) else isinstance(value, (int, float, type(None)))


def is_left_over(json_file: Path) -> bool:
    """Whether a sidecar is all that a dead run has written, which had not put its weights there yet."""
    if json_file.suffix != ".json" or any(os.path.lexists(json_file.with_suffix(suffix)) for suffix in _SUFFIXES):
        return False
    try:
        return _is_first(_parsed(_content(json_file)))
    except WeightsError:  # larger than any sidecar, or not to be read
        return False


def _previous(before: bytes | None, weights: str) -> dict[str, Any] | None:
    """What the sidecar that is about to be replaced states of weights that may be there."""
    sidecar = _parsed(before)
    return None if _is_first(sidecar) and not os.path.lexists(weights) else sidecar


def _is_first(sidecar: dict[str, Any] | None) -> bool:
    """Whether this is a sidecar of weights that are being written where none stood before."""
    return sidecar is not None and _is_own(sidecar) and sidecar.get(_PREVIOUS, sidecar) is None


def _is_own(sidecar: dict[str, Any] | None) -> bool:
    """Whether some JSON bears the mark of what `write_with_sidecar` writes."""
    return sidecar is not None and isinstance(sidecar.get(_TENSORS), str) and bool(_SHA256.fullmatch(sidecar[_TENSORS]))


def _text(sidecar: Mapping[str, Any]) -> bytes:
    # A file name that is no valid text becomes an escape of JSON.
    return (json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _content(json_file: Path) -> bytes | None:
    with naming(json_file):
        return read_bounded(json_file, _MAX_SIZE) if json_file.is_file() else None


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    """A JSON object, or None for anything else."""
    try:
        sidecar = parse_json(content or b"")
    except ValueError:
        return None
    return sidecar if isinstance(sidecar, dict) else None
