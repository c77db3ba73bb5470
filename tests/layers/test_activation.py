"""The activations, by the papers' names."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense.layers import HS, activation, silu


def test_hs_is_hard_swish():
    x = np.concatenate([np.linspace(-6, 6, 1201), [-3, 3, 0, -100, 100]]).astype("f4")
    expected = x * np.minimum(np.maximum(x + 3, 0), 6) / 6
    assert np.abs(HS()(paddle.to_tensor(x)).numpy() - expected).max() < 1e-6


def test_hs_has_the_slope_of_hard_swish():
    x = paddle.to_tensor(np.float32([-5, -1.5, 0, 2, 5]), stop_gradient=False)
    HS()(x).sum().backward()
    assert np.abs(x.grad.numpy() - np.float32([0, 0, 0.5, 7 / 6, 1])).max() < 1e-6


def test_silu_is_pytorchs_however_far_from_zero():
    torch = pytest.importorskip("torch")
    x = np.concatenate([np.linspace(-12, 12, 1201), [-87, -89, -104, -1e4, 1e4]]).astype("f4")
    ours, theirs = paddle.to_tensor(x, stop_gradient=False), torch.tensor(x, requires_grad=True)
    y, expected = silu(ours), torch.nn.functional.silu(theirs)
    y.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-6, atol=2e-7)


def test_activations_go_by_the_papers_names():
    x = paddle.to_tensor(np.float32([-1, 2]))
    assert activation("ReLU")(x).tolist() == [0, 2]
    assert isinstance(activation("HS"), HS)


@pytest.mark.parametrize("name", ["relu", "Hardswish", ""])
def test_an_unknown_name_lists_what_there_is(name):
    with pytest.raises(ValueError) as caught:
        activation(name)
    assert repr(name) in str(caught.value)
    assert "ReLU" in str(caught.value)
    assert "HS" in str(caught.value)
