"""``python -m convert.parity`` as its users call it, on files that PyTorch and Paddle wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import paddle_dense
from paddle_dense.process import FAILED, OK, USAGE

torch = pytest.importorskip("torch", reason="writes PyTorch checkpoints: pip install torch")

from convert.parity.__main__ import main
from convert.torch_models.condensenetv2 import CondenseNetV2
from convert.torch_models.densenet import DenseNet

SMALL = {"stages": [1, 1], "growth": [8, 8], "fc_channel": 16, "SE_start_block": 1, "num_classes": 5}
SMALL.update(group_1x1=4, group_3x3=4, group_trans=4)
DENSENET = {"growth_rate": 8, "block_config": [1, 2], "num_init_features": 12, "bn_size": 2, "num_classes": 5}


@pytest.fixture
def compare(capsys):
    """``compare(path, ...)``: run the command with --json: its status, what it printed for each input, and stderr."""

    def run(*arguments: object) -> tuple[int, list[dict], str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments] + ["--json"])
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


@pytest.fixture
def checkpoint(tmp_path, randomise):
    """``checkpoint(name, **config)``: a small CondenseNet V2 as PyTorch saves it, trained and condensed far enough."""

    def save(name: str = "a.pth", **config: object) -> Path:
        twin = randomise(CondenseNetV2(**{**SMALL, "condensed": False, **config}))
        torch.save(twin.state_dict(), tmp_path / name)
        return tmp_path / name

    return save


def test_a_checkpoint_in_the_trained_form(compare, checkpoint):
    path = checkpoint()

    status, [result], err = compare(path)

    assert status == OK and result["verified"] and "error" not in err
    assert result["arch"] == "CondenseNetV2" and result["config"]["condensed"] is False
    assert result["max_rel_diff"] < 1e-5 and result["top1_agreement"] == 1 and result["inputs"] == 4
    assert result["first_layer"] is None and "layers" not in result
    assert [step["step"] for step in result["steps"]] == [0, 1, 2]
    for step in result["steps"]:
        assert step["masks_equal"] and step["loss_diff"] == abs(step["torch_loss"] - step["paddle_loss"]) < 1e-4
    for step in result["exact_steps"]:
        assert step["gradient"]["size"] < 1e-9 and step["update"]["size"] < 1e-9 and step["first"] is None
    assert result["first_difference"] is None
    assert list(path.parent.iterdir()) == [path], "nothing is written"


def test_connections_are_dropped_in_training(compare, tmp_path):
    torch.save(CondenseNetV2(**SMALL, condensed=False).state_dict(), tmp_path / "fresh.pth")

    status, [result], err = compare(tmp_path / "fresh.pth", "--steps", 4)
    assert status == OK
    lassos = [step["paddle_lasso"] for step in result["steps"]]
    assert lassos[0] > lassos[1] > lassos[2] == lassos[3] == 0
    assert "condensed form was not compared" in err and "100.0% of its connections are left" in err

    status, _, err = compare(tmp_path / "fresh.pth", "--steps", 0, "--keep-trained-form")
    assert status == OK and "condensed form" not in err


def test_the_other_forms_of_the_same_network(compare, checkpoint, capsys):
    """Condensed: as .pdparams with a sidecar, which says more than tensors, and as .safetensors with Paddle's names."""
    from convert.torch2paddle import main as convert

    path = checkpoint(HS_start_block=1)
    weights = path.with_name("b.pdparams")
    assert convert([str(path), "-o", str(weights), "--config", "HS_start_block=1"]) == OK
    model = paddle_dense.load_model(weights)
    paddle_dense.save_weights(model, path.with_name("c.safetensors"))
    path.with_name("c.json").unlink()

    status, results, err = compare(weights, path.with_name("c.safetensors"), "--steps", 1)

    assert status == OK and all(result["verified"] and result["config"]["condensed"] for result in results)
    assert results[0]["config"]["HS_start_block"] == 1 and results[1]["config"]["HS_start_block"] == 2
    assert "b.pdparams: " not in err and "HS_start_block=2 is assumed" in err
    status, [result], _ = compare(weights, "--steps", 0, "--config", "HS_start_block=0")
    assert status == OK and result["config"]["HS_start_block"] == 0


def test_the_demo_checkpoint_and_averaged_weights(compare, data):
    weights = Path(__file__).parents[2] / "weights"
    files = [weights / "cdnv2_digits.pth", data / "cdnv2_tiny_ema.pth.tar"]

    status, results, _ = compare(*files, "--steps", 1)

    assert status == OK and all(result["verified"] for result in results)


def test_another_family(compare, tmp_path, randomise):
    torch.save(randomise(DenseNet(**DENSENET)).state_dict(), tmp_path / "a.pth")
    status, [result], _ = compare(tmp_path / "a.pth", "--size", 48, "--batch-size", 3, "--seed", 5, "--steps", 2)
    assert status == OK and result["arch"] == "DenseNet" and len(result["steps"]) == 2
    other = compare(tmp_path / "a.pth", "--size", 48, "--batch-size", 3, "--seed", 6, "--steps", 1)[1][0]
    assert other["steps"][0]["torch_loss"] != result["steps"][0]["torch_loss"]


OWN_CODE = f"""
from torch import nn
from convert.torch_models.condensenetv2 import CondenseNetV2

def faithful():
    return CondenseNetV2(**{SMALL!r}, condensed=False)

def other_activation():
    net = faithful()
    net.features.denseblock_2.denselayer_1.conv_2.activation = nn.SiLU()
    return net

def other_statistics():
    net = faithful()
    net.features.norm_last.momentum = 0.2
    return net

def other_schedule():
    net = faithful()
    net.features.denseblock_2.denselayer_1.sfr.factor = 2
    return net

def unknown_layers():
    net = faithful()
    for module in net.modules():
        if hasattr(module, "set_progress"):
            module.__class__ = type("Own", (nn.Module,), {{"forward": type(module).forward}})
    return net
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A module of the user's own networks in the working directory."""
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_code", raising=False)


@pytest.mark.parametrize(
    ("factory", "said", "layer", "first"),
    [
        (
            "other_activation",
            "first in layer features.denseblock_2.denselayer_1.conv_2.activation",
            "features.denseblock_2.denselayer_1.conv_2.activation",
            (0, "output", "features.denseblock_2.denselayer_1.conv_2.activation"),
        ),
        (
            "other_statistics",
            "differs first at step 0, update of features.norm_last._mean",
            None,
            (0, "update", "features.norm_last._mean"),
        ),
        (
            "other_schedule",
            "differs first at step 1, mask of features.denseblock_2.denselayer_1.sfr._",
            None,
            (1, "mask", "features.denseblock_2.denselayer_1.sfr._count"),
        ),
    ],
)
def test_a_difference_is_one_line_with_step_and_tensor(compare, tmp_path, own_code, factory, said, layer, first):
    torch.save(CondenseNetV2(**SMALL, condensed=False).state_dict(), tmp_path / "a.pth")

    status, [result], err = compare("a.pth", "--reference", f"own_code:{factory}", "--keep-trained-form")

    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == FAILED and result["verified"] is False
    assert len(errors) == 1 and said in errors[0] and "allowed: 1e-05" in errors[0]
    assert (result["first_layer"] and result["first_layer"]["name"]) == layer
    assert tuple(result["first_difference"][key] for key in ("step", "what", "name")) == first


def test_a_faithful_network_of_the_users_own(compare, tmp_path, own_code):
    torch.save(CondenseNetV2(**SMALL, condensed=False).state_dict(), tmp_path / "a.pth")
    status, [result], _ = compare("a.pth", "--reference", "own_code:faithful", "--steps", 1)
    assert status == OK and result["verified"]
    status, _, err = compare("a.pth", "--reference", "own_code:unknown_layers", "--steps", 1)
    assert status == USAGE and "give the PyTorch layer set_progress and group_lasso" in err


def test_what_a_person_reads(checkpoint, capsys):
    assert main([str(checkpoint()), "--steps", "2", "--layers", "--atol", "1e-3"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert "a.pth: CondenseNetV2, trained form" in lines[0]
    assert "of their scale, top-1 equal on 100% of 4 inputs" in lines[1]
    assert "in float64, equal to" in lines[2]
    assert any(line.endswith("  features.denseblock_1.denselayer_1.sfr") for line in lines)
    assert "step 0: loss" in lines[-2] and "step 1: loss" in lines[-1] and "masks equal" in lines[-1]


def test_bad_files_do_not_stop_the_others(compare, checkpoint):
    good = checkpoint()
    bad = {
        "bad.pth": b"PK\x03\x04 and then nothing",
        "bad.pdparams": b"\x80 and then nothing",
    }
    for name, content in bad.items():
        good.with_name(name).write_bytes(content)
    torch.save({"weight": torch.zeros(3, 3)}, good.with_name("other.pth"))
    names = ["bad.pth", "missing.pth", "bad.pdparams", "a.pth", "other.pth"]

    status, results, err = compare(*(good.with_name(name) for name in names), "--steps", 0)

    assert status == FAILED
    assert [result["verified"] for result in results] == [False, False, False, "with assumptions", False]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4 and all(name in line for name, line in zip([*names[:3], names[4]], errors))


def test_a_sidecar_that_does_not_fit_is_an_error(compare, checkpoint):
    path = checkpoint()
    from convert.torch2paddle import main as convert

    assert convert([str(path)]) == OK
    path.with_suffix(".json").write_text('{"arch": "NoSuchNet", "config": {}}')
    status, _, err = compare(path.with_suffix(".pdparams"))
    assert status == FAILED and "sidecar" in err and "NoSuchNet" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CKPT"),
        (["a.pth", "--arch", "cdnv2_z"], "cdnv2_a, cdnv2_b, cdnv2_c"),
        (["a.pth", "--config", "depth=3"], "depth"),
        (["a.pth", "--steps", "-1"], "--steps -1 must be 0 or more"),
        (["a.pth", "--batch-size", "1"], "--batch-size 1 must be 2 or more"),
        (["a.pth", "--size", "16"], "--size 16 must be 32 or more"),
        (["a.pth", "--learning-rate", "-1"], "--learning-rate"),
        (["a.pth", "--images", "nowhere"], "nowhere"),
        (["a.pth", "--reference", "module"], "MODULE:FACTORY"),
        (["a.pth", "--reference", "no_such_module:build"], "no_such_module"),
        (["a.pth", "-o", "b.pdparams"], "-o"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(capsys, checkpoint, monkeypatch, arguments, said):
    monkeypatch.chdir(checkpoint().parent)
    assert main(arguments) == USAGE
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_without_pytorch_it_is_one_sentence(tmp_path):
    """A process in which PyTorch cannot be found, as on a machine that has none."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'torch' else find_spec(name, package)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "convert.parity", "a.pth"],
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == FAILED and done.stdout == ""
    assert done.stderr == "error: this command compares with PyTorch, which is not installed: pip install torch\n"


def test_images_are_compared_too(compare, checkpoint, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "one.png")
    status, [result], _ = compare(checkpoint(), "--images", tmp_path / "images", "--steps", 0)
    assert status == OK and result["inputs"] == 5 and result["steps"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "cspresnet50", "tf_efficientnet_cc_b0_4e", "condensenet74_c4_g4"])
def test_full_size_networks(compare, tmp_path, oracles, name):
    from tests.peers import tool

    state, _, _ = tool("oracle_weights").load_oracle(oracles / "full" / name)
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, tmp_path / "a.pth")
    status, [result], err = compare(tmp_path / "a.pth", "--steps", 2)
    assert status == OK, err
    assert result["exact_steps"] == [] or max(step["gradient"]["size"] for step in result["exact_steps"]) < 1e-9
