"""Exported files: they answer as the network does, say what they are, and appear whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

import paddle_dense as pd_
from paddle_dense.deploy import exporting
from paddle_dense.deploy.exporting import PROGRAM_SUFFIX, export, load_onnx, load_paddle
from paddle_dense.deploy.fusing import fuse
from paddle_dense.errors import WeightsError
from paddle_dense.layers import ExactFusion, RoutedCondConv2D
from tests.helpers import amplifying, answers, random_images, settled

EXTRA = "pip install paddle_dense[deploy]"
DIGITS = Path(__file__).resolve().parents[2] / "weights" / "cdnv2_digits.pdparams"

V2 = {"stages": [1, 1, 2], "growth": [8, 16, 32], "HS_start_block": 1, "SE_start_block": 2, "fc_channel": 64}
V2.update(group_1x1=4, group_3x3=4, group_trans=4, num_classes=10)
CSP = {"depths": [1, 1], "channels": [16, 32], "expand_ratio": [2.0, 2.0], "bottle_ratio": [0.5, 0.5]}
CSP.update(stem_channels=8, num_classes=10)
DENSE = {"growth_rate": 8, "block_config": [2, 2], "num_init_features": 16, "num_classes": 10}
CONDCONV = {"channel_multiplier": 0.25, "depth_multiplier": 0.3, "num_classes": 10}
NETWORKS = {
    "CondenseNetV2": (pd_.CondenseNetV2, V2),
    "CondenseNetV2 pyramid": (pd_.CondenseNetV2, {**V2, "features_only": True}),
    "CondenseNet": (pd_.CondenseNet, {"stages": [1, 1, 2], "growth": [8, 16, 32], "num_classes": 10}),
    "DenseNet": (pd_.DenseNet, DENSE),
    "CIFAR DenseNet": (pd_.DenseNet, {**DENSE, "small_inputs": True, "bn_size": 0, "compression": 1.0}),
    "CSPDenseNet": (pd_.CSPDenseNet, DENSE),
    "CSPResNet": (pd_.CSPNet, {**CSP, "backbone": "resnet"}),
    "CSPDarkNet": (pd_.CSPNet, {**CSP, "backbone": "darknet"}),
    "EfficientNetCondConv": (pd_.EfficientNetCondConv, CONDCONV),
    "EfficientNetCondConv SAME": (pd_.EfficientNetCondConv, {**CONDCONV, "same_padding": True}),
}


@pytest.fixture
def network(randomise):
    """``network("DenseNet")``: a small one with random statistics, in evaluation mode, for images of 64 pixels."""

    def build(name: str, **config: Any) -> nn.Layer:
        kind, numbers = NETWORKS[name]
        model = randomise(kind(**{**numbers, **config}))
        model.input_size = 64
        model.eval()
        return model

    return build


MORE = ("CondenseNetV2 pyramid", "CSPDarkNet", "EfficientNetCondConv SAME")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in MORE)) for name in NETWORKS])
def test_paddle_files_of_every_family_take_any_batch_and_size(tmp_path, network, difference, name):
    model = network(name)
    files = export(model, tmp_path / "net", format="paddle")
    assert [file.name for file in files] == [f"net{PROGRAM_SUFFIX}", "net.pdiparams", "net.meta.json"]
    x = random_images(3, 3, 64, 96)
    expected = answers(model, x)
    assert difference(load_paddle(files)(x), expected if isinstance(expected, list) else [expected]) < 2e-6


# Among them is every layer that ONNX needs another form of; LeakyReLU is in this one, the others are in the digits'.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "CSPResNet")) for name in NETWORKS]
)
def test_onnx_files_of_every_family_take_any_batch_and_size(tmp_path, network, onnxruntime, difference, name):
    model = network(name)
    files = export(model, tmp_path / "net", format="onnx")
    x = random_images(3, 3, 64, 96)
    expected = answers(model, x)
    assert difference(load_onnx(files)(x), expected if isinstance(expected, list) else [expected]) < 2e-6


def test_depthwise_mixtures_are_depthwise_in_onnx(tmp_path, network, onnxruntime):
    """One channel in and one out for each group: engines have no kernels for several outputs a channel."""
    onnx = pytest.importorskip("onnx", reason=f"writes ONNX: {EXTRA}")
    model = network("EfficientNetCondConv")
    graph = onnx.load(str(export(model, tmp_path / "net", "onnx", input_size=64)[0])).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    groups = {attribute.i for node in convolutions for attribute in node.attribute if attribute.name == "group"}
    mixed = [layer for layer in model.sublayers() if isinstance(layer, RoutedCondConv2D) and layer.groups > 1]
    assert mixed and groups >= {layer.groups * len(layer.weight) for layer in mixed}
    assert not groups & {layer.groups for layer in mixed}


@pytest.mark.parametrize("format", ["paddle", "onnx"])
@pytest.mark.parametrize("name", ["CSPResNet", "CondenseNet"])
def test_a_fused_pyramid_takes_odd_sizes(tmp_path, network, request, difference, name, format):
    """Of 50x75 pixels the first network rounds the sides up at each level, and the other one down."""
    if format == "onnx":
        request.getfixturevalue("onnxruntime")
    backbone = network(name, features_only=True)
    model = nn.Sequential(backbone, ExactFusion(backbone.feature_channels, 8))
    model.eval()
    files = export(model, tmp_path / "net", format)
    for size in ((64, 96), (50, 75)):
        x = random_images(3, 3, *size)
        assert difference((load_onnx if format == "onnx" else load_paddle)(files)(x), answers(model, x)) < 2e-6


def test_digits_in_onnx_with_what_they_mean(capfd, tmp_path, onnxruntime):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install scikit-learn")
    from paddle_dense.data import load_digits

    model = pd_.load_model(DIGITS)
    model.eval()
    labels = [f"a {digit}" for digit in range(10)]
    capfd.readouterr()

    (file,) = export(
        model, tmp_path / "new" / "digits.onnx", "onnx", input_size=32, labels=labels, metadata={"author": "me"}
    )

    assert capfd.readouterr() == ("", "")
    assert file == tmp_path / "new" / "digits.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""  # nor does the file make ONNX Runtime complain
    ((given,), (taken,)) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("image", ["batch", 1, 32, 32])
    assert (taken.name, taken.shape) == ("output", ["batch", 10])
    entries = session.get_modelmeta().custom_metadata_map
    assert (entries["arch"], entries["author"], entries["paddle_dense"]) == ("CondenseNetV2", "me", pd_.__version__)
    assert json.loads(entries["labels"]) == labels
    assert json.loads(entries["config"]) == model.config
    assert json.loads(entries["preprocessing"]) == json.loads(json.dumps(asdict(model.preprocessing)))
    assert json.loads(entries["inputs"]) == [{"name": "image", "shape": ["batch", 1, 32, 32]}]

    digits = load_digits()
    (logits,) = session.run(None, {"image": digits.test_images})
    assert (logits.argmax(1) == digits.test_labels).mean() > 0.99


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_fused_network(tmp_path, network, request, difference, format):
    if format == "onnx":
        request.getfixturevalue("onnxruntime")
    model = network("CondenseNetV2")
    fused = fuse(model, format)
    files = export(fused, tmp_path / "net", format, input_size=64, batch=2)
    x = random_images(2, 3, 64, 64)
    (found,) = (load_onnx if format == "onnx" else load_paddle)(files)(x)
    assert difference(found, answers(model, x)) < 2e-6


def test_a_leaky_relu_is_one_in_onnx(tmp_path, network, onnxruntime, difference):
    """Engines fuse it into the convolution before it, and not a PRelu, which is left where each channel has a slope."""
    import onnx

    many = nn.PReLU(16, 0.3)
    many._weight.set_value(many._weight * paddle.arange(16, dtype="float32"))
    model = nn.Sequential(nn.Conv2D(3, 16, 3), nn.LeakyReLU(0.02), nn.Conv2D(16, 16, 3), many)
    model.eval()
    files = export(model, tmp_path / "net", "onnx", input_size=32)
    nodes = {node.op_type: node for node in onnx.load(str(files[0])).graph.node}
    assert {"LeakyRelu", "PRelu"} <= set(nodes)
    (alpha,) = nodes["LeakyRelu"].attribute
    assert alpha.f == np.float32(0.02)
    x = random_images(2, 3, 32, 32)
    assert difference(load_onnx(files)(x)[0], answers(model, x)) < 1e-6
    of_network = onnx.load(str(export(fuse(network("CSPResNet"), "compiled"), tmp_path / "csp", "onnx")[0]))
    assert {node.op_type for node in of_network.graph.node} >= {"LeakyRelu"}
    assert not [node for node in of_network.graph.node if node.op_type in ("PRelu", "BatchNormalization")]


def test_static_paddle_files_say_so(tmp_path, network):
    model = network("DenseNet")
    exported = export(model, tmp_path / "v1.5", input_size=128, batch=2)
    assert [file.name for file in exported] == [f"v1.5{PROGRAM_SUFFIX}", "v1.5.pdiparams", "v1.5.meta.json"]
    assert 0 < exported.max_rel_diff < 2e-6
    entries = json.loads(exported[2].read_text())
    assert entries["inputs"] == [{"name": "image", "shape": [2, 3, 128, 128]}]
    assert [output["shape"] for output in entries["outputs"]] == [[2, 10]]
    assert (entries["preprocessing"]["input_size"], entries["preprocessing"]["resize"]) == (128, 146)


def test_the_model_stays_as_it_is(tmp_path, network, difference):
    model = network("CondenseNetV2")
    x = random_images(1, 3, 64, 64)
    before, layers = answers(model, x), [type(layer) for layer in model.sublayers(include_self=True)]
    device, modes = paddle.get_device(), [layer.training for layer in model.sublayers()]
    export(model, tmp_path / "net", input_size=64, batch=1)
    assert [type(layer) for layer in model.sublayers(include_self=True)] == layers
    assert [layer.training for layer in model.sublayers()] == modes
    assert paddle.get_device() == device
    assert paddle.in_dynamic_mode()
    assert np.array_equal(answers(model, x), before)


# How a difference is judged

IMAGES = random_images(8, 3, 64, 64, seed=3) * np.arange(1, 9, dtype="f4")[:, None, None, None]


@pytest.mark.parametrize("format", ["paddle", "onnx"])
def test_amplified_rounding_is_judged_in_float64(tmp_path, network, request, difference, format):
    if format == "onnx":
        request.getfixturevalue("onnxruntime")
    model = amplifying(network("DenseNet"))
    with pytest.warns(UserWarning, match=r"^this network amplifies rounding: in float32 the outputs differ by"):
        files = export(model, tmp_path / "net", format, input_size=64, batch=1)
    assert files.max_rel_diff < 1e-7
    x = random_images(1, 3, 64, 64)
    runs = [load_onnx(files)] if format == "onnx" else [load_paddle(files), load_paddle(files, onednn=True)]
    assert 1e-5 < max(difference(run(x)[0], answers(model, x)) for run in runs) < 1e-2


def test_a_mistake_smaller_than_amplified_rounding_is_found(tmp_path, network, monkeypatch):
    """In float32 it is off by less than the network itself is."""
    monkeypatch.setitem(exporting._FOR_PADDLE, nn.ReLU, lambda relu: nn.PReLU(1, 2e-5))
    with pytest.raises(WeightsError, match="the exported file differs from the model by"):
        export(amplifying(network("DenseNet")), tmp_path / "net", input_size=64, batch=1)
    assert list(tmp_path.iterdir()) == []


STALE = """
import sys
from tests.conftest import _randomise as randomise
from paddle_dense.layers import condconv
from tests.deploy.test_export import CONDCONV, IMAGES, export, pd_, settled
condconv._mixture_of_outputs = condconv._grouped_convolution
export(settled(randomise(pd_.EfficientNetCondConv(**CONDCONV)), IMAGES), sys.argv[1], input_size=64, batch=1)
"""


@pytest.mark.skipif(PROGRAM_SUFFIX != ".json", reason="Paddle 2 does not keep them")
def test_kernels_that_onednn_keeps_from_the_first_image_are_found(tmp_path):
    """In float64, without oneDNN, and for one image even with it, all is well. The process keeps them for good."""
    command = [sys.executable, "-c", STALE, str(tmp_path / "net")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "WeightsError" in done.stderr and "the exported file differs from the model by" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_each_image_has_its_own_kernels_in_static_files(tmp_path, network, difference):
    model = settled(network("EfficientNetCondConv"), IMAGES)
    run = load_paddle(export(model, tmp_path / "net", input_size=64, batch=2), onednn=True)
    for seed in range(3):
        x = (1 + seed) * random_images(2, 3, 64, 64, seed=seed)
        assert difference(run(x)[0], answers(model, x)) < 5e-6


class Own(nn.Layer):
    """A user's network: what its forward does to the input is given."""

    def __init__(self, work) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3)
        self.work = work

    def forward(self, x):
        return self.work(self.conv(x))


def own(work) -> nn.Layer:
    model = Own(work)
    model.eval()
    return model


def leave_eager(x):
    return x * 1.001 if paddle.in_dynamic_mode() else x


def refuse_static(x):
    if not paddle.in_dynamic_mode():
        raise NotImplementedError("not without numbers")
    return x


def shuffle(x):
    return F.channel_shuffle(x, 2)


def interrupt(x):
    if not paddle.in_dynamic_mode():
        raise KeyboardInterrupt
    return x


def test_a_users_own_network(tmp_path):
    files = export(own(F.relu), tmp_path / "net", input_size=32)
    assert "arch" not in json.loads(files[2].read_text())


@pytest.mark.parametrize(
    "work, error, message",
    [
        (leave_eager, WeightsError, "differs from the model by 1.0e-03 of its outputs' scale"),
        (
            refuse_static,
            WeightsError,
            r"Own cannot be traced into a static program .NotImplementedError",
        ),
        (interrupt, KeyboardInterrupt, None),
    ],
)
def test_nothing_appears_or_changes_unless_all_is_well(tmp_path, work, error, message):
    old = tmp_path / "net.pdiparams"
    old.write_text("an older export")
    with pytest.raises(error, match=message):
        export(own(work), tmp_path / "net", input_size=32)
    with pytest.raises(error, match=message):
        export(own(work), tmp_path / "new" / "net", input_size=32)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "an older export"


def test_an_operator_that_onnx_lacks_is_an_error_and_not_the_end(tmp_path, onnxruntime):
    with pytest.raises(WeightsError, match="paddle2onnx cannot convert this Own") as caught:
        export(own(shuffle), tmp_path / "net", "onnx", input_size=32)
    assert "unsupported operators" in str(caught.value.__cause__)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change, arguments, message",
    [
        (nn.Layer.train, {}, "this DenseNet is in training mode: call model.eval"),
        (None, {"format": "tflite"}, "unknown format 'tflite': choose one of paddle, onnx"),
        (None, {"batch": 0}, "batch=0 must be 1 or more, or None for any"),
        (None, {"input_size": -1}, "input_size=-1 must be 1 or more, or None for any"),
        (None, {"labels": ["cat", "dog"]}, r"there are 2 labels for outputs \[10\]: give one for each class"),
        (None, {"metadata": {"when": {1, 2}}}, "the metadata are not what JSON can hold"),
        (None, {"path": "."}, "names no file: give a folder and a name"),
    ],
)
def test_errors_say_what_to_do(tmp_path, network, change, arguments, message):
    model = network("DenseNet")
    if change:
        change(model)
    with pytest.raises(ValueError, match=message):
        export(model, **{"path": tmp_path / "net", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_the_trained_form_is_condensed_first(tmp_path, network):
    model = network("CondenseNetV2", condensed=False)
    with pytest.raises(ValueError, match=r"this CondenseNetV2 is in the trained form: export paddle_dense.condense"):
        export(model, tmp_path / "net")


@pytest.mark.skipif(PROGRAM_SUFFIX != ".json", reason="Paddle 2 gives programs another suffix than sidecars have")
def test_the_sidecar_of_weights_is_never_replaced(tmp_path, network):
    model = network("DenseNet")
    pd_.save_weights(model, tmp_path / "net.pdparams")
    with pytest.raises(WeightsError, match=r"net.json is the sidecar of .*net.pdparams: export under another name"):
        export(model, tmp_path / "net")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["paddle", "onnx"])
@pytest.mark.parametrize("name", ["cdnv2_a", "cdnv2_c", "densenet121", "cspresnext50", "tf_efficientnet_cc_b0_4e"])
def test_fused_networks_of_full_size(tmp_path, randomise, request, name, format):
    if format == "onnx":
        request.getfixturevalue("onnxruntime")
    model = pd_.create_model(name)
    if "efficientnet" not in name:  # whose gates saturate with such weights
        randomise(model)
    model.eval()
    assert export(fuse(model, format), tmp_path / "net", format).max_rel_diff < 1e-5
