"""Which images are trained on and which are tested on: PaddleClas' list files, and a share of each class held out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Union

from paddle_dense.errors import DataError, naming, shown
from paddle_dense.files.weights import read_bounded

_FEW = 10_000
VAL_SPLIT = 0.2  # of a folder that has no images to test on
TRAIN_LIST, LABEL_LIST = "train_list.txt", "label_list.txt"
_LARGEST = 1 << 28  # bytes of a list; ImageNet's 1.3 million lines have 60 MB
_MOST_CLASSES = 1 << 20
_LONGEST_NUMBER = 9  # digits

Samples = list[tuple[str, int]]
PathLike = Union[str, os.PathLike]


def held_out(samples: Samples, root: PathLike, share: float, seed: int) -> tuple[Samples, Samples]:
    """Split images into those to train on and those to test on, the same way on every machine.

    Of each class about this share is held out, at least one image where it has two, and never all. Which ones depends
    on the seed and on their paths below `root`, so an added image moves one other at most.

    Args:
        samples: (path, number of the class) of each image.
        root: the folder that the data is in, wherever it lies.
        share: of the images to hold out, between 0 and 1.
        seed: for another choice.

    Raises:
        DataError: no class has two images.
    """

    def drawn(sample: tuple[str, int]) -> bytes:
        path = Path(os.path.relpath(sample[0], root)).as_posix()
        return hashlib.blake2b(f"{seed} {path}".encode(errors="surrogateescape"), digest_size=16).digest()

    by_class: dict[int, Samples] = {}
    for sample in samples:
        by_class.setdefault(sample[1], []).append(sample)
    tested = {
        sample
        for one in by_class.values()
        for sample in sorted(one, key=drawn)[: min(max(round(share * len(one)), 1), len(one) - 1)]
    }
    if not tested:
        raise DataError(f"{root}: has no class with two images, one to train on and one to test on: add some")
    return [one for one in samples if one not in tested], [one for one in samples if one in tested]


def has_few_images(name: str) -> bool:
    """Whether a folder or a list of images has so few that no recipe for ImageNet suits them."""
    if os.path.isfile(os.path.join(name, TRAIN_LIST)):
        name = os.path.join(name, TRAIN_LIST)
    if os.path.isfile(name):
        return name.endswith(".txt") and os.path.getsize(name) < _FEW * 20  # bytes of a line
    images = 0
    for _, _, names in os.walk(name):
        images += len(names)
        if images >= _FEW:
            return False
    return images > 0


def find_lists(path: Path) -> tuple[Path, Path | None]:
    """The list to train on and the one to test on, if there is one: ``train_list.txt`` and ``val_list.txt``.

    Args:
        path: the folder that they are in, or the file with the images to train on.
    """
    train = path / TRAIN_LIST if path.is_dir() else path
    test = train.with_name(train.name.replace("train", "val"))
    return train, test if test != train and test.exists() else None


def read_lists(train: Path, test: Path | None, image_root: Path) -> tuple[list[str], Samples, Samples]:
    """The names of the classes, the images to train on, and those to test on.

    Args:
        train, test: files with a line ``PATH NUMBER`` for each image; without `test` there is nothing to test on.
        image_root: the folder that the paths start from.

    Raises:
        DataError: a file cannot be read, a line is none, an image is missing, or a class is out of range or in one
            part only.
    """
    names = _class_names(train.with_name(LABEL_LIST))
    parts = {path: list(_samples(path, image_root, names)) for path in (train, test) if path}
    for path, samples in parts.items():
        if not samples:
            raise DataError(f"{path}: lists no images: write PATH NUMBER in a line for each of them")
    found = {path: {label for _, label in samples} for path, samples in parts.items()}
    classes = range(len(names) if names else max(label for labels in found.values() for label in labels) + 1)
    for path, labels in found.items():
        missing = next((number for number in classes if number not in labels), None)
        if missing is not None:
            name = f" ({shown(names[missing])})" if names else ""
            raise DataError(
                f"{path}: has no image of class {missing}{name}: add one, or take the class out and number the others "
                f"from 0 without a gap"
            )
    return names or [str(number) for number in classes], parts[train], parts[test] if test else []


def _samples(path: Path, image_root: Path, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    for number, line in _lines(path):
        # A path may contain spaces, and after a tab nothing but the number follows.
        image, _, label = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
        where, label = f"{path}: line {number}", label.strip()
        if not image.strip() or not (label.isascii() and label.isdigit() and len(label) <= _LONGEST_NUMBER):
            raise DataError(f"{where} is {shown(line)}, not PATH NUMBER with a space or a tab between: correct it")
        if int(label) >= (len(names) or _MOST_CLASSES):
            known = f"{LABEL_LIST} has 0 to {len(names) - 1}" if names else f"{_MOST_CLASSES:,} are possible"
            raise DataError(f"{where} has class {label}, and {known}: correct the line, or the list of the names")
        file = os.path.join(image_root, image.strip())
        if not os.path.exists(file):
            raise DataError(
                f"{where}: there is no image {shown(file, 200)}: take the line out, or give the folder that the paths "
                f"start from with --image-root"
            )
        yield file, int(label)


def _class_names(path: Path) -> list[str]:
    """What the classes are called, a line each, in order or with numbers before the names; nothing without the file."""
    if not path.exists():
        return []
    lines = [line for _, line in _lines(path)]
    if len(lines) > _MOST_CLASSES:
        raise DataError(f"{path}: names more than {_MOST_CLASSES:,} classes: give the list of this data")
    numbered = [line.split(None, 1) for line in lines]
    try:
        names = {int(number): name for number, name in numbered}
    except ValueError:  # no numbers, or a number alone
        return lines
    return [names[number] for number in range(len(lines))] if names.keys() == set(range(len(lines))) else lines


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers."""
    with naming(path):
        content = read_bounded(path, _LARGEST)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text in UTF-8: save it as such") from None
    return ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip())
