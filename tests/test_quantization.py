"""Paddle's own tools on our networks: post-training quantization, and the summary that calls every layer."""

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from paddle.quantization import PTQ, QuantConfig
from paddle.quantization.observers import AbsmaxObserver

import paddle_dense as pd_
from paddle_dense.layers import CondenseSFR
from paddle_dense.layers.learned import MaskedConv2D
from tests.helpers import SMALL, answers, random_images, settled, small

KINDS = [paddle.nn.Conv2D, paddle.nn.Linear]
X = random_images(4, 3, 32, 32, seed=2)


def lived_in(network):
    """With statistics of images, and rows of SFR that share targets and leave channels out."""
    random = np.random.default_rng(0)
    for layer in network.sublayers():
        if isinstance(layer, CondenseSFR):
            rows, channels = layer.index.shape
            layer.index.set_value(np.eye(channels, dtype="float32")[random.integers(0, channels, rows)])
    return settled(network, random_images(8, 3, 32, 32))


def quantized(network, activations=True):
    """After observers have seen images: the network that observes, and the converted one."""
    config = QuantConfig(activation=None, weight=None)
    config.add_type_config(KINDS, activation=AbsmaxObserver() if activations else None, weight=AbsmaxObserver())
    tool = PTQ(config)
    observing = tool.quantize(network)
    seen = answers(observing, X)
    return seen, tool.convert(observing)


def rounded(network):
    """The network with the weights that 127 steps on each side of 0 leave, tensor by tensor, in place."""
    for layer in network.sublayers():
        if type(layer) in KINDS:
            weight = layer.weight.numpy().astype("float64")
            step = np.abs(weight).max() / 127
            layer.weight.set_value((np.round(weight / step) * step).astype("float32"))
    return network


@pytest.mark.parametrize("kind", SMALL)
def test_observers_change_nothing_and_weights_are_rounded_as_by_hand(kind, difference):
    network = lived_in(small(kind))
    expected = answers(network, X)
    observed, converted = quantized(network, activations=False)
    assert difference(observed, expected) < 1e-6
    # CondConv's gates amplify rounding: its logits are 1e5 here.
    tolerance = 1e-3 if kind.startswith("CondConv") else 1e-5
    assert difference(answers(converted, X), answers(rounded(network), X)) < tolerance


@pytest.mark.parametrize("kind", ["CondenseNetV2, condensed", "CondenseNetV2, trained", "CondenseNet, condensed"])
def test_activations_in_8_bits_are_close(kind, difference):
    network = lived_in(small(kind))
    _, converted = quantized(network)
    assert 0 < difference(answers(converted, X), answers(network, X)) < 0.1


@pytest.mark.parametrize("kind", ["CondenseNetV2, condensed", "CondenseNetV2, trained"])
def test_a_quantized_network_is_saved_and_run(tmp_path, kind, difference):
    if lost_by_saving(paddle.vision.models.LeNet(), random_images(2, 1, 28, 28), tmp_path, difference) > 1e-4:
        pytest.skip(f"Paddle {paddle.__version__} does not keep the numbers of its own LeNet: needs Paddle 2.6")
    assert lost_by_saving(lived_in(small(kind)), X, tmp_path, difference) < 1e-6


def lost_by_saving(network, x, folder, difference):
    """What `paddle.jit.save` and `paddle.jit.load` change in a quantized network's answers."""
    network.eval()
    config = QuantConfig(activation=None, weight=None)
    config.add_type_config(KINDS, activation=AbsmaxObserver(), weight=AbsmaxObserver())
    tool = PTQ(config)
    observing = tool.quantize(network)
    answers(observing, x)
    converted = tool.convert(observing)
    converted.eval()
    paddle.jit.save(converted, str(folder / "net"), [paddle.static.InputSpec(list(x.shape), "float32")])
    return difference(answers(paddle.jit.load(str(folder / "net")), x), answers(converted, x))


def test_the_grouped_convolution_of_sfr_is_quantized():
    network = small("CondenseNetV2, condensed")
    network.eval()
    _, converted = quantized(network)
    kinds = {type(layer.conv).__name__ for layer in converted.sublayers() if isinstance(layer, CondenseSFR)}
    assert kinds == {"QuantedConv2D"}


def test_a_masked_convolution_stays_in_floats():
    network = small("CondenseNetV2, trained")
    network.eval()
    _, converted = quantized(network)
    count = [sum(isinstance(layer, MaskedConv2D) for layer in one.sublayers()) for one in (network, converted)]
    assert count[0] == count[1] > 0


@pytest.mark.parametrize("kind", SMALL)
def test_the_summary_counts_every_parameter(kind, capsys):
    network = small(kind)
    counted = paddle.summary(network, (1, 3, 32, 32))
    assert counted["total_params"] == sum(int(parameter.size) for parameter in network.parameters())


def test_sfr_answers_the_same_when_somebody_listens(difference):
    network = lived_in(small("CondenseNetV2, condensed"))
    expected, heard = answers(network, X), []
    for layer in network.sublayers():
        if isinstance(layer, CondenseSFR):
            layer.conv.register_forward_post_hook(lambda *_: heard.append(1))
    assert difference(answers(network, X), expected) < 1e-6
    assert len(heard) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", pd_.list_models())
def test_every_preset_is_quantized_and_summarised(name, difference, capsys):
    network = pd_.create_model(name, num_classes=10)
    counted = paddle.summary(network, (1, 3, 64, 64))
    assert counted["total_params"] == sum(int(parameter.size) for parameter in network.parameters())
    network.eval()
    expected = answers(network, X)
    observed, converted = quantized(network)
    assert difference(observed, expected) < 1e-5
    assert np.isfinite(answers(converted, X)).all()
