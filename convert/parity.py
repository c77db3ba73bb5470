"""The check: the same pictures through the PyTorch network and the Paddle network, and how far the answers differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddle_dense.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from paddle import nn

SEEDS = (0, 1)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Parity:
    """How far the two networks' answers are apart.

    Attributes:
        max_abs_diff: largest absolute difference of any logit.
        max_rel_diff: the same, divided by the largest absolute logit of the PyTorch network.
        top1_agreement: share of the inputs for which both name the same class.
        inputs: number of pictures compared, random ones included.
    """

    max_abs_diff: float
    max_rel_diff: float
    top1_agreement: float
    inputs: int


def random_batches(channels: int, size: int) -> list[np.ndarray]:
    """Two seeded batches of two random pictures each: float32 [2, channels, size, size]."""
    return [np.random.default_rng(seed).standard_normal((2, channels, size, size), np.float32) for seed in SEEDS]


def image_batches(folder: Path, preprocessing, channels: int) -> Iterator[np.ndarray]:
    """The pictures of a folder through a network's own transforms, a few at a time: float32 [n, channels, H, W].

    Raises:
        ValueError: the folder holds no picture, or one cannot be read.
    """
    from PIL import Image

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    transforms = preprocessing.transforms()
    for start in range(0, len(paths), _IMAGES_AT_ONCE):
        batch = []
        for path in paths[start : start + _IMAGES_AT_ONCE]:
            try:
                with Image.open(path) as image:
                    batch.append(transforms(image.convert("L" if channels == 1 else "RGB")).numpy())
            except OSError as error:
                raise ValueError(f"{path} cannot be read as a picture: {error}") from None
        yield np.stack(batch)


@contextmanager
def evaluation(torch_model: torch.nn.Module, paddle_model: nn.Layer) -> Iterator[None]:
    """Both models in evaluation mode, without gradients; their modes are put back afterwards."""
    import torch

    from paddle_dense.evaluation import evaluation as paddle_evaluation

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
        for name in ("eps", "negative_slope"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, float(np.float32(getattr(module, name))))
    return model.double()


@contextmanager
def double_precision() -> Iterator[None]:
    """Paddle networks built inside compute in float64."""
    import paddle

    default = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    try:
        yield
    finally:
        paddle.set_default_dtype(default)


def compare(torch_model: torch.nn.Module, paddle_model: nn.Layer, batches: Sequence[np.ndarray]) -> Parity:
    """Run both models on the same batches and compare their logits.

    Args:
        torch_model: the PyTorch network, on any device and of any precision.
        paddle_model: the Paddle network, of Paddle's default dtype.
        batches: float32 [N, C, H, W] each.
    """
    import paddle
    import torch

    like = next(iter(torch_model.parameters()))
    theirs, ours = [], []
    with evaluation(torch_model, paddle_model):
        for batch in batches:
            theirs.append(torch_model(torch.from_numpy(batch).to(like)).cpu().numpy())
            ours.append(paddle_model(paddle.to_tensor(batch, dtype=paddle.get_default_dtype())).numpy())
    expected, found = np.concatenate(theirs), np.concatenate(ours)
    if expected.shape != found.shape:
        raise WeightsError(f"PyTorch answers {list(expected.shape)} and Paddle {list(found.shape)}")
    difference = float(np.abs(found - expected).max())
    return Parity(
        max_abs_diff=difference,
        max_rel_diff=difference / max(float(np.abs(expected).max()), np.finfo(np.float32).tiny),
        top1_agreement=float((expected.argmax(1) == found.argmax(1)).mean()),
        inputs=len(expected),
    )


@dataclass(frozen=True)
class LayerDifference:
    """One layer whose output differs: its name and the largest difference, relative to the output's scale."""

    name: str
    max_rel_diff: float


def layer_differences(
    torch_model: torch.nn.Module, paddle_model: nn.Layer, batch: np.ndarray, skip: Sequence[str] = ()
) -> list[LayerDifference]:
    """Compare the output of every layer that has the same name in both models, in the order in which they finish.

    Args:
        batch: float32 [N, C, H, W].
        skip: prefixes of layers that have no counterpart, such as the inside of a layer condensed on the way.
    """
    import paddle
    import torch

    theirs: dict[str, np.ndarray] = {}
    ours: dict[str, np.ndarray] = {}

    def record(outputs: dict[str, np.ndarray], name: str):
        def hook(layer: object, inputs: object, output: object) -> None:
            if hasattr(output, "detach"):
                outputs[name] = output.detach().cpu().numpy().copy()

        return hook

    handles = [m.register_forward_hook(record(theirs, n)) for n, m in torch_model.named_modules() if n]
    handles += [m.register_forward_post_hook(record(ours, n)) for n, m in paddle_model.named_sublayers()]
    like = next(iter(torch_model.parameters()))
    try:
        with evaluation(torch_model, paddle_model):
            torch_model(torch.from_numpy(batch).to(like))
            paddle_model(paddle.to_tensor(batch, dtype=paddle.get_default_dtype()))
    finally:
        for handle in handles:
            handle.remove()
    return [
        LayerDifference(name, _relative(ours[name], theirs[name]))
        for name in ours
        if name in theirs and ours[name].shape == theirs[name].shape and not name.startswith(tuple(skip))
    ]


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def first_difference(differences: Sequence[LayerDifference], atol: float) -> LayerDifference | None:
    """The first layer that differs by more than `atol`; a NaN on one side only counts as a difference."""
    return next((layer for layer in differences if not layer.max_rel_diff <= atol), None)


def load_torch_state(model: torch.nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Put a state_dict of arrays into a PyTorch network; `num_batches_tracked` may be absent, nothing else.

    Raises:
        WeightsError: a tensor is missing, unexpected or misshapen.
    """
    import torch

    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        name, fault = (missing[0], "is missing from the file") if missing else (unexpected[0], "is not in the network")
        raise WeightsError(f"the PyTorch network {type(model).__name__} does not fit the file: {name} {fault}")
    for name, value in state.items():
        if tuple(expected[name].shape) != value.shape:
            raise WeightsError(
                f"the PyTorch network {type(model).__name__} does not fit the file: {name} is {list(value.shape)} "
                f"there and {list(expected[name].shape)} in the network"
            )
    # Copies: arrays from a file are read-only.
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, strict=False)
