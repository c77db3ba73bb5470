"""Pruned weights and those of weight_norm are what PyTorch computes of their parts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from paddle_dense.files import read_checkpoint

torch = pytest.importorskip("torch", reason="computes the weights")
nn = torch.nn


def pruned(layer: nn.Module) -> None:
    from torch.nn.utils import prune

    prune.random_unstructured(layer, "weight", amount=0.4)


def old_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has a successor
        torch.nn.utils.weight_norm(layer)


def old_norm_of_all(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(layer, dim=None)


PARTS = {
    "pruned": (pruned, "multiplied pruned weights by their masks"),
    "weight_norm": (old_norm, "as weight_norm does"),
    "weight_norm over all": (old_norm_of_all, "as weight_norm does"),
    "parametrized": (torch.nn.utils.parametrizations.weight_norm, "as weight_norm does"),
    "other axis": (
        lambda layer: torch.nn.utils.parametrizations.weight_norm(layer, dim=1),
        "weight_norm",
    ),
}


@pytest.mark.parametrize(("make", "message"), PARTS.values(), ids=PARTS)
def test_the_weights_are_those_that_pytorch_computes(tmp_path, make, message):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    for layer in (network[0], network[3]):
        make(layer)
        for parameter in layer.parameters():  # so that no magnitude is the norm that it began with
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
    network.eval()(torch.randn(1, 3, 3, 3))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "net.pth")
    checkpoint = read_checkpoint(tmp_path / "net.pth")
    assert len(checkpoint.warnings) == 1 and message in checkpoint.warnings[0]
    for name in ("0", "3"):
        expected = network[int(name)].weight.detach().numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(checkpoint.state[f"{name}.weight"], expected, rtol=0, atol=1e-6 * scale)
    assert {"0.weight", "0.bias", "3.weight", "3.bias"} <= checkpoint.state.keys() and len(checkpoint.state) == 9
