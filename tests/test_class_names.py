"""Names of classes in PyTorch's checkpoints: found as scripts keep them, carried by loading and converting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="writes what torch.save writes: pip install torch")

import paddle_dense as pd_
from convert.torch2paddle import main
from paddle_dense.files.torch_file import read_checkpoint

DIGITS = Path(__file__).parents[1] / "weights" / "cdnv2_digits.pth"

NAMES = [f"digit {number}" for number in range(10)]
KEPT: dict[str, dict[str, Any]] = {
    "torchvision's class_to_idx": {"class_to_idx": {name: number for number, name in reversed([*enumerate(NAMES)])}},
    "its inverse": {"idx_to_class": dict(enumerate(NAMES))},
    "transformers' id2label": {"config": {"id2label": {str(number): name for number, name in enumerate(NAMES)}}},
    "MMEngine's meta": {"meta": {"dataset_meta": {"CLASSES": ()}, "CLASSES": tuple(NAMES)}},
    "a list": {"classes": NAMES},
    "the same twice": {"classes": NAMES, "class_to_idx": {name: number for number, name in enumerate(NAMES)}},
}
NOT_KEPT: dict[str, dict[str, Any]] = {
    "two different": {"classes": NAMES, "class_names": NAMES[::-1]},
    "a number missing": {"class_to_idx": {"a": 0, "b": 2}},
    "a number twice": {"class_to_idx": {"a": 0, "b": 0}},
    "no text": {"classes": [0, 1, 2]},
    "no number": {"id2label": {"a": "b"}},
    "true for 1": {"class_to_idx": {"a": 0, "b": True}},
    "an empty name": {"classes": ["", "b"]},
    "a name without end": {"classes": ["a" * 501, "b"]},
    "a count": {"classes": 10},
}


@pytest.fixture(scope="module")
def digits():
    return {name: torch.from_numpy(value.copy()) for name, value in read_checkpoint(DIGITS).state.items()}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_names_are_read_and_carried(kept, digits, tmp_path):
    torch.save({"state_dict": digits, **kept}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").classes == NAMES
    assert pd_.load_model(tmp_path / "a.pth").classes == NAMES
    assert main([str(tmp_path / "a.pth"), "--no-verify", "--config", "init_stride=1"]) == 0
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["classes"] == NAMES
    assert pd_.load_model(tmp_path / "a.pdparams").classes == NAMES


@pytest.mark.parametrize("kept", NOT_KEPT.values(), ids=NOT_KEPT)
def test_what_is_not_sure_is_left(kept, tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(2)}, **kept}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").classes is None


def test_names_of_another_count_are_left(digits, tmp_path):
    torch.save({"state_dict": digits, "classes": NAMES[:9]}, tmp_path / "a.pth")
    assert pd_.load_model(tmp_path / "a.pth").classes is None
