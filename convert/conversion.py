"""One checkpoint from PyTorch to Paddle, or back: read, recognise, condense, check, write."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.options import Options
from convert.origin import origin_path, read_origin, record_origin, restore_origin
from convert.pytorch import pytorch_fault
from convert.report import summarise
from convert.result import Result
from convert.verification import verify
from paddle_dense.errors import WeightsError, naming
from paddle_dense.evaluation import on_cpu
from paddle_dense.files import WeightsFile, open_weights, write_torch, write_weights
from paddle_dense.files.atomic import atomic_write, make_folder, overlap, refuse_existing
from paddle_dense.files.compact import saved_bytes
from paddle_dense.files.names import paddle_sign, pytorch_sign
from paddle_dense.files.sidecar import is_left_over, sidecar_path, with_its_sidecar, write_with_sidecar
from paddle_dense.identifying import Fitted, Identified, fit, identify
from paddle_dense.layers.linear import condense_linear
from paddle_dense.models.matching import match
from paddle_dense.models.network import Network

DEFAULTS = Options()
_HASHES = ("sha256",)
CLASSIFIER_CHANGED = (
    "the classifier reads half of its inputs now, as asked for with --condense-classifier, so the outputs are not "
    "those of the checkpoint"
)
_FUSED = (
    "is fused for inference, and fused weights are no checkpoint that PyTorch's networks could load: convert the file "
    "that it was made from"
)
# Where a fused CondenseNet has layers that a checkpoint has not. The others have biases of convolutions.
_FUSED_LAYER = re.compile(r"\.(conv_1|conv_2|sfr)\.([0-9]+\.|weight$)")


def convert_checkpoint(
    source: Path | WeightsFile, target: Path, options: Options = DEFAULTS, result: Result | None = None
) -> Result:
    """Convert a PyTorch checkpoint and check the two frameworks against each other; nothing is written if they differ.

    Args:
        source: ``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors`` or the ``.index.json`` of shards; or what
            `open_weights` read, its SHA-256 with it.
        target: the file to write; its sidecar ``.json`` is written next to it.
        options: see `Options`.
        result: to be filled in as the conversion goes.

    Raises:
        WeightsError: the file cannot be read, recognised or condensed, or the check failed.
        ValueError: an option does not fit the network.
        OSError: the target cannot be written.
    """
    start = time.perf_counter()
    file = (
        source
        if isinstance(source, WeightsFile)
        else open_weights(source, "pytorch", options.ema, _HASHES, options.key)
    )
    result = result or Result(str(file.path))
    check_targets((target, sidecar_path(target)), (file.path, *file.shards), options)
    with on_cpu():
        identified = identify(file, options.arch, options.config, options.selection)
    original = identified.original
    result.container, result.left_out = file.container, list(identified.matched.left_out)
    result.warnings += [*file.warnings, *identified.matched.warnings()]
    with on_cpu():
        fitted = fit_file(file, identified, options, not options.keep_trained_form)
        result.warnings += fitted.warnings
    with naming(file.path), on_cpu():
        if options.condense_classifier:
            fitted = _with_condensed_classifier(fitted)
            result.warnings.append(CLASSIFIER_CHANGED)
        state, outline = fitted.state, fitted.outline
        describe(result, outline, state, options)
        # The user's own network has the file's own names.
        verify(file.tensors if options.reference else original, state, identified, outline, options, result)
    conclude(result, file, target, start)
    provenance = result.provenance()
    provenance.update(file.described(outline.num_classes))
    provenance["source"].update(record_origin(identified.matched.original_names(), original, state))
    write_with_sidecar(state, target, provenance, options.force, options.compact)
    result.size, result.size_of_indices = target.stat().st_size, 0 if options.compact else saved_bytes(state)
    return result


def convert_back(
    source: Path | WeightsFile, target: Path, options: Options = DEFAULTS, result: Result | None = None
) -> Result:
    """Convert Paddle weights and check the two frameworks against each other; nothing is written if they differ.

    Args:
        source: ``.pdparams`` or ``.safetensors`` with Paddle's names, or what `open_weights` read, its SHA-256 with it.
        target: the file to write, ``.pth`` or ``.safetensors``; where it comes from goes to ``TARGET.json``.
        options: see `Options`.
        result: to be filled in as the conversion goes.

    Raises:
        WeightsError: the file cannot be read or recognised, is fused, or the check failed.
        ValueError: an option does not fit the network.
        OSError: the target cannot be written.
    """
    start = time.perf_counter()
    file = source if isinstance(source, WeightsFile) else open_weights(source, "paddle", hashes=_HASHES)
    result = result or Result(str(file.path))
    check_targets((target, origin_path(target)), with_its_sidecar(file.path), options)
    _refuse_pytorch(file)
    with on_cpu():
        try:
            identified = identify(file, options.arch, options.config, options.selection)
            fitted = fit_file(file, identified, options, condensed=False)
            state, outline = fitted.state, fitted.outline
        except WeightsError:
            if _is_fused(file.tensors):
                raise WeightsError(f"{file.path}: {_FUSED}") from None
            raise
        with naming(file.path):
            result.container, result.left_out = file.path.suffix.lstrip("."), list(identified.matched.left_out)
            result.warnings += identified.matched.warnings()
            describe(result, outline, state, options)
            original = restore_origin(state, read_origin(file.path, file.sidecar))
            # What is written is what is read again: under the names that it will have.
            again = identified._replace(matched=match(original, in_pytorch=True, known=fitted.architecture.network))
            verify(original if options.reference else again.matched.state, state, again, outline, options, result)
    conclude(result, file, target, start)
    _write_torch(original, target, result.provenance())
    return result


def check_targets(written: Iterable[Path], read: Iterable[Path], options: Options) -> None:
    """See that files can be written: none is one of those that are read, and what stands there the user gives away.

    Raises:
        WeightsError: for the first that cannot.
    """
    written = tuple(written)
    clash = overlap(written, read)
    if clash:
        raise WeightsError(f"{clash} with -o")
    for file in written:
        refuse_existing(file, options.force or is_left_over(file))


def _refuse_pytorch(file: WeightsFile) -> None:
    if (sign := pytorch_sign(file.tensors, file.metadata)) and not paddle_sign(file.tensors):
        raise WeightsError(
            f"{file.path}: has {sign} already, so its linear layers lie as in PyTorch: give the Paddle file, or take "
            f"this one as it is"
        )


def fit_file(file: WeightsFile, found: Identified, options: Options, condensed: bool) -> Fitted:
    """The file's tensors in their places, as the options say; what does not make a network names the option."""
    settles = options.reference and options.verify and pytorch_fault() is None
    with of_option(options):
        return fit(
            file,
            found,
            options.config,
            condensed=condensed,
            allow_nonfinite=options.allow_nonfinite,
            settled_by="the check against --reference" if settles else None,
        )


@contextmanager
def of_option(options: Options) -> Iterator[None]:
    """Says of numbers that make no network where the user gave them."""
    try:
        yield
    except WeightsError:
        raise
    except ValueError as error:
        if options.config:
            raise ValueError(f"--config: {error}") from error
        raise


def _with_condensed_classifier(fitted: Fitted) -> Fitted:
    """The network with the classifier's inputs halved; ValueError for a network that knows no such step."""
    state, found = fitted.state, fitted.architecture
    name, whole_one = found.network.classifier_name, found.config.get("condense_classifier") is False
    if not (whole_one and found.config["condensed"] and f"{name}.weight" in state):
        raise ValueError(
            f"--condense-classifier is for a CondenseNet with a whole classifier, in the condensed form, and this is "
            f"{found.arch}{'' if f'{name}.weight' in state else ' without a classifier'}: leave the option out"
        )
    whole = {key: state[f"{name}.{key}"] for key in ("weight", "bias")}
    halved = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
    halved.update({f"{name}.{key}": value for key, value in condense_linear(whole).items()})
    halved_one = replace(found, config={**found.config, "condense_classifier": True})
    outline = halved_one.outline()
    # The numbers have been checked; only the order is another one.
    return fitted._replace(
        architecture=halved_one, outline=outline, state={name: halved[name] for name in outline.state_dict()}
    )


def describe(result: Result, outline: Network, state: Mapping[str, np.ndarray], options: Options) -> None:
    """Say which network the tensors belong to and, for a report, how they are distributed."""
    result.arch, result.config, result.params = outline.arch, dict(outline.config), _count_parameters(state)
    if options.report:
        result.weights = summarise(state)


def conclude(result: Result, file: WeightsFile, target: Path, start: float) -> None:
    """Record what is known once the checks have passed, and make the target's folder."""
    result.output, result.sha256 = str(target), file.digest()
    result.seconds = time.perf_counter() - start
    make_folder(target.parent)


def _count_parameters(state: Mapping[str, np.ndarray]) -> int:
    buffers = ("_mean", "_variance", "index", "_mask", "_count", "_stage")
    return sum(value.size for name, value in state.items() if name.rpartition(".")[2] not in buffers)


def _is_fused(state: Mapping[str, np.ndarray]) -> bool:
    """Whether tensors that are no network's are those of a fused one."""
    if any(_FUSED_LAYER.search(name) for name in state):
        return True
    weights = {name: value for name, value in state.items() if name.endswith(".weight") and ".se." not in name}
    return any(value.ndim == 4 and f"{name[: -len('weight')]}bias" in state for name, value in weights.items())


def _write_torch(state: Mapping[str, np.ndarray], target: Path, provenance: Mapping[str, Any]) -> None:
    """Write the tensors and where they come from; what stood there stays if either cannot be written."""
    with atomic_write(origin_path(target)) as file:
        file.write((json.dumps(provenance, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
        if target.suffix == ".safetensors":
            write_weights(state, target, {"format": "pt"})
        else:
            with atomic_write(target) as weights:
                write_torch(state, weights)
