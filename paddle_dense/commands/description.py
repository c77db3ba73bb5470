"""What a file of weights is: what the command ``info`` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from paddle_dense.commands.info import HASHES
from paddle_dense.condensing import condense_state
from paddle_dense.cost import affordable
from paddle_dense.errors import WeightsError
from paddle_dense.files.opened import WeightsFile, open_weights
from paddle_dense.files.torch_file import Checkpoint
from paddle_dense.identifying import Identified, identify
from paddle_dense.layers.choices import binary_mask, learned_layers
from paddle_dense.models.fitting import check_state
from paddle_dense.models.network import Network
from paddle_dense.models.recognise import Architecture, materialise
from paddle_dense.models.stated import compare, remedy
from paddle_dense.pretrained import manifest
from paddle_dense.profiling import profile


@dataclass
class Info:
    """What a file of weights is; the fields of ``--json``.

    Attributes:
        file: its path.
        format: how it is written, in words.
        bytes: its size.
        sha256: of the file.
        container: where in the file the tensors were, such as "state_dict_ema"; None in a Paddle file.
        averaged: whether these are EMA weights.
        sets: the keys of all sets of weights for this network in a PyTorch file, that of these first.
        tensors: how many there are.
        numbers: how many they hold together.
        arch: preset, or the network's class where no preset has these numbers; None for a network of another package.
        network: the network's class.
        config: the network's arguments.
        condensed: in the condensed form, or in the trained one; None for a network that has no such forms.
        connections: share of the learned layers' connections that are left, in the trained form.
        condensable: whether `condense` takes it, in the trained form.
        params, macs, executed_macs: as `paddle_dense.profile` counts, for an image of `input_size`.
        input_size: side of the images in pixels.
        released: names and sources of the released checkpoints that this file is, by its hash.
        sidecar: where it came from, as the file ``NAME.json`` next to it says.
        metadata: the texts in the header of a .safetensors file.
        warnings: what the user should know, one sentence each.
    """

    file: str
    format: str
    bytes: int
    sha256: str
    container: str | None
    averaged: bool
    sets: Sequence[str]
    tensors: int
    numbers: int
    arch: str | None = None
    network: str | None = None
    config: Mapping[str, Any] | None = None
    condensed: bool | None = None
    connections: float | None = None
    condensable: bool | None = None
    params: int | None = None
    macs: int | None = None
    executed_macs: int | None = None
    input_size: int | None = None
    released: Sequence[Mapping[str, Any]] = ()
    sidecar: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] | None = None
    warnings: list[str] = field(default_factory=list)


def describe_weights(source: Path | WeightsFile) -> Info:
    """Find out what a PyTorch or Paddle file of weights is.

    Args:
        source: its path, or what `open_weights` read, its `HASHES` with it.

    Raises:
        WeightsError: the file cannot be read, or holds no tensors.
    """
    file = source if isinstance(source, WeightsFile) else open_weights(source, hashes=HASHES)
    if not file.tensors:
        raise WeightsError(f"{file.path}: holds no tensors, so it is no file of weights: give one of weights")
    info = Info(
        str(file.path),
        file.format,
        file.size,
        file.digest("sha256"),
        file.container,
        averaged=bool(file.checkpoint and file.checkpoint.averaged),
        sets=file.checkpoint.sets if file.checkpoint else (),
        tensors=len(file.tensors),
        numbers=sum(value.size for value in file.tensors.values()),
        released=_released(file.digest("sha256"), file.digest("md5")),
        sidecar=_provenance(file.sidecar) if file.sidecar else None,
        metadata=file.metadata or None,
        warnings=[*file.warnings, *([str(file.sidecar_fault)] if file.sidecar_fault else [])],
    )
    try:
        _add_network(info, file, _identified(replace(file, sidecar_fault=None), info.warnings))
    except (WeightsError, ValueError) as error:
        info.warnings.append(str(error).removeprefix(f"{file.path}: "))
    return info


def _released(sha256: str, md5: str) -> list[dict[str, Any]]:
    """The released checkpoints with these hashes, of which the manifest may have the beginning alone."""
    known = ((entry, entry.get("sha256") or entry.get("sha256_prefix")) for entry in manifest())
    return [entry for entry, start in known if (sha256.startswith(start) if start else entry.get("md5") == md5)]


def _provenance(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """What a sidecar says besides the network and the checks on itself, without the long lists of names."""
    others = ("arch", "config", "params", "tensors_sha256", "previous")
    kept = {key: value for key, value in sidecar.items() if key not in others}
    source = kept.get("source")
    if isinstance(source, dict):
        kept["source"] = {key: value for key, value in source.items() if not isinstance(value, (dict, list))}
    return kept


def _identified(file: WeightsFile, notes: list[str]) -> Identified:
    """What the sidecar describes, if the tensors are those of such a network, or else what the tensors show."""
    try:
        found = identify(file)
        if file.sidecar:
            check_state(found.state, found.outline or found.architecture.outline())
    except ValueError as error:
        if not file.sidecar:
            raise
        fault = str(error).removeprefix(f"{file.path}: ")
        known = fault.startswith("the sidecar .json")
        notes.append(fault if known else f"the sidecar .json describes another network: {fault}")
        found = identify(replace(file, sidecar=None))
    notes += found.warnings
    return found


def _add_network(info: Info, file: WeightsFile, identified: Identified) -> None:
    """Add what network it is and, if the tensors are all of such a network's, its size."""
    found, state = identified.architecture, identified.state
    info.arch, info.network, info.config = found.arch, found.network.__name__, found.config
    info.condensed = found.config.get("condensed")
    try:
        if info.condensed is False:
            _add_connections(info, state, found)
        outline = identified.outline or found.outline()
        check_state(state, outline, names=identified.matched.names)
        if file.checkpoint and file.checkpoint.layers:
            info.warnings += _stated_otherwise(file.checkpoint, identified, outline)
        model = materialise(outline)
    except (WeightsError, ValueError) as error:
        info.warnings.append(str(error))
        return
    info.config = model.config
    try:
        with affordable(model, "its MACs are not counted"):
            size = profile(model)
    except WeightsError as error:
        info.warnings.append(str(error))
    except MemoryError:
        raise
    except Exception:  # whatever Paddle raises for a stride, say, that no tensor shows and no network has
        info.warnings.append(
            f"the network does not run on {model.input_size} x {model.input_size} pixels: fix its hyperparameters, "
            f"with --config KEY=VALUE when it is converted (in Python: KEY=VALUE when it is loaded)"
        )
    else:
        info.params, info.macs, info.executed_macs = size.params, size.macs, size.executed_macs
        info.input_size = model.input_size


def _stated_otherwise(checkpoint: Checkpoint, identified: Identified, outline: Network) -> list[str]:
    """What a whole pickled module states that this network does not compute, and what it leaves open."""
    found = identified.architecture
    compared = compare(checkpoint, identified.matched, outline)
    fault = compared.fault(found.arch)
    if not fault:
        return compared.warnings()
    option = remedy(checkpoint, identified.matched, found, {})
    advice = f"convert it with {option}" if option else f"it is another network than {found.arch}"
    return [f"the file {fault}: {advice}"]


def _add_connections(info: Info, state: Mapping[str, np.ndarray], found: Architecture) -> None:
    """Add how far a network in the trained form has been condensed."""
    masks = [binary_mask(state[f"{layer}._mask"], layer) for layer in learned_layers(state)]
    info.connections = sum(int(m.sum()) for m in masks) / max(sum(m.size for m in masks), 1)
    info.condensable = True
    try:
        condense_state(state, lambda layer: found.network.condensing(layer, found.config))
    except WeightsError as error:
        info.warnings.append(str(error))
        info.condensable = False
