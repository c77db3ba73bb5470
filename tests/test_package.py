"""What importing does, and what it must not do, each in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Callable, NamedTuple

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
        "import paddle_dense.errors, paddle_dense.files.weights, paddle_dense.files.sidecar",
        "import convert",
        "import paddle_dense.files.torch_file, paddle_dense.files.layout, convert.torch2paddle",
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
    assert "usage:" in out
    assert out.endswith("status 0\n[]")


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
        assert getattr(paddle_dense, name).args == (name,)


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


def test_the_version_is_that_of_the_package():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'version="{paddle_dense.__version__}"' in setup


# Wheel and sdist


class Built(NamedTuple):
    """What was built of a copy of the checkout."""

    files: set[str]
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """As ``python -m build`` does it, without a network: the sdist from the checkout, the wheel from the sdist."""
    pytest.importorskip("setuptools", minversion="70.1", reason="builds the package: pip install 'setuptools>=70.1'")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        known = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git says which files belong to the project: run in a clone, with git installed")
    files = {name for name in known if (ROOT / name).is_file()}
    folder = tmp_path_factory.mktemp("built")
    for name in files:
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "checkout" / name)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"

    def make(what: str, source: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-c", build, what, str(folder)]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    make("build_sdist", folder / "checkout")
    [packed] = folder.glob("*.tar.gz")
    shutil.unpack_archive(packed, folder)
    sdist = folder / packed.name[: -len(".tar.gz")]
    make("build_wheel", sdist)
    [wheel] = folder.glob("*.whl")
    return Built(files, sdist, wheel)


def test_the_sdist_has_every_file(built):
    """All that the tests, the documents and the notebooks need."""
    packed = {path.relative_to(built.sdist).as_posix() for path in built.sdist.rglob("*") if path.is_file()}
    assert built.files - packed == {".gitignore"}


def test_the_wheel_has_both_packages_whole_and_nothing_else(built):
    ours = {name for name in built.files if name.startswith(("paddle_dense/", "convert/"))}
    weights = {name for name in built.files if name.startswith("weights/") and not name.endswith(".md")}
    with zipfile.ZipFile(built.wheel) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {"paddle_dense/py.typed", "convert/py.typed", "convert/report/page.html.j2"} <= packed
    assert packed == ours | {f"paddle_dense/shipped/{Path(name).name}" for name in weights}


def test_every_requirement_is_pinned(built):
    """Whatever an extra names: what is tested with is the same tomorrow."""
    with zipfile.ZipFile(built.wheel) as wheel:
        [metadata] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA")]
    required = set(re.findall(r"^Requires-Dist: ([\w.-]+)", metadata, re.MULTILINE))
    pinned = set(re.findall(r"^([\w.-]+)==", (built.sdist / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    assert required
    assert {name.lower() for name in required} <= {name.lower() for name in pinned}


@pytest.fixture
def installed(built, tmp_path) -> Callable[..., str]:
    """``installed("-m", "convert.demo")``: what Python says in an empty folder, the wheel unpacked next to it."""
    shutil.unpack_archive(built.wheel, tmp_path / "site", "zip")
    (tmp_path / "empty").mkdir()

    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-W", "ignore", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return python


def test_the_wheel_works_outside_the_checkout(installed):
    """Whatever reads a file of its own, and the console scripts' functions."""
    assert "cdnv2_a" in installed("-m", "paddle_dense", "list")
    said = installed(
        "-c",
        "from importlib.metadata import distribution\n"
        "import paddle_dense\n"
        "from paddle_dense.pretrained import manifest, shipped_folder\n"
        "print(paddle_dense.__file__)\n"
        "print(len(manifest()), paddle_dense.load_model(shipped_folder() / 'cdnv2_digits.pdparams').num_classes)\n"
        "print(sorted(script.name for script in distribution('paddle_dense').entry_points if script.load()))\n",
    )
    place, numbers, scripts = said.splitlines()
    assert Path(place).parts[-3:] == ("site", "paddle_dense", "__init__.py")
    assert re.fullmatch(r"[1-9]\d* 10", numbers)
    assert scripts == "['paddle-dense', 'paddle2torch', 'torch2paddle']"


@pytest.mark.slow
def test_the_demo_runs_outside_the_checkout(installed):
    pytest.importorskip("torch", reason="the demo compares with PyTorch: pip install torch")
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install scikit-learn")
    assert "same answer on 100.0%" in installed("-m", "convert.demo")
