"""What importing does, and what it must not do, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import paddle_dense

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = "[name for name in ('paddle', 'torch', 'torchvision', 'tensorflow') if name in sys.modules]"


def run(script: str, *options: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *options, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def said(script: str, *options: str, **environment: str) -> str:
    done = run(script, *options, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import paddle_dense",
        "from paddle_dense import condense",
        "import paddle_dense.errors, paddle_dense.weights, paddle_dense.sidecar",
        "import convert",
        "import convert.checkpoint, convert.mapping, convert.torch2paddle, convert.conversion",
    ],
)
def test_importing_loads_no_framework(statement):
    assert said(f"import sys; {statement}; print({FRAMEWORKS})") == "[]"


@pytest.mark.parametrize("module", ["convert.torch2paddle"])
def test_help_loads_no_framework(module):
    out = said(f"""
        import runpy, sys
        sys.argv = [{module!r}, "--help"]
        try:
            runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
        except SystemExit as exit:
            print("status", exit.code)
        print({FRAMEWORKS})
    """)
    assert "usage:" in out and out.endswith("status 0\n[]")


def test_the_whole_library_works_without_torch():
    """Every name and every module is loaded, and a network runs."""
    assert (
        said("""
        import importlib, pkgutil, sys
        import paddle_dense
        names = [module.name for module in pkgutil.walk_packages(paddle_dense.__path__, "paddle_dense.")]
        for name in names:
            if not name.endswith("__main__") and ".adapters.paddle" not in name:
                importlib.import_module(name)
        values = [getattr(paddle_dense, name) for name in paddle_dense.__all__]
        import paddle
        y = paddle_dense.cdnv2_a(num_classes=4)(paddle.randn([2, 3, 32, 32]))
        print(list(y.shape), "torch" in sys.modules)
    """)
        == "[2, 4] False"
    )


def test_without_paddle_one_sentence_says_what_to_install(tmp_path):
    """An interpreter that has numpy and nothing else."""
    site = Path(np.__file__).resolve().parents[1]
    for name in ("numpy", "numpy.libs"):
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name, target_is_directory=True)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    # -S: no site-packages, and so no Paddle.
    done = run("import paddle_dense", "-S", **environment)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(r"ImportError: paddle_dense needs PaddlePaddle .*pip install paddlepaddle.*", last)


@pytest.mark.parametrize("name", paddle_dense.__all__)
def test_every_public_name_is_there(name):
    assert getattr(paddle_dense, name) is not None
    assert name in dir(paddle_dense)


def test_every_preset_is_a_public_name():
    for name in paddle_dense.list_models():
        assert getattr(paddle_dense, name).name == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'paddle_dense' has no attribute 'cdnv2_d'"):
        _ = paddle_dense.cdnv2_d
    with pytest.raises(ImportError):
        from paddle_dense import cdnv2_d  # noqa: F401


def test_a_star_brings_the_public_names():
    assert (
        said("""
        from paddle_dense import *
        import paddle_dense
        print([name for name in paddle_dense.__all__ if name not in globals()])
    """)
        == "[]"
    )


@pytest.mark.parametrize(
    "statements",
    [
        "import paddle_dense, paddle_dense.condense",
        "from paddle_dense.condense import condense_lgc; import paddle_dense",
        "import paddle_dense.models; import paddle_dense.condense",
        "import importlib; importlib.import_module('paddle_dense.condense'); import paddle_dense",
    ],
)
def test_condense_stays_the_function(statements):
    out = said(f"""
        {statements}
        from paddle_dense import condense
        from paddle_dense.condense import condense as function
        print(paddle_dense.condense is condense is function, callable(condense))
    """)
    assert out == "True True"


def test_the_version_is_that_of_the_package():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'version="{paddle_dense.__version__}"' in setup
