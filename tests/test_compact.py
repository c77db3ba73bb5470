"""Files with SFR's indices in the compact form: the same tensors to every reader here, and refused where damaged."""

import json
import re
import shutil

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

import paddle_dense as pd_
from convert.paddle2torch import main as paddle2torch
from convert.parity.__main__ import main as parity
from convert.torch2paddle import main as torch2paddle
from paddle_dense.__main__ import main as paddle_dense
from paddle_dense.errors import WeightsError
from paddle_dense.files.compact import compacted, saved_bytes
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.files.weights import encoded_weights, read_weights, write_weights
from tests.helpers import answers, random_images

FORMATS = ("pdparams", "safetensors")
INDEX = "features.denseblock_1.denselayer_1.sfr.index"
CONVERTED = "cdnv2_tiny_converted.pth"


def assert_same_bits(found, expected):
    # The safetensors library puts tensors of one dtype together.
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.fixture
def both(data, tmp_path):
    """The same checkpoint as a usual and as a compact Paddle file of one format."""

    def convert(suffix):
        source = tmp_path / CONVERTED
        shutil.copy(data / CONVERTED, source)
        usual, compact = tmp_path / f"usual.{suffix}", tmp_path / f"compact.{suffix}"
        pytest.importorskip("torch", reason="converts PyTorch checkpoints: pip install torch")
        assert torch2paddle([str(source), "-o", str(usual)]) == 0
        assert torch2paddle([str(source), "-o", str(compact), "--compact"]) == 0
        return usual, compact

    return convert


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_reader_gets_the_same_tensors(both, suffix, tmp_path, data, capsys):
    usual, compact = both(suffix)
    expected = read_weights(usual)
    assert compact.stat().st_size < 0.9 * usual.stat().st_size
    assert_same_bits(read_weights(compact), expected)

    models = [pd_.load_model(usual), pd_.load_model(compact)]
    found, wanted = ({name: x.numpy() for name, x in model.state_dict().items()} for model in models[::-1])
    assert_same_bits(found, wanted)
    fresh = type(models[0])(**models[0].config)
    pd_.load_weights(fresh, compact)
    x = random_images(2, 3, 64, 64)
    np.testing.assert_array_equal(answers(fresh, x), answers(models[0], x))

    assert paddle2torch([str(compact), "-o", str(tmp_path / "back.pth")]) == 0
    assert_same_bits(read_checkpoint(tmp_path / "back.pth").state, read_checkpoint(data / CONVERTED).state)
    assert parity([str(compact), "--steps", "0"]) == 0
    capsys.readouterr()
    assert paddle_dense(["info", "--json", str(compact)]) == 0
    assert json.loads(capsys.readouterr().out)["arch"] == models[0].arch
    assert paddle_dense(["deploy", str(compact), "-o", str(tmp_path / "fast"), "--size", "32"]) == 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_other_readers_find_in_the_file(both, suffix):
    usual, compact = both(suffix)
    if suffix == "pdparams":
        raw = paddle.load(str(compact))
        raw = {name: np.asarray(value) for name, value in raw.items()}
    else:
        raw = pytest.importorskip("safetensors.numpy").load_file(compact)
    matrix = read_weights(usual)[INDEX]
    targets = raw[f"{INDEX}@one-hot-{matrix.shape[1]}"]
    assert INDEX not in raw
    assert (targets.dtype, targets.shape) == (np.int32, matrix.shape[:1])
    np.testing.assert_array_equal(targets, matrix.argmax(axis=1))


def test_the_sidecar_does_not_depend_on_the_form(both):
    usual, compact = (json.loads(path.with_suffix(".json").read_text()) for path in both("pdparams"))
    assert usual["tensors_sha256"] == compact["tensors_sha256"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_save_weights(tmp_path, suffix, tiny):
    model = pd_.CondenseNetV2(**tiny)
    pd_.save_weights(model, tmp_path / f"a.{suffix}")
    pd_.save_weights(model, tmp_path / f"b.{suffix}", compact=True)
    sizes = [(tmp_path / f"{name}.{suffix}").stat().st_size for name in "ab"]
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert sizes[0] - sizes[1] == pytest.approx(saved_bytes(state), rel=0.01)
    assert_same_bits(read_weights(tmp_path / f"b.{suffix}"), read_weights(tmp_path / f"a.{suffix}"))
    # Written again in the usual form, it is what it would have been.
    pd_.save_weights(pd_.load_model(tmp_path / f"b.{suffix}"), tmp_path / f"c.{suffix}")
    assert (tmp_path / f"c.{suffix}").read_bytes() == (tmp_path / f"a.{suffix}").read_bytes()


ROWS = np.eye(5, dtype="float32")[[0, 4, 4, 1]]


@pytest.mark.parametrize(
    "change",
    [
        {"index": np.zeros((4, 5), "f4")},
        {"index": 2 * ROWS},
        {"index": ROWS.astype("f8")},
        {"index": ROWS + 0.0 * np.nan},
        {"index": np.where(ROWS == 0, -0.0, ROWS).astype("f4")},
        {"index": np.arange(4)},
        {"index": np.zeros((0, 5), "f4")},
        {"weight": ROWS},
    ],
)
def test_what_is_no_index_stays_as_it_is(change):
    state = {"sfr.index": ROWS, **{f"layer.{name}": array for name, array in change.items()}}
    found = compacted(state)
    assert list(found) == ["sfr.index@one-hot-5", *list(state)[1:]]
    assert all(found[name] is state[name] for name in list(state)[1:])


def test_the_largest_indices_stay_as_they_are(tmp_path):
    """A file grows by 64 times at most, so that a small one cannot fill the memory."""
    state = {"index": np.eye(1000, dtype="float32")}
    assert list(compacted(state)) == ["index"]
    state["weight"] = np.zeros(20_000, "float32")
    write_weights(compacted(state), tmp_path / "net.pdparams")
    assert (tmp_path / "net.pdparams").stat().st_size < 100_000
    assert_same_bits(read_weights(tmp_path / "net.pdparams"), state)


INT = np.array([0, 2, 2], "int32")
OTHER = np.zeros(3, "float32")
BAD = {
    "out of range": ({"a.index@one-hot-2": INT}, "2 in row 1, where 0 to 1 exist"),
    "negative": ({"a.index@one-hot-3": -INT}, "-2 in row 1"),
    "int64": ({"a.index@one-hot-3": INT.astype("int64")}, r"as int64 \[3\]"),
    "floats": ({"a.index@one-hot-3": INT.astype("float32")}, r"as float32 \[3\]"),
    "a matrix": ({"a.index@one-hot-3": INT.reshape(3, 1)}, r"as int32 \[3, 1\]"),
    "a number": ({"a.index@one-hot-3": np.array(1, "int32")}, r"as int32 \[\]"),
    "before the matrix": ({"a.index@one-hot-3": INT, "a.index": np.eye(3, dtype="float32")}, "under two names"),
    "after the matrix": ({"a.index": np.eye(3, dtype="float32"), "a.index@one-hot-3": INT}, "under two names"),
    "twice": ({"a.index@one-hot-3": INT, "a.index@one-hot-4": INT}, "under two names"),
    "huge": ({"a.index@one-hot-9999999": INT}, "more than 64 times the size of the file"),
    "many": ({f"a{n}.index@one-hot-9999": INT for n in range(9)}, "more than 64 times the size of the file"),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("what", BAD)
def test_a_bad_index_is_refused_in_one_sentence(tmp_path, what, suffix):
    state, said = BAD[what]
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(b"".join(encoded_weights({**state, "weight": OTHER}, path)))
    with pytest.raises(WeightsError, match=said) as error:
        read_weights(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("columns", "rows", "said"),
    [
        (16, 3, "sfr.index@one-hot-16' with 3 rows for a convolution with 16"),
        (16, 17, "with 17 rows for a convolution with 16"),
        (9, 16, r"sfr.index' is \[16, 9\] and CondenseNetV2 needs \[16, 16\]"),
        (0, 16, "sfr.index@one-hot-0' as int32"),
        ("08", 16, "sfr.index@one-hot-08' as int32"),
        ("", 16, "sfr.index@one-hot-' as int32"),
    ],
)
def test_an_index_of_another_size_is_refused(tmp_path, tiny, columns, rows, said, capsys):
    state = compacted({name: tensor.numpy() for name, tensor in pd_.CondenseNetV2(**tiny).state_dict().items()})
    [old] = [name for name in state if name.startswith(INDEX)]
    del state[old]
    path = tmp_path / "net.pdparams"
    write_weights({**state, f"{INDEX}@one-hot-{columns}": np.zeros(rows, "int32")}, path)
    assert paddle2torch([str(path)]) == 1
    assert not (tmp_path / "net.pth").exists()
    [message] = capsys.readouterr().err.splitlines()
    assert re.search(said, message)


def test_indices_larger_than_the_free_memory_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "net.pdparams"
    write_weights({"a.index@one-hot-1000": INT, "weight": np.zeros(1000, "float32")}, path)
    monkeypatch.setattr("paddle_dense.files.weights.free_memory", lambda: 9000.0)
    with pytest.raises(WeightsError, match="more memory than is free"):
        read_weights(path)


def test_a_training_checkpoint_keeps_its_indices_compact(tmp_path, tiny):
    from paddle_dense.training import Checkpoints
    from paddle_dense.training.resume import newest, saved_checkpoints

    network = pd_.CondenseNetV2(**tiny)
    model = paddle.Model(network)
    model.prepare(paddle.optimizer.Momentum(0.1, parameters=network.parameters()), paddle.nn.CrossEntropyLoss())
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.set_model(model)
    checkpoints.save()
    [path] = saved_checkpoints(tmp_path)
    state = {f"network.{name}": tensor.numpy() for name, tensor in network.state_dict().items()}
    assert path.stat().st_size < 1.2 * (sum(array.nbytes for array in state.values()) - saved_bytes(state)) + 100_000
    found = newest(tmp_path).build_network()
    assert_same_bits(
        {name: tensor.numpy() for name, tensor in found.state_dict().items()},
        {name: tensor.numpy() for name, tensor in network.state_dict().items()},
    )


def test_the_command_tells_what_the_indices_take(data, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="converts PyTorch checkpoints: pip install torch")
    monkeypatch.setattr("convert.command._WORTH_SAVING", 1)
    source = str(data / CONVERTED)
    assert torch2paddle([source, "-o", str(tmp_path / "a.pdparams")]) == 0
    assert "MB are SFR's indices" in capsys.readouterr().out
    assert torch2paddle([source, "-o", str(tmp_path / "b.pdparams"), "--compact"]) == 0
    assert "indices" not in capsys.readouterr().out
