"""Files with several sets of weights for one network, written by the libraries that average them.

What is taken answers as the network with those weights does, in PyTorch, that is, in a network of torchvision.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import paddle_dense as pd_
from convert import torch2paddle
from tests.helpers import answers, random_images
from tests.peers import peer

torch = pytest.importorskip("torch", reason="PyTorch writes the checkpoints that these tests read")

X = random_images(2, 3, 64, 64)


@pytest.fixture(scope="module")
def trained() -> tuple[Any, list[Any]]:
    """A network as it was trained, and its states on the way there, batch normalisations included."""
    torch.manual_seed(0)
    network = peer("torchvision.models").DenseNet(4, (1, 2, 1, 1), 8, 2, num_classes=3)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    steps = []
    for _ in range(4):
        images, labels = torch.randn(8, 3, 64, 64) * 1.3 + 0.2, torch.randint(3, (8,))
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(copy.deepcopy(network).eval())
    return steps[-1], steps


def assert_answers(saved: Any, folder: Path, network: Any, capsys: Any, *options: str) -> dict[str, Any]:
    """Convert a file with these options: it must answer as the network does. Returns what is said of it."""
    torch.save(saved, folder / "net.pth")
    target = folder / "net.pdparams"
    assert torch2paddle.main([str(folder / "net.pth"), "-o", str(target), "--force", "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = answers(network, X)
    np.testing.assert_allclose(
        answers(pd_.load_model(target), X), expected, rtol=0, atol=1e-5 * float(np.abs(expected).max())
    )
    return said


def by_torch_ema(steps: list[Any]) -> tuple[Any, Any]:
    """torch_ema saves a list of parameters; in use, the network has the averaged ones and its own buffers."""
    library = pytest.importorskip("torch_ema", reason="writes the file: pip install torch_ema")
    average = library.ExponentialMovingAverage(steps[0].parameters(), decay=0.5)
    for step in steps:
        average.update(step.parameters())
    network = copy.deepcopy(steps[-1])
    average.copy_to(network.parameters())
    return average.state_dict(), network


def by_timm(version: str) -> Callable[[list[Any]], tuple[Any, Any]]:
    def average(steps: list[Any]) -> tuple[Any, Any]:
        library = peer("timm.utils")
        ema = getattr(library, version)(steps[0], decay=0.5)
        for step in steps:
            ema.update(step)
        network = ema.ema if version == "ModelEma" else ema.module
        return library.get_state_dict(ema), network

    return average


def by_pytorch(steps: list[Any]) -> tuple[Any, Any]:
    averaged = torch.optim.swa_utils.AveragedModel(steps[0], use_buffers=True)
    for step in steps:
        averaged.update_parameters(step)
    return averaged.state_dict(), averaged


def by_hand(steps: list[Any]) -> tuple[Any, Any]:
    """The class that tutorials give: a dict of the parameters alone."""
    shadow = {name: parameter.data.clone() for name, parameter in steps[0].named_parameters()}
    for step in steps:
        for name, parameter in step.named_parameters():
            shadow[name] = 0.5 * shadow[name] + 0.5 * parameter.data
    network = copy.deepcopy(steps[-1])
    network.load_state_dict(shadow, strict=False)
    return {"shadow": shadow, "backup": {}, "decay": 0.5}, network


AVERAGES = {
    "torch_ema": ("ema", "ema.shadow_params", by_torch_ema),
    "timm ModelEma": ("state_dict_ema", "state_dict_ema", by_timm("ModelEma")),
    "timm ModelEmaV2": ("state_dict_ema", "state_dict_ema", by_timm("ModelEmaV2")),
    "timm ModelEmaV3": ("state_dict_ema", "state_dict_ema", by_timm("ModelEmaV3")),
    "PyTorch's SWA": ("swa_state_dict", "swa_state_dict", by_pytorch),
    "a shadow": ("ema", "ema.shadow", by_hand),
}


@pytest.mark.parametrize("plain", ["state_dict", "model"])
@pytest.mark.parametrize(("key", "taken", "average"), AVERAGES.values(), ids=AVERAGES)
def test_averaged_weights_answer_as_the_averaged_network(trained, tmp_path, capsys, key, taken, average, plain):
    last, steps = trained
    averaged, network = average(steps)
    saved = {plain: last.state_dict(), key: averaged, "epoch": 3}
    assert np.abs(answers(network, X) - answers(last, X)).max() > 1e-3
    said = assert_answers(saved, tmp_path, network, capsys)
    assert any(f"took the weights under '{taken}'" in warning for warning in said["warnings"])
    for options in (["--no-ema"], ["--key", plain]):
        assert assert_answers(saved, tmp_path, last, capsys, *options)["warnings"] == []
    assert assert_answers(saved, tmp_path, network, capsys, "--key", taken)["warnings"] == []


def test_the_best_weights_are_taken_before_the_last(trained, tmp_path, capsys):
    last, steps = trained
    saved = {"state_dict": last.state_dict(), "best_state_dict": steps[1].state_dict(), "best_acc": 0.7}
    said = assert_answers(saved, tmp_path, steps[1], capsys)
    assert "under 'best_state_dict', and left out those under 'state_dict'" in said["warnings"][0]
    assert_answers(saved, tmp_path, last, capsys, "--key", "state_dict")


def test_mmengine_has_the_averaged_weights_under_the_plain_name(trained, tmp_path, capsys):
    hooks = pytest.importorskip("mmengine.hooks", reason="writes the file: pip install mmengine")
    from mmengine.model import ExponentialMovingAverage

    last, steps = trained
    hook = hooks.EMAHook()
    hook.src_model, hook.ema_model = last, ExponentialMovingAverage(steps[0], momentum=0.5)
    for step in steps:
        hook.ema_model.update_parameters(step)
    averaged = copy.deepcopy(hook.ema_model.module)
    saved = {"state_dict": dict(last.state_dict()), "meta": {"epoch": 3}}
    hook.before_save_checkpoint(None, saved)
    said = assert_answers(saved, tmp_path, averaged, capsys)
    assert "under 'state_dict', and left out those under 'ema_state_dict' (--no-ema" in said["warnings"][0]
    assert_answers(saved, tmp_path, last, capsys, "--no-ema")
    assert_answers(saved, tmp_path, last, capsys, "--key", "ema_state_dict")


@pytest.mark.parametrize("key", ["state_dict", "best_model", "last", "last.net"])
def test_weights_under_several_keys_are_found_under_each(trained, tmp_path, capsys, key):
    last, _ = trained
    state = last.state_dict()
    saved = {"state_dict": state, "best_model": state, "first": {"net": state}}
    saved["last"] = saved["first"]
    assert assert_answers(saved, tmp_path, last, capsys, "--key", key)["warnings"] == []
