"""Names and layouts between the two frameworks, on arrays alone."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_dense.files.layout import is_linear, to_paddle, to_torch


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype="f4").reshape(shape)


def test_the_whole_table():
    state = {
        "features.init_conv.weight": numbered(4, 3, 3, 3),
        "features.norm.weight": numbered(4),
        "features.norm.bias": numbered(4),
        "features.norm.running_mean": numbered(4),
        "features.norm.running_var": numbered(4),
        "features.norm.num_batches_tracked": np.int64(7),
        "features.conv_1.index": np.arange(6),
        "features.conv_1._mask": numbered(6, 4, 1, 1),
        "features.sfr.index": numbered(6, 4),
        "fc.weight": numbered(5, 4),
        "fc.bias": numbered(5),
    }
    mapped = to_paddle(state)
    assert list(mapped) == [
        "features.init_conv.weight",
        "features.norm.weight",
        "features.norm.bias",
        "features.norm._mean",
        "features.norm._variance",
        "features.conv_1.index",
        "features.conv_1._mask",
        "features.sfr.index",
        "fc.weight",
        "fc.bias",
    ]
    assert mapped["fc.weight"].shape == (4, 5) and (mapped["fc.weight"] == state["fc.weight"].T).all()
    for name in set(mapped) & set(state) - {"fc.weight"}:
        assert mapped[name] is state[name], "nothing else is touched or copied"
    assert mapped["features.norm._mean"] is state["features.norm.running_mean"]
    assert mapped["features.norm._variance"] is state["features.norm.running_var"]


def test_the_whole_table_backwards():
    state = {
        "features.init_conv.weight": numbered(4, 3, 3, 3),
        "features.norm.weight": numbered(4),
        "features.norm._mean": numbered(4),
        "features.norm._variance": numbered(4),
        "features.conv_1._mask": numbered(6, 4, 1, 1),
        "blocks.4.0.conv_pw.weight": numbered(2, 12),
        "fc.weight": numbered(4, 5),
    }
    mapped = to_torch(state)
    assert list(mapped) == [
        "features.init_conv.weight",
        "features.norm.weight",
        "features.norm.running_mean",
        "features.norm.running_var",
        "features.norm.num_batches_tracked",
        "features.conv_1._mask",
        "blocks.4.0.conv_pw.weight",
        "fc.weight",
    ]
    assert mapped["fc.weight"].shape == (5, 4) and (mapped["fc.weight"] == state["fc.weight"].T).all()
    assert mapped["features.norm.num_batches_tracked"].shape == () and mapped["blocks.4.0.conv_pw.weight"].shape == (
        2,
        12,
    )
    back = to_paddle(mapped)
    assert list(back) == list(state) and all((back[name] == state[name]).all() for name in state)


def test_the_input_stays_as_it_is():
    state = {"fc.weight": numbered(5, 4), "norm.running_mean": numbered(2)}
    to_paddle(state)
    to_torch(state)
    assert list(state) == ["fc.weight", "norm.running_mean"] and state["fc.weight"].shape == (5, 4)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("fc.weight", (5, 4), True),
        ("se.fc.0.weight", (4, 4), True),
        ("conv.weight", (5, 4, 1, 1), False),
        ("norm.weight", (5,), False),
        ("fc.bias", (5,), False),
        ("sfr.index", (5, 5), False),
    ],
)
def test_only_linear_weights_lie_transposed(name, shape, expected):
    assert is_linear(name, numbered(*shape)) is expected


def test_the_original_becomes_what_paddle_expects(tiny, tiny_state):
    """Name for name and shape for shape, for both forms of a real checkpoint."""
    from paddle_dense.models import CondenseNetV2

    for name, condensed in (("converted.pth", True), ("init.pth", False)):
        expected = CondenseNetV2(**tiny, condensed=condensed).state_dict()
        found = tiny_state(name)
        assert {key: array.shape for key, array in found.items()} == {k: tuple(v.shape) for k, v in expected.items()}


@pytest.mark.parametrize("name", ["converted.pth", "trained_unconverted.pth.tar"])
def test_there_and_back_gives_the_originals_file(data, name):
    from paddle_dense.files.torch_file import read_checkpoint

    original = read_checkpoint(data / f"cdnv2_tiny_{name}").state
    back = to_torch(to_paddle(original))
    assert list(back) == list(original)
    for key, value in original.items():
        if not key.endswith("num_batches_tracked"):
            assert back[key].shape == value.shape and (back[key] == value).all(), key
