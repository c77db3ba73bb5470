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
from paddle_dense.errors import AGAIN, DAMAGED, DataError, HostileFileError, WeightsError, naming, printable, shown
from paddle_dense.files.unpickle import Lazy, describe, unpickle
from paddle_dense.files.weights import open_file
from paddle_dense.images import images_below, read_image
from paddle_dense.process import Stopped, complain, stop_if_asked
from paddle_dense.training.parts import TRAIN_LIST, VAL_SPLIT, Samples, find_lists, held_out, read_lists

NAMES = ("digits", "cifar10", "cifar100")


class ImageData(Dataset):
    """Images with their classes: ``data[i]`` is (PIL image, number of its class).

    Attributes:
        classes: the names of the classes, by number.
        labels: the number of each image's class.
        in_channels: 1 for grey images, 3 for colour.
        input_size: the side of the images, in pixels, where all have the same.
        mean, std: of each channel, whose values are in [0, 1], where the data has numbers of its own.
        by_seed: whether the seed decides which images are tested on.
    """

    classes: list[str]
    labels: Sequence[int]
    in_channels: int = 3
    input_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    by_seed: bool = False


def open_data(
    name: str | os.PathLike,
    part: str,
    val_split: float | None = None,
    seed: int = 0,
    image_root: str | os.PathLike | None = None,
) -> ImageData:
    """The images to train on, or to test on.

    Args:
        name: ``"digits"``; ``"cifar10"`` or ``"cifar100"``, which Paddle downloads once; the path of such an archive
            (`cifar-10-python.tar.gz`, also unzipped); a folder with train/CLASS/ and val/CLASS/ in it, or with CLASS/
            alone; or PaddleClas' lists, `train_list.txt` or the folder that holds it. A folder that has one of these
            names is ``./digits``.
        part: ``"train"`` or ``"test"``.
        val_split: share of each class to test on, where the data has no images for that; a fifth of a folder with
            CLASS/ alone.
        seed: of that choice.
        image_root: where the paths in PaddleClas' lists start; their folder unless given.

    Raises:
        ValueError: there is no such data or part, or it takes no such option.
        DataError: the data cannot be used.
        HostileFileError: an archive asks to run code.
        ImportError: the digits need scikit-learn.
    """
    if part not in ("train", "test"):
        raise ValueError(f"there is no part {part!r} of the data: take train or test")
    named = name in NAMES
    lists = not named and (os.path.isfile(os.path.join(name, TRAIN_LIST)) or os.fspath(name).endswith(".txt"))
    if image_root is not None and not lists:
        raise ValueError(f"--image-root is for PaddleClas' lists, and {os.fspath(name)} has none: leave it out")
    if lists and os.path.exists(name):
        return ListedImages(name, part, val_split, seed, image_root)
    if os.path.isdir(name) and not named:
        return ImageFolder(name, part, val_split, seed)
    if val_split is not None and (named or os.path.exists(name)):
        raise ValueError(f"--val-split is for folders and lists of images, not for {os.fspath(name)}: leave it out")
    if name == "digits":
        return DigitImages(part)
    if name in ("cifar10", "cifar100"):
        return CifarImages(_downloaded(name), part)
    if os.path.exists(name):
        return CifarImages(name, part)
    raise ValueError(
        f"there is no data {os.fspath(name)}: give digits, cifar10, cifar100, a CIFAR archive, a folder with "
        f"train/CLASS/ and val/CLASS/ or with CLASS/ alone, or PaddleClas' train_list.txt"
    )


class Unreadable:
    """The images of a dataset that cannot be read: each is named once and left out, until there are too many.

    Args:
        images: how many the dataset has.
        max_bad: the share of them that may be left out.
    """

    def __init__(self, images: int, max_bad: float) -> None:
        self.images, self.max_bad = images, max_bad
        self.sentences: set[str] = set()

    def add(self, sentence: str) -> None:
        """Report one more, by the sentence that says what is wrong with it.

        Raises:
            DataError: these are too many.
        """
        if sentence in self.sentences:
            return
        self.sentences.add(sentence)
        if len(self.sentences) > self.max_bad * self.images:
            count = f"{len(self.sentences)} of {self.images} images" if len(self.sentences) > 1 else "it"
            raise DataError(f"{sentence}, or let {count} be left out with a --max-bad above {self.max_bad:g}")
        complain(f"{sentence} (it is left out)", kind="warning")


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
        unreadable: takes note of the images that cannot be read; without it the first one ends the reading.
        same_size: put others of the batch in their place, so that all batches are as long as their lists; otherwise
            batches are shorter.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Sequence[list[Any]] | BatchSampler,
        workers: int = 0,
        unreadable: Unreadable | None = None,
        same_size: bool = False,
    ) -> None:
        self.dataset, self.batches, self.workers = dataset, batches, workers
        self.unreadable, self.same_size = unreadable, same_size
        self.alone = not distributed.is_initialized()

    def sample(self, index: Any) -> Any:
        """One of the dataset's, unless the command is asked to stop."""
        if self.alone:
            stop_if_asked()
        return self.dataset[index]

    def __iter__(self) -> Iterator[list[paddle.Tensor]]:
        for fields in self._collated():
            if len(fields) == 2:
                yield fields
                continue
            sentences = fields[-1].numpy().tobytes().decode().splitlines()
            if sentences[0].isdigit():
                raise Stopped(int(sentences[0]))
            for sentence in sentences:
                if self.unreadable is None:
                    raise DataError(sentence)
                self.unreadable.add(sentence)
            if len(fields) == 3:
                images, labels = fields[:2]
                wanted = len(labels) + self.same_size * len(sentences)
                repeated = paddle.arange(wanted) % len(labels)
                yield [images[repeated], labels[repeated]]
            elif self.same_size:
                raise DataError(f"{sentences[0]}; no image of its batch can be read")

    def _collated(self) -> Iterator[list[paddle.Tensor]]:
        samples = _Reporting(self)
        if not self.workers:
            for batch in self.batches:
                yield [paddle.to_tensor(field) for field in _collate([samples[index] for index in batch])]
            return
        yield from DataLoader(
            samples,
            batch_sampler=self.batches,  # type: ignore[arg-type]  # lists of indices will do
            num_workers=self.workers,
            collate_fn=_collate,  # type: ignore[arg-type]  # many arrays from a sample that is a tuple
        )

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
            return printable(error)

    def __len__(self) -> int:
        return len(self.loader.dataset)


def _collate(samples: list[Any]) -> list[np.ndarray]:
    """A batch as its arrays, without the images that it lacks; the sentences that say why follow, in bytes."""
    sentences = [sample for sample in samples if isinstance(sample, str)]
    stopped = [sentence for sentence in sentences if sentence.isdigit()]
    if stopped:
        return [np.frombuffer(stopped[0].encode(), np.uint8)]
    found = [sample for sample in samples if not isinstance(sample, str)]
    why = [np.frombuffer("\n".join(sentences).encode(), np.uint8)] if sentences else []
    return [*(_stack(found) if found else []), *why]


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
_NO_CLASSES = {"train", "training", "val", "valid", "validation", "test", "testing"}  # in whatever case


class ImageFiles(ImageData):
    """Images in RGB, each in a file of its own.

    Attributes:
        samples: (path, number of the class) of each image.
    """

    samples: Samples

    @property
    def labels(self) -> list[int]:  # type: ignore[override]  # it is only read
        return [label for _, label in self.samples]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        return read_image(path), label

    def __len__(self) -> int:
        return len(self.samples)


class ImageFolder(ImageFiles):
    """The images below ROOT/train/CLASS/, or below ROOT/val/CLASS/ (else validation/, else test/).

    Where there is nothing to test on, a share of each class is held out of ROOT/train/CLASS/, if asked to, or of
    ROOT/CLASS/. As `paddle.vision.datasets.DatasetFolder`, which would also take hidden files, and take images many
    times where a link leads to a folder above itself.

    Raises:
        ValueError: there are images to test on, and a share to hold out is given.
        DataError: a folder is missing or empty, or the classes of the two parts differ.
    """

    def __init__(self, root: str | os.PathLike, part: str, val_split: float | None = None, seed: int = 0) -> None:
        train, test = _part_folders(Path(root), val_split)
        folder = test if test and part == "test" else train
        self.classes = _same_classes(train, test or train)
        self.samples, self.by_seed = [], test is None
        for label, name in enumerate(self.classes):
            paths = list(images_below(folder / name))
            if folder == train and not paths:
                of = " from both parts" if test else ""
                raise DataError(f"{folder / name}: holds no images: add some, or remove the class{of}")
            self.samples += [(path, label) for path in paths]
        if self.by_seed:
            self.samples = held_out(self.samples, root, val_split or VAL_SPLIT, seed)[part == "test"]
        if not self.samples:
            raise DataError(f"{folder}: holds no images: add some in a folder for each class")


class ListedImages(ImageFiles):
    """The images of PaddleClas' `train_list.txt`, or of `val_list.txt` next to it.

    Raises:
        ValueError: there is a `val_list.txt`, and a share to hold out is given.
        DataError: see `read_lists`; or there is neither a list to test on nor a share.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        part: str,
        val_split: float | None = None,
        seed: int = 0,
        image_root: str | os.PathLike | None = None,
    ) -> None:
        train, test = find_lists(Path(path))
        if test and val_split is not None:
            raise ValueError(f"--val-split: {test} lists the images to test on already: leave it out")
        if not test and val_split is None:
            raise DataError(
                f"{train}: has no list to test on next to it: add one, or hold out a fifth, --val-split 0.2"
            )
        root = Path(image_root) if image_root else train.parent
        self.classes, trained, tested = read_lists(train, test, root)
        self.by_seed = test is None
        if val_split is not None:
            trained, tested = held_out(trained, root, val_split, seed)
        self.samples = trained if part == "train" else tested


def _part_folders(root: Path, val_split: float | None) -> tuple[Path, Path | None]:
    """The folders of the classes to train on, and of those to test on unless a share is held out."""
    train = root / "train"
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if train.is_dir() and test:
        if val_split is not None:
            raise ValueError(f"--val-split: {test} has images to test on already: leave it out")
        return train, test
    classes = [entry.name for entry in os.scandir(root) if _is_class(entry)]
    if train.is_dir() and val_split is not None:
        return train, None
    if classes and not _NO_CLASSES.intersection(map(str.lower, classes)):
        return root, None
    missing = "val" if train.is_dir() else "train" if test else "train and no folder val"
    hint = ", or hold out a fifth with --val-split 0.2" if train.is_dir() else ""
    raise DataError(
        f"{root}: has no folder {missing}: put the images in train/CLASS/ and val/CLASS/, for each class of its own"
        f"{hint}"
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
        self.labels = [label for _, label in self.data]
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
