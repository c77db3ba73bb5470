"""The small network for photographs that ships: its weights, its answers in both frameworks, and how it is reached."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

import paddle_dense as pd_
from paddle_dense.commands import list as list_command
from paddle_dense.commands import pull
from paddle_dense.files.torch_file import read_checkpoint
from tests.helpers import arrays

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network and an empty cache."""
    monkeypatch.setenv("PADDLE_DENSE_OFFLINE", "1")
    monkeypatch.setenv("PADDLE_DENSE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model():
    found = pd_.create_model("cdnv2_cifar10", pretrained=True)
    found.eval()
    return found


def test_its_weights_are_those_of_the_pytorch_file(model):
    found, expected = arrays(model), arrays(pd_.load_model(WEIGHTS / "cdnv2_cifar10.pth"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert (model.tag, model.arch, list(model.classes)) == ("shipped", "cdnv2_cifar10", CLASSES)
    assert (WEIGHTS / "cdnv2_cifar10.pdparams").stat().st_size < 2_000_000


def test_it_tells_what_the_image_that_ships_shows(model):
    ((name, probability), _) = pd_.predict(model, WEIGHTS / "ship.png", top=2)[0]
    assert name == "ship" and probability > 0.9


def test_it_answers_as_its_original_in_pytorch(model, difference):
    """On crops of real photographs, and on the image that ships."""
    torch, datasets = pytest.importorskip("torch"), pytest.importorskip("sklearn.datasets")
    from convert.torch_models.condensenetv2 import CondenseNetV2

    theirs = CondenseNetV2(**{**model.config, "condensed": True}).eval()
    saved = read_checkpoint(WEIGHTS / "cdnv2_cifar10.pth").state
    theirs.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in saved.items()})
    photographs = [datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    crops = [photo[y : y + 200, x : x + 200] for photo in photographs for y in (0, 200) for x in (0, 200, 400)]
    transforms = model.preprocessing.transforms()
    x = np.stack([transforms(Image.fromarray(crop)).numpy() for crop in crops])
    with torch.no_grad(), paddle.no_grad():
        ours, expected = model(paddle.to_tensor(x)).numpy(), theirs(torch.from_numpy(x)).numpy()
    assert difference(ours, expected) < 2e-6
    assert (ours.argmax(1) == expected.argmax(1)).all()


def test_it_is_listed_and_needs_no_download(capsys):
    assert "cdnv2_cifar10.shipped" in pd_.list_models(pretrained=True)
    assert list_command.main(["cdnv2_cifar10", "--pretrained"]) == 0
    assert " yes " in capsys.readouterr().out
    assert pull.main(["cdnv2_cifar10"]) == 0
    assert "cdnv2_cifar10.pdparams" in capsys.readouterr().out


@pytest.mark.skipif("PADDLE_DENSE_CIFAR10" not in os.environ, reason="needs CIFAR-10's test images: test/CLASS/*.jpg")
def test_its_accuracy_is_the_published_one(capsys):
    from paddle_dense.commands import evaluate

    assert evaluate.main(["cdnv2_cifar10", str(Path(os.environ["PADDLE_DENSE_CIFAR10"], "test"))]) == 0
    assert "83.46%   error 16.54 %, published 16.54 % on CIFAR-10" in capsys.readouterr().out


def test_its_training_cut_off_ends_in_the_same_weights(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(WEIGHTS)
    Training = importlib.import_module("train_cifar").Training
    torch.manual_seed(0)
    images, labels = torch.randn(256, 3, 32, 32), torch.arange(256) % 10

    def train(file, seed):
        torch.manual_seed(seed)
        training = Training(epochs=3, steps_per_epoch=2, file=tmp_path / file)
        training.train(images, labels)
        return training.net.state_dict()

    saving = Training._save

    def cut_off(training):
        saving(training)
        raise KeyboardInterrupt

    whole = train("whole.safetensors", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "_save", cut_off)
        train("cut.safetensors", 1)
    continued = train("cut.safetensors", 2)
    assert 0 < continued["features.denseblock_1.denselayer_1.conv_1._mask"].mean() < 1
    assert all(torch.equal(continued[name], tensor) for name, tensor in whole.items())
    assert (tmp_path / "cut.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
