"""EfficientNet-CondConv in Paddle: its two forms, its head, drop path, its start, and how it is read from a file."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense.errors import WeightsError
from paddle_dense.layers import silu
from paddle_dense.models.condconv import EfficientNetCondConv
from paddle_dense.models.network import presets
from paddle_dense.models.recognise import recognise
from tests.helpers import answers, arrays, loaded, random_images, settled, shapes
from tests.helpers import small as small_network


@pytest.fixture
def small(randomise):
    """A small network in a state in which every tensor matters and images decide about the answers."""
    return lambda **changes: settled(randomise(small_network("CondConv", **changes)), random_images(6, 3, 64, 64))


@pytest.mark.parametrize("preset", presets(EfficientNetCondConv), ids=lambda preset: preset.name)
def test_a_file_fits_both_forms(preset):
    """The released one is taken unless the user names the other."""
    network = preset.build({})
    state = arrays(network)
    assert network.feature_channels == [16, 24, 40, 112, 320]
    name = preset.name if preset.name.startswith("tf_") else f"tf_{preset.name}"
    assert recognise(state).arch == name
    assert recognise(state, arch=preset.name).config["same_padding"] == preset.name.startswith("tf_")
    assert recognise(state, arch=preset.name).build().config == network.config


def test_what_no_file_shows_is_said_to_be_a_guess(small):
    found = EfficientNetCondConv.recognise(arrays(small()))
    assert found.config["same_padding"] is True
    assert found.config["bn_eps"] == 1e-3
    assert found.guesses == ("same_padding", "bn_eps")
    warnings = recognise(arrays(small())).warnings
    assert len(warnings) == 2
    assert "same_padding=True is assumed; use --config same_padding=VALUE" in warnings[0]


def test_a_pyramids_tensors_are_recognised():
    state = arrays(small_network("CondConv", features_only=True))
    rebuilt = EfficientNetCondConv(**EfficientNetCondConv.recognise(state).config)
    assert rebuilt.features_only
    assert shapes(rebuilt) == shapes(state)


def test_another_networks_file_is_left_to_others(tiny_state):
    assert EfficientNetCondConv.recognise(tiny_state("converted.pth")) is None


def test_stages_that_no_multiplier_gives_are_an_error():
    state = arrays(small_network("CondConv"))
    state["bn1.weight"] = np.ones(4096, "f4")
    with pytest.raises(WeightsError, match=r"the stages have \[4096, .*\] channels and no multiple of EfficientNet-B0"):
        EfficientNetCondConv.recognise(state)


def test_the_pyramid_and_the_classifier_see_the_same_features(small, difference):
    network, pyramid = small(), small_network("CondConv", features_only=True)
    loaded(pyramid, {name: value for name, value in arrays(network).items() if name in pyramid.state_dict()})
    x = random_images(2, 3, 64, 64)
    last = paddle.to_tensor(answers(pyramid, x)[-1])
    pooled = silu(network.bn2(network.conv_head(last))).mean([2, 3])
    assert difference(answers(network, x), network.classifier(pooled)) == 0


def test_training_drops_samples_past_blocks_and_features_before_the_classifier(small):
    x = paddle.to_tensor(random_images(2, 3, 64, 64))
    network = small(drop_path_rate=0.9)
    rates = [block.drop_path for stage in network.blocks for block in stage]
    assert rates == pytest.approx(0.9 * np.arange(len(rates)) / len(rates))
    block = network.blocks[5][1]
    block.drop_path = 0.5
    features = paddle.randn([64, 48, 2, 2])
    block.eval()
    whole = (block(features) - features).numpy()
    block.train()
    for layer in (block.bn1, block.bn2, block.bn3):
        layer.eval()
    kept = (block(features) - features).numpy()
    dropped = np.abs(kept).reshape(64, -1).max(1) == 0
    assert 10 < dropped.sum() < 54
    assert np.abs(kept[~dropped] - 2 * whole[~dropped]).max() < 1e-4 * np.abs(whole).max()

    network = small(drop_rate=0.5)
    network.dropout.train()
    assert np.abs(network(x).numpy() - network(x).numpy()).max() > 0


def test_the_weights_begin_as_the_originals():
    """N(0, sqrt(2 / (k * k * out / g))) for convolutions of experts or not; uniform for the linear layers, biases 0."""
    network = EfficientNetCondConv(num_experts=4, num_classes=10)
    block = network.blocks[5][0]
    for layer, fan_out in ((network.conv_head, 1280), (block.conv_pw, 672), (block.conv_dw, 25), (block.conv_pwl, 192)):
        assert layer.weight.numpy().std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    assert network.blocks[1][0].conv_dw.weight.numpy().std() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    for layer, bound in ((network.classifier, 10**-0.5), (block.routing_fn, (112 + 4) ** -0.5)):
        assert 0.9 * bound < np.abs(layer.weight.numpy()).max() <= bound
        assert not layer.bias.numpy().any()
    assert not block.se.conv_reduce.bias.numpy().any()
