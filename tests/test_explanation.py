"""Heat maps and features of every family, against PyTorch's gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

import paddle_dense as pd_
from paddle_dense.commands import deploy, predict
from paddle_dense.data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from paddle_dense.explanation import grad_cam, overlay, pooled_features
from paddle_dense.files.layout import to_torch
from paddle_dense.process import FAILED, OK, USAGE
from tests.helpers import SMALL, answers, arrays, loaded, random_images, settled, small, twin_class

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "cdnv2_digits.pdparams"
SIDE = 64


@pytest.fixture(scope="module", params=SMALL)
def network(request):
    """A network of every kind, with lived-in statistics."""
    paddle.seed(1)  # whatever ran before; each test is seeded only after this
    return request.param, settled(small(request.param), random_images(8, 3, SIDE, SIDE, seed=3))


def theirs(kind: str, state: dict, x: np.ndarray, classes: list[int]) -> np.ndarray:
    """Grad-CAM by PyTorch's hooks and gradients, in float64."""
    import torch

    from convert.parity.forward import in_double_precision

    name, config = SMALL[kind]
    twin = in_double_precision(loaded(twin_class(name)(**config), to_torch(state)))
    maps = []

    def hook(module, inputs, output):
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            maps.append(output)

    for module in twin.modules():
        if module is not twin:
            module.register_forward_hook(hook)
    logits = twin(torch.from_numpy(x).double())
    logits[torch.arange(len(classes)), torch.tensor(classes)].sum().backward(inputs=[maps[-1]])
    heat = torch.relu((maps[-1].grad.mean((2, 3), keepdim=True) * maps[-1]).sum(1)).detach().numpy()
    return heat / np.maximum(heat.max((1, 2), keepdims=True), 1e-30)


def test_heat_maps_are_those_of_pytorchs_gradients(network):
    kind, model = network
    x = random_images(4, 3, SIDE, SIDE)
    classes = [0, 1, 2, 3]
    pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")
    from convert.parity.forward import double_precision, paddle_in_double_precision

    with double_precision():
        expected = theirs(kind, arrays(model), x, classes)
        found = grad_cam(paddle_in_double_precision(model), x.astype("float64"), classes)
    assert found.shape == expected.shape and found.shape[1] > 1
    assert found.min() >= 0 and found.max() == 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    in_float32 = grad_cam(model, x, classes)
    warm = in_float32.any((1, 2))  # in one image of one network the parts cancel out but for rounding
    assert in_float32.dtype == np.float32 and warm.sum() >= 3
    np.testing.assert_allclose(in_float32[warm], expected[warm], rtol=0, atol=2e-2)


def test_where_nothing_speaks_for_a_class_nothing_is_warm():
    model = small("DenseNet")
    model.classifier.weight.set_value(paddle.zeros_like(model.classifier.weight))
    assert not grad_cam(model, random_images(2, 3, SIDE, SIDE), [0, 1]).any()


def test_the_first_answer_is_explained_unless_a_class_is_named(network):
    _, model = network
    x = random_images(3, 3, SIDE, SIDE)
    model.train()
    before = arrays(model)
    found = grad_cam(model, x)
    assert model.training and all(np.array_equal(before[name], value) for name, value in arrays(model).items())
    np.testing.assert_array_equal(found, grad_cam(model, x, answers(model, x).argmax(1).tolist()))
    model.eval()
    hooks = [layer._forward_post_hooks for layer in model.sublayers()]
    assert not any(hooks) and all(parameter.grad is None for parameter in model.parameters())


def test_features_are_what_a_network_without_its_classifier_answers(network, tmp_path):
    _, model = network
    pd_.save_weights(model, tmp_path / "net.pdparams")
    headless = pd_.load_model(tmp_path / "net.pdparams", num_classes=0)
    x = random_images(3, 3, SIDE, SIDE)
    features, logits = pooled_features(model, x)
    expected = answers(headless, x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-6 * scale)
    np.testing.assert_array_equal(logits, answers(model, x))


def test_what_is_cold_stays_and_what_is_hot_is_yellow():
    done = Preprocessing(32, 32)
    pixels = np.full([3, 32, 32], 0.5, np.float32)
    mean, std = (np.reshape(values, [3, 1, 1]) for values in (IMAGENET_MEAN, IMAGENET_STD))
    heat = np.zeros([4, 4], np.float32)
    heat[0, 0] = 1
    drawn = np.asarray(overlay((pixels - mean) / std, heat, done)).astype(int)
    assert drawn.shape == (32, 32, 3) and np.abs(drawn[16:, 16:] - 128).max() <= 1
    red, green, blue = drawn[1, 1]
    assert red > 190 and green > 150 and blue < 80
    grey = overlay(np.zeros([1, 32, 32], np.float32), heat, Preprocessing(32, 32, mean=(0.5,), std=(0.5,)))
    assert grey.size == (32, 32) and grey.mode == "RGB"


@pytest.fixture
def images(tmp_path):
    """Two grey images of one name in two folders."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, [40, 40], np.uint8)
        Image.fromarray(pixels).save(tmp_path / folder / "x y.png")
    return [str(tmp_path / folder) for folder in ("a", "b")]


def test_the_command_draws_and_writes_features(images, tmp_path, capsys):
    heat, features = tmp_path / "new" / "heat", tmp_path / "x.npz"
    arguments = [str(WEIGHTS), *images, "--explain", str(heat), "--embed", str(features)]
    assert predict.main(arguments) == OK
    assert sorted(path.name for path in heat.iterdir()) == ["x_y-2.png", "x_y.png"]
    for path in heat.iterdir():
        with Image.open(path) as image:
            assert image.size == (32, 32) and image.mode == "RGB"
    model = pd_.load_model(WEIGHTS)
    x = paddle.stack([model.preprocessing.transforms()(f"{folder}/x y.png") for folder in images]).numpy()
    with np.load(features, allow_pickle=False) as found:
        assert found["images"].tolist() == [f"{folder}/x y.png" for folder in images]
        np.testing.assert_allclose(found["features"], pooled_features(model, x)[0], rtol=0, atol=1e-5)
    capsys.readouterr()
    assert predict.main(arguments) == FAILED
    assert "x.npz exists already: give another name with --embed" in capsys.readouterr().err
    features.unlink()
    assert predict.main(arguments) == FAILED
    assert "x_y.png exists already: give another name with --explain" in capsys.readouterr().err
    assert predict.main([*arguments, "--force"]) == OK


def test_exported_files_cannot_be_looked_into(images, tmp_path, capsys):
    assert deploy.main([str(WEIGHTS), "-o", str(tmp_path / "net")]) == OK
    capsys.readouterr()
    for option, value in (("--explain", "heat"), ("--embed", "x.npz")):
        assert predict.main([str(tmp_path / "net"), *images, option, str(tmp_path / value)]) == USAGE
        err = capsys.readouterr().err
        assert f"{option} looks into the network, and {tmp_path / 'net'} is exported: give its weights" in err
    assert predict.main([str(WEIGHTS), *images, "--embed", "x.npy"]) == USAGE
    assert "--embed x.npy must end in .npz" in capsys.readouterr().err
