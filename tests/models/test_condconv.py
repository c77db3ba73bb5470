"""EfficientNet-CondConv in Paddle: the published sizes, its forms, and how it is read from a file."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_paddle
from paddle_dense.files.weights import read_weights, write_weights
from paddle_dense.models.condconv import EfficientNetCondConv
from paddle_dense.models.network import presets
from paddle_dense.models.recognise import recognise
from tests.peers import tool

# Counted on timm's networks.
PARAMETERS = {"cc_b0_4e": 13_314_116, "cc_b0_8e": 24_013_284, "cc_b1_8e": 39_715_968}
SMALL = {"channel_multiplier": 0.25, "depth_multiplier": 0.5, "num_experts": 3, "num_classes": 5}
EVERY_PRESET = pytest.mark.parametrize(
    "preset", [pytest.param(entry, id=entry.name) for entry in presets(EfficientNetCondConv)]
)


@pytest.fixture
def small(randomise):
    """A network with few weights, in a state in which every tensor matters and pictures decide about the answers."""

    def build(**changes):
        network = randomise(EfficientNetCondConv(**{**SMALL, **changes}))
        norms = [layer for layer in network.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
        for norm in norms:
            norm._momentum = 0.0
        network(pictures(64, batch=6))
        for norm in norms:
            norm._momentum = 0.9
        network.eval()
        return network

    return build


def pictures(size, batch=2, channels=3):
    shape = (batch, channels, size, size)
    return paddle.to_tensor(np.random.default_rng(5).standard_normal(shape).astype("f4"))


def arrays(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def count(state):
    return sum(value.size for name, value in state.items() if not name.endswith(("_mean", "_variance")))


def test_it_answers_what_the_original_answers(oracles, difference):
    torch_state, x, logits = tool("oracle_weights").load_oracle(oracles / "full" / "tf_efficientnet_cc_b0_4e")
    state = to_paddle(torch_state)
    architecture = recognise(state)
    assert architecture.arch == "tf_efficientnet_cc_b0_4e"
    network = architecture.build()
    missing, unexpected = network.set_state_dict(state)
    assert not missing
    assert not unexpected
    network.eval()
    assert difference(network(paddle.to_tensor(x)), logits) < 1e-5


@EVERY_PRESET
def test_presets_have_the_published_sizes_and_are_recognised(preset):
    network = preset.build({})
    state = arrays(network)
    assert count(state) == PARAMETERS[preset.name[preset.name.index("cc_") :]]
    assert network.feature_channels == [16, 24, 40, 112, 320]
    assert network.feature_strides == [2, 4, 8, 16, 32]
    # A file fits both forms; the released one is taken unless the user names the other.
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
    assert "same_padding=True is assumed, and --config same_padding=VALUE" in warnings[0]


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dict(SMALL, num_classes=0, in_channels=1),
        dict(SMALL, features_only=True),
        {"channel_multiplier": 0.35, "depth_multiplier": 1.4, "num_experts": 1, "num_classes": 2},
    ],
    ids=["small", "no_classifier", "features_only", "deep"],
)
def test_scaled_networks_are_read_from_their_tensors(config):
    """Several multipliers round to the same numbers, so what is compared is the network that they make."""
    state = arrays(EfficientNetCondConv(**config))
    found = EfficientNetCondConv.recognise(state)
    rebuilt = EfficientNetCondConv(**found.config, features_only=config.get("features_only", False))
    assert {name: value.shape for name, value in state.items()} == {
        name: tuple(tensor.shape) for name, tensor in rebuilt.state_dict().items()
    }


def test_another_networks_file_is_left_to_others(tiny_state):
    assert EfficientNetCondConv.recognise(tiny_state("converted.pth")) is None


def test_stages_that_no_multiplier_gives_are_an_error():
    state = arrays(EfficientNetCondConv(**SMALL))
    state["bn1.weight"] = np.ones(4096, "f4")
    with pytest.raises(WeightsError, match=r"the stages have \[4096, .*\] channels and no multiple of EfficientNet-B0"):
        EfficientNetCondConv.recognise(state)


@pytest.mark.parametrize("size", [32, 47, 96])
@pytest.mark.parametrize("same_padding", [True, False])
def test_any_size_gives_logits_features_and_a_pyramid(size, same_padding, small):
    network = small(same_padding=same_padding)
    x = pictures(size)
    assert network(x).shape == [2, 5]
    assert small(same_padding=same_padding, num_classes=0)(x).shape == [2, 320]
    pyramid = small(same_padding=same_padding, features_only=True)
    for stage, channels, stride in zip(pyramid(x), pyramid.feature_channels, pyramid.feature_strides):
        assert stage.shape == [2, channels, -(-size // stride), -(-size // stride)]


@EVERY_PRESET
@pytest.mark.slow
def test_presets_run_at_their_native_size(preset):
    network = preset.build({"in_channels": 1})
    network.eval()
    logits = network(pictures(preset.preprocessing.input_size, batch=1, channels=1))
    assert logits.shape == [1, 1000]
    assert np.isfinite(logits.numpy()).all()


def test_the_pyramid_and_the_classifier_see_the_same_features(small, difference):
    network, pyramid, headless = small(), small(features_only=True), small(num_classes=0)
    state = network.state_dict()
    without_head = {name for name in state if not name.startswith(network.head_prefixes)}
    assert set(pyramid.state_dict()) == without_head
    assert set(headless.state_dict()) == {name for name in state if not name.startswith(network.classifier_name)}
    pyramid.set_state_dict({name: state[name] for name in without_head})
    headless.set_state_dict({name: state[name] for name in headless.state_dict()})
    x = pictures(64)
    last = paddle.nn.functional.silu(network.bn2(network.conv_head(pyramid(x)[-1]))).mean([2, 3])
    assert difference(headless(x), last) == 0
    assert difference(network(x), network.classifier(last)) == 0


def test_every_parameter_learns(small):
    network = small()
    network.train()
    paddle.nn.functional.cross_entropy(network(pictures(64, batch=4)), paddle.to_tensor([0, 1, 2, 3])).backward()
    for name, parameter in network.named_parameters():
        if not name.endswith(("_mean", "_variance")):
            gradient = parameter.grad.numpy()
            assert np.isfinite(gradient).all(), name
            assert np.abs(gradient).max() > 0, name


def test_a_static_graph_takes_any_batch_and_size(small, difference):
    network = small(same_padding=True).to(dtype="float64")  # in which rounding hides nothing
    batches = [pictures(64, batch=1).astype("float64"), pictures(47, batch=3).astype("float64")]
    expected = [network(x) for x in batches]
    static = paddle.jit.to_static(network, input_spec=[InputSpec([None, 3, None, None], "float64")], full_graph=True)
    for x, logits in zip(batches, expected):
        assert difference(static(x), logits) < 1e-12


def test_an_exported_network_answers_alike(small, difference, tmp_path):
    network = small(same_padding=True).to(dtype="float64")
    x = pictures(64, batch=3).astype("float64")
    expected = network(x)
    paddle.jit.save(network, str(tmp_path / "net"), input_spec=[InputSpec([None, 3, None, None], "float64")])
    assert difference(paddle.jit.load(str(tmp_path / "net"))(x), expected) < 1e-12


@pytest.mark.parametrize("suffix", ["pdparams", "safetensors"])
def test_weights_are_saved_and_loaded(suffix, small, difference, tmp_path):
    network = small()
    write_weights(arrays(network), tmp_path / f"net.{suffix}")
    other = EfficientNetCondConv(**SMALL)
    other.set_state_dict(read_weights(tmp_path / f"net.{suffix}"))
    other.eval()
    x = pictures(64)
    assert difference(other(x), network(x)) == 0


def test_training_drops_samples_past_blocks_and_features_before_the_classifier(small):
    x = pictures(64)
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
