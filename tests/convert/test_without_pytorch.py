"""Conversion where PyTorch is not installed: nothing here imports it, and the answers are the original's."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import paddle_dense as pd_
from convert import paddle2torch, torch2paddle
from paddle_dense.files.torch_file import read_checkpoint
from tests.helpers import answers

CONFIG = {"cdnv2": "HS_start_block=1,init_stride=1", "condensenet": "init_stride=1"}


@pytest.fixture(autouse=True)
def _no_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed


@pytest.mark.parametrize("options", [[], ["--no-verify"]], ids=["", "no-verify"])
@pytest.mark.parametrize(
    ("family", "form", "logits"),
    [
        ("cdnv2", "converted.pth", "logits_converted"),
        ("cdnv2", "trained_unconverted.pth.tar", "logits_converted"),
        ("condensenet", "converted.pth", "logits_converted"),
        # The original's converter changes these answers, ours does not.
        ("condensenet", "trained_unconverted.pth.tar", "logits_unconverted"),
    ],
)
def test_it_answers_as_the_original_does(family, form, logits, options, data, tmp_path, difference, capsys):
    target = tmp_path / "converted.pdparams"
    source = data / f"{family}_tiny_{form}"
    command = [str(source), "-o", str(target), "--config", CONFIG[family], *options]
    assert torch2paddle.main(command) == torch2paddle.OK
    said = capsys.readouterr()
    assert "not checked against PyTorch" in said.out
    assert ("PyTorch is not installed" in said.err) == (not options)
    oracle = np.load(data / f"{family}_tiny_io.npz")
    assert difference(answers(pd_.load_model(target), oracle["x_eval"]), oracle[logits]) < 1e-5


def test_there_and_back_changes_nothing(data, tmp_path):
    source = data / "cdnv2_tiny_converted.pth"
    there, back = tmp_path / "there.pdparams", tmp_path / "back.pth"
    config = ["--config", CONFIG["cdnv2"]]
    assert torch2paddle.main([str(source), "-o", str(there), "--no-verify", *config]) == 0
    assert paddle2torch.main([str(there), "-o", str(back), "--no-verify"]) == 0
    before, after = read_checkpoint(source).state, read_checkpoint(back).state
    assert list(before) == list(after)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
