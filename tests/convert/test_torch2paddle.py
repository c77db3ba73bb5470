"""The command as its users call it, on files that PyTorch itself wrote."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

import paddle_dense
from convert.torch2paddle import FAILED, OK, USAGE, main

torch = pytest.importorskip("torch", reason="writes PyTorch checkpoints: pip install torch")

from convert.torch_models.condensenetv2 import CondenseNetV2, LearnedConnections

SMALL = {"stages": [1, 2, 1], "growth": [8, 8, 16], "fc_channel": 24, "SE_start_block": 1, "num_classes": 7}
SMALL.update(group_1x1=4, group_3x3=4, group_trans=4)
ODD = {
    "six groups": {**SMALL, "growth": [6, 6, 12], "group_1x1": 6, "group_3x3": 6, "group_trans": 6},
    "C < G in the LGC": {**SMALL, "condense_factor": 2},
    "37 classes": {**SMALL, "num_classes": 37},
    "SE from the first block": {**SMALL, "SE_start_block": 0},
    "no SE in the blocks": {**SMALL, "SE_start_block": 3},
    "one input channel": {**SMALL, "in_channels": 1},
    "no classifier": {**SMALL, "num_classes": 0},
    "five blocks": {**SMALL, "stages": [1] * 5, "growth": [8] * 5},
}


def trained_twin(config: dict, progress: float = 1.0, seed: int = 0) -> CondenseNetV2:
    """A twin in the trained form with learned masks and BN statistics as training leaves them."""
    torch.manual_seed(seed)
    twin = CondenseNetV2(**config, condensed=False)
    for module in twin.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, LearnedConnections):
            for step in (0.1, 0.25, 0.4, 1.0):
                module.set_progress(min(step, progress))
    return twin.eval()


def convert(capsys, *arguments: object) -> tuple[int, list[dict], str]:
    """Run the command with --json: its status, what it printed for each input, and stderr."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments] + ["--json"])
    out, err = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err


def paddle_logits(path: Path, x: np.ndarray) -> np.ndarray:
    model = paddle_dense.load_model(path)
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(x)).numpy()


def torch_logits(model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_the_official_checkpoint_needs_no_option(capsys, oracles, tmp_path):
    checkpoint = tmp_path / "cdnv2_a.pth"
    checkpoint.write_bytes((oracles / "cdnv2_a.pth").read_bytes())

    status, [result], _ = convert(capsys, checkpoint)

    assert status == OK
    assert result["arch"] == "cdnv2_a" and result["params"] == 2_038_444
    # Rounding: 4.6e-7 on one processor, 1.3e-6 on another.
    assert result["verified"] and result["max_rel_diff"] < 2e-6 and result["top1_agreement"] == 1
    [said] = result["warnings"]
    assert "does not reveal HS_start_block=2, init_stride=2, which cdnv2_a has" in said
    assert result["output"] == str(tmp_path / "cdnv2_a.pdparams")
    oracle = np.load(oracles / "cdnv2_a_io.npz")
    assert_close(paddle_logits(tmp_path / "cdnv2_a.pdparams", oracle["x"]), oracle["logits"], tolerance=2e-6)


@pytest.mark.parametrize("name", ["cdnv2_tiny_converted.pth", "cdnv2_tiny_trained_unconverted.pth.tar"])
@pytest.mark.parametrize("keep", [False, True])
def test_tiny_oracles_give_the_original_logits(capsys, data, tmp_path, name, keep):
    target = tmp_path / "tiny.pdparams"
    options = ["--keep-trained-form"] if keep else []

    status, [result], _ = convert(capsys, data / name, "-o", target, "--config", "HS_start_block=1", *options)

    assert status == OK
    assert result["config"]["condensed"] is not (keep and "unconverted" in name)
    oracle = np.load(data / "cdnv2_tiny_io.npz")
    assert_close(paddle_logits(target, oracle["x_eval"]), oracle["logits_converted"])


def test_ema_weights_are_taken_and_their_masks_rounded(capsys, data, tmp_path):
    checkpoint = data / "cdnv2_tiny_ema.pth.tar"
    source = torch.load(checkpoint, weights_only=True)

    status, [result], _ = convert(capsys, checkpoint, "-o", tmp_path / "ema.pdparams")
    assert status == OK and result["verified"]
    condensed = paddle_dense.load_model(tmp_path / "ema.pdparams").state_dict()
    np.testing.assert_array_equal(
        condensed["classifier.bias"].numpy(), source["state_dict_ema"]["classifier.bias"].numpy()
    )
    assert json.loads((tmp_path / "ema.json").read_text())["source"]["container"] == "state_dict_ema"

    convert(capsys, checkpoint, "-o", tmp_path / "trained.pdparams", "--keep-trained-form")
    trained = paddle_dense.load_model(tmp_path / "trained.pdparams").state_dict()
    masks = np.concatenate([value.numpy().ravel() for key, value in trained.items() if key.endswith("_mask")])
    assert set(masks) == {0.0, 1.0} and masks.mean() == 0.25

    convert(capsys, checkpoint, "-o", tmp_path / "plain.pdparams", "--no-ema")
    plain = paddle_dense.load_model(tmp_path / "plain.pdparams").state_dict()
    expected = source["state_dict"]["module.classifier.bias"].numpy()
    np.testing.assert_array_equal(plain["classifier.bias"].numpy(), expected)


@pytest.mark.parametrize("config", ODD.values(), ids=ODD)
def test_odd_configurations_are_read_from_the_tensors(capsys, tmp_path, config):
    twin = trained_twin(config)
    torch.save({"state_dict": twin.state_dict()}, tmp_path / "trained.pth")

    status, [result], _ = convert(capsys, tmp_path / "trained.pth")
    assert status == OK and result["max_rel_diff"] < 1e-5
    found = {key: result["config"][key] for key in config}
    assert found == config

    x = np.random.default_rng(5).standard_normal((2, config.get("in_channels", 3), 64, 64), np.float32)
    expected = torch_logits(twin, x)
    assert_close(paddle_logits(tmp_path / "trained.pdparams", x), expected, 2e-6)

    # The condensed form is recognised as well: the way back to PyTorch's names gives the checkpoint to convert.
    model = paddle_dense.load_model(tmp_path / "trained.pdparams")
    condensed = CondenseNetV2(**{**config, "condensed": True})
    own = condensed.state_dict()
    for name, tensor in model.state_dict().items():
        name = name.replace("._mean", ".running_mean").replace("._variance", ".running_var")
        value = torch.from_numpy(tensor.numpy())
        own[name] = value.T.contiguous() if value.ndim == 2 and name.endswith(".weight") else value
    torch.save(own, tmp_path / "condensed.pth")
    status, [result], _ = convert(capsys, tmp_path / "condensed.pth")
    assert status == OK and {key: result["config"][key] for key in config} == config
    assert_close(paddle_logits(tmp_path / "condensed.pdparams", x), expected, 2e-6)


@pytest.mark.parametrize("arch", ["cdnv2_b", "cdnv2_c"])
def test_presets_b_and_c_in_the_trained_form(capsys, tmp_path, arch):
    preset = paddle_dense.models.network.preset(arch)
    twin = trained_twin({**preset.config, "num_classes": 37})
    torch.save({"model": twin.state_dict()}, tmp_path / "checkpoint.pt")

    status, [result], _ = convert(capsys, tmp_path / "checkpoint.pt")

    assert status == OK and result["arch"] == arch and len(result["warnings"]) == 1
    assert result["config"]["num_classes"] == 37 and result["max_rel_diff"] < 1e-5


@pytest.mark.parametrize(
    ("suffix", "save"),
    [
        (".pth", torch.save),
        (".pth.tar", lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)),
        (".pt", lambda state, path: torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, path)),
        (".ckpt", lambda state, path: torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)),
        (".safetensors", lambda state, path: pytest.importorskip("safetensors.torch").save_file(state, path)),
    ],
)
def test_every_format_gives_the_same_weights(capsys, tmp_path, suffix, save):
    state = trained_twin(SMALL).state_dict()
    torch.save(state, tmp_path / "reference.pth")
    save(state, tmp_path / f"other{suffix}")

    status, results, _ = convert(capsys, tmp_path / "reference.pth", tmp_path / f"other{suffix}")

    assert status == OK
    assert results[1]["output"] == str(tmp_path / "other.pdparams")
    reference, other = (paddle.load(result["output"]) for result in results)
    assert list(reference) == list(other)
    assert all(np.array_equal(reference[name].numpy(), other[name].numpy()) for name in reference)


def test_half_precision_checkpoints_become_float32(capsys, tmp_path):
    state = trained_twin(SMALL).half().state_dict()
    torch.save(state, tmp_path / "half.pth")

    status, [result], _ = convert(capsys, tmp_path / "half.pth")

    assert status == OK
    assert paddle.load(result["output"])["fc.weight"].dtype == paddle.float32


def test_guesses_are_said_aloud_until_the_user_settles_them(capsys, data, tmp_path):
    checkpoint = data / "cdnv2_tiny_converted.pth"

    status, [result], err = convert(capsys, checkpoint, "-o", f"{tmp_path}/")
    assert status == OK and len(result["warnings"]) == 2
    assert "HS_start_block=2" in err and "--config init_stride=" in err
    sidecar = json.loads((tmp_path / "cdnv2_tiny_converted.json").read_text())
    assert sidecar["warnings"] == result["warnings"]

    settled = ["--config", "HS_start_block=1,init_stride=1", "--force"]
    status, [result], err = convert(capsys, checkpoint, "-o", f"{tmp_path}/", *settled)
    assert status == OK and result["warnings"] == [] and err == ""
    assert result["config"]["HS_start_block"] == 1


def test_an_under_condensed_checkpoint_is_refused_with_its_density(capsys, tmp_path):
    torch.save(trained_twin(SMALL, progress=0.25).state_dict(), tmp_path / "early.pth")

    status, [result], err = convert(capsys, tmp_path / "early.pth")
    assert status == FAILED and result["output"] is None
    assert "denselayer_1.conv_1 is not condensed yet: 75.0%" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "early.pth"]

    status, [result], _ = convert(capsys, tmp_path / "early.pth", "--keep-trained-form")
    assert status == OK and result["verified"]


def test_a_difference_writes_nothing_and_names_the_first_layer(capsys, tmp_path, monkeypatch):
    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "a.pth")
    (tmp_path / "other_code.py").write_text(
        "from convert.torch_models.condensenetv2 import CondenseNetV2\n"
        "from torch import nn\n"
        "def build():\n"
        "    print('hello from the factory')\n"
        f"    net = CondenseNetV2(**{SMALL!r}, condensed=False)\n"
        "    net.features.denseblock_2.denselayer_1.conv_2.activation = nn.SiLU()\n"
        "    return net\n"
        "def faithful():\n"
        f"    return CondenseNetV2(**{SMALL!r}, condensed=False)\n"
        "def broken():\n"
        "    raise RuntimeError('no such thing')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "other_code", raising=False)

    status, [result], err = convert(capsys, tmp_path / "a.pth", "--reference", "other_code:build")
    assert status == FAILED
    assert "first in layer features.denseblock_2.denselayer_1.conv_2.activation" in result["error"]
    assert not (tmp_path / "a.pdparams").exists()

    # A generous tolerance lets the same difference pass.
    status, _, _ = convert(capsys, tmp_path / "a.pth", "--reference", "other_code:build", "--atol", "10")
    assert status == OK

    status, [result], _ = convert(capsys, tmp_path / "a.pth", "--reference", "other_code:faithful", "--force")
    assert status == OK and result["max_rel_diff"] < 1e-5

    for factory, said in (("broken", "no such thing"), ("absent", "absent")):
        status, _, err = convert(capsys, tmp_path / "a.pth", "--reference", f"other_code:{factory}", "--force")
        assert status == USAGE and said in err and err.count("\n") == 1


def test_images_are_compared_through_the_networks_own_transforms(capsys, tmp_path):
    from PIL import Image

    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "a.pth")
    images = tmp_path / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for number, size in enumerate([(40, 60), (100, 33), (64, 64)]):
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(images / f"{number}.png")

    status, [result], _ = convert(capsys, tmp_path / "a.pth", "--images", images)
    assert status == OK and result["verified"]

    (images / "broken.jpg").write_bytes(b"not an image")
    status, _, err = convert(capsys, tmp_path / "a.pth", "--images", images, "--force")
    assert status == FAILED and err.count("\n") == 1
    assert "broken.jpg: cannot be read as an image: replace it or take it out" in err

    (tmp_path / "empty").mkdir()
    status, _, err = convert(capsys, tmp_path / "a.pth", "--images", tmp_path / "empty", "--force")
    assert status == USAGE and "holds no image" in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_images_that_wait_or_run_or_grow_are_one_line_and_status_1(capsys, tmp_path):
    """They hung the conversion or ended in a traceback."""
    from tests.test_images import CANNOT, empty_png, eps

    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "a.pth")
    for name, said in (("pipe", CANNOT), ("eps", CANNOT), ("large", "pixels, or more than there is memory free for")):
        image = tmp_path / name / "x.jpg"
        image.parent.mkdir()
        if name == "pipe":
            os.mkfifo(image)
        else:
            image.write_bytes(eps() if name == "eps" else empty_png(14000, 14000))
        status, _, err = convert(capsys, tmp_path / "a.pth", "--images", image.parent)
        assert status == FAILED and f"{image}: " in err and said in err and err.count("\n") == 1
    assert not (tmp_path / "a.pdparams").exists()


def test_without_pytorch_it_converts_and_says_that_nothing_was_checked(data, tmp_path):
    """A process in which importing torch fails, as on a machine that has none."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.abc, importlib.util, sys\n"
        "class NoTorch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'torch' else find_spec(name, package)\n"
    )
    repository = Path(__file__).parents[2]
    command = [sys.executable, "-m", "convert.torch2paddle", data / "cdnv2_tiny_converted.pth"]
    done = subprocess.run(
        [*command, "-o", f"{tmp_path}/", "--json", "--config", "HS_start_block=1,init_stride=1"],
        env={"PYTHONPATH": f"{tmp_path}:{repository}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == OK, done.stderr
    result = json.loads(done.stdout)
    assert result["verified"] is False and result["max_abs_diff"] is None
    assert [warning for warning in result["warnings"] if "PyTorch is not installed" in warning]
    assert (tmp_path / "cdnv2_tiny_converted.pdparams").exists()


def test_no_verify_skips_the_check(capsys, tmp_path):
    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "a.pth")
    status, [result], _ = convert(capsys, tmp_path / "a.pth", "--no-verify")
    assert status == OK and result["verified"] is False and result["top1_agreement"] is None


def test_nothing_is_overwritten_without_force(capsys, tmp_path):
    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "a.pth")
    for occupied in ("a.pdparams", "a.json"):
        (tmp_path / occupied).write_text("precious")
        status, [result], err = convert(capsys, tmp_path / "a.pth")
        assert status == FAILED and occupied in err and "--force" in err
        assert (tmp_path / occupied).read_text() == "precious"
        (tmp_path / occupied).unlink()
        assert list(tmp_path.iterdir()) == [tmp_path / "a.pth"]

    (tmp_path / "a.pdparams").write_text("old")
    status, [result], _ = convert(capsys, tmp_path / "a.pth", "--force")
    assert status == OK and paddle.load(result["output"])


def test_one_bad_file_among_many_does_not_stop_the_others(capsys, tmp_path):
    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "good.pth")
    torch.save(trained_twin(SMALL, seed=1).state_dict(), tmp_path / "fine.pth")
    (tmp_path / "bad.pth").write_bytes(b"PK\x03\x04 and then nothing")
    torch.save({"weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    names = ["good.pth", "bad.pth", "missing.pth", "other.pth", "fine.pth"]

    status, results, err = convert(capsys, *(tmp_path / name for name in names), "-o", f"{tmp_path}/out/")
    assert status == FAILED

    assert [bool(result["output"]) for result in results] == [True, False, False, False, True]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(name in line for name, line in zip(names[1:4], errors))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "fine.json",
        "fine.pdparams",
        "good.json",
        "good.pdparams",
    ]


def test_safetensors_output_holds_the_same_tensors(capsys, tmp_path):
    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "a.pth")
    convert(capsys, tmp_path / "a.pth")
    assert convert(capsys, tmp_path / "a.pth", "-o", tmp_path / "b.safetensors")[0] == OK
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(
        paddle_logits(tmp_path / "a.pdparams", x), paddle_logits(tmp_path / "b.safetensors", x)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CKPT"),
        (["a.pth", "--format", "onnx"], "onnx"),
        (["a.pth", "--arch", "cdnv2_z"], "cdnv2_a, cdnv2_b, cdnv2_c"),
        (["a.pth", "--config", "HS_start_block"], "KEY=VALUE"),
        (["a.pth", "--config", "depth=3"], "depth"),
        (["a.pth", "b.pth", "-o", "one.pdparams"], "give a folder"),
        (["a.pth", "-o", "weights.onnx"], ".pdparams"),
        (["a.pth", "a.pt"], "two inputs"),
        (["a.pth", "--images", "nowhere"], "nowhere"),
        (["a.pth", "--reference", "module"], "MODULE:FACTORY"),
        (["a.pth", "--atol", "-1"], "--atol"),
        (["a.pth", "--config", "stages=3"], "stages"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    torch.save(trained_twin(SMALL).state_dict(), "a.pth")

    assert main(arguments) == USAGE

    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pth"]


def test_the_wrong_preset_is_an_error(capsys, tmp_path):
    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "a.pth")
    status, _, err = convert(capsys, tmp_path / "a.pth", "--arch", "cdnv2_a")
    assert status == FAILED and "cdnv2_a" in err and err.count("\n") == 1


def test_the_sidecar_says_where_the_weights_came_from(capsys, tmp_path):
    import hashlib

    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "a.pth")
    _, [result], _ = convert(capsys, tmp_path / "a.pth")
    sidecar = json.loads((tmp_path / "a.json").read_text())
    digest = hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    assert result["sha256"] == sidecar["source"]["sha256"] == digest
    assert sidecar["verified"] == "with assumptions" and sidecar["parity"]["max_rel_diff"] == result["max_rel_diff"]
    assert sidecar["versions"]["paddle_dense"] == paddle_dense.__version__


def test_the_plain_output_is_two_lines_for_a_person(capsys, tmp_path):
    torch.save(trained_twin(SMALL).state_dict(), tmp_path / "a.pth")
    assert main([str(tmp_path / "a.pth")]) == OK
    first, second = capsys.readouterr().out.splitlines()
    assert "a.pdparams: CondenseNetV2" in first and "(HS_start_block=2, init_stride=1) against its twin" in second


@pytest.mark.parametrize("name", ["net", "net.weights"])
def test_a_checkpoint_without_a_usual_suffix(tmp_path, capsys, name):
    checkpoint = Path(__file__).resolve().parents[1] / "data" / "cdnv2_tiny_converted.pth"
    (tmp_path / name).write_bytes(checkpoint.read_bytes())
    assert main([str(tmp_path / name), "--no-verify"]) == OK, capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name}.pdparams", f"{name}.json"])
