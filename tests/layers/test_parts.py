"""Channels in parts: the same in eager mode, in static graphs, and in Paddle Inference with oneDNN."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense.deploy.exporting import export, load_paddle
from paddle_dense.layers import ExactFusion
from paddle_dense.layers.parts import split_channels
from paddle_dense.models import CondenseNet
from tests.helpers import answers, random_images


@pytest.mark.parametrize("sections", [[24, 16], [16, 16], [5, 0, 7], [12]])
def test_the_parts_are_those_of_split(sections):
    x = paddle.to_tensor(random_images(2, sum(sections), 3, 4))
    expected = [part.numpy() for part in paddle.split(x, sections, axis=1)]

    def parts(x):
        return split_channels(x, sections)

    for split in (parts, paddle.jit.to_static(parts, full_graph=True)):
        found = [part.numpy() for part in split(x)]
        assert [part.shape for part in found] == [part.shape for part in expected]
        assert all(np.array_equal(*pair) for pair in zip(found, expected))


@pytest.mark.parametrize("growth", [16, 24])
def test_levels_of_any_width_are_compressed_with_onednn(tmp_path, randomise, difference, growth):
    """Of 24 + 16 channels, oneDNN fills up the last block of 16 with zeros; 24 + 24 leave no such block."""
    backbone = CondenseNet(stages=[1, 1, 2], growth=[8, growth, 32], features_only=True)
    model = randomise(paddle.nn.Sequential(backbone, ExactFusion(backbone.feature_channels, 8)))
    model.eval()
    files = export(model, tmp_path / "net", "paddle")
    x = random_images(2, 3, 64, 96)
    assert difference(load_paddle(files, onednn=True)(x), answers(model, x)) < 2e-6
