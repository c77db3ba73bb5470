"""Every family from the original's state_dict through the command to Paddle's logits."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

import paddle_dense
from convert.torch2paddle import OK, main
from tests.peers import peer, tool

torch = pytest.importorskip("torch", reason="writes PyTorch checkpoints: pip install torch")


def converted(capsys, path, state, x, *options) -> tuple[dict, np.ndarray]:
    """Save a state_dict as users do, run the command on it, and ask the Paddle network that it wrote."""
    torch.save({"state_dict": {name: torch.from_numpy(np.array(value)) for name, value in state.items()}}, path)
    capsys.readouterr()
    assert main([str(path), "--json", *options]) == OK
    result = json.loads(capsys.readouterr().out)
    model = paddle_dense.load_model(result["output"])
    model.eval()
    with paddle.no_grad():
        return result, model(paddle.to_tensor(x)).numpy()


@pytest.mark.parametrize("name", ["densenet121", "cspresnet50", "cspresnext50", "tf_efficientnet_cc_b0_4e"])
def test_full_size_oracles(capsys, tmp_path, oracles, difference, name):
    state, x, logits = tool("oracle_weights").load_oracle(oracles / "full" / name)
    result, found = converted(capsys, tmp_path / "checkpoint.pth", state, x)
    assert result["arch"] == name and result["verified"]
    assert difference(found, logits) < 1e-5


@pytest.mark.parametrize("mode", ["stand", "fusionfirst", "fusionlast"])
def test_the_articles_cspdensenet(capsys, tmp_path, data, difference, mode):
    oracle = np.load(data / "csp_densenet_tiny.npz")
    prefix = f"{mode}/state/"
    state = {name[len(prefix) :]: oracle[name] for name in oracle if name.startswith(prefix)}
    result, found = converted(capsys, tmp_path / "checkpoint.pth", state, oracle[f"{mode}/x"])
    assert result["arch"] == "CSPDenseNet" and result["config"]["mode"] == mode
    assert difference(found, oracle[f"{mode}/y"]) < 1e-6


LIBRARIES = {
    "densenet161": "torchvision.models",
    "densenet169": "torchvision.models",
    "densenet201": "torchvision.models",
    "cspdarknet53": "timm",
    "tf_efficientnet_cc_b0_8e": "timm",
    "tf_efficientnet_cc_b1_8e": "timm",
    "efficientnet_cc_b0_4e": "timm",
}


def statistics_of_pictures(net) -> None:
    """BN statistics as pictures give them: with any others, gates and routing of an untrained network saturate."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.2, 0.4)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    with torch.no_grad():
        net.train()(torch.randn(8, 3, 96, 96))


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_networks_of_their_own_libraries(capsys, tmp_path, difference, randomise, name):
    library = peer(LIBRARIES[name])
    torch.manual_seed(0)
    net = library.create_model(name) if LIBRARIES[name] == "timm" else getattr(library, name)()
    x = np.random.default_rng(0).standard_normal((2, 3, 96, 96), np.float32)
    if "efficientnet" in name:
        statistics_of_pictures(net)
    else:
        randomise(net)
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy(x)).numpy()
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    # A file does not show that a network pads as PyTorch does: the user says so.
    options = ["--arch", name] if name.startswith("efficientnet") else []

    result, found = converted(capsys, tmp_path / "checkpoint.pth", state, x, *options)

    assert result["arch"] == name
    assert difference(found, logits) < 1e-5
