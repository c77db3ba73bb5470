"""What the README shows runs as it stands there."""

import os
import re
from pathlib import Path

import pytest

paddle = pytest.importorskip("paddle")

import paddle_dense as pd_
from paddle_dense.evaluation import evaluation

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The names that all Python blocks of the README leave behind, run one after the other."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("readme")
    (folder / "weights").symlink_to(ROOT / "weights")
    # The README's first example has converted this file by then; any weights will do to show how it is loaded.
    pd_.save_weights(pd_.cdnv2_a(), folder / "cdnv2_a.pdparams")
    names = {"folder": folder}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
    finally:
        os.chdir(before)
    return names


def test_the_library_block(shown):
    assert shown["backbone"].features_only
    assert not shown["trained"].config["condensed"]


def test_training_ends_condensed(shown):
    assert shown["condensed"].config["condensed"]


def test_fine_tuning_learns_five_digits(shown):
    digits, network = shown["digits"], shown["model"].network
    few = digits.test_labels < 5
    with evaluation(network):
        answers = network(paddle.to_tensor(digits.test_images[few])).argmax(1).numpy()
    assert (answers == digits.test_labels[few]).mean() >= 0.99


def test_the_exported_files_are_there(shown):
    assert {path.suffix for path in shown["folder"].glob("digits.*")} >= {".pdiparams"}
