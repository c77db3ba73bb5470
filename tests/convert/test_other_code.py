"""Files of other people's DenseNets, in their own names, answer as the code that they come from."""

from __future__ import annotations

import numpy as np
import pytest

import paddle_dense as pd_
from convert.torch2paddle import OK, main
from paddle_dense.files.weights import write_weights
from tests.helpers import answers, part

torch = pytest.importorskip("torch", reason="runs the conversion: pip install torch")


# Arguments that the network must get; each code's answers were computed by itself.
CODE = {
    "gpleiss": {"block_config": [2, 3, 2], "bn_size": 2, "num_init_features": 9, "compression": 0.5},
    "andreasveit": {"block_config": [2, 2, 2], "bn_size": 0, "num_init_features": 10, "compression": 1.0},
    "andreasveit_bc": {"block_config": [1, 1, 1], "bn_size": 4},
    "bamos": {"block_config": [1, 1, 1], "bn_size": 4},
    "bearpaw": {"block_config": [1, 1, 1], "bn_size": 4},
    "kuangliu": {"block_config": [2, 1, 1, 1], "bn_size": 4},
    "weiaicunzai": {"block_config": [2, 1, 1, 1], "bn_size": 4, "linear_transitions": True},
    "pytorchcv_bc": {"block_config": [1, 2, 1], "bn_size": 4},
    "pytorchcv": {"block_config": [1, 2, 1], "bn_size": 0},
}
WRITERS = {
    ".pth": lambda state, path: torch.save(
        {"epoch": 300, "state_dict": {name: torch.from_numpy(value) for name, value in state.items()}}, path
    ),
    ".safetensors": lambda state, path: write_weights(state, path, {"format": "pt"}),
}


@pytest.fixture
def others(data):
    """``others(code)``: a state in the code's own names, images, and the code's logits for them."""

    def read(code):
        old = code in ("gpleiss", "andreasveit")
        file, images = data / f"densenet_{'cifar_tiny' if old else 'code_bases'}.npz", f"{code}/x" if old else "x"
        with np.load(file) as arrays:
            return part(file, f"{code}/state/"), arrays[images], arrays[f"{code}/y"]

    return read


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
@pytest.mark.parametrize("code", CODE)
def test_cifars_densenets_answer_as_the_originals(code, prefix, suffix, others, difference, tmp_path):
    state, x, y = others(code)
    WRITERS[suffix]({prefix + name: value for name, value in state.items()}, tmp_path / f"net{suffix}")
    assert main([str(tmp_path / f"net{suffix}")]) == OK
    model = pd_.load_model(tmp_path / "net.pdparams")
    assert model.config == {**model.config, **CODE[code], "small_inputs": True, "num_classes": 7}
    assert difference(answers(model, x), y) < 1e-6
    (tmp_path / "net.json").unlink()  # the tensors alone show as much
    assert difference(answers(pd_.load_model(tmp_path / "net.pdparams"), x), y) < 1e-6


@pytest.mark.parametrize("images", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_weights_that_others_trained_answer_as_their_code(images, trained_by_others, difference, tmp_path):
    """Of andreasveit's code, trained on CIFAR-10: its logits, and with them its accuracy."""
    target = tmp_path / "dice.pdparams"
    assert main([str(trained_by_others / "dice_c10.pth.tar"), "-o", str(target)]) == OK
    model = pd_.load_model(target)
    assert model.arch == "densenet_bc100_k12"
    with np.load(trained_by_others / "dice_c10_io.npz") as oracle:
        pixels, labels, logits = (oracle[key][:images] for key in ("images", "labels", "logits"))
        x = ((pixels / 255 - oracle["mean"]) / oracle["std"]).transpose(0, 3, 1, 2).astype("float32")
    y = np.concatenate([answers(model, batch) for batch in np.split(x, images // 100)])
    assert difference(y, logits) < 1e-5
    right = (y.argmax(1) == labels).mean()
    assert right == (logits.argmax(1) == labels).mean()
    if images == 1000:
        assert right == 0.821
