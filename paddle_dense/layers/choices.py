"""What LGC and SFR learn, as arrays: masks of 0 and 1, and the indices that a condensed layer has in their place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paddle_dense.errors import WeightsError

Arrays = dict[str, np.ndarray]

# An EMA never quite reaches 0 or 1; what is further away than this was still changing when the file was written.
_MASK_TOLERANCE = 0.05
# And it leaves [0, 1] by rounding only, which adds up to some 0.0003 over its 5000 steps of memory.
_MASK_OVERSHOOT = 0.01


def binary_fault(mask: np.ndarray) -> str | None:
    """What is wrong with the values of a mask, as the end of a sentence; None if it is 0/1 or an EMA of such a mask."""
    between = np.minimum(np.abs(mask), np.abs(mask - 1)) <= _MASK_TOLERANCE
    # Written so that a NaN fails as well.
    wrong = mask[~(between & (mask >= -_MASK_OVERSHOOT) & (mask <= 1 + _MASK_OVERSHOOT))]
    if not wrong.size:
        return None
    return (
        f"holds values that are neither near 0 nor near 1 ({wrong.size} of {mask.size}, {wrong[0]:.6g} among them), "
        f"as a file does that was averaged while connections were being dropped"
    )


def binary_mask(mask: np.ndarray, name: str) -> np.ndarray:
    """The 0/1 mask that an averaged one came from, [out, in] as bool.

    Args:
        mask: [out, in, 1, 1], 0/1 or an exponential moving average of such a mask.
        name: the layer, for the message.

    Raises:
        WeightsError: an element is too far from both 0 and 1.
    """
    fault = binary_fault(mask)
    if fault:
        raise WeightsError(f"{name}._mask {fault}: take a later checkpoint, or an undamaged one")
    return mask.reshape(mask.shape[:2]) > 0.5


def kept_by_group(
    layer: Mapping[str, np.ndarray], grouped_axis: int, groups: int, condense_factor: int, name: str
) -> np.ndarray:
    """What each group of a trained layer kept, ascending: int64 [G, candidates / C].

    Args:
        layer: ``conv.weight``, ``_mask`` and ``norm.*``.
        grouped_axis: of the mask, whose rows (0) or columns (1) belong to the groups in turn.
        groups: number of groups G.
        condense_factor: the condensation factor C.
        name: the layer, for messages.

    Raises:
        WeightsError: the mask is not one that G groups leave after C - 1 stages.
    """
    shape = _checked_shape(layer, name)
    for channels, parts, what in (
        (shape[grouped_axis], groups, "groups"),
        (shape[1 - grouped_axis], condense_factor, "condense_factor"),
    ):
        if parts < 1 or channels % parts:
            raise WeightsError(f"{name} has {channels} channels, which {what}={parts} does not divide")
    mask = np.moveaxis(binary_mask(layer["_mask"], name), grouped_axis, 0)
    keep = mask[:groups]
    if not np.all(mask.reshape(-1, *keep.shape) == keep):
        raise WeightsError(
            f"{name}._mask does not belong to {groups} groups: channels of one group keep different connections, so "
            f"give the right number of groups"
        )
    candidates = keep.shape[1]
    expected = candidates // condense_factor
    if not np.all(keep.sum(axis=1) == expected):
        raise WeightsError(
            f"{name} is not condensed yet: {keep.mean():.1%} of its connections are left and 1/{condense_factor} "
            f"({expected} of {candidates} in every group) should be, so train it further, or keep "
            f"the trained form with --keep-trained-form (in Python: condensed=False)"
        )
    return np.nonzero(keep)[1].reshape(groups, expected)


def _checked_shape(layer: Mapping[str, np.ndarray], name: str) -> tuple[int, int]:
    """(outputs, inputs) of a learned layer whose tensors fit together."""
    for key in ("_mask", "conv.weight"):
        if key not in layer:
            raise WeightsError(f"{name}.{key} is missing: take a complete checkpoint")
    shape = np.shape(layer["_mask"])
    if len(shape) != 4 or shape[2:] != (1, 1) or np.shape(layer["conv.weight"]) != shape:
        raise WeightsError(
            f"{name}._mask is {list(shape)} and {name}.conv.weight {list(np.shape(layer['conv.weight']))} where both "
            f"should be [outputs, inputs, 1, 1]: take an undamaged checkpoint"
        )
    for key, value in layer.items():
        if key.startswith("norm.") and np.ndim(value) and np.shape(value) != (shape[1],):
            raise WeightsError(
                f"{name}.{key} is {list(np.shape(value))} for {shape[1]} channels: take an undamaged checkpoint"
            )
    return shape[:2]


class ChosenInputs:
    """What layers share whose buffer ``index`` names the channels of the input that they read."""

    source_channels: int

    def index_fault(self, index: np.ndarray) -> str | None:
        """What is wrong with an `index`, as the end of a sentence; None if it can be used."""
        wrong, last = index[(index < 0) | (index >= self.source_channels)], self.source_channels - 1
        return f"names channel {wrong[0]} of {last + 1}, where 0 to {last} exist" if wrong.size else None


def learned_layers(names: Mapping[str, object]) -> list[str]:
    """Names of the layers in the trained form, read from the names of a state_dict."""
    return [name[: -len("._mask")] for name in names if name.endswith("._mask")]
