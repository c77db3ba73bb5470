"""CondenseNet through the command: the original's files, pytorchcv's names, and a classifier halved or not."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

import paddle_dense
from convert.torch2paddle import FAILED, OK, USAGE, main

torch = pytest.importorskip("torch", reason="checks against PyTorch: pip install torch")

from convert.torch_models.condensenet import CondenseNet
from tests.helpers import answers, random_images
from tests.peers import peer, tool


def convert(capsys, *arguments) -> tuple[int, dict, str]:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments] + ["--json", "--force"])
    out, err = capsys.readouterr()
    return status, json.loads(out), err


@pytest.mark.parametrize(
    ("name", "options", "logits"),
    [
        ("trained_unconverted.pth.tar", [], "logits_unconverted"),
        ("trained_unconverted.pth.tar", ["--keep-trained-form"], "logits_unconverted"),
        ("trained_unconverted.pth.tar", ["--condense-classifier"], "logits_converted"),
        ("converted.pth", [], "logits_converted"),
    ],
)
def test_the_originals_files_keep_their_answers(capsys, data, tmp_path, difference, name, options, logits):
    target = tmp_path / "tiny.pdparams"
    status, result, err = convert(capsys, data / f"condensenet_tiny_{name}", "-o", target, *options)
    assert status == OK
    assert result["verified"]
    oracle = np.load(data / "condensenet_tiny_io.npz")
    assert difference(answers(paddle_dense.load_model(target), oracle["x_eval"]), oracle[logits]) < 1e-6
    halved = "--condense-classifier" in options
    assert ("reads half of its inputs" in err) is halved
    assert (
        any("reads half" in warning for warning in json.loads((tmp_path / "tiny.json").read_text())["warnings"])
        is halved
    )


def test_halving_the_classifier_gives_the_originals_file_bit_for_bit(capsys, data, tmp_path):
    options = ["--condense-classifier", "-o", tmp_path / "ours.pdparams"]
    convert(capsys, data / "condensenet_tiny_trained_unconverted.pth.tar", *options)
    convert(capsys, data / "condensenet_tiny_converted.pth", "-o", tmp_path / "theirs.pdparams")
    ours, theirs = (paddle.load(str(tmp_path / f"{name}.pdparams")) for name in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy(), err_msg=name)


def test_halving_is_refused_where_it_makes_no_sense(capsys, data, tmp_path):
    target = tmp_path / "x.pdparams"
    for name in ("condensenet_tiny_converted.pth", "cdnv2_tiny_converted.pth"):
        status, _, err = convert(capsys, data / name, "--condense-classifier", "-o", target)
        assert status == USAGE
        assert "--condense-classifier" in err
        assert not target.exists()
    trained = data / "condensenet_tiny_trained_unconverted.pth.tar"
    status, _, err = convert(capsys, trained, "--condense-classifier", "--keep-trained-form", "-o", target)
    assert status == USAGE
    assert not target.exists()


def test_the_full_size_network_under_pytorchcvs_names(capsys, oracles, tmp_path, difference):
    state, x, logits = tool("oracle_weights").load_oracle(oracles / "full" / "condensenet74_c4_g4")
    checkpoint = tmp_path / "condensenet74.pth"
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, checkpoint)

    status, result, _ = convert(capsys, checkpoint)

    assert status == OK
    assert result["arch"] == "condensenet74_c4"
    assert result["params"] == 4_773_944
    [warning] = result["warnings"]
    assert "init_stride=2, which condensenet74_c4 has" in warning
    assert difference(answers(paddle_dense.load_model(result["output"]), x), logits) < 1e-6


@pytest.mark.parametrize("name", ["condensenet74_c4_g4", "condensenet74_c8_g8"])
def test_pytorchcvs_own_networks(capsys, tmp_path, difference, randomise, name):
    theirs = randomise(peer("pytorchcv.model_provider").get_model(name)).eval()
    # Its units do not know how many channels they choose from; any permutation stays in range.
    checkpoint = tmp_path / "theirs.pth"
    torch.save({"state_dict": theirs.state_dict()}, checkpoint)

    status, result, _ = convert(capsys, checkpoint)

    assert status == OK
    assert result["arch"] == name[:-3]
    x = random_images(2, 3, 224, 224)
    assert difference(answers(paddle_dense.load_model(result["output"]), x), answers(theirs, x)) < 1e-5


@pytest.mark.parametrize("factor", [2, 8])
def test_other_factors_than_groups(capsys, tmp_path, difference, randomise, factor):
    config = {"stages": [1, 2, 1], "growth": [8, 8, 16], "num_classes": 5, "condense_factor": factor}
    twin = randomise(CondenseNet(**config, condensed=False)).eval()
    # Files from before PyTorch 0.4.1 have no num_batches_tracked.
    state = {f"module.{k}": v for k, v in twin.state_dict().items() if "num_batches" not in k}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pth.tar", _use_new_zipfile_serialization=False)

    status, result, _ = convert(capsys, tmp_path / "a.pth.tar")

    assert status == OK
    assert result["config"]["condense_factor"] == factor
    x = random_images(2, 3, 32, 32)
    assert difference(answers(paddle_dense.load_model(result["output"]), x), answers(twin, x)) < 2e-6


def test_an_under_condensed_net_is_refused(capsys, tmp_path, randomise):
    twin = CondenseNet([1, 1, 1], [8, 8, 8], condensed=False)
    for module in twin.modules():
        if hasattr(module, "set_progress"):
            module.set_progress(0.3)
    torch.save(twin.state_dict(), tmp_path / "early.pth")
    status, _, err = convert(capsys, tmp_path / "early.pth")
    assert status == FAILED
    assert "is not condensed yet: 75.0%" in err
