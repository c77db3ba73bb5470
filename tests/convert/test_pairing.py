"""Which of a PyTorch file's tensors each tensor of any Paddle network is made of."""

from __future__ import annotations

import csv
from collections.abc import Mapping

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st
from paddle import nn

from convert.mapping import Given, Order, executed, pair, refuse
from convert.mapping_file import COLUMNS, read_mapping, write_proposal
from paddle_dense.errors import WeightsError
from paddle_dense.files.spelling import Selection
from paddle_dense.models.sources import made_of, sources

Shapes = Mapping[str, tuple[int, ...]]


def stored(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch file with these names and shapes, no two of them alike."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


def conv(name: str, inputs: int, outputs: int, size: int = 3) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, size, size)}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in leaves} | {f"{name}.num_batches_tracked": ()}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def plain(inputs: int, outputs: int, size: int = 3) -> nn.Conv2D:
    return nn.Conv2D(inputs, outputs, size, bias_attr=False)


class Net(nn.Layer):
    """Layers by name."""

    def __init__(self, **layers: nn.Layer) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_sublayer(name, layer)

    def forward(self, x):
        return x


def small() -> Net:
    return Net(conv=plain(3, 4), bn=nn.BatchNorm2D(4), fc=nn.Linear(4, 4))


SMALL = {**conv("conv", 3, 4), **norm("bn", 4), **linear("fc", 4, 4)}


def names(pairing, of: str = "chosen") -> dict[str, str]:
    return {ours: " + ".join(source.names) for ours, source in getattr(pairing, of).items()}


def prefixed(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in shapes.items()}


# Names


def test_equal_names_and_layouts():
    tensors = stored(SMALL)
    pairing = pair(small(), tensors)
    refuse(pairing)
    assert names(pairing) == {
        "conv.weight": "conv.weight",
        "bn.weight": "bn.weight",
        "bn.bias": "bn.bias",
        "bn._mean": "bn.running_mean",
        "bn._variance": "bn.running_var",
        "fc.weight": "fc.weight",
        "fc.bias": "fc.bias",
    }
    state = made_of(tensors, pairing.chosen)
    np.testing.assert_array_equal(state["fc.weight"], tensors["fc.weight"].T)
    assert pairing.layers == {"conv": "conv", "bn": "bn", "fc": "fc"}
    assert not pairing.notes and not pairing.left_out and pairing.summary == "7 tensors by name"


def test_a_state_dict_in_another_order_pairs_by_its_names():
    tensors = stored(SMALL)
    turned = dict(reversed(list(tensors.items())))
    assert names(pair(small(), turned)) == names(pair(small(), tensors))


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module.", "lit.net.backbone."])
def test_a_prefix_of_all_names(prefix):
    pairing = pair(small(), stored(prefixed(SMALL, prefix)))
    refuse(pairing)
    assert names(pairing)["bn._mean"] == f"{prefix}bn.running_mean"
    assert pairing.layers["fc"] == f"{prefix}fc" and pairing.own_name(f"{prefix}fc") == "fc"
    assert pairing.own_name("loss.fc") is None and pairing.own_name("") == ""
    assert len(pairing.notes) == 1 and pairing.notes[0].startswith("took ")


def test_a_prefix_of_the_network():
    pairing = pair(Net(backbone=small()), stored(SMALL))
    refuse(pairing)
    assert names(pairing)["backbone.fc.weight"] == "fc.weight"
    assert pairing.notes == ("put 'backbone.' before the file's names",)
    assert pairing.own_name("fc") == "backbone.fc"


def test_a_prefix_on_either_side():
    pairing = pair(Net(backbone=small()), stored(prefixed(SMALL, "module.net.")))
    refuse(pairing)
    assert names(pairing)["backbone.fc.weight"] == "module.net.fc.weight"


def test_a_prefix_of_most_names():
    tensors = stored({**prefixed(SMALL, "net."), "loss.weight": (7,), "net.total_ops": (1,)})
    pairing = pair(small(), tensors)
    refuse(pairing)
    assert pairing.left_out == ("loss.weight", "net.total_ops")
    assert "left out what is no part of the network: 'loss.weight', 'net.total_ops'" in pairing.notes


def test_what_fits_without_its_first_part_is_no_prefix_of_all():
    network = Net(a=Net(b=nn.Linear(4, 4)), conv=Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4)), b=nn.Linear(4, 4))
    layers = ("z.b", "conv.a", "conv.b", "y")
    pairing = pair(network, stored({name: shape for layer in layers for name, shape in linear(layer, 4, 4).items()}))
    assert names(pairing)["conv.b.weight"] == "conv.b.weight" and pairing.chosen.keys() == {
        f"conv.{layer}.{leaf}" for layer in "ab" for leaf in ("weight", "bias")
    }
    assert names(pairing, "proposed")["a.b.weight"] == "z.b.weight"


def test_wrappers_inside_names():
    shapes = {name.replace("fc.", "fc.module."): shape for name, shape in SMALL.items()}
    pairing = pair(small(), stored(shapes))
    refuse(pairing)
    assert names(pairing)["fc.weight"] == "fc.module.weight" and pairing.own_name("fc.module") == "fc"


def test_a_network_whose_own_names_are_a_wrappers():
    pairing = pair(Net(module=small()), stored(prefixed(SMALL, "module.")))
    refuse(pairing)
    assert not pairing.notes


def test_two_networks_in_one_file():
    tensors = stored({**prefixed(SMALL, "student."), **prefixed(SMALL, "teacher.")})
    with pytest.raises(WeightsError, match=r"several networks, under 'student\.', 'teacher\.': choose"):
        pair(small(), tensors)
    pairing = pair(small(), tensors, Selection(part="teacher."))
    refuse(pairing)
    assert names(pairing)["fc.weight"] == "teacher.fc.weight" and len(pairing.left_out) == 7


def test_rename_and_drop():
    shapes = {**conv("stem.0", 3, 4), **norm("stem.1", 4), **linear("fc", 4, 4), "extra.weight": (5, 5)}
    rules = Selection(["extra.*"], [("stem.0", "conv"), ("stem.1", "bn")])
    pairing = pair(small(), stored(shapes), rules)
    refuse(pairing)
    assert not pairing.proposed and pairing.left_out == ("extra.weight",)
    assert pairing.layers["bn"] == "stem.1" and pairing.own_name("stem.1") == "bn"


def test_rules_that_make_two_names_one():
    with pytest.raises(WeightsError, match=r"one tensor under two names, 'conv.weight' and 'stem.weight'"):
        pair(small(), stored({**SMALL, "stem.weight": (1,)}), Selection(rename=[("stem", "conv")]))


def test_equal_names_of_other_shapes():
    tensors = stored({**SMALL, "fc.weight": (10, 4), "fc.bias": (10,)})
    pairing = pair(small(), tensors)
    assert pairing.missing == ("fc.weight", "fc.bias") and pairing.unplaced == ("fc.weight", "fc.bias")
    message = (
        r"has 'fc.weight' \[10, 4\], of which the network's 'fc.weight' \[4, 4\] cannot be made \(transposed\): build"
    )
    with pytest.raises(WeightsError, match=message):
        refuse(pairing)


def test_another_number_of_classes_in_a_numbered_layer():
    network = nn.Sequential(plain(3, 4), nn.BatchNorm2D(4), nn.Linear(4, 3))
    pairing = pair(network, stored({**conv("0", 3, 4), **norm("1", 4), **linear("2", 4, 9)}))
    with pytest.raises(
        WeightsError, match=r"has '2.weight' \[9, 4\], of which the network's '2.weight' \[4, 3\] cannot be"
    ):
        refuse(pairing)


def test_numbers_that_count_other_layers_are_no_names():
    """PyTorch's Sequential has its ReLUs in it, Paddle's has not: 2 is another layer on either side."""
    network = Net(body=nn.Sequential(plain(4, 4), nn.BatchNorm2D(4), plain(4, 4), nn.BatchNorm2D(4)))
    shapes = {**conv("body.0", 4, 4), **norm("body.1", 4), **conv("body.3", 4, 4), **norm("body.4", 4)}
    pairing = pair(network, stored(shapes))
    assert not pairing.chosen
    assert names(pairing, "proposed")["body.2.weight"] == "body.3.weight"
    assert names(pairing, "proposed")["body.3._mean"] == "body.4.running_mean"


# Order and shape


def test_the_only_possible_pair_is_applied_and_noted():
    shapes = {**conv("stem", 3, 4), **norm("norm", 4), **linear("head", 4, 4)}
    pairing = pair(small(), stored(shapes))
    refuse(pairing)
    assert names(pairing)["fc.weight"] == "head.weight" and pairing.layers == {
        "conv": "stem",
        "bn": "norm",
        "fc": "head",
    }
    assert pairing.notes[0].startswith("paired by shape what has no other choice: 'conv.weight' = 'stem.weight'")


def test_two_possible_assignments_are_only_proposed():
    network = Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    pairing = pair(network, stored({**linear("x", 4, 4), **linear("y", 4, 4)}))
    assert not pairing.chosen and not pairing.layers
    assert names(pairing, "proposed") == {
        "a.weight": "x.weight",
        "a.bias": "x.bias",
        "b.weight": "y.weight",
        "b.bias": "y.bias",
    }
    message = "has 4 pairs that go by order and shape only, such as 'a.weight' = 'x.weight': write them with --propose"
    with pytest.raises(WeightsError, match=message):
        refuse(pairing)


def test_what_is_certain_in_its_layer_is_certain():
    """`shortcut` is the only layer of its shapes in its block, however many blocks there are."""

    def block():
        return Net(conv=plain(4, 4), shortcut=plain(4, 4, 1))

    shapes = {}
    for number in range(2):
        shapes.update({**conv(f"blocks.{number}.conv", 4, 4), **conv(f"blocks.{number}.downsample", 4, 4, 1)})
    pairing = pair(Net(blocks=nn.Sequential(block(), block())), stored(shapes))
    refuse(pairing)
    assert names(pairing)["blocks.1.shortcut.weight"] == "blocks.1.downsample.weight"


def test_nothing_is_certain_under_an_uncertain_pair():
    def block():
        return Net(conv=plain(4, 4), fc=nn.Linear(4, 2))

    shapes = {}
    for name in "xy":
        shapes.update({**linear(f"{name}.fc", 4, 2), **conv(f"{name}.conv", 4, 4)})  # registered in another order
    pairing = pair(Net(a=block(), b=block()), stored(shapes))
    assert not pairing.chosen
    assert names(pairing, "proposed")["a.fc.weight"] == "x.fc.weight"
    assert names(pairing, "proposed")["b.conv.weight"] == "y.conv.weight"


def test_a_renamed_part_that_stands_alone_pairs_by_the_names_in_it():
    inner = {**linear("b", 4, 4), **linear("a", 4, 4)}
    pairing = pair(Net(encoder=Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4)), fc=nn.Linear(4, 2)),
                   stored({**prefixed(inner, "body."), **linear("fc", 4, 2)}))  # fmt: skip
    refuse(pairing)
    assert names(pairing)["encoder.a.weight"] == "body.a.weight" and pairing.layers["encoder"] == "body"


def test_other_nesting_goes_by_the_whole_order():
    network = Net(
        _conv1=Net(_conv=plain(3, 4), _bn=nn.BatchNorm2D(4)), _conv2=Net(_conv=plain(4, 4), _bn=nn.BatchNorm2D(4))
    )
    shapes = {**conv("conv1.0", 3, 4), **norm("conv1.1", 4), **conv("tail.conv", 4, 4), **norm("tail.bn", 4)}
    pairing = pair(network, stored(shapes))
    assert names(pairing) == {"_conv1._conv.weight": "conv1.0.weight", "_conv2._conv.weight": "tail.conv.weight"}
    assert names(pairing, "proposed")["_conv2._bn._variance"] == "tail.bn.running_var"
    assert not pairing.missing and not pairing.unplaced


def test_one_layer_more_pairs_as_far_as_there_is_one_way():
    network = Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2), d=nn.Linear(2, 3), e=nn.Linear(2, 3))
    shapes = {}
    for name, sizes in {"p": (4, 4), "q": (4, 4), "r": (4, 4), "s": (4, 2), "t": (2, 3), "u": (2, 3)}.items():
        shapes.update(linear(name, *sizes))
    pairing = pair(network, stored(shapes))
    assert names(pairing)["c.weight"] == "s.weight"
    assert names(pairing, "proposed") == {
        "d.weight": "t.weight",
        "d.bias": "t.bias",
        "e.weight": "u.weight",
        "e.bias": "u.bias",
    }
    assert pairing.missing == ("a.weight", "a.bias", "b.weight", "b.bias")
    assert [name for name in pairing.unplaced if name.endswith("weight")] == ["p.weight", "q.weight", "r.weight"]
    with pytest.raises(WeightsError) as raised:
        refuse(pairing)
    assert "has 'p.weight' [4, 4] (nearest: " in str(raised.value)
    assert "and no tensor for the network's 'a.weight' [4, 4] (nearest: " in str(raised.value)
    assert "--rename OLD=NEW" in str(raised.value) and "--drop PATTERN" in str(raised.value)


def test_a_missing_tensor_needs_no_drop():
    network = Net(a=nn.Linear(4, 4), b=nn.Linear(3, 3))
    with pytest.raises(WeightsError) as raised:
        refuse(pair(network, stored(linear("a", 4, 4))))
    assert str(raised.value).startswith("has no tensor for the network's 'b.weight' [3, 3], 'b.bias' [3]: say")
    assert "--drop" not in str(raised.value)


def test_tensors_of_a_layer_with_other_names_are_proposed():
    class Scale(nn.Layer):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = self.create_parameter([4]), self.create_parameter([4])

    pairing = pair(
        Net(scale=Scale(), fc=nn.Linear(4, 2)), stored({"scale.gamma": (4,), "scale.beta": (4,), **linear("fc", 4, 2)})
    )
    assert names(pairing) == {"fc.weight": "fc.weight", "fc.bias": "fc.bias"}
    assert names(pairing, "proposed") == {"scale.weight": "scale.gamma", "scale.bias": "scale.beta"}
    # Of one that is called otherwise as well.
    pairing = pair(
        Net(scale=Scale(), fc=nn.Linear(4, 2)),
        stored({"affine.gamma": (4,), "affine.beta": (4,), **linear("fc", 4, 2)}),
    )
    assert names(pairing, "proposed") == {"scale.weight": "affine.gamma", "scale.bias": "affine.beta"}


def test_a_bias_that_only_the_file_has_goes_nowhere():
    class Scale(nn.Layer):
        def __init__(self):
            super().__init__()
            self.bias = self.create_parameter([4])

    pairing = pair(Net(conv=plain(3, 4), scale=Scale()), stored({**conv("conv", 3, 4), "conv.bias": (4,)}))
    assert pairing.missing == ("scale.bias",) and pairing.unplaced == ("conv.bias",)


def test_hostile_numbers_of_layers_end_soon():
    tensors = {f"x.{number}.weight": np.zeros((number % 97 + 1,), "f4") for number in range(20_000)}
    tensors["a." * 5000 + "weight"] = np.zeros((2,), "f4")
    pairing = pair(small(), tensors)
    assert not pairing.chosen and not pairing.proposed and len(pairing.missing) == 7
    with pytest.raises(WeightsError, match="and 19998 more without a place"):
        refuse(pairing)


# The order in which layers are run


class Run(Net):
    """Runs its layers in the order of their names."""

    def forward(self, x):
        for _, layer in sorted(self.named_children()):
            x = layer(x)
        return x


def test_the_order_of_execution_takes_the_place_of_that_of_names():
    network = Run(b=nn.Linear(4, 4), c=nn.Linear(4, 4), a=nn.Linear(4, 4))
    order = executed(network, lambda: network(paddle.zeros([1, 4])))
    assert order == ["a", "b", "c"]
    tensors = stored({**linear("x", 4, 4), **linear("y", 4, 4), **linear("z", 4, 4)})
    assert names(pair(network, tensors), "proposed")["a.weight"] == "z.weight"
    pairing = pair(network, tensors, order=Order(order, ["x", "y", "z"]))
    assert names(pairing, "proposed")["a.weight"] == "x.weight" and not pairing.chosen


def test_layers_of_pytorch_in_the_order_in_which_they_are_run():
    torch = pytest.importorskip("torch")

    class Turned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())

        def forward(self, x):
            return self.last(self.first(self.first(x)))

    network = Turned()
    assert executed(network, lambda: network(torch.zeros(1, 4))) == ["first", "first.0", "first.1", "last"]
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_weights_find_their_layers_by_the_order_of_execution(tmp_path):
    torch = pytest.importorskip("torch")

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.third, self.first, self.second = (torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.third(self.second(self.first(x).tanh()).tanh())

    class Ours(nn.Layer):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.three(paddle.tanh(self.two(paddle.tanh(self.one(x)))))

    theirs, ours = Theirs(), Ours()
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((5, 4)).astype("f4")
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    inputs = paddle.to_tensor(x), torch.from_numpy(x)
    order = Order(executed(ours, lambda: ours(inputs[0])), executed(theirs, lambda: theirs(inputs[1])))
    for known, is_right in ((None, False), (order, True)):
        path = written(pair(ours, tensors, order=known), tmp_path, f"{is_right}.csv")
        pairing = pair(ours, tensors, given=read_mapping(path))
        refuse(pairing)
        load(ours, made_of(tensors, pairing.chosen))
        assert np.allclose(ours(inputs[0]).numpy(), expected, rtol=0, atol=1e-6) == is_right


# Layers that PyTorch keeps otherwise


def load(network: nn.Layer, state: Mapping[str, np.ndarray]) -> None:
    state = {name: paddle.to_tensor(np.ascontiguousarray(value)) for name, value in state.items()}
    assert network.set_state_dict(state) == ([], [])


def test_a_tagger_with_other_names():
    torch = pytest.importorskip("torch")

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(11, 6)
            self.rnn = torch.nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
            self.out = torch.nn.Linear(10, 3)

        def forward(self, x):
            return self.out(self.rnn(self.embedding(x))[0])

    class Ours(nn.Layer):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(11, 6)
            self.lstm = nn.LSTM(6, 5, 2, direction="bidirect")
            self.tags = nn.Linear(10, 3)

        def forward(self, x):
            return self.tags(self.lstm(self.words(x))[0])

    theirs, ours = Theirs(), Ours()
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    pairing = pair(ours, tensors)
    refuse(pairing)
    assert pairing.layers == {"words": "embedding", "lstm": "rnn", "tags": "out"}
    load(ours, made_of(tensors, pairing.chosen))
    x = np.random.default_rng(0).integers(11, size=(4, 7))
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours(paddle.to_tensor(x)).numpy(), expected, rtol=0, atol=1e-6)


def test_a_transformer_with_other_names():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential()
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    theirs.add_module("body", torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    theirs.add_module("out", torch.nn.Linear(8, 3))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = nn.Sequential(
        ("encoder", nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)), ("head", nn.Linear(8, 3))
    )
    tensors = {name: tensor.numpy() for name, tensor in theirs.eval().state_dict().items()}
    pairing = pair(ours, tensors)
    refuse(pairing)
    assert pairing.layers["encoder.layers.1.self_attn"] == "body.layers.1.self_attn"
    load(ours.eval(), made_of(tensors, pairing.chosen))
    x = np.random.default_rng(0).standard_normal((2, 7, 8)).astype("f4")
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours(paddle.to_tensor(x)).numpy(), expected, rtol=0, atol=2e-6)


def test_biases_that_pytorchs_layer_does_not_have():
    torch = pytest.importorskip("torch")
    tensors = {name: tensor.numpy() for name, tensor in torch.nn.LSTM(4, 5, bias=False).state_dict().items()}
    pairing = pair(nn.LSTM(4, 5, bias_ih_attr=False, bias_hh_attr=False), tensors)
    refuse(pairing)
    biases = [source for name, source in pairing.chosen.items() if "bias" in name]
    assert biases and all(source.names == () for source in biases)


def test_statistics_that_paddles_layer_has_no_place_for():
    network = Net(a=nn.InstanceNorm2D(4), fc=nn.Linear(4, 2))
    with pytest.raises(
        WeightsError, match=r"has 'net.a.running_mean' \[4\], which has no place in the network: Paddle's"
    ):
        refuse(pair(network, stored(prefixed({**norm("a", 4), **linear("fc", 4, 2)}, "net."))))
    # The nearest is told by PyTorch's names, in which Paddle's scale is a weight.
    with pytest.raises(WeightsError, match=r"has 'x.weight' \[4\] \(nearest: 'a.scale' \[4\]\), 'x.bias'"):
        refuse(pair(network, stored({**norm("x", 4), **linear("fc", 4, 2)})))


# One tensor under several names


class Tied(nn.Layer):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(6, 4)
        self.decoder = nn.Layer()
        self.decoder.weight = self.encoder.weight


def test_a_shared_tensor_under_one_name():
    for name in ("encoder.weight", "decoder.weight"):
        pairing = pair(Tied(), stored({name: (6, 4)}))
        refuse(pairing)
        assert names(pairing) == {"encoder.weight": name, "decoder.weight": name}


def test_a_shared_tensor_under_both_names():
    tensors = stored({"encoder.weight": (6, 4)})
    tensors["decoder.weight"] = tensors["encoder.weight"].copy()
    pairing = pair(Tied(), tensors)
    refuse(pairing)
    assert not pairing.left_out and len(set(names(pairing).values())) == 1


def test_two_tensors_for_a_shared_one():
    tensors = stored({"encoder.weight": (6, 4), "decoder.weight": (6, 4)})
    with pytest.raises(WeightsError, match=r"has other numbers in 'decoder.weight' than in 'encoder.weight'"):
        pair(Tied(), tensors)
    refuse(pair(Tied(), tensors, Selection(["decoder.*"])))


def test_a_tensor_that_pytorch_shares_and_paddle_has_once():
    tensors = stored({"encoder.weight": (6, 4)})
    network = Net(encoder=nn.Embedding(6, 4))
    tensors["decoder.weight"] = tensors["encoder.weight"].copy()
    pairing = pair(network, tensors)
    refuse(pairing)
    assert pairing.left_out == ("decoder.weight",)
    assert pairing.notes == ("left out what is another tensor again: 'decoder.weight' = 'encoder.weight'",)
    tensors["decoder.weight"] += 1
    with pytest.raises(WeightsError, match=r"'decoder\.weight'"):
        refuse(pair(network, tensors))


def test_equal_constants_are_not_one_tensor():
    tensors = {name: np.ones((2, 2), "f4") for name in ("fc.weight", "other.weight")} | {"fc.bias": np.ones(2, "f4")}
    assert pair(Net(fc=nn.Linear(2, 2)), tensors).unplaced == ("other.weight",)


# The mapping file


def written(pairing, tmp_path, name="map.csv"):
    path = tmp_path / name
    write_proposal(pairing, path)
    return path


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [tuple(row) for row in csv.reader(file)]


def test_a_proposal_that_is_given_back_is_applied(tmp_path):
    network = Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    tensors = stored({**linear("x", 4, 4), **linear("y", 4, 4), "loss.weight": (3,)})
    path = written(pair(network, tensors), tmp_path)
    assert rows(path) == [
        COLUMNS,
        ("a.weight", "x.weight", "[4, 4]", "order and shape; transposed"),
        ("a.bias", "x.bias", "[4]", "order and shape; as it is"),
        ("b.weight", "y.weight", "[4, 4]", "order and shape; transposed"),
        ("b.bias", "y.bias", "[4]", "order and shape; as it is"),
        ("", "loss.weight", "[3]", "left out"),
    ]
    pairing = pair(network, tensors, given=read_mapping(path))
    refuse(pairing)
    assert not pairing.proposed and names(pairing)["b.weight"] == "y.weight"
    assert pairing.layers == {"a": "x", "b": "y"} and pairing.own_name("y") == "b"
    np.testing.assert_array_equal(made_of(tensors, pairing.chosen)["b.weight"], tensors["y.weight"].T)


def test_what_has_no_counterpart_must_be_decided(tmp_path):
    network = Net(a=nn.Linear(4, 4), b=nn.Linear(3, 4))
    tensors = stored({**linear("a", 4, 4), "c.weight": (4, 5)})
    path = written(pair(network, tensors), tmp_path)
    undecided = "no counterpart: name one in place of ?, or leave the cell empty; nearest: "
    assert rows(path)[3:] == [
        ("b.weight", "?", "[3, 4]", f"{undecided}'c.weight' [4, 5]"),
        ("b.bias", "?", "[4]", f"{undecided}'c.weight' [4, 5]"),
        ("?", "c.weight", "[4, 5]", f"{undecided}'b.weight' [3, 4], 'b.bias' [4]"),
    ]
    with pytest.raises(
        WeightsError, match=r"map.csv: line 4 leaves 'b.weight' open: put its counterpart in place of \?"
    ):
        read_mapping(path)
    path.write_text(path.read_text().replace("?,c.weight", ",c.weight").replace(",?,", ",,"))
    pairing = pair(network, tensors, given=read_mapping(path))
    refuse(pairing)
    assert pairing.untouched == ("b.weight", "b.bias") and pairing.left_out == ("c.weight",) and not pairing.missing
    assert "left as the network was built, as the mapping says: 'b.weight', 'b.bias'" in pairing.notes


def test_given_pairs_come_first_and_names_fill_the_rest():
    network = Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4))
    tensors = stored({**linear("a", 4, 4), **linear("b", 4, 4), **linear("c", 4, 4)})
    swapped = {"a.weight": "b.weight", "a.bias": "b.bias", "b.weight": "a.weight", "b.bias": "a.bias"}
    pairing = pair(network, tensors, given=swapped)
    refuse(pairing)
    assert names(pairing) == {**swapped, "c.weight": "c.weight", "c.bias": "c.bias"}
    assert pairing.layers == {"a": "b", "b": "a", "c": "c"}
    assert pairing.own_name("a") == "b" and pairing.own_name("relu") == "relu"


@pytest.mark.parametrize(
    ("pairs", "left_out", "message"),
    [
        (
            {"fc.weigth": "fc.weight"},
            (),
            r"names 'fc.weigth', which the network does not have \(did you mean 'fc.weight'\?\)",
        ),
        (
            {"fc.weight": "fc.wieght"},
            (),
            r"names 'fc.wieght', which the file does not have \(did you mean 'fc.weight'\?\)",
        ),
        ({}, ("gone",), "names 'gone', which the file does not have: take the names in the file"),
        (
            {"fc.weight": "conv.weight"},
            (),
            r"pairs 'fc.weight' \[4, 4\] with 'conv.weight' \[4, 3, 3, 3\], of which it cannot",
        ),
        (
            {"fc.weight": "fc.weight + fc.bias"},
            (),
            r"with 'fc.weight' \[4, 4\] \+ 'fc.bias' \[4\], of which it cannot be made",
        ),
    ],
)
def test_pairs_that_cannot_be(pairs, left_out, message):
    with pytest.raises(WeightsError, match=message):
        pair(small(), stored(SMALL), given=Given(pairs, left_out))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 is not paddle,pytorch,shape,basis: give a CSV file as --propose writes it"),
        (b"paddle;pytorch;shape;basis\n", "line 1 is not paddle,pytorch,shape,basis"),
        (b"paddle,pytorch,shape,basis\na,b\n", "line 2 has 2 cells instead of 4"),
        (b"paddle,pytorch,shape,basis\na,b,,\n\na,c,,\n", "lines 2 and 4 both pair 'a': delete one of them"),
        (b"paddle,pytorch,shape,basis\n,,[4],\n", "line 2 names no tensor: delete it"),
        (b"paddle,pytorch,shape,basis\n,b,,\na,b,,\n", "line 2 leaves 'b' out, and line 3 pairs it with 'a'"),
        (b"paddle,pytorch,shape,basis\n,b,,\na,c + b,,\n", "line 2 leaves 'b' out, and line 3 pairs it with 'a'"),
        (b"paddle,pytorch,shape,basis\n?,b,,\n", "line 2 leaves 'b' open"),
        (b'paddle,pytorch,shape,basis\n"a"b,c,,\n', "line 2 is no CSV"),
        (b'paddle,pytorch,shape,basis\na,b,,\n"a', "line 3 is no CSV"),
        (b"paddle,pytorch,shape,basis\na,b,,\n\xff,b,,\n", "line 3 is not UTF-8: save the file as CSV in UTF-8"),
        (b"paddle,pytorch,shape,basis\n'\\xf,b,,\n", "line 2 has a name after ' with an escape that is none"),
        (b"paddle,pytorch,shape,basis\n'\xc3\xa9,b,,\n", "line 2 has a name after ' with an escape that is none"),
    ],
)  # fmt: skip
def test_bad_mapping_files(content, message, tmp_path):
    path = tmp_path / "map.csv"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as raised:
        read_mapping(path)
    assert str(raised.value).startswith(f"{path}: {message}") and "\n" not in str(raised.value)


def test_a_mapping_file_that_is_none(tmp_path, monkeypatch):
    with pytest.raises(
        WeightsError, match=r"no\.csv: cannot be read \(No such file or directory\): give the file that"
    ):
        read_mapping(tmp_path / "no.csv")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_mapping(tmp_path)
    path = tmp_path / "map.csv"
    path.write_text("paddle,pytorch,shape,basis\n" + "".join(f"a{n},b,,\n" for n in range(3)))
    monkeypatch.setattr("convert.mapping_file._MAX_ROWS", 2)
    with pytest.raises(WeightsError, match="has more than 2 lines"):
        read_mapping(path)
    monkeypatch.setattr("convert.mapping_file._MAX_BYTES", 20)
    with pytest.raises(WeightsError, match="is larger than"):
        read_mapping(path)


def test_a_mapping_file_as_a_spreadsheet_saves_it(tmp_path):
    path = tmp_path / "map.csv"
    path.write_bytes('\ufeffpaddle,pytorch,shape,basis\r\n fc.weight ,"x,y","[4, 4]",\r\n'.encode())
    assert read_mapping(path) == Given({"fc.weight": "x,y"}, ())


def test_a_proposal_overwrites_nothing(tmp_path):
    pairing = pair(small(), stored(SMALL))
    path = written(pairing, tmp_path)
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="exists already: give another name with --propose, or --force"):
        write_proposal(pairing, path)
    write_proposal(pairing, path, force=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


PALETTE = [
    lambda: nn.Linear(4, 4),
    lambda: nn.Linear(4, 2),
    lambda: nn.LayerNorm(4),
    lambda: nn.BatchNorm1D(4),
    lambda: nn.Conv1D(4, 4, 1, bias_attr=False),
]
PARTS = st.sampled_from(["a", "b", "conv", "0", "1", "2"])
TREES = st.recursive(
    st.integers(0, len(PALETTE) - 1),
    lambda inside: st.dictionaries(PARTS, inside, min_size=1, max_size=4),
    max_leaves=10,
).filter(lambda tree: isinstance(tree, dict))


def built(tree: dict) -> Net:
    return Net(**{name: built(part) if isinstance(part, dict) else PALETTE[part]() for name, part in tree.items()})


@settings(deadline=None)  # a first call imports and compiles
@cases(TREES, st.data())
def test_whatever_is_certain_is_right(tree, data):
    """Some layers have other names in the file, and its tensors come in another order."""
    network = built(tree)
    new: dict[str, str] = {}

    def renamed(path: str) -> str:
        outer, _, part = path.rpartition(".")
        if path and path not in new:
            new[path] = f"z{len(new)}" if data.draw(st.booleans(), label=path) else part
        return f"{renamed(outer)}.{new[path]}" if outer else new.get(path, "")

    truth, tensors = {}, {}
    for ours, (source, *_) in sources(network).items():
        owner, _, leaf = source.names[0].rpartition(".")
        truth[ours] = f"{renamed(owner)}.{leaf}"
        shape = tuple(network.state_dict()[ours].shape)
        tensors[truth[ours]] = np.zeros(shape[::-1] if len(shape) == 2 else shape, "f4")
    order = data.draw(st.permutations(list(tensors)))
    pairing = pair(network, {name: tensors[name] for name in order})
    assert {ours: truth[ours] for ours in pairing.chosen} == names(pairing)
    for ours, source in pairing.proposed.items():
        assert source.formula.make([tensors[source.names[0]]]).shape == tuple(network.state_dict()[ours].shape)


NAME = st.text(min_size=1, max_size=12)


@settings(deadline=None)  # a first call imports and compiles
@cases(st.dictionaries(NAME, NAME, max_size=5), st.sets(NAME, max_size=3))
def test_any_names_survive_the_mapping_file(tmp_path_factory, pairs, left_out):
    """Whatever a stranger's file calls its tensors, down to control characters and what spreadsheets compute."""
    from convert.mapping_file import _as_cell

    left_out -= {part for theirs in pairs.values() for part in (theirs, *theirs.split(" + "))}
    path = tmp_path_factory.mktemp("maps") / "map.csv"
    cells = [COLUMNS, *((_as_cell(a), _as_cell(b), "", "") for a, b in pairs.items())]
    cells += [("", _as_cell(name), "", "") for name in left_out]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(cells)
    found = read_mapping(path)
    assert found.pairs == pairs and set(found.left_out) == left_out
    text = path.read_text(encoding="utf-8")
    assert not any(row[:1] in ("=", "+", "-", "@") for row in text.splitlines())
