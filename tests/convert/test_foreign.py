"""Files that are no weights: one sentence says what they are and what to do, with either command."""

from __future__ import annotations

import bz2
import lzma
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from convert import torch2paddle
from paddle_dense.commands import info
from paddle_dense.errors import WeightsError
from paddle_dense.files import open_weights, read_checkpoint, read_weights

FILES = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 32342954\n", "git lfs pull"),
    "a page": (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>", "a web page that was saved"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5 file, as Keras writes"),
    "bzip2": (bz2.compress(b"x"), "compressed with bzip2: unpack it"),
    "xz": (lzma.compress(b"x"), "compressed with xz: unpack it"),
    "TensorFlow's list": (b'model_checkpoint_path: "model.ckpt-1"\n', "a TensorFlow run's checkpoints"),
    "TensorFlow's index": (b"\0\0\1" * 20 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "index of a TensorFlow checkpoint"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(64), "a TensorFlow Lite model"),
    "a sidecar": (b'{\n  "arch": "densenet121"\n}\n', "is JSON and holds no tensors: give the weight file"),
    "Paddle 3's program": (b'{"base_code":{"magic":"pir","version":1}}', "a program that Paddle 3 exported: give the"),
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


def test_onnx_of_onnxs_own_helpers(tmp_path):
    onnx = pytest.importorskip("onnx", reason="writes the file: pip install onnx")
    shape = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", shape[:1], shape[1:])
    for name in ("", "p", "a producer whose name takes more than the forty letters of most"):
        onnx.save(onnx.helper.make_model(graph, producer_name=name), str(tmp_path / "net.onnx"))
        with pytest.raises(WeightsError, match="is an ONNX model"):
            open_weights(tmp_path / "net.onnx")


def test_paddles_programs(tmp_path):
    """As Paddle 2 and 3 write them; a process of its own, since Paddle chooses between them once."""
    paddle = pytest.importorskip("paddle")
    export = (
        "import paddle\n"
        "spec = [paddle.static.InputSpec([None, 3])]\n"
        f"paddle.jit.save(paddle.nn.Linear(3, 2), {str(tmp_path / 'net')!r}, spec)\n"
    )
    forms = ("0",) if paddle.__version__.startswith("2.") else ("0", "1")  # Paddle 2.6 ends in a crash with the new one
    for pir in forms:
        code = f"import os\nos.environ['FLAGS_enable_pir_api'] = {pir!r}\n{export}"
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
    programs = [path for path in tmp_path.iterdir() if path.suffix in (".pdmodel", ".json")]
    assert len(programs) == len(forms)
    for path in programs:
        for framework in (None, "pytorch", "paddle"):
            with pytest.raises(WeightsError, match=r"a program that Paddle.* exported.*: give the \.pdparams file"):
                open_weights(path, framework)


@pytest.mark.parametrize("kind", ["Momentum", "Adam", "AdamW", "RMSProp", "Adagrad", "Adadelta", "Adamax", "Lamb"])
def test_paddles_optimizers(tmp_path, kind):
    paddle = pytest.importorskip("paddle")
    named = paddle.nn.Linear(3, 2, weight_attr=paddle.ParamAttr(f"own {kind}"), bias_attr=False)
    for layer in (paddle.nn.Linear(3, 2), named):
        optimizer = getattr(paddle.optimizer, kind)(0.1, parameters=layer.parameters())
        layer(paddle.ones([1, 3])).sum().backward()
        optimizer.step()
        if layer is named and kind not in ("Momentum", "Adam", "AdamW"):
            continue
        paddle.save(optimizer.state_dict(), str(tmp_path / "net.pdopt"))
        for framework in (None, "paddle"):
            with pytest.raises(WeightsError, match=r"is the state of Paddle's optimizer: give the \.pdparams file"):
                open_weights(tmp_path / "net.pdopt", framework)
        paddle.save(layer.state_dict(), str(tmp_path / "net.pdparams"))
        assert open_weights(tmp_path / "net.pdparams").tensors.keys() == layer.state_dict().keys()


def test_folders(tmp_path):
    with pytest.raises(WeightsError, match="is not a file: give the weight file itself"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(WeightsError, match=r"is not a file: give 'model\.safetensors\.index\.json' in it"):
        open_weights(tmp_path)


@pytest.fixture
def distributed() -> Iterator[Any]:
    """A network of FSDP in a group of one process."""
    torch = pytest.importorskip("torch", reason="writes the files")
    fsdp = pytest.importorskip("torch.distributed.fsdp", reason="shards the network")
    if not (torch.distributed.is_available() and hasattr(fsdp, "fully_shard")):
        pytest.skip("needs a PyTorch with FSDP2")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        network[1].running_mean.uniform_()
        yield fsdp.fully_shard(network, mesh=mesh)
    finally:
        torch.distributed.destroy_process_group()


def test_parts_of_tensors(tmp_path, distributed, capsys):
    """And what the message says to save is read, with the numbers of the parts."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    parts, path = distributed.state_dict(), tmp_path / "net.pth"
    only = {name: value for name, value in parts.items() if name.endswith(("weight", "bias"))}
    for saved in (parts, {"epoch": 1, "state_dict": parts}, only, {"model": only, "epoch": 1}):
        torch.save(saved, path)
        for command in (info.main, torch2paddle.main):
            assert command([str(path)]) == 1
            said = capsys.readouterr().err
            assert said.startswith(f"error: {path}: holds under '0.weight' the part of a tensor") and "DTensor" in said
            assert said.count("\n") == 1
    torch.save(get_model_state_dict(distributed, options=StateDictOptions(full_state_dict=True)), path)
    found = read_checkpoint(path).state
    assert list(found) == list(parts)
    for name, value in parts.items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        np.testing.assert_array_equal(found[name], whole.detach().numpy(), err_msg=name)


def test_checkpoints_of_torch_distributed(tmp_path, distributed, capsys):
    """The folder and its files; and the command in the message makes a file that is read."""
    from torch.distributed import checkpoint

    folder, path = tmp_path / "step1", tmp_path / "net.pth"
    checkpoint.save({"model": distributed.state_dict()}, checkpoint_id=folder)
    assert len(list(folder.glob("*.distcp"))) == 1
    for source in (folder, *folder.iterdir()):
        for command in (info.main, torch2paddle.main):
            assert command([str(source)]) == 1
            said = capsys.readouterr().err
            assert said.startswith(f"error: {source}: is ") and said.count("\n") == 1
            assert said.endswith("python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER NAME.pth\n")
    command = [sys.executable, "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"]
    subprocess.run([*command, str(folder), str(path)], check=True, capture_output=True)
    found = read_checkpoint(path)
    assert found.container == "model"
    expected = distributed.state_dict()["0.weight"].full_tensor().detach().numpy()
    np.testing.assert_array_equal(found.state["0.weight"], expected)
