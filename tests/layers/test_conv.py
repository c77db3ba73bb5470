"""Convolutions and linear layers, and how they start."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from paddle_dense.layers import Conv, conv2d, linear


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel_size", "groups"), [(64, 128, 1, 1), (64, 64, 3, 4), (256, 64, 1, 8)]
)
def test_convolutions_start_by_the_fan_out_of_the_dense_kernel(inputs, outputs, kernel_size, groups):
    """The original divides by kernel area * outputs, whatever the number of groups; Paddle's default counts inputs."""
    weight = conv2d(inputs, outputs, kernel_size, groups=groups).weight.numpy()
    expected = np.sqrt(2 / (kernel_size**2 * outputs))
    assert weight.shape == (outputs, inputs // groups, kernel_size, kernel_size)
    assert weight.std() == pytest.approx(expected, rel=5 / np.sqrt(weight.size))
    assert abs(weight.mean()) < 5 * expected / np.sqrt(weight.size)
    assert np.abs(weight).max() > 3 * expected, "a normal distribution, neither uniform nor truncated"


def test_convolutions_have_no_bias():
    assert conv2d(4, 8, 3).bias is None


def test_linear_layers_start_as_pytorch_starts_them():
    layer = linear(400, 300)
    assert layer.weight.shape == [400, 300]
    for values in (layer.weight.numpy(), layer.bias.numpy()):
        assert np.abs(values).max() <= 1 / 20
        assert values.min() < -0.9 / 20 and values.max() > 0.9 / 20
        assert values.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.1)
    assert linear(4, 8, bias=False).bias is None


@pytest.mark.parametrize("name", ["ReLU", "HS"])
def test_conv_is_bn_then_activation_then_convolution(name, randomise, difference):
    layer = randomise(Conv(8, 12, 3, stride=2, padding=1, groups=4, activation=name))
    layer.eval()
    x = paddle.randn([2, 8, 9, 7])
    y = F.batch_norm(x, layer.norm._mean, layer.norm._variance, layer.norm.weight, layer.norm.bias)
    y = F.relu(y) if name == "ReLU" else y * F.relu6(y + 3) / 6
    assert difference(layer(x), F.conv2d(y, layer.conv.weight, stride=2, padding=1, groups=4)) < 1e-6
    assert [key.split(".")[0] for key in layer.state_dict()] == ["norm"] * 4 + ["conv"]
