"""How often a classifier is right on labelled images, class by class: what the command ``evaluate`` measures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import distributed

from paddle_dense.classes import IMAGENET_COUNT, class_numbers
from paddle_dense.data import Preprocessing
from paddle_dense.errors import DataError, naming, shown
from paddle_dense.files.atomic import PathLike, atomic_write
from paddle_dense.files.weights import read_bounded
from paddle_dense.images import images_below, read_image
from paddle_dense.prediction import BATCH_SIZE, Classifier, best, in_batches
from paddle_dense.process import signals_waiting, stop_if_asked
from paddle_dense.training.augment import eval_transforms
from paddle_dense.training.data import TEST_FOLDERS, ImageData, open_data
from paddle_dense.training.plot import new_figure

TOP = 5
_MAX_LIST = 1 << 27  # bytes; the list of ImageNet's training set has 60 MB
_CELL, _SIDE = 0.28, (4.0, 16.0)  # inches of a class in the confusion matrix, and of the whole


class LabelledFiles(ImageData):
    """Image files and the numbers of their classes.

    Attributes:
        samples: (path, number of the class) of each image.
    """

    def __init__(self, samples: Sequence[tuple[str, int]], classes: Sequence[str]) -> None:
        self.samples, self.classes = samples, list(classes)

    def __getitem__(self, index: int) -> tuple:
        path, label = self.samples[index]
        return read_image(path), label

    def __len__(self) -> int:
        return len(self.samples)


def labelled_images(data: PathLike, classes: Sequence[str] | None, list_file: Path | None = None) -> ImageData:
    """Images to evaluate a classifier on, their labels being the numbers of its outputs.

    Args:
        data: what `open_data` takes; or a folder with a folder for each class in it, or in its val/, validation/ or
            test/; with a list, the folder that its paths begin in.
        classes: the classifier's names. Folders are named so or, for ImageNet's, by their synsets; where there are no
            names, the folders in order are the classes.
        list_file: a text file with the path of an image and the number, name or synset of its class in each line.

    Raises:
        ValueError: there is no such data.
        DataError: a folder or line has no class of the classifier's, or there are no images.
    """
    if list_file is not None:
        return LabelledFiles(list(_listed(Path(data), list_file, classes)), classes or [])
    if not os.path.isdir(data) or data in ("digits", "cifar10", "cifar100"):
        return _relabelled(open_data(data, "test"), classes)
    root = next((Path(data) / name for name in TEST_FOLDERS if (Path(data) / name).is_dir()), Path(data))
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: has no folder for each class: give --list FILE with the class of each image")
    numbers = class_numbers(classes) if classes else {name: number for number, name in enumerate(folders)}
    samples = []
    for name in folders:
        if name not in numbers:
            raise DataError(
                f"{root / name}: is no class of the model's, which are {_some(classes)}: rename the folder, or give "
                f"the names with --labels FILE"
            )
        samples += [(path, numbers[name]) for path in images_below(root / name)]
    if not samples:
        raise DataError(f"{root}: holds no images: put some into the folders of the classes")
    return LabelledFiles(samples, classes or folders)


def _some(classes: Sequence[str] | None) -> str:
    names = [shown(name, 40) for name in (classes or [])[:3]]
    return ", ".join(names) + (", ..." if len(classes or []) > 3 else "")


def _relabelled(data: ImageData, classes: Sequence[str] | None) -> ImageData:
    """The same, with the classifier's numbers where it has the same names in another order."""
    if classes is None or list(classes) == data.classes or set(classes) != set(data.classes):
        return data
    return _Relabelled(data, [list(classes).index(name) for name in data.classes])


class _Relabelled(ImageData):
    def __init__(self, data: ImageData, numbers: Sequence[int]) -> None:
        self.data, self.numbers = data, numbers
        self.classes, self.in_channels = data.classes, data.in_channels

    def __getitem__(self, index: int) -> tuple:
        image, label = self.data[index]
        return image, self.numbers[label]

    def __len__(self) -> int:
        return len(self.data)


def _listed(root: Path, path: Path, classes: Sequence[str] | None) -> Iterator[tuple[str, int]]:
    with naming(path):
        content = read_bounded(path, _MAX_LIST)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read ({error}): give a text file of lines such as x.jpg 7") from error
    numbers, found = class_numbers(classes or []), False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image, _, label = line.strip().rpartition("\t" if "\t" in line.strip() else " ")
        known = int(label) if label.isascii() and label.isdigit() and len(label) < 10 else numbers.get(label)
        if not image or known is None or (classes and known >= len(classes)):
            raise DataError(f"{path}: line {number} has {shown(line, 60)}: give a path and a class of the model's")
        found = True
        yield os.path.join(root, image.strip()), known
    if not found:
        raise DataError(f"{path}: lists no images: give a text file of lines such as x.jpg 7")


# Measuring


@dataclass(frozen=True)
class Scores:
    """What a classifier answered to labelled images.

    Attributes:
        labels: the right class of each image that could be read, int64 [N], in the order of the data.
        answers: its most probable classes, int64 [N, 5], the most probable first.
        losses: cross entropy of each, float64 [N].
        classes: the name of each class, by number.
        skipped: how many images could not be read.
    """

    labels: np.ndarray
    answers: np.ndarray
    losses: np.ndarray
    classes: Sequence[str]
    skipped: int

    @property
    def top1(self) -> float:
        """Share of the images whose class is the first answer."""
        return float(self._hits[:, 0].mean())

    @property
    def top5(self) -> float:
        """Share of the images whose class is one of the first five answers."""
        return float(self._hits.any(axis=1).mean())

    @property
    def loss(self) -> float:
        """Mean cross entropy."""
        return float(self.losses.mean())

    @cached_property
    def _hits(self) -> np.ndarray:
        return self.answers == self.labels[:, None]

    def confusion(self) -> np.ndarray:
        """How often images of a class (row) were taken for one of a class (column), int64 [classes, classes]."""
        counts = np.zeros([len(self.classes)] * 2, np.int64)
        np.add.at(counts, (self.labels, self.answers[:, 0]), 1)
        return counts

    def by_class(self) -> list[dict[str, object]]:
        """For each class its number and name, how many images it has, how many are right, and what most wrong ones are.

        A class without images has no shares; one without mistakes is taken for no other.
        """
        rows = []
        for number, name in enumerate(self.classes):
            mine = self.labels == number
            count = int(mine.sum())
            wrong = self.answers[mine, 0][~self._hits[mine, 0]]
            other = self.classes[int(np.bincount(wrong).argmax())] if len(wrong) else ""
            shares = (self._hits[mine, 0].mean(), self._hits[mine].any(axis=1).mean()) if count else ("", "")
            rows.append(
                {
                    "number": number,
                    "class": name,
                    "images": count,
                    "top1": shares[0],
                    "top5": shares[1],
                    "most often taken for": other,
                }
            )
        return rows


def score(
    classifier: Classifier,
    data: ImageData,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    skip: Callable[[DataError], None] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Scores:
    """Ask a classifier about every image; several devices share them, and all get the same result.

    Images are prepared as torchvision's and timm's validation does it: EXIF's orientation is not followed.

    Args:
        classifier: what is asked.
        data: images and the numbers of their classes.
        batch_size: images at once, on each device.
        workers: threads that prepare images.
        skip: called with the error of each image that cannot be read, which is then left out.
        progress: called with how many images are done.

    Raises:
        DataError: an image cannot be read and `skip` is not given; or all cannot; or a label is none of the classes.
        WeightsError: the classifier cannot be used.
    """
    if data.in_channels != len(classifier.preprocessing.mean) and not isinstance(data, LabelledFiles):
        raise DataError(
            f"{classifier.name} takes images of {len(classifier.preprocessing.mean)} channels and the data has "
            f"{data.in_channels}: take other data"
        )
    prepare = _Preparing(data, classifier.preprocessing)
    mine = range(distributed.get_rank(), len(data), distributed.get_world_size())
    # Label, answers and, for those that were read, 1; what another device is asked stays 0, and so a sum joins them.
    table, losses = np.zeros([len(data), TOP + 2], np.int64), np.zeros(len(data))
    count = 0
    with ExitStack() as closing:
        run: Callable = map
        if workers:
            with signals_waiting():
                run = closing.enter_context(ThreadPoolExecutor(workers)).map
        for batch in in_batches(mine, classifier.batch or batch_size):
            stop_if_asked()
            pixels, labels, places = [], [], []
            for index, found in zip(batch, run(prepare, batch)):
                if isinstance(found, DataError):
                    if skip is None:
                        raise found
                    skip(found)
                else:
                    pixels.append(found[0])
                    labels.append(found[1])
                    places.append(index)
            if places:
                probabilities = classifier.probabilities(np.stack(pixels))
                count = probabilities.shape[1]
                if max(labels) >= count:
                    raise DataError(
                        f"the data has class {max(labels)}, and {classifier.name} {count} classes: take other data"
                    )
                for index, label, row in zip(places, labels, probabilities):
                    answers = best(row, TOP)
                    table[index] = [label, *answers, *[-1] * (TOP - len(answers)), 1]
                    losses[index] = -np.log(max(row[label], np.finfo(np.float64).tiny))
            progress(len(batch))
    table, losses = _from_all_devices(table), _from_all_devices(losses)
    count = int(_from_all_devices(np.array([count]), distributed.ReduceOp.MAX)[0])
    read = table[:, -1] == 1
    if not read.any():
        raise DataError("no image of the data can be read: give others")
    names = [classifier.class_name(number) for number in range(count)]
    if classifier.classes is None and len(data.classes) == count:
        names = data.classes
    return Scores(table[read, 0], table[read, 1:-1], losses[read], names, int((~read).sum()))


def _from_all_devices(array: np.ndarray, how: Any = distributed.ReduceOp.SUM) -> np.ndarray:
    if not distributed.is_initialized():
        return array
    tensor = paddle.to_tensor(array)
    distributed.all_reduce(tensor, op=how)
    return tensor.numpy()


class _Preparing:
    """One image as the network takes it and its label, or the DataError of one that cannot be read."""

    def __init__(self, data: ImageData, preprocessing: Preprocessing) -> None:
        self.data, self.transforms = data, eval_transforms(preprocessing)
        self.grey = len(preprocessing.mean) == 1

    def __call__(self, index: int) -> tuple[np.ndarray, int] | DataError:
        try:
            image, label = self.data[index]
        except DataError as error:
            return error
        if self.grey and image.mode != "F":
            image = image.convert("L")
        return self.transforms(image), label


def plot_confusion(scores: Scores, path: PathLike) -> None:
    """Draw which classes are taken for which: the shares of each class's images, a row for each class.

    Args:
        scores: what was measured.
        path: ends in ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        ImportError: matplotlib is missing.
        WeightsError: the image cannot be written there.
    """
    counts = scores.confusion()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(_CELL * len(counts), _SIDE[0]), _SIDE[1])
    figure = new_figure(side + 2, side + 1)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="answer", ylabel="class", title=f"top-1 {scores.top1:.2%} of {len(scores.labels):,} images")
    if len(counts) <= _SIDE[1] / _CELL:
        names = [name if name.isascii() else str(number) for number, name in enumerate(scores.classes)]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for row, column in zip(*np.nonzero(counts)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", size=7, color=colour)
    figure.colorbar(image, ax=axes, label="share of the class's images", shrink=0.8)
    with atomic_write(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:].lower(), dpi=150)


def published(arch: str, classes: int) -> Mapping[str, object]:
    """What is published of a preset: the errors in percent and the data; empty for other networks, or classes."""
    from paddle_dense.models import presets

    preset = next((entry for entry in presets() if entry.name == arch), None)
    if preset is None or preset.config.get("num_classes", IMAGENET_COUNT) != classes:
        return {}
    found = preset.published
    if found.top1_error is None:
        return {}
    return {"top1_error": found.top1_error, "top5_error": found.top5_error, "data": found.data}
