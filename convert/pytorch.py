"""Whether PyTorch is there to compare with."""

from __future__ import annotations

from importlib import util

from paddle_dense.errors import is_of_memory
from paddle_dense.process import importing


def pytorch_fault() -> str | None:
    """Why PyTorch cannot be used, and what to do, as the end of a sentence about it; None where it can be imported."""
    if util.find_spec("torch") is None:
        return "is not installed: pip install torch"
    try:
        with importing():
            import torch  # noqa: F401
    except Exception as error:  # a wrong build may raise anything
        if is_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or "nothing said why"
        return f"is installed but cannot be imported ({type(error).__name__}: {reason}): install it again"
    return None
