"""One checkpoint from PyTorch to Paddle: read, recognise, condense, check, write."""

from __future__ import annotations

import hashlib
import importlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from convert.original import remembered
from convert.report.section import Section, summarise
from convert.versions import versions
from paddle_dense.errors import WeightsError, naming, shown
from paddle_dense.files.atomic import make_folder, overlap, refuse_existing
from paddle_dense.files.layout import to_paddle
from paddle_dense.files.names import paddle_sign, refuse_mixture
from paddle_dense.files.sidecar import is_left_over, sidecar_path, write_with_sidecar
from paddle_dense.files.torch_file import Checkpoint, read_checkpoint
from paddle_dense.files.weights import read_file
from paddle_dense.process import importing, signals_waiting

if TYPE_CHECKING:
    import torch
    from paddle import nn

    from convert.parity import Parity
    from paddle_dense.models.recognise import Architecture

CLASSIFIER_CHANGED = (
    "the classifier reads half of its inputs now, as asked for with --condense-classifier, so the outputs are not "
    "those of the checkpoint"
)
_UNCHECKED = "take another checkpoint, or convert it unchecked, with --no-verify of torch2paddle and paddle2torch"
_SUFFIXES = (".pth.tar", ".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".tar", ".pdparams")


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        arch: the preset that the file is said to be.
        config: arguments of the network that the user knows better than the file.
        format: ``"pdparams"`` (``"pth"`` on the way back) or ``"safetensors"``.
        keep_trained_form: do not condense a checkpoint in the trained form.
        condense_classifier: halve the classifier's inputs as CondenseNet's converter does, which changes the outputs.
        ema: take the averaged weights where the file has them.
        verify: run both frameworks on the same inputs.
        atol: largest difference allowed, relative to the logits' scale.
        images: folder of pictures to compare on, beside the random ones.
        reference: ``MODULE:FACTORY`` of the user's own PyTorch network, in place of the twin.
        force: overwrite what stands at the target.
        report: draw up what a report shows beside the result; it takes a run of both frameworks more.
        allow_nonfinite: take NaN, infinity, and BN variances of 0 or less, and compare without them.
    """

    arch: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    format: str = "pdparams"
    keep_trained_form: bool = False
    condense_classifier: bool = False
    ema: bool = True
    verify: bool = True
    atol: float = 1e-5
    images: Path | None = None
    reference: str | None = None
    force: bool = False
    report: Path | None = None
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class Conversion:
    """What became of one input; the fields of ``--json``.

    Attributes:
        input: the checkpoint.
        output: the file written.
        arch: preset or network.
        config: the network's arguments.
        params: parameters of the converted network.
        sha256: of the input.
        max_abs_diff, max_rel_diff, top1_agreement: the check, None where it was not run.
        verified: the check was run and passed.
        seconds: time from reading to writing.
        warnings: what the user should know, one sentence each.
    """

    input: str
    output: str
    arch: str
    config: dict[str, Any]
    params: int
    sha256: str
    max_abs_diff: float | None
    max_rel_diff: float | None
    top1_agreement: float | None
    verified: bool
    seconds: float
    warnings: tuple[str, ...]


def convert_checkpoint(
    path: Path, target: Path, options: Options = Options(), section: Section | None = None
) -> Conversion:
    """Convert a PyTorch checkpoint and check the two frameworks against each other; nothing is written if they differ.

    Args:
        path: ``.pth``, ``.pt``, ``.pth.tar`` or ``.safetensors``.
        target: the file to write; its sidecar ``.json`` is written beside it.
        options: see `Options`.
        section: of a report, to be filled in as the conversion goes.

    Raises:
        WeightsError: the file cannot be read, recognised or condensed, or the check failed.
        ValueError: an option does not fit the network.
        OSError: the target cannot be written.
    """
    start = time.perf_counter()
    section = section or Section(str(path))
    with naming(path):
        content = read_file(path)
    checkpoint = read_checkpoint(path, options.ema, content)
    check_targets((target, sidecar_path(target)), (path,), options)
    section.container, warnings = checkpoint.container, section.warnings
    warnings += checkpoint.warnings
    sha256 = hashing(content)
    del content  # most of it may be an optimizer's

    # Only now, when there is something to convert: Paddle takes seconds to load.
    with naming(path), on_cpu():
        from paddle_dense.models.fitting import check_state
        from paddle_dense.models.recognise import canonical, recognise

        refuse_mixture(checkpoint.state)
        if sign := paddle_sign(checkpoint.state):
            raise WeightsError(
                f"has {sign} already, so its linear layers lie as in Paddle: write its tensors to a Paddle file as "
                f"they are, with write_weights(read_checkpoint(PATH).state, 'NAME.pdparams')"
            )
        original = canonical(checkpoint.state)
        source = to_paddle(original)
        found = recognise(source, options.arch, options.config)
        warnings += found.warnings
        # In the file's form first: condensing leaves out much that tells of damage.
        outline = outline_of(found, options)
        state = check_state(source, outline, allow_nonfinite=options.allow_nonfinite)
        warnings += check_stated(checkpoint, found, outline, options)
        state, architecture = _target_form(state, found, options.keep_trained_form)
        if options.condense_classifier:
            state, architecture = _with_condensed_classifier(state, architecture)
            warnings.append(CLASSIFIER_CHANGED)
        if architecture is not found:
            outline = outline_of(architecture, options)
            state = check_state(state, outline, allow_nonfinite=options.allow_nonfinite)
        describe(section, outline, state, options)
        verify(original, state, found, outline, options, section)

    result = conclude(section, target, sha256.result(), start)
    told = provenance(result, checkpoint.container)
    told["source"].update(remembered(checkpoint.state, original, state))
    make_folder(target.parent)
    write_with_sidecar(state, target, told, options.force)
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


def origin_path(path: Path) -> Path:
    """Where a PyTorch file's origin is told: not in ``NAME.json``, which is the Paddle file's own."""
    return path.with_name(f"{path.name}.json")


def check_stated(checkpoint: Checkpoint, found: Architecture, outline: nn.Layer, options: Options) -> list[str]:
    """What a whole pickled module states of its layers, held against the network that is built; warnings.

    A check against the user's own network settles what is right, so a contradiction is a warning there.

    Args:
        checkpoint: what was read.
        found: the network in the checkpoint's form.
        outline: the same, built.
        options: see `Options`.

    Raises:
        WeightsError: the file states something else than the network computes, and nothing will settle it.
    """
    if not checkpoint.layers:
        return []
    from paddle_dense.models.stated import compare, remedy

    file = (checkpoint.layers, checkpoint.around, checkpoint.state)
    compared = compare(*file, outline)
    fault = compared.fault(found.arch)
    settled = bool(options.reference and options.verify and util.find_spec("torch"))
    if fault and not settled:
        option = remedy(*file, found, options.config)
        advice = f"give {option}" if option else "compare with the network itself, --reference MODULE:FACTORY"
        raise WeightsError(f"{fault}: {advice}")
    if settled:
        return [f"{fault}: the check against --reference settles which is right"] if fault else []
    return compared.warnings()


def describe(section: Section, outline: nn.Layer, state: Mapping[str, np.ndarray], options: Options) -> None:
    """Tell a report's section which network the tensors belong to, and how they are distributed."""
    section.arch = getattr(outline, "arch", type(outline).__name__)
    section.config = dict(outline.config)
    section.params = _count_parameters(state)
    if options.report:
        section.weights = summarise(state)


def verify(
    source: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    found: Architecture,
    outline: nn.Layer,
    options: Options,
    section: Section,
) -> None:
    """`check`, if the user wants it and PyTorch is there; the figures and warnings go into the section."""
    if options.verify and util.find_spec("torch") is None:
        section.warnings.append("PyTorch is not installed, so the result was not checked against it: pip install torch")
    elif options.verify:
        _, said = check(source, state, found, outline, options, section)
        section.verified = True
        section.warnings += said


def conclude(section: Section, target: Path, sha256: str, start: float) -> Conversion:
    """What became of an input, from what its section was told."""
    parity = section.parity
    section.output, section.sha256, section.seconds = str(target), sha256, time.perf_counter() - start
    return Conversion(
        input=section.input,
        output=section.output,
        arch=cast("str", section.arch),
        config=section.config,
        params=cast("int", section.params),
        sha256=sha256,
        max_abs_diff=parity.max_abs_diff if parity else None,
        max_rel_diff=parity.max_rel_diff if parity else None,
        top1_agreement=parity.top1_agreement if parity else None,
        verified=section.verified,
        seconds=section.seconds,
        warnings=tuple(section.warnings),
    )


def default_target(path: Path, suffix: str) -> Path:
    """Beside the input, under its name without PyTorch's suffixes: ``a.pth.tar`` -> ``a.pdparams``."""
    name = path.name
    ending = next((ending for ending in _SUFFIXES if name.lower().endswith(ending) and name.lower() != ending), "")
    return path.with_name(name[: len(name) - len(ending)] + f".{suffix}")


def _target_form(
    source: dict[str, np.ndarray], found: Architecture, keep: bool
) -> tuple[dict[str, np.ndarray], Architecture]:
    """The state to write and the network that it fits, in the condensed form unless the user keeps the trained one."""
    return (source, found) if keep or found.config.get("condensed", True) else condensed_form(source, found)


def condensed_form(source: Mapping[str, np.ndarray], found: Architecture) -> tuple[dict[str, np.ndarray], Architecture]:
    """State and network of a checkpoint in the trained form, condensed.

    Raises:
        WeightsError: it is not condensed far enough.
    """
    from paddle_dense.condensing import condense_state

    state = condense_state(source, lambda layer: found.network.condensing(layer, found.config))
    return state, replace(found, config={**found.config, "condensed": True})


def _with_condensed_classifier(
    state: dict[str, np.ndarray], found: Architecture
) -> tuple[dict[str, np.ndarray], Architecture]:
    """The state and network with the classifier's inputs halved; ValueError for a network that knows no such step."""
    if found.config.get("condense_classifier") is not False or not found.config["condensed"]:
        raise ValueError(
            f"--condense-classifier is for a CondenseNet with a whole classifier, in the condensed form, and this is "
            f"{found.arch}: leave the option out"
        )
    from paddle_dense.layers.linear import condense_linear

    name = found.network.classifier_name
    whole = {key: state[f"{name}.{key}"] for key in ("weight", "bias")}
    halved = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
    halved.update({f"{name}.{key}": value for key, value in condense_linear(whole).items()})
    return halved, replace(found, config={**found.config, "condense_classifier": True})


def outline_of(architecture: Architecture, options: Options) -> nn.Layer:
    """The Paddle network without its memory; numbers that make none are the user's fault where the user gave some."""
    try:
        return architecture.outline()
    except ValueError as error:
        if options.config:
            raise ValueError(f"--config: {error}") from error
        raise WeightsError(f"holds tensors that make no network ({error}): take an undamaged checkpoint") from error


def with_binary_masks(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same state with averaged masks put back to 0 and 1, and the counters beside them to whole numbers."""
    from paddle_dense.layers.choices import binary_mask, learned_layers

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
    found: Architecture,
    outline: nn.Layer,
    options: Options,
    section: Section | None = None,
) -> tuple[Parity, list[str]]:
    """Compare the converted network with its reference; WeightsError with the first layer that differs.

    Some networks amplify rounding. What differs in float32 is therefore compared once more in float64, where only wrong
    weights differ.

    Args:
        source: the checkpoint's tensors, for the reference.
        state: the converted tensors, for the Paddle network.
        found: the network in the checkpoint's form.
        outline: of the network in the form that is written; it gets memory and the tensors.
        options: see `Options`.
        section: of a report, which is told the figures, and with --report every layer, before a difference is raised.
    """
    from convert import parity
    from paddle_dense.cost import affordable
    from paddle_dense.layers.choices import learned_layers
    from paddle_dense.models.fitting import set_state
    from paddle_dense.models.recognise import give_memory

    replaced: list[str] = []
    if options.allow_nonfinite:
        source, replaced = comparable(source)
        state, _ = comparable(state)
    reference: Any = build_reference(found, options.reference)
    parity.load_torch_state(reference, with_binary_masks(source))
    if options.condense_classifier:
        if options.reference:
            raise ValueError("--condense-classifier cannot be checked against --reference: leave one of them out")
        reference.condense_classifier()
    model = give_memory(outline)
    set_state(model, state)
    channels = model.config["in_channels"]
    inside = [f"{layer}." for layer in learned_layers(source)]
    # Numbers that overflow are no news: what comes of them is said below.
    with np.errstate(over="ignore", invalid="ignore"), affordable(model, _UNCHECKED, batch=2):
        batches = parity.random_batches(channels, model.input_size)
        if options.images:
            batches += parity.image_batches(options.images, model.preprocessing, channels)
        result, warnings = parity.settled(reference, model, batches, options.atol)
        if section:
            section.parity, section.atol = result, options.atol
        if section and options.report:
            section.layers = parity.layers_in_both_precisions(reference, model, batches[0], skip=inside)
    if result.max_rel_diff <= options.atol:
        return result, [*warnings, *replaced]
    if not np.isfinite(result.max_rel_diff):
        raise WeightsError(
            "the outputs are NaN or infinite though every weight is finite, so Paddle and PyTorch cannot be compared: "
            "take an undamaged checkpoint, or convert it unchecked with --no-verify"
        )

    with parity.exact_pair(reference, model) as pair:
        first = parity.first_difference(parity.layer_differences(*pair, batches[0], skip=inside), options.atol)
    where = f"first in layer {first.name}, by {first.max_rel_diff:.1e}" if first else "in no single layer"
    raise WeightsError(
        f"Paddle and PyTorch differ by {result.max_rel_diff:.1e} of the logits' scale (allowed: {options.atol:.0e}), "
        f"{where}: correct the network's numbers with --config, or give your own network with --reference"
    )


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
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    said = f"compared with 0 in place of NaN and infinity, and 1 for variances that are not positive, in {listed}"
    return kept, [said] if names else []


@contextmanager
def on_cpu() -> Iterator[None]:
    """Paddle on the CPU, where float32 is float32; the device is put back afterwards."""
    with importing():
        import paddle

    device = paddle.get_device()
    paddle.set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(device)


def build_reference(architecture: Architecture, own: str | None) -> torch.nn.Module:
    """The PyTorch network to compare with: the user's ``MODULE:FACTORY``, or else the twin."""
    return _own_reference(own) if own else build_twin(architecture)


def build_twin(architecture: Architecture) -> torch.nn.Module:
    """The PyTorch twin of a Paddle network: the class of the same name in the module of the same name."""
    with importing():
        name = architecture.network.__module__.replace("paddle_dense.models", "convert.torch_models")
        module = importlib.import_module(name)
    config = {key: value for key, value in architecture.config.items() if key != "features_only"}
    return getattr(module, architecture.network.__name__)(**config)


def _own_reference(name: str) -> torch.nn.Module:
    """The network that the user's ``MODULE:FACTORY`` makes; what its code prints goes to stderr."""
    module_name, _, factory_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        with redirect_stdout(sys.stderr):
            return getattr(importlib.import_module(module_name), factory_name)()
    except Exception as error:  # the user's code may raise anything
        raise ValueError(
            f"--reference {name} could not be built ({type(error).__name__}: {error}): name a module and a function "
            f"without arguments that returns the PyTorch network"
        ) from error
    finally:
        sys.path.pop(0)


def _count_parameters(state: Mapping[str, np.ndarray]) -> int:
    buffers = ("_mean", "_variance", "index", "_mask", "_count", "_stage")
    return sum(value.size for name, value in state.items() if name.rpartition(".")[2] not in buffers)


def hashing(content: memoryview) -> Future[str]:
    """The sha256 of a file's bytes, computed beside: it needs no turn of the interpreter, so it is free while Paddle
    loads."""
    beside = ThreadPoolExecutor(1)
    with signals_waiting():
        sha256 = beside.submit(lambda: hashlib.sha256(content).hexdigest())
    beside.shutdown(wait=False)
    return sha256


def provenance(result: Conversion, container: str) -> dict[str, Any]:
    """What the sidecar says: what the network is, where it came from and how far it was checked."""
    return {
        "arch": result.arch,
        "config": result.config,
        "params": result.params,
        "source": {"file": Path(result.input).name, "sha256": result.sha256, "container": container},
        "verified": result.verified,
        "parity": {key: getattr(result, key) for key in ("max_abs_diff", "max_rel_diff", "top1_agreement")},
        "warnings": list(result.warnings),
        "versions": versions(),
    }
