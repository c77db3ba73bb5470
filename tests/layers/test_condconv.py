"""CondConv: a batch at once gives what every sample alone with its own kernel gives, gradients included."""

from __future__ import annotations

import ast

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F
from paddle.static import InputSpec

from paddle_dense.files.layout import to_paddle
from paddle_dense.layers.condconv import CondConv2D, CondConvLinear, RoutedCondConv2D
from tests.helpers import answers, loaded, part, random_images

# The smallest that shows each feature; sizes (in, out, kernel) come first.
CONFIGS = {
    "plain": {"in_channels": 4, "out_channels": 6, "kernel_size": 3},
    "one_by_one": {"in_channels": 6, "out_channels": 4, "kernel_size": 1},
    "one_by_one_grouped": {"in_channels": 6, "out_channels": 4, "kernel_size": 1, "groups": 2, "bias": False},
    "one_by_one_strided": {"in_channels": 6, "out_channels": 4, "kernel_size": 1, "stride": 2, "padding": 1},
    "strided": {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2)},
    "dilated": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "dilation": (2, 1), "num_experts": 2},
    "grouped": {"in_channels": 6, "out_channels": 9, "kernel_size": 3, "padding": 1, "groups": 3, "num_experts": 4},
    "depthwise": {"in_channels": 5, "out_channels": 5, "kernel_size": 5, "padding": 2, "groups": 5, "num_experts": 8},
    "depthwise_widening": {"in_channels": 3, "out_channels": 6, "kernel_size": 3, "groups": 3, "bias": False},
    "one_expert": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "num_experts": 1},
    "reflect": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 2, "padding_mode": "replicate"},
    "circular": {
        "in_channels": 4,
        "out_channels": 4,
        "kernel_size": 3,
        "padding": 1,
        "padding_mode": "circular",
        "groups": 4,
    },
}
EVERY_CONFIG = pytest.mark.parametrize("config", [pytest.param(c, id=name) for name, c in CONFIGS.items()])


def build(randomise, kind=CondConv2D, **config):
    layer = randomise(kind(**config))
    layer.eval()
    return layer


def images(channels, batch=4, height=9, width=8):
    x = paddle.to_tensor(random_images(batch, channels, height, width))
    x.stop_gradient = False
    return x


def one_by_one(layer, x):
    """The definition: mix a kernel for a sample, convolve that sample alone."""
    outputs = []
    for sample in paddle.split(x, x.shape[0]):
        routing = F.sigmoid(layer._routing_fn.fc(sample.mean([2, 3])))[0]
        kernel = sum(routing[e] * layer.weight[e] for e in range(layer.weight.shape[0]))
        padding = layer.padding
        if layer.padding_mode != "zeros":
            height, width = (padding, padding) if isinstance(padding, int) else padding
            sample, padding = F.pad(sample, [width, width, height, height], layer.padding_mode), 0
        outputs.append(F.conv2d(sample, kernel, layer.bias, layer.stride, padding, layer.dilation, layer.groups))
    return paddle.concat(outputs)


def gradients(output, layer, x):
    """Gradients of half the sum of the output's squares, for the input and every parameter."""
    (0.5 * output.square().sum()).backward()
    found = {"x": x.grad.numpy(), **{name: p.grad.numpy() for name, p in layer.named_parameters()}}
    x.clear_gradient()
    layer.clear_gradients()
    return found


@EVERY_CONFIG
def test_a_batch_equals_its_samples_one_by_one(config, randomise, difference):
    layer, x = build(randomise, **config), images(config["in_channels"])
    expected = one_by_one(layer, x)
    expected_gradients = gradients(expected, layer, x)
    found = layer(x)
    found_gradients = gradients(found, layer, x)
    assert difference(found, expected) < 1e-6
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert difference(found_gradients[name], gradient) < 1e-6, name


@EVERY_CONFIG
def test_a_static_graph_for_any_batch_and_size_equals_the_dynamic_one(config, randomise, difference):
    layer = build(randomise, **config, dropout_rate=0.0)
    layer.train()  # in evaluation, a static graph has no gradients
    channels = config["in_channels"]
    inputs = [images(channels, *shape) for shape in ((1, 9, 8), (3, 12, 7))]
    expected = [layer(x) for x in inputs]
    expected_gradients = [gradients(y, layer, x) for x, y in zip(inputs, expected)]
    static = paddle.jit.to_static(
        layer, input_spec=[InputSpec([None, channels, None, None], "float32")], full_graph=True
    )
    for x, y, expected_gradient in zip(inputs, expected, expected_gradients):
        found = static(x)
        assert difference(found, y) < 1e-6
        for name, gradient in gradients(found, layer, x).items():
            assert difference(gradient, expected_gradient[name]) < 1e-6, name


@pytest.mark.parametrize("name", ["std", "grouped", "dw", "dil"])
def test_it_answers_what_the_articles_layer_answers(name, data, difference):
    oracle = part(data / "condconv2d.npz", f"{name}/")
    layer = CondConv2D(**ast.literal_eval(str(oracle["config"])))
    loaded(layer, to_paddle(part(data / "condconv2d.npz", f"{name}/state/")))
    assert difference(answers(layer, oracle["x"]), oracle["y"]) < 1e-6


def test_a_batch_is_one_convolution(monkeypatch, randomise):
    """Counted on the real convolution: as many groups as samples times groups, and no second call."""
    groups, convolution = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args: groups.append(args[6]) or convolution(*args))
    build(randomise, **CONFIGS["grouped"])(images(6, batch=5))
    assert groups == [5 * 3]


def test_the_routing_decides_which_expert_convolves(randomise, difference):
    layer, x = build(randomise, **CONFIGS["plain"], num_experts=3), images(4)
    layer._routing_fn.fc.weight.set_value(np.zeros((4, 3), "f4"))
    layer._routing_fn.fc.bias.set_value(np.float32([-100, 100, -100]))  # sigmoid: 0, 1, 0
    assert difference(layer(x), F.conv2d(x, layer.weight[1], layer.bias)) < 1e-6


def test_dropout_changes_the_routing_in_training_alone(randomise, difference):
    layer, x = build(randomise, **CONFIGS["plain"], dropout_rate=0.5), images(4)
    expected = layer(x)
    assert difference(layer(x), expected) == 0
    layer.train()
    assert difference(layer(x), expected) > 1e-3


@pytest.mark.parametrize("bias", [True, False])
def test_the_two_parameterisations_agree(bias, randomise, difference):
    """timm's [E, numbers of a kernel] and [E, out] hold what the article's [E, out, in/g, kh, kw] and [out] hold."""
    theirs = build(randomise, **CONFIGS["grouped"])
    ours = build(randomise, RoutedCondConv2D, **{**CONFIGS["grouped"], "bias": bias})
    x = images(6)
    routing = theirs._routing_fn(x.mean([2, 3]))
    ours.weight.set_value(theirs.weight.reshape(ours.weight.shape))
    expected = theirs(x) - theirs.bias.reshape([1, -1, 1, 1])
    if bias:
        expected = expected + (routing @ ours.bias).reshape([4, -1, 1, 1])
    assert difference(ours(x, routing), expected) < 1e-6


@pytest.mark.parametrize("size", [6, 7, 8, 9])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_same_padding_is_tensorflows(size, kernel_size, randomise, difference):
    layer = build(
        randomise, RoutedCondConv2D, in_channels=3, out_channels=3, kernel_size=kernel_size, groups=3, stride=2,
        padding="SAME",
    )  # fmt: skip
    x, routing = images(3, height=size, width=size), paddle.rand([4, 4])
    pad = max((-(-size // 2) - 1) * 2 + kernel_size - size, 0)
    padded = F.pad(x, [pad // 2, pad - pad // 2] * 2)
    found = layer(x, routing)
    layer.padding = 0
    assert difference(found, layer(padded, routing)) < 1e-6


def test_the_linear_layer_is_a_one_by_one_convolution(randomise, difference):
    linear = build(randomise, CondConvLinear, in_features=6, out_features=5, num_experts=4)
    conv = build(randomise, in_channels=6, out_channels=5, kernel_size=1, num_experts=4)
    state = {name: value.reshape(conv.state_dict()[name].shape) for name, value in linear.state_dict().items()}
    conv.set_state_dict(state)
    x = images(6, height=1, width=1)
    expected = gradients(conv(x), conv, x)
    vector = x.detach().flatten(1)
    vector.stop_gradient = False
    assert difference(linear(vector), conv(x).flatten(1)) < 1e-6
    for name, gradient in gradients(linear(vector), linear, vector).items():
        assert difference(gradient.reshape(expected[name].shape), expected[name]) < 1e-6, name


@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_through_the_linear_layer_equals_its_samples_one_by_one(bias, randomise, difference):
    layer = build(randomise, CondConvLinear, in_features=6, out_features=5, bias=bias)
    x = paddle.randn([4, 6])
    mixed = [sum(r[e] * layer.weight[e] for e in range(3)) for r in layer._routing_fn(x)]
    expected = paddle.stack([matrix @ sample for matrix, sample in zip(mixed, x)])
    expected = expected + layer.bias if bias else expected
    static = paddle.jit.to_static(layer, input_spec=[InputSpec([None, 6], "float32")], full_graph=True)
    assert difference(static(x), expected) < 1e-6


def test_the_experts_begin_as_the_originals():
    """The article's layer: U(-b, b), b = 1 / sqrt(out * in/g * kh * kw); timm's: N(0, sqrt(2 / (kh * kw * out/g)))."""
    weight = CondConv2D(64, 64, 3, groups=2, num_experts=4).weight.numpy()
    bound = (64 * 32 * 9) ** -0.5
    assert 0.99 * bound < np.abs(weight).max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    weight = RoutedCondConv2D(64, 64, 3, groups=2, num_experts=4).weight.numpy()
    assert weight.std() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("kind", [CondConv2D, RoutedCondConv2D])
def test_channels_that_do_not_divide_into_the_groups_are_an_error(kind):
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups of a convolution: change either"):
        kind(6, 8, 3, groups=4)


def test_an_unknown_padding_mode_is_an_error():
    with pytest.raises(ValueError, match="unknown padding mode 'mirror': choose one of zeros, reflect"):
        CondConv2D(4, 4, 3, padding_mode="mirror")
