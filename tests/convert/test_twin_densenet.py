"""The PyTorch twin of DenseNet: torchvision's and timm's keys and numbers, and the Paddle network's."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import paddle_dense as pd_
from convert.torch2paddle import OK, main
from paddle_dense.files.layout import to_paddle
from paddle_dense.models import densenet as networks
from paddle_dense.models.network import preset, presets
from paddle_dense.models.recognise import canonical

torch = pytest.importorskip("torch", reason="the twins are PyTorch networks")

from convert.torch_models import densenet as twins
from tests.peers import peer

SMALL = {"growth_rate": 8, "block_config": [2, 3, 2], "num_init_features": 12, "bn_size": 2, "num_classes": 5}
PRESETS = [
    pytest.param(entry, id=entry.name, marks=[] if entry.name == "densenet121" else pytest.mark.slow)
    for entry in presets(networks.DenseNet)
]


@pytest.fixture(scope="module")
def originals():
    """torchvision and timm, whose files these are."""
    return peer("torchvision"), peer("timm")


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


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_answer_as_torchvision_timm_and_paddle(preset, originals, randomise, difference):
    torchvision, timm = originals
    twin = randomise(twins.DenseNet(**preset.config))
    x = pictures(2, 3, 64, 64)
    y = answers(twin, x)
    assert (y[0] - y[1]).abs().max() > 1e-3 * y.abs().max()  # the pictures do matter
    for theirs in (getattr(torchvision.models, preset.name)(), timm.create_model(preset.name)):
        theirs.load_state_dict(twin.state_dict(), strict=True)
        assert difference(y, answers(theirs, x)) < 1e-6
    assert difference(answers(in_paddle(twin, preset.build({})), x), y) < 1e-5


def test_pyramid_is_timms(originals, randomise, difference):
    theirs = randomise(originals[1].create_model("densenet121", features_only=True))
    ours = preset("densenet121").build({"features_only": True})
    # timm flattens the names here: features_denseblock1.denselayer1 ...
    state = {name.replace("features_", "features.", 1): value for name, value in arrays(theirs).items()}
    missing, unexpected = ours.set_state_dict(to_paddle(state))
    assert not missing
    assert not unexpected
    assert ours.feature_channels == theirs.feature_info.channels()
    assert ours.feature_strides == theirs.feature_info.reduction()
    x = pictures(1, 3, 64, 64)
    for found, expected in zip(answers(ours, x), answers(theirs, x)):
        assert difference(found, expected) < 1e-5


@pytest.mark.parametrize("config", [SMALL, {**SMALL, "in_channels": 1}, {**SMALL, "num_classes": 0}])
def test_small_networks_answer_alike(config, randomise, difference):
    twin = randomise(twins.DenseNet(**config))
    x = pictures(2, config.get("in_channels", 3), 33, 47)
    ours = in_paddle(twin, networks.DenseNet(**config))
    assert difference(answers(ours, x), answers(twin, x)) < 1e-5


def test_gradients_are_alike(randomise, difference):
    twin = randomise(twins.DenseNet(**SMALL)).train()
    ours = in_paddle(twin, networks.DenseNet(**SMALL, memory_efficient=True))
    ours.train()
    x = pictures(4, 3, 64, 64)
    twin(torch.from_numpy(x)).square().mean().backward()
    ours(paddle.to_tensor(x)).square().mean().backward()
    expected = {name: p.grad.T if name == "classifier.weight" else p.grad for name, p in twin.named_parameters()}
    found = {name: p.grad for name, p in ours.named_parameters() if not p.stop_gradient}
    assert list(found) == list(expected)
    for name, gradient in expected.items():
        assert difference(found[name], gradient) < 1e-4, name


def test_starts_alike():
    twin, ours = twins.DenseNet(), preset("densenet121").build({})
    for name, parameter in twin.named_parameters():
        if parameter.numel() > 10_000:
            mine = dict(ours.named_parameters())[name]
            assert mine.std().item() == pytest.approx(parameter.std().item(), rel=0.1), name


def test_a_file_in_the_old_spelling_is_converted(randomise, difference, tmp_path):
    twin = randomise(twins.DenseNet(**SMALL))
    old = {}
    for name, value in twin.state_dict().items():
        if ".denselayer" in name:
            for leaf in ("norm1", "norm2", "conv1", "conv2"):
                name = name.replace(f".{leaf}.", f".{leaf[:-1]}.{leaf[-1]}.")
        if not name.endswith("num_batches_tracked"):  # unknown when those files were written
            old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.running_var" in old
    torch.save(old, tmp_path / "old.pth")
    assert main([str(tmp_path / "old.pth")]) == OK
    x = pictures(2, 3, 64, 64)
    assert difference(answers(pd_.load_model(tmp_path / "old.pdparams"), x), answers(twin, x)) < 1e-5


def test_no_other_network_renames_these_tensors():
    state = arrays(twins.DenseNet(**SMALL))
    assert list(canonical(state)) == list(state)
