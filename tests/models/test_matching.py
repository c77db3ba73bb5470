"""Which network a file's tensors are, whatever their prefix, whatever its classifier's name, whatever is next to it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_torch
from paddle_dense.files.spelling import Selection
from paddle_dense.models.matching import match
from tests.helpers import SMALL, arrays, small

PREFIXES = (
    "", "module.", "module.densenet121.", "net.", "backbone.", "encoder.", "_module.", "0.", "model.net.",
    "features.module.", "_layers.", "features.", "model.features.", "stem.", "stages.0.", "head.", "classifier.", "fc.",
    "_orig_mod.module.net.", "features.denseblock1.denselayer1.",
)  # fmt: skip
HEADS = (
    "classifier.0", "classifier.1", "classifier.fc", "classifier.1.2", "fc", "head", "head.fc", "output", "last_linear",
    "class_layers.out", "logits", "linear",
)  # fmt: skip
BYSTANDERS = (
    "total_ops", "features.conv0.total_params", "n_averaged", "op_threshs", "criterion.weight", "loss_fn.weight",
    "model.ce_loss.weight", "metrics.accuracy.correct", "train_acc.total", "val_auroc.thresholds", "aux_head.fc.weight",
    "auxiliary.0.weight",
)  # fmt: skip
RESNET = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.weight": (64,),
    **{f"layer{b}.{i}.conv{k}.weight": (64, 64, 3, 3) for b in (1, 2, 3, 4) for i in range(3) for k in (1, 2, 3)},
    "fc.weight": (10, 64),
    "fc.bias": (10,),
}


@pytest.fixture(scope="module")
def states():
    """Of every small network, as PyTorch's file has it."""
    return {kind: to_torch(arrays(small(kind))) for kind in SMALL}


@pytest.fixture
def dense(states):
    return states["DenseNet"]


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def resnet(prefix=""):
    return {prefix + name: np.zeros(shape, "f4") for name, shape in RESNET.items()}


# Prefixes


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", SMALL)
def test_a_network_is_found_under_every_prefix(kind, prefix, states):
    found = match(prefixed(prefix, states[kind]), in_pytorch=True)
    assert found.network.__name__ == SMALL[kind][0]
    assert found.state.keys() == states[kind].keys()
    for name, value in states[kind].items():
        assert found.state[name] is value
        assert found.names[name] == prefix + name
    assert not found.left_out
    assert not found.notes


@pytest.mark.parametrize("name", BYSTANDERS)
def test_what_no_forward_pass_reads_is_left_out_and_said(name, dense):
    found = match({**prefixed("model.", dense), name: np.ones(3, "f4")}, in_pytorch=True)
    assert found.state.keys() == dense.keys()
    assert found.left_out == [name]
    assert found.warnings() == [f"left out what is no part of the network: '{name}'"]


# Other tensors, other networks


@pytest.mark.parametrize("kind", SMALL)
def test_strangers_are_refused_and_the_fixes_work(kind, states):
    state = {**prefixed("net.", states[kind]), **resnet()}
    with pytest.raises(WeightsError) as caught:
        match(state, in_pytorch=True)
    message = str(caught.value)
    assert f"has {len(RESNET)} tensors next to the {SMALL[kind][0]} under 'net.', 'conv1.weight'" in message
    assert "--drop PATTERN" in message
    assert "--rename OLD=NEW" in message
    for selection in (Selection(part="net."), Selection(drop=("conv1.*", "bn1.*", "layer*", "fc.*"))):
        found = match(state, in_pytorch=True, selection=selection)
        assert found.state.keys() == states[kind].keys()
        assert sorted(found.left_out) == sorted(RESNET)


def test_one_stranger_is_one(dense):
    with pytest.raises(WeightsError, match=r"has a tensor next to the DenseNet under 'b\.', 'neck\.w': .*leave it out"):
        match({**prefixed("b.", dense), "neck.w": np.ones(1, "f4")}, in_pytorch=True)


@pytest.mark.parametrize(
    ("first", "second"), [("student.", "teacher."), ("", "ema."), ("model.", "model.ema."), ("module.", "teacher.")]
)
@pytest.mark.parametrize("depth", [2, 3])
def test_several_networks_are_refused_and_both_can_be_had(first, second, depth, dense):
    """Of the same numbers or others, next to each other or one within the other's names."""
    other = to_torch(arrays(small("DenseNet", block_config=[depth, 3, 2])))
    other = {name: value + 1 for name, value in other.items()}
    state = {**prefixed(first, dense), **prefixed(second, other)}
    with pytest.raises(WeightsError, match=r"holds several networks, under .*: choose one with --part PREFIX, or") as e:
        match(state, in_pytorch=True)
    places = re.findall(r"'([^']*)'", str(e.value).partition(":")[0])
    assert sorted(places) == sorted((first.removeprefix("module."), second))
    found = match(state, in_pytorch=True, selection=Selection(part=second))
    assert all(found.state[name] is other[name] for name in other)
    found = match(state, in_pytorch=True, selection=Selection(drop=(f"{second}*",)))
    assert all(found.state[name] is dense[name] for name in dense)


def test_different_networks_in_one_file_are_told_apart(states):
    for one in SMALL:
        for other in SMALL:
            state = {**prefixed("a.", states[one]), **prefixed("b.", states[other])}
            with pytest.raises(WeightsError, match=r"holds several networks, under '[ab]\.', '[ab]\.':"):
                match(state, in_pytorch=True)


def test_renaming_gives_a_tensor_its_place(dense):
    state = {name.replace("features.denseblock", "trunk.").replace("denselayer", "l"): v for name, v in dense.items()}
    with pytest.raises(WeightsError):
        match(state, in_pytorch=True)
    rules = (("trunk.{b}.l{l}", "features.denseblock{b}.denselayer{l}"),)
    assert match(state, in_pytorch=True, selection=Selection(rename=rules)).state.keys() == dense.keys()


# No network


def test_another_network_is_refused_with_its_first_names_and_shapes():
    with pytest.raises(WeightsError) as caught:
        match(resnet("module."), in_pytorch=True)
    message = str(caught.value)
    assert "holds none of the known networks (" in message
    assert "none has tensors named like 'module.conv1.weight' [64, 3, 7, 7], 'module.bn1.weight' [64]" in message
    assert "--rename OLD=NEW" in message
    assert "'Add a model' in the documentation" in message


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("DenseNet", ".conv1.", ".squeeze."),
        ("CSP stand", ".conv1.", ".squeeze."),
        ("CSP resnet", ".conv_transition_b.", ".trans."),
        ("CSP darknet", ".conv_transition_b.", ".trans."),
        ("CondConv", ".routing_fn.", ".router."),
    ],
)
def test_the_first_tensor_that_the_nearest_network_has_not_is_named(kind, old, new, states):
    state = {f"model.{name.replace(old, new)}": value for name, value in states[kind].items()}
    first = next(name for name in state if new in name)
    with pytest.raises(WeightsError) as caught:
        match(state, in_pytorch=True)
    assert f"the nearest, {SMALL[kind][0]}, has none like '{first}' {list(state[first].shape)}: " in str(caught.value)
    assert "--rename OLD=NEW" in str(caught.value)


def test_no_tensors_and_none_left(dense):
    with pytest.raises(WeightsError, match="holds no tensors, so none of the known networks"):
        match({})
    with pytest.raises(WeightsError, match=r"has no tensor left under 'x\.': check --part and --drop"):
        match(dense, selection=Selection(part="x."))
    with pytest.raises(WeightsError, match="has no tensor left: check"):
        match(dense, selection=Selection(drop=("*",)))


def test_odd_names_stay_names(dense):
    odd = {"": 1, ".": 2, "..weight": 3, "a b\n\x00'.weight": 4, "é.weight": 5, "module.": 6, "x" * 100_000: 7}
    with pytest.raises(WeightsError) as caught:
        match({name: np.full(1, value) for name, value in odd.items()})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    found = match({**prefixed("net.", dense), **prefixed("z.", {})}, in_pytorch=True)
    assert len(found.names) == len(dense)


@pytest.mark.parametrize(
    "anchor", ["conv1.weight", "features.denseblock1.denselayer1.conv1.weight", "conv_stem.weight"]
)
def test_a_hundred_thousand_names_are_read_once_for_each_reading(anchor, dense):
    """However many of them look like a network's: what is tried is bounded."""
    many = {f"junk.{index}.{anchor}": np.zeros((1, 1, 3, 3), "f4") for index in range(100_000)}
    with pytest.raises(WeightsError):
        match(many, in_pytorch=True)
    state = {**many, **prefixed("net.", dense)}
    found = match(state, in_pytorch=True, selection=Selection(part="net."))
    assert found.state.keys() == dense.keys()


# Classifiers


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", SMALL)
def test_one_linear_layer_is_the_classifier_whatever_it_is_called(kind, head, bias, states):
    state = states[kind]
    classifier = "head.fc" if "head.fc.weight" in state else "classifier"
    weight = next((name for name in state if name.startswith(f"{classifier}.") and name.endswith("weight")), "")
    if "linear" in weight or (kind.startswith("CondenseNetV2") and head == "fc"):
        pytest.skip("a condensed classifier, or the hidden layer of that name")
    body = {name: value for name, value in state.items() if not name.startswith(f"{classifier}.")}
    theirs = {f"{head}.weight": state[weight], **({f"{head}.bias": state[f"{classifier}.bias"]} if bias else {})}
    found = match({**body, **theirs}, in_pytorch=True)
    assert found.found.config["num_classes"] == len(state[weight])
    assert found.state[f"{classifier}.weight"] is state[weight]
    assert found.names[f"{classifier}.weight"] == f"{head}.weight"
    if bias:
        assert found.state[f"{classifier}.bias"] is state[f"{classifier}.bias"]
    else:
        assert not found.state[f"{classifier}.bias"].any()
    without_bias = f"the classifier has no bias, '{head}.bias', in the file: zeros, which change nothing, are taken"
    assert (without_bias in found.notes) is not bias
    inside = head.startswith("classifier.") and classifier == "classifier"
    assert (found.inner_head == head) is (inside or head.rpartition(".")[2].isdigit())


def test_several_linear_layers_are_listed_and_left_out_without_classes(dense):
    body = {name: value for name, value in dense.items() if not name.startswith("classifier.")}
    weight, bias = dense["classifier.weight"], dense["classifier.bias"]
    heads = {f"classifier.{index}.{leaf}": v for index in (0, 3) for leaf, v in (("weight", weight), ("bias", bias))}
    with pytest.raises(WeightsError, match=r"several linear layers, 'classifier\.0', 'classifier\.3', .*num_classes=0"):
        match({**body, **heads}, in_pytorch=True)
    found = match({**body, **heads}, in_pytorch=True, headless=True)
    assert found.state.keys() == body.keys()
    assert sorted(found.of_head) == sorted(heads)
