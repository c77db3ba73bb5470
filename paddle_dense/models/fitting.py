"""A file's tensors in a network: whether they fit, whether they are numbers that a network has, and how they get in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import paddle
from paddle import Tensor, nn

from paddle_dense.errors import WeightsError, shown
from paddle_dense.evaluation import name_of
from paddle_dense.files.names import STATISTICS

_IN_PYTORCH = {ours: theirs for theirs, ours in STATISTICS.items()}
_OR_ALLOW = "take another checkpoint, or accept it with --allow-nonfinite (in Python: allow_nonfinite=True)"


def set_state(model: nn.Layer, state: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into a model's tensors of the same names, whatever device and dtype these have."""
    tensors = model.state_dict()
    for name, value in state.items():
        tensor = tensors[name]
        tensor.set_value(paddle.to_tensor(np.asarray(value, order="C"), place=tensor.place).astype(tensor.dtype))


def check_state(
    state: Mapping[str, np.ndarray],
    model: nn.Layer,
    fresh: Collection[str] = (),
    allow_nonfinite: bool = False,
    names: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """The tensors of a file in the model's order, once every one of them is there and fits; EMA masks rounded.

    Args:
        state: the file's tensors.
        model: the network, or its outline.
        fresh: names that may be missing, because the model keeps its own.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.
        names: what the file calls the tensors, for messages.

    Raises:
        WeightsError: a tensor is missing, superfluous, misshapen, of another kind of number, or holds numbers that no
            network has: an index of channels that do not exist, a mask of other values than 0 and 1, NaN, ...
    """
    expected = model.state_dict()
    network = name_of(model)
    for name in expected:
        if name not in state and name not in fresh:
            raise WeightsError(
                f"{quoted(name)} of {network} is missing: complete the file, or build the network with "
                f"the file's own numbers"
            )
    names = names or {}
    for name, value in state.items():
        if name not in expected:
            raise WeightsError(
                f"{quoted(names.get(name, name))} {list(value.shape)} has no place in {network}: build the network "
                f"with the file's own numbers, or leave the tensor out with --drop (in Python: drop=[...]) if the "
                f"original network computes nothing with it"
            )
    checked = {
        name: _fitting(names.get(name, name), state[name], tensor, network)
        for name, tensor in expected.items()
        if name in state
    }
    return _checked_numbers(checked, model, allow_nonfinite)


def fitting_tensors(
    state: Mapping[str, np.ndarray], model: nn.Layer, allow_nonfinite: bool = False
) -> dict[str, np.ndarray]:
    """Those of a file's tensors that have a place of their shape in the model, otherwise as `check_state`."""
    expected, network = model.state_dict(), name_of(model)
    loaded = {
        name: _fitting(name, value, expected[name], network)
        for name, value in state.items()
        if name in expected and value.shape == tuple(expected[name].shape)
    }
    return _checked_numbers(loaded, model, allow_nonfinite)


def quoted(name: str) -> str:
    """A tensor's name as a message gives it; BN statistics have another one in PyTorch's files."""
    theirs = _IN_PYTORCH.get(name.rpartition(".")[2])
    return f"tensor {shown(name)}" + (f" ({theirs} in PyTorch)" if theirs else "")


def _fitting(name: str, value: np.ndarray, tensor: Tensor, network: str) -> np.ndarray:
    if value.shape != tuple(tensor.shape):
        raise WeightsError(
            f"{quoted(name)} is {list(value.shape)} and {network} needs {list(tensor.shape)}: build the "
            f"network with the file's own numbers, or see 'Add a model' in the documentation if none make it"
        )
    integer = "int" in str(tensor.dtype)
    if (value.dtype.kind == "f") == integer or value.dtype.kind not in "fiu":
        raise WeightsError(
            f"{quoted(name)} holds {value.dtype} and {network} needs {'integers' if integer else 'floats'}: save it "
            f"as {'int64' if integer else 'float32'}"
        )
    with np.errstate(over="ignore"):  # an infinity is reported as one
        return value.astype(np.int64 if integer else np.float32, copy=False)


def _checked_numbers(state: Mapping[str, np.ndarray], model: nn.Layer, allow_nonfinite: bool) -> dict[str, np.ndarray]:
    """The tensors with EMA masks rounded, once they hold such numbers as a network can have."""
    checked = _checked_choices(state, model)
    if not allow_nonfinite:
        _check_finite(checked)
        _check_variances(checked)
    return checked


def _checked_choices(state: Mapping[str, np.ndarray], model: nn.Layer) -> dict[str, np.ndarray]:
    """Indices, masks and counters must be what the layers can have: wrong ones would connect the wrong channels."""
    checked = dict(state)
    for layer_name, layer in model.named_sublayers(include_self=True):
        for leaf in ("index", "_mask", "_count", "_stage"):
            name = f"{layer_name}.{leaf}" if layer_name else leaf
            find_fault = getattr(layer, f"{leaf.lstrip('_')}_fault", None)
            if find_fault is None or name not in state:
                continue
            fault = find_fault(state[name])
            if fault:
                raise WeightsError(f"{quoted(name)} {fault}: take another checkpoint, or convert it again")
            if leaf != "index":  # whole already, and most of a file
                checked[name] = np.round(state[name])
    return checked


def _check_finite(state: Mapping[str, np.ndarray]) -> None:
    """The first tensor with NaN or infinity, and how many there are."""
    faulty = [name for name, value in state.items() if not np.isfinite(value).all()]
    if faulty:
        value = state[faulty[0]]
        nan, infinite = int(np.isnan(value).sum()), int(np.isinf(value).sum())
        found = " and ".join(f"{count} {kind}" for count, kind in ((nan, "NaN"), (infinite, "infinite")) if count)
        raise WeightsError(
            f"{quoted(faulty[0])} holds {found} among {value.size} numbers, where all should be finite (tensors with "
            f"such numbers: {len(faulty)}): {_OR_ALLOW}"
        )


def _check_variances(state: Mapping[str, np.ndarray]) -> None:
    # Training never gets there: what decays towards 0 stays at the smallest float32, and only half precision rounds it.
    for name, value in state.items():
        if name.rpartition(".")[2] == "_variance" and not (value > 0).all():
            wrong = value[value <= 0]
            raise WeightsError(
                f"{quoted(name)} holds {wrong[0]:.6g}, one of {wrong.size} variances of {value.size} that are not "
                f"above 0 as they should be: {_OR_ALLOW}"
            )


def without_head(state: Mapping[str, np.ndarray], model: nn.Layer) -> dict[str, np.ndarray]:
    """Leave out what a model without a classifier, or without a head, has deliberately no place for."""
    if getattr(model, "features_only", False):
        absent = model.head_prefixes
    elif getattr(model, "num_classes", None) == 0:
        absent = (f"{model.classifier_name}.",)
    else:
        return dict(state)
    return {name: value for name, value in state.items() if not name.startswith(absent)}


def with_other_inputs(
    state: Mapping[str, np.ndarray], model: nn.Layer, first: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The first convolution of three channels made one of the model's; and what was done, one sentence.

    As timm does: for one channel the weights are summed over the three, which is right for grey images given as three
    equal channels; for others they are repeated, and scaled so that the sums stay as large.

    Args:
        state: the file's tensors.
        model: the network, or its outline.
        first: name of the weight that reads the images.
    """
    weight, channels = state.get(first), model.config["in_channels"]
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3 or channels == 3:
        return dict(state), []
    if channels == 1:
        adapted, how = weight.sum(axis=1, keepdims=True), "summed"
    else:
        repeated = np.tile(weight, (1, -(-channels // 3), 1, 1))[:, :channels]
        adapted, how = repeated * np.asarray(3 / channels, weight.dtype), "repeated and scaled"
    said = f"takes images of 3 channels and the model of {channels}: the weights of {quoted(first)} were {how}"
    return {**state, first: adapted}, [said]


def without_other_classifier(
    state: Mapping[str, np.ndarray], model: nn.Layer
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Leave out what belongs to a classifier for another number of classes; also the names that are left out."""
    expected, head = model.state_dict(), f"{model.classifier_name}."
    other = [
        name
        for name, value in state.items()
        if name.startswith(head) and name in expected and value.shape != tuple(expected[name].shape)
    ]
    return {name: value for name, value in state.items() if name not in other}, other
