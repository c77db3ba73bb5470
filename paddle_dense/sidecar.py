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
    if beside.exists():
        beside.unlink()
    write_weights(state, path)
    if sidecar:
        with atomic_write(beside) as file:
            file.write(text.encode())


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
