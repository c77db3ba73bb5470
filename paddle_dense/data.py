"""Images in and out: preprocessing of the published networks, and the handwritten digits of the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Interpolation = Literal["bilinear", "bicubic"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input.

    Attributes:
        input_size: side of the square that the network sees, in pixels.
        resize: the shorter side is first scaled to this, in pixels.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        mean: subtracted from each channel, whose values are in [0, 1].
        std: each channel is then divided by it.
    """

    input_size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    @classmethod
    def for_network(cls, input_size: int, in_channels: int) -> Preprocessing:
        """What to do for a network that no paper says it of: ImageNet's numbers, or grey images to [-1, 1]."""
        resize = input_size * 256 // 224
        if in_channels == 3:
            return cls(input_size, resize)
        return cls(input_size, resize, mean=(0.5,) * in_channels, std=(0.5,) * in_channels)

    def transforms(self) -> Callable:
        """From a PIL image to a float32 tensor [channels, input_size, input_size]."""
        from paddle.vision import transforms as T

        return T.Compose(
            [
                T.Resize(self.resize, interpolation=self.interpolation),
                T.CenterCrop(self.input_size),
                T.ToTensor(),
                T.Normalize(mean=list(self.mean), std=list(self.std)),
            ]
        )


CIFAR_10 = Preprocessing(32, 32, mean=(0.4914, 0.4824, 0.4467), std=(0.2471, 0.2435, 0.2616))


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1 797 handwritten digits (UCI), split 75/25 by class, the same way on every machine.

    Attributes:
        train_images, test_images: float32 [N, 1, 32, 32], the 8x8 originals scaled up bilinearly, standardised.
        train_labels, test_labels: int64 [N], 0 to 9.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


# Mean and standard deviation of all training pixels once scaled up, in units of the originals' 0 to 16.
_DIGITS_MEAN, _DIGITS_STD = 4.88, 5.18
_DIGITS_WHITE = 16
# The same for images whose values are in [0, 1], as `Preprocessing` takes them.
DIGITS_MEAN, DIGITS_STD = (_DIGITS_MEAN / _DIGITS_WHITE,), (_DIGITS_STD / _DIGITS_WHITE,)


def load_digits() -> Digits:
    """The handwritten digits that scikit-learn carries; nothing is downloaded.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    parts = []
    for part in ("train", "test"):
        digits, labels = digit_images(part)
        images = np.stack([np.asarray(digit) for digit in digits])[:, None] * _DIGITS_WHITE
        parts += [((images - _DIGITS_MEAN) / _DIGITS_STD).astype(np.float32), labels]
    return Digits(*parts)


def digit_images(part: str) -> tuple[list[Image], np.ndarray]:
    """The handwritten digits as 32x32 PIL images of float32 (mode F) in [0, 1], and their labels, int64 [N].

    Args:
        part: ``"train"`` or ``"test"``, the quarter that is held out.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from None
    from PIL import Image

    pixels, labels = datasets.load_digits(return_X_y=True)
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=0.25, random_state=0, stratify=labels
    )
    chosen = train if part == "train" else test
    # Dividing by a power of two loses nothing.
    small = pixels[chosen].astype(np.float32).reshape(-1, 8, 8) / _DIGITS_WHITE
    digits = [Image.fromarray(digit).resize((32, 32), Image.Resampling.BILINEAR) for digit in small]
    return digits, labels[chosen].astype(np.int64)
