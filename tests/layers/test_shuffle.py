"""The two channel shuffles."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense.layers import ShuffleLayer, ShuffleLayerTrans


def numbered(channels: int) -> paddle.Tensor:
    """[2, C, 1, 3] whose values say which channel they are from."""
    return paddle.arange(channels, dtype="float32").reshape([1, -1, 1, 1]).expand([2, channels, 1, 3])


@pytest.mark.parametrize(("channels", "groups"), [(12, 4), (12, 6), (24, 8), (5, 1), (5, 5)])
def test_shuffle_interleaves_the_groups(channels, groups):
    per_group = channels // groups
    shuffled = ShuffleLayer(numbered(channels), groups).numpy()
    assert shuffled.shape == (2, channels, 1, 3)
    for group in range(groups):
        for k in range(per_group):
            assert (shuffled[:, k * groups + group] == group * per_group + k).all()


@pytest.mark.parametrize(("channels", "groups"), [(12, 4), (12, 6), (24, 8), (5, 1), (5, 5)])
def test_each_shuffle_undoes_the_other(channels, groups):
    x = paddle.randn([2, channels, 3, 4])
    assert (ShuffleLayerTrans(ShuffleLayer(x, groups), groups) == x).all()
    assert (ShuffleLayer(ShuffleLayerTrans(x, groups), groups) == x).all()


def test_shuffle_trans_sorts_the_channels_by_their_number_modulo_the_groups():
    assert ShuffleLayerTrans(numbered(6), 2).numpy()[0, :, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    assert ShuffleLayer(numbered(6), 2).numpy()[0, :, 0, 0].tolist() == [0, 3, 1, 4, 2, 5]


def test_gradients_go_back_to_where_the_channels_came_from():
    x = numbered(6) * 1
    x.stop_gradient = False
    weight = np.arange(6, dtype="f4").reshape(1, 6, 1, 1)
    (ShuffleLayer(x, 2) * paddle.to_tensor(weight)).sum().backward()
    assert x.grad.numpy()[0, :, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
