"""CondenseNet: the original's numbers, the papers' figures, and every shape that users ask for."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import paddle_dense
from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_paddle
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.layers import CondenseConv, CondenseLinear, LearnedGroupConv
from paddle_dense.models import CondenseNet
from paddle_dense.models.recognise import recognise

TINY = {"stages": [3, 3, 3], "growth": [8, 16, 32], "num_classes": 10}
SMALL = {"stages": [1, 2, 1], "growth": [8, 8, 16], "num_classes": 7}
FIGURES = {  # parameters, MACs as the papers count, MACs of convolutions and linear layers, of spec and papers
    "condensenet74_c4": (4_773_944, 529e6, 516.6e6),
    "condensenet74_c8": (2_935_416, 274e6, 261.5e6),
    "condensenet50": (214_186, 28.6e6, 27.2e6),
    "condensenet74": (402_026, 51.9e6, 49.2e6),
    "condensenet86": (516_202, 65.8e6, 62.4e6),
    "condensenet98": (643_882, 81.3e6, 77.0e6),
    "condensenet110": (785_066, 98.2e6, 93.0e6),
    "condensenet122": (939_754, 116.7e6, 110.5e6),
    "condensenet182": (4_209_226, 513e6, 493.9e6),
}


def tiny_state(data, name: str) -> dict[str, np.ndarray]:
    return to_paddle(read_checkpoint(data / f"condensenet_tiny_{name}").state)


@pytest.mark.parametrize(
    ("name", "config", "logits"),
    [
        ("trained_unconverted.pth.tar", {"condensed": False}, "logits_unconverted"),
        ("converted.pth", {}, "logits_converted"),
    ],
)
def test_both_forms_answer_as_the_original(data, difference, name, config, logits):
    model = CondenseNet(**TINY, **config)
    missing, unexpected = model.set_state_dict(tiny_state(data, name))
    assert not missing and not unexpected
    model.eval()
    oracle = np.load(data / "condensenet_tiny_io.npz")
    assert difference(model(paddle.to_tensor(oracle["x_eval"])), oracle[logits]) < 1e-6


def test_condensing_a_model_keeps_its_outputs_and_its_whole_classifier(data, difference):
    trained = CondenseNet(**TINY, condensed=False)
    trained.set_state_dict(tiny_state(data, "trained_unconverted.pth.tar"))
    trained.eval()
    condensed = paddle_dense.condense(trained)
    assert isinstance(condensed.classifier, paddle.nn.Linear)
    oracle = np.load(data / "condensenet_tiny_io.npz")
    assert difference(condensed(paddle.to_tensor(oracle["x_eval"])), oracle["logits_unconverted"]) < 1e-6

    # Its config rebuilds it.
    assert set(CondenseNet(**condensed.config).state_dict()) == set(condensed.state_dict())


@pytest.mark.parametrize("name", FIGURES)
def test_presets_have_the_published_size(name):
    params, macs, executed = FIGURES[name]
    model = paddle_dense.create_model(name)
    profile = paddle_dense.profile(model, (3, model.input_size, model.input_size))
    assert profile.params == params
    assert profile.macs == pytest.approx(macs, rel=0.002)
    assert profile.executed_macs == pytest.approx(executed, rel=0.002)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"condense_factor": 2},
        {"condense_factor": 8},
        {"group_1x1": 2, "group_3x3": 8},
        {"num_classes": 37, "in_channels": 1},
        {"bottleneck": 2},
        {"growth": [6, 6, 12], "group_1x1": 6, "group_3x3": 6},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", [{"condensed": False}, {}, {"condense_classifier": False}], ids=str)
def test_networks_are_recognised_from_their_tensors(randomise, config, form):
    config = {**SMALL, **config, **form}
    model = randomise(CondenseNet(**config))
    found = recognise({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    assert found.arch == "CondenseNet"
    assert {key: found.config[key] for key in config} == config
    assert any("init_stride=1" in warning for warning in found.warnings)


@pytest.mark.parametrize("name", ["condensenet50", "condensenet74_c8"])
@pytest.mark.parametrize("condensed", [False, True])
def test_presets_are_recognised_by_name(randomise, name, condensed):
    model = randomise(paddle_dense.create_model(name, condensed=condensed, num_classes=100))
    found = recognise({key: tensor.numpy() for key, tensor in model.state_dict().items()})
    assert found.arch == name and "does not show init_stride=" in found.warnings[0]
    assert found.config["condensed"] is condensed and found.config["num_classes"] == 100


@pytest.mark.parametrize("condensed", [False, True])
def test_every_parameter_learns(condensed):
    model = CondenseNet(**SMALL, condensed=condensed)
    loss = paddle.nn.functional.cross_entropy(model(paddle.randn([2, 3, 64, 64])), paddle.to_tensor([0, 1]))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if not p.stop_gradient)


@pytest.mark.parametrize("condensed", [False, True])
def test_static_graphs_answer_the_same(condensed, randomise, difference):
    model = randomise(CondenseNet(**SMALL, condensed=condensed))
    model.eval()
    x = paddle.randn([2, 3, 64, 64])
    expected = model(x)
    assert difference(paddle.jit.to_static(model, full_graph=True)(x), expected) < 1e-6


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (96, 64)])
def test_any_input_size(size):
    model = CondenseNet(**SMALL)
    model.eval()
    assert list(model(paddle.randn([1, 3, *size])).shape) == [1, 7]


def test_features_only_gives_the_pyramid():
    model = CondenseNet([1, 1, 1, 1, 1], [8, 8, 16, 16, 32], features_only=True)
    model.eval()
    pyramid = model(paddle.randn([1, 3, 64, 64]))
    assert [feature.shape[1] for feature in pyramid] == model.feature_channels == [24, 32, 48, 64, 96]
    assert [64 // feature.shape[2] for feature in pyramid] == model.feature_strides == [2, 4, 8, 16, 32]


def test_the_paper_has_other_names_for_the_same_layers():
    assert issubclass(LearnedGroupConv, paddle_dense.LGC) and issubclass(CondenseConv, paddle_dense.CondenseLGC)


def test_dropout_works_in_training_only():
    layer = LearnedGroupConv(8, 8, groups=4, dropout_rate=0.5)
    x = paddle.randn([2, 8, 4, 4])
    assert not paddle.equal_all(layer(x), layer(x))
    layer.eval()
    assert paddle.equal_all(layer(x), layer(x))


def test_the_condensed_classifier_checks_its_index(tmp_path):
    layer = CondenseLinear(8, 3)
    assert layer.index_fault(np.array([0, 2, 4, 7])) is None
    assert "names channel 8 of 8" in layer.index_fault(np.array([0, 2, 4, 8]))

    model = CondenseNet(**SMALL)
    model.classifier.index[0] = 4000
    paddle_dense.save_weights(model, tmp_path / "bad.pdparams")
    with pytest.raises(WeightsError, match=r"classifier\.index.*names channel 4000"):
        paddle_dense.load_model(tmp_path / "bad.pdparams")
