"""How often a network is right: on the digits, on CIFAR-10 as PyTorch answers it, in folders and lists."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import paddle_dense as pd_
from paddle_dense.classes import imagenet, imagenet_classes
from paddle_dense.commands import deploy, evaluate
from paddle_dense.data import Preprocessing, digit_images
from paddle_dense.errors import DataError
from paddle_dense.prediction import Classifier
from paddle_dense.process import FAILED, OK, USAGE
from paddle_dense.training.accuracy import measure_accuracy
from paddle_dense.training.augment import Augmented, eval_transforms
from paddle_dense.training.data import open_data
from paddle_dense.training.scores import Scores, labelled_images, published, score

WEIGHTS = Path(__file__).resolve().parents[2] / "weights" / "cdnv2_digits.pdparams"
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The 450 digits that were held out, as PNG files in folders of their names."""
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install scikit-learn")
    folder = tmp_path_factory.mktemp("digits")
    images, labels = digit_images("test")
    for number, (image, label) in enumerate(zip(images, labels)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(np.round(np.asarray(image) * 255).astype(np.uint8)).save(folder / f"{label}/{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    return pd_.load_model(WEIGHTS)


def told(capsys, arguments, status=OK):
    assert evaluate.main([str(argument) for argument in arguments]) == status
    return capsys.readouterr()


def test_the_digits_are_read_from_pixels_and_from_files_alike(capsys, digits, model):
    data = Augmented(open_data("digits", "test"), eval_transforms(model.preprocessing))
    accuracy = measure_accuracy(model, data)  # what training measures
    pixels = score(Classifier.of(model), labelled_images("digits", model.classes))
    assert len(pixels.labels) == accuracy.images == 450
    assert pixels.top1 == accuracy.top1 > 0.97
    assert abs(pixels.loss - accuracy.loss) < 1e-5
    found = json.loads(told(capsys, [WEIGHTS, digits, "--json"]).out)
    assert (found["images"], found["skipped"], found["classes"]) == (450, 0, 10)
    assert found["top1"] == pixels.top1 and abs(found["loss"] - pixels.loss) < 1e-3  # 8 bits instead of float32
    assert json.loads(told(capsys, [WEIGHTS, "digits", "--json", "--workers", "2"]).out)["loss"] == pixels.loss


def test_cifar_is_answered_as_in_pytorch_image_by_image(trained_by_others, tmp_path):
    """By weights that others trained, against what their own code answers in PyTorch."""
    from convert.torch2paddle import main

    assert (
        main([str(trained_by_others / "dice_c10.pth.tar"), "-o", str(tmp_path / "dice.pdparams"), "--no-verify"]) == OK
    )
    network = pd_.load_model(tmp_path / "dice.pdparams")
    lines = []
    with np.load(trained_by_others / "dice_c10_io.npz") as oracle:
        images, labels, logits = oracle["images"][:200], oracle["labels"][:200], oracle["logits"][:200]
        mean, std = oracle["mean"].ravel().tolist(), oracle["std"].ravel().tolist()
    for number, (image, label) in enumerate(zip(images, labels)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png {CIFAR[label]}")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    network.classes, network.preprocessing = CIFAR, Preprocessing(32, 32, mean=mean, std=std)
    found = score(Classifier.of(network), labelled_images(tmp_path, CIFAR, tmp_path / "list.txt"))
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(found.answers, np.argsort(-logits, axis=1, kind="stable")[:, :5])
    assert found.top1 == (logits.argmax(1) == labels).mean()
    logits = logits.astype("f8")
    chosen = logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(1))
    np.testing.assert_allclose(found.losses, -chosen, rtol=0, atol=1e-4)


def test_the_numbers_are_scikit_learns():
    rng = np.random.default_rng(0)
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn: pip install scikit-learn")
    labels, scores = rng.integers(0, 8, 300), rng.standard_normal([300, 9])
    answers = np.argsort(-scores, axis=1)[:, :5]
    found = Scores(labels, answers, np.ones(300), [f"class {number}" for number in range(9)], 0)
    every = np.arange(9)
    assert found.top1 == metrics.accuracy_score(labels, answers[:, 0])
    assert found.top5 == pytest.approx(metrics.top_k_accuracy_score(labels, scores, k=5, labels=every), abs=1e-12)
    confusion = metrics.confusion_matrix(labels, answers[:, 0], labels=every)
    assert np.array_equal(found.confusion(), confusion)
    rows = found.by_class()
    recalls = metrics.recall_score(labels, answers[:, 0], labels=every, average=None, zero_division=0)
    assert [row["top1"] for row in rows[:8]] == recalls[:8].tolist() and rows[8]["top1"] == ""
    np.fill_diagonal(confusion, 0)
    assert [row["most often taken for"] for row in rows[:8]] == [f"class {n}" for n in confusion.argmax(1)[:8]]


def test_tables_and_the_confusion_matrix(capsys, digits, tmp_path):
    pytest.importorskip("matplotlib", reason='draws the matrix: pip install "paddle_dense[report]"')
    table, drawn = tmp_path / "x.csv", tmp_path / "x.png"
    out = told(capsys, [WEIGHTS, digits, "--csv", table, "--confusion", drawn]).out
    assert "450 images of 10 classes\n  top-1" in out and "published" not in out
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig"))))
    assert [row["class"] for row in rows] == [*"0123456789"] and sum(int(row["images"]) for row in rows) == 450
    share = sum(int(row["images"]) * float(row["top1"]) for row in rows) / 450
    assert f"{share:.2%}" in out
    with Image.open(drawn) as image:
        assert min(image.size) > 500 and len(image.convert("RGB").getcolors(1 << 20)) > 50
    before = table.read_bytes()
    err = told(capsys, [WEIGHTS, digits, "--csv", table], FAILED).err
    assert err == f"error: {table} exists already: give another name with --csv, or --force to overwrite it\n"
    assert table.read_bytes() == before
    assert "would replace" in told(capsys, [WEIGHTS, digits, "--csv", WEIGHTS, "--force"], USAGE).err


def test_what_cannot_be_read_is_named_and_left_out(capsys, digits, tmp_path):
    for number, file in enumerate(sorted((digits / "3").iterdir())[:4]):
        (tmp_path / "val" / "3").mkdir(exist_ok=True, parents=True)
        (tmp_path / "val" / "3" / f"{number}.png").write_bytes(file.read_bytes())
    bad = tmp_path / "val" / "3" / "bad.png"
    bad.write_text("no image")
    for workers in ("0", "2"):
        captured = told(capsys, [WEIGHTS, tmp_path, "--json", "--workers", workers], FAILED)
        found = json.loads(captured.out)
        assert (found["images"], found["skipped"], found["top1"]) == (4, 1, 1.0)
        assert captured.err == f"error: {bad}: cannot be read as an image: replace it or take it out\n"
    for file in (tmp_path / "val" / "3").iterdir():
        file.write_text("no image")
    assert "no image of the data can be read: give others" in told(capsys, [WEIGHTS, tmp_path], FAILED).err


@pytest.fixture
def few(tmp_path):
    """A function that makes black images of these names in a folder."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / "few" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40)).save(tmp_path / "few" / name)
        return tmp_path / "few"

    return make


def test_folders_are_classes_by_name_by_synset_or_by_order(few):
    root = few("n01440764/a.jpg", "n15075141/b.jpg", "goldfish/c.jpg", ".hidden/d.jpg")
    wanted = {"n01440764/a.jpg": 0, "n15075141/b.jpg": 999, "goldfish/c.jpg": 1}
    for language in ("en", "zh"):
        found = labelled_images(root, imagenet_classes(language)).samples
        assert dict(found) == {str(root / name): number for name, number in wanted.items()}
    data = labelled_images(root, None)
    assert data.classes == ["goldfish", "n01440764", "n15075141"] and [label for _, label in data.samples] == [0, 1, 2]
    assert [label for _, label in labelled_images(root, ["n15075141", "goldfish", "x", "n01440764"]).samples] == [
        1,
        3,
        0,
    ]


@pytest.mark.parametrize("label", ["7", imagenet()[7].synset, imagenet()[7].english])
@pytest.mark.parametrize("between", [" ", "\t"])
def test_lists_name_classes_by_number_synset_or_name(few, tmp_path, label, between):
    root = few("a b/ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "list.txt").write_text(f"\na b/ILSVRC2012_val_00000001.JPEG{between}{label}\r\n", encoding="utf-8-sig")
    data = labelled_images(root, imagenet_classes(), tmp_path / "list.txt")
    assert data.samples == [(str(root / "a b" / "ILSVRC2012_val_00000001.JPEG"), 7)]
    assert data[0][0].size == (40, 40)


@pytest.mark.parametrize(
    "line", ["a.jpg", "a.jpg 1000", "a.jpg -1", "a.jpg ²", "a.jpg unicorn", "7", "a.jpg " + "9" * 99]
)
def test_lines_without_a_class_are_named(few, tmp_path, line):
    (tmp_path / "list.txt").write_text(f"a.jpg 1\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"list\.txt: line 2 has '.*: give a path and a class of the model's"):
        labelled_images(few("a.jpg"), imagenet_classes(), tmp_path / "list.txt")


def test_data_that_do_not_fit_are_refused(few, tmp_path, capsys, model):
    with pytest.raises(
        DataError, match=r"unicorn: is no class of the model's, which are '0', '1', '2', \.\.\.: rename"
    ):
        labelled_images(few("unicorn/a.jpg"), model.classes)
    with pytest.raises(DataError, match="has no folder for each class: give --list FILE"):
        labelled_images(few("unicorn/a.jpg") / "unicorn", model.classes)
    (tmp_path / "empty" / "3").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images: put some into the folders of the classes"):
        labelled_images(tmp_path / "empty", model.classes)
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"list\.txt: lists no images"):
        labelled_images(tmp_path, model.classes, tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("few/unicorn/a.jpg 12\n")
    network = Classifier.of(model).named(model.classes)
    with pytest.raises(DataError, match="the data has class 12, and CondenseNetV2 10 classes: take other data"):
        score(network, labelled_images(tmp_path, None, tmp_path / "list.txt"))
    assert "there is no data nowhere" in told(capsys, [WEIGHTS, "nowhere"], USAGE).err
    assert "must end in .png or .svg or .pdf" in told(capsys, [WEIGHTS, "digits", "--confusion", "x.jpg"], USAGE).err


def test_what_is_published_of_a_preset():
    assert published("densenet121", 1000)["top1_error"] > 20 and published("densenet121", 1000)["data"] == "ImageNet"
    assert published("densenet121", 3) == published("CondenseNetV2", 1000) == published("", 1000) == {}


def test_an_exported_file_scores_as_the_network(capsys, digits, tmp_path):
    assert deploy.main([str(WEIGHTS), "-o", str(tmp_path / "net"), "--size", "32", "--batch", "7"]) == OK
    capsys.readouterr()
    network, exported = (
        json.loads(told(capsys, [which, digits, "--json"]).out) for which in (WEIGHTS, tmp_path / "net")
    )
    assert exported["top1"] == network["top1"] and abs(exported["loss"] - network["loss"]) < 1e-5
