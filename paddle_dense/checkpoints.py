"""Weights into models and back: strict loading, saving with a sidecar, and rebuilding a model from its file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Union

import numpy as np
import paddle
from paddle import Tensor, nn

from paddle_dense.errors import WeightsError, naming, shown
from paddle_dense.files.names import STATISTICS, pytorch_sign
from paddle_dense.files.sidecar import in_one_moment, read_sidecar, write_with_sidecar
from paddle_dense.files.weights import read_metadata, read_weights
from paddle_dense.layers.budget import Room
from paddle_dense.models.recognise import Architecture, canonical, give_memory, recognise

PathLike = Union[str, os.PathLike]

_IN_PYTORCH = {ours: theirs for theirs, ours in STATISTICS.items()}
_OR_ALLOW = "take another checkpoint, or accept it with --allow-nonfinite (in Python: allow_nonfinite=True)"


def load_weights(
    model: nn.Layer, path: PathLike, strict: bool = True, allow_nonfinite: bool = False
) -> tuple[list[str], list[str]]:
    """Put a file's tensors into a model, in place.

    A model without a classifier (`num_classes=0`) or a head (`features_only=True`) takes a whole network's file.

    Args:
        model: any Paddle network.
        path: ``.pdparams`` or ``.safetensors``; nothing in it is executed.
        strict: every tensor of the model must be in the file and fit, and the other way round; otherwise whatever
            fits is loaded.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.

    Returns:
        Names of the model's tensors that were not loaded, and names of the file's tensors that were not used.

    Raises:
        WeightsError: the file cannot be read, is PyTorch's, holds numbers that no network has, or, if strict, does not
            fit.
    """
    expected = model.state_dict()
    state = _without_head(_read_for(expected, path), model)
    if strict:
        with naming(path):
            state = check_state(state, model, allow_nonfinite=allow_nonfinite)
        set_state(model, state)
        return [], []
    network = _network_name(model)
    with naming(path):
        fitting = {
            name: _fitting(name, value, expected[name], network)
            for name, value in state.items()
            if name in expected and value.shape == tuple(expected[name].shape)
        }
        fitting = _checked_numbers(fitting, model, allow_nonfinite)
    set_state(model, fitting)
    return [name for name in expected if name not in fitting], [name for name in state if name not in fitting]


def load_pretrained(model: nn.Layer, path: PathLike) -> None:
    """Fill a preset with released weights; a classifier for another number of classes is left as it is.

    Args:
        model: a network that `create_model` built.
        path: ``.pdparams`` or ``.safetensors``.

    Raises:
        WeightsError: the weights do not fit, or are PyTorch's.
    """
    state, fresh = _without_other_classifier(_without_head(_read_for(model.state_dict(), path), model), model)
    if fresh:
        warnings.warn(
            f"{path} has another number of classes than the model's {model.num_classes}: the classifier starts fresh",
            stacklevel=2,
        )
    with naming(path):
        state = check_state(state, model, fresh)
    set_state(model, state)


def load_model(path: PathLike, *, allow_nonfinite: bool = False, **config: Any) -> nn.Layer:
    """Rebuild a network from a file: what it is says the sidecar ``NAME.json``, or else the tensors themselves.

    Args:
        path: ``.pdparams`` or ``.safetensors``.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.
        config: arguments of the network to change: `num_classes` for a fresh classifier, `features_only`, ...

    Raises:
        WeightsError: the file cannot be read or is PyTorch's, no known network has such tensors, or they do not fit the
            changes or are no numbers that a network has.
        ValueError: the network has no such argument, or cannot be built with it.
    """
    state, described = in_one_moment(path, lambda: _read_described(path))
    with naming(path):
        _refuse_pytorch(state, path)
        state = canonical(state)
        if described:
            found = Architecture(described[0], nn.Layer, described[1], room=Room.of(state))
        else:
            found = recognise(state)
        # What the caller says is no guess any more.
        said = {key: value for key, value in config.items() if key in found.config}
        for warning in found.warnings and recognise(state, overrides=said).warnings:
            warnings.warn(f"{path}: {warning}", stacklevel=2)
        try:
            outline = found.outline()
        except ValueError as error:
            source = "the sidecar .json" if described else "the file"
            raise WeightsError(f"{source} describes no network of this package: {error}") from error
        if config:
            found = replace(found, config={**found.config, **config})
            outline = found.outline()
        state = _without_head(state, outline)
        state, fresh = _without_other_classifier(state, outline) if config else (state, ())
        state = check_state(state, outline, fresh, allow_nonfinite)
    model = give_memory(outline)
    set_state(model, state)
    return model


def _read_described(path: PathLike) -> tuple[dict[str, np.ndarray], tuple[str, dict[str, Any]] | None]:
    """A file's tensors, and the network that its sidecar tells of."""
    state = read_weights(path)
    return state, read_sidecar(path, state)


def save_weights(model: nn.Layer, path: PathLike, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model's tensors, and what the model is to the sidecar ``NAME.json``; each file whole or not at all.

    Args:
        model: any Paddle network; one of this package can be rebuilt by `load_model`.
        path: ends in ``.pdparams`` or ``.safetensors``.
        metadata: further entries for the sidecar, as JSON takes them.

    Raises:
        WeightsError: the files cannot be written, or ``NAME.json`` is a file that was not written here.
    """
    known = {"arch": model.arch, "config": model.config} if hasattr(model, "config") else {}
    write_with_sidecar(
        {name: tensor.numpy() for name, tensor in model.state_dict().items()},
        path,
        {**known, **(metadata or {})},
    )


def _read_for(expected: Mapping[str, Tensor], path: PathLike) -> dict[str, np.ndarray]:
    """A file's tensors under this package's names, unless they lie as PyTorch lays them out.

    Args:
        expected: the tensors that they are for. Names that a network has are Paddle's, whatever they sound like.
        path: the file.
    """
    state = read_weights(path)
    with naming(path):
        _refuse_pytorch(state, path, expected)
        state = canonical(state)
        _refuse_transposed(state, expected, path)
    return state


def _refuse_pytorch(names: Collection[str], path: PathLike, own: Collection[str] = ()) -> None:
    """WeightsError for PyTorch's names: its linear layers lie transposed, and a square one would fit as it is."""
    sign = pytorch_sign(names, read_metadata(path), own)
    if sign:
        raise WeightsError(f"has {sign}, and PyTorch lays linear layers out differently: {_turn(path)}")


def _turn(path: PathLike) -> str:
    """How to get Paddle's layout: torch2paddle takes a pickle of Paddle's for no checkpoint of PyTorch's."""
    command = "python -m convert.torch2paddle"
    if os.fspath(path).lower().endswith(".pdparams"):
        return (
            f"write its tensors with write_weights(read_weights(PATH), 'NAME.safetensors') and turn that into a Paddle "
            f"file with {command}"
        )
    return f"turn it into a Paddle file with {command}"


def _refuse_transposed(state: Mapping[str, np.ndarray], expected: Mapping[str, Tensor], path: PathLike) -> None:
    """WeightsError where matrices fit only transposed: those that are square lie so too, and would fit as they are."""
    shapes = {name: tuple(expected[name].shape) for name in state if name in expected and name.endswith(".weight")}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and shape[0] != shape[1]}
    turned = [name for name, shape in matrices.items() if state[name].shape == shape[::-1]]
    if turned and not any(state[name].shape == shape for name, shape in matrices.items()):
        raise WeightsError(
            f"{_tensor(turned[0])} is {list(state[turned[0]].shape)} and {list(matrices[turned[0]])} in the network, "
            f"so linear layers lie as in PyTorch: {_turn(path)}"
        )


def set_state(model: nn.Layer, state: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into a model's tensors of the same names, whatever device and dtype these have."""
    tensors = model.state_dict()
    for name, value in state.items():
        tensor = tensors[name]
        tensor.set_value(paddle.to_tensor(np.ascontiguousarray(value), place=tensor.place).astype(tensor.dtype))


def check_state(
    state: Mapping[str, np.ndarray],
    model: nn.Layer,
    fresh: Collection[str] = (),
    allow_nonfinite: bool = False,
) -> dict[str, np.ndarray]:
    """The tensors of a file in the model's order, once every one of them is there and fits; averaged masks rounded.

    Args:
        state: the file's tensors.
        model: the network, or its outline.
        fresh: names that may be missing, because the model keeps its own.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.

    Raises:
        WeightsError: a tensor is missing, superfluous, misshapen, of another kind of number, or holds numbers that no
            network has: an index of channels that do not exist, a mask of other values than 0 and 1, NaN, ...
    """
    expected = model.state_dict()
    network = _network_name(model)
    for name in expected:
        if name not in state and name not in fresh:
            raise WeightsError(
                f"{_tensor(name)} of {network} is missing: complete the file, or build the network with "
                f"the file's own numbers"
            )
    for name, value in state.items():
        if name not in expected:
            raise WeightsError(
                f"{_tensor(name)} {list(value.shape)} has no place in {network}: remove it, or build the "
                f"network with the file's own numbers"
            )
    checked = {name: _fitting(name, state[name], tensor, network) for name, tensor in expected.items() if name in state}
    return _checked_numbers(checked, model, allow_nonfinite)


def _network_name(model: nn.Layer) -> str:
    return getattr(model, "arch", type(model).__name__)


def _tensor(name: str) -> str:
    """A tensor's name as a message gives it; BN statistics have another one in PyTorch's files."""
    theirs = _IN_PYTORCH.get(name.rpartition(".")[2])
    return f"tensor {shown(name)}" + (f" ({theirs} in PyTorch)" if theirs else "")


def _fitting(name: str, value: np.ndarray, tensor: Tensor, network: str) -> np.ndarray:
    if value.shape != tuple(tensor.shape):
        raise WeightsError(
            f"{_tensor(name)} is {list(value.shape)} and {network} needs {list(tensor.shape)}: build the "
            f"network with the file's own numbers"
        )
    integer = "int" in str(tensor.dtype)
    if (value.dtype.kind == "f") == integer or value.dtype.kind not in "fiu":
        raise WeightsError(
            f"{_tensor(name)} holds {value.dtype} and {network} needs {'integers' if integer else 'floats'}: save it "
            f"as {'int64' if integer else 'float32'}"
        )
    with np.errstate(over="ignore"):  # an infinity is reported as one
        return value.astype(np.int64 if integer else np.float32, copy=False)


def _checked_numbers(state: Mapping[str, np.ndarray], model: nn.Layer, allow_nonfinite: bool) -> dict[str, np.ndarray]:
    """The tensors with averaged masks rounded, once they hold such numbers as a network can have."""
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
                raise WeightsError(f"{_tensor(name)} {fault}: take another checkpoint, or convert it anew")
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
            f"{_tensor(faulty[0])} holds {found} among {value.size} numbers, where all should be finite (tensors with "
            f"such numbers: {len(faulty)}): {_OR_ALLOW}"
        )


def _check_variances(state: Mapping[str, np.ndarray]) -> None:
    # Training never gets there: what decays towards 0 stays at the smallest float32, and only half precision rounds it.
    for name, value in state.items():
        if name.rpartition(".")[2] == "_variance" and not (value > 0).all():
            wrong = value[value <= 0]
            raise WeightsError(
                f"{_tensor(name)} holds {wrong[0]:.6g}, one of {wrong.size} variances of {value.size} that are not "
                f"above 0 as they should be: {_OR_ALLOW}"
            )


def _without_head(state: Mapping[str, np.ndarray], model: nn.Layer) -> dict[str, np.ndarray]:
    """Leave out what a model without a classifier, or without a head, has deliberately no place for."""
    if getattr(model, "features_only", False):
        absent = model.head_prefixes
    elif getattr(model, "num_classes", None) == 0:
        absent = (f"{model.classifier_name}.",)
    else:
        return dict(state)
    return {name: value for name, value in state.items() if not name.startswith(absent)}


def _without_other_classifier(
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
