"""What the project is tested with besides ``make test``: other versions of Paddle and PyTorch, the built package.

nox --list
nox -s paddle26                          # one session
nox -s paddle26 -- tests/test_weights.py  # with arguments for pytest
nox                                      # all of them
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

HERE = Path(__file__).parent
QUICK = ("-m", "not slow")
# The versions of constraints.txt, which need Python 3.11; elsewhere pip chooses.
PINNED = ("-c", "constraints.txt")


def _environment(session: nox.Session) -> None:
    # One thread for each: two OpenMP runtimes in a process spin against each other.
    session.env.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")


@nox.session(python=["3.11", "3.12"])
def paddle3(session: nox.Session) -> None:
    """The suite on the newest Paddle and PyTorch."""
    _environment(session)
    session.install(*PINNED, "-e", ".[cpu,torch,test,deploy,train]")
    # The libraries that the tests compare with; their dependencies would bring a second PyTorch.
    session.install(*PINNED, "--no-deps", "torchvision", "timm", "pytorchcv")
    session.install(*PINNED, "huggingface_hub", "pyyaml", "requests")
    session.run("pytest", *QUICK, *session.posargs)


@nox.session(python="3.9")
def paddle26(session: nox.Session) -> None:
    """The suite on Paddle 2.6.2 with NumPy 1; without PyTorch, as its users' notebooks are."""
    _environment(session)
    session.install("-e", ".[cpu,test,train]", "paddlepaddle==2.6.2", "numpy==1.26.4", "setuptools")
    session.run("pytest", *QUICK, *session.posargs)


@nox.session(python="3.11")
def torch_year_older(session: nox.Session) -> None:
    """What touches PyTorch, on the release of a year before the one in constraints.txt."""
    _environment(session)
    session.install(*PINNED, "-e", ".[cpu,test]")
    session.install("torch==2.7.1")
    session.run("pytest", *QUICK, "tests/convert", "tests/security", *session.posargs)


@nox.session(python="3.11")
def notebooks(session: nox.Session) -> None:
    """Every notebook from top to bottom."""
    _environment(session)
    session.install(*PINNED, "-e", ".[cpu,torch,test,train]")
    session.run("pytest", "tests/test_notebooks.py", *session.posargs)


@nox.session(python="3.11")
def docs(session: nox.Session) -> None:
    """The site, its figures again, and what is promised of it."""
    _environment(session)
    session.install(*PINNED, "-e", ".[cpu,test,docs]")
    session.run("pytest", "tests/test_docs.py", *session.posargs)


@nox.session(python="3.11")
def adapters(session: nox.Session) -> None:
    """The adapters with the real PaddleClas, PaddleDetection and PaddleSeg."""
    _environment(session)
    session.install(*PINNED, "-e", ".[cpu,test,train]")
    # Without their dependencies, which ask for a NumPy older than Python 3.11; what they import follows.
    session.install("--no-deps", "paddleclas==2.6.0", "paddledet==2.6.0", "paddleseg==2.8.0")
    session.install(
        *PINNED,
        "easydict",
        "faiss-cpu",
        "filelock",
        "opencv-python-headless",
        "pandas",
        "prettytable",
        "pycocotools",
        "pyyaml",
        "setuptools<81",
    )
    session.run("python", "-c", "import paddleclas.ppcls.arch, ppdet.modeling, paddleseg.models")
    session.run("pytest", "tests/adapters", *session.posargs)


@nox.session(python="3.11")
def app(session: nox.Session) -> None:
    """The page with the real Gradio, opened in Chromium, which has to be installed with its driver."""
    _environment(session)
    # Gradio 6 takes no Pillow 13, which constraints.txt has for everything else.
    pins = (HERE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(pin for pin in pins if not pin.startswith("pillow==")), encoding="utf-8")
    session.install("-c", str(constraints), "-e", ".[cpu,torch,test,app]", "selenium")
    session.run("pytest", "tests/test_app.py", *session.posargs)


@nox.session(python="3.11")
def wheel(session: nox.Session) -> None:
    """Build wheel and sdist, install the wheel into this empty environment, and use it outside the checkout."""
    _environment(session)
    built = Path(session.create_tmp()).resolve()
    shutil.rmtree(built / "dist", ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(built / "dist"), str(HERE))
    (found,) = (built / "dist").glob("*.whl")
    session.install(*PINNED, f"paddle_dense[cpu,torch] @ {found.as_uri()}", "scikit-learn")
    session.chdir(built)
    session.run("python", "-m", "convert.demo")
    for command in ("torch2paddle", "paddle2torch", "paddle-dense"):
        session.run(command, "--help", silent=True)
    session.run("paddle-dense", "list", silent=True)
    session.run("python", "-m", "paddle_dense.deploy", "--help", silent=True)
