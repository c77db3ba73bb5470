"""Weight files: what is written is what is read, by this package and by Paddle, whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest

from paddle_dense.errors import WeightsError
from paddle_dense.files.weights import atomic_write, read_weights, write_weights
from tests.helpers import damaged

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = [".pdparams", ".safetensors"]


def example_state() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    conv = generator.standard_normal((8, 4, 3, 3)).astype("f4")
    return {
        "features.conv.weight": conv,
        "transposed": conv.T,
        "sliced": conv[:, 1:3, ::2],
        "fortran": np.asfortranarray(conv[:, :, 0, 0]),
        "one": np.array(1.5, "f4"),
        "empty": np.zeros((0, 3), "f4"),
        "index": np.arange(7)[::-1],
        "mask": conv[0, 0] > 0,
        "double": generator.standard_normal(5),
        "half": conv[0].astype("f2"),
        "big-endian": np.arange(3, dtype=">i4"),
        "bytes": np.arange(4, dtype="u1"),
        "short": np.arange(-4, 4, dtype="i2").reshape(2, 2, 2),
        "signed": np.arange(-4, 4, dtype="i1"),
        "名字.weight": np.float32([np.nan, np.inf, -0.0, 1e-45]),
    }


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert set(left) == set(right)
    for name, expected in right.items():
        assert left[name].shape == expected.shape, name
        assert left[name].dtype == expected.dtype.newbyteorder("="), name
        assert left[name].tobytes() == expected.astype(left[name].dtype).tobytes(), name


# Both formats


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_what_is_read(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    write_weights(example_state(), path)
    assert_same(read_weights(path), example_state())
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_tensors_at_all(tmp_path, suffix):
    write_weights({}, tmp_path / f"none{suffix}")
    assert read_weights(tmp_path / f"none{suffix}") == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_can_be_changed_without_changing_the_file(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    write_weights({"w": np.zeros(5, "f4")}, path)
    read_weights(path)["w"][:] = 7
    assert not read_weights(path)["w"].any()


def test_a_file_can_be_replaced_while_its_arrays_are_in_use(tmp_path):
    path = tmp_path / "net.pdparams"
    write_weights({"w": np.ones(50_000, "f4")}, path)
    state = read_weights(path)
    write_weights({"w": state["w"] * 2}, path)
    assert (state["w"] == 1).all() and (read_weights(path)["w"] == 2).all()


def test_the_content_decides_and_not_the_suffix(tmp_path):
    for written, name in zip(SUFFIXES, ["a.safetensors", "b.pdparams"]):
        write_weights({"w": np.arange(3)}, tmp_path / f"net{written}")
        os.replace(tmp_path / f"net{written}", tmp_path / name)
        assert_same(read_weights(tmp_path / name), {"w": np.arange(3)})


@pytest.mark.parametrize(
    ("state", "name", "message"),
    [
        ({"w": np.zeros(2, "c8")}, "a.pdparams", "'w' of dtype complex64"),
        ({"w": np.array([None])}, "a.safetensors", "'w' of dtype object"),
        ({"w": np.zeros(2, "u2")}, "a.pdparams", "'w' of dtype uint16"),
        ({"w": [1.0, 2.0]}, "a.pdparams", "cannot hold list 'w'"),
        ({3: np.zeros(2)}, "a.pdparams", "named 3"),
        ({"\ud800": np.zeros(2)}, "a.safetensors", r"named '\\ud800'"),
        ({"__metadata__": np.zeros(2)}, "a.safetensors", "rename it"),
        ({"w": np.zeros(2)}, "a.pth", "end the name in .pdparams or .safetensors"),
        ({"w": np.zeros(2)}, "nowhere/a.pdparams", "create the folder first"),
        ({"w": np.zeros(2)}, "file/a.pdparams", "cannot be written"),
        ({"w": np.zeros(2)}, "folder.pdparams", "give the name of a file"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, state, name, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pdparams").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsError, match=message) as caught:
        write_weights(state, tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


# Writing in one piece


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("old")
    for stop in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(stop), atomic_write(path) as file:
            file.write(b"half of the new")
            raise stop
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["record.json"]
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["record.json"]


def test_permissions_follow_the_users_choice_and_links_are_kept(tmp_path):
    target, link = tmp_path / "real.pdparams", tmp_path / "link.pdparams"
    write_weights({}, target)
    (tmp_path / "plain").write_text("")
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    link.symlink_to(target)
    write_weights({"w": np.ones(2)}, link)
    assert link.is_symlink() and set(read_weights(target)) == {"w"}


def test_errors_of_other_files_are_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.json"):
        (tmp_path / "other").read_bytes()
    assert os.listdir(tmp_path) == []


LIMITED = """
import resource, sys
import numpy as np
from paddle_dense.errors import WeightsError
from paddle_dense.files.weights import write_weights
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_weights({"w": np.zeros(10**6)}, sys.argv[1])
except WeightsError as error:
    print(error)
"""


def run_python(program: str, *arguments: object) -> str:
    """Runs a program in a process of its own, with this package importable, and returns what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as POSIX does")
def test_a_disk_that_takes_no_more(tmp_path):
    path = tmp_path / "net.pdparams"
    write_weights({"w": np.ones(3)}, path)
    assert "cannot be written (File too large)" in run_python(LIMITED, path)
    assert_same(read_weights(path), {"w": np.ones(3)})
    assert os.listdir(tmp_path) == ["net.pdparams"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_must_not_be_written_to(tmp_path):
    program = """
    import os, sys
    import numpy as np
    from paddle_dense.errors import WeightsError
    from paddle_dense.files.weights import write_weights
    os.chdir(sys.argv[1])
    os.chmod(".", 0o555)
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    try:
        write_weights({"w": np.zeros(3)}, "net.pdparams")
    except WeightsError as error:
        print(error)
    """
    said = run_python(program, tmp_path)
    tmp_path.chmod(0o755)
    assert said == "net.pdparams: cannot be written (Permission denied): choose a folder that you may write to\n"
    assert os.listdir(tmp_path) == []


# .pdparams


def layer(paddle):
    network = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Linear(5, 2))
    for value in network.state_dict().values():
        value.set_value(paddle.rand(value.shape))
    return network


def numpy_state(network) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in network.state_dict().items()}


def test_paddle_reads_what_is_written(tmp_path):
    paddle = pytest.importorskip("paddle", reason="Paddle reads the file")
    state = example_state()
    path = str(tmp_path / "net.pdparams")
    write_weights(state, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*numpy.core.*")
        assert_same(paddle.load(path, return_numpy=True), state)
        tensors = paddle.load(path)
    assert all(isinstance(tensor, paddle.Tensor) for tensor in tensors.values())
    assert_same({name: tensor.numpy() for name, tensor in tensors.items()}, state)


def test_a_paddle_network_takes_what_is_written(tmp_path):
    paddle = pytest.importorskip("paddle", reason="Paddle reads the file")
    source, target = layer(paddle), layer(paddle)
    write_weights(numpy_state(source), tmp_path / "net.pdparams")
    assert not any(np.array_equal(*pair) for pair in zip(numpy_state(source).values(), numpy_state(target).values()))
    target.set_state_dict(paddle.load(str(tmp_path / "net.pdparams")))
    assert_same(numpy_state(target), numpy_state(source))


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_what_paddle_saves(tmp_path, protocol, wrap):
    paddle = pytest.importorskip("paddle", reason="Paddle writes the file")
    network, path = layer(paddle), str(tmp_path / "net.pdparams")
    saved = {wrap: network.state_dict(), "epoch": 3, "opt": {"lr": 0.1}} if wrap else network.state_dict()
    paddle.save(saved, path, protocol=protocol)
    assert_same(read_weights(path), numpy_state(network))
    assert list(read_weights(path)) == list(network.state_dict())


def test_what_paddle_saves_as_safetensors(tmp_path):
    paddle = pytest.importorskip("paddle", reason="Paddle writes the file")
    pytest.importorskip("safetensors", reason="Paddle writes the file with it")
    state = {**layer(paddle).state_dict(), "low": paddle.rand([3]).astype("bfloat16")}
    try:
        paddle.save(state, str(tmp_path / "net.safetensors"), safetensors=True)
    except ValueError:
        pytest.skip("Paddle 2 does not write safetensors")
    expected = {name: value.astype("float32").numpy() for name, value in state.items()}
    assert_same(read_weights(tmp_path / "net.safetensors"), expected)


@pytest.mark.parametrize("protocol", [2, 4])
def test_bfloat16_becomes_float32(tmp_path, protocol):
    paddle = pytest.importorskip("paddle", reason="Paddle writes the file")
    low = paddle.to_tensor(np.float32([1, -2.5, 3e38, 1e-30])).astype("bfloat16")
    paddle.save({"low": low}, str(tmp_path / "low.pdparams"), protocol=protocol)
    assert_same(read_weights(tmp_path / "low.pdparams"), {"low": low.astype("float32").numpy()})


def dump(value: object, path: Path, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def test_large_parameters_in_slices(tmp_path):
    parts = np.arange(12, dtype="f4")
    saved = {"a": np.ones(2, "f4"), "w@@.0": parts[:7], "w@@.1": parts[7:], "StructuredToParameterName@@": {"w": "x"}}
    saved["UnpackBigParamInfor@@"] = {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}}
    expected = {"a": np.ones(2, "f4"), "w": parts.reshape(3, 4)}
    assert_same(read_weights(dump(saved, tmp_path / "big.pdparams", 2)), expected)
    for shape, slices in [((3, 5), ["w@@.0", "w@@.1"]), ((3, 4), ["w@@.0", "w@@.2"]), ((14,), ["w@@.0"] * 2)]:
        saved["UnpackBigParamInfor@@"] = {"w": {"OriginShape": shape, "slices": slices}}
        with pytest.raises(WeightsError, match="slices of a large tensor"):
            read_weights(dump(saved, tmp_path / "big.pdparams", 2))


class Unknown:
    """Stands for any object of a training script."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([np.zeros(2)], "a list instead of tensors"),
        (np.zeros(2), "a tensor instead of tensors by name"),
        ({"w": np.zeros(2), "opt": {"a": np.zeros(2)}}, "a dict under 'opt'"),
        ({"a": {"w": np.zeros(2)}, "b": {"w": np.zeros(2)}}, "a dict under 'a'"),
        ({"w": np.zeros(2), "x": Unknown()}, "Unknown' object under 'x'"),
        ({0: np.zeros(2)}, "under 0 instead of a name"),
        ({(0, 1): np.zeros(2)}, "under a Key instead of a name"),
        ({"w": np.array([{}])}, "tensor 'w' holds 'O8?' values"),
        ({"n" * 500 + "\n": np.array(["a"])}, r"tensor 'n{80}'\.\.\. \(501 characters\) holds 'U1' values"),
        ({"a\nb\x1b[2J": np.array(["a"])}, r"tensor 'a\\nb\\x1b\[2J' holds"),
    ],
)
def test_pickles_of_something_else(tmp_path, value, message):
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(dump(value, tmp_path / "x.pdparams"))
    assert str(caught.value).startswith(str(tmp_path / "x.pdparams")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page that was saved in place of the file"),
        (b"PK\x03\x04" + b"\0" * 40, "is a PyTorch checkpoint"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2), "is a PyTorch checkpoint"),
        (pickle.dumps({"w": 1}, 2) + b"more", "goes on for 4 bytes after its end"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    (tmp_path / "x.pdparams").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "x.pdparams")


def test_no_file(tmp_path):
    with pytest.raises(WeightsError, match=r"No such file or directory\): check the path"):
        read_weights(tmp_path / "none.pdparams")
    with pytest.raises(WeightsError, match="is not a file"):
        read_weights(tmp_path)


def test_one_array_under_many_names_cannot_fill_the_memory(tmp_path):
    array = np.zeros(100_000, "f4")
    path = dump({f"w{index}": array for index in range(1000)}, tmp_path / "x.pdparams")
    with pytest.raises(WeightsError, match=r"tensor 'w\d+' repeats data that the file holds once"):
        read_weights(path)


# .safetensors


@pytest.mark.parametrize("metadata", [None, {"source": 'a "quoted" name\n'}])
def test_the_safetensors_library_writes_the_same_bytes(tmp_path, metadata):
    library = pytest.importorskip("safetensors.numpy", reason="compares with the safetensors library")
    state = {name: array for name, array in example_state().items() if name != "big-endian"}
    state.update(wide=np.arange(3, dtype="u8"), middle=np.arange(3, dtype="u4"), narrow=np.arange(3, dtype="u2"))
    contiguous = {name: array.copy(order="C") for name, array in state.items()}
    write_weights(state, tmp_path / "net.safetensors", metadata)
    assert (tmp_path / "net.safetensors").read_bytes() == library.save(contiguous, metadata)
    assert_same(library.load_file(tmp_path / "net.safetensors"), state)


def test_metadata_is_text_and_for_safetensors_only(tmp_path):
    with pytest.raises(WeightsError, match="metadata of texts only"):
        write_weights({}, tmp_path / "a.safetensors", {"epoch": 3})
    with pytest.raises(WeightsError, match="file instead"):
        write_weights({}, tmp_path / "a.pdparams", {"epoch": "3"})
    assert os.listdir(tmp_path) == []


def safetensors_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: object = (1,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 4), "b": entry(4, 8)}, b"1234", "'b' at bytes 4 to 8 of 4, not at 4"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"123456", "'b' at bytes 2 to 6 of 6, not at 4"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, b"1234", "'b' at bytes 0 to 4 of 4, not at 4"),
        ({"a": entry(4, 8)}, b"12345678", "'a' at bytes 4 to 8 of 8, not at 0"),
        ({"a": entry(0, 4)}, b"12345678", "4 bytes that belong to no tensor"),
        ({"a": entry(0, 4, [2])}, b"1234", r"tensor 'a' has 4 bytes where its shape \[2\] needs 8"),
        ({"a": entry(0, 4, [2**62, 2**62])}, b"1234", "impossible shape"),
        ({"a": entry(0, 4, [-1])}, b"1234", "no valid shape"),
        ({"a": entry(0, 4, 1)}, b"1234", "no valid shape"),
        ({"a": entry(0, 4, [True])}, b"1234", "no valid shape"),
        ({"a": entry(0, 4, [1.0])}, b"1234", "no valid shape"),
        ({"a": entry(4, 0)}, b"1234", "does not say where"),
        ({"a": entry(-4, 0)}, b"1234", "does not say where"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"1234", "does not say where"),
        ({"a": entry(0, 4, [4], "F8_E4M3")}, b"1234", "'a' of dtype 'F8_E4M3'"),
        ({"a": entry(0, 4, [1], ["F32"])}, b"1234", "'a' of dtype a list"),
        ({"a": 1}, b"", "no valid safetensors header"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', b"1234", "no valid safetensors header"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234", "no valid safetensors"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 99_999 + b'],"data_offsets":[0,4]}}', b"1234", "impossible shape"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "no valid safetensors header"),
        (b'{"a', b"", "no valid safetensors header"),
        (b'{"\xff":1}', b"", "no valid safetensors header"),
        (b"[]", b"", "no valid safetensors header"),
    ],
)
def test_safetensors_files_that_break_a_rule(tmp_path, header, data, message):
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(safetensors_file(tmp_path / "x.safetensors", header, data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [10**18, 100_000_001, 2**64 - 1, 3])
def test_safetensors_headers_longer_than_the_file(tmp_path, length):
    path = safetensors_file(tmp_path / "x.safetensors", {"a": entry(0, 4)}, b"1234", length)
    with pytest.raises(WeightsError, match="header"):
        read_weights(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_end_in_one_kind_of_error(tmp_path, suffix):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"x{suffix}"
    write_weights({"w": np.ones((2, 3), "f4"), "mask": np.ones(3, bool), "n": np.arange(2)}, whole)
    content = whole.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(WeightsError):
            read_weights(path)
    for changed in damaged(content):
        path.write_bytes(changed)
        try:
            state = read_weights(path)
        except WeightsError:
            continue
        assert all(isinstance(array, np.ndarray) for array in state.values())


# Cost and independence


def test_reading_needs_neither_framework():
    program = """
    import sys
    import paddle_dense.files.opened
    print(sorted({"torch", "paddle"} & set(sys.modules)))
    """
    assert run_python(program).strip() == "[]"
