"""Indices in little space: of a matrix with one 1 a row, the file keeps where the 1 of each row stands.

SFR's ``index`` is such a matrix, and most of a condensed CondenseNet V2's file. In a compact file the tensor
``NAME@one-hot-COLUMNS``, int32 [rows], stands for the float32 matrix ``NAME`` [rows, COLUMNS]. Paddle knows no such
names, so only this package reads these files: `read_weights` gives the matrices back, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from paddle_dense.errors import DAMAGED, WeightsError, shown
from paddle_dense.files.names import two_names

_COMPACT = re.compile(r"(.+)@one-hot-(.*)", re.DOTALL)
_COLUMNS = re.compile(r"[1-9][0-9]{0,6}")
_MAX_GROWTH = 64  # how much larger than the file its indices may be
_ONE = np.float32(1).view(np.uint32)


def compacted(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state with each index in its compact form, or as it is where `expanded` would refuse to make it so large.

    Args:
        state: arrays by name; an index is float32 [rows, columns], with one 1 and zeros in every row.
    """
    new = dict(_compact(name, array) for name, array in state.items())
    matrices = sum(array.nbytes for name, array in state.items() if name not in new)
    return new if matrices <= _MAX_GROWTH * sum(array.nbytes for array in new.values()) else dict(state)


def saved_bytes(state: Mapping[str, np.ndarray]) -> int:
    """How much smaller `compacted` makes a file."""
    return sum(array.nbytes for array in state.values()) - sum(array.nbytes for array in compacted(state).values())


def expanded(arrays: Mapping[str, np.ndarray], file_size: int, free: float) -> dict[str, np.ndarray]:
    """A file's arrays with each compact index as the matrix that it stands for.

    Args:
        arrays: arrays by name, in the order of the file.
        file_size: in bytes.
        free: bytes of memory that there are for the matrices.

    Raises:
        WeightsError: an index is none, is there twice, or they would be much larger than the file or the memory.
    """
    new: dict[str, np.ndarray] = {}
    left = _MAX_GROWTH * file_size
    for name, array in arrays.items():
        compact = _COMPACT.fullmatch(name)
        own = compact[1] if compact else name
        if own in new:
            raise two_names(own, name, own)
        if compact:
            columns = _checked_columns(name, array, compact[2], arrays.get(f"{own[: -len('index')]}conv.weight"))
            size = 4 * len(array) * columns
            left, free = left - size, free - size
            if left < 0:
                raise WeightsError(
                    f"holds indices, {shown(name)} the last, of more than {_MAX_GROWTH} times the size of the file, "
                    f"{DAMAGED}"
                )
            if free < 0:
                raise WeightsError("holds indices that need more memory than is free: read it elsewhere")
            array = np.zeros((len(array), columns), np.float32)
            array[np.arange(len(array)), arrays[name]] = 1
        new[own] = array
    return new


def _compact(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Name and array as a compact file has them."""
    if name.rpartition(".")[2] != "index" or array.dtype != np.float32 or array.ndim != 2 or not array.size:
        return name, array
    bits = np.ascontiguousarray(array).view(np.uint32)  # which tell -0 from 0
    targets = bits.argmax(axis=1).astype(np.int32)
    if not ((np.count_nonzero(bits, axis=1) == 1) & (bits.max(axis=1) == _ONE)).all():
        return name, array
    return f"{name}@one-hot-{array.shape[1]}", targets


def _checked_columns(name: str, array: np.ndarray, columns: str, weight: np.ndarray | None) -> int:
    """Columns of the matrix that a compact index stands for, as many rows as the convolution's `weight` next to it."""
    if not _COLUMNS.fullmatch(columns) or array.dtype != np.int32 or array.ndim != 1:
        raise WeightsError(
            f"holds tensor {shown(name)} as {array.dtype} {list(array.shape)}, where an index in the compact form is "
            f"NAME@one-hot-COLUMNS and int32 [rows], {DAMAGED}"
        )
    wrong = np.nonzero((array < 0) | (array >= int(columns)))[0]
    if wrong.size:
        raise WeightsError(
            f"holds tensor {shown(name)} with {array[wrong[0]]} in row {wrong[0]}, where 0 to {int(columns) - 1} "
            f"exist, {DAMAGED}"
        )
    if weight is not None and len(array) != len(np.atleast_1d(weight)):
        raise WeightsError(
            f"holds tensor {shown(name)} with {len(array)} rows for a convolution with {len(np.atleast_1d(weight))}, "
            f"{DAMAGED}"
        )
    return int(columns)
