"""``paddle.hub`` finds every preset in a clone of this repository, whether the package is installed or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import paddle
import pytest

import paddle_dense as pd_

ROOT = Path(__file__).resolve().parents[1]
HUB = str(ROOT)


def test_list_has_the_presets_and_nothing_else():
    assert sorted(paddle.hub.list(HUB, source="local")) == sorted(pd_.list_models())


def test_help_tells_what_a_preset_is_and_takes():
    text = paddle.hub.help(HUB, "cdnv2_a", source="local")
    assert text.startswith("2.0 M parameters, 46 M MACs, 35.6 % top-1 error on ImageNet.")
    assert "CondenseNetV2(stages=[1, 1, 4, 6, 8]" in text
    assert "pretrained:" in text
    assert "num_classes" in text


def test_load_builds_with_the_arguments():
    model = paddle.hub.load(HUB, "cdnv2_a", source="local", pretrained=False, num_classes=10)
    assert model.arch == "cdnv2_a"
    assert list(model(paddle.zeros([1, 3, 32, 32])).shape) == [1, 10]


def test_load_takes_a_file_and_returns_transforms(randomise, difference, tmp_path):
    saved = randomise(pd_.condensenet50())
    pd_.save_weights(saved, tmp_path / "saved.pdparams")
    model, transforms = paddle.hub.load(
        HUB, "condensenet50", source="local", pretrained=str(tmp_path / "saved.pdparams"), return_transforms=True
    )
    assert difference(model.features.init_conv.weight, saved.features.init_conv.weight) == 0
    assert callable(transforms)


def test_an_unknown_preset_is_an_error():
    with pytest.raises(RuntimeError, match="cdnv2_d"):
        paddle.hub.load(HUB, "cdnv2_d", source="local")


def test_the_clones_own_package_is_taken(tmp_path):
    """In another process, from a relative path that is left afterwards, next to whatever is installed."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("hubconf.py", "paddle_dense", "weights"):
        (clone / name).symlink_to(ROOT / name)
    script = """
        import os, sys, paddle
        model = paddle.hub.load("clone", "cdnv2_a", source="local", num_classes=3)
        os.chdir("/")
        import paddle_dense
        params = paddle_dense.profile(model, (3, 32, 32)).params
        print(paddle_dense.__file__, model.num_classes, params > 0, "hubconf" in sys.modules)
    """
    # -I: neither the current folder nor PYTHONPATH helps.
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", "\n".join(line.strip() for line in script.splitlines())],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[1:] == ["3", "True", "False"]
    assert (tmp_path / done.stdout.split()[0]).parts[-3:] == ("clone", "paddle_dense", "__init__.py")
