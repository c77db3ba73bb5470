"""The packages that the adapters are for: the real ones where they are installed, else their interface alone.

A stand-in has the names that an adapter imports and does nothing with what it is given but keep it. Whatever a package
decides itself, how it looks a backbone up and builds it, is tested with the real one, in tests that skip without it.
"""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest

NEEDS = {
    "paddleclas": "pip install --no-deps paddleclas opencv-python-headless prettytable wcwidth faiss-cpu pyyaml",
    "paddledet": "pip install --no-deps paddledet opencv-python-headless pycocotools pandas six pyyaml 'setuptools<81'",
    "paddleseg": "pip install --no-deps paddleseg opencv-python-headless visualdl pandas filelock pyyaml",
}
IMPORTS = {"paddleclas": "paddleclas.ppcls.arch", "paddledet": "ppdet.modeling", "paddleseg": "paddleseg.models"}
STAND_INS = {
    "paddleclas": {
        "ppcls/__init__.py": "",
        "ppcls/arch/__init__.py": "from . import backbone",
        "ppcls/arch/backbone/__init__.py": "",
    },
    "paddledet": {
        "ppdet/__init__.py": "",
        "ppdet/core/__init__.py": "",
        "ppdet/core/workspace.py": """
            registered = []

            def register(cls):
                registered.append(cls)
                return cls

            serializable = register
            """,
        "ppdet/modeling/__init__.py": "",
        "ppdet/modeling/shape_spec.py": """
            from collections import namedtuple

            ShapeSpec = namedtuple("ShapeSpec", ["channels", "stride"])
            """,
    },
    "paddleseg": {
        "paddleseg/__init__.py": "",
        "paddleseg/cvlibs/__init__.py": "from . import manager",
        "paddleseg/cvlibs/manager.py": """
            class Components(dict):
                def add_component(self, components):
                    self.update({component.__name__: component for component in components})

            BACKBONES = Components()
            """,
    },
}


@cache
def fault(name: str) -> str | None:
    """Why the real package does not import, or None if it does; asked before there is any stand-in."""
    try:
        importlib.import_module(IMPORTS[name])
    except ImportError as error:
        return str(error)
    return None


def _adapter(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An adapter, registered with the real package or with its stand-in."""
    if fault(name):
        for path, text in STAND_INS[name].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(textwrap.dedent(text))
        roots = {path.partition("/")[0] for path in STAND_INS[name]}
        own = f"paddle_dense.adapters.{name}"

        def forget() -> None:
            for module in [m for m in sys.modules if m.partition(".")[0] in roots or m == own]:
                del sys.modules[module]

        forget()
        monkeypatch.syspath_prepend(folder)
        yield importlib.import_module(own)
        forget()
    else:
        yield importlib.import_module(f"paddle_dense.adapters.{name}")


@pytest.fixture
def paddleclas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from _adapter("paddleclas", tmp_path, monkeypatch)


@pytest.fixture
def paddledet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from _adapter("paddledet", tmp_path, monkeypatch)


@pytest.fixture
def paddleseg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from _adapter("paddleseg", tmp_path, monkeypatch)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``example(adapter)``: the first configuration in its docstring, in a folder that holds its weights.

    ``example(adapter, place)`` is one of the further ones.
    """
    import paddle_dense as pd_

    def parsed(adapter: ModuleType, place: int = 0) -> dict[str, Any]:
        yaml = pytest.importorskip("yaml", reason="reads the example: pip install pyyaml")
        monkeypatch.chdir(tmp_path)
        pd_.save_weights(pd_.cdnv2_a(), "cdnv2_a.pdparams")
        blocks = re.findall(r"::\n\n((?: {4}.*\n|\n)+)", adapter.__doc__)
        return yaml.safe_load(blocks[place])

    return parsed


@pytest.fixture
def real() -> Callable[[str], None]:
    """``real("paddleseg")``: go on only with the real package."""

    def check(name: str) -> None:
        if fault(name):
            pytest.skip(f"runs with the real package, which does not import ({fault(name)}): {NEEDS[name]}")

    return check
