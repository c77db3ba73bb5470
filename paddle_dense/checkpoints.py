"""Weights into models and back: strict loading, saving with a sidecar, and rebuilding a model from its file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np
from paddle import nn

from paddle_dense.classes import imagenet, imagenet_classes
from paddle_dense.condensing import condensed_form
from paddle_dense.data import Preprocessing
from paddle_dense.errors import WeightsError, listed, naming, shown
from paddle_dense.evaluation import name_of
from paddle_dense.files.layout import to_paddle
from paddle_dense.files.names import pytorch_sign, renamed, two_names
from paddle_dense.files.opened import AS_PYTORCHS, WeightsFile, open_weights, refuse_other_layout
from paddle_dense.files.sidecar import names_in, network_in, sidecar_path, unreadable_sidecar, write_with_sidecar
from paddle_dense.files.spelling import EVERYTHING, Selection
from paddle_dense.identifying import Identified, fit, identify
from paddle_dense.layers.choices import learned_layers
from paddle_dense.models.fitting import check_state, fitting_tensors, quoted, set_state, without_head
from paddle_dense.models.matching import match
from paddle_dense.models.network import Network
from paddle_dense.models.recognise import Architecture, materialise
from paddle_dense.models.sources import chosen, made_of, second_names, sources, without_place

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
    ema: bool = True,
    key: str | None = None,
) -> tuple[list[str], list[str]]:
    """Put a file's tensors into a model, in place.

    A model without a classifier (`num_classes=0`) or a head (`features_only=True`) takes a whole network's file, a
    network of this package takes its tensors under whatever prefix, and one in the condensed form takes a file in
    the trained form, condensed.

    Args:
        model: any Paddle network.
        path: Paddle's ``.pdparams``, PyTorch's ``.pth``, ``.pt`` or ``.pth.tar``, or ``.safetensors`` of either;
            nothing in it is executed.
        strict: every tensor of the model must be in the file and fit, and the other way round; otherwise whatever
            fits is loaded.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.
        drop: patterns of names, as of files, of the file's tensors to leave out.
        rename: beginnings of the file's names, and what to put in their place.
        part: the beginning of the names to take, of a file with several networks.
        ema: take the EMA weights where a PyTorch file has them.
        key: take the weights under this key of a PyTorch file.

    Returns:
        Names of the model's tensors that were not loaded, and names of the file's tensors that were not used.

    Raises:
        WeightsError: the file cannot be read, holds numbers that no network has, or, if strict, does not fit.
    """
    file = _open_for(model, path, ema, key)
    tensors = _tensors_for(model, file, Selection(drop, tuple((rename or {}).items()), part), strict)
    if strict:
        loaded, _, said = _fitted_into(model, file, tensors, allow_nonfinite=allow_nonfinite)
    else:
        said = []
        with naming(path):
            state = without_head(tensors.state, model)
            if tensors.found and tensors.to_be_condensed:
                state, _ = condensed_form(state, tensors.found.architecture)
            loaded = fitting_tensors(state, model, allow_nonfinite)
    _say(path, [*file.warnings, *tensors.notes, *said])
    set_state(model, loaded)
    unused = [] if strict else [tensors.names.get(name, name) for name in state if name not in loaded]
    return [name for name in model.state_dict() if name not in loaded], [*unused, *tensors.left_out]


def load_pretrained(model: Network, source: PathLike | WeightsFile) -> None:
    """Fill a preset with released weights, and take over their preprocessing and class names.

    A classifier for another number of classes is left as it is, and the first convolution's weights are summed or
    repeated for another number of channels, as timm does.

    Args:
        model: a network that `create_model` built.
        source: the path of a file, see `load_weights`, or what `open_weights` read.

    Raises:
        WeightsError: the weights do not fit.
    """
    file = source if isinstance(source, WeightsFile) else _open_for(model, source)
    tensors = _tensors_for(model, file)
    state, fresh, said = _fitted_into(model, file, tensors, adapting=True)
    if fresh:
        said.append(f"does not have the model's {model.num_classes} classes: the classifier is newly initialised")
    left_out = [f"left out what is no part of the network: {listed(map(shown, tensors.left_out))}"]
    _say(file.path, [*file.warnings, *tensors.notes, *(left_out if tensors.left_out else []), *said])
    set_state(model, state)
    _describe(model, file, fresh)


def load_model(
    path: PathLike,
    *,
    allow_nonfinite: bool = False,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    part: str = "",
    ema: bool = True,
    key: str | None = None,
    condensed: bool | None = None,
    **config: Any,
) -> Network:
    """Rebuild a network from a file: what it is says the sidecar ``NAME.json``, what the file states, or the tensors.

    The tensors of a PyTorch file are those that `convert.torch2paddle` would write, and PyTorch is not needed.

    Args:
        path: Paddle's ``.pdparams``, PyTorch's ``.pth``, ``.pt`` or ``.pth.tar``, ``.safetensors`` of either, or the
            ``.index.json`` of shards; nothing in it is executed.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less.
        drop, rename, part, ema, key: see `load_weights`.
        condensed: True condenses the trained form and False keeps it; unless given, a PyTorch file is condensed, and a
            Paddle file stays in its form.
        config: arguments of the network to change: `num_classes` for a fresh classifier, `features_only`, ...

    Raises:
        WeightsError: the file cannot be read, no known network has such tensors, they do not fit the changes, are no
            numbers that a network has, or are not condensed far enough.
        ValueError: the network has no such argument, or cannot be built with it.
    """
    file = open_weights(Path(path), ema=ema, key=key)
    found = identify(file, overrides=config, selection=Selection(drop, tuple((rename or {}).items()), part))
    if condensed is False and found.architecture.config.get("condensed", True):
        raise WeightsError(
            f"{os.fspath(path)}: is no network in the form that loses connections while it learns, and cannot be put "
            f"into it: leave condensed=False out"
        )
    fitted = fit(
        file,
        found,
        config,
        condensed=file.checkpoint is not None if condensed is None else condensed,
        adapting=bool(config),
        allow_nonfinite=allow_nonfinite,
    )
    _say(path, [*file.warnings, *found.warnings, *fitted.warnings])
    model = materialise(fitted.outline)
    set_state(model, fitted.state)
    _describe(model, file, fitted.fresh)
    return model


def _describe(model: Network, file: WeightsFile, fresh: Collection[str]) -> None:
    try:
        set_description(model, file.described(model.num_classes), fresh)
    except ValueError as error:
        raise unreadable_sidecar(sidecar_path(file.path)) from error


def description(model: nn.Layer) -> dict[str, Any]:
    """What a model is, beside its tensors: network, numbers, preprocessing, class names; nothing of a stranger's."""
    if not hasattr(model, "config"):
        return {}
    told: dict[str, Any] = {"arch": model.arch, "config": model.config}
    # A preset built for other channels than its own has no preprocessing of its own.
    if isinstance(model, Network) and len(model.preprocessing.mean) == model.config["in_channels"]:
        told["preprocessing"] = model.preprocessing.as_dict()
    if isinstance(model, Network) and model.classes is not None:
        told["classes"] = list(model.classes)
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
    channels, described = model.config["in_channels"], network_in(told)
    is_for_others = described is not None and described[1].get("in_channels", channels) != channels
    if "preprocessing" in told and not is_for_others:
        model.preprocessing = Preprocessing.read(told["preprocessing"], channels)
        model.input_size = model.preprocessing.input_size
    if fresh or not model.num_classes or model.features_only:
        return
    if "classes" in told:
        model.classes = names_in(told, model.num_classes)
        if model.classes is None:
            raise ValueError(f"no names of {model.num_classes} classes")
    elif model.num_classes == len(imagenet()) and "training" not in told:
        model.classes = imagenet_classes()


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
    """A file's tensors for a model.

    Attributes:
        state: by the model's names, in Paddle's layout.
        names: the file's name of each.
        left_out: names of the others.
        notes: what was done to them, one sentence each.
        found: which of this package's networks they are, in the file's form, for a model of this package.
        to_be_condensed: they are in the trained form and the model is not.
    """

    state: Mapping[str, np.ndarray]
    names: Mapping[str, str]
    left_out: Sequence[str]
    notes: Sequence[str] = ()
    found: Identified | None = None
    to_be_condensed: bool = False


def _open_for(model: nn.Layer, path: PathLike, ema: bool = True, key: str | None = None) -> WeightsFile:
    """A file for a model, whose own names may be those that PyTorch's files have."""
    file, own = open_weights(Path(path), ema=ema, key=key), model.state_dict()
    either = file.checkpoint is not None and file.format.startswith("safetensors")
    if either and not pytorch_sign(file.tensors, file.metadata, own):
        file = open_weights(Path(path), "paddle")
    with naming(path):
        refuse_other_layout(file, own)
    return file


def _tensors_for(
    model: nn.Layer, file: WeightsFile, selection: Selection = EVERYTHING, strict: bool = True
) -> _Tensors:
    """A file's tensors under a model's names, unless they lie as PyTorch lays them out and nothing says so."""
    with naming(file.path):
        if isinstance(model, Network):
            return _tensors_for_network(model, file, selection, strict)
        kept = {name: value for name, value in file.tensors.items() if selection.keeps(name)}
        left_out = [name for name in file.tensors if name not in kept]
        state = renamed(kept, selection.renamed)
        names = dict(zip(state, kept))
        if file.checkpoint is None:
            _refuse_transposed(state, model)
            return _Tensors(state, names, left_out)
        parts = {
            selection.renamed(whole): {selection.renamed(name): value for name, value in some.items()}
            for whole, some in file.checkpoint.parts.items()
        }
        made = _as_in_paddle(state, parts, model, strict)
        named = {ours: names.get(theirs, theirs) for ours, theirs in made.names.items()}
        return _Tensors(made.state, named, left_out, made.notes)


def _tensors_for_network(model: Network, file: WeightsFile, selection: Selection, strict: bool) -> _Tensors:
    network, in_pytorch = type(model), file.checkpoint is not None
    matched = match(file.tensors, in_pytorch, selection, network, model.num_classes == 0, model.features_only, strict)
    state = to_paddle(matched.state) if in_pytorch else matched.state
    if not in_pytorch:
        _refuse_transposed(state, model)
    to_be_condensed = model.config.get("condensed") is True and bool(learned_layers(state))
    config = {**model.config, "condensed": False} if to_be_condensed else model.config
    architecture, outline = Architecture(network.__name__, network, config), None if to_be_condensed else model
    found = Identified(architecture, state, matched.state, matched, outline)
    left_out = [name for name in matched.left_out if name not in matched.of_head]
    return _Tensors(state, matched.names, left_out, matched.notes, found, to_be_condensed)


def _fitted_into(
    model: nn.Layer,
    file: WeightsFile,
    tensors: _Tensors,
    allow_nonfinite: bool = False,
    adapting: bool = False,
) -> tuple[dict[str, np.ndarray], Sequence[str], list[str]]:
    """A file's tensors in a model's form and order, names of those that the model keeps, and warnings."""
    if tensors.found is None:
        with naming(file.path):
            return check_state(tensors.state, model, (), allow_nonfinite, tensors.names), [], []
    fitted = fit(
        file,
        tensors.found,
        condensed=tensors.to_be_condensed,
        adapting=adapting,
        allow_nonfinite=allow_nonfinite,
    )
    return fitted.state, fitted.fresh, fitted.warnings


def _say(path: PathLike, warnings_: Iterable[str]) -> None:
    """Warn of what a file is not or does not show, one sentence each, where the package's user called it."""
    for warning in warnings_:
        warnings.warn(f"{os.fspath(path)}: {warning}", stacklevel=3)


def _as_in_paddle(
    state: Mapping[str, np.ndarray], parts: Mapping[str, Mapping[str, np.ndarray]], model: nn.Layer, strict: bool
) -> _Tensors:
    """The tensors of PyTorch under the names and in the layout of Paddle's layers, whatever network has them.

    Args:
        state: PyTorch's tensors.
        parts: what PyTorch computes some of these of, by their names; for layers that do so as well.
        model: the network.
        strict: refuse what Paddle's layers have no place for, instead of a note on it.
    """
    tensors = {**state, **{name: value for some in parts.values() for name, value in some.items()}}
    possible = sources(model)
    taken = chosen(possible, tensors)
    made = made_of(tensors, taken)
    used = {name for source in taken.values() for name in source.names}
    rest = {name: value for name, value in state.items() if name not in used and not used & set(parts.get(name, ()))}
    for name in second_names(tensors, possible, made, rest):
        del rest[name]
    for name in rest:
        if name in made:
            raise two_names(taken[name].names[0], name, name)
    notes = []
    for name, advice in without_place(model, rest).items():
        said = f"{quoted(name)} has no place in {name_of(model)}: {advice}"
        if advice and strict:
            raise WeightsError(said)
        if advice:
            notes.append(said)
        else:
            del rest[name]
    names = {**{name: source.names[0] for name, source in taken.items() if source.names}, **dict(zip(rest, rest))}
    return _Tensors({**made, **rest}, names, [], notes)


def _refuse_transposed(state: Mapping[str, np.ndarray], model: nn.Layer) -> None:
    """WeightsError where linear layers fit only transposed: square ones lie so too, and would fit as they are."""
    layers = model.named_sublayers(include_self=True)
    linear = {f"{name}.weight" if name else "weight" for name, layer in layers if isinstance(layer, nn.Linear)}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in linear & set(state)}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and shape[0] != shape[1]}
    turned = [name for name, shape in matrices.items() if state[name].shape == shape[::-1]]
    if turned and not any(state[name].shape == shape for name, shape in matrices.items()):
        raise WeightsError(
            f"{quoted(turned[0])} is {list(state[turned[0]].shape)} and {list(matrices[turned[0]])} in the network, "
            f"so linear layers lie as in PyTorch: {AS_PYTORCHS}"
        )
