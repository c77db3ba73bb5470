"""Weights that PyTorch stores in parts and computes before each use: pruned ones, and those of weight_norm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paddle_dense.errors import WeightsError, listed, naming, shown


def magnitude_and_direction(name: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """What weight_norm calls the parts of a weight, the old one and that of torch.nn.utils.parametrizations."""
    new = _parametrised(name)
    return (f"{name}_g", f"{name}_v"), (f"{new}.original0", f"{new}.original1")


def spectral_parts(name: str) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    """The same for spectral_norm: the weight before it is divided, its left and its right singular vector."""
    new = _parametrised(name)
    return (f"{name}_orig", f"{name}_u", f"{name}_v"), (f"{new}.original", f"{new}.0._u", f"{new}.0._v")


def _parametrised(name: str) -> str:
    owner, dot, leaf = name.rpartition(".")
    return f"{owner}{dot}parametrizations.{leaf}"


def whole_weights(
    arrays: Mapping[str, np.ndarray], warnings: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """The arrays with each pair of parts as the weight that PyTorch computes of them, and a warning for each kind.

    Returns:
        The arrays; and of each weight of weight_norm the parts, for a network that has them as well.

    Raises:
        WeightsError: the parts do not fit together.
    """
    state, pruned = dict(arrays), []
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name in arrays:
        base = name[: -len("_orig")]
        if name.endswith("_orig") and f"{base}_mask" in arrays and base not in arrays:
            original, mask = state.pop(name), state.pop(f"{base}_mask")
            if original.shape != mask.shape:
                raise WeightsError(f"holds {shown(name)} and another mask: call prune.remove and save again")
            state[base] = original * mask.astype(original.dtype)
            pruned.append(shown(base))
        for size, direction in magnitude_and_direction("weight"):
            base = name[: -len(size)] + "weight"
            other = name[: -len(size)] + direction
            if name.endswith(f".{size}") and other in arrays and base not in arrays:
                parts[base] = {name: state.pop(name), other: state.pop(other)}
                with naming(f"holds {shown(name)}", colon=""):
                    state[base] = normed(*parts[base].values())
    if pruned:
        warnings.append(f"multiplied pruned weights by their masks, as torch.nn.utils.prune does: {listed(pruned)}")
    if parts:
        found = listed(map(shown, parts))
        warnings.append(f"took weights from their magnitude and direction, as weight_norm does: {found}")
    return state, parts


def normed(size: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """A direction scaled to the magnitude in `size`: one number for each index of one axis, or one for all.

    Raises:
        WeightsError: the two do not fit together; its sentence goes on after the first one's name.
    """
    shape = size.shape or (1,) * direction.ndim
    kept = [axis for axis, n in enumerate(shape) if n != 1]
    if len(shape) != direction.ndim or len(kept) > 1 or any(shape[axis] != direction.shape[axis] for axis in kept):
        raise WeightsError("of another shape than its direction: call remove_weight_norm and save")
    exact = direction.astype(np.float64)
    axes = tuple(axis for axis in range(direction.ndim) if axis not in kept)
    norm = np.sqrt((exact**2).sum(axes, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (exact * (size.reshape(shape) / norm)).astype(direction.dtype)
