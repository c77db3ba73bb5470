"""The versions of what a conversion's figures depend on."""

from __future__ import annotations

from importlib import metadata

from paddle_dense import __version__


def versions() -> dict[str, str]:
    """Of this package and of whatever is installed of Paddle, PyTorch and numpy."""
    packages = ("paddlepaddle", "paddlepaddle-gpu", "torch", "numpy")
    found = {"paddle_dense": __version__, **{name: _version(name) for name in packages}}
    return {name: version for name, version in found.items() if version}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
