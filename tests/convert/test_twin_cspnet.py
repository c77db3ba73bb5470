"""The PyTorch twins of CSPDenseNet and CSPNet: the originals' keys and numbers, and the Paddle networks'."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import paddle_dense as pd_
from convert.parity import exact_pair
from convert.torch2paddle import OK, main
from paddle_dense.files.layout import to_paddle
from paddle_dense.models import cspnet as networks
from paddle_dense.models.network import presets
from paddle_dense.models.recognise import canonical

torch = pytest.importorskip("torch", reason="the twins are PyTorch networks")

from convert.torch_models import cspnet as twins
from tests.peers import peer

SMALL_DENSE = {"growth_rate": 8, "block_config": [2, 3, 2], "num_init_features": 12, "bn_size": 2, "num_classes": 5}
NUMBERS = ("backbone", "depths", "channels", "expand_ratio", "bottle_ratio", "stem_channels", "groups", "num_classes")
SMALL_NETS = {
    "resnet": dict(zip(NUMBERS, ("resnet", [1, 2], [16, 24], [2.0, 2.0], [0.5, 0.5], 8, 1, 5))),
    "resnext": dict(zip(NUMBERS, ("resnet", [2, 1], [16, 32], [1.0, 1.0], [1.0, 0.5], 16, 4, 5))),
    "darknet": dict(zip(NUMBERS, ("darknet", [1, 2], [16, 24], [2.0, 1.0], [0.5, 1.0], 8, 1, 5))),
}
SMALL = {
    **{mode: ("CSPDenseNet", {**SMALL_DENSE, "mode": mode}) for mode in networks.MODES},
    **{kind: ("CSPNet", config) for kind, config in SMALL_NETS.items()},
}
EVERY_KIND = pytest.mark.parametrize(
    ("name", "config"), [pytest.param(*entry, id=kind) for kind, entry in SMALL.items()]
)
TIMM = [pytest.param(entry, id=entry.name) for entry in presets(networks.CSPNet)]


@pytest.fixture(scope="module")
def timm():
    """The library that the released checkpoints are for."""
    return peer("timm")


def pictures(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype("f4")


def answers(network, x):
    """Of a network of either framework, which is to be in evaluation mode."""
    network.eval()
    if isinstance(network, torch.nn.Module):
        with torch.no_grad():
            return network(torch.from_numpy(x))
    with paddle.no_grad():
        return network(paddle.to_tensor(x))


def arrays(twin):
    return {name: tensor.numpy() for name, tensor in twin.state_dict().items()}


def in_paddle(twin, network):
    missing, unexpected = network.set_state_dict(to_paddle(arrays(twin)))
    assert not missing
    assert not unexpected
    return network


@pytest.mark.parametrize("mode", networks.MODES)
def test_cspdensenet_answers_as_the_original(mode, data, difference):
    with np.load(data / "csp_densenet_tiny.npz") as file:
        prefix = f"{mode}/state/"
        state = {key[len(prefix) :]: torch.from_numpy(file[key]) for key in file.files if key.startswith(prefix)}
        x, y = file[f"{mode}/x"], file[f"{mode}/y"]
    twin = twins.CSPDenseNet(8, [2, 3, 2], 16, num_classes=7, mode=mode)
    twin.load_state_dict(state, strict=True)
    assert difference(answers(twin, x), y) < 1e-6


@pytest.mark.parametrize("preset", TIMM)
def test_presets_answer_as_timm_and_paddle(preset, timm, randomise, difference):
    twin = randomise(twins.CSPNet(**preset.config))
    theirs = timm.create_model(preset.name)
    theirs.load_state_dict(twin.state_dict(), strict=True)
    x = pictures(2, 3, 64, 64)
    y = answers(twin, x)
    assert (y[0] - y[1]).abs().max() > 1e-3 * y.abs().max()  # the pictures do matter
    assert difference(y, answers(theirs, x)) < 1e-6
    assert difference(answers(in_paddle(twin, preset.build({})), x), y) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("mode", networks.MODES)
@pytest.mark.parametrize("preset", [pytest.param(entry, id=entry.name) for entry in presets(networks.CSPDenseNet)])
def test_dense_presets_answer_alike(preset, mode, randomise, difference):
    twin = randomise(twins.CSPDenseNet(**preset.config, mode=mode))
    x = pictures(2, 3, 64, 64)
    y = answers(twin, x)
    assert (y[0] - y[1]).abs().max() > 1e-3 * y.abs().max()
    assert difference(answers(in_paddle(twin, preset.build({"mode": mode})), x), y) < 1e-5


@pytest.mark.parametrize("preset", TIMM)
def test_pyramid_is_timms(preset, timm, randomise, difference):
    theirs = randomise(timm.create_model(preset.name, features_only=True))
    ours = preset.build({"features_only": True})
    # timm flattens the names here: stem_conv1.conv, stages_0.conv_exp ...
    state = {
        name.replace("stem_", "stem.", 1).replace("stages_", "stages.", 1): value
        for name, value in arrays(theirs).items()
    }
    missing, unexpected = ours.set_state_dict(to_paddle(state))
    assert not missing
    assert not unexpected
    assert ours.feature_channels == theirs.feature_info.channels()
    assert ours.feature_strides == theirs.feature_info.reduction()
    x = pictures(1, 3, 64, 64)
    for found, expected in zip(answers(ours, x), answers(theirs, x)):
        assert difference(found, expected) < 1e-5


@EVERY_KIND
@pytest.mark.parametrize("change", [{}, {"in_channels": 1}, {"num_classes": 0}], ids=["as is", "grey", "pooled"])
def test_small_networks_answer_alike(name, config, change, randomise, difference):
    config = {**config, **change}
    twin = randomise(getattr(twins, name)(**config))
    ours = in_paddle(twin, getattr(networks, name)(**config))
    x = pictures(2, config.get("in_channels", 3), 33, 47)
    assert difference(answers(ours, x), answers(twin, x)) < 1e-5


@EVERY_KIND
def test_gradients_are_alike(name, config, randomise, difference):
    twin = randomise(getattr(twins, name)(**config)).train()
    ours = in_paddle(twin, getattr(networks, name)(**config))
    ours.train()
    x = pictures(4, 3, 64, 64).astype("f8")
    # In float32, one activation on the other side of a ReLU's kink already moves a gradient by 1e-4.
    with exact_pair(twin, ours) as (twin, ours):
        twin(torch.from_numpy(x)).square().mean().backward()
        ours(paddle.to_tensor(x)).square().mean().backward()
    linear = ("classifier.weight", "head.fc.weight")
    expected = {key: p.grad.T if key in linear else p.grad for key, p in twin.named_parameters()}
    found = {key: p.grad for key, p in ours.named_parameters() if not p.stop_gradient}
    assert list(found) == list(expected)
    for key, gradient in expected.items():
        assert difference(found[key], gradient) < 1e-9, key


def test_starts_alike(timm):
    theirs, twin, ours = (
        timm.create_model("cspresnext50"),
        twins.CSPNet(**TIMM[1].values[0].config),
        TIMM[1].values[0].build({}),
    )
    parameters = [dict(network.named_parameters()) for network in (theirs, twin, ours)]
    for key, expected in parameters[0].items():
        if expected.numel() > 10_000 or key.endswith("bn.weight"):
            for found in (parameters[1][key], parameters[2][key]):
                assert found.std().item() == pytest.approx(expected.std().item(), rel=0.1), key
                assert found.mean().item() == pytest.approx(expected.mean().item(), abs=0.01), key


@EVERY_KIND
def test_files_are_converted(name, config, randomise, difference, tmp_path):
    twin = randomise(getattr(twins, name)(**config))
    torch.save({"state_dict": twin.state_dict()}, tmp_path / "net.pth")
    assert main([str(tmp_path / "net.pth")]) == OK
    ours = pd_.load_model(tmp_path / "net.pdparams")
    assert type(ours) is getattr(networks, name)
    x = pictures(2, 3, 64, 64)
    assert difference(answers(ours, x), answers(twin, x)) < 1e-5


@EVERY_KIND
def test_no_other_network_renames_these_tensors(name, config):
    state = arrays(getattr(twins, name)(**config))
    assert list(canonical(state)) == list(state)
