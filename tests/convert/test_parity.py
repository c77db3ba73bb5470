"""The comparison itself: what it measures, and that it finds what differs."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense.data import Preprocessing
from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_paddle

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")

from convert.parity import forward
from convert.torch_models.condensenetv2 import CondenseNetV2 as Twin
from paddle_dense.models import CondenseNetV2

CONFIG = {"stages": [1, 1], "growth": [8, 8], "fc_channel": 16, "num_classes": 5}
CONFIG.update(group_1x1=4, group_3x3=4, group_trans=4, HS_start_block=1, SE_start_block=1)


@pytest.fixture
def pair(randomise):
    """The twin and the Paddle network with the same non-trivial state."""
    twin = randomise(Twin(**CONFIG))
    model = CondenseNetV2(**CONFIG)
    model.set_state_dict(to_paddle({name: value.numpy() for name, value in twin.state_dict().items()}))
    return twin, model


def test_equal_networks_agree_on_every_layer(pair):
    batches = forward.random_batches(3, 32)
    result = forward.compare(*pair, batches)
    assert result.max_rel_diff < 1e-6 and result.top1_agreement == 1 and result.inputs == 4
    layers = forward.layer_differences(*pair, batches[0])
    assert {"features.denseblock_1.denselayer_1.sfr", "features.se_last", "classifier"} <= {x.name for x in layers}
    assert all(layer.max_rel_diff < 1e-5 for layer in layers)
    assert forward.first_difference(layers, 1e-5) is None


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("features.denseblock_1.denselayer_1.conv_2.norm._variance", "features.denseblock_1.denselayer_1.conv_2.norm"),
        ("features.denseblock_2.denselayer_1.sfr.conv.weight", "features.denseblock_2.denselayer_1.sfr"),
        ("features.denseblock_2.denselayer_1.conv_1.index", "features.denseblock_2.denselayer_1.conv_1.norm"),
        ("classifier.bias", "classifier"),
    ],
)
def test_a_changed_tensor_is_found_in_its_layer(pair, tensor, layer):
    twin, model = pair
    value = model.state_dict()[tensor]
    value.set_value(paddle.flip(value, axis=[0]))
    batch = forward.random_batches(3, 32)[0]
    assert forward.compare(twin, model, [batch]).max_rel_diff > 1e-4
    assert forward.first_difference(forward.layer_differences(twin, model, batch), 1e-5).name == layer


def test_not_a_number_is_a_difference(pair):
    twin, model = pair
    model.classifier.bias.set_value(np.full(5, np.nan, np.float32))
    result = forward.compare(twin, model, forward.random_batches(3, 32))
    assert not result.max_rel_diff <= 1e9


def test_what_float32_cannot_settle_float64_does(pair):
    batches = forward.random_batches(3, 32)
    result, warnings = forward.settled(*pair, batches, atol=1e-10)
    assert result.max_rel_diff < 1e-12 and len(warnings) == 1 and "in float64 they agree to" in warnings[0]
    result, warnings = forward.settled(*pair, batches, atol=1e-5)
    assert 0 < result.max_rel_diff < 1e-5 and warnings == []
    pair[1].classifier.bias.set_value(pair[1].classifier.bias + 1e-3)
    result, warnings = forward.settled(*pair, batches, atol=1e-5)
    assert result.max_rel_diff > 1e-5 and warnings == []


def test_the_exact_pair_is_a_copy_in_float64(pair):
    twin, model = pair
    index = model.state_dict()["features.denseblock_1.denselayer_1.conv_1.index"].numpy()
    with forward.exact_pair(twin, model) as (exact_twin, exact_model):
        assert paddle.get_default_dtype() == "float64"
        layers = forward.layer_differences(exact_twin, exact_model, forward.random_batches(3, 32)[0])
        assert max(layer.max_rel_diff for layer in layers) < 1e-13
        copied = exact_model.state_dict()
        assert copied["fc.weight"].dtype == paddle.float64
        assert (copied["features.denseblock_1.denselayer_1.conv_1.index"].numpy() == index).all()
        assert copied["features.denseblock_1.denselayer_1.conv_1.index"].dtype == paddle.int64
    assert paddle.get_default_dtype() == "float32"
    assert twin.fc.weight.dtype == torch.float32 and model.fc.weight.dtype == paddle.float32


@pytest.mark.parametrize("pixels", [4, 7])
def test_float64_has_no_constant_in_float32_left(pixels):
    """Forward and backward through what has constants: BN, leaky ReLU, the average over 16 and 49 pixels."""
    theirs = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3, eps=1e-3), torch.nn.LeakyReLU(0.01), torch.nn.AdaptiveAvgPool2d(1)
    )
    ours = paddle.nn.Sequential(
        paddle.nn.BatchNorm2D(3, epsilon=1e-3), paddle.nn.LeakyReLU(0.01), paddle.nn.AdaptiveAvgPool2D(1)
    )
    x = np.random.default_rng(0).standard_normal((2, 3, pixels, pixels))
    with forward.exact_pair(theirs, ours) as (theirs, ours):
        expected = theirs(torch.from_numpy(x))
        expected.square().sum().backward()
        found = ours(paddle.to_tensor(x))
        found.square().sum().backward()
    np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), rtol=1e-13)
    np.testing.assert_allclose(ours[0].weight.grad.numpy(), theirs[0].weight.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours[0]._mean.numpy(), theirs[0].running_mean.numpy(), rtol=1e-13)


def test_modes_are_put_back(pair):
    twin, model = pair
    twin.train()
    model.train()
    forward.compare(twin, model, forward.random_batches(3, 32))
    assert twin.training and model.training


def test_different_numbers_of_classes_are_an_error(pair, randomise):
    other = randomise(Twin(**{**CONFIG, "num_classes": 6}))
    with pytest.raises(WeightsError, match=r"PyTorch answers \[4, 6\] and Paddle \[4, 5\]"):
        forward.compare(other, pair[1], forward.random_batches(3, 32))


def test_a_state_that_does_not_fit_names_the_tensor(pair):
    twin, _ = pair
    state = {name: value.numpy() for name, value in twin.state_dict().items()}
    for change, said in (
        (lambda s: s.pop("fc.weight"), "fc.weight is missing"),
        (lambda s: s.update(extra=np.zeros(3, np.float32)), "extra is not in the network"),
        (lambda s: s.update({"fc.bias": np.zeros(3, np.float32)}), r"fc.bias is \[3\] there and \[16\]"),
    ):
        changed = dict(state)
        change(changed)
        with pytest.raises(WeightsError, match=said):
            forward.load_torch_state(twin, changed)


def test_grey_and_colour_images_become_batches(tmp_path):
    from PIL import Image

    for number in range(9):
        Image.new("L", (40 + number, 50), number * 20).save(tmp_path / f"{number}.png")
    for channels in (1, 3):
        preprocessing = Preprocessing.for_network(32, channels)
        batches = list(forward.image_batches(tmp_path, preprocessing, channels))
        assert [batch.shape for batch in batches] == [(8, channels, 32, 32), (1, channels, 32, 32)]
        assert batches[0].dtype == np.float32
        # The first image is black, and nothing but its normalisation remains.
        black = -np.array(preprocessing.mean) / np.array(preprocessing.std)
        np.testing.assert_allclose(batches[0][0].mean(axis=(1, 2)), black, rtol=1e-5)
