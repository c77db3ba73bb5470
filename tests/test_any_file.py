"""Wherever a file of weights is taken, a PyTorch file is, and gives what converting it and loading the result gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import paddle
import pytest

from convert.torch2paddle import main as torch2paddle
from paddle_dense import CondenseNetV2, create_model, load_model, load_weights
from paddle_dense.errors import WeightsError
from paddle_dense.files import read_weights, write_torch, write_weights
from paddle_dense.files.layout import to_torch
from tests.helpers import SMALL, arrays, small
from tests.peers import peer

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
# Of each: the file and arguments that are the network's, which no tensor shows.
FILES = {
    "cdnv2_tiny_converted.pth": {"HS_start_block": 1},
    "cdnv2_tiny_trained_unconverted.pth.tar": {"HS_start_block": 1},
    "cdnv2_tiny_ema.pth.tar": {"HS_start_block": 1},
    "condensenet_tiny_converted.pth": {},
    "condensenet_tiny_trained_unconverted.pth.tar": {},
    "../../weights/cdnv2_digits.pth": {},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*(does not reveal|took the weights|left out|may be)")


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", FILES)
def test_a_pytorch_file_gives_what_converting_it_gives(name, tmp_path):
    config, target = FILES[name], tmp_path / "net.pdparams"
    options = [f"--config={key}={value}" for key, value in config.items()]
    assert torch2paddle([str(DATA / name), "--no-verify", "-o", str(target), *options]) == 0
    found, expected = load_model(DATA / name, **config), load_model(target)
    assert found.arch == expected.arch and found.config == expected.config
    assert_identical(arrays(found), arrays(expected))
    assert found.config.get("condensed", True)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_family_is_loaded_from_pytorchs_files(kind, suffix, tmp_path, randomise):
    source = randomise(small(kind))
    state, path = to_torch(arrays(source)), tmp_path / f"net{suffix}"
    if suffix == ".pth":
        with path.open("wb") as file:
            write_torch(state, file)
    else:
        write_weights(state, path, {"format": "pt"})
    other = randomise(small(kind), seed=1)
    assert load_weights(other, path) == ([], [])
    assert_identical(arrays(other), arrays(source))
    form = {"condensed": False} if source.config.get("condensed") is False else {}
    rebuilt = load_model(path, **form)
    assert_identical(arrays(rebuilt), arrays(source))


def test_nothing_of_it_needs_pytorch(tmp_path):
    script = """
        import sys
        sys.modules["torch"] = None
        from paddle_dense import create_model, load_model, load_weights
        model = load_model("weights/cdnv2_digits.pth")
        other = type(model)(**model.config)
        assert load_weights(other, "weights/cdnv2_digits.pth") == ([], [])
        print(model.arch, all((a == b).all() for a, b in zip(model.parameters(), other.parameters())))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["CondenseNetV2", "True"]


def test_a_checkpoint_of_timm_answers_as_timm_does(tmp_path, randomise, difference):
    timm = peer("timm")
    import torch

    theirs = randomise(timm.create_model("densenet121", num_classes=7)).eval()
    torch.save({"epoch": 3, "state_dict": theirs.state_dict()}, tmp_path / "model.pth.tar")
    ours = create_model("densenet121", pretrained=tmp_path / "model.pth.tar", num_classes=7)
    ours.eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype("f4")
    with torch.no_grad():
        expected = theirs.double()(torch.from_numpy(x).double())
    assert difference(ours.to(dtype="float64")(paddle.to_tensor(x.astype("f8"))), expected) < 1e-12


def test_any_network_of_paddle_takes_the_file_of_its_twin_in_pytorch(tmp_path, difference):
    torch = pytest.importorskip("torch", reason="is what the file comes from")
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 16)
    )
    with torch.no_grad():
        for buffer in (theirs[1].running_mean, theirs[1].running_var):
            buffer.uniform_(0.5, 2)
    theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    ours = paddle.nn.Sequential(
        paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Flatten(), paddle.nn.Linear(16, 16)
    )
    assert load_weights(ours, tmp_path / "net.pth") == ([], [])
    ours.eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype("f4")
    assert difference(ours(paddle.to_tensor(x)), theirs(torch.from_numpy(x))) < 1e-6


# Forms


TRAINED = DATA / "cdnv2_tiny_trained_unconverted.pth.tar"


def test_the_trained_form_is_condensed_or_kept(tmp_path, tiny, tiny_state):
    kept = load_model(TRAINED, condensed=False, HS_start_block=1)
    assert kept.config["condensed"] is False
    assert_identical(
        arrays(kept), {name: tiny_state("trained_unconverted.pth.tar")[name] for name in kept.state_dict()}
    )
    condensed = arrays(load_model(TRAINED, HS_start_block=1))
    for model in (CondenseNetV2(**tiny), CondenseNetV2(**tiny)):
        load_weights(model, TRAINED)
        assert_identical(arrays(model), condensed)
    assert load_weights(model, TRAINED, strict=False) == ([], [])
    assert_identical(arrays(model), condensed)
    trained = CondenseNetV2(**tiny, condensed=False)
    load_weights(trained, TRAINED)
    assert_identical(arrays(trained), arrays(kept))


def test_a_paddle_file_stays_in_its_form_unless_asked(tmp_path, randomise):
    trained = randomise(small("CondenseNetV2, trained"))
    write_weights(arrays(trained), tmp_path / "net.pdparams")
    assert_identical(arrays(load_model(tmp_path / "net.pdparams")), arrays(trained))
    condensed = load_model(tmp_path / "net.pdparams", condensed=True)
    other = small("CondenseNetV2, condensed")
    load_weights(other, tmp_path / "net.pdparams")
    assert_identical(arrays(other), arrays(condensed))


@pytest.mark.parametrize("file", ["cdnv2_tiny_converted.pth", "densenet.pth"])
def test_nobody_gets_the_trained_form_back(file, tmp_path, randomise):
    path = DATA / file
    if file == "densenet.pth":
        path = tmp_path / file
        with path.open("wb") as opened:
            write_torch(to_torch(arrays(randomise(small("DenseNet")))), opened)
    with pytest.raises(WeightsError, match=f"{file}: .*leave condensed=False out$"):
        load_model(path, condensed=False)


def test_what_is_not_condensed_far_enough_says_how_to_have_it(tmp_path, randomise):
    model = randomise(small("CondenseNetV2, trained"))
    state = to_torch(arrays(model))
    for name in state:
        if name.endswith("._mask"):
            state[name] = np.ones_like(state[name])
    with (tmp_path / "net.pth").open("wb") as file:
        write_torch(state, file)
    with pytest.raises(WeightsError, match=r"net\.pth: .* is not condensed yet.*in Python: condensed=False") as caught:
        load_model(tmp_path / "net.pth")
    assert "\n" not in str(caught.value)
    assert load_model(tmp_path / "net.pth", condensed=False).config["condensed"] is False


def test_the_classifier_of_another_task_is_left_out_of_the_trained_form(tmp_path):
    with warnings.catch_warnings(record=True):
        model = load_model(TRAINED, HS_start_block=1, num_classes=3)
    same = arrays(load_model(TRAINED, HS_start_block=1))
    assert model.classifier.weight.shape == [64, 3]
    assert_identical(
        {name: value for name, value in arrays(model).items() if not name.startswith("classifier")},
        {name: value for name, value in same.items() if not name.startswith("classifier")},
    )


# What is said


def test_what_is_taken_and_assumed_is_said():
    with pytest.warns(UserWarning) as said:
        load_model(DATA / "cdnv2_tiny_ema.pth.tar")
    sentences = [str(warning.message) for warning in said]
    assert any("took the weights under" in sentence for sentence in sentences)
    assert any("HS_start_block=" in sentence for sentence in sentences)
    assert all(sentence.startswith(str(DATA)) and "\n" not in sentence for sentence in sentences)
    assert {Path(warning.filename).name for warning in said} == {"test_any_file.py"}


def test_the_plain_weights_and_those_of_a_key_are_there_as_well(tmp_path, randomise):
    torch = pytest.importorskip("torch", reason="writes the checkpoint")
    sources = {
        key: randomise(small("DenseNet"), seed=seed) for seed, key in enumerate(("state_dict_ema", "state_dict"))
    }
    saved = {key: to_torch(arrays(source)) for key, source in sources.items()}
    torch.save(
        {key: {k: torch.from_numpy(np.array(v)) for k, v in state.items()} for key, state in saved.items()},
        tmp_path / "net.pth",
    )
    for options, key in (({}, "state_dict_ema"), ({"ema": False}, "state_dict"), ({"key": "state_dict"}, "state_dict")):
        other = small("DenseNet")
        load_weights(other, tmp_path / "net.pth", **options)
        for found in (other, load_model(tmp_path / "net.pth", **options)):
            assert_identical(arrays(found), arrays(sources[key]))


def test_what_a_whole_module_states_is_held_against_the_network(tmp_path):
    timm = peer("timm")
    import torch

    module = timm.create_model("densenet121", num_classes=3)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 0.5
    torch.save(module, tmp_path / "net.pth")
    for load in (
        lambda: create_model("densenet121", pretrained=tmp_path / "net.pth", num_classes=3),
        lambda: load_model(tmp_path / "net.pth"),
        lambda: load_weights(create_model("densenet121", num_classes=3), tmp_path / "net.pth"),
    ):
        with pytest.raises(WeightsError, match=r"net\.pth: states that layer .* has eps=0\.5") as caught:
            load()
        assert "\n" not in str(caught.value)


# Files that say one thing and hold another


def test_a_pytorch_file_with_paddles_names_is_refused(tmp_path, randomise):
    state = arrays(randomise(small("DenseNet")))
    with (tmp_path / "net.pth").open("wb") as file:
        write_torch(state, file)
    for load in (load_model, lambda path: load_weights(small("DenseNet"), path)):
        with pytest.raises(WeightsError, match=r"net\.pth: has Paddle's names .*write_weights\(read_checkpoint"):
            load(tmp_path / "net.pth")


def test_the_fix_for_pytorchs_names_in_a_paddle_file_works(tmp_path, randomise):
    source = randomise(small("DenseNet"))
    write_weights(to_torch(arrays(source)), tmp_path / "net.pdparams")
    with pytest.raises(WeightsError, match=r"write_weights\(read_weights\(PATH\), 'NAME.safetensors', {'format': 'pt'"):
        load_model(tmp_path / "net.pdparams")
    write_weights(read_weights(tmp_path / "net.pdparams"), tmp_path / "net.safetensors", {"format": "pt"})
    assert_identical(arrays(load_model(tmp_path / "net.safetensors")), arrays(source))


def test_a_sidecar_next_to_a_pytorch_file_is_not_its_own(tmp_path):
    (tmp_path / "net.pth").write_bytes((DATA / "cdnv2_tiny_converted.pth").read_bytes())
    (tmp_path / "net.json").write_text(json.dumps({"arch": "densenet121", "config": {}}))
    assert load_model(tmp_path / "net.pth", HS_start_block=1).arch == "CondenseNetV2"
