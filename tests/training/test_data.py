"""Images to learn from: the digits, folders, and CIFAR archives that can make nothing run."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.dataset import common
from paddle.vision.datasets import Cifar10, Cifar100, DatasetFolder
from PIL import Image

from paddle_dense.data import Preprocessing, load_digits
from paddle_dense.errors import HostileFileError, WeightsError
from paddle_dense.training import data
from paddle_dense.training.augment import Augmented, eval_transforms
from paddle_dense.training.data import DataError, ImageLoader, open_data, read_image
from tests.helpers import damaged


def photo(seed: int = 0, size: tuple[int, int] = (12, 8)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


# Digits


def test_the_digits_are_those_of_load_digits():
    pytest.importorskip("sklearn")
    digits = load_digits()
    for part, images, labels in (
        ("train", digits.train_images, digits.train_labels),
        ("test", digits.test_images, digits.test_labels),
    ):
        digits = open_data("digits", part)
        assert digits.classes == list("0123456789")
        assert (digits.in_channels, digits.input_size) == (1, 32)
        preprocessing = Preprocessing(32, 32, mean=digits.mean, std=digits.std)
        samples = [Augmented(digits, eval_transforms(preprocessing))[i] for i in range(len(digits))]
        np.testing.assert_allclose(np.stack([array for array, _ in samples]), images, rtol=0, atol=1e-6)
        assert [label for _, label in samples] == labels.tolist()
        np.testing.assert_allclose(preprocessing.transforms()(digits[7][0]).numpy(), images[7], rtol=0, atol=1e-6)


# Folders


@pytest.fixture
def folder(tmp_path) -> Path:
    """ROOT with two training images and one test image of each of two classes."""
    for number, name in enumerate(["train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "train/dog/2.png"]):
        save(photo(number), tmp_path / name)
    for number, name in enumerate(["val/cat/3.png", "val/dog/3.png"]):
        save(photo(10 + number), tmp_path / name)
    return tmp_path


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_a_folder_of_images(folder):
    train, test = open_data(folder, "train"), open_data(str(folder), "test")
    assert (len(train), len(test)) == (4, 2)
    assert train.classes == test.classes == ["cat", "dog"]
    assert (train.in_channels, train.input_size, train.mean, train.std) == (3, None, None, None)
    image, label = train[3]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(photo(3)))
    assert label == 1


def test_images_are_found_and_numbered_as_paddle_does(folder):
    for name in ("UPPER.PNG", "deep/er/x.jpeg", "deep/a.webp", "b.JPG", "b.bmp", "c.tif", "d.ppm"):
        save(photo(), folder / "train/dog" / name)
    (folder / "train/dog/notes.txt").write_text("no image")
    assert open_data(folder, "train").samples == DatasetFolder(str(folder / "train")).samples


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_names_of_the_test_folder(folder, name):
    (folder / "val").rename(folder / name)
    assert len(open_data(folder, "test")) == 2


def test_hidden_files_are_no_images(folder):
    save(photo(), folder / "train/.ipynb_checkpoints/1.png")
    save(photo(), folder / "train/cat/.ipynb_checkpoints/1.png")
    (folder / "train/cat/._1.png").write_bytes(b"what a Mac leaves on other people's disks")
    assert len(open_data(folder, "train")) == 4
    assert open_data(folder, "train").classes == ["cat", "dog"]


def test_links_are_followed_but_not_in_circles(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(photo(), elsewhere / "5.png")
    (folder / "train/cat/linked").symlink_to(elsewhere)
    (folder / "train/cat/loop").symlink_to(folder / "train/cat")
    (folder / "train/dog/linked.png").symlink_to(elsewhere / "5.png")
    assert len(open_data(folder, "train")) == 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    grey = Image.linear_gradient("L").convert("RGB").convert(mode)
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    grey.save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (256, 256))
    error = np.asarray(image, "f4") - np.asarray(Image.linear_gradient("L"), "f4")[..., None]
    assert abs(error.mean()) < 3  # in 1 and P each pixel is the nearest of few colours, with the right mean


def test_of_16_bits_the_upper_8_are_taken(tmp_path):
    Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert np.asarray(read_image(tmp_path / "x.png"))[0, :, 1].tolist() == [0, 0, 1, 255]
    Image.fromarray(np.array([[0.5]], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: has more than 16 bits a pixel: save it with 8"):
        read_image(tmp_path / "x.tif")


def without(folder: Path, name: str) -> None:
    path = folder / name
    for below in sorted(path.rglob("*"), reverse=True):
        below.rmdir() if below.is_dir() else below.unlink()
    path.rmdir()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["val"], "has no folder val: put the images in train/CLASS/ and val/CLASS/, for each class of its own"),
        (["train"], "has no folder train: put the images"),
        (["train", "val"], "has no folder train and no folder val: put the images"),
        (["train/dog"], r"train: has no folder for class 'dog', which .*val has: add or remove it"),
        (["val/cat"], r"val: has no folder for class 'cat', which .*train has: add or remove it"),
        (["train/cat", "train/dog", "val/cat", "val/dog"], "train: has no folders: put the images of each class in"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_folders_that_are_missing(folder, part, missing, message):
    for name in missing:
        without(folder, name)
    with pytest.raises(DataError, match=message) as error:
        open_data(folder, part)
    assert str(error.value).startswith(str(folder))


def test_folders_that_are_empty(folder):
    (folder / "train/dog/1.png").unlink()
    (folder / "train/dog/2.png").unlink()
    (folder / "val/dog/3.png").unlink()
    with pytest.raises(DataError, match="dog: holds no images: add some, or remove the class from both parts"):
        open_data(folder, "train")
    assert len(open_data(folder, "test")) == 1  # a class that is not tested takes nothing from the others
    (folder / "val/cat/3.png").unlink()
    with pytest.raises(DataError, match="val: holds no images: add some in a folder for each class"):
        open_data(folder, "test")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_folder_that_may_not_be_read(folder):
    (folder / "train/cat").chmod(0)
    try:
        with pytest.raises(DataError, match="cat: cannot be read"):
            open_data(folder, "train")
    finally:
        (folder / "train/cat").chmod(0o700)


@pytest.mark.parametrize(
    ("name", "content"),
    {
        "1.png": b"",
        "1.jpg": b"<html>404 Not Found</html>",
        "2.jpg": None,
        "3.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(30),
        "4.webp": b"RIFF\x10\x00\x00\x00WEBPVP8 \x00\x00\x00\x00",
    }.items(),
)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(folder, name, content, workers):
    path = folder / "train/cat" / name
    save(photo(size=(200, 100)), path)
    path.write_bytes(path.read_bytes()[:700] if content is None else content)  # cut short, or something else
    images = Augmented(open_data(folder, "train"), eval_transforms(Preprocessing(8, 8)))
    sentence = f"{path}: cannot be read as an image: replace it or take it out"
    with pytest.raises(DataError) as error:
        list(ImageLoader(images, [[3], [1, 0], [2]], workers))
    assert str(error.value) == sentence


def test_a_link_to_nowhere_is_named(folder):
    (folder / "train/cat/9.png").symlink_to(folder / "gone.png")
    with pytest.raises(DataError, match=r"9\.png: cannot be read as an image"):
        open_data(folder, "train")[2]


# Loading


@pytest.mark.filterwarnings("ignore:To copy construct")  # paddle.Model copies every batch
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_tensors_that_paddle_can_train_with(folder, workers):
    images = Augmented(open_data(folder, "train"), eval_transforms(Preprocessing(8, 8)))
    loader = ImageLoader(images, [[0, 3], [(5, 2), (5, 1)]], workers)
    assert len(loader) == 2
    first, second = list(loader)
    assert first[0].shape == second[0].shape == [2, 3, 8, 8]
    assert (first[0].dtype, first[1].dtype) == (paddle.float32, paddle.int64)
    assert (first[1].tolist(), second[1].tolist()) == ([0, 1], [1, 0])
    np.testing.assert_array_equal(first[0].numpy()[1], images[3][0])
    model = paddle.Model(paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(192, 2)))
    model.prepare(paddle.optimizer.SGD(parameters=model.parameters()), paddle.nn.CrossEntropyLoss())
    model.fit(loader, epochs=2, verbose=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_can_be_left_early(folder, workers):
    images = Augmented(open_data(folder, "train"), eval_transforms(Preprocessing(8, 8)))
    for _ in range(2):
        for batch in ImageLoader(images, [[0, 3]] * 20, workers):
            assert batch[1].tolist() == [0, 1]
            break


# CIFAR


def text(value: bytes) -> bytes:
    """A str of Python 2: SHORT_BINSTRING or BINSTRING."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def whole(number: int) -> bytes:
    """An int, as short as pickle makes it: BININT1, BININT2 or BININT."""
    if number < 256:
        return b"K" + bytes([number])
    return b"M" + struct.pack("<H", number) if number < 65536 else b"J" + struct.pack("<i", number)


def items(values: list[bytes]) -> bytes:
    """A list, put together in parts of 1000."""
    parts = [values[start : start + 1000] for start in range(0, len(values), 1000)]
    return b"]" + b"".join(b"(" + b"".join(part) + b"e" for part in parts)


def array(pixels: np.ndarray) -> bytes:
    """A numpy array as cPickle of Python 2 wrote it."""
    shape = whole(pixels.shape[0]) + whole(pixels.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return made + b"(K\x01" + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"


def python_2(content: dict) -> bytes:
    """The bytes of cPickle.dumps(content, 2) in Python 2: every string there is one of bytes."""
    program = b"\x80\x02}q\x01("
    for key, value in content.items():
        program += text(key)
        if isinstance(value, np.ndarray):
            program += array(value)
        elif isinstance(value, list):
            program += items([whole(item) if isinstance(item, int) else text(item) for item in value])
        else:
            program += whole(value) if isinstance(value, int) else text(value)
    return program + b"u."


WRITERS = {"python 2": python_2, **{f"protocol {n}": lambda content, n=n: pickle.dumps(content, n) for n in (2, 3, 4)}}


def batch(seed: int, size: int, labels: str = "labels") -> dict:
    generator = np.random.default_rng(seed)
    classes = 100 if labels == "fine_labels" else 10
    return {
        b"batch_label": b"training batch %d of 5" % seed,
        labels.encode(): generator.integers(0, classes, size).tolist(),
        b"data": generator.integers(0, 256, (size, 3072), np.uint8),
        b"filenames": [b"leptodactylus_pentadactylus_s_%06d.png" % number for number in range(size)],
    }


NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
FRUIT = [b"fruit_%d" % number for number in range(100)]


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def cifar_10(folder: Path, write=python_2, name: str = "cifar-10-python.tar.gz") -> Path:
    members = {f"cifar-10-batches-py/data_batch_{n}": write(batch(n, 3)) for n in (4, 1, 3, 2, 5)}
    members["cifar-10-batches-py/readme.html"] = b"<html>"
    members["cifar-10-batches-py/batches.meta"] = write({b"num_cases_per_batch": 10000, b"label_names": NAMES})
    members["cifar-10-batches-py/test_batch"] = write(batch(9, 4))
    return archive(folder / name, members)


def cifar_100(folder: Path, write=python_2) -> Path:
    members = {
        "cifar-100-python/file.txt~": b"",
        "cifar-100-python/train": write({**batch(1, 5, "fine_labels"), b"coarse_labels": [19, 0, 1, 2, 3]}),
        "cifar-100-python/test": write(batch(2, 2, "fine_labels")),
        "cifar-100-python/meta": write({b"coarse_label_names": [b"food"], b"fine_label_names": FRUIT}),
    }
    return archive(folder / "cifar-100-python.tar.gz", members)


def test_the_hand_made_pickle_is_one_of_python_2():
    content = {**batch(1, 1200), b"label_names": NAMES, b"large": [70000]}
    read = pickle.loads(python_2(content), encoding="bytes")
    np.testing.assert_array_equal(read.pop(b"data"), content.pop(b"data"))
    assert read == content


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
    ("make", "paddles", "names", "mean"),
    [(cifar_10, Cifar10, NAMES, 0.4914), (cifar_100, Cifar100, FRUIT, 0.5071)],
    ids=["10", "100"],
)
def test_cifar_is_what_paddle_reads(tmp_path, make, paddles, names, mean, write, part):
    path = make(tmp_path, write)
    ours, theirs = open_data(path, part), paddles(str(path), mode=part, backend="pil")
    assert len(ours) == len(theirs) > 0
    for (image, label), (their_image, their_label) in zip(ours, theirs):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(their_image))
        assert type(label) is int and label == their_label
    assert ours.classes == [name.decode() for name in names]
    assert (ours.in_channels, ours.input_size, ours.mean[0]) == (3, 32, mean)


def test_an_unzipped_archive_under_another_name(tmp_path):
    assert len(open_data(cifar_10(tmp_path, name="mine.tar"), "train")) == 15


def test_large_batches_and_classes_without_names(tmp_path):
    path = archive(tmp_path / "x.tar.gz", {"data_batch_1": python_2(batch(1, 2500))})
    images = open_data(path, "train")
    assert len(images) == 2500
    assert images.classes == list("0123456789")
    np.testing.assert_array_equal(np.asarray(images[2400][0]).transpose(2, 0, 1).ravel(), batch(1, 2500)[b"data"][2400])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_names_mean_the_archive_that_paddle_has_downloaded(tmp_path, monkeypatch, name):
    (tmp_path / "cifar").mkdir()
    path = (cifar_10 if name == "cifar10" else cifar_100)(tmp_path / "cifar")
    monkeypatch.setattr(common, "DATA_HOME", str(tmp_path))
    monkeypatch.setattr(data.cifar, f"{name.upper()}_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    images = open_data(name, "test")
    assert images.data_file == str(path)
    assert len(images.classes) == int(name[5:])


def hostile(canary: Path) -> bytes:
    command = f"touch {canary}".encode()
    return b"cos\nsystem\n(" + text(command) + b"tR."


@pytest.mark.parametrize("member", ["data_batch_2", "batches.meta"])
def test_an_archive_that_asks_to_run_code_runs_nothing(tmp_path, member):
    canary = tmp_path / "canary"
    members = {f"data_batch_{n}": python_2(batch(n, 2)) for n in (1, 2)}
    path = archive(tmp_path / "cifar-10-python.tar.gz", {**members, member: hostile(canary)})
    with pytest.raises(HostileFileError) as error:
        open_data(path, "train")
    assert str(error.value) == (
        f"{path}: {member!r}: asks to run 'os.system', which no images need: open it with nothing else and take the "
        f"archive from a source you trust"
    )
    assert not canary.exists()
    if member == "data_batch_2":  # the attack is a real one
        with suppress(TypeError):
            Cifar10(str(path), backend="pil")
        assert canary.exists()


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list where CIFAR has a dict, so the file is damaged"),
        ({"labels": [1, 2]}, "has no array called 'data'"),
        ({"labels": [1, 2], "data": b"ab"}, "has no array called 'data'"),
        ({"labels": [1, 2], "data": PIXELS.astype("f4")}, r"holds float32 \[2, 3072\] where CIFAR has uint8 \[N, 3072"),
        ({"labels": [1, 2], "data": PIXELS[:, 1:]}, r"holds uint8 \[2, 3071\] where"),
        ({"labels": [1, 2], "data": PIXELS[0]}, r"holds uint8 \[3072\] where"),
        ({"labels": [1, 2], "data": np.array([["a"]])}, "values instead of numbers"),
        ({"labels": [1], "data": PIXELS}, "has no list of 2 labels, one for each image"),
        ({"data": PIXELS}, "has no list of 2 labels"),
        ({"fine_labels": None, "data": PIXELS}, "has no list of 2 fine_labels"),
        ({"labels": [1, 10], "data": PIXELS}, "has labels that are no numbers from 0 to 9"),
        ({"labels": [1, -1], "data": PIXELS}, "has labels that are no numbers"),
        ({"labels": [1, True], "data": PIXELS}, "has labels that are no numbers"),
        ({"labels": [1, 2.0], "data": PIXELS}, "has labels that are no numbers"),
        ({"fine_labels": [1, 100], "data": PIXELS}, "has fine_labels that are no numbers from 0 to 99"),
    ],
)
def test_batches_that_are_no_batches(tmp_path, content, message):
    path = archive(tmp_path / "x.tar.gz", {"dir/test_batch": pickle.dumps(content, 2)})
    with pytest.raises(WeightsError, match=message) as error:
        open_data(path, "test")
    assert str(error.value).startswith(f"{path}: 'dir/test_batch': ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"readme.html": b"x"},
        {"data_batch_1": python_2(batch(1, 2))},
        {"test_batch": python_2({**batch(1, 1), b"data": PIXELS[:0], b"labels": []})},
        {"test_batch": python_2(batch(1, 1)), "test": python_2(batch(1, 1, "fine_labels"))},
    ],
    ids=["empty", "foreign", "other part", "no images", "both kinds"],
)
def test_archives_without_the_images(tmp_path, members):
    path = archive(tmp_path / "x.tar.gz", members)
    with pytest.raises(DataError, match="holds no test images of one CIFAR: give the published archive"):
        open_data(path, "test")


def test_files_that_are_no_archives(tmp_path):
    good = cifar_10(tmp_path).read_bytes()
    unzipped = gzip.decompress(good)
    broken = bytearray(good)
    broken[len(good) // 2 : len(good) // 2 + 50] = bytes(50)
    for content in (b"", b"abc", b"PK\x03\x04" + bytes(600), os.urandom(2000), good[:40], good[:-9], unzipped[:5000]):
        (tmp_path / "x.tar.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.tar\.gz: cannot be read as a tar archive: download or copy it again"):
            open_data(tmp_path / "x.tar.gz", "test")
    (tmp_path / "x.tar.gz").write_bytes(broken)
    with pytest.raises(WeightsError, match=r"x\.tar\.gz: "):
        open_data(tmp_path / "x.tar.gz", "test")


def test_archives_larger_than_any_cifar(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_UNPACKED_LIMIT", 1 << 20)
    bomb = archive(tmp_path / "bomb.tar.gz", {"pad": bytes(2 << 20), "test_batch": python_2(batch(1, 1))})
    assert bomb.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"bomb\.tar\.gz: unpacks to more than 1 MB, so it is no CIFAR archive"):
        open_data(bomb, "test")
    claim = tarfile.TarInfo("test_batch")
    claim.size = 1 << 40
    (tmp_path / "claim.tar").write_bytes(claim.tobuf() + bytes(1024))
    with pytest.raises(DataError, match=r"claim\.tar: claims 1099511627776 bytes for 'test_batch'"):
        open_data(tmp_path / "claim.tar", "test")
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, 1 << 32
    with gzip.open(tmp_path / "header.tar.gz", "wb") as file:
        file.write(header.tobuf() + bytes(4 << 20))
    with pytest.raises(DataError, match="unpacks to more than 1 MB"):
        open_data(tmp_path / "header.tar.gz", "test")
    sparse = tarfile.TarInfo("test_batch")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (1 << 19)  # its size once unpacked
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    (tmp_path / "sparse.tar").write_bytes(header + bytes(1024))
    with pytest.raises(DataError, match="claims 524288 bytes for 'test_batch'"):
        open_data(tmp_path / "sparse.tar", "test")
    with pytest.raises(DataError, match="holds more than 1000 files"):
        open_data(archive(tmp_path / "many.tar", {f"{n}": b"" for n in range(1001)}), "test")


def test_damaged_archives_end_in_one_kind_of_error(tmp_path):
    good = cifar_10(tmp_path, name="x.tar").read_bytes()
    starts = [start for start in range(0, len(good), 512) if good[start : start + 5] == b"cifar"]
    # The first kilobyte of a file is where its header and the pickle's instructions are.
    for changed in damaged(good, [start + place for start in starts for place in range(1024)], count=150):
        (tmp_path / "x.tar").write_bytes(changed)
        with suppress(WeightsError):
            images = open_data(tmp_path / "x.tar", "train")
            assert all(0 <= label < 10 and image.size == (32, 32) for image, label in images)


# Names


def test_what_is_no_data(tmp_path):
    with pytest.raises(ValueError, match="there is no data mnist: give digits, cifar10, cifar100, a CIFAR archive"):
        open_data("mnist", "train")
    with pytest.raises(ValueError, match="there is no part 'val' of the data: take train or test"):
        open_data(tmp_path, "val")
