"""The PyTorch twin of EfficientNet-CondConv: the original's keys and numbers, and the Paddle network's."""

from __future__ import annotations

import ast

import numpy as np
import paddle
import pytest

from paddle_dense.files.layout import to_paddle
from paddle_dense.layers import condconv as layers
from paddle_dense.models import condconv as networks
from paddle_dense.models.network import preset, presets

torch = pytest.importorskip("torch", reason="the twins are PyTorch networks")

from convert.torch_models import condconv as twins
from tests.peers import peer, tool

EVERY_PRESET = pytest.mark.parametrize(
    "preset",
    [
        pytest.param(entry, id=entry.name, marks=[pytest.mark.slow] if entry.config["num_experts"] > 4 else [])
        for entry in presets(networks.EfficientNetCondConv)
    ],
)


@pytest.fixture(scope="module")
def timm():
    """The library that the released checkpoints are for."""
    return peer("timm")


def twin_of(preset, randomise, pictures, **changes):
    """The twin of a preset in a state in which every tensor matters, its statistics those of the pictures.

    In float64: thirty random layers multiply rounding errors, and here it is the algebra that is compared.
    """
    twin = randomise(twins.EfficientNetCondConv(**{**preset.config, **changes})).double()
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, twins.RoutedCondConv2D):  # mixtures that neither grow nor fade from layer to layer
                module.weight.normal_(0, 2 * (len(module.weight) * np.prod(module.shape[1:])) ** -0.5)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        twin(torch.from_numpy(pictures))
    return twin.eval()


def arrays(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def random_pictures(size, batch=4, dtype="f8"):
    return np.random.default_rng(3).standard_normal((batch, 3, size, size)).astype(dtype)


def answers(network, pictures):
    with torch.no_grad():
        return network(torch.from_numpy(pictures)).numpy()


@pytest.mark.parametrize("name", ["std", "grouped", "dw", "dil"])
def test_the_layer_answers_what_the_articles_does(name, data, difference):
    with np.load(data / "condconv2d.npz") as file:
        oracle = {key[len(name) + 1 :]: file[key] for key in file.files if key.startswith(f"{name}/")}
    layer = twins.CondConv2D(**ast.literal_eval(str(oracle["config"]))).eval()
    state = {k[len("state/") :]: torch.from_numpy(v) for k, v in oracle.items() if k.startswith("state/")}
    layer.load_state_dict(state)
    assert difference(answers(layer, oracle["x"]), oracle["y"]) < 1e-6


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_the_layer_pads_alike_in_both_frameworks(padding_mode, randomise, difference):
    config = {
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": (3, 5),
        "stride": (2, 1),
        "padding": (1, 2),
        "groups": 2,
        "num_experts": 4,
    }
    twin = randomise(twins.CondConv2D(**config, padding_mode=padding_mode)).eval()
    layer = layers.CondConv2D(**config, padding_mode=padding_mode)
    layer.eval()
    missing, unexpected = layer.set_state_dict(to_paddle(arrays(twin)))
    assert not missing
    assert not unexpected
    x = np.random.default_rng(1).standard_normal((3, 4, 9, 8)).astype("f4")
    assert difference(layer(paddle.to_tensor(x)), answers(twin, x)) < 1e-6


def test_the_twin_loads_and_answers_the_released_networks_keys(full_oracle, difference):
    state, pictures, logits = full_oracle
    twin = twins.EfficientNetCondConv(num_experts=4, same_padding=True, bn_eps=1e-3).eval()
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    assert difference(answers(twin, pictures), logits) < 5e-6


@pytest.fixture
def full_oracle(oracles):
    """State, pictures and logits of timm's tf_efficientnet_cc_b0_4e."""
    return tool("oracle_weights").load_oracle(oracles / "full" / "tf_efficientnet_cc_b0_4e")


@EVERY_PRESET
def test_every_preset_is_timms_key_for_key_and_number_for_number(preset, timm, randomise, difference):
    pictures = random_pictures(69)  # odd and even sides on the way, where the two kinds of padding differ
    twin = twin_of(preset, randomise, pictures)
    original = timm.create_model(preset.name).double().eval()
    original.load_state_dict(twin.state_dict())  # strict: no key may be missing or left over
    expected = answers(original, pictures)
    assert difference(expected[:1], expected[1:2]) > 0.1  # the pictures decide about the answers
    assert difference(answers(twin, pictures), expected) < 1e-9


@EVERY_PRESET
def test_every_preset_answers_alike_in_both_frameworks(preset, randomise, difference):
    pictures = random_pictures(66)
    twin = twin_of(preset, randomise, pictures)
    network = preset.build({}).to(dtype="float64")
    missing, unexpected = network.set_state_dict(to_paddle(arrays(twin)))
    assert not missing
    assert not unexpected
    network.eval()
    # Paddle keeps a normalisation's epsilon in float32.
    assert difference(network(paddle.to_tensor(pictures)), answers(twin, pictures)) < 1e-6


@pytest.mark.parametrize("change", [{"same_padding": False}, {"bn_eps": 1e-5}])
def test_what_no_file_shows_changes_the_answers(change, randomise, difference):
    """So a guess must be told to the user."""
    pictures = random_pictures(64)
    twin = twin_of(preset("tf_efficientnet_cc_b0_4e"), randomise, pictures)
    other = (
        twins.EfficientNetCondConv(num_experts=4, **{"same_padding": True, "bn_eps": 1e-3, **change}).double().eval()
    )
    other.load_state_dict(twin.state_dict())
    assert difference(answers(other, pictures), answers(twin, pictures)) > 1e-2


def test_a_training_step_gives_the_same_loss_and_gradients(randomise, difference):
    config = {
        "channel_multiplier": 0.25,
        "depth_multiplier": 0.5,
        "num_experts": 3,
        "num_classes": 5,
        "same_padding": True,
    }
    twin = randomise(twins.EfficientNetCondConv(**config))
    network = networks.EfficientNetCondConv(**config)
    network.set_state_dict(to_paddle(arrays(twin)))
    pictures, labels = random_pictures(65, batch=6, dtype="f4"), np.arange(6) % 5
    expected = torch.nn.functional.cross_entropy(twin(torch.from_numpy(pictures)), torch.from_numpy(labels))
    found = paddle.nn.functional.cross_entropy(network(paddle.to_tensor(pictures)), paddle.to_tensor(labels))
    expected.backward()
    found.backward()
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    gradients = to_paddle({name: parameter.grad.numpy() for name, parameter in twin.named_parameters()})
    scale = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, parameter in network.named_parameters():
        if name in gradients:
            assert np.abs(parameter.grad.numpy() - gradients[name]).max() < 1e-4 * scale, name
