"""Is a converted network the same: both frameworks on the same images."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.factories import call
from convert.options import Options
from convert.parity.forward import (
    LayerDifference,
    OwnName,
    exact_pair,
    first_difference,
    image_batches,
    layer_differences,
    layers_alone,
    layers_in_both_precisions,
    load_torch_state,
    random_batches,
    settled,
)
from convert.pytorch import pytorch_fault
from convert.result import OWN_TWIN, Result
from paddle_dense.cost import affordable
from paddle_dense.errors import WeightsError, listed, shown
from paddle_dense.identifying import Identified
from paddle_dense.layers.choices import binary_mask, learned_layers
from paddle_dense.models.fitting import set_state
from paddle_dense.models.network import Network
from paddle_dense.models.recognise import Architecture, materialise
from paddle_dense.process import importing

if TYPE_CHECKING:
    import torch

_UNCHECKED = "take another checkpoint, or convert it unchecked, with --no-verify of torch2paddle and paddle2torch"


def verify(
    source: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    identified: Identified,
    outline: Network,
    options: Options,
    result: Result,
) -> None:
    """`check`, if the user wants it and PyTorch is there; the figures and warnings go into the result.

    The user's own network answers what the file does not reveal. Its answers are then no assumptions any more.
    """
    fault = pytorch_fault() if options.verify else None
    said: list[str] = []
    if fault:
        said.append(unchecked(fault))
    elif options.verify:
        said += check(source, state, identified, outline, options, result)
        result.verified, result.checked_against = True, options.reference or OWN_TWIN
    if not (result.verified and options.reference):
        result.assumed = dict(identified.architecture.assumed)
        result.warnings += identified.architecture.warnings
    result.warnings += said


def unchecked(fault: str) -> str:
    """What to say where PyTorch cannot be run, for the reason that `pytorch_fault` gives."""
    what, _, advice = fault.rpartition(": ")
    return f"PyTorch {what}, so the result was not checked against it: {advice}"


def with_binary_masks(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same state with averaged masks put back to 0 and 1, and the counters beside them to whole numbers."""
    rounded = dict(state)
    for layer in learned_layers(state):
        mask = state[f"{layer}._mask"]
        rounded[f"{layer}._mask"] = binary_mask(mask, layer).reshape(mask.shape).astype(np.float32)
        for counter in ("_count", "_stage"):
            rounded[f"{layer}.{counter}"] = np.round(state[f"{layer}.{counter}"])
    return rounded


def check(
    source: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    identified: Identified,
    outline: Network,
    options: Options,
    result: Result | None = None,
) -> list[str]:
    """Compare the converted network with its reference: warnings, or WeightsError with the first layer that differs.

    Some networks amplify rounding. What differs in float32 is therefore compared once more in float64, where only wrong
    weights differ.

    Args:
        source: the checkpoint's tensors, for the reference.
        state: the converted tensors, for the Paddle network.
        identified: the network in the checkpoint's form.
        outline: of the network in the form that is written; it gets memory and the tensors.
        options: see `Options`.
        result: is told the figures, and with --report every layer, before a difference is raised.
    """
    found = identified.architecture
    reference, model, replaced = both_networks(source, state, found, outline, options)
    channels = model.config["in_channels"]
    inside = [f"{layer}." for layer in learned_layers(identified.state)]
    own_name = names_of_layers(identified, options)
    # Numbers that overflow are no news: what comes of them is said below.
    with np.errstate(over="ignore", invalid="ignore"), affordable(model, _UNCHECKED, batch=2):
        batches = random_batches(channels, model.input_size)
        if options.images:
            batches += image_batches(options.images, model.preprocessing, channels)
        measured, warnings = settled(reference, model, batches, options.atol, in_both=bool(options.reference))
        if result:
            result.parity, result.atol = measured, options.atol
        if result and options.report:
            result.layers = layers_in_both_precisions(reference, model, batches[0], inside, own_name)
    if measured.agrees(options.atol):
        return [*warnings, *replaced]
    if not np.isfinite(measured.max_rel_diff):
        raise WeightsError(
            "the outputs are NaN or infinite though every weight is finite, so Paddle and PyTorch cannot be compared: "
            "take an undamaged checkpoint, or convert it unchecked with --no-verify"
        )
    in_float32 = not measured.max_rel_diff <= options.atol
    size, allowed = (measured.max_rel_diff, options.atol) if in_float32 else (measured.float64, options.atol / 10)
    with exact_pair(reference, model) as pair:
        first = first_difference(layer_differences(*pair, batches[0], inside, own_name), allowed)
    where = _place(first, layers_alone(reference, model, first.name, own_name)) if first else "no single layer"
    raise WeightsError(
        f"Paddle and {options.reference or 'PyTorch'} differ by {size:.1e} of the {measured.what}' scale"
        f"{'' if in_float32 else ' in float64'} (allowed: {allowed:.0e}), first in {where}: {_advice(found, options)}"
    )


def names_of_layers(identified: Identified, options: Options) -> OwnName:
    """What this package calls a layer of the reference: the user's own has the names of the file."""
    return identified.matched.layer if options.reference else str


def _place(first: LayerDifference, alone: Sequence[str]) -> str:
    """Where two networks differ first, and the layers right before that only one of them has."""
    how = f"by {first.max_rel_diff:.1e}" if np.isfinite(first.max_rel_diff) else "whose outputs have different shapes"
    before = f", right after {listed(alone)}, which only Paddle's network has as a layer" if alone else ""
    return f"layer {first.name}, {how}{before}"


def _advice(found: Architecture, options: Options) -> str:
    """What the user can do about a difference."""
    if not options.reference:
        return "allow what rounding may be with --atol, and report anything larger: both networks are this package's"
    open_ones = [f"{key}={value}" for key, value in found.assumed.items() if key in found.config]
    if open_ones:
        return f"change what the file does not reveal, {listed(open_ones)}, with --config KEY=VALUE"
    return f"it computes something else than {found.arch}, so see 'Add a model' in the documentation"


def both_networks(
    source: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    found: Architecture,
    outline: Network,
    options: Options,
) -> tuple[torch.nn.Module, Network, list[str]]:
    """PyTorch's network and Paddle's with the tensors in them, and warnings; the arguments are those of `check`."""
    replaced: list[str] = []
    if options.allow_nonfinite:
        source, replaced = comparable(source)
        state, _ = comparable(state)
    reference: Any = own_reference(options.reference) if options.reference else build_twin(found)
    load_torch_state(reference, with_binary_masks(source))
    if options.condense_classifier:
        if options.reference:
            raise ValueError("--condense-classifier cannot be checked against --reference: leave one of them out")
        reference.condense_classifier()
    model = materialise(outline)
    set_state(model, state)
    return reference, model, replaced


def comparable(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The state with numbers that can be computed with, and one sentence on what was replaced, if anything was.

    NaN and infinity spread to every output, where two frameworks cannot be compared any more. The same numbers are
    replaced in a network's state in either framework and either form: a conversion moves numbers and changes none.

    Args:
        state: of PyTorch or of Paddle.
    """
    kept, names = {}, []
    for name, value in state.items():
        is_variance = name.rpartition(".")[2] in ("_variance", "running_var")
        good = np.isfinite(value) & (value > 0) if is_variance else np.isfinite(value)
        kept[name] = value if good.all() else np.where(good, value, np.float32(is_variance))
        names += [] if good.all() else [shown(name)]
    said = (
        f"compared with 0 in place of NaN and infinity, and 1 for variances that are not positive, in {listed(names)}"
    )
    return kept, [said] if names else []


def build_twin(architecture: Architecture) -> torch.nn.Module:
    """The PyTorch twin of a Paddle network: the class of the same name in the module of the same name."""
    with importing():
        name = architecture.network.__module__.replace("paddle_dense.models", "convert.torch_models")
        module = importlib.import_module(name)
    return getattr(module, architecture.network.__name__)(**architecture.config)


def own_reference(name: str) -> torch.nn.Module:
    """The PyTorch network that the user's ``MODULE:FACTORY`` makes."""
    import torch

    reference = call("--reference", name, "the PyTorch network")
    if not isinstance(reference, torch.nn.Module):
        raise ValueError(f"--reference {name} returned {type(reference).__name__}: return a torch.nn.Module")
    return reference
