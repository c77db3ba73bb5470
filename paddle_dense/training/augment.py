"""What is done to training images, so that a sample depends on nothing but the seed, the epoch and its number."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import paddle
from paddle.io import Dataset
from paddle.vision import transforms as T
from PIL import Image, ImageEnhance, ImageOps

from paddle_dense.data import Interpolation, Preprocessing

# The digits' augmentation: degrees, share of the size, shear in degrees (0.1 radian), share of the side.
_MAX_ANGLE, _MAX_SCALE, _MAX_SHEAR, _MAX_SHIFT = 12, 0.1, 5.7, 2 / 32


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, in this order.

    Attributes:
        crop: ``"resized"``, a part of random size and shape, scaled to the network's input (ImageNet); ``"pad"``, a
            part of the image with a black border of an eighth of its side, 4 of 32 pixels (CIFAR); or ``"affine"``,
            the whole, turned, scaled, sheared and shifted a little, with black moving in (digits).
        scale: the smallest and largest share of the area that ``"resized"`` takes.
        flip: every second image is mirrored.
        rand_augment: layers, magnitude and its standard deviation, see `RandAugment`.
        color_jitter: brightness, contrast and saturation change by up to this share.
        random_erasing: probability that a rectangle becomes noise (arXiv 1708.04896).

    Raises:
        ValueError: there is no such crop.
    """

    crop: str = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = False
    rand_augment: tuple[int, float, float] | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in ("resized", "pad", "affine"):
            raise ValueError(f"unknown crop {self.crop!r}: choose resized, pad or affine")


def train_transforms(augmentation: Augmentation, preprocessing: Preprocessing) -> Callable[[Image.Image], np.ndarray]:
    """From a PIL image to a float32 array [channels, input_size, input_size], augmented at random.

    Args:
        augmentation: what to do.
        preprocessing: how the images are prepared that the network is tested on: size, interpolation, mean and std.
    """
    steps = _crop(augmentation, preprocessing)
    if augmentation.flip:
        steps.append(T.RandomHorizontalFlip())
    if augmentation.rand_augment or augmentation.color_jitter:
        steps.append(_eight_bits)
    if augmentation.rand_augment:
        fill = tuple(round(255 * value) for value in preprocessing.mean)
        steps.append(RandAugment(*augmentation.rand_augment, fill=fill, interpolation=preprocessing.interpolation))
    if augmentation.color_jitter:
        share = augmentation.color_jitter
        steps.append(T.ColorJitter(brightness=share, contrast=share, saturation=share))
    steps += _standardised(preprocessing)
    if augmentation.random_erasing:
        steps.append(_Erasing(augmentation.random_erasing))
    return _composed(steps)


def eval_transforms(preprocessing: Preprocessing) -> Callable[[Image.Image], np.ndarray]:
    """What `preprocessing.transforms()` does, as a float32 array that no device has to make a tensor of meanwhile."""
    resize = T.Resize(preprocessing.resize, preprocessing.interpolation)
    crop = T.CenterCrop(preprocessing.input_size)
    return _composed([resize, crop, *_standardised(preprocessing)])


def _composed(steps: list[Any]) -> Callable[[Image.Image], np.ndarray]:
    every: list[Any] = [*steps, _channels_first]
    composed: T.Compose[Image.Image, np.ndarray] = T.Compose(every)
    return composed


def _crop(augmentation: Augmentation, preprocessing: Preprocessing) -> list[Any]:
    size, interpolation = preprocessing.input_size, preprocessing.interpolation
    if augmentation.crop == "resized":
        return [T.RandomResizedCrop(size, augmentation.scale, interpolation=interpolation)]
    whole = [T.Resize(size, interpolation), T.CenterCrop(size)]
    if augmentation.crop == "pad":
        return [*whole, T.RandomCrop(size, padding=size // 8)]
    shift = _MAX_SHIFT + 1 / size  # Paddle shifts by whole pixels, and cuts a fraction off
    affine = T.RandomAffine(
        _MAX_ANGLE,
        translate=(shift, shift),
        scale=(1 - _MAX_SCALE, 1 + _MAX_SCALE),
        shear=(-_MAX_SHEAR, _MAX_SHEAR),
        interpolation="bilinear",
        fill=(0,) * len(preprocessing.mean),  # type: ignore[arg-type]  # for any number of channels
    )
    return [*whole, affine]


def _standardised(preprocessing: Preprocessing) -> list[Any]:
    return [_to_array, T.Normalize(list(preprocessing.mean), list(preprocessing.std), data_format="HWC")]


def _eight_bits(image: Image.Image) -> Image.Image:
    """PIL changes the colours of whole numbers only."""
    if image.mode != "F":
        return image
    return Image.fromarray(np.rint(np.asarray(image) * 255).clip(0, 255).astype(np.uint8))


def _to_array(image: Image.Image) -> np.ndarray:
    """Float32 [H, W, channels] in [0, 1]."""
    array = np.asarray(image, np.float32)
    return (array if image.mode == "F" else array / 255).reshape(array.shape[0], array.shape[1], -1)


def _channels_first(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 0, 1), np.float32)


class _Erasing:
    """Paddle's RandomErasing with noise of N(0, 1) on standardised images; it makes noise for values up to 255."""

    def __init__(self, probability: float) -> None:
        self.erase: Any = T.RandomErasing(probability, value="random")

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return self.erase(array * 255) / 255


class RandAugment:
    """Operations drawn at random, all at about the same strength (arXiv 1909.13719), as timm's ``rand-m9-mstd0.5``.

    Each of the drawn operations is applied with probability 1/2, at a magnitude from N(magnitude, magnitude_std) cut to
    [0, 10]. The operations and what a magnitude means to them are timm's; the sign of a movement is random.

    Args:
        num_layers: operations drawn for an image, one of them perhaps twice.
        magnitude: from 0 to 10.
        magnitude_std: its standard deviation.
        fill: colour of what moves in, one number from 0 to 255 for each channel.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """

    def __init__(
        self,
        num_layers: int = 2,
        magnitude: float = 9,
        magnitude_std: float = 0.5,
        fill: Sequence[int] = (124, 116, 104),
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self.num_layers, self.magnitude, self.magnitude_std = num_layers, magnitude, magnitude_std
        self.fill = tuple(fill)
        self.resample = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR

    def __call__(self, image: Image.Image) -> Image.Image:
        for operation in random.choices(OPERATIONS, k=self.num_layers):
            if random.random() < 0.5:
                magnitude = random.gauss(self.magnitude, self.magnitude_std)
                image = self.apply(operation, image, min(max(magnitude, 0), 10) / 10)
        return image

    def apply(self, operation: str, image: Image.Image, level: float) -> Image.Image:
        """One of `OPERATIONS` on an 8-bit grey or RGB image, at a level from 0 to 1."""
        if operation in _COLOURS:
            return _COLOURS[operation](image, level)
        move = _MOVEMENTS[operation]
        return move(image, level * random.choice((-1, 1)), resample=self.resample, fillcolor=self.fill)


def _brightened(image: Image.Image, amount: int) -> Image.Image:
    """The darker half of the values raised."""
    table = [min(255, value + amount) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _moved(image: Image.Image, matrix: Sequence[float], **how: Any) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **how)


# PIL's own functions: Paddle lacks most of these, and its `rotate` cannot fill what moves into a grey image.
_COLOURS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "invert": lambda image, level: ImageOps.invert(image),
    "posterize": lambda image, level: ImageOps.posterize(image, max(1, int(4 * level))),
    "solarize": lambda image, level: ImageOps.solarize(image, int(256 * level)),
    "solarize_add": lambda image, level: _brightened(image, int(110 * level)),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(0.1 + 1.8 * level),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(0.1 + 1.8 * level),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * level),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * level),
}
_MOVEMENTS: dict[str, Callable[..., Image.Image]] = {
    "rotate": lambda image, level, **how: image.rotate(30 * level, **how),
    "shear_x": lambda image, level, **how: _moved(image, (1, 0.3 * level, 0, 0, 1, 0), **how),
    "shear_y": lambda image, level, **how: _moved(image, (1, 0, 0, 0.3 * level, 1, 0), **how),
    "translate_x": lambda image, level, **how: _moved(image, (1, 0, 0.45 * level * image.width, 0, 1, 0), **how),
    "translate_y": lambda image, level, **how: _moved(image, (1, 0, 0, 0, 1, 0.45 * level * image.height), **how),
}
OPERATIONS = (*_COLOURS, *_MOVEMENTS)


class Augmented(Dataset):
    """Images as a network takes them: (float32 array [channels, H, W], int64 class).

    With a seed, a sample is a function of the seed, the epoch and its number alone: the same for any number of worker
    processes, in any order, and in a run that was continued. Paddle's transforms of PIL images draw from the generators
    of `random` and `numpy.random`; these are seeded for each sample, and afterwards are as they were before.

    Args:
        data: gives (PIL image, number of its class).
        transform: from a PIL image to an array or tensor [channels, H, W].
        seed: of the transform, 0 or more; None for a transform that draws no random numbers.
    """

    def __init__(self, data: Dataset, transform: Callable[[Image.Image], Any], seed: int | None = None) -> None:
        self.data, self.transform, self.seed = data, transform, seed

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[np.ndarray, np.int64]:
        """Sample `number` of an epoch, for the index (epoch, number), or for `number` in epoch 0."""
        epoch, number = index if isinstance(index, tuple) else (0, index)
        image, label = self.data[number]
        with nullcontext() if self.seed is None else _seeded(self.seed, epoch, number):
            array = self.transform(image)
        if isinstance(array, paddle.Tensor):
            array = array.numpy()
        return array.astype(np.float32, copy=False), np.int64(label)

    def __len__(self) -> int:
        return len(self.data)


@contextmanager
def _seeded(*what: int) -> Iterator[None]:
    """Inside, `random` and `numpy.random` draw numbers that depend on `what` alone; outside, nothing has changed."""
    seed = hashlib.blake2b(repr(what).encode(), digest_size=8).digest()
    states = random.getstate(), np.random.get_state()
    random.seed(int.from_bytes(seed, "little"))
    np.random.seed(int.from_bytes(seed[:4], "little"))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
