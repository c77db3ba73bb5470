"""PaddleClas' conventions: a function for each preset, with `class_num`, `pretrained` and `use_ssld`."""

import sys
from importlib import import_module

import paddle
import pytest

import paddle_dense as pd_


def namespace(adapter):
    return import_module(f"{adapter._homes()[0]}.arch")


def test_every_preset_is_an_architecture(paddleclas):
    arch = namespace(paddleclas)
    for name in pd_.list_models():
        assert getattr(arch, name).__name__ == getattr(arch.backbone, name).__name__ == name
        assert "parameters" in getattr(arch, name).__doc__


def test_class_num_and_the_networks_arguments(paddleclas):
    model = namespace(paddleclas).cdnv2_a(class_num=7, in_channels=1)
    assert list(model(paddle.zeros([1, 1, 32, 32])).shape) == [1, 7]
    assert namespace(paddleclas).cdnv2_a().num_classes == 1000


@pytest.mark.parametrize("name", ["weights.pdparams", "weights"])
def test_pretrained_takes_a_path_with_and_without_suffix(paddleclas, name, randomise, difference, tmp_path):
    saved = randomise(pd_.condensenet50(num_classes=7))
    pd_.save_weights(saved, tmp_path / "weights.pdparams")
    loaded = namespace(paddleclas).condensenet50(pretrained=str(tmp_path / name), class_num=7)
    assert difference(loaded.features.init_conv.weight, saved.features.init_conv.weight) == 0


def test_there_are_no_ssld_weights(paddleclas):
    with pytest.raises(ValueError, match="no SSLD weights are released for cdnv2_a: leave use_ssld out"):
        namespace(paddleclas).cdnv2_a(pretrained=True, use_ssld=True)


def test_a_second_copy_of_paddleclas_that_is_loaded_is_served_too(paddleclas, monkeypatch):
    """A clone's `ppcls` and pip's `paddleclas.ppcls` can be loaded at once."""
    for name in ("ppcls.arch", "paddleclas.ppcls.arch"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name, object()))
    assert list(paddleclas._homes()) == ["ppcls", "paddleclas.ppcls"]


def test_the_example_builds_in_paddleclas(real, paddleclas, example):
    real("paddleclas")
    arch = namespace(paddleclas)
    model = arch.build_model({**example(paddleclas), "Global": {"device": "cpu"}})
    assert list(model(paddle.zeros([1, 3, 32, 32])).shape) == [1, 102]


def test_it_is_the_backbone_of_a_recognition_model(real, paddleclas):
    real("paddleclas")
    model = namespace(paddleclas).RecModel(
        Backbone={"name": "cdnv2_a", "class_num": 0},
        Neck={"name": "FC", "embedding_size": 828, "class_num": 64},
        Head={"name": "FC", "embedding_size": 64, "class_num": 5},
    )
    out = model(paddle.zeros([1, 3, 32, 32]))
    assert [list(out[key].shape) for key in ("backbone", "features", "logits")] == [[1, 828], [1, 64], [1, 5]]
