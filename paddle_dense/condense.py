"""From the trained form to the condensed form, exactly.

The trained form multiplies a dense weight by a 0/1 mask; the condensed form holds only what the mask left, as a grouped
convolution and an index. `condense_lgc` and `condense_sfr` rewrite the arrays of one layer; `condense_state` does so
for a state_dict and `condense` for a model. The formulas are those of the original's converter, without its loops:

* LGC, group g, its p-th kept input j:  ``index[g * in/C + p] = j``,  ``w'[g * out/G + k, p] = w[k * G + g, j]``, and
  the statistics of channel j move to ``g * in/C + p``.
* SFR, group g, its p-th kept output i:  ``index[g * out/C + p, i] = 1``,  ``w'[g * out/C + p, m] = w[i, m * G + g]``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable

import numpy as np

from paddle_dense.errors import WeightsError

if TYPE_CHECKING:
    from paddle import nn

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


def _choices(keep: np.ndarray, condense_factor: int, name: str) -> np.ndarray:
    """What each group kept, ascending: [G, candidates] bool -> [G, candidates / C] int64."""
    groups, candidates = keep.shape
    expected = candidates // condense_factor
    if not np.all(keep.sum(axis=1) == expected):
        raise WeightsError(
            f"{name} is not condensed yet: {keep.mean():.1%} of its connections are left and 1/{condense_factor} "
            f"({expected} of {candidates} in every group) should be, so train it further or keep the trained form"
        )
    return np.nonzero(keep)[1].reshape(groups, expected)


def _check_groups(agree: bool, groups: int, name: str) -> None:
    if not agree:
        raise WeightsError(
            f"{name}._mask does not belong to {groups} groups: channels of one group keep different connections, so "
            f"give the right number of groups"
        )


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


def _check_divides(channels: int, parts: int, what: str, name: str) -> None:
    if parts < 1 or channels % parts:
        raise WeightsError(f"{name} has {channels} channels, which {what}={parts} does not divide")


def condense_lgc(layer: Mapping[str, np.ndarray], groups: int, condense_factor: int, name: str = "LGC") -> Arrays:
    """Arrays of a CondenseLGC that equals a trained LGC.

    Args:
        layer: ``conv.weight``, ``_mask`` and ``norm.*`` of the trained layer.
        groups: number of groups G.
        condense_factor: the condensation factor C.
        name: the layer, for messages.

    Raises:
        WeightsError: the mask is not one that G groups leave after C - 1 stages.
    """
    outputs, inputs = _checked_shape(layer, name)
    _check_divides(outputs, groups, "groups", name)
    _check_divides(inputs, condense_factor, "condense_factor", name)
    mask = binary_mask(layer["_mask"], name)
    keep = mask[:groups]
    _check_groups(bool(np.all(mask.reshape(-1, groups, inputs) == keep)), groups, name)
    choices = _choices(keep, condense_factor, name)
    weight = layer["conv.weight"].reshape(-1, groups, inputs).transpose(1, 0, 2)
    weight = np.take_along_axis(weight, choices[:, None, :], axis=2)
    condensed = {"index": choices.reshape(-1), "conv.weight": weight.reshape(outputs, -1, 1, 1)}
    for key in layer:
        if key.startswith("norm."):
            # num_batches_tracked is one number for all channels.
            condensed[key] = layer[key][condensed["index"]] if layer[key].ndim else layer[key]
    return condensed


def condense_sfr(layer: Mapping[str, np.ndarray], groups: int, condense_factor: int, name: str = "SFR") -> Arrays:
    """Arrays of a CondenseSFR that equals a trained SFR.

    Arguments and errors as `condense_lgc`.
    """
    outputs, inputs = _checked_shape(layer, name)
    _check_divides(inputs, groups, "groups", name)
    _check_divides(outputs, condense_factor, "condense_factor", name)
    mask = binary_mask(layer["_mask"], name)
    keep = mask[:, :groups]
    _check_groups(bool(np.all(mask.reshape(outputs, -1, groups) == keep[:, None, :])), groups, name)
    choices = _choices(keep.T, condense_factor, name)
    weight = layer["conv.weight"].reshape(outputs, -1, groups).transpose(2, 0, 1)
    weight = np.take_along_axis(weight, choices[:, :, None], axis=1)
    index = np.zeros((choices.size, outputs), np.float32)
    index[np.arange(choices.size), choices.reshape(-1)] = 1
    condensed = {"index": index, "conv.weight": weight.reshape(choices.size, -1, 1, 1)}
    condensed.update({key: layer[key] for key in layer if key.startswith("norm.")})
    return condensed


def condense_linear(layer: Mapping[str, np.ndarray], drop_rate: float = 0.5) -> Arrays:
    """Arrays of a CondenseLinear with the most important inputs of a linear layer; its outputs are not the same.

    Args:
        layer: ``weight`` [in, out] and ``bias`` [out], as Paddle lays them out.
        drop_rate: share of the inputs to keep: those with the largest L1 weight, least important first.
    """
    importance = np.abs(layer["weight"]).sum(axis=1)
    kept = int(len(importance) * drop_rate)
    index = importance.argsort(kind="stable")[len(importance) - kept :]
    return {"index": index, "linear.weight": layer["weight"][index], "linear.bias": layer["bias"]}


def learned_layers(names: Mapping[str, object]) -> list[str]:
    """Names of the layers in the trained form, read from the names of a state_dict."""
    return [name[: -len("._mask")] for name in names if name.endswith("._mask")]


def condense_state(
    state: Mapping[str, np.ndarray], rule: Callable[[str], tuple[Callable[..., Arrays], int, int]]
) -> Arrays:
    """Condense every learned layer of a state_dict; other entries are passed on as they are.

    Args:
        state: a state_dict in the trained form.
        rule: from a layer's name to (`condense_lgc` or `condense_sfr`, groups, condensation factor).

    Raises:
        WeightsError: a layer is not condensed far enough, or its mask does not fit.
    """
    layers: dict[str, Arrays] = {name: {} for name in learned_layers(state)}
    condensed: Arrays = {}
    for key, value in state.items():
        owner = next((key[:end] for end in _dots(key) if key[:end] in layers), None)
        if owner is None:
            condensed[key] = value
        else:
            layers[owner][key[len(owner) + 1 :]] = value
    for name, layer in layers.items():
        condense_layer, groups, condense_factor = rule(name)
        arrays = condense_layer(layer, groups, condense_factor, name)
        condensed.update({f"{name}.{key}": value for key, value in arrays.items()})
    return condensed


def _dots(key: str) -> list[int]:
    return [position for position, character in enumerate(key) if character == "."]


def condense(model: nn.Layer) -> nn.Layer:
    """A copy of a trained model in which every LGC and SFR is a CondenseLGC or CondenseSFR; outputs are the same.

    Args:
        model: any Paddle network with `LGC` or `SFR` layers; it stays as it is.

    Raises:
        WeightsError: a layer is not condensed yet; its name and density are given.
        ValueError: the model holds no learned layer.
    """
    condensed = _replaced(copy.deepcopy(model), "", {})
    if condensed is None:
        raise ValueError(f"this {type(model).__name__} has no LGC or SFR layer: it is condensed already")
    if hasattr(condensed, "config"):
        # The classifier of a CondenseNet stays whole: halving it would change the outputs.
        now = {"condensed": True, "condense_classifier": False}
        condensed.config = {key: now.get(key, value) for key, value in condensed.config.items()}
    return condensed


def _replaced(layer: nn.Layer, name: str, done: dict[int, nn.Layer | None]) -> nn.Layer | None:
    """The layer with all learned layers in it condensed, or None if it has none; `done` keeps shared layers shared."""
    from paddle_dense.layers.learned_group import LearnedConnections

    if id(layer) in done:
        return done[id(layer)]
    if isinstance(layer, LearnedConnections):
        done[id(layer)] = _condensed_layer(layer, name or type(layer).__name__)
        return done[id(layer)]
    found = None
    # Not `named_children`, which names a layer that stands in two places only once.
    for child_name, child in list(layer._sub_layers.items()):
        new = None if child is None else _replaced(child, f"{name}.{child_name}".lstrip("."), done)
        if new is not None:
            setattr(layer, child_name, new)
            found = layer
    done[id(layer)] = found
    return found


def _condensed_layer(layer: nn.Layer, name: str) -> nn.Layer:
    from paddle_dense.layers import LGC, CondenseLGC, CondenseSFR

    arrays = {key: value.numpy() for key, value in layer.state_dict().items()}
    if isinstance(layer, LGC):
        arrays = condense_lgc(arrays, layer.groups, layer.condense_factor, name)
        inputs = arrays["index"].size
        new: nn.Layer = CondenseLGC(
            inputs,
            layer.out_channels,
            groups=layer.groups,
            activation=layer.activation_name,
            source_channels=layer.in_channels,
        )
    else:
        arrays = condense_sfr(arrays, layer.groups, layer.condense_factor, name)
        rows = len(arrays["index"])
        new = CondenseSFR(
            layer.in_channels,
            layer.out_channels,
            groups=layer.groups,
            activation=layer.activation_name,
            rows=rows,
        )
    new.set_state_dict(arrays)  # type: ignore[arg-type]  # it takes arrays as well
    new.train() if layer.training else new.eval()
    return new
