"""What the project is tested with beside ``make test``: other versions of Paddle and PyTorch, the built package.

nox --list
nox -s paddle26        # one session
nox                    # all of them
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = False

HERE = Path(__file__).parent
QUICK = ("-m", "not slow")
# Run time and the tests' own needs, where the versions of constraints.txt do not apply.
NEEDS = (
    "pytest",
    "hypothesis",
    "safetensors",
    "scikit-learn",
    "matplotlib",
    "jinja2",
    "shtab",
    "ppim",
    "pooch",
    "tqdm",
    "Pillow",
)


def _environment(session: nox.Session) -> None:
    # One thread for each: two OpenMP runtimes in a process spin against each other.
    session.env.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")


@nox.session(python=["3.11", "3.12", "3.10"])
def paddle3(session: nox.Session) -> None:
    """The suite on the newest Paddle and PyTorch, the versions of constraints.txt."""
    _environment(session)
    session.install("-c", "constraints.txt", "-e", ".[cpu,torch,test,deploy,train]")
    session.run("pytest", *QUICK, *session.posargs)


@nox.session(python="3.9")
def paddle26(session: nox.Session) -> None:
    """The suite on Paddle 2.6.2 with NumPy 1; without PyTorch, as its users' notebooks are."""
    _environment(session)
    session.install("paddlepaddle==2.6.2", "numpy==1.26.4", "setuptools", *NEEDS)
    session.install("--no-deps", "-e", ".")
    session.run("pytest", *QUICK, *session.posargs)


@nox.session(python="3.11")
def torch_year_older(session: nox.Session) -> None:
    """What touches PyTorch, on a release one year older."""
    _environment(session)
    session.install("-c", "constraints.txt", "-e", ".[cpu,test]")
    session.install("torch==2.9.1")
    session.run("pytest", *QUICK, "tests/convert", "tests/security", *session.posargs)


@nox.session(python="3.11")
def wheel(session: nox.Session) -> None:
    """Build wheel and sdist, install the wheel into this empty environment, and run the demo outside the checkout."""
    built = Path(session.create_tmp()).resolve()
    shutil.rmtree(built / "dist", ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(built / "dist"), str(HERE))
    (found,) = (built / "dist").glob("*.whl")
    session.install("-c", "constraints.txt", f"paddle_dense[cpu,torch] @ {found.as_uri()}", "scikit-learn")
    session.chdir(built)
    session.run("python", "-m", "convert.demo")
    session.run("torch2paddle", "--help", silent=True)
    session.run("paddle-dense", "list", silent=True)
