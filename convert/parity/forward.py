"""The same images through the PyTorch network and the Paddle network, and how far the answers differ."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, TypeVar

import numpy as np
import paddle

from convert.parity.recording import Event, OwnName, paddle_events, pairs, torch_events
from convert.parity.structures import Arrays, for_paddle, for_torch, named_arrays, paired, run
from paddle_dense.data import Preprocessing
from paddle_dense.errors import WeightsError, is_of_memory
from paddle_dense.evaluation import copied, double_precision, paddle_in_double_precision, rounded
from paddle_dense.evaluation import evaluation as paddle_evaluation
from paddle_dense.files.names import COUNTER
from paddle_dense.images import read_image

if TYPE_CHECKING:
    import torch
    from paddle import nn


Found = TypeVar("Found")
SEEDS = (0, 1)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Parity:
    """How far the two networks' answers are apart.

    Attributes:
        max_abs_diff: largest absolute difference of any logit, or of any number of the pyramid.
        max_rel_diff: the same, divided by the largest absolute logit of the PyTorch network; of a pyramid the largest
            such quotient, each tensor by itself.
        top1_agreement: share of the inputs for which both name the same class; of a pyramid, have the largest number of
            its last tensor in the same place.
        inputs: number of images compared, random ones included.
        what: what was compared, in the plural.
        float64: `max_rel_diff` in float64, where it was compared too; rounding leaves far less there than a mistake.
    """

    max_abs_diff: float
    max_rel_diff: float
    top1_agreement: float
    inputs: int
    what: str = "logits"
    float64: float | None = None

    def agrees(self, atol: float) -> bool:
        """Whether both do the same: to `atol`, and to a tenth of it in float64, where that was compared."""
        exact = 0.0 if self.float64 is None else self.float64
        return self.max_rel_diff <= atol and exact <= atol / 10


def random_batches(channels: int, size: int, seeds: Sequence[int] = SEEDS) -> list[np.ndarray]:
    """One batch of two random images for each seed: float32 [2, channels, size, size]."""
    return [np.random.default_rng(seed).standard_normal((2, channels, size, size), np.float32) for seed in seeds]


def image_batches(folder: Path, preprocessing: Preprocessing, channels: int) -> Iterator[np.ndarray]:
    """The images of a folder through a network's own transforms, a few at a time: float32 [n, channels, H, W].

    Raises:
        ValueError: the folder holds no image.
        DataError: one cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    transforms = preprocessing.transforms()
    for start in range(0, len(paths), _IMAGES_AT_ONCE):
        some = paths[start : start + _IMAGES_AT_ONCE]
        yield np.stack([transforms(read_image(path, "L" if channels == 1 else "RGB")).numpy() for path in some])


@contextmanager
def evaluation(torch_model: torch.nn.Module, paddle_model: nn.Layer) -> Iterator[None]:
    """Both models in evaluation mode, without gradients; their modes are put back afterwards.

    PyTorch's Transformer computes here as in training: its fast path calls no layers, and gives 0 for padded places.
    """
    import torch

    modes = [(module, module.training) for module in torch_model.modules()]
    torch_model.eval()
    attention = getattr(torch.backends, "mha", None)  # not in PyTorch 2.0
    fast = attention and attention.get_fastpath_enabled()
    try:
        if attention:
            attention.set_fastpath_enabled(False)
        with torch.no_grad(), paddle_evaluation(paddle_model):
            yield
    finally:
        if attention:
            attention.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training


def in_double_precision(model: torch.nn.Module) -> torch.nn.Module:
    """The model in float64, with the constants that Paddle's kernels keep in float32 rounded alike."""
    for module in model.modules():
        rules = {"eps": rounded, "negative_slope": _slope, "momentum": lambda share: 1 - rounded(1 - share)}
        for name, rule in rules.items():  # of the momentum, Paddle has the other share
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, rule(getattr(module, name)))
    return model.double()


def _slope(slope: float) -> float:
    """The slope of a leaky ReLU as this version of Paddle has it: 2.6 in float32, 3.3 in float64."""
    return -float(paddle.nn.functional.leaky_relu(paddle.to_tensor(-1.0, dtype="float64"), slope))


def compare(torch_model: torch.nn.Module, paddle_model: nn.Layer, batches: Sequence[Any]) -> Parity:
    """Run both models on the same inputs and compare what they answer: logits, a pyramid, or any tensors.

    Args:
        torch_model: the PyTorch network, on any device and of any precision.
        paddle_model: the Paddle network.
        batches: what each call takes: an array, a tuple of arrays, or a dict for keyword arguments.

    Raises:
        WeightsError: the outputs are not the same tensors.
    """
    theirs, ours = list[Arrays](), list[Arrays]()
    with evaluation(torch_model, paddle_model):
        for batch in batches:
            # Paddle first: what the network may cost is bounded there.
            ours.append(named_arrays(run(paddle_model, for_paddle(batch, paddle_model))))
            theirs.append(named_arrays(run(torch_model, for_torch(batch, torch_model))))
    pairs = paired(_joined(ours), _joined(theirs))
    first, second = (arrays[-1].reshape(len(arrays[-1]), -1).argmax(1) for arrays in zip(*pairs))
    what = "logits" if len(pairs) == 1 and pairs[0][0].ndim == 2 else "outputs"
    return Parity(
        max(float(np.abs(_floats(one) - other).max(initial=0)) for one, other in pairs),
        max(relative_difference(one, other) for one, other in pairs),
        float((first == second).mean()),
        len(first),
        "feature maps" if getattr(paddle_model, "features_only", None) is True else what,
    )


def _joined(batches: Sequence[Arrays]) -> Arrays:
    """The outputs of all batches, one after the other."""
    return {name: np.concatenate([np.atleast_1d(batch[name]) for batch in batches]) for name in batches[0]}


@dataclass(frozen=True)
class LayerDifference:
    """One layer whose output differs: its name and the largest difference, relative to the output's scale."""

    name: str
    max_rel_diff: float


@dataclass(frozen=True)
class LayerPrecision:
    """The largest difference of one layer's output, relative to its scale; NaN in a precision that was not compared."""

    name: str
    float32: float
    float64: float


def settled(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    batches: Sequence[Any],
    atol: float,
    in_both: bool = False,
) -> tuple[Parity, list[str]]:
    """`compare`, and what differs in float32 once more in float64, where only wrong weights differ.

    Some networks amplify rounding. A check that float64 passes is reported with its figures and a warning; one that it
    does not with those of float32.

    Args:
        torch_model: the PyTorch network, as it is.
        paddle_model: the Paddle network, as it is.
        batches: as `compare` takes them.
        atol: largest difference allowed, relative to the outputs' scale.
        in_both: compare in float64 as well where float32 agrees, since a mistake may be smaller than `atol`.
    """
    result = compare(torch_model, paddle_model, batches)
    if result.max_rel_diff <= atol and not in_both:
        return result, []
    exact, fault = in_float64(torch_model, paddle_model, lambda theirs, ours: compare(theirs, ours, batches))
    if result.max_rel_diff <= atol:
        told = [fault] if fault and result.max_rel_diff > atol / 10 else []
        return replace(result, float64=exact.max_rel_diff if exact else None), told
    if not (exact and exact.max_rel_diff <= atol):
        return result, [fault] if fault else []
    return exact, [
        f"this network amplifies rounding: in float32 the frameworks differ by {result.max_rel_diff:.1e} of "
        f"the {result.what}' scale, and in float64 they agree to {exact.max_rel_diff:.1e}"
    ]


@contextmanager
def exact_pair(torch_model: torch.nn.Module, paddle_model: nn.Layer) -> Iterator[tuple[torch.nn.Module, nn.Layer]]:
    """Copies of both models in float64, which compute in it inside."""
    with double_precision():
        yield in_double_precision(copied(torch_model)), paddle_in_double_precision(paddle_model)


def in_float64(
    torch_model: torch.nn.Module, paddle_model: nn.Layer, work: Callable[[torch.nn.Module, nn.Layer], Found]
) -> tuple[Found | None, str | None]:
    """What comes of both models in float64, or a warning that says why one of them could not be run in it."""
    try:
        with exact_pair(torch_model, paddle_model) as pair:
            return work(*pair), None
    except Exception as error:  # a network of the user's own may raise anything
        if is_of_memory(error):
            raise
        return None, (
            f"the networks could not be run in float64 ({reason_of(error)}), where mistakes are told from rounding: "
            f"let them take the dtype of their inputs and weights"
        )


def reason_of(error: Exception) -> str:
    """What an exception of either framework says, its class before it, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "Error:" in line or line.startswith("(")), lines[-1] if lines else "")
    return f"{type(error).__name__}: {line[:200]}"


def layer_differences(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    batch: Any,
    skip: Sequence[str] = (),
    own_name: OwnName = str,
    by_order: bool = False,
) -> list[LayerDifference]:
    """Compare the output of every layer that has the same name in both models, in the order in which they finish.

    Args:
        torch_model: the PyTorch network.
        paddle_model: the Paddle network.
        batch: as `compare` takes it.
        skip: prefixes of layers that have no counterpart, such as the inside of a layer condensed on the way.
        own_name: what the Paddle network calls a layer of the PyTorch network; None for one that it does not have.
        by_order: pair layers that no name pairs by kind, shape of the output and order.
    """
    with evaluation(torch_model, paddle_model):
        return output_differences(torch_model, paddle_model, batch, skip, own_name, by_order)


def layers_in_both_precisions(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    batch: Any,
    skip: Sequence[str] = (),
    own_name: OwnName = str,
    by_order: bool = False,
) -> list[LayerPrecision]:
    """`layer_differences` of the models as they are and in float64: what is rounding is gone in the second.

    Where the models cannot be run in float64, the figures of float32 stand for both.
    """
    single = layer_differences(torch_model, paddle_model, batch, skip, own_name, by_order)
    exact, _ = in_float64(
        torch_model,
        paddle_model,
        lambda theirs, ours: layer_differences(theirs, ours, batch, skip, own_name, by_order),
    )
    double = {layer.name: layer.max_rel_diff for layer in (single if exact is None else exact)}
    return [
        LayerPrecision(layer.name, layer.max_rel_diff, double.get(layer.name, layer.max_rel_diff)) for layer in single
    ]


def output_differences(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    batch: Any,
    skip: Sequence[str] = (),
    own_name: OwnName = str,
    by_order: bool = False,
) -> list[LayerDifference]:
    """`layer_differences` in the mode that the models are in."""
    theirs, ours = torch_events(torch_model, batch, own_name), paddle_events(paddle_model, batch)
    calls = Counter(event.name for event in ours)
    found = []
    for n, m in pairs(theirs, ours, by_order):
        event, difference = ours[m], event_difference(theirs[n], ours[m])
        if event.name and difference is not None and not event.name.startswith(tuple(skip)):
            call = f", call {event.number + 1}" if calls[event.name] > 1 else ""
            found.append(LayerDifference(event.name + call, difference))
    return found


def event_difference(theirs: Event, ours: Event) -> float | None:
    """How far a layer's or function's outputs are apart, relative to their scale; infinite where shapes differ.

    Layers made of others need not be the same parts of the two networks: None where their outputs have other shapes.
    """
    both = list(zip(ours.outputs, theirs.outputs))
    if ours.call and theirs.outputs and not both:
        return math.inf  # it failed
    if not both or (any(one.shape != other.shape for one, other in both) and not _is_simple(theirs, ours)):
        return None
    return float(np.max([relative_difference(one, other) for one, other in both]))


def _is_simple(theirs: Event, ours: Event) -> bool:
    return bool(ours.call) or (ours.leaf and theirs.leaf)


def layers_alone(torch_model: torch.nn.Module, paddle_model: nn.Layer, before: str, own_name: OwnName) -> list[str]:
    """The Paddle network's layers right before one of its layers that the PyTorch network does not have."""
    known = {own_name(name) for name, _ in torch_model.named_modules()}
    names = [name for name, layer in paddle_model.named_sublayers() if not layer.sublayers()]
    alone: list[str] = []
    for name in names[: names.index(before)] if before in names else ():
        alone = [] if name in known else [*alone, name]
    return alone


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the scale of what is expected; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    found, expected = _floats(found), _floats(expected)
    return float(
        np.abs(found - expected).max(initial=0) / max(np.abs(expected).max(initial=0), np.finfo(np.float32).tiny)
    )


def _floats(array: np.ndarray) -> np.ndarray:
    """Numbers whose differences can be taken: integers and truth values become floats."""
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def first_difference(differences: Sequence[LayerDifference], atol: float) -> LayerDifference | None:
    """The first layer that differs by more than `atol`; a NaN on one side only counts as a difference."""
    return next((layer for layer in differences if not layer.max_rel_diff <= atol), None)


def load_torch_state(model: torch.nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Put a state_dict of arrays into a PyTorch network; its counters of batches, which nothing reads, are left out.

    Raises:
        WeightsError: a tensor is missing, unexpected or misshapen.
    """
    import torch

    state = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    expected = {name: list(value.shape) for name, value in model.state_dict().items() if not name.endswith(COUNTER)}
    for name in [*expected, *state]:
        if name in state and name in expected and list(state[name].shape) == expected[name]:
            continue
        fault = "is missing from the file" if name not in state else "is not in the network"
        if name in state and name in expected:
            fault = f"is {list(state[name].shape)} there and {expected[name]} in the network"
        raise WeightsError(f"the PyTorch network {type(model).__name__} does not fit the file: {name} {fault}")
    with warnings.catch_warnings():
        # Arrays from a file are read-only, and they are only read here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        model.load_state_dict(
            {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}, strict=False
        )
