"""One checkpoint through every check: forward, layer by layer, loss, gradients, training. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.conversion import describe, fit_file, of_option
from convert.options import ParityOptions as Options
from convert.parity.forward import (
    LayerPrecision,
    exact_pair,
    image_batches,
    layer_differences,
    layers_in_both_precisions,
    random_batches,
    settled,
)
from convert.parity.training import compare_training
from convert.result import OWN_TWIN, Result
from convert.verification import both_networks, check, names_of_layers
from paddle_dense.condensing import condensed_form
from paddle_dense.cost import CostError, affordable
from paddle_dense.errors import WeightsError, naming
from paddle_dense.evaluation import on_cpu
from paddle_dense.files.opened import WeightsFile, open_weights
from paddle_dense.identifying import Fitted, Identified, identify, outlined

TRAINING_SIZE = 64  # pixels: gradients say the same at any size, and steps in two precisions take long


DEFAULTS = Options()


def check_checkpoint(source: Path | WeightsFile, options: Options = DEFAULTS, result: Result | None = None) -> Result:
    """Run a checkpoint's network in PyTorch and in Paddle, in the form that the file has.

    A trained-form checkpoint that is condensed far enough is compared in its condensed form as well, as
    `convert.torch2paddle` would write it.

    Args:
        source: a PyTorch checkpoint or Paddle weights, or what `open_weights` read.
        options: see `Options`.
        result: to be filled in as the comparison goes.

    Raises:
        WeightsError: the file cannot be read or recognised, or the condensed form differs.
        ValueError: an option does not fit the network.
    """
    start = time.perf_counter()
    file = source if isinstance(source, WeightsFile) else open_weights(source, ema=options.ema, key=options.key)
    result = result or Result(str(file.path))
    with on_cpu():
        found = identify(file, options.arch, options.config, options.selection)
        result.warnings += [*file.warnings, *found.matched.warnings()]
        fitted = fit_file(file, found, options, condensed=False)
    # The user's own network has the file's own names.
    original = file.tensors if options.reference and file.checkpoint else found.original
    with naming(file.path), on_cpu():
        _compare(fitted, original, found, options, result)
        if not found.architecture.config.get("condensed", True) and not options.keep_trained_form:
            result.warnings += _check_condensed(original, found, options)
    result.error, result.seconds = result.difference, time.perf_counter() - start
    result.verified, result.checked_against = result.difference is None, options.reference or OWN_TWIN
    if not (result.verified and options.reference):
        result.assumed = dict(found.architecture.assumed)
        result.warnings += found.architecture.warnings
    return result


def _compare(
    fitted: Fitted, original: Mapping[str, np.ndarray], found: Identified, options: Options, result: Result
) -> None:
    """Logits, layers and training of the network in the form that the file has."""
    reference, model, replaced = both_networks(original, fitted.state, found.architecture, fitted.outline, options)
    result.warnings += [*replaced, *fitted.warnings]
    describe(result, model, found.state, options)
    channels, size = model.config["in_channels"], options.size or model.input_size
    with affordable(model, "compare with a smaller --size", size, batch=2):
        batches = random_batches(channels, size, (options.seed, options.seed + 1))
        if options.images:
            batches += image_batches(options.images, model.preprocessing, channels)
        result.parity, warnings = settled(reference, model, batches, options.atol)
    result.warnings += warnings
    result.atol, own_name = options.atol, names_of_layers(found, options)
    if options.report:
        result.layers = layers_in_both_precisions(reference, model, batches[0], own_name=own_name)
    else:
        with exact_pair(reference, model) as pair:
            layers = layer_differences(*pair, batches[0], own_name=own_name)
        result.layers = [LayerPrecision(layer.name, float("nan"), layer.max_rel_diff) for layer in layers]
    if options.steps and model.features_only:
        result.warnings.append("training was not compared: features_only leaves no logits to compute a loss of")
    elif options.steps:
        side = options.size or min(size, TRAINING_SIZE)
        random, n, classes = np.random.default_rng(options.seed), options.batch_size, model.config["num_classes"] or 2
        steps = [
            (random.standard_normal((n, channels, side, side), np.float32), random.integers(classes, size=n))
            for _ in range(options.steps)
        ]
        result.training = compare_training(
            reference, model, steps, learning_rate=options.learning_rate, tolerance=options.atol
        )
        result.warnings += result.training.warnings


def _check_condensed(original: Mapping[str, np.ndarray], found: Identified, options: Options) -> list[str]:
    """Compare the condensed form with the reference; warnings, or WeightsError if it differs."""
    try:
        state, architecture = condensed_form(found.state, found.architecture)
    except WeightsError as error:
        return [f"the condensed form was not compared: {error}"]
    with of_option(options):
        outline = outlined(architecture, options.config)
    try:
        return check(original, state, found, outline, options)
    except CostError as error:
        return [f"the condensed form was not compared: {error}"]
