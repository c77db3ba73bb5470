"""From images to names: in Python, on the command line, by networks and by what `deploy` wrote."""

from __future__ import annotations

import csv
import io
import json
import math
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image, ImageOps

import paddle_dense as pd_
from paddle_dense.commands import deploy, predict
from paddle_dense.data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, digit_images
from paddle_dense.deploy.exporting import load_exported
from paddle_dense.errors import DataError, WeightsError
from paddle_dense.models import preset, presets
from paddle_dense.process import FAILED, OK, USAGE
from tests.peers import peer

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "cdnv2_digits.pdparams"
DONE = {entry.preprocessing: entry.name for entry in reversed(presets())}


def photograph(width: int = 333, height: int = 250, mode: str = "RGB") -> Image.Image:
    """Smooth colours with noise, so that every step of the preprocessing shows."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / 17 + 2 * channel) * np.cos(y / 23 - channel) for channel in range(3)]
    noise = np.random.default_rng(0).normal(0, 15, [height, width, 3])
    return Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)).convert(mode)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Twelve of the digits that were held out, as PNG files ``NUMBER_LABEL.png``."""
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install scikit-learn")
    folder = tmp_path_factory.mktemp("digits")
    images, labels = digit_images("test")
    for number, (image, label) in enumerate(zip(images[:12], labels)):
        Image.fromarray(np.round(np.asarray(image) * 255).astype(np.uint8)).save(folder / f"{number:02}_{label}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    return pd_.load_model(WEIGHTS)


@pytest.fixture
def colour(randomise):
    """A small network for colour images, of three classes."""
    network = randomise(pd_.CondenseNet([1, 1, 1], [4, 4, 4], num_classes=3, condensed=True))
    network.preprocessing = Preprocessing(64, 72)
    return network


# Preprocessing


@pytest.mark.parametrize("done", DONE, ids=DONE.get)
@pytest.mark.parametrize("size", [(333, 250), (250, 333), (224, 224), (97, 500)], ids=str)
def test_preprocessing_is_torchvisions(done, size):
    T = peer("torchvision.transforms")
    if len(done.mean) != 3:
        pytest.skip("torchvision's transforms are the same for grey images")
    modes = {"bilinear": T.InterpolationMode.BILINEAR, "bicubic": T.InterpolationMode.BICUBIC}
    steps = [T.Resize(done.resize, modes[done.interpolation]), T.CenterCrop(done.input_size), T.ToTensor()]
    theirs = T.Compose([*steps, T.Normalize(done.mean, done.std)])(photograph(*size)).numpy()
    np.testing.assert_allclose(done.transforms()(photograph(*size)).numpy(), theirs, rtol=0, atol=1e-6)


OF_TIMM = [preset.name for preset in presets() if preset.name.startswith(("csp", "efficientnet", "tf_"))]


@pytest.mark.parametrize("name", [name for name in OF_TIMM if "cspdensenet" not in name])
def test_preprocessing_is_timms(name):
    data = peer("timm.data")
    config = data.resolve_data_config(pretrained_cfg=peer("timm.models").get_pretrained_cfg(name).to_dict())
    transforms, ours = data.create_transform(**config), preset(name).preprocessing.transforms()
    for size in ((333, 250), (250, 333), (640, 427)):
        image = photograph(*size)
        np.testing.assert_allclose(ours(image).numpy(), transforms(image).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("depth", [121, 161, 169, 201])
def test_densenets_preprocessing_is_that_of_their_weights(depth):
    """torchvision's: timm names another interpolation for the same weights."""
    transforms = getattr(peer("torchvision.models"), f"DenseNet{depth}_Weights").DEFAULT.transforms()
    ours = preset(f"densenet{depth}").preprocessing.transforms()
    for size in ((333, 250), (250, 333), (640, 427)):
        image = photograph(*size)
        np.testing.assert_allclose(ours(image).numpy(), transforms(image).numpy(), rtol=0, atol=1e-6)


def test_transforms_say_what_they_do():
    assert repr(Preprocessing(224, 256).transforms()) == (
        "Transforms: shorter side to 256 pixels (bilinear), the middle 224 x 224, values to [0, 1], minus "
        f"{list(IMAGENET_MEAN)}, divided by {list(IMAGENET_STD)}"
    )


def test_transforms_take_images_as_people_have_them(tmp_path):
    transforms = Preprocessing(64, 72).transforms()
    image = photograph()
    image.save(tmp_path / "x.png")
    expected = transforms(image).numpy()
    for same in (tmp_path / "x.png", str(tmp_path / "x.png"), np.asarray(image), image.convert("RGBA")):
        assert np.array_equal(transforms(same).numpy(), expected)
    grey = image.convert("L")
    for same in (np.asarray(grey), np.asarray(grey)[..., None], grey.convert("LA")):
        assert np.array_equal(transforms(same).numpy(), transforms(grey.convert("RGB")).numpy())
    for wrong in (np.zeros([4, 4, 2], np.uint8), np.zeros([4, 4, 3]), np.zeros([1, 4, 4, 3], np.uint8)):
        with pytest.raises(DataError, match=r"an array of \w+ \[.*\] is no image: give uint8 \[H, W\]"):
            transforms(wrong)
    with pytest.raises(DataError, match="a list is no image: give a path, an image of Pillow or an array of uint8"):
        transforms([1, 2])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_taken_upright_as_pillow_turns_them(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph(90, 60).save(tmp_path / "x.png", exif=exif)
    transforms = Preprocessing(32, 32).transforms()
    with Image.open(tmp_path / "x.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(transforms(image).numpy(), transforms(upright).numpy())
    assert np.array_equal(transforms(tmp_path / "x.png").numpy(), transforms(upright).numpy())


ODD = ["cmyk.jpg", "p.gif", "p_transparent.png", "bits16.png", "one.png", "animated.gif", "ycbcr.jpg", "small.png"]


def odd(folder: Path, name: str) -> None:
    """Write one of the images that are not eight bits of red, green and blue."""
    image, path = photograph(), folder / name
    if name == "animated.gif":
        image.save(path, save_all=True, append_images=[ImageOps.invert(image)] * 3)
    elif name == "bits16.png":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    elif name == "p_transparent.png":
        image.convert("P").save(path, transparency=0)
    elif name == "small.png":
        image.resize((3, 2)).save(path)
    else:
        image.convert({"cmyk": "CMYK", "p": "P", "one": "1", "ycbcr": "YCbCr"}[path.stem]).save(path)


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_what_pillow_makes_of_them(tmp_path, colour, name):
    odd(tmp_path, name)
    with Image.open(tmp_path / name) as image:
        wide = np.asarray(image.convert("I")) >> 8 if name == "bits16.png" else None
        expected = image.convert("RGB") if wide is None else Image.fromarray(wide.astype(np.uint8)).convert("RGB")
    assert pd_.predict(colour, tmp_path / name) == pd_.predict(colour, expected)


# In Python


def test_answers_are_the_softmax_of_the_networks_own_logits(model, digits):
    files = sorted(digits.iterdir())
    answers = pd_.predict(model, files, top=10, batch_size=5)
    transforms = model.preprocessing.transforms()
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.stack([transforms(file) for file in files])).astype("float64")
    expected = paddle.nn.functional.softmax(logits).numpy()
    assert len(answers) == len(files) == 12
    for file, answer, row in zip(files, answers, expected):
        assert answer[0][0] == file.stem[-1]  # the network knows them
        assert [name for name, _ in answer] == [str(number) for number in np.argsort(-row)]
        np.testing.assert_allclose([p for _, p in answer], np.sort(row)[::-1], rtol=0, atol=1e-6)
        assert math.isclose(sum(p for _, p in answer), 1)


def test_one_image_or_several_of_any_kind(colour):
    image = photograph()
    (answer,) = pd_.predict(colour, image, top=2)
    assert [name for name, _ in answer] != [] and len(answer) == 2 and answer[0][0].startswith("class ")
    assert pd_.predict(colour, np.asarray(image), top=2) == [answer]
    assert pd_.predict(colour, np.stack([np.asarray(image)] * 3), top=2) == [answer] * 3
    assert pd_.predict(colour, (image for image in [image, image]), top=2) == [answer] * 2
    assert pd_.predict(colour, []) == []
    colour.classes = ["cat", "dog", "fox"]
    assert sorted(name for name, _ in pd_.predict(colour, image)[0]) == ["cat", "dog", "fox"]


def test_a_model_in_training_is_asked_in_evaluation_and_left_in_training(colour):
    colour.eval()
    expected = pd_.predict(colour, photograph())
    colour.train()
    assert pd_.predict(colour, photograph()) == expected
    assert colour.training and all(layer.training for layer in colour.sublayers())


def test_what_cannot_be_predicted_is_refused(colour, tmp_path):
    with pytest.raises(ValueError, match="this CondenseNet has no classifier: load it whole to predict classes"):
        pd_.predict(pd_.CondenseNet([1, 1, 1], [4, 4, 4], num_classes=0), photograph())
    with pytest.raises(ValueError, match="top=0 must be 1 or more"):
        pd_.predict(colour, photograph(), top=0)
    with pytest.raises(DataError, match=r"absent\.png: cannot be read"):
        pd_.predict(colour, tmp_path / "absent.png")
    colour.classes = ["cat", "dog"]
    with pytest.raises(WeightsError, match="CondenseNet has 3 classes and there are 2 names: give one for each"):
        pd_.predict(colour, photograph())
    colour.classes = None
    bias = colour.classifier.linear.bias
    bias.set_value(paddle.full_like(bias, float("nan")))
    with pytest.raises(WeightsError, match="CondenseNet answers with NaN or infinity: take undamaged weights"):
        pd_.predict(colour, photograph())


# The command


def told(capsys, arguments, status=OK):
    assert predict.main([str(argument) for argument in arguments]) == status
    return capsys.readouterr()


def test_the_command_names_the_classes_of_files_folders_and_patterns(capsys, digits):
    files = sorted(digits.iterdir())
    out = told(capsys, [WEIGHTS, digits, "--top", 1, "--batch-size", 5]).out.splitlines()
    assert out[::2] == [str(file) for file in files]
    assert [line.split()[1] for line in out[1::2]] == [file.stem[-1] for file in files]
    assert all(float(line.split()[0].rstrip("%")) > 50 for line in out[1::2])
    assert told(capsys, [WEIGHTS, digits / "*.png", "--top", 1]).out.splitlines() == out
    assert told(capsys, [WEIGHTS, *files, "--top", 1]).out.splitlines() == out


def test_tables_and_json_hold_the_same(capsys, digits):
    file = sorted(digits.iterdir())[0]
    (table,) = [list(csv.DictReader(io.StringIO(told(capsys, [WEIGHTS, file, "--csv"]).out)))]
    (found,) = map(json.loads, told(capsys, [WEIGHTS, file, "--json"]).out.splitlines())
    assert found["image"] == table[0]["image"] == str(file)
    assert [row["rank"] for row in table] == ["1", "2", "3", "4", "5"]
    assert [row["class"] for row in table] == [answer["class"] for answer in found["top"]]
    assert [row["number"] for row in table] == [str(answer["number"]) for answer in found["top"]]
    assert [float(row["probability"]) for row in table] == [round(answer["probability"], 6) for answer in found["top"]]


def test_what_cannot_be_read_is_named_and_skipped(capsys, digits, tmp_path):
    good = sorted(digits.iterdir())[0]
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:100])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    images = [tmp_path / "broken.png", good, tmp_path / "text.jpg", tmp_path / "empty", tmp_path / "*.bmp"]
    captured = told(capsys, [WEIGHTS, *images, "--json"], FAILED)
    found = {Path(entry["image"]).name: entry for entry in map(json.loads, captured.out.splitlines())}
    assert found[good.name]["top"][0]["class"] == good.stem[-1]
    assert found.keys() == {"broken.png", good.name, "text.jpg", "empty", "*.bmp"}
    errors = captured.err.splitlines()
    assert len(errors) == 4 and all(error.startswith("error: ") and str(tmp_path) in error for error in errors)
    assert "holds no images: give a folder that does" in found["empty"]["error"]
    assert "there is no such image: check the path" in found["*.bmp"]["error"]


def test_labels_and_languages(capsys, digits, tmp_path, randomise):
    file = sorted(digits.iterdir())[0]
    (tmp_path / "labels.txt").write_text("零 一 二 三 四 五 六 七 八 九".replace(" ", "\n"), encoding="utf-8")
    out = told(capsys, [WEIGHTS, file, "--top", 1, "--labels", tmp_path / "labels.txt"]).out
    assert out.split()[-1] == "零一二三四五六七八九"[int(file.stem[-1])]
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert "has 10 classes and there are 2 names" in (
        told(capsys, [WEIGHTS, file, "--labels", tmp_path / "labels.txt"], FAILED).err
    )
    network = randomise(pd_.CondenseNet([1, 1, 1], [4, 4, 4], num_classes=1000, condensed=True))
    network.preprocessing = Preprocessing(32, 32)
    pd_.save_weights(network, tmp_path / "net.pdparams")
    photograph().save(tmp_path / "x.png")
    english, chinese = (
        json.loads(told(capsys, [tmp_path / "net.pdparams", tmp_path / "x.png", "--json", *language]).out)["top"]
        for language in ([], ["--language", "zh"])
    )
    from paddle_dense.classes import imagenet

    assert [answer["number"] for answer in english] == [answer["number"] for answer in chinese]
    assert [answer["class"] for answer in english] == [imagenet()[answer["number"]].english for answer in english]
    assert [answer["class"] for answer in chinese] == [imagenet()[answer["number"]].chinese for answer in english]


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        ([WEIGHTS], USAGE, "the following arguments are required: IMAGE"),
        ([WEIGHTS, "x", "--top", "0"], USAGE, "--top 0 must be 1 or more"),
        ([WEIGHTS, "x", "--json", "--csv"], USAGE, "argument --csv: not allowed with argument --json"),
        (["cdnv2_aaa", "x"], FAILED, "there is no preset or file 'cdnv2_aaa': paddle-dense list shows the presets"),
        (["absent.pdparams", "x"], FAILED, "absent.pdparams: cannot be read"),
        (["absent.onnx", "x"], FAILED, "absent.onnx: cannot be read"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, arguments, status, message):
    err = told(capsys, arguments, status).err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("suffix", ["", ".json", ".pdiparams", ".meta.json", ".onnx"])
@pytest.mark.parametrize("batch", [[], ["--batch", "4"]], ids=["any batch", "batch of 4"])
def test_what_deploy_wrote_answers_as_the_network(capsys, digits, model, tmp_path, request, suffix, batch):
    if suffix == ".onnx":
        request.getfixturevalue("onnxruntime")
    if suffix == ".json" and paddle.__version__.startswith("2."):
        suffix = ".pdmodel"
    format = "onnx" if suffix == ".onnx" else "paddle"
    arguments = [str(WEIGHTS), "-o", str(tmp_path / "net"), "--format", format, "--size", "32", *batch]
    assert deploy.main(arguments) == OK
    capsys.readouterr()
    files = sorted(digits.iterdir())
    expected = pd_.predict(model, files)
    exported = load_exported(tmp_path / f"net{suffix}")
    assert exported.classes == model.classes and exported.preprocessing == model.preprocessing
    for answer, wanted in zip(pd_.predict(exported, files), expected):
        assert [name for name, _ in answer] == [name for name, _ in wanted]
        np.testing.assert_allclose([p for _, p in answer], [p for _, p in wanted], rtol=0, atol=1e-6)
    out = told(capsys, [tmp_path / f"net{suffix}", digits, "--top", 1]).out.splitlines()
    assert [line.split()[1] for line in out[1::2]] == [answer[0][0] for answer in expected]


def test_an_export_without_its_metadata_is_refused(capsys, tmp_path):
    assert deploy.main([str(WEIGHTS), "-o", str(tmp_path / "net")]) == OK
    written = json.loads((tmp_path / "net.meta.json").read_text(encoding="utf-8"))
    wrong: list[object] = [{}, [], {**written, "inputs": 3}, {**written, "labels": [1]}, {**written, "labels": 5}]
    wrong += [{**written, "preprocessing": None}, {**written, "inputs": [{"shape": [1]}]}]
    for content in wrong:
        (tmp_path / "net.meta.json").write_text(json.dumps(content))
        with pytest.raises(WeightsError, match=r"net\.meta\.json: does not say how images are prepared for it: export"):
            load_exported(tmp_path / "net")
    (tmp_path / "net.meta.json").unlink()
    with pytest.raises(WeightsError, match=r"net\.meta\.json: cannot be read"):
        load_exported(tmp_path / "net.pdiparams")


# Over HTTP


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/00.png")
            self.end_headers()
        elif self.path == "/to-a-file":
            self.send_response(302)
            self.send_header("Location", f"file://{self.directory}/00.png")
            self.end_headers()
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"\x89PNG")
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 20))
            except OSError:
                pass
        else:
            super().do_GET()


@pytest.fixture
def server(digits, tmp_path, monkeypatch):
    """The address of a server on this machine that has ``00.png``."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "00.png").write_bytes(sorted(digits.iterdir())[0].read_bytes())
    (tmp_path / "page.png").write_text("<html>")
    handler: type[BaseHTTPRequestHandler] = partial(_Quiet, directory=str(tmp_path))  # type: ignore[assignment]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_images_behind_addresses(capsys, server, digits):
    wanted = sorted(digits.iterdir())[0].stem[-1]
    out = told(capsys, [WEIGHTS, f"{server}/00.png", f"{server}/moved", "--top", 1]).out.split()
    assert (out[2], out[5]) == (wanted, wanted)


@pytest.mark.parametrize(
    "path, message",
    [
        ("absent.png", "cannot be downloaded (HTTP Error 404"),
        ("to-a-file", "cannot be downloaded ("),
        ("page.png", "is no image that can be read: give the address of the image"),
        ("cut", "cannot be downloaded (only a part of it came)"),
        ("endless", "has more than 64 MB: save it smaller"),
    ],
)
def test_addresses_without_an_image_are_named(capsys, server, path, message):
    err = told(capsys, [WEIGHTS, f"{server}/{path}"], FAILED).err
    assert f"{server}/{path}" in err and message in err and err.count("\n") == 1


def test_a_server_that_is_not_there_is_named(capsys):
    err = told(capsys, [WEIGHTS, "http://127.0.0.1:9/x.png"], FAILED).err
    assert "'http://127.0.0.1:9/x.png' cannot be downloaded (" in err and err.count("\n") == 1
