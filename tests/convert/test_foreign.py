"""Files that are no weights: one sentence says what they are and what to do, with either command."""

from __future__ import annotations

import bz2
import lzma

import pytest

from paddle_dense.errors import WeightsError
from paddle_dense.files import open_weights, read_weights

FILES = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 32342954\n", "git lfs pull"),
    "a page": (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>", "a web page that was saved"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5 file, as Keras writes"),
    "bzip2": (bz2.compress(b"x"), "compressed with bzip2: unpack it"),
    "xz": (lzma.compress(b"x"), "compressed with xz: unpack it"),
    "TensorFlow's list": (b'model_checkpoint_path: "model.ckpt-1"\n', "a TensorFlow run's checkpoints"),
    "TensorFlow's index": (b"\0\0\1" * 20 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "index of a TensorFlow checkpoint"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(64), "a TensorFlow Lite model"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("name", ["net.pth", "net.pdparams", "net"])
def test_what_it_is_and_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for framework in (None, "pytorch", "paddle"):
        with pytest.raises(WeightsError, match=message) as caught:
            open_weights(tmp_path / name, framework)
        assert str(caught.value).startswith(f"{tmp_path / name}: is ") and "\n" not in str(caught.value)


def test_exported_programs(tmp_path):
    torch = pytest.importorskip("torch", reason="writes the file")
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.randn(1, 3),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(WeightsError, match=r"a program of torch.export \(.pt2\): load it with torch.export.load and"):
        open_weights(tmp_path / "net.pt2")


def test_paddles_own_exports(tmp_path):
    paddle = pytest.importorskip("paddle")
    layer = paddle.nn.Linear(3, 2)
    paddle.jit.save(layer, str(tmp_path / "net"), [paddle.static.InputSpec([None, 3])])
    with pytest.raises(WeightsError, match=r"is Paddle's \.pdiparams, .* give the \.pdparams file"):
        read_weights(tmp_path / "net.pdiparams")


def test_onnx(tmp_path):
    torch = pytest.importorskip("torch", reason="exports the file")
    pytest.importorskip("onnx", reason="exports the file: pip install onnx onnxscript")
    pytest.importorskip("onnxscript", reason="exports the file: pip install onnx onnxscript")
    torch.onnx.export(torch.nn.Linear(3, 2), (torch.randn(1, 3),), str(tmp_path / "net.onnx"), dynamo=True)
    with pytest.raises(WeightsError, match="is an ONNX model"):
        open_weights(tmp_path / "net.onnx")
