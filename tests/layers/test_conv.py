"""Convolutions and linear layers, and how they start."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from paddle_dense.layers import Conv, conv2d, linear
from paddle_dense.layers.conv import convolve


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
        (24, 12, 1, (2, 15, 17)),
        (24, 12, 4, (3, 16, 14)),
        (8, 4, 4, (150, 2, 2)),
        (12, 6, 2, (2, 1, 150)),
        (12, 6, 2, (2, 150, 1)),
        (12, 6, 2, (1, 2, 3)),
    ],
)
def test_a_cpu_convolves_as_paddle_does(inputs, outputs, groups, shape):
    layer = conv2d(inputs, outputs, 3, padding=1, groups=groups)
    x = paddle.randn([shape[0], inputs, *shape[1:]])
    x.stop_gradient = False
    cotangent = paddle.randn([shape[0], outputs, *shape[1:]])
    answers = []
    for y in (convolve(layer, x), layer(x)):
        y.backward(cotangent)
        answers.append([y.numpy(), x.grad.numpy(), layer.weight.grad.numpy()])
        x.clear_grad(), layer.weight.clear_grad()
    for found, expected in zip(*answers):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("full_graph", [True, False])
def test_training_in_a_static_graph(full_graph):
    layer = Conv(24, 12, 3, padding=1, groups=4)
    weight, x = layer.conv.weight, paddle.randn([2, 24, 16, 15])
    layer(x).square().sum().backward()
    expected = weight.grad.numpy()
    weight.clear_grad()
    paddle.jit.to_static(layer, full_graph=full_graph)(x).square().sum().backward()
    np.testing.assert_allclose(weight.grad.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def is_called(conv, monkeypatch, side=16):
    """Whether `convolve` leaves the work to the layer."""
    calls = []
    forward = type(conv).forward
    monkeypatch.setattr(type(conv), "forward", lambda conv, x: calls.append(conv) or forward(conv, x))
    convolve(conv, paddle.randn([2, conv._in_channels, side, side]))
    monkeypatch.undo()
    return bool(calls)


def test_only_what_spreads_less_than_it_collects_is_spread(monkeypatch):
    narrow = conv2d(24, 12, 3, padding=1)
    assert not is_called(narrow, monkeypatch)
    assert is_called(narrow, monkeypatch, side=7), "too little to be worth four operators"
    for outputs, kernel_size, stride, padding in ((24, 3, 1, 1), (12, 1, 1, 0), (12, 3, 2, 1), (12, 3, 1, 0)):
        assert is_called(conv2d(24, outputs, kernel_size, stride, padding), monkeypatch)
    narrow.eval()
    assert not is_called(narrow, monkeypatch), "no less in evaluation than in training"


def test_what_was_put_in_the_place_of_a_convolution_is_called(monkeypatch):
    """Tools for pruning and quantisation do so, others set hooks or the dilation; `Conv` has plain ones for them."""

    class Quantised(paddle.nn.Conv2D):
        pass

    assert type(Conv(24, 12, 3, padding=1).conv) is paddle.nn.Conv2D
    assert is_called(Quantised(24, 12, 3, padding=1, bias_attr=False), monkeypatch)
    assert is_called(paddle.nn.Conv2D(24, 12, 3, padding=1), monkeypatch)
    dilated, hooked = conv2d(24, 12, 3, padding=1), conv2d(24, 12, 3, padding=1)
    dilated._dilation = [2, 2]
    hooked.register_forward_post_hook(lambda layer, inputs, output: None)
    assert is_called(dilated, monkeypatch)
    assert is_called(hooked, monkeypatch)


def test_convolutions_have_no_bias():
    assert conv2d(4, 8, 3).bias is None


def test_linear_layers_start_as_pytorch_starts_them():
    layer = linear(400, 300)
    assert layer.weight.shape == [400, 300]
    for values in (layer.weight.numpy(), layer.bias.numpy()):
        assert np.abs(values).max() <= 1 / 20
        assert values.min() < -0.9 / 20
        assert values.max() > 0.9 / 20
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
