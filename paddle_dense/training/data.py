"""Images to learn from: digits, folders of images, and CIFAR archives, whose pickles are read without running."""

from __future__ import annotations

import gzip
import io
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import paddle
from paddle import distributed
from paddle.dataset import common
from paddle.io import BatchSampler, DataLoader, Dataset
from paddle.vision.datasets import Cifar10, cifar
from PIL import Image

from paddle_dense.data import CIFAR_10, DIGITS_MEAN, DIGITS_STD, digit_images
from paddle_dense.errors import AGAIN, DAMAGED, DataError, HostileFileError, WeightsError, naming, shown
from paddle_dense.files.unpickle import Lazy, describe, unpickle
from paddle_dense.files.weights import open_file
from paddle_dense.images import images_below, read_image
from paddle_dense.process import Stopped, stop_if_asked


class ImageData(Dataset):
    """Images with their classes: ``data[i]`` is (PIL image, number of its class).

    Attributes:
        classes: the names of the classes, by number.
        in_channels: 1 for grey images, 3 for colour.
        input_size: the side of the images, in pixels, where all have the same.
        mean, std: of each channel, whose values are in [0, 1], where the data has numbers of its own.
    """

    classes: list[str]
    in_channels: int = 3
    input_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def open_data(name: str | os.PathLike, part: str) -> ImageData:
    """The images to train on, or to test on.

    Args:
        name: ``"digits"``; ``"cifar10"`` or ``"cifar100"``, which Paddle downloads once; the path of such an archive
            (`cifar-10-python.tar.gz`, also unzipped); or a folder with train/CLASS/ and val/CLASS/ in it. A folder that
            has one of these names is ``./digits``.
        part: ``"train"`` or ``"test"``.

    Raises:
        ValueError: there is no such data or part.
        DataError: the data cannot be used.
        HostileFileError: an archive asks to run code.
        ImportError: the digits need scikit-learn.
    """
    if part not in ("train", "test"):
        raise ValueError(f"there is no part {part!r} of the data: take train or test")
    if name == "digits":
        return DigitImages(part)
    if name in ("cifar10", "cifar100"):
        return CifarImages(_downloaded(name), part)
    if os.path.isdir(name):
        return ImageFolder(name, part)
    if os.path.exists(name):
        return CifarImages(name, part)
    raise ValueError(
        f"there is no data {os.fspath(name)}: give digits, cifar10, cifar100, a CIFAR archive, or a folder with "
        f"train/CLASS/ and val/CLASS/"
    )


class ImageLoader:
    """Batches of a dataset: float32 images [N, C, H, W] and int64 classes [N].

    `paddle.io.DataLoader` does the work of several processes. By itself it may wait forever for an image that cannot
    be read, or hide the reason; here that is a DataError. Without other processes, images are prepared between the
    steps and not in a thread of their own, so that nobody else draws random numbers meanwhile.

    On one device it ends by `Stopped` before the next image when a command is asked to stop, even while it waits for
    other processes; several devices have to stop together.

    Args:
        dataset: gives (array [C, H, W], number of the class).
        batches: lists of indices.
        workers: processes that prepare images.
    """

    def __init__(self, dataset: Dataset, batches: Sequence[list[Any]] | BatchSampler, workers: int = 0) -> None:
        self.dataset, self.batches, self.workers = dataset, batches, workers
        self.alone = not distributed.is_initialized()

    def sample(self, index: Any) -> Any:
        """One of the dataset's, unless the command is asked to stop."""
        if self.alone:
            stop_if_asked()
        return self.dataset[index]

    def __iter__(self) -> Iterator[list[paddle.Tensor]]:
        if not self.workers:
            for batch in self.batches:
                yield [paddle.to_tensor(field) for field in _stack([self.sample(index) for index in batch])]
            return
        loader = DataLoader(
            _Reporting(self),
            batch_sampler=self.batches,  # type: ignore[arg-type]  # lists of indices will do
            num_workers=self.workers,
            collate_fn=_collate,  # type: ignore[arg-type]  # many arrays from a sample that is a tuple
        )
        for fields in loader:
            if len(fields) == 1:
                sentence = fields[0].numpy().tobytes().decode()
                raise Stopped(int(sentence)) if sentence.isdigit() else DataError(sentence)
            yield fields

    def __len__(self) -> int:
        return len(self.batches)


class _Reporting(Dataset):
    """A loader's images, or a DataError's sentence, or the number of the signal that stops it, instead of raising."""

    def __init__(self, loader: ImageLoader) -> None:
        self.loader = loader

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.loader.sample(index)
        except (DataError, Stopped) as error:
            return str(error)

    def __len__(self) -> int:
        return len(self.loader.dataset)


def _collate(samples: list[Any]) -> list[np.ndarray]:
    """A batch as its arrays; one that lacks an image as the sentence that says why, in bytes."""
    sentences = [sample for sample in samples if isinstance(sample, str)]
    return [np.frombuffer(sentences[0].encode(), np.uint8)] if sentences else _stack(samples)


def _stack(samples: list[tuple[np.ndarray, int]]) -> list[np.ndarray]:
    images, labels = zip(*samples)
    return [np.stack(images), np.array(labels, np.int64)]


class DigitImages(ImageData):
    """scikit-learn's handwritten digits, split as `paddle_dense.data.load_digits` does; images of float32 (mode F)."""

    in_channels = 1
    input_size = 32
    mean, std = DIGITS_MEAN, DIGITS_STD

    def __init__(self, part: str) -> None:
        self.images, labels = digit_images(part)
        self.labels = labels.tolist()
        self.classes = [str(digit) for digit in range(10)]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.images)


# Folders of images

TEST_FOLDERS = ("val", "validation", "test")


class ImageFolder(ImageData):
    """The images below ROOT/train/CLASS/, or below ROOT/val/CLASS/ (else validation/, else test/), in RGB.

    As `paddle.vision.datasets.DatasetFolder`, which would also take hidden files, and take images many times where a
    link leads to a folder above itself.

    Attributes:
        samples: (path, number of the class) of each image.

    Raises:
        DataError: a folder is missing or empty, or the classes of the two parts differ.
    """

    def __init__(self, root: str | os.PathLike, part: str) -> None:
        train, test = _part_folders(Path(root))
        folder = train if part == "train" else test
        self.classes = _same_classes(train, test)
        self.samples: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            paths = list(images_below(folder / name))
            if part == "train" and not paths:
                raise DataError(f"{folder / name}: holds no images: add some, or remove the class from both parts")
            self.samples += [(path, label) for path in paths]
        if not self.samples:
            raise DataError(f"{folder}: holds no images: add some in a folder for each class")

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        return read_image(path), label

    def __len__(self) -> int:
        return len(self.samples)


def _part_folders(root: Path) -> tuple[Path, Path]:
    train = root / "train"
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if train.is_dir() and test:
        return train, test
    missing = "val" if train.is_dir() else "train" if test else "train and no folder val"
    raise DataError(
        f"{root}: has no folder {missing}: put the images in train/CLASS/ and val/CLASS/, for each class of its own"
    )


def _same_classes(train: Path, test: Path) -> list[str]:
    """The class names, which must be those of both parts."""
    names = {part: {entry.name for entry in os.scandir(part) if _is_class(entry)} for part in (train, test)}
    for part, other in ((train, test), (test, train)):
        missing = sorted(names[other] - names[part])
        if missing:
            raise DataError(f"{part}: has no folder for class {shown(missing[0])}, which {other} has: add or remove it")
    if not names[train]:
        raise DataError(f"{train}: has no folders: put the images of each class in a folder of its own")
    return sorted(names[train])


def _is_class(entry: os.DirEntry) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


# CIFAR

_CIFAR_STATISTICS = {
    10: (CIFAR_10.mean, CIFAR_10.std),
    100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
# What the parts and the class names are called in archives of CIFAR-10 and of CIFAR-100.
_BATCH_FILES = {"train": ("data_batch", "train"), "test": ("test_batch", "test")}
_META_FILES = ("batches.meta", "meta")
_PIXELS = 3 * 32 * 32
_UNPACKED_LIMIT = 1 << 28  # bytes; both archives have 186 MB
_UNPACKED_RATIO = 50  # to the archive's own size, and _UNPACKED_SPARE more; 1.1 in both archives
_UNPACKED_SPARE = 1 << 20
_FILES_LIMIT = 1000
# What tarfile lets through of an archive that is none; it calls itself for each header that is about the next one.
_BROKEN = (OSError, EOFError, LookupError, OverflowError, RecursionError, ValueError)


class CifarImages(ImageData, Cifar10):
    """Paddle's CIFAR-10 or CIFAR-100, whichever the archive holds, read without running its pickles.

    Raises:
        DataError: the archive is damaged, too large, or no CIFAR archive.
        HostileFileError: it asks to run code.
    """

    input_size = 32
    data_file: str

    def __init__(self, path: str | os.PathLike, part: str) -> None:
        super().__init__(os.fspath(path), mode=cast("Literal['train', 'test']", part), backend="pil")

    def _load_data(self) -> None:
        """Where Paddle's class would call pickle.load."""
        files = _read_members(self.data_file, _BATCH_FILES[self.mode])
        self.data, counts, meta = [], set(), {}
        for name in sorted(files):
            with naming(f"{self.data_file}: {shown(name)}"):
                content = _read_dict(files[name])
                if posixpath.basename(name) in _META_FILES:
                    meta = content
                    continue
                images, labels, count = _read_batch(content)
            self.data += zip(images, labels)
            counts.add(count)
        if len(counts) != 1 or not self.data:
            raise DataError(f"{self.data_file}: holds no {self.mode} images of one CIFAR: give the published archive")
        (count,) = counts
        self.classes = _class_names(meta, count)
        self.mean, self.std = _CIFAR_STATISTICS[count]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:  # type: ignore[override]  # Paddle's label is an array
        image, label = super().__getitem__(index)
        return cast("Image.Image", image), int(label)


def _downloaded(name: str) -> str:
    """The archive in Paddle's cache, where it is downloaded to if need be."""
    url, md5 = (getattr(cifar, f"{name.upper()}_{what}") for what in ("URL", "MD5"))
    try:
        return common.download(url, "cifar", md5)
    except RuntimeError as error:
        raise DataError(f"{name} cannot be downloaded from {url}: get the file otherwise and give its path") from error


class _Bounded:
    """A file for tarfile to read from that ends the reading of what unpacks to more than any CIFAR."""

    def __init__(self, file: io.BufferedIOBase, packed: int) -> None:
        self.file, self.limit = file, min(_UNPACKED_LIMIT, _UNPACKED_RATIO * packed + _UNPACKED_SPARE)
        self.left = self.limit

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise DataError(f"unpacks to more than {self.limit >> 20} MB, so it is no CIFAR archive")
        return data


def _read_members(path: str, batch_files: tuple[str, str]) -> dict[str, bytes]:
    """The files of an archive that hold batches or class names, by their names."""
    with naming(path), open_file(path) as file:
        try:
            zipped = file.peek(2)[:2] == b"\x1f\x8b"
            unzipped = _Bounded(gzip.GzipFile(fileobj=file) if zipped else file, os.fstat(file.fileno()).st_size)
            # A stream needs to be read from, nothing else.
            with tarfile.open(fileobj=unzipped, mode="r|") as archive:  # type: ignore[call-overload]
                members = dict(_members(archive, batch_files))
            while unzipped.read(1 << 16):  # only at its end does gzip compare the checksum
                pass
            return members
        except WeightsError:
            raise
        except (*_BROKEN, tarfile.TarError, zlib.error) as error:
            raise DataError(f"cannot be read as a tar archive: {AGAIN}") from error


def _members(archive: tarfile.TarFile, batch_files: tuple[str, str]) -> Iterator[tuple[str, bytes]]:
    for number, member in enumerate(archive):
        if number == _FILES_LIMIT:
            raise DataError(f"holds more than {_FILES_LIMIT} files, so it is no CIFAR archive")
        file = posixpath.basename(member.name)
        wanted = file.startswith(batch_files[0]) or file == batch_files[1] or file in _META_FILES
        if not wanted or not member.isreg():
            continue
        # A sparse file can be larger than all that was read.
        if member.issparse() or member.size > _UNPACKED_LIMIT:
            raise DataError(f"claims {member.size} bytes for {shown(member.name)}, so it is no CIFAR archive")
        yield member.name, cast("IO[bytes]", archive.extractfile(member)).read()


def _read_dict(content: bytes) -> dict[Any, Any]:
    try:
        value, _ = unpickle(memoryview(content))
    except HostileFileError as error:
        asks = str(error).partition(", which")[0]
        raise HostileFileError(
            f"{asks}, which no images need: open it with nothing else and take the archive from a source you trust"
        ) from None
    if not isinstance(value, dict):
        raise DataError(f"holds {describe(value)} where CIFAR has a dict, {DAMAGED}")
    return {_text(key): entry for key, entry in value.items()}


def _read_batch(batch: dict[Any, Any]) -> tuple[np.ndarray, list[int], int]:
    """The images, uint8 [N, 3072], their labels, and how many classes there are."""
    data = batch.get("data")
    if not isinstance(data, Lazy):
        raise DataError(f"has no array called 'data', {DAMAGED}")
    images = data.numpy()
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _PIXELS:
        raise DataError(f"holds {images.dtype} {list(images.shape)} where CIFAR has uint8 [N, {_PIXELS}], {DAMAGED}")
    key, count = ("fine_labels", 100) if "fine_labels" in batch else ("labels", 10)
    labels = batch.get(key)
    if not isinstance(labels, list) or len(labels) != len(images):
        raise DataError(f"has no list of {len(images)} {key}, one for each image, {DAMAGED}")
    if not all(type(label) is int and 0 <= label < count for label in labels):
        raise DataError(f"has {key} that are no numbers from 0 to {count - 1}, {DAMAGED}")
    return images, labels, count


def _class_names(meta: dict[Any, Any], count: int) -> list[str]:
    names = meta.get("label_names" if count == 10 else "fine_label_names")
    names = [_text(name) for name in names] if isinstance(names, list) else []
    if len(names) != count or not all(isinstance(name, str) and name.isprintable() for name in names):
        return [str(number) for number in range(count)]
    return names


def _text(value: object) -> object:
    """A string of Python 2 or bytes of Python 3 as text."""
    return value.decode("latin1") if isinstance(value, bytes) else value
