"""Where a network looks, and what it sees: Grad-CAM heat maps, and the features before the classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from PIL import Image

from paddle_dense.data import Preprocessing
from paddle_dense.evaluation import evaluation
from paddle_dense.models.network import Network

_ROUNDING = 1e-5  # of float32, in a sum over hundreds of channels
_MOST_HEAT = 0.65  # share of the hottest pixel's colour that is the map's


def grad_cam(model: Network, images: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """Which parts of images speak for a class (Grad-CAM, arXiv 1610.02391, equations 1 and 2).

    The map is that of the last layer whose output has more than one position: before the global pooling.

    Args:
        model: a network with a classifier; it stays as it is.
        images: float32 [N, channels, H, W], prepared.
        classes: the number of the class of each image; the most probable one unless given.

    Returns:
        float32 [N, h, w], from 0 to 1 in each image; 0 everywhere where nothing speaks for the class.
    """
    with evaluation(model), paddle.enable_grad(), _last_map(model) as maps:
        x = paddle.to_tensor(images, stop_gradient=False)
        logits = model(x)
        chosen = logits.argmax(1) if classes is None else paddle.to_tensor(classes, dtype="int64")
        score = paddle.take_along_axis(logits, chosen.unsqueeze(1), 1).sum()
        (gradient,) = paddle.grad(score, maps[-1])
    parts = (gradient.mean([2, 3], keepdim=True) * maps[-1]).detach()
    heat = np.maximum(parts.sum(1).numpy(), 0)
    highest = heat.max(axis=(1, 2), keepdims=True)
    # What is left where the channels' shares cancel out is rounding, which would fill the map with noise.
    rounding = _ROUNDING * parts.abs().sum(1).numpy().max(axis=(1, 2), keepdims=True)
    return np.where(highest > rounding, heat / np.where(highest > 0, highest, 1), 0)


def pooled_features(model: Network, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier of a network reads, float32 [N, channels], and what it answers, [N, classes].

    Args:
        model: a network with a classifier; it stays as it is.
        images: float32 [N, channels, H, W], prepared.
    """
    read: list[Tensor] = []
    classifier = dict(model.named_sublayers())[model.classifier_name]
    note: Any = lambda layer, inputs: read.append(inputs[0])  # noqa: E731
    handle = classifier.register_forward_pre_hook(note)
    try:
        with evaluation(model):
            logits = model(paddle.to_tensor(images))
    finally:
        handle.remove()
    return read[-1].numpy(), logits.numpy()


@contextmanager
def _last_map(model: Network) -> Iterator[list[Tensor]]:
    """A list whose last tensor is, after a pass, what the last layer made that has more than one position."""
    maps: list[Tensor] = []

    def hook(layer: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            maps[:] = [output]

    handles = [layer.register_forward_post_hook(hook) for layer in model.sublayers()]  # type: ignore[arg-type]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def overlay(image: np.ndarray, heat: np.ndarray, preprocessing: Preprocessing) -> Image.Image:
    """A heat map over the part of an image that the network saw: red is warm, yellow is hot, what is cold stays.

    Args:
        image: float32 [channels, H, W], prepared.
        heat: [h, w], from 0 to 1.
        preprocessing: how the image was prepared.
    """
    mean, std = (np.reshape(values, [-1, 1, 1]) for values in (preprocessing.mean, preprocessing.std))
    pixels = np.clip(image * std + mean, 0, 1)
    seen = np.moveaxis(np.broadcast_to(pixels, [3, *pixels.shape[1:]]) if len(pixels) == 1 else pixels[:3], 0, -1)
    size = (seen.shape[1], seen.shape[0])
    scaled = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    warmth = np.clip(np.asarray(scaled), 0, 1)[..., None]
    colour = np.concatenate([np.ones_like(warmth), np.clip(2 * warmth - 1, 0, 1), np.zeros_like(warmth)], axis=-1)
    share = _MOST_HEAT * np.clip(2 * warmth, 0, 1) * warmth**0.5
    return Image.fromarray(np.round(255 * (seen * (1 - share) + colour * share)).astype(np.uint8))
