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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Callable, cast

import numpy as np

from paddle_dense.errors import AGAIN, DAMAGED, WeightsError, listed, naming, shown
from paddle_dense.files.names import AVERAGED, COUNTER, renamed
from paddle_dense.files.unpickle import Inert, Lazy, Name, describe, element_count, interpret, stored_dtype, unpickle
from paddle_dense.files.weights import (
    PYTORCH_MAGIC,
    REPEATED,
    ZIP_MAGIC,
    is_safetensors,
    parse_safetensors,
    read_arrays,
    read_file,
    tensors_in,
)

_PLAIN_KEYS = ("state_dict", "model", "model_state_dict", "net", "params")
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_AVERAGED_COUNT = re.compile(r"(module\.|_orig_mod\.|model\.)*n_averaged")
Layers = dict[str, dict[str, Any]]

_TORCHSCRIPT = re.compile(r"[^/]+/(constants\.pkl$|code/)")
_MAX_NAMES = 4_000_000  # characters of all names in a module
_MAX_PREFIX = 1000
_MAX_MODULES = 8  # whose names are compared
_MAX_DEPTH = 4  # of dicts and lists in which further weights are looked for
_MAX_TEXT, _MAX_LIST = 200, 8  # of what a layer states
_MAX_GAP = 24  # bytes between the entries of a zip archive
_UTF8 = 0x800  # the flag of a zip entry by which its name is UTF-8
_FOLDER = 0x10  # the attribute of DOS by which PyTorch knows a folder, and copies nothing
_SAVE = "save it again with torch.save(model.state_dict(), path)"
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
    """

    state: dict[str, np.ndarray]
    container: str
    warnings: list[str] = field(default_factory=list)
    layers: Layers = field(default_factory=dict)
    around: Layers = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike, ema: bool = True, content: memoryview | None = None) -> Checkpoint:
    """Reads a PyTorch checkpoint: .pth, .pt, .pth.tar or .safetensors, whichever its content says it is.

    Nothing in the file is executed. Half precision, bfloat16 and float64 become float32; integers and bool are kept.
    Arrays may view the file and each other; changing one does not change the file.

    Args:
        path: a state_dict, a dict that holds one, or a whole pickled module.
        ema: take the EMA weights where the file has them.
        content: what `read_file` gave for it, if it has been read already.

    Raises:
        WeightsError: the file is damaged, of another kind, or its tensors could only be had by running it.
        HostileFileError: it names code that only an attack needs.
    """
    with naming(path):
        data = read_file(path) if content is None else content
        warnings: list[str] = []
        if data[:4] == ZIP_MAGIC:
            saved = _read_zip(data, warnings)
        elif is_safetensors(data):
            return _finish(parse_safetensors(data), "bare", warnings, {})
        elif data[:1] == b"\x80":
            saved = _read_legacy(data)
        elif data[257:262] == b"ustar":
            raise WeightsError(f"is a tar archive, as PyTorch wrote before 0.1.12: load it with PyTorch and {_SAVE}")
        else:
            raise WeightsError(f"begins with {bytes(data[:16])!r}, so it is no PyTorch checkpoint: {AGAIN}")
        chosen, container = _choose(saved, ema)
        entries, layers = _entries(chosen)
        if isinstance(saved, dict) and container in saved:
            warnings += _passed_over(saved, container, entries, ema)
        tensors = tensors_in(entries)
        left_out = [name for name, value in entries.items() if not isinstance(value, (Lazy, int, float, type(None)))]
        if left_out:
            warnings.append(f"left out what is no tensor: {listed(map(shown, left_out))}")
        return _finish(read_arrays(tensors, len(data)), container, warnings, layers)


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


def _rebuild_v2(*args: Any) -> _Tensor:
    """Arguments: storage, offset, size, stride, requires_grad, hooks and, since PyTorch 2, flags."""
    _check_use(args[4], args[5])
    return _Tensor(args[0], args[1], args[2], args[3], flags=args[6] if len(args) > 6 else None)


def _rebuild_v3(*args: Any) -> _Tensor:
    """As v2, with the dtype before the flags: for dtypes without a storage class of their own."""
    _check_use(args[4], args[5])
    return _Tensor(args[0], args[1], args[2], args[3], args[6], args[7] if len(args) > 7 else None)


def _check_use(requires_grad: object, hooks: object) -> None:
    """Neither says anything of the numbers, but what PyTorch would not read is damaged."""
    if not isinstance(requires_grad, bool) or not isinstance(hooks, (dict, type(None))):
        raise TypeError("a tensor that PyTorch did not write")


def _check_attributes(state: object) -> None:
    """Refuse attributes by whose setting PyTorch gives a tensor other numbers; of all others the tensor stays itself.

    Args:
        state: attributes by name, or a pair of such dicts, the second for those of __slots__.
    """
    for attributes in state if isinstance(state, tuple) and len(state) == 2 else (state,):
        if isinstance(attributes, dict) and any(name in attributes for name in _MOVING):
            raise WeightsError(_MOVED)


_REBUILD: dict[str, Callable[..., _Tensor]] = {
    "torch._utils._rebuild_tensor": _Tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
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


def _first(data: object = (), *_: object) -> object:
    return data


_TORCH: dict[str, Callable[..., Any]] = {
    **_REBUILD,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,  # this and the next until PyTorch 0.3
    "torch.autograd.variable.Variable": _parameter,
    "torch.Size": _first,
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
        raise WeightsError("is a zip archive without a PyTorch state (NAME/data.pkl): give the checkpoint itself")
    root = roots[0]
    # PyTorch can be told to write no checksums; then all of them are 0.
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
    """The content and checksum of every entry, by the name under which PyTorch looks for it.

    Raises:
        WeightsError: it is damaged, or an archive that PyTorch would not write.
    """
    if data[-22:-18] != b"PK\x05\x06":  # of the directory's end, which may have a comment behind it
        raise WeightsError(f"is a zip archive that is cut short or goes on after its end: {AGAIN}")
    try:
        memory = cast("IO[bytes]", data.obj)  # what `data` views can be read like a file
        with zipfile.ZipFile(memory) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            directory = archive.start_dir
    except (
        zipfile.BadZipFile,
        struct.error,
        ArithmeticError,
        LookupError,
        NotImplementedError,
        OSError,
        ValueError,
    ) as e:
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
    told, end = [(entries, begin)], len(data) - 22
    if data[-42:-38] == b"PK\x06\x07":
        end -= 76  # of the record and its locator
        *_, entries, size, begin = struct.unpack("<4sQ2H2L4Q", bytes(data[-98:-42]).ljust(56))
        told = [(entries, begin), struct.unpack("<QL", data[-34:-22])]
    if told not in ([(count, directory)], [(count, directory), (end, 1)]) or directory + size != end:
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


def _choose(saved: Any, ema: bool) -> tuple[Any, str]:
    """The dict or module that holds the network's tensors, and where it was."""
    if _is_module(saved):
        return saved, "module"
    if not isinstance(saved, dict):
        raise WeightsError(f"holds {describe(saved)} instead of a state_dict: {_SAVE}")
    averaged = list({id(value): key for key, value in saved.items() if _is_averaged(key)}.values())
    averaged = [key for key in averaged if _has_tensors(saved[key])][:_MAX_MODULES]
    plain = _plain({key: value for key, value in saved.items() if key not in averaged})
    for key in averaged if ema or plain is None else ():
        if plain is None or _is_complete(saved[key], key, plain[0]):
            return saved[key], key
    if plain is not None:
        return plain
    found = listed(f"{shown(key)}, {describe(value)}" for key, value in saved.items())
    several = sum(map(_has_tensors, saved.values())) > 0
    raise WeightsError(f"holds {'several dicts' if several else 'no dict'} of tensors, among {found}: {_SAVE}")


def _is_complete(averaged: Any, key: str, plain: Any) -> bool:
    """Whether EMA weights have all names of the plain ones; those of another network have not.

    Neither have those that lack all tensors of a kind, such as the statistics of batch normalisations.

    Raises:
        WeightsError: they lack single tensors, which nobody leaves out, so one of the two is damaged.
    """
    names, found = (_network_names(_entries(weights)[0]) for weights in (plain, averaged))
    lacking, kinds = names - found, {name.rpartition(".")[2] for name in found}
    single = [shown(name) for name in sorted(lacking) if name.rpartition(".")[2] in kinds]
    if single and 2 * len(lacking) < len(names):
        raise WeightsError(
            f"has EMA weights under {shown(key)} without {listed(single)}, which the plain ones have: take the "
            f"plain ones with --no-ema (in Python: ema=False), or save the right ones alone with torch.save"
        )
    return not lacking


def _plain(saved: Mapping[Any, Any]) -> tuple[Any, str] | None:
    """The dict with the network's tensors as they were trained, and where it was; None where nothing says which."""
    for key in _PLAIN_KEYS:
        if _has_tensors(saved.get(key)):
            return saved[key], key
    # One object under several names is one object.
    named = {id(value): (key, value) for key, value in saved.items() if isinstance(key, str)}.values()
    nested = [(key, value) for key, value in named if _has_tensors(value)]
    own = _count(saved)
    # A tensor or two beside the weights are a random state or the like.
    if own and all(isinstance(value, dict) and _count(value) <= own for _, value in nested):
        return saved, "bare"
    return (nested[0][1], nested[0][0]) if len(nested) == 1 else None


def _passed_over(saved: Mapping[Any, Any], taken: str, entries: Mapping[Any, Any], ema: bool) -> list[str]:
    """What else the file has of the same network, in one sentence; nothing where the user chose between the two.

    Args:
        saved: all that the file holds.
        taken: the key of the tensors that were taken.
        entries: these tensors.
        ema: whether EMA weights are wanted.
    """
    keys = [key for key in saved if ema or not _is_averaged(key)]
    left_out = _others(saved, taken, _network_names(entries), sorted(keys, key=_is_averaged, reverse=True))
    if not left_out:
        return []
    plain = " (--no-ema takes the plain ones)" if _is_averaged(taken) else ""
    return [
        f"took the weights under {shown(taken)}, and left out those under {listed(left_out)}{plain}: to convert "
        f"others, save them alone with torch.save"
    ]


def _others(saved: Mapping[Any, Any], taken: str, names: set[str], keys: Iterable[Any]) -> list[str]:
    """The keys under which, however deep, are tensors with most of these names, or EMA weights by any name.

    Nothing is looked at twice, and few modules at all, or a file could make the search long.
    """
    found, modules, seen = [], 0, {id(saved[taken])}
    for key in keys:
        waiting = [(saved[key], 0)]
        while waiting:
            value, depth = waiting.pop()
            if id(value) in seen or depth > _MAX_DEPTH:
                continue
            seen.add(id(value))
            modules += _is_module(value)
            looked = modules <= _MAX_MODULES and _has_tensors(value)
            same = looked and 2 * len(names & _network_names(_tensor_entries(value))) > len(names)
            if same or (_is_averaged(key) and isinstance(value, Lazy)):
                found.append(shown(key))
                break
            inside = value.state if isinstance(value, Inert) else value
            parts = inside.values() if isinstance(inside, dict) else inside if isinstance(inside, (list, tuple)) else ()
            waiting += [(part, depth + 1) for part in parts]
    return found


def _tensor_entries(value: Any) -> Mapping[Any, Any]:
    """As `_entries`; nothing of a module that is none, which nobody asked for."""
    try:
        return _entries(value)[0]
    except WeightsError:
        return {}


def _network_names(entries: Mapping[Any, Any]) -> set[str]:
    """Names of the tensors that make a network, without the prefixes of wrappers."""
    names = [name for name, value in entries.items() if isinstance(value, Lazy) and isinstance(name, str)]
    names = [name for name in names if name.rpartition(".")[2] not in (COUNTER, "n_averaged")]
    start = _wrapped(names)
    return {name[start:] for name in names}


def _is_averaged(key: object) -> bool:
    return isinstance(key, str) and bool(AVERAGED.search(key))


def _count(entries: Mapping[Any, Any]) -> int:
    return sum(isinstance(value, Lazy) for value in entries.values())


def _has_tensors(value: object) -> bool:
    return _is_module(value) or (isinstance(value, dict) and _count(value) > 0)


def _is_module(value: object) -> bool:
    return isinstance(value, Inert) and isinstance(value.state, dict) and "_parameters" in value.state


def _entries(root: Any) -> tuple[Mapping[Any, Any], Layers]:
    """A state_dict as it is; that of a pickled torch.nn.Module put together from its parts, and what these state."""
    if isinstance(root, dict):
        return root, {}
    entries: dict[str, Any] = {}
    layers_of_all: Layers = {}
    seen: dict[int, dict[str, Any]] = {}
    waiting = [("", root)]
    visited = 0
    while waiting:
        prefix, module = waiting.pop()
        if not _is_module(module):
            raise WeightsError(f"holds {describe(module)} as layer {shown(prefix)}: {_SAVE}")
        parts = [module.state.get(part, {}) for part in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, dict) and all(isinstance(name, str) for name in part) for part in parts):
            raise WeightsError(f"holds a layer {shown(prefix)} that is no ordinary module: {_SAVE}")
        visited += 1 + sum(1 + len(prefix) + len(name) for part in parts for name in part)
        if visited > _MAX_NAMES or len(prefix) > _MAX_PREFIX:
            raise WeightsError(f"holds modules inside modules without end, {DAMAGED}")
        if id(module.state) not in seen:
            seen[id(module.state)] = _facts(module.name, module.state)
        layers_of_all[prefix[:-1]] = seen[id(module.state)]
        parameters, buffers, layers = parts
        temporary = module.state.get("_non_persistent_buffers_set")
        temporary = {name for name in temporary if isinstance(name, str)} if isinstance(temporary, list) else set()
        kept = {**parameters, **{name: value for name, value in buffers.items() if name not in temporary}}
        for name, value in kept.items():
            if prefix + name in entries or (name in parameters and name in buffers):
                raise WeightsError(f"holds two tensors under the name {shown(prefix + name)}, {DAMAGED}")
            if value is not None:
                entries[prefix + name] = value
        waiting += [(f"{prefix}{name}.", layer) for name, layer in reversed(layers.items()) if layer is not None]
    return entries, layers_of_all


def _facts(kind: str, state: Mapping[Any, Any]) -> dict[str, Any]:
    """What a pickled layer states of itself: plain values by attribute, and its class under "class".

    What is no plain value, or a long one, is described in words. "hooks" is there if calling the layer runs more than
    its class does.

    Args:
        kind: the class's dotted name.
        state: the layer's attributes, as they are in the file.
    """
    told = {
        name: _stated(value)
        for name, value in state.items()
        if isinstance(name, str) and name[:1] != "_" and len(name) <= _MAX_TEXT
    }
    if "forward" in state or any(state.get(hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks")):
        told["hooks"] = True
    told["class"] = kind
    return told


def _stated(value: object) -> object:
    if isinstance(value, (list, tuple)) and len(value) <= _MAX_LIST and all(map(_is_plain, value)):
        return list(value)
    return value if _is_plain(value) else describe(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float)


def _finish(arrays: dict[str, np.ndarray], container: str, warnings: list[str], layers: Layers) -> Checkpoint:
    """Takes off the prefixes of wrappers and makes every float a float32."""
    names = [name for name in arrays if not _AVERAGED_COUNT.fullmatch(name)]
    if not names:
        raise WeightsError(f"holds no tensors: {_SAVE}")
    start = _wrapped(names)
    doubles = [shown(name[start:]) for name in names if arrays[name].dtype == np.float64]
    if doubles:
        warnings.append(f"rounded to float32 what was float64: {listed(doubles)}")
    with np.errstate(over="ignore"):
        floats = {name: np.asarray(arrays[name], np.float32) for name in names if arrays[name].dtype.kind == "f"}
    state = renamed({name: floats.get(name, arrays[name]) for name in names}, lambda name: name[start:])
    prefix = names[0][:start]
    inside = {name[start:]: stated for name, stated in layers.items() if f"{name}.".startswith(prefix)}
    around = {name: stated for name, stated in layers.items() if not f"{name}.".startswith(prefix)}
    return Checkpoint(state, container, warnings, inside, around)


def _wrapped(names: Sequence[str]) -> int:
    """How many characters of all the names are the prefixes of wrappers."""
    start = 0
    while prefix := next((p for p in _WRAPPERS if names and all(name.startswith(p, start) for name in names)), ""):
        start += len(prefix)
    return start
