"""Presets: how they are found, named and built."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import paddle_dense
from paddle_dense.models import CondenseNetV2, build_network
from paddle_dense.models.network import config_keys, networks, preset, presets
from paddle_dense.zoo import cdnv2_a, create_model, list_models

SMALL = {"stages": [1, 1], "growth": [8, 8], "fc_channel": 8, "num_classes": 3, "in_channels": 1}


def test_list_models_takes_a_pattern():
    assert list_models("cdnv2*") == ["cdnv2_a", "cdnv2_b", "cdnv2_c", "cdnv2_cifar10"]
    assert list_models("*v2_b") == ["cdnv2_b"]
    assert list_models("CDNV2*") == []
    assert set(list_models("cdnv2*")) <= set(list_models())


def test_create_model_and_the_function_of_the_same_name_agree():
    models = [create_model("cdnv2_a", num_classes=4), cdnv2_a(num_classes=4), paddle_dense.cdnv2_a(class_dim=4)]
    configs = [model.config for model in models]
    assert configs[0] == configs[1] == configs[2]
    assert all(type(model) is CondenseNetV2 and model.arch == "cdnv2_a" for model in models)
    assert configs[0]["stages"] == [1, 1, 4, 6, 8]
    assert configs[0]["num_classes"] == 4


@pytest.mark.parametrize("name", ["cdnv2_a", "cdnv2_b", "cdnv2_c"])
def test_every_preset_holds_its_published_figures(name):
    entry = preset(name)
    assert entry.name == name
    assert entry.network is CondenseNetV2
    assert entry.published.params
    assert entry.published.macs
    assert entry.published.top1_error
    assert str(entry.published).count(",") == 2
    assert entry in presets(CondenseNetV2)
    assert entry in presets()


def test_arguments_replace_the_presets_numbers():
    model = create_model("cdnv2_a", in_channels=1, num_classes=0, condensed=False, fc_channel=16)
    assert model.features.init_conv.weight.shape[1] == 1
    assert model.fc.weight.shape[1] == 16
    assert model.num_classes == 0
    assert model.config["condensed"] is False


def test_a_model_owns_its_config():
    """Whoever edits it must not edit the preset, and with it every model that comes after."""
    model = cdnv2_a(num_classes=4)
    for key in ("stages", "growth"):
        assert model.config[key] == preset("cdnv2_a").config[key]
        assert model.config[key] is not preset("cdnv2_a").config[key]


@pytest.mark.parametrize(
    ("name", "interpolation"), [("cdnv2_a", "bicubic"), ("cdnv2_b", "bicubic"), ("cdnv2_c", "bilinear")]
)
def test_transforms_are_those_of_the_published_figures(name, interpolation):
    image = pytest.importorskip("PIL.Image", reason="images are read with Pillow: pip install Pillow")
    model, transforms = create_model(name, return_transforms=True, num_classes=2)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), "u1")
    photo = image.fromarray(pixels)
    x = transforms(photo)
    assert x.shape == [3, 224, 224]
    assert x.dtype == paddle.float32
    resized = photo.resize((341, 256), getattr(image, interpolation.upper()))
    expected = np.asarray(resized, "f4")[16:240, 58:282] / 255
    expected = (expected - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(x.numpy() - expected.transpose(2, 0, 1)).max() < 1e-5
    assert model.preprocessing.interpolation == interpolation


def test_build_network_takes_classes_and_presets():
    model = build_network("CondenseNetV2", SMALL)
    assert type(model) is CondenseNetV2
    assert model.arch == "CondenseNetV2"
    assert build_network("cdnv2_a", {"num_classes": 2}).arch == "cdnv2_a"
    assert CondenseNetV2 in networks()
    assert {"stages", "growth", "condensed", "features_only"} <= set(config_keys(CondenseNetV2))
    assert "class_dim" not in config_keys(CondenseNetV2)


def test_a_network_records_every_argument():
    model = CondenseNetV2([1, 1], [8, 8], fc_channel=8, num_classes=3)
    assert set(model.config) == set(config_keys(CondenseNetV2))
    assert model.config["stages"] == [1, 1]
    assert model.config["group_1x1"] == 8
    assert model.arch == "CondenseNetV2"


def test_a_network_of_no_paper_says_how_its_images_are_prepared():
    image = pytest.importorskip("PIL.Image", reason="images are read with Pillow: pip install Pillow")
    model = CondenseNetV2(**SMALL)
    assert model.preprocessing.input_size == 32
    x = model.preprocessing.transforms()(image.fromarray(np.full((50, 70), 255, "u1")))
    assert x.shape == [1, 32, 32]
    assert (x == 1).all()
    assert model.preprocessing.mean == (0.5,)


@pytest.mark.parametrize("build", [create_model, preset, lambda name: build_network(name, {})])
def test_an_unknown_name_lists_the_known_ones(build):
    with pytest.raises(ValueError) as caught:
        build("cdnv2_d")
    assert "'cdnv2_d'" in str(caught.value)
    assert "cdnv2_a" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: create_model("cdnv2_a", number_of_classes=4),
        lambda: cdnv2_a(number_of_classes=4),
        lambda: build_network("CondenseNetV2", {**SMALL, "number_of_classes": 4}),
    ],
)
def test_an_unknown_argument_lists_the_known_ones(build):
    with pytest.raises(ValueError) as caught:
        build()
    assert "'number_of_classes'" in str(caught.value)
    assert "num_classes" in str(caught.value)
