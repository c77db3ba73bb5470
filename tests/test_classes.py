"""Class names: ImageNet's, and how names and preprocessing travel with weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import paddle_dense as pd_
from paddle_dense.classes import class_numbers, imagenet, imagenet_classes, read_labels, translated
from paddle_dense.commands import deploy, train
from paddle_dense.data import DIGITS_MEAN, DIGITS_STD, Preprocessing
from paddle_dense.errors import WeightsError
from paddle_dense.files.weights import write_weights
from paddle_dense.process import OK
from paddle_dense.training.resume import newest
from tests.peers import peer

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
DIGITS = Preprocessing(32, 32, mean=DIGITS_MEAN, std=DIGITS_STD)


def test_imagenets_names_are_those_of_torchvision():
    assert imagenet_classes() == peer("torchvision.models._meta")._IMAGENET_CATEGORIES


def test_imagenets_synsets_are_those_of_timm():
    info = peer("timm.data").ImageNetInfo("imagenet-1k")
    assert [entry.synset for entry in imagenet()] == info.label_names()


def test_every_class_has_one_name_in_each_language_and_no_two_share_one():
    for language in ("en", "zh"):
        names = imagenet_classes(language)
        assert len(set(names)) == 1000 and all(name == name.strip() and name.isprintable() for name in names)
    chinese = imagenet_classes("zh")
    assert [chinese[number] for number in (1, 207, 292, 388, 817, 963, 999)] == (
        ["金鱼", "金毛寻回犬", "老虎", "大熊猫", "跑车", "披萨", "卫生纸"]
    )
    assert [name for name in chinese if name.isascii()] == ["iPod"]
    with pytest.raises(ValueError, match="there are no class names in 'fr': choose one of en, zh"):
        imagenet_classes("fr")


def test_only_imagenets_names_are_translated():
    assert translated(imagenet_classes(), "zh")[2] == "大白鲨"
    assert translated(["cat", "dog"], "zh") == ["cat", "dog"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_imagenets_classes_are_known_by_each_of_their_names(language):
    info, numbers = peer("timm.data").ImageNetInfo("imagenet-1k"), class_numbers(imagenet_classes(language))
    for names in (info.label_names(), imagenet_classes("en"), imagenet_classes("zh")):
        assert [numbers[name] for name in names] == list(range(1000))
    assert len(numbers) == 3000 - 1  # iPod is the same word in both languages
    assert class_numbers(["dog", "n01440764"]) == {"dog": 0, "n01440764": 1}


def test_labels_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "labels.txt").write_bytes("猫\n狗\n".encode("utf-8-sig"))
    assert read_labels(tmp_path / "labels.txt") == ["猫", "狗"]


@pytest.fixture
def small(randomise):
    """A function from the number of classes to a network of so many."""
    return lambda count: randomise(pd_.CondenseNet([1, 1, 1], [4, 4, 4], num_classes=count, condensed=True))


def test_the_shipped_digits_know_their_classes_and_preprocessing():
    model = pd_.load_model(WEIGHTS / "cdnv2_digits.pdparams")
    assert model.classes == list("0123456789")
    assert (model.preprocessing.resize, model.preprocessing.mean) == (32, DIGITS_MEAN)
    assert model.preprocessing == DIGITS


def test_names_and_preprocessing_are_saved_and_loaded(tmp_path, small):
    model = small(3)
    model.classes = ["cat", "狗", "fox"]
    model.preprocessing = Preprocessing(48, 64, "bicubic", mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
    pd_.save_weights(model, tmp_path / "net.safetensors")
    loaded = pd_.load_model(tmp_path / "net.safetensors")
    assert (loaded.classes, loaded.preprocessing, loaded.input_size) == (model.classes, model.preprocessing, 48)
    assert pd_.load_model(tmp_path / "net.safetensors", num_classes=2).classes is None
    assert pd_.load_model(tmp_path / "net.safetensors", features_only=True).classes is None


def test_a_preset_takes_them_over_from_its_weights(tmp_path, randomise):
    model = randomise(pd_.create_model("cdnv2_a", num_classes=2))
    model.classes, model.preprocessing = ["cat", "dog"], Preprocessing(96, 96)
    pd_.save_weights(model, tmp_path / "pets.pdparams")
    again = pd_.create_model("cdnv2_a", pretrained=tmp_path / "pets.pdparams", num_classes=2)
    assert (again.classes, again.preprocessing) == (["cat", "dog"], Preprocessing(96, 96))
    with pytest.warns(UserWarning, match="the classifier is newly initialised"):
        assert pd_.create_model("cdnv2_a", pretrained=tmp_path / "pets.pdparams", num_classes=5).classes is None


def test_a_thousand_unnamed_classes_are_imagenets_unless_they_were_trained_here(tmp_path, small):
    assert small(1000).classes is None
    pd_.save_weights(small(1000), tmp_path / "net.pdparams")
    assert pd_.load_model(tmp_path / "net.pdparams").classes == imagenet_classes()
    pd_.save_weights(small(1000), tmp_path / "net.pdparams", {"training": {"data": "things"}})
    assert pd_.load_model(tmp_path / "net.pdparams").classes is None
    pd_.save_weights(small(999), tmp_path / "net.pdparams")
    assert pd_.load_model(tmp_path / "net.pdparams").classes is None


GOOD = Preprocessing(32, 32).as_dict()


@pytest.mark.parametrize(
    "told",
    [
        {"classes": ["cat"]},
        {"classes": "abc"},
        {"classes": ["cat", "dog", 3]},
        {"classes": ["cat", "dog", ""]},
        {"classes": ["cat", "dog", "x" * 501]},
        {"preprocessing": "none"},
        {"preprocessing": {**GOOD, "more": 1}},
        {"preprocessing": {**GOOD, "resize": 1 << 40}},
        {"preprocessing": {**GOOD, "resize": 31}},
        {"preprocessing": {**GOOD, "input_size": 32.0}},
        {"preprocessing": {**GOOD, "input_size": 0}},
        {"preprocessing": {**GOOD, "interpolation": ["bilinear"]}},
        {"preprocessing": {**GOOD, "mean": [0.5]}},
        {"preprocessing": {**GOOD, "mean": [0.5, 0.5, float("nan")]}},
        {"preprocessing": {**GOOD, "mean": [0.5, 0.5, True]}},
        {"preprocessing": {**GOOD, "std": [0.5, 0.5, 0]}},
        {"preprocessing": {**GOOD, "std": None}},
    ],
)
def test_a_sidecar_that_says_what_cannot_be_is_refused(tmp_path, small, told):
    pd_.save_weights(small(3), tmp_path / "net.pdparams", told)
    with pytest.raises(WeightsError, match=r"net\.json is not a readable sidecar: fix or delete it"):
        pd_.load_model(tmp_path / "net.pdparams")


@pytest.mark.parametrize("config", [[1], "none", 3, None, {"in_channels": 1}])
def test_a_preset_takes_the_weights_of_a_file_whose_sidecar_describes_another_network(tmp_path, config):
    """Or none: what it says of the network is not asked for there, and preprocessing for other channels is left."""
    whole = pd_.create_model("densenet_bc100_k12")
    pd_.save_weights(whole, tmp_path / "net.pdparams", {"config": config})
    model = pd_.create_model("densenet_bc100_k12", pretrained=tmp_path / "net.pdparams")
    assert model.preprocessing == whole.preprocessing


@pytest.fixture
def pets(tmp_path):
    """Noise in folders train/ and val/, of three classes."""
    from PIL import Image

    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "狗", "fox"):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for number in range(2):
                noise = random.integers(0, 256, [40, 40, 3], np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.png")
    return tmp_path / "pets"


def test_training_writes_them_and_export_carries_them(tmp_path, pets, capsys):
    run = tmp_path / "run"
    config = "stages=1-1-1,growth=4-4-4,condensed=true"
    arguments = ["--model", "CondenseNet", "--config", config, "--data", str(pets), "--recipe", "finetune"]
    arguments += ["--epochs", "1", "--batch-size", "2", "-o", str(run)]
    assert train.main(arguments) == OK
    model = pd_.load_model(run / "model.pdparams")
    assert model.classes == ["cat", "fox", "狗"]
    told = json.loads((run / "model.json").read_text(encoding="utf-8"))
    assert told["classes"] == ["cat", "fox", "狗"] and told["preprocessing"] == model.preprocessing.as_dict()
    continued = newest(run).build_network()
    assert (continued.classes, continued.preprocessing) == (model.classes, model.preprocessing)

    def exported(*options: str) -> dict:
        assert (
            deploy.main([str(run / "model.pdparams"), "-o", str(tmp_path / "out" / "net"), "--force", *options]) == OK
        )
        return json.loads((tmp_path / "out" / "net.meta.json").read_text(encoding="utf-8"))

    assert exported()["labels"] == ["cat", "fox", "狗"] and exported()["preprocessing"] == told["preprocessing"]
    (tmp_path / "labels.txt").write_text("Katze\nFuchs\nHund\n")
    assert exported("--labels", str(tmp_path / "labels.txt"))["labels"] == ["Katze", "Fuchs", "Hund"]


def test_a_continued_run_prepares_images_as_the_weights_that_it_began_with_ask(tmp_path, pets, small):
    model = small(3)
    model.preprocessing = Preprocessing(40, 40, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
    pd_.save_weights(model, tmp_path / "begin.pdparams")
    run = tmp_path / "run"
    arguments = ["--pretrained", str(tmp_path / "begin.pdparams"), "--data", str(pets), "--epochs", "1"]
    assert train.main([*arguments, "--batch-size", "2", "-o", str(run)]) == OK
    assert newest(run).build_network().preprocessing == model.preprocessing
    assert pd_.load_model(run / "model.pdparams").preprocessing == model.preprocessing


def test_weights_without_a_sidecar_have_the_presets_preprocessing(tmp_path, randomise):
    model = randomise(pd_.create_model("cspresnet50", num_classes=3))
    write_weights({name: tensor.numpy() for name, tensor in model.state_dict().items()}, tmp_path / "net.pdparams")
    loaded = pd_.load_model(tmp_path / "net.pdparams")
    assert (loaded.classes, loaded.preprocessing) == (None, model.preprocessing)
