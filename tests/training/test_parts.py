"""What is trained on and what is tested on: a share of each class held out, and PaddleClas' lists."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddle_dense.data import Preprocessing
from paddle_dense.errors import DataError, WeightsError
from paddle_dense.training.accuracy import measure_accuracy
from paddle_dense.training.augment import Augmented, eval_transforms
from paddle_dense.training.data import ImageLoader, Unreadable, open_data
from paddle_dense.training.parts import has_few_images

COUNTS = {"ant": 20, "bee": 11, "cat": 2, "dog": 1}


@pytest.fixture
def folder(tmp_path) -> Path:
    """ROOT/CLASS/ with images, each of its own grey."""
    root = tmp_path / "photos"
    for name, count in COUNTS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (5 * number, 0, 0)).save(root / name / f"{number}.png")
    return root


def names(data) -> list[str]:
    return [Path(path).parent.name + "/" + Path(path).name for path, _ in data.samples]


def test_a_folder_of_classes_is_split_class_by_class(folder):
    train, test = open_data(folder, "train"), open_data(folder, "test")
    assert train.classes == test.classes == sorted(COUNTS)
    assert Counter(label for _, label in test.samples) == {0: 4, 1: 2, 2: 1}  # of a single one none can be held out
    assert sorted(names(train) + names(test)) == sorted(
        f"{name}/{n}.png" for name in COUNTS for n in range(COUNTS[name])
    )
    assert names(train) == names(open_data(folder, "train", 0.2, seed=0))
    assert names(test) != names(open_data(folder, "test", seed=1))
    assert len(open_data(folder, "test", 0.5)) == 10 + 6 + 1
    assert len(open_data(folder, "train", 0.99)) == 4  # one of each class is left to train on


def test_the_same_images_are_held_out_wherever_the_folder_is(folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "elsewhere/again")
    assert names(open_data(moved, "test")) == names(open_data(folder, "test"))


def test_an_added_image_moves_at_most_one_other(folder):
    before = set(names(open_data(folder, "test")))
    Image.new("RGB", (9, 9)).save(folder / "ant" / "new.png")
    assert len(before - set(names(open_data(folder, "test")))) <= 1


def test_a_train_folder_alone_is_split_if_asked(folder, tmp_path):
    (tmp_path / "root").mkdir()
    folder.rename(tmp_path / "root/train")
    with pytest.raises(
        DataError, match=r"has no folder val: put the images .*, or hold out a fifth with --val-split 0.2"
    ):
        open_data(tmp_path / "root", "train")
    assert len(open_data(tmp_path / "root", "test", 0.2)) == 7
    shutil.copytree(tmp_path / "root/train", tmp_path / "root/val")
    with pytest.raises(ValueError, match="val has images to test on already: leave it out"):
        open_data(tmp_path / "root", "test", 0.2)


@pytest.mark.parametrize("name", ["Test", "training", "VAL"])
def test_parts_with_other_names_are_no_classes(folder, name):
    (folder / "ant").rename(folder / name)
    with pytest.raises(DataError, match="has no folder"):
        open_data(folder, "train")


def test_nothing_to_hold_out(tmp_path):
    (tmp_path / "ant").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "ant/1.png")
    with pytest.raises(DataError, match="has no class with two images, one to train on and one to test on: add some"):
        open_data(tmp_path, "train")


# Lists


@pytest.fixture
def lists(folder) -> Path:
    """PaddleClas' three files, with a path that contains a space."""
    (folder / "ant/0.png").rename(folder / "ant/number 0.png")
    (folder / "train_list.txt").write_text("ant/number 0.png 0\nant/1.png\t0\n\nbee/0.png 1\r\n")
    (folder / "val_list.txt").write_text("bee/1.png\t1\nant/2.png 0\n")
    (folder / "label_list.txt").write_text("0 fire ant\n1 bee\n")
    return folder


def test_lists_in_a_folder_or_by_name(lists):
    for path in (lists, lists / "train_list.txt", str(lists)):
        train, test = open_data(path, "train"), open_data(path, "test")
        assert train.classes == test.classes == ["fire ant", "bee"]
        assert train.samples == [(str(lists / name), label) for name, label in TRAINED]
        assert [label for _, label in test.samples] == [1, 0]
    assert np.asarray(train[2][0])[0, 0].tolist() == [0, 0, 0] and test[0][1] == 1


TRAINED = [("ant/number 0.png", 0), ("ant/1.png", 0), ("bee/0.png", 1)]


def test_paths_start_where_one_says(lists, tmp_path):
    moved = tmp_path / "lists"
    moved.mkdir()
    for name in ("train_list.txt", "val_list.txt", "label_list.txt"):
        (lists / name).rename(moved / name)
    with pytest.raises(DataError, match=r"train_list.txt: line 1: there is no image .* with --image-root"):
        open_data(moved, "train")
    assert open_data(moved, "train", image_root=lists)[1][1] == 0
    with pytest.raises(ValueError, match=r"--image-root is for PaddleClas' lists, and .*photos has none: leave it out"):
        open_data(lists, "train", image_root=moved)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ant\nbee\n", ["ant", "bee"]),
        ("1 bee\n0 tench, Tinca tinca\n", ["tench, Tinca tinca", "bee"]),
        ("0\tant\n1\tbee\n", ["ant", "bee"]),
        ("12 monkeys\n7 dwarfs\n", ["12 monkeys", "7 dwarfs"]),
        ("\ufeff0 \u8682\u8681\n1 \u871c\u8702\n", ["\u8682\u8681", "\u871c\u8702"]),
        (None, ["0", "1"]),
    ],
)
def test_names_with_numbers_and_without(lists, text, expected):
    (lists / "label_list.txt").unlink()
    if text:
        (lists / "label_list.txt").write_text(text, encoding="utf-8")
    assert open_data(lists, "train").classes == expected


def test_one_list_is_split_if_asked(lists):
    (lists / "val_list.txt").unlink()
    with pytest.raises(DataError, match="has no list to test on next to it: add one, or hold out a fifth"):
        open_data(lists, "train")
    assert [label for _, label in open_data(lists, "test", 0.2).samples] == [0]
    assert len(open_data(lists, "train", 0.2)) == 2


def test_lists_have_a_split_already(lists):
    with pytest.raises(ValueError, match=r"val_list.txt lists the images to test on already: leave it out"):
        open_data(lists, "train", 0.2)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train_list.txt", b"ant/1.png 0\nant/1.png\n", r"train_list.txt: line 2 is 'ant/1.png', not PATH NUMBER"),
        ("train_list.txt", b"ant/1.png cat\n", r"train_list.txt: line 1 is .* not PATH NUMBER"),
        ("train_list.txt", b"ant/1.png -1\n", r"train_list.txt: line 1 is .* not PATH NUMBER"),
        ("train_list.txt", b"ant/1.png 99999999999\n", r"train_list.txt: line 1 is .* not PATH NUMBER"),
        (
            "train_list.txt",
            b"ant/1.png 0\nbee/0.png 2\n",
            r"line 2 has class 2, and label_list.txt has 0 to 1: correct",
        ),
        ("train_list.txt", b"ant/1.png 0\nant/99.png 0\n", r"train_list.txt: line 2: there is no image '.*ant/99.png'"),
        ("train_list.txt", b"ant/1.png 0\n", r"train_list.txt: has no image of class 1 \('bee'\): add one, or take"),
        ("val_list.txt", b"ant/1.png 0\n", r"val_list.txt: has no image of class 1 \('bee'\): add one, or take"),
        ("val_list.txt", b"\n", r"val_list.txt: lists no images: write PATH NUMBER in a line"),
        ("val_list.txt", b"\xff\xfe", r"val_list.txt: is no text in UTF-8: save it as such"),
        ("label_list.txt", b"ant\nbee\ncat\n", r"train_list.txt: has no image of class 2 \('cat'\)"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_sentence(lists, file, content, message):
    (lists / file).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        open_data(lists, "train")
    assert str(error.value).startswith(str(lists)) and "\n" not in str(error.value)


def test_a_gap_in_the_numbers_without_names(lists):
    (lists / "label_list.txt").unlink()
    (lists / "train_list.txt").write_text("ant/1.png 0\nbee/0.png 999999\n")
    with pytest.raises(DataError, match=r"train_list.txt: has no image of class 1: add one"):
        open_data(lists, "train")


def test_a_list_that_is_a_folder(lists):
    (lists / "val_list.txt").unlink()
    (lists / "val_list.txt").mkdir()
    with pytest.raises(WeightsError, match=re.escape(str(lists / "val_list.txt"))):
        open_data(lists, "train")


def test_which_data_is_small(lists, tmp_path):
    assert has_few_images(str(lists)) and has_few_images(str(lists / "train_list.txt"))
    (lists / "train_list.txt").write_bytes(b"n01440764/n01440764_10026.JPEG 0\n" * 10_000)
    assert not has_few_images(str(lists))
    assert not has_few_images(str(tmp_path / "nowhere"))


# Images that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_once_and_left_out(folder, capsys, workers):
    broken = [folder / "ant/3.png", folder / "bee/2.png"]
    for path in broken:
        path.write_bytes(b"no image")
    data = open_data(folder, "train", 0.01)
    numbers = [next(n for n, (path, _) in enumerate(data.samples) if path == str(one)) for one in broken]
    images = Augmented(data, eval_transforms(Preprocessing(8, 8)))
    batches = [[0, 1, *numbers], [numbers[0], 2, 4], [5, 6]]

    replaced = list(ImageLoader(images, batches, workers, Unreadable(len(data), 0.1), same_size=True))
    assert [len(labels) for _, labels in replaced] == [4, 3, 2]
    np.testing.assert_array_equal(replaced[0][0].numpy(), np.stack([images[n][0] for n in (0, 1, 0, 1)]))
    np.testing.assert_array_equal(replaced[1][1].numpy(), [images[n][1] for n in (2, 4, 2)])
    said = capsys.readouterr().err.splitlines()
    assert [sum(str(path) in line for line in said) for path in broken] == [1, 1] and len(said) == 2
    assert said[0].startswith("warning: ") and said[0].endswith("replace it or take it out (it is left out)")

    shorter = list(ImageLoader(images, [*batches, numbers], workers, Unreadable(len(data), 0.1)))
    assert [len(labels) for _, labels in shorter] == [2, 2, 2]
    with pytest.raises(DataError, match=r"or let 2 of 31 images be left out with a --max-bad above 0.05"):
        list(ImageLoader(images, batches, workers, Unreadable(len(data), 0.05)))
    with pytest.raises(DataError, match="no image of its batch can be read"):
        list(ImageLoader(images, [numbers], workers, Unreadable(len(data), 0.1), same_size=True))


def test_accuracy_counts_the_images_that_can_be_read(folder):
    data = open_data(folder, "train", 0.01)
    images = Augmented(data, eval_transforms(Preprocessing(8, 8)))
    network = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(192, 4))
    whole = measure_accuracy(network, images, 7)
    Path(data.samples[9][0]).write_bytes(b"")
    found = measure_accuracy(network, images, 7, unreadable=Unreadable(len(data), 0.1))
    assert (whole.images, found.images) == (31, 30)
    with pytest.raises(DataError, match="or let it be left out with a --max-bad above 0"):
        measure_accuracy(network, images, 7, unreadable=Unreadable(len(data), 0))
    for path, _ in data.samples:
        Path(path).write_bytes(b"")
    with pytest.raises(ValueError, match="no image to evaluate on can be read"):
        measure_accuracy(network, images, 7, unreadable=Unreadable(len(data), 1))
