"""What is done to training images, and that it depends on the seed, the epoch and the sample alone."""

from __future__ import annotations

import importlib.util
import random
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from paddle_dense.data import Preprocessing
from paddle_dense.training.augment import (
    OPERATIONS,
    Augmentation,
    Augmented,
    RandAugment,
    eval_transforms,
    train_transforms,
)
from paddle_dense.training.data import ImageLoader

# Standardising with these leaves a channel's values as they are, in [0, 1].
PLAIN = Preprocessing(32, 32, mean=(0, 0, 0), std=(1, 1, 1))
GREY = Preprocessing(32, 32, mean=(0,), std=(1,))
EVERYTHING = Augmentation(flip=True, rand_augment=(2, 9, 0.5), color_jitter=0.4, random_erasing=0.5)


def noise(seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def scene(mode: str = "RGB") -> Image.Image:
    """Something with edges and slopes, as images have."""
    image = Image.radial_gradient("L").resize((48, 48)).crop((0, 0, 40, 32))
    image.paste(200, (5, 5, 15, 20))
    return Image.merge("RGB", (image, image.transpose(Image.FLIP_LEFT_RIGHT), image.rotate(30))).convert(mode)


class Images:
    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], index % 10

    def __len__(self) -> int:
        return len(self.images)


def augmented(augmentation: Augmentation, image: Image.Image, preprocessing: Preprocessing, count: int) -> np.ndarray:
    """[count, C, H, W]: one image augmented again and again."""
    data = Augmented(Images([image]), train_transforms(augmentation, preprocessing), seed=0)
    return np.stack([data[epoch, 0][0] for epoch in range(count)])


# A function of seed, epoch and sample


@pytest.fixture(scope="module")
def data() -> Augmented:
    return Augmented(Images([noise(n) for n in range(12)]), train_transforms(EVERYTHING, PLAIN), seed=3)


def test_a_sample_is_the_same_in_any_order_and_any_process(data):
    epochs = [[(epoch, number) for number in range(4 * batch, 4 * batch + 4)] for epoch in (0, 1) for batch in range(3)]
    alone = [np.stack([data[index][0] for index in batch]) for batch in epochs]
    shuffled = random.sample(range(6), 6)
    for workers in (0, 2):
        batches = dict(zip(shuffled, ImageLoader(data, [epochs[number] for number in shuffled], workers)))
        for number, expected in enumerate(alone):
            np.testing.assert_array_equal(batches[number][0].numpy(), expected)
            assert batches[number][1].tolist() == [index % 10 for _, index in epochs[number]]


def test_everything_that_matters_changes_a_sample(data):
    sample = data[1, 2][0]
    np.testing.assert_array_equal(data[1, 2][0], sample)
    same_image = Augmented(Images([noise(2)] * 12), data.transform, seed=3)
    np.testing.assert_array_equal(same_image[1, 2][0], sample)
    other_seed = Augmented(data.data, data.transform, seed=4)
    for other in (data[0, 2], data[2, 2], same_image[1, 3], same_image[2, 1], other_seed[1, 2]):
        assert np.abs(other[0] - sample).mean() > 0.01
    np.testing.assert_array_equal(data[2][0], data[0, 2][0])


def test_a_sample_has_the_types_that_a_network_takes(data):
    array, label = data[0, 11]
    assert (array.shape, array.dtype, array.flags.c_contiguous) == ((3, 32, 32), np.float32, True)
    assert (label, label.dtype, len(data)) == (1, np.int64, 12)


@pytest.mark.parametrize("transform", [lambda image: np.random.rand(1) + random.gauss(0, 1), None])
def test_the_generators_go_on_as_if_nothing_had_been(transform):
    draws = [random.random, lambda: random.gauss(0, 1), np.random.rand, np.random.normal] * 2
    random.seed(1)
    np.random.seed(1)
    undisturbed = [draw() for draw in draws]
    random.seed(1)
    np.random.seed(1)
    found = []
    for draw in draws:
        with suppress(TypeError):  # None cannot be called
            Augmented(Images([noise()]), transform, seed=0)[0]
        found.append(draw())
    assert found == undisturbed


def test_the_random_numbers_of_a_sample_never_change():
    def draw(image: Image.Image) -> np.ndarray:
        return np.array([random.random(), random.gauss(0, 1), np.random.uniform(), np.random.randint(1000)])

    sample = Augmented(Images([noise()] * 8), draw, seed=5)[3, 7][0]
    np.testing.assert_allclose(sample, [0.17298109, -1.23145908, 0.79387016, 354], rtol=1e-6)


# What the network is tested on


@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing(24, 28), Preprocessing(32, 36, "bicubic"), Preprocessing(32, 32, mean=(0.5,), std=(0.5,))],
    ids=["bilinear", "bicubic", "grey"],
)
def test_images_for_the_test_are_prepared_as_the_network_asks(preprocessing):
    image = noise(size=(61, 47), mode="RGB" if len(preprocessing.mean) == 3 else "L")
    array = eval_transforms(preprocessing)(image)
    expected = preprocessing.transforms()(image)
    assert list(array.shape) == expected.shape
    np.testing.assert_allclose(array, expected.numpy(), rtol=0, atol=1e-6)
    # Augmented takes Paddle's transforms as well; without a seed it leaves the generators alone.
    sample = Augmented(Images([image]), preprocessing.transforms())[0][0]
    np.testing.assert_array_equal(sample, expected.numpy())


# Crops


def test_resized_crops_have_the_size_that_was_asked_for():
    ramp = Image.linear_gradient("L").resize((256, 256))
    images = augmented(Augmentation("resized", (0.25, 0.36)), ramp, GREY, 60)[:, 0]
    assert images.shape == (60, 32, 32)
    height = (images[:, -1] - images[:, 0]).mean(1)  # of the crop, as a share of the image's
    width_to_height = (3 / 4) ** 0.5
    assert 0.5 * width_to_height - 0.05 < height.min() < 0.5 < 0.6 < height.max() < 0.6 / width_to_height + 0.02


def test_padded_crops_are_parts_of_the_image_with_a_black_border():
    image = noise()
    bordered = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0))).transpose(2, 0, 1) / np.float32(255)
    corners = [(top, left) for top in range(9) for left in range(9)]
    places = {bordered[:, top : top + 32, left : left + 32].tobytes(): (top, left) for top, left in corners}
    found = {places[crop.tobytes()] for crop in augmented(Augmentation("pad"), image, PLAIN, 600)}
    assert len(found) > 75


def test_images_of_another_size_are_scaled_first():
    for crop in ("pad", "affine"):
        for size in ((80, 50), (9, 16)):
            assert augmented(Augmentation(crop), noise(size=size), PLAIN, 1).shape == (1, 3, 32, 32)


def test_affine_moves_what_is_white_a_little_and_fills_with_black():
    dot = np.zeros((32, 32), np.float32)
    dot[15:17, 15:17] = 1
    images = augmented(Augmentation("affine"), Image.fromarray(dot), GREY, 400)[:, 0]
    rows = (images.sum(2) * np.arange(32)).sum(1) / images.sum((1, 2))
    assert set(np.rint(rows - 15.5)) == {-2, -1, 0, 1, 2}
    full = augmented(Augmentation("affine"), Image.new("F", (32, 32), 1.0), GREY, 100)
    assert full.min() == 0
    assert full[:, :, 8:24, 8:24].min() == 1
    bar = np.zeros((32, 32), np.float32)
    bar[:, 15:17] = 1
    images = augmented(Augmentation("affine"), Image.fromarray(bar), GREY, 400)[:, 0]
    columns = (images * np.arange(32)).sum(2) / images.sum(2).clip(1e-6)
    degrees = np.degrees(np.arctan((columns[:, 24] - columns[:, 8]) / 16))
    assert 10 < degrees.max() < 18
    assert -18 < degrees.min() < -10


# The rest


def test_every_second_image_is_mirrored():
    image = scene().crop((0, 0, 32, 32))
    plain = eval_transforms(PLAIN)(image)
    flips = 0
    for array in augmented(Augmentation("resized", (1, 1), flip=True), image, PLAIN, 200):
        flips += np.abs(array - plain[:, :, ::-1]).mean() < np.abs(array - plain).mean()
    assert 70 < flips < 130


def test_colours_change_by_the_share_that_was_asked_for():
    image = Image.new("RGB", (32, 32), (100, 100, 100))
    values = augmented(Augmentation("resized", color_jitter=0.4), image, PLAIN, 200)[:, 0, 16, 16] * 255
    assert 59 <= values.min() < 65
    assert 135 < values.max() <= 141


def test_erased_rectangles_are_noise():
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    preprocessing = Preprocessing(64, 64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    images = augmented(Augmentation("resized", (1, 1), random_erasing=0.5), image, preprocessing, 200)
    white = np.float32([2.5, 3, 3.5])[:, None, None]
    erased = np.abs(images - white).max(1) > 1e-4
    share = erased.mean((1, 2))
    assert 70 < (share > 0).sum() < 130
    assert share[share > 0].min() > 0.015
    assert share.max() < 0.35
    values = images.transpose(0, 2, 3, 1)[erased]
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    rows, columns = np.flatnonzero(erased[share > 0][0].any(1)), np.flatnonzero(erased[share > 0][0].any(0))
    assert erased[share > 0][0].sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_everything_works_on_grey_images():
    for image in (noise(mode="L"), Image.fromarray(np.random.default_rng(0).random((32, 32), np.float32))):
        for crop in ("resized", "pad", "affine"):
            augmentation = Augmentation(crop, flip=True, rand_augment=(2, 9, 0.5), color_jitter=0.4)
            images = augmented(augmentation, image, GREY, 50)
            assert images.shape == (50, 1, 32, 32)
            assert 0 <= images.min() < images.max() <= 1


def test_a_crop_that_does_not_exist():
    with pytest.raises(ValueError, match="unknown crop 'centre': choose resized, pad or affine"):
        Augmentation("centre")


# RandAugment

TIMM = {"solarize_add": "SolarizeAdd", "translate_x": "TranslateXRel", "translate_y": "TranslateYRel"}
TIMM = {**{name: name.title().replace("_", "") for name in OPERATIONS}, "autocontrast": "AutoContrast", **TIMM}


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    """timm's module of augmentations by itself, for which nobody has to wait for PyTorch."""
    package = importlib.util.find_spec("timm")
    if package is None:
        pytest.skip("compares with timm: pip install --no-deps timm")
    path = Path(package.origin).parent / "data" / "auto_augment.py"
    spec = importlib.util.spec_from_file_location("timm_auto_augment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_operations_are_those_of_timm(timm):
    assert sorted(TIMM.values()) == sorted(timm._RAND_TRANSFORMS)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_does_what_timm_does(operation, mode, timm):
    image = scene(mode)
    fill = (124, 116, 104) if mode == "RGB" else (120,)
    hparams = {"img_mean": fill, "interpolation": Image.BICUBIC}
    ours = RandAugment(fill=fill, interpolation="bicubic")
    for magnitude in (2.5, 3.3, 7, 9, 9.4, 10):
        theirs = {
            np.asarray(timm.AugmentOp(TIMM[operation], 1, magnitude, hparams)(image)).tobytes() for _ in range(16)
        }
        found = {np.asarray(ours.apply(operation, image, magnitude / 10)).tobytes() for _ in range(16)}
        assert found == theirs  # both directions of a movement


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_work_at_either_end(operation):
    for level in (0, 1):
        image = RandAugment().apply(operation, scene(), level)
        assert (image.mode, image.size) == ("RGB", scene().size)


def test_rand_augment_changes_about_as_much_as_its_probabilities_say():
    random.seed(0)
    image = scene()
    augment = RandAugment(num_layers=2)
    changed = sum(np.asarray(augment(image)).tobytes() != np.asarray(image).tobytes() for _ in range(600))
    assert 0.65 < changed / 600 < 0.8  # 3 of 4, less where an operation finds nothing to do
    assert np.asarray(RandAugment(num_layers=0)(image)).tobytes() == np.asarray(image).tobytes()


def test_rand_augment_fills_with_the_mean_of_the_data():
    preprocessing = Preprocessing(32, 32, mean=(0.2, 0.4, 0.6), std=(1, 1, 1))
    image = Image.new("RGB", (32, 32), (51, 102, 153))
    images = augmented(Augmentation(rand_augment=(1, 9, 0.5)), image, preprocessing, 200)
    assert np.ptp(images, (2, 3)).max() == 0  # whatever moves in has the colour of what was there
    assert (np.abs(images).max((1, 2, 3)) < 1e-6).sum() > 50


@pytest.mark.parametrize(
    ("operation", "level", "expected"),
    [
        ("autocontrast", 0.9, [0, 85, 170, 255]),
        ("invert", 0.9, [215, 175, 135, 95]),
        ("posterize", 0.9, [32, 64, 96, 160]),
        ("solarize", 0.45, [40, 80, 135, 95]),
        ("solarize_add", 0.5, [95, 135, 175, 160]),
        ("color", 0, [40, 80, 120, 160]),
        ("brightness", 0.5, [40, 80, 120, 160]),
        ("brightness", 0, [4, 8, 12, 16]),
        ("contrast", 0, [94, 98, 102, 106]),
        ("translate_x", 5 / 9, [7, 40, 80, 120]),
        ("rotate", 0, [40, 80, 120, 160]),
    ],
)
def test_what_an_operation_does_to_a_row_of_pixels(operation, level, expected):
    row = Image.fromarray(np.array([[40, 80, 120, 160]], np.uint8))
    random.seed(1)  # which moves to the right
    assert np.asarray(RandAugment(fill=(7,)).apply(operation, row, level))[0].tolist() == expected
