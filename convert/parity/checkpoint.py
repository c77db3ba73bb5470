"""One checkpoint through every check: forward, layer by layer, loss, gradients, training. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert import conversion
from convert.parity.forward import (
    LayerDifference,
    Parity,
    exact_pair,
    first_difference,
    image_batches,
    layer_differences,
    layers_in_both_precisions,
    load_torch_state,
    random_batches,
    settled,
)
from convert.parity.training import Batch, TrainingParity, compare_training
from convert.report.section import Section
from paddle_dense.errors import WeightsError, naming
from paddle_dense.files.layout import to_paddle, to_torch
from paddle_dense.files.names import paddle_sign, refuse_mixture
from paddle_dense.files.sidecar import described_network, in_one_moment, told_of
from paddle_dense.files.torch_file import Checkpoint, read_checkpoint
from paddle_dense.files.weights import read_weights

if TYPE_CHECKING:
    import torch
    from paddle import nn

    from paddle_dense.models.recognise import Architecture

TRAINING_SIZE = 64  # pixels: gradients say the same at any size, and steps in two precisions take long


@dataclass(frozen=True)
class Options(conversion.Options):
    """What the command line says: the options of a conversion that make sense here, and those of the training.

    Attributes:
        keep_trained_form: of a checkpoint in the trained form, leave out the comparison of its condensed form.
        steps: SGD steps, each with loss and gradients; 0 for none.
        learning_rate: of these steps; so large that training diverges, it lets rounding grow without bounds.
        batch_size: pictures in each step.
        size: pixels of the random pictures' sides; unless given, the network's own, but at most 64 in training.
        seed: of the random pictures.
    """

    steps: int = 3
    learning_rate: float = 0.01
    batch_size: int = 4
    size: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class CheckpointParity:
    """What became of one checkpoint.

    Attributes:
        input: the file.
        arch: preset or network.
        config: the network's arguments.
        forward: the logits, in evaluation.
        layers: the output of every layer in evaluation, in float64 and in the order in which they finish.
        training: loss, gradients and updates of each step; None where there was none.
        atol: largest difference allowed.
        seconds: time that everything took.
        warnings: what the user should know, one sentence each.
    """

    input: str
    arch: str
    config: dict[str, Any]
    forward: Parity
    layers: tuple[LayerDifference, ...]
    training: TrainingParity | None
    atol: float
    seconds: float
    warnings: tuple[str, ...]

    @property
    def difference(self) -> str | None:
        """The first thing that differs, as a clause; None where PyTorch and Paddle do the same."""
        said = []
        if not self.forward.max_rel_diff <= self.atol:
            layer = first_difference(self.layers, self.atol)
            where = f", first in layer {layer.name}, by {layer.max_rel_diff:.1e}" if layer else ""
            said.append(f"the logits differ by {self.forward.max_rel_diff:.1e} of their scale{where}")
        if self.training and self.training.first_difference:
            said.append(f"training differs first at {self.training.first_difference} of its scale")
        return f"{', and '.join(said)} (allowed: {self.atol:.0e})" if said else None


def check_checkpoint(path: Path, options: Options = Options(), section: Section | None = None) -> CheckpointParity:
    """Run a checkpoint's network in PyTorch and in Paddle, in the form that the file has.

    A trained-form checkpoint that is condensed far enough is compared in its condensed form as well, as
    `convert.torch2paddle` would write it.

    Args:
        path: a PyTorch checkpoint, or Paddle weights (``.pdparams``, or ``.safetensors`` with Paddle's names).
        options: see `Options`.
        section: of a report, to be filled in as the comparison goes.

    Raises:
        WeightsError: the file cannot be read or recognised, or the condensed form differs.
        ValueError: an option does not fit the network.
    """
    start = time.perf_counter()
    section = section or Section(str(path))
    checkpoint, original, source, found, said = in_one_moment(path, lambda: _read(path, options))
    warnings = section.warnings
    warnings += said
    with naming(path), conversion.on_cpu():
        from paddle_dense.cost import affordable

        reference, model, replaced = _pair(original, source, found, options)
        warnings += replaced
        warnings += conversion.check_stated(checkpoint, found, model, options)
        conversion.describe(section, model, source, options)
        channels, size = model.config["in_channels"], options.size or model.input_size
        with affordable(model, "compare with a smaller --size", size, batch=2):
            batches = random_batches(channels, size, (options.seed, options.seed + 1))
            if options.images:
                batches += image_batches(options.images, model.preprocessing, channels)
            forward, said = settled(reference, model, batches, options.atol)
        warnings += said
        section.parity, section.atol = forward, options.atol
        if options.report:
            section.layers = layers_in_both_precisions(reference, model, batches[0])
            layers = [LayerDifference(layer.name, layer.float64) for layer in section.layers]
        else:
            with exact_pair(reference, model) as pair:
                layers = layer_differences(*pair, batches[0])
        training = None
        if options.steps:
            side = options.size or min(size, TRAINING_SIZE)
            shape = (options.batch_size, channels, side, side)
            steps = _training_batches(options.steps, shape, model.config["num_classes"] or 2, options.seed)
            training = compare_training(
                reference, model, steps, learning_rate=options.learning_rate, tolerance=options.atol
            )
            warnings += training.warnings
            section.training = training
        if not found.config.get("condensed", True) and not options.keep_trained_form:
            warnings += _check_condensed(original, source, found, options)
    result = CheckpointParity(
        str(path),
        found.arch,
        dict(model.config),
        forward,
        tuple(layers),
        training,
        options.atol,
        time.perf_counter() - start,
        tuple(warnings),
    )
    section.error, section.verified, section.seconds = result.difference, result.difference is None, result.seconds
    return result


def _read(
    path: Path, options: Options
) -> tuple[Checkpoint, dict[str, np.ndarray], dict[str, np.ndarray], Architecture, list[str]]:
    """The file, its tensors for PyTorch and for Paddle, the network that they belong to, and warnings."""
    if path.suffix == ".pdparams":
        checkpoint = Checkpoint(read_weights(path), "bare")
    else:
        checkpoint = read_checkpoint(path, ema=options.ema)
    state = checkpoint.state

    # Only now, when there is something to compare: Paddle takes seconds to load.
    from paddle_dense.models.recognise import canonical, recognise

    with naming(path):
        refuse_mixture(state)
        tensors, state = state, canonical(state)
        if paddle_sign(tensors):
            source, original = state, to_torch(state)
            told = None if options.arch else told_of(path, tensors)
            found = described(path, options, tensors, told) or recognise(source, options.arch, options.config)
        else:
            source, original = to_paddle(state), state
            found = recognise(source, options.arch, options.config)
        return checkpoint, original, source, found, [*checkpoint.warnings, *found.warnings]


def described(
    path: Path, options: conversion.Options, tensors: Mapping[str, np.ndarray], told: Mapping[str, Any] | None
) -> Architecture | None:
    """The network that the sidecar of Paddle weights tells of, unless the user says what it is."""
    from paddle_dense.layers.budget import Room
    from paddle_dense.models.network import network_class
    from paddle_dense.models.recognise import Architecture

    network = None if options.arch else described_network(path, told)
    if network is None:
        return None
    arch, config = network
    try:
        found = Architecture(arch, network_class(arch), config, room=Room.of(tensors))
        found.outline()
    except ValueError as error:
        raise WeightsError(f"the sidecar .json describes no network of this package: {error}") from error
    return replace(found, config={**config, **options.config})


def _pair(
    original: Mapping[str, np.ndarray], source: Mapping[str, np.ndarray], found: Architecture, options: Options
) -> tuple[torch.nn.Module, nn.Layer, list[str]]:
    """The PyTorch network and the Paddle network with the file's weights, in the file's form; and what was replaced."""
    from paddle_dense.models.fitting import check_state, set_state
    from paddle_dense.models.recognise import give_memory

    outline = conversion.outline_of(found, options)
    state = check_state(source, outline, allow_nonfinite=options.allow_nonfinite)
    replaced: list[str] = []
    if options.allow_nonfinite:
        original, replaced = conversion.comparable(original)
        state, _ = conversion.comparable(state)
    reference = conversion.build_reference(found, options.reference)
    load_torch_state(reference, conversion.with_binary_masks(original))
    model = give_memory(outline)
    set_state(model, state)
    return reference, model, replaced


def _training_batches(steps: int, shape: tuple[int, ...], classes: int, seed: int) -> list[Batch]:
    random = np.random.default_rng(seed)
    return [
        (random.standard_normal(shape, np.float32), random.integers(classes, size=shape[0], dtype=np.int64))
        for _ in range(steps)
    ]


def _check_condensed(
    original: Mapping[str, np.ndarray], source: Mapping[str, np.ndarray], found: Architecture, options: Options
) -> list[str]:
    """Compare the condensed form with the reference; warnings, or WeightsError if it differs."""
    from paddle_dense.cost import CostError

    try:
        state, architecture = conversion.condensed_form(source, found)
    except WeightsError as error:
        return [f"the condensed form was not compared: {error}"]
    outline = conversion.outline_of(architecture, options)
    try:
        _, warnings = conversion.check(original, state, found, outline, options)
    except CostError as error:
        return [f"the condensed form was not compared: {error}"]
    return warnings
