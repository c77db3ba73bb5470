"""Limits before work: what a file claims costs nothing, and what it holds costs time and memory in proportion to it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from paddle_dense import CondenseNet, CondenseNetV2, load_model, save_weights
from paddle_dense.commands.description import describe_weights
from paddle_dense.errors import WeightsError
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.files.unpickle import unpickle
from paddle_dense.files.weights import open_file, read_bounded, read_metadata, read_weights, write_weights
from paddle_dense.layers.budget import Budget, check_budget, within
from paddle_dense.models import DenseNet, matching
from paddle_dense.models.network import networks
from paddle_dense.models.recognise import Architecture
from tests.security.hostile import archive, call, deep, long_names, name, program, safetensors, text, value

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1 << 20
posix = pytest.mark.skipif(os.name != "posix", reason="pipes, devices and limits of POSIX")


def refused(
    reader: Callable[[Path], object], path: Path, content: bytes | None = None, factor: int = 100, spare: int = MEGABYTE
) -> str:
    """The one sentence that a reader refuses a file with, for no more memory than `factor` times the file's size."""
    if content is not None:
        path.write_bytes(content)
    reader_memory = spare + factor * path.stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as caught:
            reader(path)
        assert tracemalloc.get_traced_memory()[1] < reader_memory
    finally:
        tracemalloc.stop()
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said and len(said) < 1000
    return said


# Sizes that are claimed


def storage(count: int = 3) -> bytes:
    """A reference to the numbers under the key 0, as PyTorch pickles it."""
    return b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + value(count) + b"tQ"


def tensor(count: int = 3, offset: int = 0, shape: tuple = (3,), stride: tuple = (1,)) -> bytes:
    """A tensor as PyTorch pickles it."""
    return call(name("torch._utils", "_rebuild_tensor"), storage(count), value(offset), value(shape), value(stride))


def zipped(body: bytes, **records: bytes) -> bytes:
    """A checkpoint whose data.pkl is {"w": body}."""
    pickled = program(b"}" + text("w") + body + b"s")
    return archive({"net/data.pkl": pickled, **{f"net/data/{key[1:]}": content for key, content in records.items()}})


def old(body: bytes, storages: bytes) -> bytes:
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(parts) + program(b"}" + text("w") + body + b"s") + pickle.dumps(["0"], 2) + storages


HUGE = 10**12
CLAIMS = {
    "a byte string": ("x.pdparams", b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"x" * 900 + b"."),
    "a text": ("x.pdparams", b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"x" * 900 + b"."),
    "a frame": ("x.pdparams", b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b"x" * 900 + b"."),
    "an array": (
        "x.pdparams",
        pickle.dumps({"w": np.zeros(3, "f4")}, 2).replace(
            b"K\x03\x85", b"\x8a\x06" + struct.pack("<Q", HUGE)[:6] + b"\x85"
        ),
    ),
    "slices": (
        "x.pdparams",
        pickle.dumps(
            {"a": np.ones(3, "f4"), "UnpackBigParamInfor@@": {"w": {"OriginShape": (2**80,), "slices": ["a"]}}}, 2
        ),
    ),
    "a tensor of safetensors": (
        "x.safetensors",
        safetensors({"w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}, bytes(900)),
    ),
    "a header of safetensors": ("x.safetensors", struct.pack("<Q", HUGE) + b'{"w":{}}' + bytes(900)),
    "a shape in a zip archive": ("x.pth", zipped(tensor(shape=(HUGE,)), _0=bytes(12))),
    "a storage in a zip archive": ("x.pth", zipped(tensor(count=HUGE, shape=(HUGE,)), _0=bytes(12))),
    "strides": ("x.pth", zipped(tensor(shape=(3,), stride=(HUGE,)), _0=bytes(12))),
    "an offset": ("x.pth", zipped(tensor(offset=HUGE), _0=bytes(12))),
    "an expanded tensor": ("x.pth", zipped(tensor(shape=(HUGE,), stride=(0,)), _0=bytes(12))),
    "a negative stride": ("x.pth", zipped(tensor(offset=2, stride=(-1,)), _0=bytes(12))),
    "a negative offset": ("x.pth", zipped(tensor(offset=-2), _0=bytes(12))),
    "a storage of the old format": ("x.pth", old(tensor(count=HUGE), struct.pack("<Q", HUGE) + bytes(12))),
    "a shape in the old format": ("x.pth", old(tensor(shape=(HUGE,)), struct.pack("<Q", 3) + bytes(12))),
}


@pytest.mark.parametrize(("file", "content"), CLAIMS.values(), ids=CLAIMS)
def test_what_a_small_file_claims_costs_nothing(tmp_path, file, content):
    reader = read_checkpoint if file.endswith(".pth") else read_weights
    refused(reader, tmp_path / file, content)
    refused(load_model, tmp_path / file, content, spare=3 * MEGABYTE)


def test_files_larger_than_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "x.pdparams"
    monkeypatch.setattr("paddle_dense.files.weights.free_memory", lambda: 1000)
    for reader in (read_weights, read_checkpoint):
        assert "has 1,001 bytes, more than there is memory free" in refused(reader, path, bytes(1001))


@posix
def test_sparse_files_larger_than_the_memory(tmp_path):
    path = tmp_path / "x.pdparams"
    with open(path, "wb") as file:
        file.write(b"\x80\x02}.")
        file.truncate(1 << 42)
    for reader in (read_weights, describe_weights):  # the latter would hash zeros for hours
        assert "more than there is memory free" in refused(reader, path, factor=0)


# Files that are repeated work


def repeating(item: bytes, count: int, what: bytes) -> bytes:
    """`item`, then `count` times what is made from it (memo 200), all of it kept in a list."""
    return b"\x80\x02" + item + b"q\xc80]q\xc9(" + what * count + b"e."


PAIRS = b"}(" + b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(10_000)) + b"u"
REPEATED = {
    "copies of a dict": repeating(PAIRS, 2000, call(name("collections", "OrderedDict"), b"h\xc8")),
    "copies of a text": repeating(text("x" * 10**6), 2000, call(name("_codecs", "encode"), b"h\xc8")),
    "names of calls of calls": b"\x80\x02" + name("x", "y" * 400) + b")R" * 20_000 + b".",
    "lists": b"\x80\x02" + b"]" * 50_000 + b".",
    "memoised": b"\x80\x02N" + b"\x94" * 50_000 + b".",
    "equal keys": b"\x80\x02}(" + b")N" * 20_000 + b"u.",
    "equal keys that are tuples in tuples": b"\x80\x02)" + b"\x85" * 1000 + b"q\xc80}(" + b"h\xc8N" * 20_000 + b"u.",
}


@pytest.mark.parametrize("content", REPEATED.values(), ids=REPEATED)
def test_repetition_takes_memory_in_proportion_to_the_file(content):
    tracemalloc.start()
    try:
        unpickle(memoryview(content))
    except WeightsError as error:
        assert "takes more instructions to read than a weight file has" in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * len(content) + MEGABYTE


@pytest.mark.parametrize("part", [b"a", b"\\n"])
def test_long_strings_take_little_more_memory_than_themselves(part):
    """Looking through one for bad escapes with a single pattern took a hundred times its size."""
    content = b"S'" + part * (MEGABYTE // len(part)) + b"'\n."
    tracemalloc.start()
    unpickle(memoryview(content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(content)


def test_numbers_of_the_memo_cannot_be_chosen_to_collide():
    """Integers have the same hash modulo 2**61 - 1, and a dict with n of those takes n * n steps."""
    content = b"\x80\x02N" + b"".join(b"p%d\n" % (number * (2**61 - 1)) for number in range(1, 30_000)) + b"."
    start = time.process_time()
    with pytest.raises(WeightsError, match="makes no sense at byte 3"):
        unpickle(memoryview(content))
    assert time.process_time() - start < 1


def test_keys_cannot_be_chosen_to_collide():
    keys = [number * (2**61 - 1) for number in range(1, 5000)] + [float(number) * 2.0**61 for number in range(1, 5000)]
    content = b"\x80\x02}(" + b"".join(value(key) + b"N" for key in keys) + b"u."
    start = time.process_time()
    unpickle(memoryview(content))
    assert time.process_time() - start < 2


def module(parameters: bytes, layers: bytes) -> bytes:
    parts = {"_parameters": parameters, "_buffers": b"}", "_modules": layers}
    return name("my", "Net") + b")\x81}(" + b"".join(text(key) + part for key, part in parts.items()) + b"ub"


def test_names_in_modules_cannot_be_multiplied(tmp_path):
    layer = module(b"}" + text("p" * 100_000) + tensor(count=0, shape=(0,)) + b"s", b"}") + b"q\xc8"
    shared = b"}(" + text("a") + layer + b"".join(text(f"b{number}") + b"h\xc8" for number in range(2000)) + b"u"
    content = archive({"net/data.pkl": program(module(b"}", shared)), "net/data/0": b""})
    assert "modules inside modules without end" in refused(read_checkpoint, tmp_path / "x.pth", content)


def test_what_layers_state_cannot_be_multiplied(tmp_path):
    """One long dict of attributes, used as the state of layers of ever new classes."""
    attributes = b"".join(text(f"a{number}") + b"K\x01" for number in range(5000))
    parts = b"".join(text(key) + b"}" for key in ("_parameters", "_buffers", "_modules"))
    state = b"}(" + parts + attributes + b"uq\xc8"
    first = name("my", "Net") + b")\x81" + state + b"b"
    layers = b"".join(text(f"b{n}") + name("my", f"N{n}") + b")\x81h\xc8b" for n in range(1, 2000))
    root = module(b"}" + text("p") + tensor(count=0, shape=(0,)) + b"s", b"}(" + text("b0") + first + layers + b"u")
    content = archive({"net/data.pkl": program(root), "net/data/0": b""})
    assert "takes more instructions to read than a weight file has" in refused(
        read_checkpoint, tmp_path / "x.pth", content
    )


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_names_that_no_tensor_has(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_weights({"a" * 1000: np.ones(2)}, path)
    assert len(read_weights(path)) == 1
    write_weights({"a" * 1001: np.ones(2)}, path)
    assert "which no network has" in refused(read_weights, path)


DEPTH = 20_000
REBUILD = name("torch._utils", "_rebuild_tensor_v2")  # its last argument holds flags
DEEP = {
    "lists": b"]" * DEPTH + b"a" * (DEPTH - 1),
    "tuples": b")" + b"\x85" * DEPTH,
    "dicts": b"N" + b"q\xc80}K\x01h\xc8s" * DEPTH,
    "calls": b")" + b"q\xc80cx\ny\nh\xc8\x85R" * (DEPTH // 5),
    "states": b"N" + b"q\xc80cx\ny\n)Rh\xc8b" * (DEPTH // 5),
    "tensors": b"N"
    + (b"q\xc80" + call(REBUILD, storage(), *map(value, (0, (3,), (1,), False, None)), b"h\xc8")) * 5000,
    "itself": b"]q\xc8h\xc8a",
}


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("place", ["instead", "next to it", "as a tensor", "as a key", "as a shape"])
def test_deep_nesting_in_files(tmp_path, place, body):
    """What is nested without end is neither compared, shown nor copied; it may be there where nobody looks."""
    good = value({"w": np.ones(2, "f4")})
    saved = {
        "instead": body,
        "next to it": b"}" + text("state_dict") + good + b"s" + text("x") + body + b"s",
        "as a tensor": good + text("x") + body + b"s",
        "as a key": good + body + b"Ns",
        "as a shape": b"}" + text("x") + call(REBUILD, storage(), value(0), body, body, b"NN") + b"s",
    }[place]
    for reader, file, content in (
        (read_weights, "x.pdparams", program(saved, 4)),
        (read_checkpoint, "x.pth", archive({"net/data.pkl": program(saved, 4), "net/data/0": bytes(12)})),
    ):
        (tmp_path / file).write_bytes(content)
        try:
            reader(tmp_path / file)
        except WeightsError as error:
            assert len(str(error)) < 1000 and "\n" not in str(error)


# safetensors


@pytest.mark.parametrize(
    "metadata",
    [b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", b'{"a":1}', b"[]", b'{"a":{}}', b'{"a":null}', b'"text"'],
    ids=["deep", "a number", "a list", "an object", "null", "a text"],
)
def test_metadata_that_is_no_text(tmp_path, metadata):
    header = b'{"__metadata__":' + metadata + b"}"
    for reader in (read_metadata, read_weights):
        said = refused(reader, tmp_path / "x.safetensors", struct.pack("<Q", len(header)) + header)
        assert "no valid safetensors header" in said


# Zip archives

GOOD = zipped(tensor(), _0=bytes(12))


def repacked(change: Callable[[zipfile.ZipInfo], None], **options: int) -> bytes:
    """The good archive with something changed in the entry of its storage."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(GOOD)) as source, zipfile.ZipFile(file, "w", **options) as target:
        for entry in source.infolist():
            new = zipfile.ZipInfo(entry.filename)
            new.compress_type = options.get("compression", zipfile.ZIP_STORED)
            if entry.filename.endswith("data/0"):
                change(new)
            target.writestr(new, source.read(entry))
    return file.getvalue()


def edited(record: bytes, at: int, new: bytes, last: bool = True) -> bytes:
    """The good archive with some bytes of its last or first record of a kind replaced."""
    start = (GOOD.rindex if last else GOOD.index)(record) + at
    return GOOD[:start] + new + GOOD[start + len(new) :]


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
ZIPS = {
    "two archives": (GOOD + GOOD, "bytes that belong to none of its entries"),
    "a comment": (GOOD[:-2] + struct.pack("<H", 100) + b"x" * 100, "goes on after its end"),
    "an archive as a comment": (GOOD[:-2] + struct.pack("<H", len(GOOD)) + GOOD, "belong to none of its entries"),
    "bytes after it": (GOOD + b"x" * 100, "goes on after its end"),
    "bytes between": (GOOD.replace(CENTRAL, b"x" * 100 + CENTRAL, 1), "no entry where"),
    "compressed": (repacked(lambda entry: None, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    "compressed with bzip2": (repacked(lambda entry: None, compression=zipfile.ZIP_BZIP2), "compressed or encrypted"),
    "a path": (repacked(lambda entry: setattr(entry, "filename", "net/../../x")), "unsafe or there twice"),
    "an absolute path": (repacked(lambda entry: setattr(entry, "filename", "/x")), "unsafe or there twice"),
    "a path of Windows": (repacked(lambda entry: setattr(entry, "filename", "net\\..\\x")), "unsafe or there twice"),
    "twice": (repacked(lambda entry: setattr(entry, "filename", "net/data.pkl")), "unsafe or there twice"),
    "encrypted": (edited(CENTRAL, 8, b"\x01"), "compressed or encrypted"),
    "encrypted in the local header": (edited(LOCAL, 6, b"\x01"), "both that it is compressed and that it is not"),
    "compressed in the local header": (edited(LOCAL, 8, b"\x08"), "both that it is compressed and that it is not"),
    "another name in the local header": (edited(LOCAL, 30, b"x"), "two names"),
    "an entry elsewhere": (edited(CENTRAL, 42, struct.pack("<I", 2**32 - 2)), "no entry where|cut short"),
    "a folder of numbers": (edited(CENTRAL, 38, b"\x10"), "as a folder, for which"),
    "two entries in one place": (edited(CENTRAL, 42, bytes(4)), "overlapping|two names"),
    "a size": (edited(CENTRAL, 20, struct.pack("<II", 10**9, 10**9)), "overlapping"),
    "a size that reaches into the directory": (edited(CENTRAL, 20, struct.pack("<II", 40, 40)), "overlapping"),
    "a size of zip64 that is not there": (edited(CENTRAL, 20, b"\xff" * 8), "overlapping|cut short"),
    "two sizes": (edited(CENTRAL, 20, struct.pack("<I", 8)), "compressed or encrypted"),
    "a directory elsewhere": (edited(END, 16, struct.pack("<I", 5)), "cut short|belong to none|no entry"),
    "a large directory": (edited(END, 12, struct.pack("<I", 2**31)), "cut short"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("content", "message"), ZIPS.values(), ids=ZIPS)
def test_archives_with_tricks(tmp_path, content, message):
    said = refused(read_checkpoint, tmp_path / "x.pth", content)
    assert any(part in said for part in message.split("|")), said


def test_the_good_archive_is_one(tmp_path):
    (tmp_path / "x.pth").write_bytes(GOOD)
    assert read_checkpoint(tmp_path / "x.pth").state["w"].tolist() == [0, 0, 0]


def test_zip_bombs(tmp_path):
    content = archive({"net/data.pkl": bytes(100 * MEGABYTE)}, zipfile.ZIP_DEFLATED)
    assert len(content) < MEGABYTE
    assert "compressed or encrypted" in refused(read_checkpoint, tmp_path / "x.pth", content, factor=10)


# Files that change, and what is no file


@pytest.mark.parametrize("change", ["cut", "overwritten", "removed"])
@pytest.mark.parametrize("file", ["x.pdparams", "x.safetensors", "x.pth"])
def test_a_file_that_changes_while_it_is_in_use(tmp_path, file, change):
    """In a process of its own: reading a mapped file that was cut ends the process (SIGBUS)."""
    path = tmp_path / file
    if file == "x.pth":
        path.write_bytes(zipped(tensor(count=10**6, shape=(10**6,)), _0=np.ones(10**6, "f4").tobytes()))
    else:
        write_weights({"w": np.ones(10**6, "f4")}, path)
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.files.weights import read_weights
path = {str(path)!r}
state = read_checkpoint(path).state if path.endswith(".pth") else read_weights(path)
size = os.path.getsize(path)
if {change!r} == "cut":
    os.truncate(path, 10)
elif {change!r} == "overwritten":
    with open(path, "r+b") as file:
        file.write(bytes(size))
else:
    os.remove(path)
print(int(state["w"].sum()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1000000\n"), done.stderr


@posix
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "endless device", "folder", "loop", "nothing"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "x.pth"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    elif kind in ("device", "endless device"):
        path.symlink_to("/dev/null" if kind == "device" else "/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    for reader in (read_weights, read_checkpoint, load_model, read_metadata):
        with pytest.raises(WeightsError, match=r"is not a file|cannot be read \(.*\): check the path") as caught:
            reader(path)
        assert str(caught.value).startswith(str(path))


@posix
def test_a_link_to_a_file_is_one(tmp_path):
    write_weights({"w": np.ones(2)}, tmp_path / "x.pdparams")
    (tmp_path / "link.pdparams").symlink_to("x.pdparams")
    assert read_weights(tmp_path / "link.pdparams")["w"].tolist() == [1, 1]


@posix
def test_files_of_the_system_without_a_size_are_empty():
    if os.path.exists("/proc/self/maps"):
        assert "is empty" in refused(read_weights, Path("/proc/self/maps"))


# Sidecars


@pytest.fixture
def saved(tmp_path) -> Path:
    """A small network's file with its sidecar."""
    config = {"stages": [1, 1], "growth": [8, 8], "fc_channel": 16, "num_classes": 4}
    save_weights(CondenseNetV2(**config, group_1x1=4, group_3x3=4, group_trans=4), tmp_path / "net.pdparams")
    return tmp_path / "net.pdparams"


def tell(path: Path, **config: object) -> None:
    """Change the config in a sidecar."""
    entries = json.loads(path.with_suffix(".json").read_text())
    entries["config"].update(config)
    path.with_suffix(".json").write_text(json.dumps(entries))


@pytest.mark.parametrize(
    "content",
    [
        b'{"arch": "CondenseNetV2", "config": {}}' + b" " * MEGABYTE,
        b'{"arch": ' + b"[" * 900 + b"]" * 900 + b', "config": {}}',
        b'{"arch": "CondenseNetV2", "config": {"stages": ' + b"[" * 900 + b"]" * 900 + b"}}",
        b'{"arch": "CondenseNetV2", "config": {"stages": [[1]]}}',
        b'{"arch": "CondenseNetV2", "config": {"stages": {"1": 1}}}',
        b'{"arch": "CondenseNetV2", "config": {"stages": [' + b"1," * 1000 + b"1]}}",
        b'{"arch": "CondenseNetV2", "config": {"stages": "' + b"x" * 1000 + b'"}}',
        b'{"arch": "CondenseNetV2", "config": {"' + b"x" * 1000 + b'": 1}}',
        b'{"arch": "' + b"x" * 1000 + b'", "config": {}}',
        b'{"arch": "CondenseNetV2", "config": [["stages", 1]]}',
    ],
    ids=[
        "large",
        "deep",
        "deep argument",
        "nested",
        "object",
        "long list",
        "long text",
        "long key",
        "long name",
        "list",
    ],
)
def test_sidecars_that_nobody_wrote(saved, content):
    saved.with_suffix(".json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"net\.json is not a readable sidecar: fix or delete it") as caught:
        load_model(saved)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("depth", [60, 500, 100_000])
def test_what_is_nested_too_deeply_is_no_sidecar(saved, depth):
    """Also where nobody looks for arguments: `info --json` prints what else a sidecar says."""
    from paddle_dense.commands.info import main

    content = saved.with_suffix(".json").read_text().rstrip()[:-1] + f', "note": {deep(depth)}}}'
    saved.with_suffix(".json").write_text(content)
    with pytest.raises(WeightsError, match=r"net\.json is not a readable sidecar: fix or delete it"):
        load_model(saved)
    assert main(["--json", str(saved)]) == 0


@posix
@pytest.mark.parametrize("size", [1 << 21, 1 << 36], ids=["2 MB", "64 GB"])
def test_json_next_to_a_target_is_read_up_to_a_bound(saved, tmp_path, size):
    """It may be anybody's and of any size: it is in the way, and costs no memory."""
    from convert.conversion import check_targets
    from convert.options import Options
    from paddle_dense.files.sidecar import is_left_over, sidecar_path, write_with_sidecar

    target = tmp_path / "v.pdparams"
    with open(sidecar_path(target), "wb") as file:
        file.write(b'{"previous": null}')
        file.truncate(size)
    tracemalloc.start()
    try:
        assert not is_left_over(sidecar_path(target))
        with pytest.raises(WeightsError, match="exists already"):
            check_targets([sidecar_path(target)], [], Options())
        with pytest.raises(WeightsError, match=r"v\.json: has more than 1,048,576 bytes.*: move it away"):
            write_with_sidecar({"w": np.ones(2, "f4")}, target, {"arch": "x"})
        assert tracemalloc.get_traced_memory()[1] < 5 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert not target.exists() and sidecar_path(target).stat().st_size == size


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing"])
def test_bounded_reading_takes_regular_files_only(tmp_path, kind):
    path = tmp_path / "x.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(WeightsError, match=r"is not a file|cannot be read"):
        read_bounded(path, 100)


def test_bounded_reading(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"x" * 100)
    assert read_bounded(path, 100) == b"x" * 100
    with pytest.raises(WeightsError, match="has more than 99 bytes"):
        read_bounded(path, 99)


def test_settings_of_a_run_that_are_nested_too_deeply(tmp_path):
    from paddle_dense.training.resume import read_checkpoint as read_run

    path = tmp_path / "checkpoint-00000001.safetensors"
    texts = {"step": "1", "network": "{}", "schedule": "{}", "scaler": "{}"}
    write_weights({"w": np.ones(2, "f4")}, path, {**texts, "settings": "{}"})
    assert read_run(path).step == 1
    write_weights({"w": np.ones(2, "f4")}, path, {**texts, "settings": f'{{"a": {deep(500)}}}'})
    with pytest.raises(WeightsError, match="is no checkpoint of a training run"):
        read_run(path)


def test_numbers_with_many_digits_in_a_sidecar(saved):
    content = saved.with_suffix(".json").read_text().replace('"fc_channel": 16', '"fc_channel": 1' + "0" * 900_000)
    saved.with_suffix(".json").write_text(content)
    start = time.process_time()
    with pytest.raises(WeightsError):
        load_model(saved)
    assert time.process_time() - start < 5


@posix
def test_a_sidecar_that_is_a_pipe(saved):
    saved.with_suffix(".json").unlink()
    os.mkfifo(saved.with_suffix(".json"))
    with pytest.raises(WeightsError, match="is not a readable sidecar"):
        load_model(saved)


GIANT = [
    {"stages": [10**9, 1]},
    {"stages": [3000, 3000]},
    {"stages": [1] * 100, "growth": [8] * 100},
    {"growth": [10**9, 8]},
    {"growth": [8, 10**7]},
    {"growth": [8, 10**18]},
    {"bottleneck": 10**12},
    {"bottleneck": 10**12, "condensed": False},
    {"growth": [10**7, 8], "condensed": False},
    {"in_channels": 10**9},
    {"num_classes": 10**9},
    {"fc_channel": 10**9},
    {"group_1x1": 4, "condense_factor": 1, "growth": [10**6, 8]},
    {"trans_factor": 1, "growth": [10**5, 8]},
    {"stages": [float("inf"), 1]},
    {"stages": [1e300, 1]},
    {"growth": [float("nan"), 8]},
]


@pytest.mark.parametrize(
    ("arch", "config"),
    [*(("CondenseNetV2", config) for config in GIANT), ("cdnv2_a", GIANT[0]), ("cdnv2_a", GIANT[3])],
    ids=lambda value: str(value)[:60],
)
def test_a_config_of_a_giant_network_is_refused_before_it_is_built(saved, arch, config):
    tell(saved, **config)
    sidecar = saved.with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace('"CondenseNetV2"', f'"{arch}"'))
    said = refused(load_model, saved, factor=0, spare=30 * MEGABYTE)
    assert "sidecar .json describes no network" in said or "tensor '" in said


ABSURD = [
    ("CondenseNetV2", {"init_stride": True}, "init_stride=True must be a whole number"),
    ("CondenseNetV2", {"init_stride": 2**40}, "would leave nothing of an image of 224 pixels"),
    ("CondenseNetV2", {"init_stride": 1.5}, "init_stride=1.5 must be a whole number"),
    ("CondenseNetV2", {"init_stride": -1}, "init_stride=-1 must be 1 or more"),
    ("CondenseNetV2", {"init_stride": 0}, "init_stride=0 must be 1 or more"),
    ("CondenseNetV2", {"stages": [1] * 9, "growth": [8] * 9}, "would leave nothing of an image of 224 pixels"),
    ("CondenseNetV2", {"HS_start_block": "2"}, "HS_start_block=2 must be a whole number"),
    ("CondenseNetV2", {"HS_start_block": float("nan")}, "HS_start_block=nan must be a whole number"),
    ("CondenseNetV2", {"HS_start_block": 2**63}, "must be below 2\\*\\*63"),
    ("CondenseNetV2", {"condensed": "false"}, "condensed=false must be true or false"),
    ("CondenseNetV2", {"features_only": 1}, "features_only=1 must be true or false"),
    ("CondenseNetV2", {"growth": [8.0, 8]}, "growth=\\[8.0, 8\\] must be a whole number"),
    ("CondenseNetV2", {"stages": []}, "must be a list of one number or more"),
    ("CondenseNetV2", {"fc_channel": 0}, "fc_channel=0 must be 1 or more"),
    ("CondenseNetV2", {"num_classes": -1}, "num_classes=-1 must be 0 or more"),
    ("CondenseNet", {"dropout_rate": -0.5}, "dropout_rate=-0.5 must be from 0 to 1"),
    ("CondenseNet", {"dropout_rate": float("nan")}, "dropout_rate=nan must be from 0 to 1"),
    ("CondenseNet", {"condense_classifier": "no"}, "condense_classifier=no must be true or false"),
    ("DenseNet", {"drop_rate": 2}, "drop_rate=2 must be from 0 to 1"),
    ("DenseNet", {"drop_rate": True}, "drop_rate=True must be a number"),
    ("DenseNet", {"memory_efficient": "x"}, "memory_efficient=x must be true or false"),
    ("DenseNet", {"block_config": [1] * 7}, "would leave nothing of an image of 224 pixels"),
    ("CSPDenseNet", {"mode": 3}, "mode=3 must be a text"),
    ("CSPNet", {"groups": 0}, "groups=0 must be 1 or more"),
    ("CSPNet", {"expand_ratio": [float("inf")]}, "must be above 0 and finite"),
    ("EfficientNetCondConv", {"bn_eps": 1e30}, "must be above 0 and at most 0.1"),
    ("EfficientNetCondConv", {"bn_eps": -1e-5}, "must be above 0 and at most 0.1"),
    ("EfficientNetCondConv", {"bn_eps": float("nan")}, "must be above 0 and at most 0.1"),
    ("EfficientNetCondConv", {"drop_path_rate": 1.5}, "drop_path_rate=1.5 must be from 0 to 1"),
    ("EfficientNetCondConv", {"depth_multiplier": 0}, "depth_multiplier=0 must be above 0 and finite"),
    ("EfficientNetCondConv", {"same_padding": "SAME"}, "same_padding=SAME must be true or false"),
]
SMALL = {
    "CondenseNetV2": {},
    "CondenseNet": {"stages": [1], "growth": [8]},
    "DenseNet": {},
    "CSPDenseNet": {},
    "CSPNet": {"backbone": "resnet", "depths": [1], "channels": [8], "expand_ratio": [2], "bottle_ratio": [1]},
    "EfficientNetCondConv": {},
}


@pytest.mark.parametrize(("arch", "config", "message"), ABSURD, ids=lambda value: str(value)[:60])
def test_numbers_with_which_a_network_could_not_run_are_refused_when_it_is_loaded(saved, arch, config, message):
    """The tensors' shapes do not show them: such a network had been built and failed, or answered NaN, when it ran."""
    sidecar = saved.with_suffix(".json")
    entries = json.loads(sidecar.read_text())
    base = entries["config"] if arch == "CondenseNetV2" else SMALL[arch]
    sidecar.write_text(json.dumps({**entries, "arch": arch, "config": {**base, **config}}))
    with pytest.raises(WeightsError, match=message) as caught:
        load_model(saved)
    said = str(caught.value)
    assert said.startswith(f"{saved}: the sidecar .json describes no network of this package: ") and "\n" not in said


@pytest.mark.parametrize(
    "config", [{"pretrained": True}, {"pretrained": "/etc/passwd"}, {"return_transforms": True}], ids=str
)
@pytest.mark.parametrize("arch", ["CondenseNetV2", "cdnv2_a"])
def test_a_config_cannot_ask_for_more_than_a_network(saved, config, arch, monkeypatch):
    """Presets can fetch weights when they are called; a sidecar must not make them."""
    monkeypatch.setattr("paddle_dense.checkpoints.load_pretrained", lambda *_: pytest.fail("fetches weights"))
    saved.with_suffix(".json").write_text(json.dumps({"arch": arch, "config": config}))
    with pytest.raises(WeightsError, match=r"takes no argument '(pretrained|return_transforms)'"):
        load_model(saved)


@pytest.mark.parametrize("network", [CondenseNet, CondenseNetV2])
@pytest.mark.parametrize("condensed", [True, False])
def test_shapes_of_a_giant_network_make_no_buffers(network, condensed):
    """Tensors without elements take no room in a file, whatever their other sides are."""
    config = {"stages": [1], "growth": [10**6], "condensed": condensed}
    with pytest.raises(ValueError, match="far more numbers than the file has tensors for"):
        Architecture(network.__name__, network, config, budget=Budget(tensors=100, elements=1000)).outline()


def test_a_room_bounds_what_is_built_in_it_and_nothing_else():
    with pytest.raises(ValueError, match="far more layers than the file has tensors for"), within(Budget(10, 10**9)):
        CondenseNet(stages=[1] * 100, growth=[8] * 100)
    with within(Budget(tensors=0, elements=100)):
        check_budget(40, 40)
        with pytest.raises(ValueError, match="far more numbers"):
            check_budget(40, 40)
    with within(None):
        check_budget(10**9, 10**9)
    check_budget(10**9, 10**9)


# CIFAR archives


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member, content in members:
            member.size = member.size or len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


SPARSE = [{"major": "0", "map": sizes, "size": "x"} for sizes in ("x", "3", "1,2,x", "9" * 5000)]


@pytest.mark.parametrize("sparse", [*SPARSE, {"major": "1", "minor": "0", "realsize": str(10**12)}])
def test_headers_of_tar_that_tarfile_trips_over(tmp_path, sparse):
    from paddle_dense.training.data import open_data

    member = tarfile.TarInfo("test_batch")
    member.pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
    member.size = 512  # where there is more of a header, it is here
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(b"9" * 512))
    refused(lambda path: open_data(path, "test"), tmp_path / "x.tar", file.getvalue(), spare=5 * MEGABYTE)


def test_archives_that_unpack_to_far_more_than_they_are(tmp_path):
    import gzip

    from paddle_dense.training.data import open_data

    content = gzip.compress(tarred((tarfile.TarInfo("test_batch"), bytes(8 * MEGABYTE))))
    said = refused(lambda path: open_data(path, "test"), tmp_path / "x.tar.gz", content, spare=10 * MEGABYTE)
    assert "unpacks to more than" in said


def test_archives_of_headers_about_the_next_header(tmp_path):
    from paddle_dense.training.data import open_data

    content = long_names(3 * sys.getrecursionlimit())
    said = refused(lambda path: open_data(path, "test"), tmp_path / "x.tar.gz", content, spare=10 * MEGABYTE)
    assert "cannot be read as a tar archive" in said


@posix
def test_archives_that_are_pipes(tmp_path):
    from paddle_dense.training.data import open_data

    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(WeightsError, match="is not a file"):
        open_data(tmp_path / "x.tar", "test")


def test_opened_files_are_closed(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    with open_file(tmp_path / "x") as file:
        assert file.read() == b"abc"
    assert file.closed


# Names


def test_a_network_is_looked_for_under_few_of_a_files_prefixes(monkeypatch):
    """Each of these names ends like a tensor by which a network is found."""
    tried = []
    match = matching._Candidate.match
    monkeypatch.setattr(
        matching._Candidate, "match", lambda self, *args, **kw: tried.append(1) or match(self, *args, **kw)
    )
    [anchor, *_] = DenseNet.anchors
    state = {f"x{number}.{anchor}": np.ones([4, 3, 3, 3], "float32") for number in range(5000)}
    with pytest.raises(WeightsError) as caught:
        matching.match(state, in_pytorch=True)
    spellings = sum(1 + len(network.spellings) for network in networks())
    assert 32 <= len(tried) <= 33 * spellings
    assert len(str(caught.value)) < 1000
