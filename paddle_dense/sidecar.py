"""The sidecar ``NAME.json`` of a weight file: which network it belongs to and where it came from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np

from paddle_dense.errors import WeightsError
from paddle_dense.weights import atomic_write, write_weights

PathLike = Union[str, os.PathLike]


def sidecar_path(path: PathLike) -> Path:
    """``NAME.json`` beside ``NAME.pdparams``."""
    return Path(path).with_suffix(".json")


def write_with_sidecar(state: Mapping[str, np.ndarray], path: PathLike, sidecar: Mapping[str, Any]) -> None:
    """Write arrays and their sidecar; a crash in between leaves no sidecar rather than one of other weights."""
    beside = sidecar_path(path)
    text = json.dumps(dict(sidecar), indent=2, ensure_ascii=False) + "\n"
    previous = _taken_away(beside)
    try:
        write_weights(state, path)
    except BaseException:
        if previous is not None:
            _write(beside, previous)
        raise
    if sidecar:
        _write(beside, text.encode())


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def _taken_away(path: Path) -> bytes | None:
    """The content of a file that is removed; None where there is none."""
    try:
        content = path.read_bytes()
        path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be replaced ({error.strerror}): choose another place") from error
    return content


def read_sidecar(path: PathLike) -> tuple[str, dict[str, Any]] | None:
    """Name and config of the network that a file's sidecar tells of, or None where there is no such sidecar.

    Raises:
        WeightsError: the sidecar is not what `save_weights` writes.
    """
    beside = sidecar_path(path)
    if not beside.exists():
        return None
    try:
        told = json.loads(beside.read_text(encoding="utf-8"))
        return (str(told["arch"]), dict(told["config"])) if "arch" in told else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise WeightsError(
            f"{beside} is not a readable sidecar: mend or remove it, and the tensors are asked"
        ) from None
