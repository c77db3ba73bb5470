"""Weight files: .pdparams and .safetensors, read without executing anything and written in one piece or not at all."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import BufferedReader
from typing import Any, Callable

import numpy as np

from paddle_dense.errors import AGAIN, DAMAGED, WeightsError, naming, shown
from paddle_dense.files.atomic import atomic_write
from paddle_dense.files.compact import expanded
from paddle_dense.files.foreign import folder, foreign, sharded
from paddle_dense.files.unpickle import Inert, Lazy, bfloat16_to_float32, decode, describe, unpickle

ZIP_MAGIC = b"PK\x03\x04"
# What zipfile raises for an archive that is cut short or damaged.
BAD_ZIP = (zipfile.BadZipFile, struct.error, ArithmeticError, LookupError, NotImplementedError, OSError, ValueError)
PYTORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the number that PyTorch's old, non-zip files begin with
_PICKLE_MAGIC = b"\x80"
_MAX_HEADER = 100_000_000  # bytes, as the safetensors library
_MAX_REUSE = 8  # how much larger than the file its arrays may be
_MAX_NAME = 1000  # characters of a tensor's name
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, which UTF-8 has not
# The rest of the sentence begins with a tensor.
REPEATED = (
    f"repeats data that the file holds once, so that its tensors would be more than {_MAX_REUSE} times as large as the "
    f"file: save tensor.clone() in place of each tensor"
)
_MAX_DEPTH = 50  # of JSON

# In the order in which the safetensors library puts tensors into a file.
_SAFETENSORS = {
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "F32": "<f4",
    "U32": "<u4",
    "I32": "<i4",
    "BF16": "bf16",
    "F16": "<f2",
    "U16": "<u2",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_SAFETENSORS_NAMES = {code: name for name, code in _SAFETENSORS.items()}
# Paddle has no wider unsigned integers, and a uint16 array in a .pdparams file means bfloat16.
_PDPARAMS = {"<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "|u1", "|b1"}


def read_weights(path: str | os.PathLike, content: memoryview | None = None) -> dict[str, np.ndarray]:
    """Reads a .pdparams or .safetensors file, whichever its content says it is.

    Nothing in the file is executed. The arrays view one copy of the file in memory: whatever becomes of the file later
    does not change them, nor the other way round. bfloat16, which Paddle saves as uint16, becomes float32; other dtypes
    are kept. Indices in the compact form (`paddle_dense.files.compact`) become the matrices that they stand for.

    Args:
        path: what paddle.save(model.state_dict(), path) wrote, plain or under "model" or "state_dict", or a safetensors
            file.
        content: what `read_file` gave for it, if it has been read already.

    Returns:
        Arrays by name, in the order of the file.

    Raises:
        WeightsError: the file cannot be read, is damaged, or holds something else than tensors.
        HostileFileError: it asks to run code.
    """
    with naming(path):
        data = read_file(path) if content is None else content
        return expanded(_read(path, data), len(data), free_memory())


def _read(path: str | os.PathLike, data: memoryview) -> dict[str, np.ndarray]:
    """The arrays as the file has them."""
    if is_safetensors(data):
        return parse_safetensors(data)
    if data[:1] == _PICKLE_MAGIC:
        return _read_pdparams(data)
    if data[:4] == ZIP_MAGIC:
        raise WeightsError(_NOT_PADDLE)
    if said := foreign(data):
        raise WeightsError(said)
    if os.fspath(path).lower().endswith(".safetensors"):
        return parse_safetensors(data)
    raise WeightsError(
        f"is neither a .pdparams nor a .safetensors file, since it begins with {bytes(data[:16])!r}: {AGAIN}"
    )


def read_metadata(path: str | os.PathLike, content: memoryview | None = None) -> dict[str, str]:
    """The texts in the header of a .safetensors file; none in a file of another kind.

    Args:
        path: the file.
        content: what `read_file` gave for it, if it has been read already.

    Raises:
        WeightsError: the file cannot be read, or its header is damaged.
    """
    with naming(path):
        header = read_file(path) if content is None else content
        if not is_safetensors(header):
            return {}
        return _parse_header(header[8 : 8 + int.from_bytes(header[:8], "little")]).get("__metadata__", {})


def write_weights(
    state: Mapping[str, np.ndarray], path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays as .pdparams or .safetensors, by the suffix of `path`; what stood there is replaced in one step.

    paddle.load of any Paddle 2.x or 3.x, with numpy 1 or 2, reads the .pdparams file. The .safetensors file has the
    bytes that the safetensors library would write.

    Args:
        state: arrays by name: floats, signed integers, uint8 and bool; .safetensors also holds wider unsigned integers.
        path: the file to write.
        metadata: texts for the header of a .safetensors file; a .pdparams file has no place for them.

    Raises:
        WeightsError: an array, a name, the metadata or the place cannot be used; the old file, if any, is unchanged.
    """
    content = encoded_weights(state, path, metadata)
    with atomic_write(path) as file:
        file.writelines(content)


def encoded_weights(
    state: Mapping[str, np.ndarray], path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The content of the file that `write_weights` would write, piece by piece; it raises what is wrong at once."""
    with naming(path):
        suffix = os.path.splitext(path)[1].lower()
        if suffix == ".safetensors":
            check_dtypes(state, _SAFETENSORS_NAMES)
            _check_metadata(state, metadata or {})
            return _safetensors_chunks(state, metadata or {})
        if suffix == ".pdparams" and not metadata:
            check_dtypes(state, _PDPARAMS)
            return _pdparams_chunks(state)
        if suffix == ".pdparams":
            raise WeightsError("cannot hold metadata: write a .safetensors file instead")
        raise WeightsError("has no suffix that says what to write: end the name in .pdparams or .safetensors")


def tensors_sha256(state: Mapping[str, np.ndarray]) -> str:
    """The digest of names, dtypes, shapes and numbers, whatever their order and the format of the file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name]
        digest.update(f"{json.dumps(name)} {code_of(array)} {list(array.shape)}\n".encode())
        digest.update(content_of(array))
    return digest.hexdigest()


def read_file(path: str | os.PathLike) -> memoryview:
    """The bytes of a file, in memory of their own: a mapped file that is cut while it is in use ends the process.

    Whoever needs several things of a file, such as its tensors and its sha256, takes them from one reading: a second
    one may find other content.

    Raises:
        WeightsError: without the file's name, as everything that is raised inside `naming`.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise WeightsError(f"is empty: {AGAIN}")
        content = memory_for(size)
        try:
            complete = file.readinto(content) == size
        except OSError as error:
            raise WeightsError(f"cannot be read ({error.strerror or error}): {AGAIN}") from error
    if not complete:
        raise WeightsError("was cut short while it was read: read it again when it is complete")
    return memoryview(content)


def open_file(path: str | os.PathLike) -> BufferedReader:
    """A file open for reading; a folder, pipe or device, which might never end, is none.

    Raises:
        WeightsError: as `read_file`.
    """
    try:
        if os.path.isdir(path):  # which some systems refuse to open
            raise WeightsError(folder(path))
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  the caller closes it
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror or error}): check the path") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise WeightsError("is not a file: give the weight file itself")
    return file


def read_bounded(path: str | os.PathLike, limit: int) -> bytes:
    """The bytes of a small file, such as the JSON next to weights, whoever made it.

    Args:
        path: the file.
        limit: how many bytes it may have.

    Raises:
        WeightsError: it has more, or as `read_file`.
    """
    with open_file(path) as file:
        try:
            # Not simply `limit + 1`, for which memory would be made.
            content = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
        except OSError as error:
            raise WeightsError(f"cannot be read ({error.strerror or error}): {AGAIN}") from error
    if len(content) > limit:
        raise WeightsError(f"has more than {limit:,} bytes, which no such file has: move it away, or give another name")
    return content


def parse_json(
    content: bytes | memoryview | str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """What JSON from a stranger's file says; it is nested no deeper than can be printed again.

    Args:
        content: of bounded size; bytes are UTF-8.
        object_pairs_hook: as of `json.loads`.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    text = content if isinstance(content, str) else str(content, "utf-8")
    try:
        parsed = json.loads(text, object_pairs_hook=object_pairs_hook, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    inside = [parsed]
    for _ in range(_MAX_DEPTH):
        inside = [item for value in inside for item in _items(value)]
        if not inside:
            return parsed
    raise ValueError("nested too deeply")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict, for `parse_json`; ValueError for a name twice, or one that is no text."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    if not all(map(_is_text, found)):  # an escape can give half of a surrogate pair
        raise ValueError("a name that is no text")
    return found


def _items(value: object) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _whole(digits: str) -> float:
    # No number has many digits, and turning many into one takes long; -0 is none, as the safetensors library reads it.
    return -0.0 if digits == "-0" else int(digits[:20])


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for someone to write


def memory_for(size: int) -> mmap.mmap:
    """Memory for a file; it can be read like one, too.

    Raises:
        WeightsError: there is less.
    """
    flags = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    try:
        if size > free_memory():
            raise MemoryError
        memory = mmap.mmap(-1, size, **flags)
    except (MemoryError, OSError, ValueError, OverflowError):
        raise WeightsError(f"has {size:,} bytes, more than there is memory free: read it elsewhere") from None
    with suppress(AttributeError, OSError):  # where there are large pages, filling them takes a quarter of the time
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def free_memory() -> float:
    """Bytes that this process can use without swapping, within `ulimit -v`; infinite where no system says."""
    free = left = float("inf")
    with suppress(OSError, ValueError, LookupError), open("/proc/meminfo", encoding="ascii") as file:
        free = int(dict(line.split(":") for line in file)["MemAvailable"].split()[0]) * 1024
    with suppress(ImportError, AttributeError, OSError, ValueError, LookupError):  # on Windows, for example
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            with open("/proc/self/statm", encoding="ascii") as file:
                left = limit - int(file.read().split()[0]) * resource.getpagesize()
    return max(0, min(free, left))


def tensors_in(entries: Mapping[Any, Any]) -> dict[str, Lazy]:
    """The tensors of a dict from a file; numbers and the like among them are left out.

    Raises:
        WeightsError: an unknown object stands where a tensor could be, or a tensor's name is no text.
    """
    tensors = {}
    for name, value in entries.items():
        if isinstance(value, Inert):
            raise WeightsError(
                sharded(name, value)
                or f"holds {describe(value)} under {shown(name)}, which only running the file's code could turn into a "
                f"tensor: save model.state_dict() instead"
            )
        if isinstance(value, Lazy):
            if not isinstance(name, str):
                raise WeightsError(
                    f"holds a tensor under {shown(name)} instead of a name: save model.state_dict() instead"
                )
            check_name(name)
            tensors[name] = value
    return tensors


def check_name(name: str) -> None:
    """Refuse a tensor's name that no network has: what renames and compares names may take long for long ones."""
    if len(name) > _MAX_NAME:
        raise WeightsError(f"holds a tensor named {shown(name)}, which no network has: save model.state_dict() instead")


def read_arrays(tensors: Mapping[str, Lazy], file_size: int) -> dict[str, np.ndarray]:
    """The arrays of lazy tensors.

    Raises:
        WeightsError: a tensor is damaged or no plain numbers, or the same data is used so often that the arrays would
            be much larger than the file.
    """
    arrays, room = {}, _MAX_REUSE * file_size
    for name, tensor in tensors.items():
        with naming(f"tensor {shown(name)}", ""):
            arrays[name] = tensor.numpy(room)
            room -= arrays[name].nbytes
            if room < 0:
                raise WeightsError(REPEATED)
    return arrays


# .pdparams

_NOT_PADDLE = "is a PyTorch checkpoint: turn it into a Paddle file with python -m convert.torch2paddle"


def _read_pdparams(data: memoryview) -> dict[str, np.ndarray]:
    saved, end = unpickle(data)
    if saved == PYTORCH_MAGIC:
        raise WeightsError(_NOT_PADDLE)
    if end != len(data):
        raise WeightsError(f"goes on for {len(data) - end} bytes after its end, {DAMAGED}")
    if not isinstance(saved, dict):
        raise WeightsError(f"holds {describe(saved)} instead of tensors by name: save model.state_dict()")
    if not any(isinstance(value, Lazy) for value in saved.values()):
        key = next((key for key in ("state_dict", "model") if isinstance(saved.get(key), dict)), None)
        if key:
            _check_alone(saved, key)
            saved = saved[key]
    saved.pop("StructuredToParameterName@@", None)
    # Paddle 2.1 and later write a tensor outside a plain state_dict as (its own name, array).
    saved = {name: value[1] if _is_named(value) else value for name, value in saved.items()}
    big = saved.pop("UnpackBigParamInfor@@", {})
    for name, value in saved.items():
        if isinstance(value, dict):
            raise WeightsError(
                f"holds a dict under {shown(name)}, so it is no plain state_dict: save model.state_dict() alone"
            )
    arrays = read_arrays(tensors_in(saved), len(data))
    _join_big(arrays, big)
    return {name: bfloat16_to_float32(a) if a.dtype == np.uint16 else a for name, a in arrays.items()}


def _check_alone(saved: Mapping[Any, Any], key: str) -> None:
    """WeightsError if the file has other tensors for most of the names under `key`: nobody can say which are meant."""
    names = saved[key].keys()
    others = {id(value): other for other, value in saved.items() if value is not saved[key] and isinstance(value, dict)}
    for other in others.values():
        if 2 * len(names & saved[other].keys()) > len(names):
            raise WeightsError(
                f"holds weights under {shown(key)} and, for the same network, under {shown(other)}: save those that "
                f"are meant alone with paddle.save"
            )


def _is_named(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Lazy)


def _join_big(arrays: dict[str, np.ndarray], big: Any) -> None:
    """Puts together the parameters above 1 GB, which protocols 2 and 3 store in slices."""
    try:
        for name, parts in big.items():
            names = [name, *parts["slices"]]
            if not all(isinstance(part, str) for part in names):  # hashing anything else could recurse forever
                raise TypeError("a name that is no text")
            check_name(name)
            if name in arrays:
                raise ValueError("a name twice")
            slices = [arrays.pop(part) for part in names[1:]]
            if len({part.dtype for part in slices}) > 1:
                raise TypeError("slices of several dtypes")
            arrays[name] = np.concatenate(slices).reshape(parts["OriginShape"])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"lists slices of a large tensor that do not fit together, {DAMAGED}") from error


def _pdparams_chunks(state: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The pickle of {name: array}. It names numpy.core, which every numpy knows; the bytes of arrays are not copied."""
    yield b"\x80\x04}("  # protocol 4, an empty dict, a mark
    for name, array in state.items():
        yield pickled_text(name)
        yield b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        shape = b"".join(b"\x8a\x08" + n.to_bytes(8, "little") for n in array.shape)
        dtype = pickled_text(code_of(array))
        yield (b"(K\x01(" + shape + b"tcnumpy\ndtype\n" + dtype + b"\x85R\x89\x8e" + array.nbytes.to_bytes(8, "little"))
        yield content_of(array)
        yield b"tb"
    yield b"u."  # everything since the mark goes into the dict


def pickled_text(text: str) -> bytes:
    """Pickle's instruction for a text."""
    encoded = text.encode("utf-8", "surrogatepass")  # as pickle does
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def check_dtypes(state: Mapping[str, np.ndarray], codes: Iterable[str]) -> None:
    """Refuse what a file cannot hold: other names than texts, other things than arrays, dtypes without a code there."""
    for name, array in state.items():
        if not _is_text(name):
            raise WeightsError(f"cannot hold a tensor named {shown(name)}: give it a name that is text")
        if not isinstance(array, np.ndarray):
            raise WeightsError(f"cannot hold {type(array).__name__} {shown(name)}: turn it into a numpy array")
        if code_of(array) not in codes:
            raise WeightsError(
                f"cannot hold tensor {shown(name)} of dtype {array.dtype}: turn it into float32 or int64"
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


def code_of(array: np.ndarray) -> str:
    """The array's dtype as numpy writes it, little-endian."""
    return array.dtype.newbyteorder("<").str


def content_of(array: np.ndarray) -> memoryview:
    """The array's numbers as bytes, row by row and little-endian; copied only where they lie otherwise."""
    return np.ascontiguousarray(array, code_of(array)).reshape(-1).view(np.uint8).data


# .safetensors: the length of a JSON header (8 bytes), the header, the tensors without gaps


def is_safetensors(data: memoryview) -> bool:
    """Whether the content is that of a safetensors file."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def parse_safetensors(data: memoryview) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, as views of it; bfloat16 becomes float32.

    Raises:
        WeightsError: the file breaks a rule of the format or holds a dtype that numpy has not.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or start > len(data) or start - 8 > _MAX_HEADER:
        raise WeightsError(f"claims a header of {start - 8} bytes, {DAMAGED}")
    header = _parse_header(data[8:start])
    header.pop("__metadata__", None)
    body = data[start:]
    entries = sorted(((*_offsets(name, entry), name) for name, entry in header.items()), key=lambda entry: entry[:2])
    arrays, reached = {}, 0
    for begin, end, name in entries:
        check_name(name)
        if begin != reached or end > len(body):
            raise WeightsError(
                f"places tensor {shown(name)} at bytes {begin} to {end} of {len(body)}, not at {reached}, {DAMAGED}"
            )
        reached = end
        dtype, shape = header[name].get("dtype"), header[name].get("shape")
        if not isinstance(dtype, str) or dtype not in _SAFETENSORS:
            raise WeightsError(f"holds tensor {shown(name)} of dtype {shown(dtype)}: save it as F32")
        with naming(f"tensor {shown(name)}", ""):
            arrays[name] = decode(body[begin:end], _SAFETENSORS[dtype], shape)
    if reached != len(body):
        raise WeightsError(f"holds {len(body) - reached} bytes that belong to no tensor, {DAMAGED}")
    return {name: arrays[name] for name in header}


def _parse_header(text: memoryview) -> dict[str, Any]:
    try:
        header = parse_json(text, unique_names)
        if not all(isinstance(entry, dict) for entry in header.values()):
            raise ValueError("an entry that is no object")
        if not all(map(_is_text, header.get("__metadata__", {}).values())):
            raise ValueError("metadata that is no text")
    except (AttributeError, ValueError) as error:
        raise WeightsError(f"has a header that is no valid safetensors header, {DAMAGED}") from error
    return header


def _offsets(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    offsets: Any = entry.get("data_offsets")
    whole = isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)
    if whole and 0 <= offsets[0] <= offsets[1]:
        return offsets[0], offsets[1]
    raise WeightsError(f"does not say where the data of tensor {shown(name)} is, {DAMAGED}")


def _check_metadata(state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    if not all(_is_text(text) for pair in metadata.items() for text in pair):
        raise WeightsError("can hold metadata of texts only: turn names and values into str")
    if "__metadata__" in state:
        raise WeightsError("cannot hold a tensor named '__metadata__': rename it")


def _safetensors_chunks(state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    rank = {code: index for index, code in enumerate(_SAFETENSORS.values())}
    names = sorted(state, key=lambda name: (rank[code_of(state[name])], name.encode()))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in names:
        array = state[name]
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[code_of(array)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield content_of(state[name])
