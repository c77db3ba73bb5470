"""Weights into models and back: strict loading, saving with a sidecar, and rebuilding a model from its file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np
from paddle import Tensor, nn

from paddle_dense.classes import imagenet, imagenet_classes
from paddle_dense.data import Preprocessing
from paddle_dense.errors import WeightsError, naming, shown
from paddle_dense.files.layout import to_paddle, to_torch
from paddle_dense.files.names import pytorch_sign, refuse_mixture, renamed
from paddle_dense.files.opened import WeightsFile, open_weights
from paddle_dense.files.sidecar import (
    described_network,
    names_in,
    sidecar_path,
    told_of,
    unreadable_sidecar,
    write_with_sidecar,
)
from paddle_dense.files.spelling import EVERYTHING, Selection
from paddle_dense.files.weights import read_metadata, read_weights
from paddle_dense.layers.budget import Budget
from paddle_dense.models.fitting import (
    check_state,
    fitting_tensors,
    quoted,
    set_state,
    without_head,
    without_other_classifier,
)
from paddle_dense.models.matching import Match, match
from paddle_dense.models.network import Network, network_class
from paddle_dense.models.recognise import NOTHING_STATED, Architecture, materialise, settle
from paddle_dense.models.stated import read_statements

PathLike = Union[str, os.PathLike]


def load_weights(
    model: nn.Layer,
    path: PathLike,
    strict: bool = True,
    allow_nonfinite: bool = False,
    *,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    part: str = "",
) -> tuple[list[str], list[str]]:
    """Put a file's tensors into a model, in place.

    A model without a classifier (`num_classes=0`) or a head (`features_only=True`) takes a whole network's file, and a
    network of this package takes its tensors from behind whatever prefix.

    Args:
        model: any Paddle network.
        path: ``.pdparams`` or ``.safetensors``; nothing in it is executed.
        strict: every tensor of the model must be in the file and fit, and the other way round; otherwise whatever
            fits is loaded.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.
        drop: patterns of names, as of files, of the file's tensors to leave out.
        rename: beginnings of the file's names, and what to put in their place.
        part: the beginning of the names to take, of a file with several networks.

    Returns:
        Names of the model's tensors that were not loaded, and names of the file's tensors that were not used.

    Raises:
        WeightsError: the file cannot be read, is PyTorch's, holds numbers that no network has, or, if strict, does not
            fit.
    """
    selection = Selection(drop, tuple((rename or {}).items()), part)
    matched = _read_for(model, path, selection, strict)
    state = without_head(matched.state, model)
    with naming(path):
        if strict:
            loaded = check_state(state, model, allow_nonfinite=allow_nonfinite, names=matched.names)
        else:
            loaded = fitting_tensors(state, model, allow_nonfinite)
    set_state(model, loaded)
    unused = [] if strict else [matched.names[name] for name in state if name not in loaded]
    return [name for name in model.state_dict() if name not in loaded], [*unused, *matched.left_out]


def load_pretrained(model: Network, path: PathLike) -> None:
    """Fill a preset with released weights, and take over their preprocessing and class names.

    A classifier for another number of classes is left as it is.

    Args:
        model: a network that `create_model` built.
        path: ``.pdparams`` or ``.safetensors``.

    Raises:
        WeightsError: the weights do not fit, or are PyTorch's.
    """
    told = _told_of(path)
    state, fresh = without_other_classifier(without_head(_read_for(model, path).state, model), model)
    if fresh:
        warnings.warn(
            f"{path} does not have the model's {model.num_classes} classes: the classifier is newly initialised",
            stacklevel=2,
        )
    with naming(path):
        state = check_state(state, model, fresh)
    set_state(model, state)
    _describe(model, told, path, fresh)


def load_model(
    path: PathLike,
    *,
    allow_nonfinite: bool = False,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    part: str = "",
    **config: Any,
) -> Network:
    """Rebuild a network from a file: what it is says the sidecar ``NAME.json``, or else the tensors themselves.

    Args:
        path: ``.pdparams`` or ``.safetensors``.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.
        drop, rename, part: see `load_weights`.
        config: arguments of the network to change: `num_classes` for a fresh classifier, `features_only`, ...

    Raises:
        WeightsError: the file cannot be read or is PyTorch's, no known network has such tensors, or they do not fit the
            changes or are no numbers that a network has.
        ValueError: the network has no such argument, or cannot be built with it.
    """
    file = open_weights(Path(path), "paddle")
    with naming(path):
        _refuse_pytorch(file.tensors, path)
    found = identify(file, overrides=config, selection=Selection(drop, tuple((rename or {}).items()), part))
    for warning in found.warnings:
        warnings.warn(f"{path}: {warning}", stacklevel=2)
    outline = outlined(found.architecture, config, path)
    with naming(path):
        state = without_head(found.state, outline)
        state, fresh = without_other_classifier(state, outline) if config else (state, [])
        state = check_state(state, outline, fresh, allow_nonfinite, found.matched.names)
    model = materialise(outline)
    set_state(model, state)
    _describe(model, file.sidecar, path, fresh)
    return model


def _told_of(path: PathLike) -> dict[str, Any] | None:
    """What a file's sidecar says, where there is one that belongs to it."""
    try:
        return told_of(path)
    except WeightsError:
        return None


def _describe(model: Network, told: Mapping[str, Any] | None, path: PathLike, fresh: Collection[str]) -> None:
    try:
        set_description(model, told or {}, fresh)
    except ValueError as error:
        raise unreadable_sidecar(sidecar_path(path)) from error


def description(model: nn.Layer) -> dict[str, Any]:
    """What a model is, beside its tensors: network, numbers, preprocessing, class names; nothing of a stranger's."""
    if not hasattr(model, "config"):
        return {}
    told: dict[str, Any] = {"arch": model.arch, "config": model.config}
    if isinstance(model, Network):
        told["preprocessing"] = model.preprocessing.as_dict()
        told.update({"classes": list(model.classes)} if model.classes is not None else {})
    return told


def set_description(model: Network, told: Mapping[str, Any], fresh: Collection[str] = ()) -> None:
    """Set how images are prepared for a network and what its classes are called, as `description` told it.

    A file of 1000 classes that names none is taken for one of ImageNet's, as all released ones are.

    Args:
        model: a network that has the file's tensors.
        told: what its sidecar says.
        fresh: the tensors that it does not have from the file: those of a classifier for other classes.

    Raises:
        ValueError: it says of either what cannot be.
    """
    if "preprocessing" in told:
        model.preprocessing = Preprocessing.read(told["preprocessing"], model.config["in_channels"])
        model.input_size = model.preprocessing.input_size
    if fresh or not model.num_classes or model.features_only:
        return
    if "classes" in told:
        model.classes = names_in(told, model.num_classes)
        if model.classes is None:
            raise ValueError(f"no names of {model.num_classes} classes")
    elif model.num_classes == len(imagenet()) and "training" not in told:
        model.classes = imagenet_classes()


class Identified(NamedTuple):
    """Which network a weight file holds.

    Attributes:
        architecture: the network and its numbers, in the form that the file has.
        state: the file's tensors under this package's names, in Paddle's layout.
        original: the same under PyTorch's names and in PyTorch's layout.
        matched: which tensors of the file they are.
    """

    architecture: Architecture
    state: dict[str, np.ndarray]
    original: dict[str, np.ndarray]
    matched: Match

    @property
    def warnings(self) -> list[str]:
        """What the user should know, one sentence each."""
        return [*self.architecture.warnings, *self.matched.warnings()]


def identify(
    file: WeightsFile,
    arch: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    selection: Selection = EVERYTHING,
) -> Identified:
    """Find out which network a weight file holds: what its sidecar says, or else what the tensors show.

    Args:
        file: what `open_weights` gave.
        arch: the preset that it is said to be, whatever the sidecar says.
        overrides: arguments of the network that the caller knows better.
        selection: what the caller says of the tensors.

    Raises:
        WeightsError: no known network has such tensors, `arch` has other numbers, or the sidecar cannot be used.
        ValueError: `arch` or an argument is unknown.
    """
    if file.sidecar_fault and not arch:
        raise file.sidecar_fault
    described = None if arch else described_network(file.path, file.sidecar)
    overrides, in_pytorch = overrides or {}, file.checkpoint is not None
    headless, features_only = overrides.get("num_classes") == 0, overrides.get("features_only") is True
    with naming(file.path):
        refuse_mixture(file.tensors)
        known = _described_class(described[0]) if described else None
        matched = match(file.tensors, in_pytorch, selection, known, headless, features_only)
        tensors = matched.state
        state, original = (to_paddle(tensors), tensors) if in_pytorch else (tensors, to_torch(tensors))
        if described is None:
            stated = read_statements(file.checkpoint, matched) if file.checkpoint else NOTHING_STATED
            found = _with_inner_head(settle(matched, arch, overrides, stated), file, matched)
            return Identified(found, state, original, matched)
        name, config = described
        try:
            found = Architecture(name, matched.network, config, budget=Budget.of(state))
            found.outline()
        except ValueError as error:
            raise _no_network(error) from error
        architecture = replace(found, config={**config, **overrides})
        return Identified(architecture, state, original, matched)


def _with_inner_head(found: Architecture, file: WeightsFile, matched: Match) -> Architecture:
    """With a word on what a state_dict cannot show: whether its classifier is the last part of the layer around it."""
    if not matched.inner_head or (file.checkpoint and file.checkpoint.layers):
        return found
    layer = shown(matched.inner_head)
    said = (
        f"a state_dict does not reveal what follows {layer} in the layer around it, a Softmax or Sigmoid for instance: "
        f"the outputs are those of {layer}"
    )
    return replace(found, assumed={**found.assumed, "outputs": matched.inner_head}, warnings=(*found.warnings, said))


def _described_class(arch: str) -> type[Network]:
    try:
        return network_class(arch)
    except ValueError as error:
        raise _no_network(error) from error


def _no_network(error: ValueError) -> WeightsError:
    return WeightsError(f"the sidecar .json describes no network of this package: {error}")


def outlined(architecture: Architecture, overrides: Mapping[str, Any], path: PathLike) -> Network:
    """The network without its memory; numbers that make none are the caller's fault where the caller gave some.

    Raises:
        ValueError: there is none with the caller's numbers.
        WeightsError: there is none with the file's.
    """
    try:
        return architecture.outline()
    except ValueError as error:
        if overrides:
            raise
        raise WeightsError(
            f"{os.fspath(path)}: holds tensors that make no network ({error}): take an undamaged checkpoint"
        ) from error


def save_weights(
    model: nn.Layer, path: PathLike, metadata: Mapping[str, Any] | None = None, compact: bool = False
) -> None:
    """Write a model's tensors, and to the sidecar ``NAME.json`` what the model is, its classes and preprocessing.

    Each file is whole or not there at all.

    Args:
        model: any Paddle network; one of this package can be rebuilt by `load_model`.
        path: ends in ``.pdparams`` or ``.safetensors``.
        metadata: further entries for the sidecar, as JSON takes them.
        compact: write SFR's indices, most of a condensed CondenseNet V2, as the position of the 1 in each row. Only
            this package reads such files; `paddle.load` and `set_state_dict` leave the indices as they are.

    Raises:
        WeightsError: the files cannot be written, or ``NAME.json`` is a file that was not written here.
    """
    write_with_sidecar(
        {name: tensor.numpy() for name, tensor in model.state_dict().items()},
        path,
        {**description(model), **(metadata or {})},
        compact=compact,
    )


class _Tensors(NamedTuple):
    """A file's tensors under a model's names, what the file calls them, and the names of the others."""

    state: dict[str, np.ndarray]
    names: Mapping[str, str]
    left_out: Sequence[str]


def _read_for(model: nn.Layer, path: PathLike, selection: Selection = EVERYTHING, strict: bool = True) -> _Tensors:
    """A file's tensors for a model, unless they lie as PyTorch lays them out; names of its own are Paddle's."""
    state, expected = read_weights(path), model.state_dict()
    with naming(path):
        _refuse_pytorch(state, path, expected)
        if isinstance(model, Network):
            found = match(state, False, selection, type(model), model.num_classes == 0, model.features_only, strict)
            unused = [name for name in found.left_out if name not in found.of_head]
            tensors = _Tensors(found.state, found.names, unused)
        else:
            kept = {name: value for name, value in state.items() if selection.keeps(name)}
            mapped = renamed(kept, selection.renamed)
            tensors = _Tensors(mapped, dict(zip(mapped, kept)), [name for name in state if name not in kept])
        _refuse_transposed(tensors.state, expected, path)
    return tensors


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
            f"{quoted(turned[0])} is {list(state[turned[0]].shape)} and {list(matrices[turned[0]])} in the network, "
            f"so linear layers lie as in PyTorch: {_turn(path)}"
        )
