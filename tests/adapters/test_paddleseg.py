"""PaddleSeg's conventions: a function for each preset among the backbones, and `feat_channels` on what it returns."""

import paddle
import pytest

import paddle_dense as pd_


def test_every_preset_is_a_backbone(paddleseg):
    for name in pd_.list_models():
        assert paddleseg.manager.BACKBONES[name].__name__ == name


def test_feat_channels_are_those_of_the_features(paddleseg):
    backbone = paddleseg.manager.BACKBONES["cdnv2_a"](in_channels=4, out_index=[1, 3])
    assert backbone.feat_channels == [32, 288]
    features = backbone(paddle.zeros([1, 4, 64, 64]))
    assert [list(feature.shape) for feature in features] == [[1, 32, 16, 16], [1, 288, 4, 4]]


def test_pretrained_is_a_path_or_nothing(paddleseg, randomise, difference, tmp_path):
    saved = randomise(pd_.condensenet50())
    pd_.save_weights(saved, tmp_path / "saved.pdparams")
    build = paddleseg.manager.BACKBONES["condensenet50"]
    loaded = build(pretrained=str(tmp_path / "saved.pdparams")).network.features.init_conv.weight
    fresh = build(pretrained=None).network.features.init_conv.weight
    assert difference(loaded, saved.features.init_conv.weight) == 0
    assert difference(fresh, saved.features.init_conv.weight) > 0


def test_the_example_builds_in_paddleseg(real, paddleseg, example):
    real("paddleseg")
    builder = pytest.importorskip("paddleseg.cvlibs.builder", reason="needs paddleseg 2.8 or newer")
    manager = paddleseg.manager
    parts = builder.Builder(None, [manager.MODELS, manager.BACKBONES])
    model = parts.build_component(example(paddleseg)["model"])
    [logits] = model(paddle.zeros([2, 3, 64, 64]))
    assert list(logits.shape) == [2, 19, 64, 64]
