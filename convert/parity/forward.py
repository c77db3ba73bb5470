"""The same images through the PyTorch network and the Paddle network, and how far the answers differ."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np
import paddle

from paddle_dense.data import Preprocessing
from paddle_dense.errors import WeightsError
from paddle_dense.evaluation import double_precision, paddle_in_double_precision, rounded
from paddle_dense.evaluation import evaluation as paddle_evaluation
from paddle_dense.files.names import COUNTER
from paddle_dense.images import read_image
from paddle_dense.layers.sfr import grouped_convolutions

if TYPE_CHECKING:
    import torch
    from paddle import nn


OwnName = Callable[[str], Optional[str]]
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
    """

    max_abs_diff: float
    max_rel_diff: float
    top1_agreement: float
    inputs: int
    what: str = "logits"


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
    """Both models in evaluation mode, without gradients; their modes are put back afterwards."""
    import torch

    modes = [(module, module.training) for module in torch_model.modules()]
    torch_model.eval()
    try:
        with torch.no_grad(), paddle_evaluation(paddle_model):
            yield
    finally:
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


def compare(torch_model: torch.nn.Module, paddle_model: nn.Layer, batches: Sequence[np.ndarray]) -> Parity:
    """Run both models on the same batches and compare their logits, or each tensor of their pyramids.

    Args:
        torch_model: the PyTorch network, on any device and of any precision.
        paddle_model: the Paddle network, of Paddle's default dtype.
        batches: float32 [N, C, H, W] each.
    """
    import torch

    like = next(iter(torch_model.parameters()))
    theirs, ours = list[list[np.ndarray]](), list[list[np.ndarray]]()
    with evaluation(torch_model, paddle_model):
        for batch in batches:
            # Paddle first: what the network may cost is bounded there.
            ours.append(_answers(paddle_model(paddle.to_tensor(batch, dtype=paddle.get_default_dtype()))))
            theirs.append(_answers(torch_model(torch.from_numpy(batch).to(like))))
    expected, found = ([np.concatenate(parts) for parts in zip(*answers)] for answers in (theirs, ours))
    shapes = [" and ".join(str(list(array.shape)) for array in arrays) for arrays in (expected, found)]
    if shapes[0] != shapes[1]:
        raise WeightsError(f"PyTorch answers {shapes[0]} and Paddle {shapes[1]}")
    pairs = list(zip(found, expected))
    first, second = (arrays[-1].reshape(len(arrays[-1]), -1).argmax(1) for arrays in (found, expected))
    return Parity(
        max(float(np.abs(one - other).max()) for one, other in pairs),
        max(_relative(one, other) for one, other in pairs),
        float((first == second).mean()),
        len(first),
        "logits" if getattr(paddle_model, "features_only", None) is not True else "feature maps",
    )


def _answers(output: Any) -> list[np.ndarray]:
    """Logits, or a pyramid, of either framework."""
    return [tensor.cpu().numpy() for tensor in (output if isinstance(output, (list, tuple)) else [output])]


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
    torch_model: torch.nn.Module, paddle_model: nn.Layer, batches: Sequence[np.ndarray], atol: float
) -> tuple[Parity, list[str]]:
    """`compare`, and what differs in float32 once more in float64, where only wrong weights differ.

    Some networks amplify rounding. A check that float64 passes is reported with its figures and a warning; one that it
    does not with those of float32.

    Args:
        torch_model: the PyTorch network, as it is.
        paddle_model: the Paddle network, as it is.
        batches: float32 [N, C, H, W] each.
        atol: largest difference allowed, relative to the logits' scale.
    """
    result = compare(torch_model, paddle_model, batches)
    if result.max_rel_diff <= atol:
        return result, []
    with exact_pair(torch_model, paddle_model) as pair:
        exact = compare(*pair, batches)
    if not exact.max_rel_diff <= atol:
        return result, []
    return exact, [
        f"this network amplifies rounding: in float32 the frameworks differ by {result.max_rel_diff:.1e} of "
        f"the {result.what}' scale, and in float64 they agree to {exact.max_rel_diff:.1e}"
    ]


@contextmanager
def exact_pair(torch_model: torch.nn.Module, paddle_model: nn.Layer) -> Iterator[tuple[torch.nn.Module, nn.Layer]]:
    """Copies of both models in float64, which compute in it inside."""
    with double_precision():
        yield in_double_precision(copy.deepcopy(torch_model)), paddle_in_double_precision(paddle_model)


def layer_differences(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    batch: np.ndarray,
    skip: Sequence[str] = (),
    own_name: OwnName = str,
) -> list[LayerDifference]:
    """Compare the output of every layer that has the same name in both models, in the order in which they finish.

    Args:
        torch_model: the PyTorch network.
        paddle_model: the Paddle network.
        batch: float32 [N, C, H, W].
        skip: prefixes of layers that have no counterpart, such as the inside of a layer condensed on the way.
        own_name: what the Paddle network calls a layer of the PyTorch network; None for one that it does not have.
    """
    with evaluation(torch_model, paddle_model):
        return output_differences(torch_model, paddle_model, batch, skip, own_name)


def layers_in_both_precisions(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    batch: np.ndarray,
    skip: Sequence[str] = (),
    own_name: OwnName = str,
) -> list[LayerPrecision]:
    """`layer_differences` of the models as they are and in float64: what is rounding is gone in the second."""
    single = layer_differences(torch_model, paddle_model, batch, skip, own_name)
    with exact_pair(torch_model, paddle_model) as pair:
        double = {layer.name: layer.max_rel_diff for layer in layer_differences(*pair, batch, skip, own_name)}
    return [LayerPrecision(layer.name, layer.max_rel_diff, double[layer.name]) for layer in single]


def output_differences(
    torch_model: torch.nn.Module,
    paddle_model: nn.Layer,
    batch: np.ndarray,
    skip: Sequence[str] = (),
    own_name: OwnName = str,
) -> list[LayerDifference]:
    """`layer_differences` in the mode that the models are in."""
    import torch

    theirs, ours = dict[str, np.ndarray](), dict[str, np.ndarray]()

    def record(outputs: dict[str, np.ndarray], name: str) -> Callable[..., Any]:
        def hook(layer: object, inputs: object, output: object) -> None:
            if hasattr(output, "detach"):
                outputs[name] = output.detach().cpu().numpy().copy()

        return hook

    modules = {name: module for theirs_, module in torch_model.named_modules() if (name := own_name(theirs_))}
    handles = [module.register_forward_hook(record(theirs, name)) for name, module in modules.items()]
    within = grouped_convolutions(paddle_model)
    layers = {name: layer for name, layer in paddle_model.named_sublayers() if layer not in within}
    handles += [layer.register_forward_post_hook(record(ours, name)) for name, layer in layers.items()]
    like = next(iter(torch_model.parameters()))
    try:
        torch_model(torch.from_numpy(batch).to(like))
        paddle_model(paddle.to_tensor(batch, dtype=paddle.get_default_dtype()))
    finally:
        for handle in handles:
            handle.remove()
    # Layers made of others need not be the same parts of the two networks, so their outputs may have other shapes.
    simple = {
        name for name in layers.keys() & modules.keys() if not [*layers[name].children(), *modules[name].children()]
    }
    return [
        LayerDifference(name, _relative(ours[name], theirs[name]))
        for name in ours
        if name in theirs and not name.startswith(tuple(skip))
        if ours[name].shape == theirs[name].shape or name in simple
    ]


def layers_alone(torch_model: torch.nn.Module, paddle_model: nn.Layer, before: str, own_name: OwnName) -> list[str]:
    """The Paddle network's layers right before one of its layers that the PyTorch network does not have."""
    known = {own_name(name) for name, _ in torch_model.named_modules()}
    names = [name for name, layer in paddle_model.named_sublayers() if not layer.sublayers()]
    alone: list[str] = []
    for name in names[: names.index(before)] if before in names else ():
        alone = [] if name in known else [*alone, name]
    return alone


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the scale of what is expected; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


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
