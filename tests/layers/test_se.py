"""Squeeze and excitation."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense.layers import SELayer
from tests.helpers import random_images


@pytest.mark.parametrize(("channels", "reduction"), [(16, 1), (16, 4), (24, 16)])
def test_every_channel_is_scaled_by_a_gate_of_all_channels(channels, reduction, randomise, difference):
    layer = randomise(SELayer(channels, reduction))
    x = random_images(3, channels, 5, 4)
    down, up = layer.fc[0].weight.numpy(), layer.fc[2].weight.numpy()
    assert down.shape == (channels, channels // reduction)
    assert up.shape == (channels // reduction, channels)
    hidden = np.maximum(x.mean(axis=(2, 3)) @ down, 0)
    gate = 1 / (1 + np.exp(-hidden @ up))
    assert difference(layer(paddle.to_tensor(x)), x * gate[:, :, None, None]) < 1e-6


def test_it_has_the_two_matrices_of_the_original_and_no_bias():
    assert list(SELayer(32).state_dict()) == ["fc.0.weight", "fc.2.weight"]
    assert SELayer(32).fc[0].weight.shape == [32, 2]


def test_fewer_channels_than_the_reduction_are_refused():
    with pytest.raises(ValueError) as caught:
        SELayer(8, reduction=16)
    assert "8" in str(caught.value)
    assert "16" in str(caught.value)
