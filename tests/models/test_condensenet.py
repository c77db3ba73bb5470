"""CondenseNet: the original's numbers, the classifier that reads half of its inputs, and the paper's names."""

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
from tests.helpers import CONDENSENET, answers, loaded

TINY = {"stages": [3, 3, 3], "growth": [8, 16, 32], "num_classes": 10}


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
    model = loaded(CondenseNet(**TINY, **config), tiny_state(data, name))
    oracle = np.load(data / "condensenet_tiny_io.npz")
    assert difference(answers(model, oracle["x_eval"]), oracle[logits]) < 1e-6


def test_condensing_a_model_keeps_its_outputs_and_its_whole_classifier(data, difference):
    trained = loaded(CondenseNet(**TINY, condensed=False), tiny_state(data, "trained_unconverted.pth.tar"))
    condensed = paddle_dense.condense(trained)
    assert isinstance(condensed.classifier, paddle.nn.Linear)
    oracle = np.load(data / "condensenet_tiny_io.npz")
    assert difference(answers(condensed, oracle["x_eval"]), oracle["logits_unconverted"]) < 1e-6

    # Its config rebuilds it.
    assert set(CondenseNet(**condensed.config).state_dict()) == set(condensed.state_dict())


def test_the_paper_has_other_names_for_the_same_layers():
    assert issubclass(LearnedGroupConv, paddle_dense.LGC)
    assert issubclass(CondenseConv, paddle_dense.CondenseLGC)


def test_the_condensed_classifier_checks_its_index(tmp_path):
    layer = CondenseLinear(8, 3)
    assert layer.index_fault(np.array([0, 2, 4, 7])) is None
    assert "names channel 8 of 8" in layer.index_fault(np.array([0, 2, 4, 8]))

    model = CondenseNet(**CONDENSENET)
    model.classifier.index[0] = 4000
    paddle_dense.save_weights(model, tmp_path / "bad.pdparams")
    with pytest.raises(WeightsError, match=r"classifier\.index.*names channel 4000"):
        paddle_dense.load_model(tmp_path / "bad.pdparams")
