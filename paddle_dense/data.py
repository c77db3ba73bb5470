"""Images in and out: preprocessing of the published networks, and the handwritten digits of the demonstration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Callable, Literal, get_args

import numpy as np

from paddle_dense.images import ImageLike, any_image

if TYPE_CHECKING:
    from paddle import Tensor
    from PIL.Image import Image

Interpolation = Literal["bilinear", "bicubic"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE = 1 << 13  # pixels that a file may have images scaled to


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

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def read(cls, told: object, channels: int) -> Preprocessing:
        """What `as_dict` gave, from a file that may say anything.

        Args:
            told: what the file says.
            channels: of the network's input.

        Raises:
            ValueError: it is nothing that can be done to images of so many channels.
        """
        if not isinstance(told, dict) or set(told) != {entry.name for entry in fields(cls)}:
            raise ValueError("no preprocessing of this package")
        sides, numbers = (told["input_size"], told["resize"]), (told["mean"], told["std"])
        if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides) or sides[0] > sides[1]:
            raise ValueError(f"sides of {sides} pixels")
        if told["interpolation"] not in get_args(Interpolation):
            raise ValueError(f"an interpolation {told['interpolation']!r}")
        if not all(isinstance(entry, list) and len(entry) == channels for entry in numbers):
            raise ValueError(f"mean and std of other than {channels} channels")
        if not all(type(value) in (int, float) and math.isfinite(value) for value in (*numbers[0], *numbers[1])):
            raise ValueError("mean and std that are no numbers")
        if not all(value > 0 for value in told["std"]):
            raise ValueError("a std of 0")
        return cls(*sides, told["interpolation"], tuple(told["mean"]), tuple(told["std"]))

    def transforms(self) -> Transforms:
        """From an image to a float32 tensor [channels, input_size, input_size]."""
        return Transforms(self)


class Transforms:
    """Prepares images for a network: ``transforms(image)`` is a float32 tensor [channels, side, side].

    An image is a path, a URL, an image of Pillow (RGBA, grey, CMYK, ... as well) or an array of uint8 [H, W] or
    [H, W, channels]. EXIF's orientation is followed. The numbers are those of torchvision's and timm's transforms.

    Args:
        preprocessing: what is to be done.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        from paddle.vision import transforms as T

        self.preprocessing = preprocessing
        self.mode = "L" if len(preprocessing.mean) == 1 else "RGB"
        self._steps: Callable = T.Compose(
            [
                T.Resize(preprocessing.resize, interpolation=preprocessing.interpolation),
                T.CenterCrop(preprocessing.input_size),
                T.ToTensor(),
                T.Normalize(mean=list(preprocessing.mean), std=list(preprocessing.std)),
            ]
        )

    def __call__(self, image: ImageLike) -> Tensor:
        """The image as the network takes it.

        Raises:
            DataError: it cannot be read, or is no image.
        """
        if getattr(image, "mode", None) == "F" and self.mode == "L":  # of our own, in [0, 1] already
            return self._steps(image)
        return self._steps(any_image(image, self.mode))

    def __repr__(self) -> str:
        done, numbers = self.preprocessing, self.preprocessing.as_dict()
        return (
            f"Transforms: shorter side to {done.resize} pixels ({done.interpolation}), the middle {done.input_size} x "
            f"{done.input_size}, values to [0, 1], minus {numbers['mean']}, divided by {numbers['std']}"
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
