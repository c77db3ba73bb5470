"""Networks that are not ours: inputs and outputs of any structure, every layer, loss, gradients and steps."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")

from paddle import nn as pnn
from torch import nn as tnn

from convert.parity.network import compare_networks
from convert.parity.structures import for_paddle, for_torch, named_arrays, paired
from convert.parity.training import NO_DROPOUT
from paddle_dense.errors import WeightsError
from tests.convert import any_networks

LAYERS = {
    "Transformer encoder": {"embedding", "encoder.layers.1.self_attn", "encoder.layers.1.norm2", "encoder", "head"},
    "LSTM tagger": {"embedding", "lstm", "tags"},
    "U-Net": {"down1.0", "down1.2", "bottom.1", "up2", "out"},
    "generator": {"main.0", "main.4", "main.5", "main.7"},
}


@pytest.mark.parametrize("name", any_networks.NETWORKS)
def test_a_right_port_agrees(name):
    *classes, inputs = any_networks.NETWORKS[name]
    theirs, ours, to_paddle = any_networks.port(*classes)
    result = compare_networks(theirs, ours, inputs, to_paddle=to_paddle, steps=2)
    assert result.agrees and result.cause is None
    assert result.parity.max_rel_diff < 1e-6
    assert {layer.name for layer in result.layers} >= LAYERS[name]
    assert max(layer.float32 for layer in result.layers) < 1e-5
    assert max(layer.float64 for layer in result.layers) < 1e-6
    assert len(result.training.steps) == 2
    assert (NO_DROPOUT in result.warnings) == (name in ("Transformer encoder", "LSTM tagger"))
    # Of a bias of keys, the true gradient is 0, and in float32 rounding is all there is.
    assert bool(result.training.exact) == (name == "Transformer encoder")
    for step in result.training.exact or result.training.steps:
        assert step.gradient.size < 1e-5 and step.update.size < 1e-5 and step.loss_diff < 1e-5


def test_the_networks_stay_as_they_are():
    *classes, inputs = any_networks.NETWORKS["U-Net"]
    theirs, ours, to_paddle = any_networks.port(*classes)
    ours.train()
    before = {name: value.numpy().copy() for name, value in ours.state_dict().items()}
    functions = dict(vars(paddle.nn.functional))
    ours.bottom[2] = pnn.Sigmoid()  # so that causes are looked for
    result = compare_networks(theirs, ours, inputs, to_paddle=to_paddle, steps=1)
    assert not result.agrees
    assert ours.training and not theirs.training
    assert dict(vars(paddle.nn.functional)) == functions
    for name, value in ours.state_dict().items():
        assert (value.numpy() == before[name]).all(), name


def tagging_loss(outputs: Any, inputs: Any) -> Any:
    """Works in either framework: both have these methods."""
    tags, (hidden, _) = outputs
    return (tags**2).mean() + 0.1 * hidden.sum() + 0.0 * inputs[0].sum()


@pytest.mark.parametrize("losses", [tagging_loss, (tagging_loss, tagging_loss)])
def test_a_loss_takes_outputs_and_inputs_as_they_are(losses):
    *classes, inputs = any_networks.NETWORKS["LSTM tagger"]
    theirs, ours, to_paddle = any_networks.port(*classes)
    result = compare_networks(theirs, ours, inputs, to_paddle=to_paddle, steps=1, loss=losses)
    assert result.agrees
    expected = tagging_loss(theirs.train(False)(torch.as_tensor(inputs[0])), [torch.as_tensor(inputs[0])])
    assert result.training.steps[0].torch_loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_wrong_loss_in_one_framework_is_a_difference_of_the_loss():
    *classes, inputs = any_networks.NETWORKS["LSTM tagger"]
    theirs, ours, to_paddle = any_networks.port(*classes)
    losses = (tagging_loss, lambda outputs, inputs: 1.01 * tagging_loss(outputs, inputs))
    result = compare_networks(theirs, ours, inputs, to_paddle=to_paddle, steps=1, loss=losses)
    assert not result.agrees and result.training.first_difference.what == "loss"
    assert not result.cause.explained and "the loss" in result.cause.text


def test_a_loss_that_is_no_scalar_is_one_sentence():
    *classes, inputs = any_networks.NETWORKS["LSTM tagger"]
    theirs, ours, to_paddle = any_networks.port(*classes)
    for loss, said in ((lambda outputs, _: outputs[0], r"a tensor of \[3, 7, 4\]"), (lambda *_: 1.0, "a float")):
        with pytest.raises(ValueError, match=f"the loss is {said}: make the function return a scalar"):
            compare_networks(theirs, ours, inputs, to_paddle=to_paddle, steps=1, loss=loss)


@dataclass
class Output:
    logits: Any
    hidden: Any = None


def test_outputs_are_named():
    one, two = torch.ones(2), torch.zeros(3)
    Pair = namedtuple("Pair", "first second")
    for output, names in (
        (one, ["out"]),
        ((one, two), ["out.0", "out.1"]),
        ([one, (two, None, one)], ["out.0", "out.1.0", "out.1.2"]),
        ({"logits": one, "hidden": (two, one), "none": None}, ["logits", "hidden.0", "hidden.1"]),
        (Output(one), ["logits"]),
        (Output(one, [two]), ["logits", "hidden.0"]),
        (Pair(one, {"x": two}), ["out.0", "out.1.x"]),
    ):
        assert list(named_arrays(output)) == names
    with pytest.raises(ValueError, match="hidden answers a set, which cannot be compared"):
        named_arrays({"hidden": {1}})
    assert named_arrays(torch.ones(2, dtype=torch.bfloat16))["out"].dtype == np.float32
    assert (named_arrays(paddle.ones([2], "bfloat16"))["out"] == 1).all()


def test_outputs_pair_by_name_or_in_order():
    a, b = np.ones((2, 3)), np.zeros((2, 3))
    assert [one is other for one, other in paired({"y": a, "x": b}, {"x": b, "y": a})] == [True, True]
    assert [one is other for one, other in paired({"out.0": a, "out.1": b}, {"x": a, "y": b})] == [True, True]
    with pytest.raises(WeightsError, match=r"PyTorch answers \[2, 3\] and \[2, 3\] and Paddle \[2, 3\]: make both"):
        paired({"out": a}, {"out.0": a, "out.1": b})
    with pytest.raises(WeightsError, match="PyTorch answers nothing and Paddle nothing"):
        paired({}, {})


def test_inputs_keep_their_kind_of_number():
    inputs = {"x": np.ones(2), "more": [np.arange(2, dtype=np.int32), {"mask": np.array([True])}], "none": None, "n": 3}
    for tensors in (for_torch(inputs, tnn.Linear(2, 2)), for_paddle(inputs, pnn.Linear(2, 2))):
        assert "float32" in str(tensors["x"].dtype) and "int32" in str(tensors["more"][0].dtype)
        assert "bool" in str(tensors["more"][1]["mask"].dtype)
        assert tensors["none"] is None and tensors["n"] == 3
    assert for_torch(np.ones(2), tnn.Linear(2, 2).double()).dtype == torch.float64


class TorchShared(tnn.Module):
    """Layers that are called twice, and dropout as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.act = tnn.Linear(6, 6), tnn.Linear(6, 6), tnn.Tanh()

    def forward(self, x: Any) -> Any:
        x = self.act(self.again(self.act(self.again(self.act(self.first(x))))))
        return torch.nn.functional.dropout(x, 0.5, self.training)


class PaddleShared(pnn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.repeated, self.tanh = pnn.Linear(6, 6), pnn.Linear(6, 6), pnn.Tanh()

    def forward(self, x: Any) -> Any:
        x = self.tanh(self.repeated(self.tanh(self.repeated(self.tanh(self.start(x))))))
        return paddle.nn.functional.dropout(x, 0.5, training=self.training)


def shared(names: dict[str, str | None]) -> tuple[Any, Any, Any, Any]:
    theirs, ours = any_networks.lived_in(TorchShared()).eval(), PaddleShared()
    ours.eval()
    theirs_of = {"start": "first", "repeated": "again"}

    def to_paddle(tensors):
        return {
            f"{name}.{leaf}": tensors[f"{other}.{leaf}"].T
            for name, other in theirs_of.items()
            for leaf in ("weight", "bias")
        }

    ours.set_state_dict(to_paddle({name: value.numpy() for name, value in theirs.state_dict().items()}))
    return theirs, ours, to_paddle, names.get


@pytest.mark.parametrize("names", [{"first": "start", "again": "repeated", "act": "tanh"}, {}])
def test_layers_pair_by_other_names_or_by_order_and_call(names):
    theirs, ours, to_paddle, own_name = shared(names)
    x = np.random.default_rng(0).standard_normal((4, 6))
    result = compare_networks(theirs, ours, x, own_name=own_name, to_paddle=to_paddle, steps=2)
    assert result.agrees
    assert [layer.name for layer in result.layers] == [
        "start",
        "tanh, call 1",
        "repeated, call 1",
        "tanh, call 2",
        "repeated, call 2",
        "tanh, call 3",
    ]
    assert result.warnings == (NO_DROPOUT,)


def test_networks_that_cannot_be_run_are_one_sentence():
    theirs, ours, to_paddle, own_name = shared({})
    with pytest.raises(ValueError, match=r"the PyTorch network cannot be run on the inputs .*: give what its forward"):
        compare_networks(theirs, ours, np.ones((2, 5)), own_name=own_name, to_paddle=to_paddle)
    ours.forward = lambda x: {"one": x, "other": x}
    with pytest.raises(WeightsError, match=r"PyTorch answers \[2, 6\] and Paddle \[2, 6\] and \[2, 6\]") as error:
        compare_networks(theirs, ours, np.ones((2, 6)), own_name=own_name, to_paddle=to_paddle)
    assert "\n" not in str(error.value)


class OnlyFloat32(PaddleShared):
    def forward(self, x: Any) -> Any:
        if "float64" in str(x.dtype):
            raise TypeError("only float32 is implemented")
        return super().forward(x)


def test_a_network_that_cannot_be_run_in_float64_is_compared_in_float32():
    theirs, ours, to_paddle, own_name = shared({"first": "start", "again": "repeated", "act": "tanh"})
    ours.__class__ = OnlyFloat32
    x = np.random.default_rng(0).standard_normal((4, 6))
    right = compare_networks(theirs, ours, x, own_name=own_name, to_paddle=to_paddle)
    assert right.agrees and right.warnings == () and all(0 <= layer.float64 < 1e-5 for layer in right.layers)
    ours.repeated.weight.set_value(ours.repeated.weight.numpy().T.copy())
    wrong = compare_networks(theirs, ours, x, own_name=own_name, to_paddle=to_paddle)
    assert str(wrong.cause) == "differs first in repeated; equal with its weight transposed"
    assert len(wrong.warnings) == 1
    assert "could not be run in float64 (TypeError: only float32 is implemented)" in wrong.warnings[0]


def test_integers_and_masks_are_outputs_too():
    class Torch(tnn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x).argmax(1), x > 0, x.sum()

    class Paddle(pnn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x).argmax(1), x > 0, x.sum()

    theirs, ours = Torch(3, 4), Paddle(3, 4)
    ours.weight.set_value(theirs.weight.detach().numpy().T)
    ours.bias.set_value(theirs.bias.detach().numpy())
    result = compare_networks(theirs, ours, np.random.default_rng(0).standard_normal((5, 3), np.float32))
    assert result.agrees and result.parity.what == "outputs"
