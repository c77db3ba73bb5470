"""One weight file in a .zip, .gz, .tar or .tar.gz: unpacked in memory, within bounds; nothing is written to disk."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, cast

from paddle_dense.errors import AGAIN, DAMAGED, WeightsError, listed, shown
from paddle_dense.files.weights import BAD_ZIP, ZIP_MAGIC, memory_for

_GZIP = b"\x1f\x8b\x08"
_MAX_RATIO = 100  # weights hardly shrink; what grows more than this is a bomb
_MAX_DEPTH = 2  # a .tar.gz is two
_MAX_ENTRIES = 1000
_PLAIN = (0, 0o4, 0o10)  # what Unix calls folders and files, in a zip's attributes; 0 from elsewhere
_BLOCK = 512  # bytes, of which tar archives consist
_CHUNK = 1 << 20
_WEIGHTS = re.compile(r"\.(pth|pt|ckpt|bin|safetensors|pdparams|tar|gz)$", re.IGNORECASE)
# Of what PyTorch writes, and not of an archive of a project with folders data/ and code/.
_OF_PYTORCH = re.compile(
    r"[^/]+/(data\.pkl$|constants\.pkl$|code/__torch__|byteorder$|archive_(format|version)$)", re.IGNORECASE
)
ONE_OF_SEVERAL = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.", re.ASCII)  # the name of a shard
_OLD_PYTORCH = {"sys_info", "pickle", "tensors", "storages"}  # the entries of its tar archives
_UNPACK = "unpack it and give the checkpoint itself"


def unpacked(data: memoryview) -> memoryview:
    """The weight file that an archive holds; a file that is no such archive as it is.

    Args:
        data: a file's content, which views memory that can be read like a file.

    Raises:
        WeightsError: the archive is damaged, holds several checkpoints or none, a link, or a name that leads out of
            it, is packed once more, or would take more than 100 times its size.
    """
    limit = _MAX_RATIO * len(data)
    for _ in range(_MAX_DEPTH):
        inner = _unpacked_once(data, limit)
        if inner is None:
            return data
        data = inner
    if _unpacked_once(data, limit) is not None:
        raise WeightsError(f"is an archive in archives: {_UNPACK}")
    return data


def _unpacked_once(data: memoryview, limit: int) -> memoryview | None:
    """What an archive holds, at most `limit` bytes; None for a file that is none."""
    if data[:3] == _GZIP:
        memory = _memory(int.from_bytes(data[-4:], "little"), limit)
        _inflate(data, memory, 31)
        return memory
    if data[:4] == ZIP_MAGIC:
        return _from_zip(data, limit)
    if data[257:262] == b"ustar":
        return _from_tar(data, limit)
    return None


def _memory(size: int, limit: int) -> memoryview:
    if size > limit:
        raise WeightsError(
            f"would unpack to {size:,} bytes, more than {_MAX_RATIO} times its size, which no weights do: do not use "
            f"this file"
        )
    if size == 0:
        raise WeightsError(f"holds an empty file: {AGAIN}")
    return memoryview(memory_for(size))


def _inflate(data: memoryview, memory: memoryview, bits: int) -> None:
    """Fill the memory with what the compressed data says, which has to be as much."""
    decoder, reached, at = zlib.decompressobj(bits), 0, 0
    try:
        waiting: bytes | memoryview = b""
        part = b" "
        while not decoder.eof and (waiting or at < len(data) or part):
            if not waiting:
                waiting, at = data[at : at + _CHUNK], at + _CHUNK
            part = decoder.decompress(waiting, _CHUNK)
            waiting = decoder.unconsumed_tail
            if reached + len(part) > len(memory):
                raise WeightsError(f"unpacks to more than it says, {DAMAGED}")
            memory[reached : reached + len(part)] = part
            reached += len(part)
    except zlib.error as error:
        raise WeightsError(f"is compressed data that is damaged: {AGAIN}") from error
    if not decoder.eof or reached != len(memory) or decoder.unused_data or at < len(data):
        raise WeightsError(f"is compressed data that is cut short or goes on after its end: {AGAIN}")


def _from_zip(data: memoryview, limit: int) -> memoryview | None:
    """The checkpoint in a zip archive; None for an archive that PyTorch wrote."""
    try:
        with zipfile.ZipFile(cast("IO[bytes]", data.obj)) as archive:
            entries = archive.infolist()
    except BAD_ZIP:
        return None  # the reader of PyTorch's archives says what is wrong
    if any(_OF_PYTORCH.match(entry.orig_filename) for entry in entries):
        return None
    links = [entry.orig_filename for entry in entries if entry.external_attr >> 28 not in _PLAIN]
    files = [entry.orig_filename for entry in entries if not entry.orig_filename.endswith("/")]
    entry = entries[[entry.orig_filename for entry in entries].index(_only_checkpoint(files, links))]
    head = bytes(data[entry.header_offset : entry.header_offset + 30])
    if head[:4] != ZIP_MAGIC or len(head) != 30 or entry.flag_bits & 1:
        raise WeightsError(f"holds {shown(entry.orig_filename)} encrypted or out of its place: {_UNPACK}")
    name_length, extra_length = struct.unpack("<26x2H", head)
    begin = entry.header_offset + 30 + name_length + extra_length
    content = data[begin : begin + entry.compress_size]
    memory = _memory(entry.file_size, limit)
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        _inflate(content, memory, -15)
    elif entry.compress_type == zipfile.ZIP_STORED and len(content) == len(memory):
        memory[:] = content
    else:
        raise WeightsError(f"holds {shown(entry.orig_filename)} compressed in an unusual way: {_UNPACK}")
    if zlib.crc32(memory) != entry.CRC:
        raise WeightsError(f"holds {shown(entry.orig_filename)}, whose checksum does not agree, {DAMAGED}")
    return memory


def _from_tar(data: memoryview, limit: int) -> memoryview | None:
    """The checkpoint in a tar archive; None for one that PyTorch wrote before 0.1.12."""
    places, links = _tar_entries(data)
    if {name.rpartition("/")[2] for name in places} >= _OLD_PYTORCH:
        return None
    begin, size = places[_only_checkpoint(list(places), links)]
    memory = _memory(size, limit)
    memory[:] = data[begin : begin + size]
    return memory


def _tar_entries(data: memoryview) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Where the files of a tar archive are, as (begin, size) by name; and the names of its links and the like."""
    places: dict[str, tuple[int, int]] = {}
    links: list[str] = []
    at = 0
    for _ in range(_MAX_ENTRIES):
        header = bytes(data[at : at + _BLOCK])
        if not any(header):
            return places, links
        try:
            size, checksum = (int(header[a:b].strip(b" \0") or b"0", 8) for a, b in ((124, 136), (148, 156)))
        except ValueError:
            size, checksum = -1, 0
        at += _BLOCK
        if sum(header) - sum(header[148:156]) + 8 * 32 != checksum or not 0 <= size <= len(data) - at:
            raise WeightsError(f"is a tar archive that is cut short or damaged: {AGAIN}")
        parts = [header[a:b].split(b"\0", 1)[0].decode("utf-8", "replace") for a, b in ((345, 500), (0, 100))]
        name, kind = "/".join(filter(None, parts)), header[156:157]
        if kind in b"0\0":
            if name in places:
                raise WeightsError(f"is a tar archive with {shown(name)} twice: {_UNPACK}")
            places[name] = (at, size)
        elif kind not in b"5xgL":  # folders, and long names of what follows
            links.append(name)
        at += -(-size // _BLOCK) * _BLOCK
    raise WeightsError(f"is a tar archive with more than {_MAX_ENTRIES} entries: {_UNPACK}")


def _only_checkpoint(files: Sequence[str], links: Sequence[str]) -> str:
    """The name of the one file in an archive that can be a checkpoint, if nothing else is odd about the archive."""
    found = listed(map(shown, [*files, *links]))
    unsafe = [name for name in files if name.startswith("/") or re.search(r"(^|[/\\])\.\.([/\\]|$)|\\|^\w:|\0", name)]
    if unsafe or links:
        raise WeightsError(f"holds links or names that lead out of an archive, among {found}: do not use this file")
    files = [name for name in files if not name.startswith("__MACOSX/")]
    if any(map(ONE_OF_SEVERAL.search, files)):
        raise WeightsError(f"is an archive with shards of a checkpoint, among {found}: unpack it and give their index")
    named = files if len(files) == 1 else [name for name in files if _WEIGHTS.search(name)]
    if len(named) != 1:
        what = "several checkpoints" if named else "a PyTorch state (NAME/data.pkl)"
        without = "with" if named else "without"
        raise WeightsError(f"is an archive {without} {what}, among {found}: give the checkpoint itself")
    return named[0]
