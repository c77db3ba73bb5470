"""Inputs that hypothesis makes up: structured ones, which changing the bytes of real files would hardly reach.

Each property is searched for some seconds, always in the same way, and in the slow tests for minutes, always in another
way. `make fuzz` changes the bytes of real files for as long as one likes.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fuzz.fuzz_readers import check
from paddle_dense.errors import WeightsError
from paddle_dense.files.unpickle import Key, unpickle
from paddle_dense.files.weights import PYTORCH_MAGIC

EXAMPLES = pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.slow)])


def search(examples: int, *strategies: st.SearchStrategy, **named: st.SearchStrategy) -> Callable[[Callable], None]:
    """Runs what it decorates on many examples."""
    quick = examples < 1000

    def run(test: Callable) -> None:
        settings(
            max_examples=examples,
            deadline=None,
            derandomize=quick,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(given(*strategies, **named)(test))()

    return run


# What Python's pickle and ours read must be the same

NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans())
SCALARS = st.one_of(st.none(), NUMBERS, st.text(), st.binary(), st.binary(min_size=250, max_size=270))
KEYS = st.one_of(st.none(), NUMBERS, st.text(), st.binary(max_size=9), st.tuples(st.integers(), st.text()))
VALUES = st.recursive(
    SCALARS | st.binary().map(bytearray) | st.frozensets(KEYS, max_size=1) | st.sets(st.integers(0, 7)),  # in order
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(KEYS, inner)
        | st.dictionaries(KEYS, inner).map(OrderedDict)
        | inner.map(lambda value: [value, value])
    ),
)


def plain(value: object) -> object:
    """A value with what is read differently made the same: sets are lists, and some bytes are views."""
    if isinstance(value, Key):
        return plain(value.value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        # Keys that are no plain values are never compared in reading, so that one may be there twice; the last counts.
        return list({plain(key): plain(item) for key, item in value.items()}.items())
    return value


@EXAMPLES
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_pickle_writes_is_read_back(protocol, examples):
    @search(examples // 4, VALUES)
    def same(value):
        dumped = pickle.dumps(value, protocol)
        for program in (dumped, pickletools.optimize(dumped)):
            read, end = unpickle(memoryview(program))
            # repr tells True from 1, 0.0 from -0.0, and takes NaN for NaN.
            assert repr(plain(read)) == repr(plain(pickle.loads(program))) and end == len(program)


# Programs for pickle's machine, one instruction after another


def number(code: str, low: int, high: int) -> st.SearchStrategy[bytes]:
    return st.integers(low, high).map(lambda value: struct.pack(code, value))


def sized(code: str, content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return content.map(lambda data: struct.pack(code, len(data)) + data)


def line(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return content.map(lambda data: data.replace(b"\n", b"") + b"\n")


DIGITS = st.one_of(st.integers(0, 9), st.integers(-(2**70), 2**70)).map(lambda value: str(value).encode())
INDEX = st.integers(0, 9)
BYTES = st.binary(max_size=20)
TEXT = st.text(max_size=20).map(str.encode)
QUOTED = st.one_of(
    BYTES.map(lambda data: repr(data)[1:].encode()),
    st.builds(lambda q, d: q + d + q, st.sampled_from([b"'", b'"']), BYTES),
)
# By the names that pickletools has for what follows an instruction.
ARGUMENTS: dict[str, st.SearchStrategy[bytes]] = {
    "uint1": number("<B", 0, 9),
    "uint2": number("<H", 0, 2**16 - 1),
    "int4": number("<i", -(2**31), 2**31 - 1),
    "uint4": number("<I", 0, 9),
    "uint8": number("<Q", 0, 99),
    "decimalnl_short": line(st.one_of(DIGITS, st.sampled_from([b"00", b"012", b" 12", b"1_0", b"", b"0x1", b"+1"]))),
    "decimalnl_long": line(DIGITS.flatmap(lambda digits: st.sampled_from([digits, digits + b"L"]))),
    "floatnl": line(st.one_of(st.floats().map(lambda value: repr(value).encode()), DIGITS, BYTES)),
    "float8": st.floats().map(lambda value: struct.pack(">d", value)),
    "string1": sized("<B", BYTES),
    "string4": sized("<i", BYTES),
    "bytes1": sized("<B", BYTES),
    "bytes4": sized("<I", BYTES),
    "bytes8": sized("<Q", BYTES),
    "bytearray8": sized("<Q", BYTES),
    "unicodestring1": sized("<B", TEXT),
    "unicodestring4": sized("<I", TEXT),
    "unicodestring8": sized("<Q", TEXT),
    "unicodestringnl": line(st.one_of(TEXT, st.text(max_size=9).map(lambda text: text.encode("raw-unicode-escape")))),
    "stringnl": line(QUOTED),
    "stringnl_noescape": line(BYTES),
    "long1": sized("<B", BYTES),
    "long4": sized("<i", BYTES),
}
NAMES = [
    *("collections OrderedDict", "collections Counter", "collections defaultdict", "builtins dict", "builtins list"),
    *("builtins tuple", "builtins set", "__builtin__ frozenset", "builtins bytes", "builtins bytearray"),
    *("_codecs encode", "numpy dtype", "numpy ndarray", "numpy.core.multiarray _reconstruct"),
    *("numpy._core.multiarray scalar", "numpy.core.numeric _frombuffer", "torch.nn.modules.linear Linear"),
    *("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"),
    *("torch._tensor _rebuild_from_type_v2", "torch._utils _rebuild_parameter", "torch Size", "torch FloatStorage"),
    *("torch BoolStorage", "torch BFloat16Storage", "torch float16", "argparse Namespace"),
]
NAMED = st.sampled_from(NAMES).map(lambda name: name.replace(" ", "\n").encode() + b"\n")


@st.composite
def instructions(draw: Callable, opcode: pickletools.OpcodeInfo) -> bytes:
    code = opcode.code.encode("latin1")
    if opcode.name in ("GLOBAL", "INST"):
        return code + draw(NAMED)
    if opcode.name in ("GET", "PUT"):
        return code + str(draw(INDEX)).encode() + b"\n"
    return code + (draw(ARGUMENTS[opcode.arg.name]) if opcode.arg else b"")


ALL = [opcode for opcode in pickletools.opcodes if opcode.name not in ("STOP", "FRAME")]
# Without names nothing can be called, so that Python's pickle may read them, too.
CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "PERSID", "BINPERSID"}
OTHERS = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "EMPTY_SET", "ADDITEMS", "FROZENSET"}
SAFE = [opcode for opcode in ALL if opcode.name not in CALLS | OTHERS]


@st.composite
def programs(draw: Callable, opcodes: list[pickletools.OpcodeInfo]) -> bytes:
    """A program whose instructions find what they need on the stack, most of the time."""
    made, stacks, stored = b"", [0], 0
    for _ in range(draw(st.integers(1, 25))):
        fitting = [opcode for opcode in opcodes if _fits(opcode, stacks, stored)]
        opcode = draw(st.sampled_from(fitting if draw(st.integers(0, 30)) < 30 else opcodes))
        made += draw(instructions(opcode))
        before = [kind.name for kind in opcode.stack_before]
        if "mark" in before and len(stacks) > 1:
            stacks.pop()
            before = before[: before.index("mark")]
        stored += opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
        if opcode.name == "MARK":
            stacks.append(0)
        else:
            stacks[-1] = max(0, stacks[-1] - len(before)) + len(opcode.stack_after)
    while len(stacks) > 1:
        made += draw(st.sampled_from([b"t", b"l"]))
        stacks.pop()
        stacks[-1] += 1
    gathered = {0: b"N", 1: b"", 2: b"\x86", 3: b"\x87"}.get(stacks[-1], b"")
    return made + gathered + b"."


def _fits(opcode: pickletools.OpcodeInfo, stacks: list[int], stored: int) -> bool:
    before = [kind.name for kind in opcode.stack_before]
    if "GET" in opcode.name:
        return stored > 0
    if "mark" in before:
        return len(stacks) > 1 and stacks[-2] >= before.index("mark")
    return stacks[-1] >= max(len(before), opcode.name.endswith("PUT") or opcode.name in ("MEMOIZE", "DUP"))


@EXAMPLES
def test_programs_are_read_as_pickle_reads_them(examples):
    @search(examples * 2, programs(SAFE))
    def same(program):
        try:
            expected = pickle.loads(program, encoding="latin1")
        except Exception:
            expected = None
        try:
            read, _ = unpickle(memoryview(program))
        except WeightsError:
            return
        if expected is not None:
            assert repr(plain(read)) == repr(plain(expected))


@EXAMPLES
@pytest.mark.parametrize("reader", ["pdparams", "pickle of a checkpoint"])
def test_programs_of_all_instructions_end_well(reader, examples):
    @search(examples * 2, programs(ALL), st.sampled_from([b"}X\x01\x00\x00\x00w", b""]))
    def ends_well(program, before):
        program = before + program[:-1] + b"s." if before else program
        check(reader, b"\x80\x02" + program, memory=True)


# Files


def read_back(reader: str, content: bytes, expected: dict[str, np.ndarray]) -> None:
    """The reader gives exactly these arrays."""
    found = check(reader, content, memory=True)
    assert found is not None and list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("=") and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


CODES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?", ">f4", ">i8"]
ARRAYS = st.sampled_from(CODES).flatmap(lambda code: arrays(code, array_shapes(min_dims=0, min_side=0, max_side=4)))
LAID_OUT = ARRAYS.flatmap(lambda array: st.sampled_from([array, array.T, array[::2] if array.ndim else array]))
LAYERS = st.text("abc.1_", min_size=1, max_size=9)
STATES = st.dictionaries(LAYERS, LAID_OUT, max_size=4)


@EXAMPLES
def test_states_that_are_pickled_are_read_back(examples):
    @search(examples, STATES, st.integers(2, 5))
    def same(state, protocol):
        read_back("pdparams", pickle.dumps(state, protocol), state)


@EXAMPLES
def test_sliced_parameters_are_joined(examples):
    """Paddle cuts what is larger than 1 GB when it writes protocol 2 or 3."""

    @search(examples, STATES, st.data())
    def same(state, data):
        saved: dict[str, Any] = {}
        pieces = {}
        for name, array in state.items():
            if not data.draw(st.booleans()):
                saved[name] = array
                continue
            cuts = sorted(data.draw(st.lists(st.integers(0, array.size), max_size=3)))
            slices = {f"{name}@@.{at}": part for at, part in enumerate(np.split(array.reshape(-1), cuts))}
            saved.update(slices)
            pieces[name] = {"OriginShape": array.shape, "slices": list(slices)}
        expected = {name: array for name, array in state.items() if name not in pieces}
        expected.update((name, state[name]) for name in pieces)
        read_back("pdparams", pickle.dumps({**saved, "UnpackBigParamInfor@@": pieces}, 2), expected)


@EXAMPLES
def test_slices_that_do_not_fit_end_well(examples):
    names = st.sampled_from(["a", "b", "c", "d"])
    states = st.dictionaries(names, ARRAYS, min_size=1)
    shapes = st.lists(st.integers(-2, 5), max_size=4) | VALUES
    pieces = st.fixed_dictionaries({}, optional={"slices": st.lists(names | VALUES) | VALUES, "OriginShape": shapes})

    @search(examples, states, st.dictionaries(names | KEYS, pieces | VALUES) | VALUES, st.integers(2, 5))
    def ends_well(state, pieces, protocol):
        check("pdparams", pickle.dumps({**state, "UnpackBigParamInfor@@": pieces}, protocol), memory=True)


# PyTorch's files


@st.composite
def tensors(draw: Callable) -> dict[str, Any]:
    """Tensors of PyTorch that view one another's storages in every way that PyTorch has."""
    import torch

    kinds = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    storages = [
        torch.arange(draw(st.integers(1, 30))).to(getattr(torch, draw(st.sampled_from(kinds)))) for _ in range(2)
    ]
    made = {}
    for name in draw(st.lists(LAYERS, min_size=1, max_size=4, unique=True)):
        storage = draw(st.sampled_from(storages))
        size = draw(st.lists(st.integers(0, 4), max_size=3))
        stride = [draw(st.integers(0, 5)) for _ in size]
        reach = sum((n - 1) * step for n, step in zip(size, stride)) if 0 not in size else 0
        if reach >= len(storage):
            size, stride, reach = [], [], 0
        made[name] = storage.as_strided(size, stride, draw(st.integers(0, len(storage) - 1 - reach)))
    return made


@EXAMPLES
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_torch_saves_is_read_back(is_zip, examples):
    torch = pytest.importorskip("torch", reason="writes the files")

    @search(examples, tensors(), st.sampled_from(["", "module.", "_orig_mod.module."]))
    def same(state, prefix):
        file = io.BytesIO()
        saved = {prefix + name: tensor for name, tensor in state.items()}
        torch.save(saved, file, _use_new_zipfile_serialization=is_zip)
        expected = {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in state.items()}
        found = check("checkpoint", file.getvalue())
        assert found is not None
        for array, wanted in zip(found.values(), expected.values()):
            assert array.dtype == wanted.dtype and array.shape == wanted.shape
            np.testing.assert_array_equal(array, wanted)


@EXAMPLES
def test_rows_of_pickles_end_well(examples):
    """What PyTorch wrote before 1.6: magic number, version, machine, state, keys, and storages after their lengths."""
    keys = st.lists(st.sampled_from(["0", "1", "2"]) | SCALARS, max_size=4)
    states = programs(ALL) | st.lists(_storage_programs(), max_size=3).map(_state_program)
    contents = st.lists(st.builds(lambda n, data: struct.pack("<q", n) + data, st.integers(-2, 9), BYTES), max_size=3)

    @search(
        examples * 2,
        st.sampled_from([1001, 1000, None, "1001"]),
        st.fixed_dictionaries({}, optional={"little_endian": st.booleans(), "protocol_version": SCALARS}) | VALUES,
        states,
        keys | VALUES,
        contents,
    )
    def ends_well(version, machine, state, keys, contents):
        rows = [pickle.dumps(PYTORCH_MAGIC, 2), pickle.dumps(version, 2), pickle.dumps(machine, 2), state]
        check("checkpoint", b"".join([*rows, pickle.dumps(keys, 2), *contents]), memory=True)


def _value(value: object) -> bytes:
    return pickle.dumps(value, 3)[2:-1]


@st.composite
def _storage_programs(draw: Callable) -> bytes:
    """A call that rebuilds a tensor, with numbers that may fit."""
    kind = draw(st.sampled_from(["Float", "Double", "Bool", "BFloat16", "Long", "ComplexFloat", "Untyped", "Strange"]))
    small = st.integers(-1, 6) | st.sampled_from([2**31, 2**62, 2**80, True, None, 1.0, "1"])
    saved_id = [_value("storage"), f"ctorch\n{kind}Storage\n".encode(), _value(draw(st.sampled_from(["0", "1", 0])))]
    saved_id += [_value("cpu"), _value(draw(small))]
    if draw(st.booleans()):
        saved_id.append(_value(draw(st.none() | st.tuples(st.just("v"), small, small))))
    shape = st.lists(small, max_size=3).map(tuple)
    arguments = [b"(" + b"".join(saved_id) + b"tQ", _value(draw(small)), _value(draw(shape)), _value(draw(shape))]
    function = draw(st.sampled_from(["", "_v2", "_v3"]))
    arguments += [_value(draw(SCALARS)) for _ in range(draw(st.integers(0, 4)))]
    if function == "_v3" and len(arguments) > 6:
        arguments[6] = b"ctorch\n" + draw(st.sampled_from([b"float32", b"uint16", b"bool", b"strange"])) + b"\n"
    return f"ctorch._utils\n_rebuild_tensor{function}\n(".encode() + b"".join(arguments) + b"tR"


def _state_program(tensors: list[bytes]) -> bytes:
    entries = b"".join(_value(f"w{at}") + tensor + b"s" for at, tensor in enumerate(tensors))
    return b"\x80\x02}" + entries + b"."


@EXAMPLES
def test_tensors_with_strange_numbers_end_well(examples):
    @search(examples * 2, st.lists(_storage_programs(), min_size=1, max_size=3).map(_state_program))
    def ends_well(program):
        check("pickle of a checkpoint", program, memory=True)


ENTRIES = st.tuples(
    st.sampled_from(["net/data.pkl", "net/data/0", "net/data/1", "net/version", "net/byteorder", "../x", "a\\b", "/a"])
    | st.text(max_size=9),
    st.sampled_from([pickle.dumps({"w": np.ones(2, "f4")}, 2), b"little", b"big"]) | BYTES,
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.sampled_from([b"", b"", b"", struct.pack("<2HQ", 1, 8, 5), struct.pack("<2H5s", 0x7075, 5, b"\x01abcd"), b"ab"]),
)


@EXAMPLES
def test_archives_end_well(examples):
    """Archives with strange entries, and numbers in their headers overwritten."""
    fields = st.tuples(
        st.sampled_from([b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"]),
        st.integers(4, 46),
        st.sampled_from([b"\0", b"\xff", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\0\0\0", b"\x08"]),
    )

    @search(examples * 2, st.lists(ENTRIES, max_size=5), st.lists(fields, max_size=3), st.binary(max_size=30), BYTES)
    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def ends_well(entries, fields, comment, before):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for name, content, compression, extra in entries:
                entry = zipfile.ZipInfo("x")
                entry.filename, entry.compress_type, entry.extra = name, compression, extra
                archive.writestr(entry, content)
            archive.comment = comment
        content = bytearray(made.getvalue())
        for magic, offset, value in fields:
            at = content.find(magic)
            if at >= 0:
                content[at + offset : at + offset + len(value)] = value
        check("checkpoint", bytes(content), memory=True)
        check("checkpoint", b"PK\x03\x04" + before + bytes(content), memory=True)


# safetensors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
STORED.update(U16="<u2", U32="<u4", U64="<u8", BOOL="?")


@st.composite
def headers(draw: Callable) -> tuple[bytes, int]:
    """The text of a header that may be sound, and how many bytes of numbers it tells of."""
    header: dict[str, Any] = {}
    at = 0
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=2) | JSON)
    for name in draw(st.lists(st.text(max_size=9), max_size=3)):
        dtype = draw(st.sampled_from([*STORED, "BF16", "F8_E4M3", "f32", "C64"]))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = math.prod(shape) * (np.dtype(STORED[dtype]).itemsize if dtype in STORED else 2)
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
        if draw(st.integers(0, 5)) == 5:
            entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(JSON)
        header[name] = entry
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    ways = [(b"0", b"-0"), (b"0", b"0.0"), (b"4", b"4e0"), (b"[", b"[ "), (b"}", b"},"), (b'"w', b'"\\ud800w')]
    old, new = draw(st.sampled_from([(b"", b"")] * 6 + ways))
    text = text.replace(old, new, 1) if old else text
    return draw(st.sampled_from([b"", b"", b"", b" "])) + text + draw(st.sampled_from([b"", b" ", b"\n", b"\0"])), at


@EXAMPLES
def test_safetensors_files_are_read_as_the_library_reads_them(examples):
    library = pytest.importorskip("safetensors", reason="an independent reader of its files")
    outcomes = {True: 0, False: 0}

    @search(examples * 2, headers(), st.sampled_from([0, 0, 0, 0, 1, -1]))
    def same(header, more):
        text, size = header
        content = struct.pack("<Q", len(text)) + text + bytes(at % 251 for at in range(size + more))
        try:
            expected = dict(library.deserialize(content))
        except Exception:
            expected = None
        found = check("safetensors", content, memory=True)
        outcomes[found is None] += 1
        if found is None or b'"more"' in text:
            return  # of fields that the format does not have, the library looks at more than ours does
        assert expected is not None, "read what the library refuses"
        assert found.keys() == expected.keys()
        for name, entry in expected.items():
            numbers = np.frombuffer(bytes(entry["data"]), STORED.get(entry["dtype"], "<u2"))
            if entry["dtype"] == "BF16":
                numbers = (numbers.astype("u4") << 16).view("f4")
            assert found[name].tolist() == numbers.reshape(entry["shape"]).tolist() or np.isnan(numbers).any()
            assert found[name].dtype == numbers.dtype and list(found[name].shape) == entry["shape"]

    assert min(outcomes.values()) > examples // 4, "the examples are too much alike"


# Sidecars


@EXAMPLES
def test_sidecars_end_well(examples):
    from paddle_dense.files.weights import tensors_sha256

    state = {"w": np.arange(3, dtype="f4")}  # what the reader "sidecar" says the weights are
    fields = {"arch": st.text(max_size=200) | JSON, "config": st.dictionaries(st.text(max_size=9), JSON) | JSON}
    fields["tensors_sha256"] = st.sampled_from([tensors_sha256(state), "0" * 64]) | JSON
    sidecars = st.recursive(
        st.fixed_dictionaries({}, optional=fields),
        lambda inner: st.fixed_dictionaries({"previous": inner | JSON}, optional=fields),
        max_leaves=4,
    )

    @search(examples * 2, sidecars | JSON, st.sampled_from([b"", b"", b"", b"\xff", b"}", b"\xef\xbb\xbf"]))
    def ends_well(entries, before):
        check("sidecar", before + json.dumps(entries).encode(), memory=True)
