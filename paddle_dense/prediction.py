"""From images to the names of what they show."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np
import paddle
from PIL import Image

from paddle_dense.data import Preprocessing
from paddle_dense.errors import WeightsError
from paddle_dense.evaluation import evaluation
from paddle_dense.images import ImageLike
from paddle_dense.models.network import Network

BATCH_SIZE = 32


@dataclass(frozen=True)
class Classifier:
    """A network, or a file made of one, that tells what images show.

    Attributes:
        name: what it is called in messages.
        logits: from float32 images [N, channels, side, side] to an array [N, classes].
        preprocessing: how images are prepared for it.
        classes: the name of each class, by number, where they are known.
        batch: how many images it takes at once, where that cannot be chosen.
    """

    name: str
    logits: Callable[[np.ndarray], np.ndarray]
    preprocessing: Preprocessing
    classes: Sequence[str] | None = None
    batch: int | None = None

    @classmethod
    def of(cls, model: Network) -> Classifier:
        """That of a network; its mode is left as it is.

        Raises:
            ValueError: it has no classes.
        """
        if model.features_only or not model.num_classes:
            raise ValueError(f"this {type(model).__name__} has no classifier: load it whole to predict classes")

        def logits(images: np.ndarray) -> np.ndarray:
            with evaluation(model):
                return model(paddle.to_tensor(images)).astype("float32").numpy()

        return cls(model.arch, logits, model.preprocessing, model.classes)

    def named(self, classes: Sequence[str]) -> Classifier:
        """The same with other names of the classes."""
        return replace(self, classes=classes)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probability of each class, float64 [N, classes], each row's sum being 1.

        Raises:
            WeightsError: it answers with no scores of classes, or with NaN, or there are more or fewer names.
        """
        count = len(images)
        if self.batch is not None and count < self.batch:
            images = np.concatenate([images, np.zeros([self.batch - count, *images.shape[1:]], np.float32)])
        scores = self.logits(images)[:count].astype(np.float64)
        if scores.ndim != 2:
            raise WeightsError(
                f"{self.name} answers with {list(scores.shape)}, no scores of classes: take a classifier"
            )
        if self.classes is not None and len(self.classes) != scores.shape[1]:
            raise WeightsError(
                f"{self.name} has {scores.shape[1]} classes and there are {len(self.classes)} names: give one for each"
            )
        if not np.isfinite(scores).all():
            raise WeightsError(f"{self.name} answers with NaN or infinity: take undamaged weights")
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def class_name(self, number: int) -> str:
        """What a class is called; ``class 7`` where that is not known."""
        return f"class {number}" if self.classes is None else self.classes[number]


def best(probabilities: np.ndarray, top: int) -> list[int]:
    """Numbers of the most probable classes of one image, the most probable first and of equals the first."""
    return np.argsort(-probabilities, kind="stable")[:top].tolist()


def predict(
    model: Network | Classifier,
    images: ImageLike | Iterable[ImageLike],
    top: int = 5,
    batch_size: int = BATCH_SIZE,
) -> list[list[tuple[str, float]]]:
    """What images show: the names of the most probable classes and their probabilities.

    Args:
        model: a network, whose `preprocessing` and `classes` are used; or what `load_exported` returned.
        images: one or several, each a path, a URL, an image of Pillow or an array of uint8 [H, W] or [H, W, channels].
        top: how many classes for each image.
        batch_size: images that go through the network at once.

    Returns:
        For each image the pairs (name, probability), the most probable first. Without `classes` a name is ``class 7``.

    Raises:
        ValueError: the model has no classifier, or a number is below 1.
        DataError: an image cannot be read; the message names it.
        WeightsError: the model answers with NaN.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value} must be 1 or more")
    classifier = model if isinstance(model, Classifier) else Classifier.of(model)
    transforms = classifier.preprocessing.transforms()
    answers = []
    for batch in in_batches(_several(images), classifier.batch or batch_size):
        pixels = np.stack([transforms(image).numpy() for image in batch])
        for row in classifier.probabilities(pixels):
            answers.append([(classifier.class_name(number), float(row[number])) for number in best(row, top)])
    return answers


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of so many items, the last one perhaps shorter."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _several(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    one = isinstance(images, (str, os.PathLike, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim < 4)
    return [images] if one else images  # type: ignore[list-item,return-value]
