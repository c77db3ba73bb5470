"""Deliberate mistakes in a port: each is found, located and named, and a port without one shows none."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")

from paddle import nn as pnn
from torch import nn as tnn

from convert.parity.network import compare_networks
from paddle_dense.errors import WeightsError
from tests.convert import any_networks

F = paddle.nn.functional


class TorchBlock(tnn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = tnn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = tnn.BatchNorm2d(outputs, eps=1e-3)
        self.act = tnn.LeakyReLU(0.1)
        self.conv2 = tnn.Conv2d(outputs, outputs, 3, padding=2, dilation=2)
        self.norm = tnn.GroupNorm(4, outputs)
        self.short = tnn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.silu(self.norm(self.conv2(self.act(self.bn1(self.conv1(x))))) + self.short(x))


class TorchNet(tnn.Module):
    """Every usual layer, and functions called between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = tnn.Conv2d(3, 8, 3, 2)
        self.pool = tnn.MaxPool2d(3, 2, ceil_mode=True)
        self.layer1 = tnn.Sequential(TorchBlock(8, 8), TorchBlock(8, 16, 2))
        self.layer2 = tnn.Sequential(TorchBlock(16, 16))
        self.up = tnn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.fuse = tnn.Conv2d(16, 8, 1)
        self.fc1 = tnn.Linear(8 * 3 * 3, 16)
        self.gelu = tnn.GELU("tanh")
        self.fc2 = tnn.Linear(16, 16)
        self.norm = tnn.LayerNorm(16, eps=1e-6)
        self.drop = tnn.Dropout(0.3)
        self.head = tnn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        F = torch.nn.functional
        x = self.pool(self.stem(F.pad(x, (0, 1, 0, 1))))
        x = self.layer2(self.layer1(x))
        x = F.avg_pool2d(F.elu(self.fuse(self.up(x)), 0.5), 3, 2, 1)
        x = self.fc2(F.relu6(8 * self.gelu(self.fc1(torch.flatten(x, 1)))))
        return torch.softmax(self.head(self.drop(self.norm(x))), 1)


class PaddleBlock(pnn.Layer):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = pnn.Conv2D(inputs, outputs, 3, stride, 1, bias_attr=False)
        self.bn1 = pnn.BatchNorm2D(outputs, epsilon=1e-3)
        self.act = pnn.LeakyReLU(0.1)
        self.conv2 = pnn.Conv2D(outputs, outputs, 3, padding=2, dilation=2)
        self.norm = pnn.GroupNorm(4, outputs)
        self.short = pnn.Conv2D(inputs, outputs, 1, stride)

    def forward(self, x: Any) -> Any:
        return F.silu(self.norm(self.conv2(self.act(self.bn1(self.conv1(x))))) + self.short(x))


class PaddleNet(pnn.Layer):
    """The same; what its functions are given is an attribute, so that a test can get it wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = pnn.Conv2D(3, 8, 3, 2)
        self.pool = pnn.MaxPool2D(3, 2, ceil_mode=True)
        self.layer1 = pnn.Sequential(PaddleBlock(8, 8), PaddleBlock(8, 16, 2))
        self.layer2 = pnn.Sequential(PaddleBlock(16, 16))
        self.up = pnn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.fuse = pnn.Conv2D(16, 8, 1)
        self.fc1 = pnn.Linear(8 * 3 * 3, 16)
        self.gelu = pnn.GELU(approximate=True)
        self.fc2 = pnn.Linear(16, 16)
        self.norm = pnn.LayerNorm(16, epsilon=1e-6)
        self.drop = pnn.Dropout(0.3)
        self.head = pnn.Linear(16, 5)
        self.pad, self.exclusive, self.alpha, self.axis = [0, 1, 0, 1], False, 0.5, 1

    def before_fc(self, x: Any) -> Any:
        return paddle.flatten(x, 1)

    def after_gelu(self, x: Any) -> Any:
        return F.relu6(x)

    def forward(self, x: Any) -> Any:
        x = self.pool(self.stem(F.pad(x, self.pad)))
        x = self.layer2(self.layer1(x))
        x = F.avg_pool2d(F.elu(self.fuse(self.up(x)), self.alpha), 3, 2, 1, exclusive=self.exclusive)
        x = self.fc2(self.after_gelu(8 * self.gelu(self.fc1(self.before_fc(x)))))
        return F.softmax(self.head(self.drop(self.norm(x))), self.axis)


def replaced(path: str, layer: Any) -> Any:
    """A mistake: another layer with the same weights."""

    def change(model: Any) -> None:
        parent, _, name = path.rpartition(".")
        owner = dict(model.named_sublayers(include_self=True))[parent]
        other = layer() if callable(layer) and not isinstance(layer, pnn.Layer) else layer
        other.set_state_dict(getattr(owner, name).state_dict())
        setattr(owner, name, other)
        model.eval()

    return change


def attribute(name: str, value: Any) -> Any:
    return lambda model: setattr(model, name, value)


def transposed(model: Any) -> None:
    model.fc2.weight.set_value(model.fc2.weight.numpy().T.copy())


def exchanged(model: Any) -> None:
    bn = model.layer1[1].bn1
    mean, variance = bn._mean.numpy(), bn._variance.numpy()
    bn._mean.set_value(variance)
    bn._variance.set_value(mean)


def without_bias(model: Any) -> None:
    model.layer1[1].conv2.bias = None


def channels_last(model: Any) -> None:
    model.before_fc = lambda x: paddle.flatten(x.transpose([0, 2, 3, 1]), 1)


MISTAKES = {
    "epsilon of BN": (
        replaced("layer2.0.bn1", lambda: pnn.BatchNorm2D(16)),
        "layer2.0.bn1",
        "equal with epsilon 0.001 (PyTorch's; here 1e-05)",
    ),
    "epsilon of LayerNorm": (
        replaced("norm", lambda: pnn.LayerNorm(16, epsilon=1e-3)),
        "norm",
        "equal with epsilon 1e-06 (PyTorch's; here 0.001)",
    ),
    "groups of GroupNorm": (
        replaced("layer1.1.norm", lambda: pnn.GroupNorm(8, 16)),
        "layer1.1.norm",
        "equal with number of groups 4 (PyTorch's; here 8)",
    ),
    "mean and variance": (exchanged, "layer1.1.bn1", "equal with mean and variance exchanged"),
    "side of the padding": (
        attribute("pad", [1, 0, 1, 0]),
        "F.pad, call 1, before stem",
        "equal with pad [0, 1, 0, 1] (PyTorch's; here [1, 0, 1, 0])",
    ),
    "ceil_mode": (
        replaced("pool", lambda: pnn.MaxPool2D(3, 2)),
        "pool",
        "equal with ceil_mode True (PyTorch's; here False)",
    ),
    "dilation and padding": (
        replaced("layer1.0.conv2", lambda: pnn.Conv2D(8, 8, 3, padding=1)),
        "layer1.0.conv2",
        "equal with padding 2 and dilation 2 (PyTorch's)",
    ),
    "exclusive": (
        attribute("exclusive", True),
        "F.avg_pool2d, call 1, between fuse and fc1",
        "equal with exclusive False (PyTorch's; here True)",
    ),
    "align_corners": (
        replaced("up", lambda: pnn.Upsample(scale_factor=2, mode="bilinear")),
        "up",
        "equal with align_corners True (PyTorch's; here False)",
    ),
    "form of GELU": (
        replaced("gelu", lambda: pnn.GELU()),
        "gelu",
        "equal with approximate True (PyTorch's; here False)",
    ),
    "slope": (
        replaced("layer1.0.act", lambda: pnn.LeakyReLU(0.01)),
        "layer1.0.act",
        "equal with slope 0.1 (PyTorch's; here 0.01)",
    ),
    "alpha of ELU": (
        attribute("alpha", 1.0),
        "F.elu, call 1, between fuse and fc1",
        "equal with alpha 0.5 (PyTorch's; here 1)",
    ),
    "transposed square Linear": (transposed, "fc2", "equal with its weight transposed"),
    "missing bias": (without_bias, "layer1.1.conv2", "equal with PyTorch's bias (here none)"),
    "dropout": (
        replaced("drop", lambda: pnn.Dropout(0.3, mode="downscale_in_infer")),
        "drop",
        "equal with mode upscale_in_train (PyTorch's; here downscale_in_infer)",
    ),
    "axis of softmax": (
        attribute("axis", 0),
        "F.softmax, call 1, after head",
        "equal with axis 1 (PyTorch's; here 0)",
    ),
    "another activation": (
        replaced("layer1.1.act", lambda: pnn.Hardswish()),
        "layer1.1.act",
        "equal with leaky_relu (PyTorch's; here hardswish)",
    ),
    "another function": (
        attribute("after_gelu", lambda x: F.relu(x)),
        "F.relu, call 1, between gelu and fc2",
        "equal with relu6 (PyTorch's; here relu)",
    ),
    "missing activation": (
        attribute("after_gelu", lambda x: x),
        "fc2",
        "equal with relu6 before it (PyTorch's; missing here)",
    ),
    "one activation too many": (
        attribute("after_gelu", lambda x: F.tanh(F.relu6(x))),
        "F.tanh, call 1, between gelu and fc2",
        "equal without tanh",
    ),
    "flattened with the channels last": (
        channels_last,
        "fc1",
        "equal with the channels of its input in another order: as 9 by 8 transposed",
    ),
}


@pytest.fixture
def port():
    theirs, ours, to_paddle = any_networks.port(TorchNet, PaddleNet)
    return theirs, ours, to_paddle


def inputs() -> np.ndarray:
    return any_networks.images(3, 24) * 2


def test_without_a_mistake_there_is_none(port):
    theirs, ours, to_paddle = port
    result = compare_networks(theirs, ours, inputs(), to_paddle=to_paddle, steps=1)
    assert result.agrees and result.cause is None and result.parity.max_rel_diff < 1e-6


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_located_and_named(port, mistake):
    theirs, ours, to_paddle = port
    change, place, text = MISTAKES[mistake]
    change(ours)
    result = compare_networks(theirs, ours, inputs(), to_paddle=to_paddle)
    assert not result.agrees
    assert result.cause.place == place
    assert result.cause.text.startswith(text)
    assert result.cause.explained
    assert "\n" not in str(result.cause)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            replaced("layer1.1.short", lambda: pnn.Conv2D(8, 16, 1, 1)),
            "layer1.1.short; equal with stride 2 (PyTorch's; here 1)",
        ),
        (
            replaced("layer1.0.conv2", lambda: pnn.Conv2D(8, 8, 3, padding=2)),
            "layer1.0.conv2; equal with dilation 2 (PyTorch's; here 1)",
        ),
        (attribute("before_fc", lambda x: x), "fc1; equal with its input reshaped to [2, 72] (here [2, 8, 3, 3])"),
    ],
)
def test_a_port_that_fails_on_its_inputs_is_told_where(port, change, said):
    theirs, ours, to_paddle = port
    change(ours)
    with pytest.raises(WeightsError) as error:
        compare_networks(theirs, ours, inputs(), to_paddle=to_paddle)
    assert "the Paddle network fails" in str(error.value) and f"it differs first in {said}" in str(error.value)
    assert "\n" not in str(error.value)


# In training


def slower_statistics(model: Any) -> None:
    model.layer2[0].bn1._momentum = 0.99


def frozen_statistics(model: Any) -> None:
    model.layer2[0].bn1._use_global_stats = True


def frozen_weight(model: Any) -> None:
    model.fc2.weight.stop_gradient = True


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            slower_statistics,
            "layer2.0.bn1; in training, equal with momentum 0.9 (PyTorch's 0.1 is the other share; here 0.99)",
        ),
        (
            frozen_statistics,
            "layer2.0.bn1; in training, equal with the batch's own statistics (here use_global_stats=True)",
        ),
        (frozen_weight, "fc2; in training, equal with its weights trained (here stop_gradient=True)"),
    ],
)
def test_what_differs_in_training_only_is_named(port, change, said):
    theirs, ours, to_paddle = port
    change(ours)
    result = compare_networks(theirs, ours, inputs(), to_paddle=to_paddle, steps=1)
    assert result.parity.max_rel_diff < 1e-6 and not result.agrees
    assert str(result.cause) == f"differs first in {said}"


# What is not so simple


def test_of_two_mistakes_the_first_is_named_and_then_the_second(port):
    theirs, ours, to_paddle = port
    bn = ours.layer1[0].bn1
    bn._epsilon = 1e-5
    ours.alpha = 1.0
    first = compare_networks(theirs, ours, inputs(), to_paddle=to_paddle).cause
    assert str(first) == "differs first in layer1.0.bn1; equal with epsilon 0.001 (PyTorch's; here 1e-05)"
    bn._epsilon = 1e-3
    second = compare_networks(theirs, ours, inputs(), to_paddle=to_paddle).cause
    assert (
        str(second) == "differs first in F.elu, call 1, between fuse and fc1; equal with alpha 0.5 (PyTorch's; here 1)"
    )
    ours.alpha = 0.5
    assert compare_networks(theirs, ours, inputs(), to_paddle=to_paddle).cause is None


def test_what_none_of_the_causes_explains_is_said(port):
    theirs, ours, to_paddle = port

    class Odd(pnn.LeakyReLU):
        def forward(self, x: Any) -> Any:
            return super().forward(x) + paddle.cos(3 * x)

    ours.layer2[0].act = Odd(0.1)
    cause = compare_networks(theirs, ours, inputs(), to_paddle=to_paddle).cause
    assert cause.place == "layer2.0.act" and not cause.explained
    assert "no usual cause explains" in cause.text
    assert "PyTorch has LeakyReLU(negative_slope=0.1" in cause.text and "Paddle Odd(negative_slope=0.1" in cause.text


def swapped_parts(model: Any) -> None:
    concat = paddle.concat
    model.join = lambda parts, axis: concat(parts[::-1], axis)


class TorchJoined(tnn.Module):
    """Parts that are joined, scaled, and moved to other axes between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = tnn.Conv2d(3, 4, 3, 2), tnn.Conv2d(3, 6, 3, 2)
        self.join, self.last = tnn.Conv2d(10, 5, 1), tnn.Linear(5, 5)

    def forward(self, x: Any) -> Any:
        x = torch.nn.functional.pad(x, (0, 1, 0, 1))
        x = self.join(torch.cat([self.left(x), self.right(x)], 1))
        return self.last(x.flatten(2).transpose(1, 2) * 3)


class PaddleJoined(pnn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = pnn.Conv2D(3, 4, 3, 2), pnn.Conv2D(3, 6, 3, 2)
        self.join, self.last = pnn.Conv2D(10, 5, 1), pnn.Linear(5, 5)
        self.scale, self.order, self.padded = 3, (0, 1), [0, 1, 0, 1]

    def forward(self, x: Any) -> Any:
        x = F.pad(x, self.padded) if self.padded else x
        parts = [self.left(x), self.right(x)]
        x = self.join(paddle.concat([parts[n] for n in self.order], 1))
        return self.last(x.flatten(2).transpose([0, 2, 1]) * self.scale)


def padding_in_the_layers(model: Any) -> None:
    """What ports of TensorFlow's padding do: PyTorch's pad becomes a padding of both sides."""
    model.padded = None
    replaced("left", lambda: pnn.Conv2D(3, 4, 3, 2, 1))(model)
    replaced("right", lambda: pnn.Conv2D(3, 6, 3, 2, 1))(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: None, None),
        (
            attribute("order", (1, 0)),
            "join; equal with the channels of its input in another order: the last 4 before the first 6, as if parts "
            "were joined the other way round",
        ),
        (attribute("scale", 1), "last; equal with its input times 3"),
        (
            padding_in_the_layers,
            "left; equal with padding, before and after each axis, [0, 1, 0, 1] (PyTorch's; here 1)",
        ),
    ],
)
def test_what_happens_between_layers_is_named_as_well(change, said):
    theirs, ours, to_paddle = any_networks.port(TorchJoined, PaddleJoined)
    change(ours)
    result = compare_networks(theirs, ours, any_networks.images(3, 8), to_paddle=to_paddle)
    assert (result.cause and str(result.cause)) == (said and f"differs first in {said}")
    assert result.agrees == (said is None)


def test_functions_that_a_module_has_imported_by_name_are_seen(port):
    """As are those that a layer keeps as an attribute, such as the activation of Paddle's Transformer."""
    *classes, tokens = any_networks.NETWORKS["Transformer encoder"]
    theirs, ours, to_paddle = any_networks.port(*classes)
    ours.encoder.layers[1].activation = paddle.nn.functional.relu
    cause = compare_networks(theirs, ours, tokens, to_paddle=to_paddle).cause
    assert cause.explained and cause.text == "equal with gelu (PyTorch's; here relu)"
    assert cause.place == "F.relu, call 1, between encoder.layers.1.linear1 and encoder.layers.1.dropout"


@pytest.mark.parametrize("scale", [0.15, 0.3])
def test_a_mistake_smaller_than_the_difference_allowed_is_found(scale):
    """Two forms of GELU are nearly the same for small numbers: float32 allows the difference, float64 shows it."""

    class Theirs(tnn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = tnn.Linear(16, 16), tnn.Linear(16, 4)

        def forward(self, x: Any) -> Any:
            return self.fc2(torch.nn.functional.gelu(scale * self.fc1(x), approximate="tanh"))

    class Ours(pnn.Layer):
        def __init__(self, approximate: bool) -> None:
            super().__init__()
            self.fc1, self.fc2, self.approximate = pnn.Linear(16, 16), pnn.Linear(16, 4), approximate

        def forward(self, x: Any) -> Any:
            return self.fc2(F.gelu(scale * self.fc1(x), approximate=self.approximate))

    torch.manual_seed(0)
    theirs, inputs = Theirs(), np.random.default_rng(0).standard_normal((8, 16), np.float32)
    for approximate in (True, False):
        ours = Ours(approximate)
        for name in ("fc1", "fc2"):
            getattr(ours, name).weight.set_value(getattr(theirs, name).weight.detach().numpy().T.copy())
            getattr(ours, name).bias.set_value(getattr(theirs, name).bias.detach().numpy())
        found = compare_networks(theirs, ours, inputs)
        assert found.parity.max_rel_diff < 1e-5
        assert found.agrees == approximate
        assert bool(found.cause) != approximate
    assert "F.gelu" in found.cause.place
    assert "approximate True" in found.cause.text
