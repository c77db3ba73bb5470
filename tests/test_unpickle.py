"""The pickle reader: what it reads, what it leaves alone, and what it refuses. No file can make it run anything."""

from __future__ import annotations

import argparse
import collections
import functools
import pickle
import struct
import tracemalloc
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from paddle_dense.errors import WeightsError
from paddle_dense.files.unpickle import Inert, Key, Lazy, unpickle
from tests.helpers import damaged

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(program: bytes) -> object:
    value, end = unpickle(memoryview(program))
    assert end == len(program)
    return value


MADE = b"cnumpy\nndarray\nK\x00\x85U\x01b\x87"  # the arguments of numpy's _reconstruct


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


# What it reads


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_what_pickle_makes_of_them(protocol):
    value = {
        "nothing": None,
        "truth": [True, False],
        "integers": [0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**40, -(2**200), 10**300],
        "floats": [0.0, -1.5, 1e300, float("inf")],
        "text": ["", "a", "Zürich\n", "权重", "\\u0041", "x" * 70_000],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "dicts": {"a": {}, 1: [], None: (), 2.5: "x", b"k": "bytes"},
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "default": collections.defaultdict(list, a=[1]),
        "many": list(range(3000)),
    }
    assert read(pickle.dumps(value, protocol)) == value
    assert list(read(pickle.dumps(value, protocol))["ordered"]) == ["b", "a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_and_sets(protocol):
    read_back = read(pickle.dumps([b"ab", b"\xff" * 1000, bytearray(b"cd"), {1, 2}, frozenset("x")], protocol))
    assert [bytes(part) for part in read_back[:3]] == [b"ab", b"\xff" * 1000, b"cd"]
    assert [sorted(part) for part in read_back[3:]] == [[1, 2], ["x"]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_object_stays_one_object(protocol):
    loop: list = [1]
    loop += [loop, loop]
    read_back = read(pickle.dumps(loop, protocol))
    assert read_back[1] is read_back and read_back[2] is read_back


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">f4", ">i8"])
def test_arrays_of_numpy(protocol, dtype):
    array = (np.arange(24).reshape(2, 3, 4) % 7 - 3).astype(dtype)
    arrays = [array, array.T, array[:, 1:], array[0, 0, 0:0], np.array(array[1, 2, 3])]
    for expected, lazy in zip(arrays, read(pickle.dumps(arrays, protocol))):
        assert isinstance(lazy, Lazy)
        np.testing.assert_array_equal(lazy.numpy(), expected)
        assert lazy.numpy().shape == expected.shape
        assert lazy.numpy().dtype == expected.dtype.newbyteorder("<")


def test_arrays_view_the_file():
    array = np.arange(1000, dtype="f4")
    program = bytearray(pickle.dumps(array, 4))
    lazy = read(program)
    program[program.index(array.tobytes())] = 77
    assert lazy.numpy().view("u1")[0] == 77


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_become_numbers(protocol):
    assert read(pickle.dumps([np.float32(1.5), np.int64(-3), np.bool_(True)], protocol)) == [1.5, -3, True]


def test_pickles_of_python_2():
    # {'conv.weight': array([1, 2], float32), u'epoch': 3L} as Python 2 wrote it, protocol 2: text is bytes there.
    program = (
        b"\x80\x02}(U\x0bconv.weightcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80?\x00\x00\x00@tbX\x05\x00\x00\x00epoch\x8a\x01\x03u."
    )
    value = read(program)
    assert value["epoch"] == 3
    np.testing.assert_array_equal(value["conv.weight"].numpy(), np.array([1, 2], "f4"))
    assert read(b"(dp0\nS'a'\np1\n(lp2\nI01\naI00\naL12L\naF1.5\nas.") == {"a": [True, False, 12, 1.5]}


# What it leaves alone


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_weights_are_not_made_of_stays_inert(protocol):
    args = argparse.Namespace(lr=0.1, model="cdnv2_a")
    saved = {"args": args, "path": Path("x"), "part": functools.partial(int, base=2), "ratio": Fraction(1, 3)}
    value = read(pickle.dumps(saved, protocol))
    assert all(isinstance(part, Inert) for part in value.values())
    assert value["args"].state == {"lr": 0.1, "model": "cdnv2_a"}


def test_calls_of_calls_stay_inert(tmp_path):
    canary = tmp_path / "canary"
    # pathlib.Path(canary).touch(), without a name that is hostile by itself
    program = b"cbuiltins\ngetattr\n(cpathlib\nPath\n(" + text(str(canary)) + b"tR" + text("touch") + b"tR)R."
    assert isinstance(read(program), Inert)
    assert not canary.exists()
    pickle.loads(program)
    assert canary.exists()


def test_keys_that_are_no_plain_values_are_never_hashed():
    value = read(pickle.dumps({(1, (2,)): "a", frozenset([1]): "b", 2**100: "c", float("nan"): "d"}))
    assert all(isinstance(key, Key) for key in value) and list(value.values()) == ["a", "b", "c", "d"]


# What it refuses; attacks are in tests/security


def test_a_pickle_after_another_is_not_read():
    first = pickle.dumps({"a": 1})
    assert unpickle(memoryview(first + b"cos\nsystem\n)R.")) == ({"a": 1}, len(first))


@pytest.mark.parametrize(
    "program", [b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\x00\x00\x00.", b"\x97.", b"\x98.", b"\xff."]
)
def test_extension_codes_outside_buffers_and_unknown_instructions(program):
    with pytest.raises(WeightsError, match="no weight file uses"):
        read(b"N" + program)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"N",
        b"N0.",
        b"N1.",
        b"h\x05.",
        b"K\x01\x85\x86.",
        b"}K\x01s.",
        b"}(K\x01u.",
        b"K\x01K\x02a.",
        b"NK\x02R.",
        b"K\x01K\x02\x93.",
        b"(o.",
        b"t.",
        b"K\x01}b.",
        b"Ix\n.",
        b"I" + b"9" * 5000 + b"\n.",
        b"Fx\n.",
        b"Sabc\n.",
        b"X\x01\x00\x00\x00\xff.",
        b"\x80\x06N.",
        b"ccollections\nOrderedDict\n(K\x01tR.",
        b"ccollections\nOrderedDict\n(](K\x01K\x02K\x03eetR.",
        b"cnumpy\ndtype\n)R.",
        b"Pabc\n.",
        b"K\x01Q.",
        b"c" + b"a" * 600 + b"\nb\n.",
    ],
)
def test_programs_that_make_no_sense(program):
    with pytest.raises(WeightsError):
        read(program)


@pytest.mark.parametrize(
    "program",
    [
        b"B\xff\xff\xff\xff",
        b"\x8e" + b"\xff" * 8,
        b"\x8d" + b"\xff" * 7 + b"\x7f",
        b"\x96" + b"\xff" * 7 + b"\x7f",
        b"X\xff\xff\xff\xff",
        b"T\xff\xff\xff\x7f",
        b"T\xff\xff\xff\xff",
        b"\x95" + b"\xff" * 8,
        b"\x8b\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\xff",
        b"Nr\xff\xff\xff\xff0" + b"\x8b\x00\x00\x01\x00" + b"\x01" * 65536,
    ],
)
def test_claimed_sizes_cost_nothing(program):
    tracemalloc.start()
    with pytest.raises(WeightsError):
        read(program + b"a.")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


DEPTH = 1_000_000


@pytest.mark.parametrize(
    "program",
    {
        "lists": b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
        "tuples": b")" + b"\x85" * DEPTH + b".",
        "marked tuples": b"(" * DEPTH + b"t" * DEPTH + b".",
        "dicts": b"N" + b"q\x00}K\x01h\x00s" * (DEPTH // 5) + b".",
        "keys": b")" + b"\x85q\x00}h\x00Ns" * (DEPTH // 5) + b".",
        "sets": b"(" * DEPTH + b"\x91" * DEPTH + b".",
        "calls": b")" + b"q\x000cx\ny\nh\x00\x85R" * (DEPTH // 5) + b".",
        "calls of calls": b"cx\ny\n" + b")R" * (DEPTH // 5) + b".",
        "states": b"N" + b"q\x000cx\ny\n)Rh\x00b" * (DEPTH // 5) + b".",
        "marks": b"(" * DEPTH + b".",
    }.items(),
    ids=lambda item: item[0],
)
def test_deep_nesting_neither_recurses_nor_crashes(program):
    try:
        unpickle(memoryview(program[1]))
    except WeightsError:
        assert program[0] == "marks"


@pytest.mark.parametrize(
    "program",
    {
        "instructions": b"N" + b"20" * 60_000 + b".",
        "dicts of a long list": b"]("
        + b"K\x01K\x02\x86" * 9000
        + b"eq\x000"
        + b"ccollections\nOrderedDict\nh\x00\x85R0" * 99,
        "long text": text("x" * 10**5) + b"q\x000" + b"c_codecs\nencode\nh\x00\x85R0" * 1000 + b".",
    }.items(),
    ids=lambda item: item[0],
)
def test_repeated_work_is_bounded(program, monkeypatch):
    monkeypatch.setattr("paddle_dense.files.unpickle._MAX_STEPS", 100_000)
    with pytest.raises(WeightsError, match="more instructions to read than"):
        unpickle(memoryview(program[1]))


def test_arrays_that_are_no_numbers_are_refused_when_asked_for():
    values = read(pickle.dumps([np.array([{}], object), np.array(["a"]), np.zeros(2, "c8"), np.zeros(2, "i4,f4")]))
    for lazy in values:
        with pytest.raises(WeightsError, match="values instead of numbers"):
            lazy.numpy()


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        (b"K\x03\x85", b"1234", "4 bytes where its shape"),
        (b"J\xff\xff\xff\xff\x85", b"1234", "no valid shape"),
        (b"K\x01", b"1234", "no valid shape"),
        (b"(" + b"K\x01" * 33 + b"t", b"1234", "no valid shape"),
        (b"(K\x00" + b"\x8a\x06\x00\x00\x00\x00\x00\x01" * 2 + b"t", b"", "impossible shape"),
        (b"\x88\x85", b"1234", "no valid shape"),
    ],
)
def test_arrays_whose_shape_does_not_fit(shape, data, message):
    state = b"(K\x01" + shape + b"cnumpy\ndtype\n" + text("f4") + b"\x85R\x89C" + bytes([len(data)]) + data + b"t"
    lazy = read(b"cnumpy._core.multiarray\n_reconstruct\n" + MADE + b"R" + state + b"b.")
    with pytest.raises(WeightsError, match=message):
        lazy.numpy()


def pickled_array(version=b"K\x01", fortran=b"\x89", order=b"(K\x03U\x01<", made=MADE) -> bytes:
    """A pickled array [2, 2] of the bytes 1, 2, 3, 4."""
    dtype = order + b"NNNK\x00K\x00K\x00t"
    state = b"(" + version + b"K\x02K\x02\x86cnumpy\ndtype\n" + text("u1") + b"\x89\x88\x87R" + dtype + b"b" + fortran
    return b"cnumpy.core.multiarray\n_reconstruct\n" + made + b"R" + state + b"U\x04\1\2\3\4tb."


@pytest.mark.parametrize(
    "other",
    [
        {"version": b"K\x21"},
        {"order": b"(K\x23U\x01<"},
        {"order": b"(K\x03U\x02<<"},
        {"made": b"cnumpy\nndarray\nK\x00\x85(K\x01K\x02K\x03K\x04K\x05t\x87"},
        {"made": b"cnumpy\nndarray\nK\x00\x85U\x04nameq\x07\x87"},
        {"made": b"K\x07K\x00\x85U\x01b\x87"},
        {"made": b"cnumpy\nndarray\nK\x00\x85U\x01b\x87", "version": b"]K\x01\x85R"},
    ],
    ids=["version", "version of the dtype", "byte order", "what is made", "a name", "of what kind", "a call of a list"],
)
def test_arrays_that_numpy_would_not_read(other):
    """A flipped bit that numpy trips over had been passed over, and with it that of a number next to it."""
    with pytest.raises((ValueError, TypeError)):
        pickle.loads(pickled_array(**other))
    with pytest.raises(WeightsError):
        read(pickled_array(**other)).numpy()


@pytest.mark.parametrize("program", [b"}" + pickled_array()[:-1] + b"Ns.", b"Nr\xff\xff\xff\x7f."])
def test_keys_and_numbers_of_the_memo_that_pickle_trips_over(program):
    """It cannot hash the first, and for the second it wants 32 GB."""
    with pytest.raises(WeightsError, match="makes no sense"):
        read(program)


@pytest.mark.parametrize("digits", [b"012", b"-012", b"+1", b" 1", b"-0", b"1_0", b"000", b"", b"12LL"])
@pytest.mark.parametrize("instruction", [b"I", b"L"])
def test_integers_that_pickle_does_not_write(instruction, digits):
    """Of `I`, pickle in C takes 012 for 10, +1 for True and -0 for False; of `L` it refuses the first."""
    assert read(instruction + b"-12\n.") == -12
    with pytest.raises(WeightsError, match="makes no sense"):
        read(instruction + digits + b"\n.")


def test_a_frame_in_a_frame():
    """A flipped bit of a frame's length had been passed over."""
    program = pickle.dumps([str(number) * 1000 for number in range(100)], 4)
    damaged = bytearray(program)
    damaged[3] += 1  # the length of the first frame
    assert program.count(b"\x95") > 1 and read(program) == pickle.loads(program)
    with pytest.raises(WeightsError, match="makes no sense"):
        read(bytes(damaged))


def test_a_dtype_that_changes_under_an_array_is_refused():
    dtype = b"cnumpy\ndtype\n" + text("u2") + b"\x89\x88\x87Rq\x07"
    state = b"(K\x01K\x02\x85" + dtype + b"\x89U\x04\1\2\3\4tb"
    changed = b"h\x07(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + MADE + b"R" + state
    assert read(array + b".").numpy().tolist() == [0x201, 0x403]
    with pytest.raises(WeightsError, match="makes no sense"):
        read(b"](" + array + changed + b"e.")


def test_a_shape_that_can_grow_after_the_array_was_made_is_refused():
    state = b"(K\x01]K\x02acnumpy\ndtype\n" + text("u2") + b"\x89\x88\x87R\x89U\x04\1\2\3\4tb."
    with pytest.raises(WeightsError, match="no valid shape"):
        read(b"cnumpy.core.multiarray\n_reconstruct\n" + MADE + b"R" + state).numpy()


@pytest.mark.parametrize(
    "kind",
    [
        *("collections OrderedDict", "collections Counter", "collections defaultdict"),
        *("builtins dict", "builtins list", "builtins set", "builtins bytearray"),
    ],
)
def test_new_containers_are_empty(kind):
    """NEWOBJ does not call __init__, which would put something into them."""
    made = b"c" + kind.replace(" ", "\n").encode() + b"\n"
    items = b"](K\x01K\x02\x86K\x03K\x04\x86e\x85"
    assert len(pickle.loads(b"\x80\x02" + made + items + b"\x81.")) == 0
    assert len(read(made + b")\x81.")) == 0
    with pytest.raises(WeightsError, match="makes no sense"):
        read(made + items + b"\x81.")


def test_a_counter_counts_what_is_no_dict():
    assert read(pickle.dumps(collections.Counter("aab"))) == {"a": 2, "b": 1}
    pairs = b"ccollections\nCounter\n](" + text("a") + b"K\x07\x86e\x85R."
    assert pickle.loads(pairs) == {("a", 7): 1}
    with pytest.raises(WeightsError, match="makes no sense"):
        read(pairs)


def test_a_state_is_taken_once_and_as_it_was():
    state = b"}" + text("a") + b"K\x01sq\x07"
    grown = read(b"](cargparse\nNamespace\n)\x81" + state + b"bh\x07" + text("b") + b"K\x02se.")
    assert grown[0].state == {"a": 1} and grown[1] == {"a": 1, "b": 2}
    with pytest.raises(WeightsError, match="makes no sense"):
        read(b"cargparse\nNamespace\n)\x81" + state + b"bh\x07b.")


@pytest.mark.parametrize("fortran", [b"K\x00", b"K\x01", b"K\x05", b"\x88", b"\x89"])
def test_the_order_of_an_array_is_numpys(fortran):
    expected = pickle.loads(b"\x80\x02" + pickled_array(fortran=fortran)).tolist()
    assert read(pickled_array(fortran=fortran)).numpy().tolist() == expected


def test_an_array_without_content():
    with pytest.raises(WeightsError, match="has no content"):
        read(b"cnumpy.core.multiarray\n_reconstruct\n" + MADE + b"R.").numpy()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damaged_pickles_end_in_one_kind_of_error(protocol):
    saved = {"state_dict": {"w": np.ones((2, 3), "f4"), "n": np.int64(3)}, "args": argparse.Namespace(a=1), "s": {1}}
    program = pickle.dumps(saved, protocol)
    for end in range(len(program)):
        with pytest.raises(WeightsError):
            read(program[:end])
    for changed in damaged(program):
        try:
            value, _ = unpickle(memoryview(changed))
        except WeightsError:
            continue
        state = value.get("state_dict") if isinstance(value, dict) else None
        for lazy in state.values() if isinstance(state, dict) else ():
            if isinstance(lazy, Lazy):
                with suppress(WeightsError):
                    lazy.numpy()
