"""Writes the zip archive that torch.save writes, without PyTorch: every PyTorch since 1.6 reads it."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import numpy as np

from paddle_dense.files.weights import check_dtypes, code_of, content_of, pickled_text

ALIGNMENT = 64  # bytes, as PyTorch's own files, so that torch.load(mmap=True) gives aligned tensors
_ROOT = "archive"
_VERSION = b"3\n"  # of the archive; the oldest that has a place for everything here
_HEADER = 30  # bytes of a zip entry's local header before its name
_STORAGES = {
    "<f8": "DoubleStorage",
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "<i8": "LongStorage",
    "<i4": "IntStorage",
    "<i2": "ShortStorage",
    "|i1": "CharStorage",
    "|u1": "ByteStorage",
    "|b1": "BoolStorage",
}


def write_torch(state: Mapping[str, np.ndarray], file: BinaryIO) -> None:
    """Write a state_dict as torch.save does, for torch.load(weights_only=True) of PyTorch 1.6 or newer.

    The same arrays give the same bytes.

    Args:
        state: arrays by name: floats of 2, 4 or 8 bytes, signed integers, uint8 and bool.
        file: open for writing, at its beginning.

    Raises:
        WeightsError: an array is of a dtype that PyTorch has no storage for.
    """
    check_dtypes(state, _STORAGES)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", b"".join(_pickled(state)))
        _add(archive, file, "byteorder", b"little")
        for number, array in enumerate(state.values()):
            _add(archive, file, f"data/{number}", content_of(array))
        _add(archive, file, "version", _VERSION)


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: bytes | memoryview) -> None:
    """Append a record whose content begins at a multiple of `ALIGNMENT`."""
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")  # dated 1980
    # An extra field of its own kind, "FB" as PyTorch calls it, pads the local header.
    padding = -(file.tell() + _HEADER + len(entry.filename) + 4) % ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(entry, content)


def _pickled(state: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """An OrderedDict of tensors, each a view of all of its own storage, in pickle's protocol 2."""
    yield b"\x80\x02ccollections\nOrderedDict\n)R("
    for number, (name, array) in enumerate(state.items()):
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        yield pickled_text(name)
        yield b"ctorch._utils\n_rebuild_tensor_v2\n(("
        yield (
            pickled_text("storage")
            + f"ctorch\n{_STORAGES[code_of(array)]}\n".encode()
            + pickled_text(str(number))
            + pickled_text("cpu")
        )
        yield _integer(array.size) + b"tQ"  # a persistent id: the record data/NUMBER
        yield _integer(0) + _tuple(array.shape) + _tuple(strides)
        yield b"\x89ccollections\nOrderedDict\n)RtR"  # no gradient, no hooks
    yield b"u."


def _integer(number: int) -> bytes:
    return b"J" + struct.pack("<i", number) if number < 2**31 else b"\x8a\x08" + struct.pack("<q", number)


def _tuple(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
