"""Every family from the original's state_dict through the command to Paddle's logits."""

from __future__ import annotations

import json

import numpy as np
import pytest

import paddle_dense
from convert.torch2paddle import OK, main
from tests.helpers import answers, arrays, part, random_images, settled
from tests.peers import peer, tool

torch = pytest.importorskip("torch", reason="writes PyTorch checkpoints: pip install torch")


def converted(capsys, path, state, x, *options) -> tuple[dict, np.ndarray]:
    """Save a state_dict as users do, run the command on it, and ask the Paddle network that it wrote."""
    torch.save({"state_dict": {name: torch.from_numpy(np.array(value)) for name, value in state.items()}}, path)
    capsys.readouterr()
    assert main([str(path), "--json", *options]) == OK
    result = json.loads(capsys.readouterr().out)
    return result, answers(paddle_dense.load_model(result["output"]), x)


@pytest.mark.parametrize("name", ["densenet121", "cspresnet50", "cspresnext50", "tf_efficientnet_cc_b0_4e"])
def test_full_size_oracles(capsys, tmp_path, oracles, difference, name):
    state, x, logits = tool("oracle_weights").load_oracle(oracles / "full" / name)
    result, found = converted(capsys, tmp_path / "checkpoint.pth", state, x)
    assert result["arch"] == name
    assert result["verified"]
    assert difference(found, logits) < 1e-5


@pytest.mark.parametrize("mode", ["stand", "fusionfirst", "fusionlast"])
def test_the_articles_cspdensenet(capsys, tmp_path, data, difference, mode):
    oracle, state = (part(data / "csp_densenet_tiny.npz", f"{mode}/{folder}") for folder in ("", "state/"))
    result, found = converted(capsys, tmp_path / "checkpoint.pth", state, oracle["x"])
    assert result["arch"] == "CSPDenseNet"
    assert result["config"]["mode"] == mode
    assert difference(found, oracle["y"]) < 1e-6


LIBRARIES = {
    "densenet161": "torchvision.models",
    "densenet169": "torchvision.models",
    "densenet201": "torchvision.models",
    "cspdarknet53": "timm",
    "tf_efficientnet_cc_b0_8e": "timm",
    "tf_efficientnet_cc_b1_8e": "timm",
    "efficientnet_cc_b0_4e": "timm",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_networks_of_their_own_libraries(capsys, tmp_path, difference, randomise, name):
    library = peer(LIBRARIES[name])
    torch.manual_seed(0)
    net = library.create_model(name) if LIBRARIES[name] == "timm" else getattr(library, name)()
    x = random_images(2, 3, 96, 96)
    if "efficientnet" in name:  # with other statistics, gates and routing of an untrained network saturate
        for norm in (module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(norm.weight, 0.2, 0.4)
            torch.nn.init.normal_(norm.bias, 0, 0.1)
        settled(net, random_images(8, 3, 96, 96))
    else:
        randomise(net)
    logits, state = answers(net, x), arrays(net)
    # A file does not show that a network pads as PyTorch does: the user says so.
    options = ["--arch", name] if name.startswith("efficientnet") else []

    result, found = converted(capsys, tmp_path / "checkpoint.pth", state, x, *options)

    assert result["arch"] == name
    assert difference(found, logits) < 1e-5
