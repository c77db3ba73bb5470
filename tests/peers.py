"""Other libraries' networks, to compare with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_TOOLS = Path(__file__).resolve().parents[2] / "shared" / "tools"


def tool(name: str) -> ModuleType:
    """Import one of the helpers next to the large oracles.

    `torchvision_on_cpu_torch` declares torchvision's compiled operators, without which its usual build does not import
    next to a CPU build of PyTorch; `oracle_weights` rebuilds the weights of the full-size oracles from their names.
    """
    sys.path.append(str(_TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(_TOOLS))


def peer(name: str) -> ModuleType:
    """Import a module of torchvision, timm or pytorchcv, or skip the test that asked for it."""
    for package in ("torch", "torchvision", name.partition(".")[0]):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"compares with {name}: pip install --no-deps {package}")
    if _TOOLS.is_dir():
        tool("torchvision_on_cpu_torch")
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        pytest.skip(f"compares with {name}, which needs a torchvision built for this PyTorch ({error})")
    return importlib.import_module(name)
