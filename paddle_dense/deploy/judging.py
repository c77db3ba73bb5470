"""Whether a rewritten or exported network answers as the one that it comes from, judged in float64 if need be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import numpy as np

from paddle_dense.evaluation import difference

Answers = Sequence[Sequence[np.ndarray]]  # of each batch, each output

TOLERANCE = 1e-5
# Kernels round in other orders; a mistake that float32 alone makes is off by far more than any order.
_TIMES_THE_ROUNDING = 10


def judge(
    found: Answers, expected: Answers, exactly: Callable[[], tuple[Answers, Answers]]
) -> tuple[float, str | None]:
    """How far answers are from a network's, and a warning where float32 cannot decide and float64 does.

    Some networks amplify rounding beyond `TOLERANCE`. Answers of such a network are right if, in float64, what gives
    them and the network agree, and in float32 they are about as far from these as the network's own are.

    Args:
        found: the answers to judge, each compared with `expected`.
        expected: what the network answers.
        exactly: computes both once more in float64; called only where they differ in float32.

    Returns:
        The largest difference, relative to the outputs' scale: in float64 if there is a warning, in float32 otherwise.
    """
    worst = _largest(found, expected)
    if worst <= TOLERANCE or not np.isfinite(worst):
        return worst, None
    exact, truth = exactly()
    agreed, allowed = _largest(exact, truth), _TIMES_THE_ROUNDING * _largest(expected, truth)
    if not (agreed <= TOLERANCE and _largest(found, truth) <= allowed):
        return worst, None
    return agreed, (
        f"this network amplifies rounding: in float32 the outputs differ by {worst:.1e} of their scale, no more than "
        f"its own do from those in float64, where they agree to {agreed:.1e}"
    )


def _largest(found: Answers, expected: Answers) -> float:
    return float(np.max([difference(*pair) for pair in zip(found, expected)]))
