"""Arguments of networks: annotations kept as types and as text say the same."""
# Without `from __future__ import annotations`: the annotations here are types.

from typing import Optional

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_dense import load_model, save_weights
from paddle_dense.models import build_network, network
from paddle_dense.models.arguments import Count, Counts, FromZero, check_arguments
from paddle_dense.models.network import Network, register_model, register_network
from paddle_dense.models.recognise import Recognised, recognise
from tests.helpers import arrays


@pytest.fixture
def tiny(monkeypatch):
    """A user's network in a file whose annotations are types, registered with a preset."""
    for name in ("_NETWORKS", "_PRESETS"):
        monkeypatch.setattr(network, name, dict(getattr(network, name)))

    @register_network
    class Tiny(Network):
        """[N, in_channels, H, W] -> [N, num_classes]."""

        def __init__(
            self,
            widths: Counts,
            bias: bool = False,
            scale: Optional[float] = None,
            num_classes: FromZero = 2,
            in_channels: Count = 3,
            features_only: bool = False,
        ) -> None:
            super().__init__(locals())
            self.describe(32, widths, [2 * 2**level for level in range(len(widths))])
            for level, (inputs, width) in enumerate(zip([in_channels, *widths], widths)):
                self.add_sublayer(f"tiny{level}", nn.Conv2D(inputs, width, 3, 2, 1, bias_attr=None if bias else False))
            self.classifier = nn.Linear(widths[-1], num_classes)

        def forward(self, x):
            for level in range(len(self.feature_channels)):
                x = nn.functional.relu(getattr(self, f"tiny{level}")(x))
            return self.classifier(x.mean([2, 3]))

        @staticmethod
        def recognise(state):
            if "tiny0.weight" not in state:
                return None
            convs = [state[f"tiny{level}.weight"] for level in range(sum(name.startswith("tiny") for name in state))]
            return Recognised({"widths": [len(conv) for conv in convs], "in_channels": convs[0].shape[1]})

    register_model("tiny_4_8", Tiny, Tiny([4]).preprocessing, widths=[4, 8])
    return Tiny


def test_a_network_whose_annotations_are_types_is_registered_recognised_saved_and_loaded(tiny, tmp_path):
    model = tiny([4, 8], num_classes=2)
    save_weights(model, tmp_path / "tiny.pdparams")
    again = load_model(tmp_path / "tiny.pdparams")
    x = paddle.randn([1, 3, 32, 32])
    assert type(again) is tiny
    assert again.config == model.config
    np.testing.assert_array_equal(again(x).numpy(), model(x).numpy())
    found = recognise(arrays(model))
    assert found.arch == "tiny_4_8"
    assert build_network("tiny_4_8", {"class_dim": 5}).num_classes == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widths": 4}, "widths=4 must be a list of one number or more"),
        ({"widths": [4, 0]}, r"widths=\[4, 0\] must be 1 or more"),
        ({"widths": [4, 8.0]}, r"widths=\[4, 8.0\] must be a whole number"),
        ({"widths": [4], "bias": 1}, "bias=1 must be true or false"),
        ({"widths": [4], "scale": "2"}, "scale=2 must be a number"),
        ({"widths": [4], "num_classes": -1}, "num_classes=-1 must be 0 or more"),
        ({"widths": [4], "in_channels": True}, "in_channels=True must be a whole number"),
        ({"widths": [4] * 6}, "would leave nothing of an image of 32 pixels"),
    ],
)
def test_its_bad_arguments_are_refused_where_they_are_given(tiny, config, message):
    with pytest.raises(ValueError, match=message):
        tiny(**config)
    with pytest.raises(ValueError, match=message):
        build_network("Tiny", config)


def _as_types(count: int, sizes: list[int], ratio: Optional[float] = None, name: str = "") -> None: ...


def _as_text(count: "int", sizes: "list[int]", ratio: "Optional[float]" = None, name: "str" = "") -> None: ...


def _as_nothing_known(count: "NoSuchType", sizes: "NoSuchType", ratio=None, name: object = "") -> None: ...  # noqa: F821


@pytest.mark.parametrize("function", [_as_types, _as_text])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.5}, "count=1.5 must be a whole number"),
        ({"sizes": [1, "2"]}, "must be a whole number"),
        ({"sizes": ()}, "must be a list of one number or more"),
        ({"ratio": "x"}, "ratio=x must be a number"),
        ({"name": 3}, "name=3 must be a text"),
    ],
)
def test_annotations_are_read_as_types_and_as_text(function, values, message):
    with pytest.raises(ValueError, match=message):
        check_arguments(function, values)
    check_arguments(function, {"count": 1, "sizes": (1, 2), "ratio": None, "name": "x"})


def test_what_no_annotation_says_is_not_checked():
    check_arguments(_as_nothing_known, {"count": "any", "sizes": 1, "ratio": "thing", "name": 1})
