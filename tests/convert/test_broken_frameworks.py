"""A framework that is installed and cannot be imported: CUDA libraries are missing, or it is another system's build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ERRORS = {
    "a library": "raise OSError('libcudart.so.12: cannot open shared object file: No such file or directory')",
    "a symbol": "raise ImportError('undefined symbol: iJIT_NotifyEvent')",
    "another build": "raise AttributeError('module numpy has no attribute core')",
}


def command(folder: Path, package: str, raising: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a command where `package` is one that raises this when it is imported."""
    broken = folder / "first" / package
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(f"{raising}\n")
    path = os.pathsep.join(map(str, [broken.parent, ROOT, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
    )


@pytest.mark.parametrize("raising", ERRORS.values(), ids=ERRORS)
def test_a_broken_pytorch_counts_as_none(data, tmp_path, raising):
    file, config = data / "cdnv2_tiny_converted.pth", "HS_start_block=1,init_stride=1"
    options = ["-o", tmp_path / "a.pdparams", "--config", config]
    done = command(tmp_path, "torch", raising, "convert.torch2paddle", file, *options)
    assert done.returncode == 0 and (tmp_path / "a.pdparams").exists()
    assert "not checked against PyTorch" in done.stdout and "Traceback" not in done.stderr
    reason = raising.partition("'")[2].rstrip("')")
    [said] = [line for line in done.stderr.splitlines() if "cannot be imported" in line]
    assert reason in said and said.endswith("so the result was not checked against it: install it again")


def test_the_comparison_needs_a_pytorch_that_works(data, tmp_path):
    done = command(tmp_path, "torch", ERRORS["a library"], "convert.parity", data / "cdnv2_tiny_converted.pth")
    assert done.returncode == 1
    assert done.stderr.startswith("error: this command compares with PyTorch, which is installed but cannot be")
    assert done.stderr.count("\n") == 1 and "libcudart.so.12" in done.stderr


@pytest.mark.parametrize("raising", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("module", ["convert.torch2paddle", "paddle_dense info"])
def test_a_broken_paddle_is_one_sentence(data, tmp_path, module, raising):
    done = command(tmp_path, "paddle", raising, *module.split(), data / "cdnv2_tiny_converted.pth")
    assert done.returncode == 1
    assert done.stderr.startswith("error: PaddlePaddle is installed but cannot be imported (")
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("): install it again\n")
