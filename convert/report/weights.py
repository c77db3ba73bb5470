"""How the numbers of a network are distributed, as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paddle_dense.files.layout import is_linear

BINS = 48
# In the order of the page; the names are Paddle's.
_KINDS = {
    "conv": "convolutions",
    "linear": "linear layers",
    "bias": "biases",
    "bn_weight": "BN weight",
    "bn_bias": "BN bias",
    "bn_mean": "BN mean",
    "bn_variance": "BN variance",
}


@dataclass(frozen=True)
class TensorSummary:
    """One tensor of the Paddle state_dict.

    Attributes:
        name, shape, dtype: as written.
        min, max, mean, std: of its finite numbers; None where there are none.
        nonfinite: how many are NaN or infinite.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    nonfinite: int


@dataclass(frozen=True)
class Histogram:
    """How the finite numbers of all tensors of one kind are distributed.

    Attributes:
        kind: of tensors, such as "convolutions".
        counts: numbers in each of equally wide bins from `min` to `max`.
        min, max, mean, std: of the numbers.
        nonfinite: how many are NaN or infinite.
    """

    kind: str
    counts: tuple[int, ...]
    min: float
    max: float
    mean: float
    std: float
    nonfinite: int


@dataclass(frozen=True)
class Weights:
    """The written tensors: a histogram for each kind, and a line for each tensor."""

    histograms: tuple[Histogram, ...]
    tensors: tuple[TensorSummary, ...]


def summarise(state: Mapping[str, np.ndarray]) -> Weights:
    """How the numbers of a Paddle state_dict are distributed."""
    by_kind: dict[str, list[np.ndarray]] = {}
    for name, value in state.items():
        kind = _kind(name, value, state)
        if kind:
            by_kind.setdefault(kind, []).append(value.reshape(-1))
    histograms = [_histogram(title, np.concatenate(by_kind[kind])) for kind, title in _KINDS.items() if kind in by_kind]
    return Weights(
        tuple(histogram for histogram in histograms if histogram),
        tuple(_summary(name, value) for name, value in state.items()),
    )


def _kind(name: str, value: np.ndarray, state: Mapping[str, np.ndarray]) -> str | None:
    owner, _, leaf = name.rpartition(".")
    if leaf in ("_mean", "_variance"):
        return f"bn{leaf}"
    if leaf not in ("weight", "bias"):
        return None
    if f"{owner}._mean" in state:
        return f"bn_{leaf}"
    return "bias" if leaf == "bias" else "linear" if is_linear(name, value) else "conv"


def _histogram(kind: str, values: np.ndarray) -> Histogram | None:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    counts, _ = np.histogram(finite, BINS)
    return Histogram(kind, tuple(map(int, counts)), *_moments(finite), nonfinite=values.size - finite.size)


def _moments(values: np.ndarray) -> tuple[float, float, float, float]:
    """Smallest, largest, mean and standard deviation, computed in float64."""
    exact = values.astype(np.float64)
    return float(exact.min()), float(exact.max()), float(exact.mean()), float(exact.std())


def _summary(name: str, value: np.ndarray) -> TensorSummary:
    finite = value[np.isfinite(value)]
    low, high, mean, std = _moments(finite) if finite.size else (None, None, None, None)
    return TensorSummary(name, value.shape, str(value.dtype), low, high, mean, std, value.size - finite.size)
