"""Convolutions and linear layers, and how they start."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from paddle_dense.layers import Conv, conv2d, linear
from paddle_dense.layers.conv import SpreadConv2D


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


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "shape"),
    [
        (24, 12, 1, (2, 5, 7)),
        (24, 12, 4, (3, 6, 4)),
        (8, 4, 4, (1, 2, 2)),
        (12, 6, 2, (2, 1, 5)),
        (12, 6, 2, (2, 5, 1)),
    ],
)
def test_training_on_a_cpu_convolves_as_paddle_does(inputs, outputs, groups, shape):
    layer = conv2d(inputs, outputs, 3, padding=1, groups=groups)
    x = paddle.randn([shape[0], inputs, *shape[1:]])
    x.stop_gradient = False
    cotangent = paddle.randn([shape[0], outputs, *shape[1:]])
    answers = {}
    for mode in ("train", "eval"):
        getattr(layer, mode)()
        y = layer(x)
        y.backward(cotangent)
        answers[mode] = [y.numpy(), x.grad.numpy(), layer.weight.grad.numpy()]
        x.clear_grad(), layer.weight.clear_grad()
    for found, expected in zip(answers["train"], answers["eval"]):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("full_graph", [True, False])
def test_training_in_a_static_graph(full_graph):
    layer = conv2d(24, 12, 3, padding=1, groups=4)
    x = paddle.randn([2, 24, 6, 5])
    layer(x).square().sum().backward()
    expected = layer.weight.grad.numpy()
    layer.weight.clear_grad()
    paddle.jit.to_static(layer, full_graph=full_graph)(x).square().sum().backward()
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_only_convolutions_that_spread_less_than_they_collect_are_spread():
    assert type(conv2d(24, 12, 3, padding=1)) is SpreadConv2D
    for outputs, kernel_size, stride in ((24, 3, 1), (12, 1, 1), (12, 3, 2)):
        assert type(conv2d(24, outputs, kernel_size, stride)) is paddle.nn.Conv2D


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
