"""Weights that PyTorch stores in parts and computes before each use: pruned ones, and those of weight_norm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paddle_dense.errors import WeightsError, listed, shown

# The magnitude and the direction of weight_norm, old and new.
_NORMED = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


def whole_weights(arrays: Mapping[str, np.ndarray], warnings: list[str]) -> dict[str, np.ndarray]:
    """The arrays with each pair of parts as the weight that PyTorch computes of them, and a warning for each kind.

    Raises:
        WeightsError: the parts do not fit together.
    """
    state, pruned, normed = dict(arrays), [], []
    for name in arrays:
        base = name[: -len("_orig")]
        if name.endswith("_orig") and f"{base}_mask" in arrays and base not in arrays:
            original, mask = state.pop(name), state.pop(f"{base}_mask")
            if original.shape != mask.shape:
                raise WeightsError(f"holds {shown(name)} and another mask: call prune.remove and save again")
            state[base] = original * mask.astype(original.dtype)
            pruned.append(shown(base))
        for size, direction in _NORMED:
            base = name[: -len(size)] + "weight"
            other = name[: -len(size)] + direction
            if name.endswith(f".{size}") and other in arrays and base not in arrays:
                state[base] = _normed(state.pop(name), state.pop(other), name)
                normed.append(shown(base))
    if pruned:
        warnings.append(f"multiplied pruned weights by their masks, as torch.nn.utils.prune does: {listed(pruned)}")
    if normed:
        warnings.append(f"computed weights from magnitude and direction, as weight_norm does: {listed(normed)}")
    return state


def _normed(size: np.ndarray, direction: np.ndarray, name: str) -> np.ndarray:
    """A direction scaled to the magnitude in `size`: one number for each index of one axis, or one for all."""
    shape = size.shape or (1,) * direction.ndim
    kept = [axis for axis, n in enumerate(shape) if n != 1]
    if len(shape) != direction.ndim or len(kept) > 1 or any(shape[axis] != direction.shape[axis] for axis in kept):
        raise WeightsError(f"holds {shown(name)} of another shape than its direction: call remove_weight_norm and save")
    exact = direction.astype(np.float64)
    axes = tuple(axis for axis in range(direction.ndim) if axis not in kept)
    norm = np.sqrt((exact**2).sum(axes, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (exact * (size.reshape(shape) / norm)).astype(direction.dtype)
