"""Reads PyTorch checkpoints without PyTorch, and without running what they say.

Three formats: the zip archive that torch.save writes since PyTorch 1.6, the row of pickles that it wrote before, and
safetensors. Tensors stay references until a state_dict has been chosen, so what else is in the file (the optimizer,
most of the time) is never read.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any, Callable, cast

import numpy as np

from paddle_dense.errors import AGAIN, DAMAGED, WeightsError, listed, naming, shown
from paddle_dense.files.foreign import foreign
from paddle_dense.files.modules import SAVE as _SAVE
from paddle_dense.files.modules import Layers
from paddle_dense.files.names import renamed
from paddle_dense.files.reparametrised import whole_weights
from paddle_dense.files.sets import BARE, take
from paddle_dense.files.shards import Shards, contents
from paddle_dense.files.statements import header_statements, statements
from paddle_dense.files.unpickle import (
    Inert,
    Lazy,
    Name,
    describe,
    element_count,
    interpret,
    stored_dtype,
    unpickle,
    whole_numbers,
)
from paddle_dense.files.weights import (
    BAD_ZIP,
    PYTORCH_MAGIC,
    REPEATED,
    ZIP_MAGIC,
    is_safetensors,
    parse_safetensors,
    read_arrays,
    read_file,
    read_metadata,
    tensors_in,
)

_WRAPPERS = ("module.", "_orig_mod.", "model.")
_AVERAGED_COUNT = re.compile(r"(module\.|_orig_mod\.|model\.)*n_averaged")

_TORCHSCRIPT = re.compile(r"[^/]+/(constants\.pkl$|code/)")
_MAX_GAP = 24  # bytes between the entries of a zip archive
_UTF8 = 0x800  # the flag of a zip entry by which its name is UTF-8
_FOLDER = 0x10  # the attribute of DOS by which PyTorch knows a folder, and copies nothing
_FORMAT_VERSION = 1001  # of files before PyTorch 1.6
_MOVING = ("data", "real")  # attributes of a tensor that are its numbers
_MOVED = f"gives a tensor other data after making it, which torch.save never writes: load it with PyTorch and {_SAVE}"
# The rest of the sentence begins with a file or a tensor.
_BIG_ENDIAN = f"was written on a big-endian machine: load it there with PyTorch and {_SAVE} elsewhere"

# By the class of the storage, or by the dtype that a tensor on an untyped storage has.
_DTYPES = {
    **dict.fromkeys(("FloatStorage", "float32"), "<f4"),
    **dict.fromkeys(("DoubleStorage", "float64"), "<f8"),
    **dict.fromkeys(("HalfStorage", "float16"), "<f2"),
    **dict.fromkeys(("BFloat16Storage", "bfloat16"), "bf16"),
    **dict.fromkeys(("LongStorage", "int64"), "<i8"),
    **dict.fromkeys(("IntStorage", "int32"), "<i4"),
    **dict.fromkeys(("ShortStorage", "int16"), "<i2"),
    **dict.fromkeys(("CharStorage", "int8"), "|i1"),
    **dict.fromkeys(("ByteStorage", "UntypedStorage", "_UntypedStorage", "uint8"), "|u1"),
    **dict.fromkeys(("BoolStorage", "bool"), "|b1"),
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
}
_ITEM_SIZES = {kind: stored_dtype(code).itemsize for kind, code in _DTYPES.items()}
# Nobody's weights, but an old file can only be read past them.
_ITEM_SIZES.update(ComplexFloatStorage=8, ComplexDoubleStorage=16, QInt8Storage=1, QUInt8Storage=1, QInt32Storage=4)


@dataclass(frozen=True)
class Checkpoint:
    """What a PyTorch checkpoint holds.

    Attributes:
        state: arrays by PyTorch's names, without the prefixes of wrappers, in the order of the file; floats as float32.
        container: where in the file they were: a key such as "state_dict_ema", or "bare", or "module".
        warnings: what a user should know about them, one sentence each.
        layers: of a whole pickled module, what it states of each layer that is in the network with the tensors: plain
            values by attribute, and "class", by the layer's name, which has no wrappers' prefix either; "" is the
            network itself. Empty for a state_dict.
        around: the same of what stands around that network, under full names.
        averaged: these are EMA weights, or averaged in another way.
        sets: the keys of all sets of weights that the file has for the same network, that of this one first.
        stated: plain values by name, from the arguments and configurations that the file keeps next to them.
        parts: the tensors that PyTorch's weight_norm computes a weight of, by that weight's name; it is in the state.
    """

    state: dict[str, np.ndarray]
    container: str
    warnings: list[str] = field(default_factory=list)
    layers: Layers = field(default_factory=dict)
    around: Layers = field(default_factory=dict)
    averaged: bool = False
    sets: Sequence[str] = ()
    stated: dict[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


def read_checkpoint(
    path: str | os.PathLike, ema: bool = True, content: memoryview | Shards | None = None, key: str | None = None
) -> Checkpoint:
    """Reads a PyTorch checkpoint: .pth, .pt, .pth.tar or .safetensors, whichever its content says it is.

    Nothing in the file is executed. Half precision, bfloat16 and float64 become float32; integers and bool are kept.
    Arrays may view the file and each other; changing one does not change the file.

    Args:
        path: a state_dict, a dict that holds one, a whole pickled module, or the index of a state_dict in shards.
        ema: take the EMA weights where the file has them.
        content: what `read_file` and `contents` gave for it, if it has been read already.
        key: take the weights under this key of the file instead; ``a.b`` for a dict in a dict.

    Raises:
        WeightsError: the file is damaged, of another kind, or its tensors could only be had by running it.
        HostileFileError: it names code that only an attack needs.
    """
    with naming(path):
        data = contents(path, read_file(path)) if content is None else content
        warnings: list[str] = []
        if isinstance(data, Shards) or is_safetensors(data):
            if key not in (None, BARE):
                raise WeightsError(f"holds one set of weights and none under {shown(key)}: leave the key out")
            arrays = (
                data.joined(lambda shard: _plain(shard, warnings)) if isinstance(data, Shards) else _plain(data, [])
            )
            header = {} if isinstance(data, Shards) else read_metadata(path, data)
            return replace(_finish(arrays, BARE, warnings, {}), stated=header_statements(header))
        saved = _saved(data, warnings)
        taken = take(saved, ema, key)
        warnings += taken.warnings
        arrays = _arrays(taken.entries, len(data), warnings)
        found = _finish(arrays, taken.key, warnings, taken.layers)
        return replace(found, averaged=taken.averaged, sets=taken.sets, stated=statements(saved, taken.module))


def _saved(data: memoryview, warnings: list[str]) -> Any:
    """What torch.save was given."""
    if data[:4] == ZIP_MAGIC:
        return _read_zip(data, warnings)
    if data[:1] == b"\x80":
        return _read_legacy(data)
    if data[257:262] == b"ustar":
        raise WeightsError(f"is a tar archive, as PyTorch wrote before 0.1.12: load it with PyTorch and {_SAVE}")
    raise WeightsError(foreign(data) or f"begins with {bytes(data[:16])!r}, so it is no PyTorch checkpoint: {AGAIN}")


def _plain(data: memoryview, warnings: list[str]) -> dict[str, np.ndarray]:
    """The tensors of a file that is a state_dict and nothing else, as a shard has to be."""
    if is_safetensors(data):
        return parse_safetensors(data)
    saved = _saved(data, warnings)
    if not isinstance(saved, dict):
        raise WeightsError(f"holds {describe(saved)} instead of a state_dict: {_SAVE}")
    return _arrays(saved, len(data), warnings)


def _arrays(entries: Mapping[Any, Any], size: int, warnings: list[str]) -> dict[str, np.ndarray]:
    """The tensors among the entries of a state_dict in a file of `size` bytes."""
    tensors = tensors_in(entries)
    left_out = [name for name, value in entries.items() if not isinstance(value, (Lazy, int, float, type(None)))]
    if left_out:
        warnings.append(f"left out what is no tensor: {listed(map(shown, left_out))}")
    return read_arrays(tensors, size)


# Tensors


@dataclass(frozen=True)
class _Storage:
    """Numbers in the file: all `count` elements under `key`, or `view`: (start, length) among them."""

    content: Callable[[str], memoryview]
    kind: str
    key: str
    count: int
    view: tuple[int, int] | None = None

    def data(self) -> memoryview:
        item = _ITEM_SIZES[self.kind]
        data = self.content(self.key)
        if len(data) != self.count * item:
            raise WeightsError(f"has {len(data)} bytes in the file and claims {self.count * item}, {DAMAGED}")
        start, length = self.view or (0, self.count)
        if start + length > self.count:
            raise WeightsError(f"views elements that its storage does not have, {DAMAGED}")
        return data[start * item : (start + length) * item]


@dataclass(frozen=True)
class _Tensor(Lazy):
    """A torch.Tensor: `size` elements of a storage, `stride` apart, from `offset` on."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: Name | None = None
    flags: object = None

    def __post_init__(self) -> None:
        if not isinstance(self.storage, _Storage) or not isinstance(self.dtype, (Name, type(None))):
            raise TypeError("a tensor without a storage or dtype")
        if isinstance(self.size, list) or isinstance(self.stride, list):
            raise TypeError("a shape or strides that can grow after the tensor was made")

    def build(self, state: object) -> None:
        """Takes what Parameters had before PyTorch 0.4: (requires_grad, volatile, hooks).

        Raises:
            WeightsError: the state is another one, with which PyTorch gives the tensor other data.
        """
        if not isinstance(state, tuple) or len(state) != 3:
            raise WeightsError(_MOVED)
        _check_use(state[0], state[2])

    def form(self) -> tuple[tuple[int, ...] | None, bool]:
        kind = self.dtype.text.rpartition(".")[2] if self.dtype else self.storage.kind
        return whole_numbers(self.size), "f" in _DTYPES.get(kind, "")

    def numpy(self, room: float = math.inf) -> np.ndarray:
        kind = self.dtype.text.rpartition(".")[2] if self.dtype else self.storage.kind
        if kind not in _DTYPES or self.storage.kind not in _DTYPES:
            raise WeightsError(f"holds {shown(kind)} values: {_SAVE} after model.float()")
        if self.flags:
            raise WeightsError(f"is stored negated or conjugated: {_SAVE} after resolve_neg() and resolve_conj()")
        count = element_count(self.size)
        place = [self.offset, *self.stride] if isinstance(self.stride, tuple) else []
        if len(place) != len(self.size) + 1 or not all(type(n) is int and n >= 0 for n in place):
            raise WeightsError(f"has no valid offset and strides, {DAMAGED}")
        data, stored = self.storage.data(), stored_dtype(_DTYPES[kind])
        available = len(data) // stored.itemsize
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride))
        if count and last >= available:
            raise WeightsError(f"reaches outside its storage of {available} elements, {DAMAGED}")
        if count == 0:
            return interpret(np.empty(self.size, stored), _DTYPES[kind])
        numbers = np.frombuffer(data, stored, last + 1 - self.offset, self.offset * stored.itemsize)
        strides = [step * stored.itemsize if n > 1 else 0 for n, step in zip(self.size, self.stride)]
        view = np.lib.stride_tricks.as_strided(numbers, self.size, strides)
        if count > len(numbers):  # expanded, so that writing into one element would write into others
            if count * stored.itemsize > room:
                raise WeightsError(REPEATED)
            view = np.array(view, order="C")
        return interpret(view, _DTYPES[kind])


def _rebuild(args: Sequence[Any], dtype: Any, flags: object = None) -> _Tensor:
    """The arguments begin with storage, offset, size, stride, requires_grad and hooks."""
    _check_use(args[4], args[5])
    return _Tensor(args[0], args[1], args[2], args[3], dtype, flags)


def _check_use(requires_grad: object, hooks: object) -> None:
    """Neither says anything of the numbers, but what PyTorch would not read is damaged."""
    if not isinstance(requires_grad, bool) or not isinstance(hooks, (dict, type(None))):
        raise TypeError("a tensor that PyTorch did not write")


def _check_attributes(state: object) -> None:
    """Refuse attributes by whose setting PyTorch gives a tensor other numbers; with any other it stays itself."""
    # A pair has those of __slots__ as well.
    for attributes in state if isinstance(state, tuple) and len(state) == 2 else (state,):
        if isinstance(attributes, dict) and any(name in attributes for name in _MOVING):
            raise WeightsError(_MOVED)


_REBUILD: dict[str, Callable[..., _Tensor]] = {
    "torch._utils._rebuild_tensor": _Tensor,
    "torch._utils._rebuild_tensor_v2": lambda *args: _rebuild(args, None, *args[6:7]),  # flags since PyTorch 2
    # For dtypes without a storage class of their own.
    "torch._utils._rebuild_tensor_v3": lambda *args: _rebuild(args, args[6], *args[7:8]),
}


def _rebuild_from_type(function: Name, kind: object, args: tuple, state: object) -> _Tensor | Inert:
    _check_attributes(state)
    rebuild = _REBUILD.get(function.text)
    return rebuild(*args) if rebuild else Inert(function.text, args)


def _parameter(data: object, requires_grad: object = True, hooks: object = None, state: object = None) -> object:
    if not isinstance(data, (_Tensor, Inert)):  # of nothing, PyTorch makes an empty Parameter
        raise TypeError("a Parameter that PyTorch did not write")
    _check_attributes(state)
    return data


_TORCH: dict[str, Callable[..., Any]] = {
    **_REBUILD,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,  # this and the next until PyTorch 0.3
    "torch.autograd.variable.Variable": _parameter,
    "torch.Size": lambda data=(), *_: data,
}


def _storages(content: Callable[[str], memoryview], seen: dict[str, _Storage]) -> Callable[[Any], Any]:
    """Reads PyTorch's persistent ids; `seen` collects the first storage of each key.

    PyTorch keeps what it made for a key, of a storage or of a view, and does not look at later ids of the same key.
    """
    meanings: dict[str, tuple] = {}

    def check(key: object, meaning: tuple) -> None:
        if not isinstance(key, str) or not key.isascii():  # which Python 2 would have written otherwise
            raise TypeError("a storage without a key")
        if meanings.setdefault(key, meaning) != meaning:
            raise WeightsError(f"uses its storage {shown(key)} as two different ones, {DAMAGED}")

    def persistent(saved_id: Any) -> Any:
        if not isinstance(saved_id, tuple):
            raise TypeError("a persistent id that is no tuple")
        if saved_id[0] == "module":  # a class and its source code
            return saved_id[1]
        word, kind, key, _, count = saved_id[:5]
        view_id = saved_id[5] if len(saved_id) > 5 else None
        view_key, *view = (None, 0, count) if view_id is None else view_id
        numbers = [count, *view]
        if word != "storage" or len(view) != 2:
            raise TypeError("a persistent id that is no storage")
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise TypeError("a storage without a size")
        name = kind.text.rpartition(".")[2]
        dtype = _DTYPES.get(name, name) if count else None  # tensors of nothing share their storage across dtypes
        check(key, (dtype, count))
        if view_id is not None:
            check(view_key, (dtype, key, *view))
        storage = _Storage(content, name, key, count, (view[0], view[1]))
        seen.setdefault(key, storage)
        return storage

    return persistent


# The zip archive: NAME/data.pkl, and every storage as NAME/data/KEY


def _read_zip(data: memoryview, warnings: list[str]) -> Any:
    records = _zip_records(data)
    roots = [name[: -len("data.pkl")] for name in records if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        if any(name.endswith(("archive_format", "archive_version")) for name in records):
            raise WeightsError(
                "is a program of torch.export (.pt2): load it with torch.export.load and save what it holds with "
                "torch.save(program.state_dict, path)"
            )
        raise WeightsError("is a zip archive without a PyTorch state (NAME/data.pkl): give the checkpoint itself")
    root = roots[0]
    # PyTorch can write no checksums; then all of them are 0.
    has_checksums = any(checksum for _, checksum in records.values())
    if not has_checksums:
        warnings.append("the file has no checksums, so damage to it cannot be noticed")
    verified = set()

    def record(name: str) -> memoryview:
        if name not in records:
            raise WeightsError(f"needs the record {shown(name)}, which is missing, {DAMAGED}")
        content, checksum = records[name]
        if has_checksums and name not in verified and zlib.crc32(content) != checksum:
            raise WeightsError(f"needs the record {shown(name)}, whose checksum does not agree, {DAMAGED}")
        verified.add(name)
        return content

    if f"{root}byteorder" in records and record(f"{root}byteorder") != b"little":
        raise WeightsError(_BIG_ENDIAN)
    program = record(f"{root}data.pkl")
    saved, end = unpickle(program, _TORCH, _storages(lambda key: record(f"{root}data/{key.lower()}"), {}))
    if end != len(program):
        raise WeightsError(f"goes on for {len(program) - end} bytes after the end of data.pkl, {DAMAGED}")
    return saved


def _zip_records(data: memoryview) -> dict[str, tuple[memoryview, int]]:
    """The content and checksum of every entry, by the name under which PyTorch looks for it."""
    if data[-22:-18] != b"PK\x05\x06":  # of the directory's end, which may have a comment after it
        raise WeightsError(f"is a zip archive that is cut short or goes on after its end: {AGAIN}")
    try:
        memory = cast("IO[bytes]", data.obj)  # what `data` views can be read like a file
        with zipfile.ZipFile(memory) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            directory = archive.start_dir
    except BAD_ZIP as e:
        raise WeightsError(f"is a zip archive that is cut short or damaged: {AGAIN}") from e
    if any(_TORCHSCRIPT.match(entry.orig_filename) for entry in entries):
        raise WeightsError(f"is a TorchScript program: load it with torch.jit.load and {_SAVE}")
    records: dict[str, tuple[memoryview, int]] = {}
    reached = 0
    for entry in entries:
        name = entry.orig_filename
        stored = name.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437")
        record = stored.lower().decode("utf-8", "surrogateescape")  # PyTorch compares bytes, whatever their case
        unsafe = name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name
        if unsafe or record in records:
            raise WeightsError(f"holds an entry {shown(name)} that is unsafe or there twice: do not use this file")
        if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise WeightsError(f"holds {shown(name)} compressed or encrypted, as PyTorch never writes it: {_SAVE}")
        if entry.external_attr & _FOLDER or (name.endswith("/") and entry.file_size):
            raise WeightsError(f"marks {shown(name)} as a folder, for which PyTorch reads arbitrary numbers, {DAMAGED}")
        begin = _content_offset(data, entry, stored)
        if entry.header_offset < reached or begin + entry.file_size > directory:
            raise WeightsError(f"holds {shown(name)} overlapping with something else, {DAMAGED}")
        _check_gap(entry.header_offset - reached)
        reached = begin + entry.file_size
        records[record] = data[begin:reached], entry.CRC
    _check_gap(directory - reached)
    _check_end(data, directory, len(entries))
    return records


def _check_gap(size: int) -> None:
    """Between two entries stands nothing, or the sizes of the first once more; the rest of a file is accounted for."""
    if size > _MAX_GAP:
        raise WeightsError(
            f"is a zip archive with {size} bytes that belong to none of its entries: do not use this file"
        )


def _check_end(data: memoryview, directory: int, count: int) -> None:
    """Refuse an archive with a second directory.

    Python takes the directory that stands right before the end of the archive; PyTorch takes the one to which
    the end points, or the record for large archives, which in turn stands where its locator says.
    """
    *_, entries, size, begin, _ = struct.unpack("<4s4H2LH", data[-22:])
    stated, end = [(entries, begin)], len(data) - 22
    if data[-42:-38] == b"PK\x06\x07":
        end -= 76  # of the record and its locator
        *_, entries, size, begin = struct.unpack("<4sQ2H2L4Q", bytes(data[-98:-42]).ljust(56))
        stated = [(entries, begin), struct.unpack("<QL", data[-34:-22])]
    if stated not in ([(count, directory)], [(count, directory), (end, 1)]) or directory + size != end:
        raise WeightsError("is a zip archive whose end points to another directory of entries: do not use this file")


def _content_offset(data: memoryview, entry: zipfile.ZipInfo, name: bytes) -> int:
    """Where an entry's content begins: after its local header, which must describe the same entry."""
    begin = entry.header_offset + 30
    header = bytes(data[entry.header_offset : begin])
    if header[:4] != ZIP_MAGIC or len(header) != 30:
        raise WeightsError(f"has no entry where {shown(entry.orig_filename)} should be, {DAMAGED}")
    flags, method, name_length, extra_length = struct.unpack("<6x2H16x2H", header)
    if data[begin : begin + name_length] != name:
        raise WeightsError(f"gives {shown(entry.orig_filename)} two names, {DAMAGED}")
    if flags & 1 or method != zipfile.ZIP_STORED:
        raise WeightsError(
            f"says of {shown(entry.orig_filename)} both that it is compressed and that it is not, {DAMAGED}"
        )
    return begin + name_length + extra_length


# Before PyTorch 1.6: five pickles (magic number, version, machine, state, keys of storages), then the storages


def _read_legacy(data: memoryview) -> Any:
    magic, at = unpickle(data)
    if magic != PYTORCH_MAGIC:
        raise WeightsError(
            "is a pickle but no PyTorch checkpoint: a Paddle file goes through python -m convert.paddle2torch, and "
            "anything else has to be saved with torch.save"
        )
    version, at = unpickle(data, start=at)
    if version != _FORMAT_VERSION:
        raise WeightsError(f"has the unknown format version {shown(version)}: load it with PyTorch and {_SAVE}")
    machine, at = unpickle(data, start=at)
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise WeightsError(_BIG_ENDIAN)
    contents: dict[str, memoryview] = {}
    seen: dict[str, _Storage] = {}

    def content(key: str) -> memoryview:
        if key not in contents:
            raise WeightsError(f"needs the storage {shown(key)}, which is missing, {DAMAGED}")
        return contents[key]

    saved, at = unpickle(data, _TORCH, _storages(content, seen), at)
    keys, at = unpickle(data, start=at)
    for key in keys if isinstance(keys, list) else [None]:
        if not isinstance(key, str) or key not in seen or key in contents:
            raise WeightsError(f"does not list its storages properly, {DAMAGED}")
        kind = seen[key].kind
        if kind not in _ITEM_SIZES:
            raise WeightsError(f"holds {shown(kind)} values: {_SAVE} after model.float()")
        begin = at + 8
        at = begin + int.from_bytes(data[at:begin], "little") * _ITEM_SIZES[kind]
        if at > len(data):
            raise WeightsError(f"is cut short: a storage ends at byte {at} of {len(data)}, so {AGAIN}")
        contents[key] = data[begin:at]
    if at != len(data):
        raise WeightsError(f"goes on for {len(data) - at} bytes after its last storage, {DAMAGED}")
    return saved


# Which tensors, and what they are called


def _finish(saved: dict[str, np.ndarray], container: str, warnings: list[str], layers: Layers) -> Checkpoint:
    """Computes weights of their parts, takes off the prefixes of wrappers and makes every float a float32."""
    arrays, parts = whole_weights(saved, warnings)
    names = [name for name in arrays if not _AVERAGED_COUNT.fullmatch(name)]
    if not names:
        raise WeightsError(f"holds no tensors: {_SAVE}")
    start = _wrapped(names)
    doubles = [shown(name[start:]) for name in names if arrays[name].dtype == np.float64]
    if doubles:
        warnings.append(f"rounded to float32 what was float64: {listed(doubles)}")
    state = renamed({name: _single(arrays[name]) for name in names}, lambda name: name[start:])
    prefix = names[0][:start]
    inside = {name[start:]: stated for name, stated in layers.items() if f"{name}.".startswith(prefix)}
    around = {name: stated for name, stated in layers.items() if not f"{name}.".startswith(prefix)}
    of = {name[start:]: {part[start:]: _single(value) for part, value in some.items()} for name, some in parts.items()}
    return Checkpoint(state, container, warnings, inside, around, parts=of)


def _single(value: np.ndarray) -> np.ndarray:
    """A float as float32, anything else as it is."""
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float32) if value.dtype.kind == "f" else value


def _wrapped(names: Sequence[str]) -> int:
    """How many characters of all the names are the prefixes of wrappers."""
    start = 0
    while prefix := next((p for p in _WRAPPERS if names and all(name.startswith(p, start) for name in names)), ""):
        start += len(prefix)
    return start
