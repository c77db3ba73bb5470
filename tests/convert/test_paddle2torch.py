"""The way back: every family's checkpoint through both commands, and the same state_dict at the end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import paddle_dense
from convert import paddle2torch, torch2paddle
from convert.conversion import convert_checkpoint
from convert.options import Options
from convert.paddle2torch import FAILED, OK, USAGE
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.files.weights import read_weights, write_weights

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")

from convert.torch_models import condconv, condensenet, condensenetv2, cspnet, densenet
from paddle_dense.files.torch_archive import write_torch
from tests.helpers import CIFAR_DENSENETS
from tests.peers import peer

TINY = "HS_start_block=1,init_stride=1"
DENSENET = {"growth_rate": 8, "block_config": [2, 3, 2], "num_init_features": 12, "bn_size": 2, "num_classes": 5}


def run(command, capsys, *arguments) -> tuple[int, list[dict], str]:
    """Run a command with --json: its status, what it printed for each input, and stderr."""
    capsys.readouterr()
    status = command.main([str(argument) for argument in arguments] + ["--json"])
    out, err = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err


def there_and_back(capsys, source: Path, folder: Path, *there, options=()) -> Path:
    """The checkpoint that the way back writes."""
    status, _, err = run(torch2paddle, capsys, source, "-o", folder / "there.pdparams", "--no-verify", *there)
    assert status == OK, err
    status, _, err = run(paddle2torch, capsys, folder / "there.pdparams", "-o", folder / "back.pth", *options)
    assert status == OK, err
    return folder / "back.pth"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state_dict of a PyTorch file as PyTorch reads it, without the prefix of a wrapper."""
    saved = torch.load(path, weights_only=True)
    saved = saved.get("state_dict", saved)
    return {name[len("module.") :] if name.startswith("module.") else name: value for name, value in saved.items()}


def assert_identical(found, expected) -> None:
    """Names, order, dtypes, shapes and bits."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].numpy().tobytes() == value.numpy().tobytes(), name


def saved(network: torch.nn.Module, path: Path) -> Path:
    """The network's state_dict in a file, its counters as training leaves them."""
    state = network.state_dict()
    for name in state:
        if name.endswith("num_batches_tracked"):
            state[name].fill_(350)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def conversion(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("conversion")
    options = Options(verify=False, config={"HS_start_block": 1, "init_stride": 1})
    convert_checkpoint(data / "cdnv2_tiny_converted.pth", folder / "a.pdparams", options)
    return folder


@pytest.fixture
def converted(conversion, tmp_path) -> Path:
    """A Paddle file as torch2paddle writes it, with its sidecar."""
    for name in ("a.pdparams", "a.json"):
        shutil.copy(conversion / name, tmp_path)
    return tmp_path / "a.pdparams"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cdnv2_tiny_converted.pth", ["--config", TINY]),
        ("cdnv2_tiny_trained_unconverted.pth.tar", ["--config", TINY, "--keep-trained-form"]),
        ("cdnv2_tiny_init.pth", ["--config", TINY, "--keep-trained-form"]),
        ("condensenet_tiny_converted.pth", []),
        ("condensenet_tiny_trained_unconverted.pth.tar", ["--keep-trained-form"]),
    ],
)
def test_the_originals_files_come_back_identical(capsys, data, tmp_path, name, options):
    back = there_and_back(capsys, data / name, tmp_path, *options, options=["--no-verify"])
    assert_identical(tensors(back), tensors(data / name))


def test_averaged_weights_come_back_with_their_masks_rounded(capsys, data, tmp_path):
    source = data / "cdnv2_tiny_ema.pth.tar"
    options = ["--config", TINY, "--keep-trained-form"]
    found = tensors(there_and_back(capsys, source, tmp_path, *options, options=["--no-verify"]))
    averaged = torch.load(source, weights_only=True)["state_dict_ema"]
    expected = {name.replace("module.", ""): value for name, value in averaged.items()}
    for name in expected:
        if name.rpartition(".")[2] in ("_mask", "_count", "_stage"):
            expected[name] = expected[name].round()
    assert_identical(found, expected)


@pytest.mark.parametrize(
    "network",
    [
        lambda: densenet.DenseNet(**DENSENET),
        lambda: densenet.DenseNet(**CIFAR_DENSENETS["CIFAR DenseNet"]),
        lambda: cspnet.CSPDenseNet(**DENSENET, mode="fusionlast"),
        lambda: condensenet.CondenseNet([1, 2], [8, 16], 4, 4, num_classes=5),
        lambda: condensenetv2.CondenseNetV2([1, 2, 1], [8, 8, 16], 1, 1, 24, 4, 4, 4, num_classes=5),
    ],
    ids=["DenseNet", "CIFAR DenseNet", "CSPDenseNet", "CondenseNet", "CondenseNetV2"],
)
def test_what_comes_back_is_verified_and_loads_strictly(capsys, tmp_path, randomise, network):
    twin = randomise(network()).eval()
    source = saved(twin, tmp_path / "source.pth")
    settled = ["--config", TINY] if "V2" in type(twin).__name__ else []

    back = there_and_back(capsys, source, tmp_path, *settled)

    assert_identical(tensors(back), tensors(source))
    assert json.loads((tmp_path / "back.pth.json").read_text())["verified"] is True
    fresh = network().eval()
    assert not any(fresh.load_state_dict(torch.load(back, weights_only=True), strict=True))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(fresh(x), twin(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cspresnet50", "cspresnext50", "cspdarknet53", "tf_efficientnet_cc_b0_4e"])
def test_timms_networks(capsys, tmp_path, name):
    library = peer("timm")
    network = library.create_model(name)
    if "efficientnet" in name:
        with torch.no_grad():  # statistics of images, or an untrained network's gates saturate
            network.train()(torch.randn(4, 3, 96, 96))
    back = there_and_back(capsys, saved(network, tmp_path / "source.pth"), tmp_path)
    assert_identical(tensors(back), tensors(tmp_path / "source.pth"))
    network.load_state_dict(torch.load(back, weights_only=True), strict=True)


def test_condconv_comes_back_in_the_order_of_its_file(capsys, tmp_path):
    """timm lists the routing after the convolutions, Paddle's network before them."""
    preset = paddle_dense.models.network.preset("tf_efficientnet_cc_b0_4e")
    state = condconv.EfficientNetCondConv(**preset.config, num_classes=3).state_dict()
    state = dict(sorted(state.items(), key=lambda item: ".routing_fn." in item[0]))
    torch.save(state, tmp_path / "source.pth")
    back = there_and_back(capsys, tmp_path / "source.pth", tmp_path, options=["--no-verify"])
    assert_identical(tensors(back), state)


@pytest.mark.parametrize("converted", [True, False], ids=["condensed", "trained"])
def test_the_originals_logits(capsys, data, tmp_path, tiny, difference, converted):
    name = "cdnv2_tiny_converted.pth" if converted else "cdnv2_tiny_trained_unconverted.pth.tar"
    back = there_and_back(capsys, data / name, tmp_path, "--config", TINY, "--keep-trained-form")
    twin = condensenetv2.CondenseNetV2(**tiny, condensed=converted).eval()
    twin.load_state_dict(torch.load(back, weights_only=True), strict=True)
    oracle = np.load(data / "cdnv2_tiny_io.npz")
    with torch.no_grad():
        logits = twin(torch.from_numpy(oracle["x_eval"])).numpy()
    assert difference(logits, oracle["logits_converted"]) < 1e-6


def test_the_official_checkpoint_there_and_back(capsys, oracles, tmp_path, difference):
    back = there_and_back(capsys, oracles / "cdnv2_a.pth", tmp_path, options=["--no-verify"])
    assert_identical(tensors(back), tensors(oracles / "cdnv2_a.pth"))
    twin = condensenetv2.CondenseNetV2(**paddle_dense.models.network.preset("cdnv2_a").config).eval()
    twin.load_state_dict(torch.load(back, weights_only=True), strict=True)
    oracle = np.load(oracles / "cdnv2_a_io.npz")
    with torch.no_grad():
        assert difference(twin(torch.from_numpy(oracle["x"])).numpy(), oracle["logits"]) < 2e-6


@pytest.mark.parametrize("name", ["cdnv2_tiny_converted.pth", "condensenet_tiny_trained_unconverted.pth.tar"])
def test_back_and_there_gives_the_same_file(capsys, data, tmp_path, name):
    back = there_and_back(capsys, data / name, tmp_path, "--keep-trained-form", options=["--no-verify"])
    options = ["-o", tmp_path / "again.pdparams", "--keep-trained-form", "--no-verify"]
    assert run(torch2paddle, capsys, back, *options)[0] == OK
    assert (tmp_path / "again.pdparams").read_bytes() == (tmp_path / "there.pdparams").read_bytes()


# Files that this project did not convert


def test_without_a_sidecar_the_names_are_the_originals_and_the_counters_0(capsys, data, converted, tiny):
    """As the files that other Paddle users share."""
    state = read_checkpoint(data / "cdnv2_tiny_converted.pth").state
    converted.with_suffix(".json").unlink()

    status, [result], _ = run(paddle2torch, capsys, converted, "--config", TINY)
    assert status == OK and result["verified"] and result["output"] == str(converted.with_suffix(".pth"))

    found = torch.load(result["output"], weights_only=True)
    assert list(found) == list(state)
    assert all(not value for name, value in found.items() if name.endswith("num_batches_tracked"))
    assert all(np.array_equal(found[name], state[name]) for name in state if "num_batches" not in name)
    condensenetv2.CondenseNetV2(**tiny).load_state_dict(found, strict=True)


def test_a_file_from_before_counters_comes_back_without_them_and_loads(capsys, tmp_path, randomise):
    twin = randomise(densenet.DenseNet(**DENSENET))
    state = {name: value for name, value in twin.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "source.pth")
    back = there_and_back(capsys, tmp_path / "source.pth", tmp_path, options=["--no-verify"])
    assert_identical(tensors(back), state)
    densenet.DenseNet(**DENSENET).load_state_dict(torch.load(back, weights_only=True), strict=True)


def test_another_librarys_names_come_back(capsys, tmp_path, randomise):
    """torchvision's old spelling."""
    state = randomise(densenet.DenseNet(**DENSENET)).state_dict()
    old = {name.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for name, value in state.items()}
    torch.save(old, tmp_path / "source.pth")
    back = there_and_back(capsys, tmp_path / "source.pth", tmp_path)
    assert_identical(tensors(back), old)


def test_a_network_that_was_trained_in_paddle(capsys, tmp_path, randomise, difference):
    import paddle

    model = randomise(paddle_dense.create_model("condensenet50", condensed=False))
    paddle_dense.save_weights(model, tmp_path / "run.pdparams")
    status, [result], err = run(paddle2torch, capsys, tmp_path / "run.pdparams")
    assert status == OK and result["arch"] == "condensenet50" and result["verified"], err

    preset = paddle_dense.models.network.preset("condensenet50")
    twin = condensenet.CondenseNet(**preset.config, condensed=False).eval()
    twin.load_state_dict(torch.load(tmp_path / "run.pth", weights_only=True), strict=True)
    model.eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    with torch.no_grad(), paddle.no_grad():
        assert difference(twin(torch.from_numpy(x)).numpy(), model(paddle.to_tensor(x)).numpy()) < 1e-5


# The files


def test_pytorch_maps_the_file_and_its_tensors_are_aligned(tmp_path):
    random = np.random.default_rng(0)
    state = {
        "float": random.standard_normal((3, 5)).astype("f4"),
        "transposed": random.standard_normal((4, 2)).T,
        "half": random.standard_normal(7).astype("f2"),
        "scalar": np.array(-(2**40)),
        "empty": np.empty((0, 3), "f4"),
        "bool": np.array([True, False]),
        "bytes": np.arange(5, dtype="u1"),
        "small": np.arange(3, dtype="i2"),
        "名字": np.arange(3, dtype="i4"),
        "big end": np.arange(3, dtype=">i8"),
    }
    for name in ("a.pth", "b.pth"):
        with open(tmp_path / name, "wb") as file:
            write_torch(state, file)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()

    for mmap in (False, True):
        found = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
        assert list(found) == list(state)
        for name, value in state.items():
            np.testing.assert_array_equal(found[name].numpy(), value)
            assert found[name].is_contiguous()
    own = read_checkpoint(tmp_path / "a.pth").state
    assert list(own) == list(state) and np.array_equal(own["transposed"], state["transposed"].astype("f4"))

    content = (tmp_path / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            lengths = content[entry.header_offset + 26 : entry.header_offset + 30]
            extra = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            assert (entry.header_offset + 30 + extra) % 64 == 0


def test_safetensors_for_pytorch(capsys, data, tmp_path, converted):
    library = pytest.importorskip("safetensors")
    status, _, _ = run(paddle2torch, capsys, converted, "-o", tmp_path / "b.safetensors", "--no-verify")
    assert status == OK
    status, [result], _ = run(paddle2torch, capsys, converted, "--format", "safetensors", "--no-verify")
    assert status == OK and result["output"] == str(tmp_path / "a.safetensors")
    expected = tensors(data / "cdnv2_tiny_converted.pth")
    with library.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert_identical({name: found[name] for name in expected}, expected)


def test_without_pytorch_it_writes_what_pytorch_reads(data, tmp_path, converted):
    """A process in which importing torch fails, as on a machine that has none."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "convert.paddle2torch", converted, "--no-verify", "--json"],
        env={"PYTHONPATH": f"{tmp_path}:{data.parents[1]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == OK, done.stderr
    assert json.loads(done.stdout)["verified"] is False
    assert_identical(tensors(converted.with_suffix(".pth")), tensors(data / "cdnv2_tiny_converted.pth"))


# What is refused


@pytest.mark.parametrize("runtime", ["paddle", "compiled"])
def test_fused_weights_are_no_checkpoint(capsys, converted, runtime):
    model = paddle_dense.load_model(converted)
    model.eval()
    fused = converted.with_name("fused.pdparams")
    paddle_dense.save_weights(paddle_dense.deploy.fuse(model, runtime=runtime), fused)
    status, _, err = run(paddle2torch, capsys, fused)
    assert status == FAILED and "is fused for inference" in err and err.count("\n") == 1
    assert not fused.with_suffix(".pth").exists()


def test_tensors_that_no_family_has_are_refused(capsys, tmp_path, converted):
    write_weights({"weight": np.zeros((3, 3), "f4")}, tmp_path / "foreign.pdparams")
    status, _, err = run(paddle2torch, capsys, tmp_path / "foreign.pdparams")
    assert status == FAILED and "none of the known networks" in err and err.count("\n") == 1

    write_weights({**read_weights(converted), "extra\x1b[31m": np.zeros(1, "f4")}, tmp_path / "more.pdparams")
    status, _, err = run(paddle2torch, capsys, tmp_path / "more.pdparams")
    assert status == FAILED and "has no place" in err and err.count("\n") == 1 and "\x1b" not in err


def test_pytorch_files_are_refused(capsys, data, tmp_path):
    status, _, err = run(paddle2torch, capsys, data / "cdnv2_tiny_converted.pth", "-o", tmp_path / "b.pth")
    assert status == FAILED and "convert.torch2paddle" in err and err.count("\n") == 1
    state = read_checkpoint(data / "cdnv2_tiny_converted.pth").state
    write_weights(state, tmp_path / "torch.safetensors")
    status, _, err = run(paddle2torch, capsys, tmp_path / "torch.safetensors")
    assert status == FAILED and "has PyTorch's names (" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "source",
    [
        {"num_batches_tracked": "many"},
        {"num_batches_tracked": {"features.norm_last": -1}},
        {"num_batches_tracked": 2**63},
        {"names": ["a", "b"]},
        {"names": {"a": 1.5}},
        {"names": {"a": "features.norm_last.weight"}},
    ],
)
def test_a_sidecar_that_tells_nonsense_is_one_sentence(capsys, converted, source):
    sidecar = converted.with_suffix(".json")
    entries = json.loads(sidecar.read_text())
    entries["source"].update(source)
    sidecar.write_text(json.dumps(entries))
    status, _, err = run(paddle2torch, capsys, converted, "--no-verify")
    assert status == FAILED and "sidecar" in err and err.count("\n") == 1
    assert not converted.with_suffix(".pth").exists()


def test_a_difference_writes_nothing(capsys, tmp_path, monkeypatch, converted, tiny):
    (tmp_path / "another_twin.py").write_text(
        "from convert.torch_models.condensenetv2 import CondenseNetV2\n"
        f"def build():\n    return CondenseNetV2(**{ {**tiny, 'HS_start_block': 3}!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    status, [result], err = run(paddle2torch, capsys, converted, "--reference", "another_twin:build")
    assert status == FAILED and "first in layer features.denseblock_2" in result["error"] and err.count("\n") == 1
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_nothing_is_overwritten_without_force(capsys, converted):
    for occupied in ("a.pth", "a.pth.json"):
        path = converted.with_name(occupied)
        path.write_text("precious")
        status, _, err = run(paddle2torch, capsys, converted, "--no-verify")
        assert status == FAILED and occupied in err and "--force" in err and path.read_text() == "precious"
        path.unlink()
    path.write_text("old")
    assert run(paddle2torch, capsys, converted, "--no-verify", "--force")[0] == OK
    assert json.loads(path.read_text())["arch"] == "CondenseNetV2"
    assert torch.load(converted.with_suffix(".pth"), weights_only=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CKPT"),
        (["a.pdparams", "--format", "pdparams"], "pdparams"),
        (["a.pdparams", "--arch", "cdnv2_z"], "cdnv2_a"),
        (["a.pdparams", "--config", "depth=3"], "depth"),
        (["a.pdparams", "a.safetensors"], "two inputs"),
        (["a.pdparams", "-o", "a.onnx"], ".pth"),
        (["a.pdparams", "--no-ema"], "--no-ema"),
        (["a.pdparams", "--report", "a.pdf"], ".html or .md or .json"),
        (["a.pdparams", "--report", "a.pth.json"], "origin"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(capsys, monkeypatch, converted, arguments, said):
    monkeypatch.chdir(converted.parent)
    before = sorted(converted.parent.iterdir())
    capsys.readouterr()
    assert paddle2torch.main(arguments) == USAGE
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert sorted(converted.parent.iterdir()) == before


def test_the_json_has_the_fields_of_torch2paddle(capsys, data, tmp_path):
    _, [there], _ = run(torch2paddle, capsys, data / "condensenet_tiny_converted.pth", "-o", tmp_path / "a.pdparams")
    status, [back], err = run(paddle2torch, capsys, tmp_path / "a.pdparams")
    assert status == OK and err == "" and list(back) == list(there)
    assert back["verified"] and back["max_rel_diff"] == there["max_rel_diff"] and back["params"] == there["params"]
    sidecar = json.loads((tmp_path / "a.pth.json").read_text())
    assert sidecar["source"]["sha256"] == back["sha256"] and sidecar["source"]["file"] == "a.pdparams"
