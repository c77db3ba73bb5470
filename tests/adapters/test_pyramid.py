"""Levels of a pyramid: what the backbones for detection and segmentation are made of."""

import paddle
import pytest

from paddle_dense import create_model, save_weights
from paddle_dense.adapters.pyramid import Pyramid


def test_without_a_choice_it_has_the_levels_of_stride_4_and_more():
    pyramid = Pyramid("cdnv2_a")
    assert pyramid.feat_strides == [4, 8, 16, 32]
    assert pyramid.feat_channels == [32, 96, 288, 800]
    shapes = [list(feature.shape) for feature in pyramid(paddle.zeros([2, 3, 64, 64]))]
    assert shapes == [[2, 32, 16, 16], [2, 96, 8, 8], [2, 288, 4, 4], [2, 800, 2, 2]]


def test_the_levels_are_those_of_the_network(randomise, difference):
    pyramid = randomise(Pyramid("cdnv2_a", levels=[1, 4]))
    pyramid.eval()
    x = paddle.randn([1, 3, 64, 64])
    with paddle.no_grad():
        expected = pyramid.network(x)
        low, high = pyramid(x)
    assert difference(low, expected[1]) == 0
    assert difference(high, expected[4]) == 0


def test_pretrained_takes_the_file_of_a_whole_network(randomise, difference, tmp_path):
    whole = randomise(create_model("condensenet50", in_channels=1, num_classes=7))
    save_weights(whole, tmp_path / "whole.pdparams")
    pyramid = Pyramid("condensenet50", pretrained=tmp_path / "whole.pdparams", in_channels=1)
    loaded = pyramid.network.state_dict()
    for name, tensor in whole.state_dict().items():
        if name in loaded:
            assert difference(loaded[name], tensor) == 0
    assert "features.norm_last.weight" in loaded
    assert not any(name.startswith("classifier.") for name in loaded)


@pytest.mark.parametrize("levels", [[], [5], [-6], [3, 2], [2, 2]])
def test_levels_that_are_not_there_are_an_error(levels):
    with pytest.raises(ValueError, match=r"cdnv2_a has no levels .* give ascending ones of \[0, 1, 2, 3, 4\]"):
        Pyramid("cdnv2_a", levels=levels)
