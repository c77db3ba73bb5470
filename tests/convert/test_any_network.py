"""Networks that are not ours: outputs of any structure, every layer, loss, gradients and steps."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")

from convert.parity.network import compare_networks
from tests.convert import any_networks


@pytest.mark.parametrize("name", any_networks.NETWORKS)
def test_a_right_port_agrees(name):
    *classes, inputs = any_networks.NETWORKS[name]
    theirs, ours, to_paddle = any_networks.port(*classes)
    result = compare_networks(theirs, ours, inputs, to_paddle=to_paddle, steps=2)
    print(result.parity, len(result.layers), result.training.first_difference, result.cause, result.warnings)
    assert result.parity.max_rel_diff < 1e-5
    assert max(layer.float64 for layer in result.layers) < 1e-5
    assert result.training.agrees and result.agrees and result.cause is None
