"""The page of ``paddle-dense app``: what its functions do with uploaded files, its words, its server, and a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import paddle_dense as pd_
from convert import torch2paddle
from paddle_dense.classes import imagenet_classes
from paddle_dense.commands import app, predict, uploads
from paddle_dense.commands.page import conversion_html
from paddle_dense.commands.page_words import LANGUAGES, WORDS, preferred, say
from paddle_dense.commands.uploads import (
    TOP,
    Prediction,
    convert_uploads,
    examples,
    networks,
    page_options,
    predict_upload,
)
from paddle_dense.process import FAILED, OK, USAGE
from tests.security import hostile

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "weights"
DIGITS, CONVERTED = WEIGHTS / "cdnv2_digits.pth", WEIGHTS / "cdnv2_digits.pdparams"
MAX_SIZE = 1 << 20  # bytes, of the tests' server
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")


@pytest.fixture(autouse=True, scope="module")
def kept_networks() -> Iterator[None]:
    """The page keeps the networks that it opened last; other tests want the names of their parameters."""
    yield
    for kept in (uploads._named, uploads._uploaded):
        kept.cache_clear()


@pytest.fixture
def folder(tmp_path) -> Path:
    """That of the page."""
    made = tmp_path / "page"
    made.mkdir()
    return made


@pytest.fixture
def digit(folder) -> Path:
    """An image of a 5."""
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install scikit-learn")
    return examples(folder)[1]


@pytest.fixture
def broken(tmp_path) -> Path:
    """A PNG that ends too early."""
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    path = tmp_path / "broken.png"
    path.write_bytes(whole.read_bytes()[:300])
    return path


def attack(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint that runs code in `torch.load`, and the file that this code would create."""
    canary, path = tmp_path / "canary", tmp_path / "hostile.pth"
    path.write_bytes(hostile.WEIGHT_FILES["zip.pth"](hostile.attacks(canary)["REDUCE"]))
    return path, canary


# What the functions do


def test_a_checkpoint_becomes_what_the_command_writes(folder, tmp_path):
    pytest.importorskip("torch", reason="the check compares with PyTorch: pip install torch")
    assert torch2paddle.main([str(DIGITS), "-o", str(tmp_path / "cdnv2_digits.pdparams")]) == OK
    done = convert_uploads([DIGITS], folder)
    assert done.error is None and done.result.verdict is True
    weights, sidecar, report = done.files
    assert weights.read_bytes() == (tmp_path / "cdnv2_digits.pdparams").read_bytes()
    assert sidecar.read_bytes() == (tmp_path / "cdnv2_digits.json").read_bytes()
    assert report.read_text(encoding="utf-8") == done.report
    assert done.info and done.info.network == "CondenseNetV2"
    assert [path.parent for path in folder.iterdir() if path.is_file()] == []  # only the folder with the files is left
    assert len(list(folder.iterdir())) == 1


def test_a_checkpoint_in_the_trained_form_is_condensed(folder, data):
    done = convert_uploads([data / "cdnv2_tiny_trained_unconverted.pth.tar"], folder)
    assert done.error is None and done.info and done.info.condensed is False
    assert done.result.config["condensed"] is True
    assert say("was_condensed", "en") in conversion_html(done, "en")
    kept = convert_uploads([data / "cdnv2_tiny_trained_unconverted.pth.tar"], folder, "--keep-trained-form")
    assert kept.result.config["condensed"] is False
    assert say("trained", "zh") in conversion_html(kept, "zh")


def test_without_pytorch_a_checkpoint_is_converted_and_that_is_said(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    done = convert_uploads([DIGITS], folder)
    assert done.error is None and done.result.verified is False
    assert json.loads(done.files[1].read_text(encoding="utf-8"))["verified"] is False
    assert any("PyTorch is not installed" in warning for warning in done.result.warnings)
    for language, verdict in (("zh", "未验证"), ("en", "not checked")):
        page = conversion_html(done, language)
        assert verdict in page and "PyTorch is not installed" in page


def test_shards_are_uploaded_together(folder, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="writes shards: pip install safetensors")
    from paddle_dense.files.torch_file import read_checkpoint

    state = read_checkpoint(DIGITS).state
    places = {name: f"part{number % 2}.safetensors" for number, name in enumerate(state)}
    for shard in set(places.values()):
        part = {name: np.ascontiguousarray(state[name]) for name in state if places[name] == shard}
        safetensors.save_file(part, tmp_path / shard, {"format": "pt"})
    index = tmp_path / "net.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    done = convert_uploads([tmp_path / "part1.safetensors", index, tmp_path / "part0.safetensors"], folder)
    assert done.error is None
    written, expected = (pd_.load_model(path).state_dict() for path in (done.files[0], CONVERTED))
    assert all((written[name].numpy() == expected[name].numpy()).all() for name in expected)


@pytest.mark.parametrize("names", [["a.pth", "b.pth"], ["a.pth", "a.pth"], ["a.json", "b.json"]])
def test_which_file_is_meant_has_to_be_clear(folder, tmp_path, names):
    for number, name in enumerate(names):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_bytes(DIGITS.read_bytes())
    done = convert_uploads([tmp_path / str(number) / name for number, name in enumerate(names)], folder)
    assert re.fullmatch(r"2 files were uploaded \(.*\): give one file of weights, .*", done.error)
    assert list(folder.iterdir()) == []


def test_a_hostile_checkpoint_is_refused_and_not_executed(folder, tmp_path, digit):
    path, canary = attack(tmp_path)
    errors = [convert_uploads([path], folder).error, predict_upload(digit, "cdnv2_digits", folder, [path]).error]
    assert not canary.exists()
    assert errors[0] == errors[1] and errors[0].startswith("hostile.pth: ")
    assert not [path for path in folder.rglob("*") if path.name.startswith("hostile")]


def test_an_error_is_the_sentence_of_the_command(folder, tmp_path, capsys, monkeypatch):
    path = tmp_path / "cut.pth"
    path.write_bytes(DIGITS.read_bytes()[:100_000])
    monkeypatch.chdir(tmp_path)
    assert torch2paddle.main(["cut.pth"]) == FAILED
    assert capsys.readouterr().err == f"error: {convert_uploads([path], folder).error}\n"


def test_options_are_those_of_the_command(folder, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(DIGITS.read_bytes())
    options, suffix = page_options(
        "--drop 'a.*' --drop b --config dropout_rate=0.5 --no-verify --format safetensors", path
    )
    assert (options.drop, options.config, options.verify) == (["a.*", "b"], {"dropout_rate": 0.5}, False)
    assert suffix == "safetensors"
    done = convert_uploads([path], folder, "--compact --format safetensors")
    assert done.error is None and [file.name for file in done.files] == ["net.safetensors", "net.json", "net.html"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--reference os:getcwd", "--reference is not for this page: use the command torch2paddle"),
        ("--ref os:getcwd", "--reference is not for this page: use the command torch2paddle"),
        ("--images /", "--images is not for this page: use the command torch2paddle"),
        ("--report x.html", "--report is not for this page: use the command torch2paddle"),
        ("-o x.pdparams", "--output is not for this page: use the command torch2paddle"),
        ("--force", "--force is not for this page: use the command torch2paddle"),
        ("--json", "--json is not for this page: use the command torch2paddle"),
        ("--help", "--help is not for this page: run torch2paddle --help"),
        ("other.pth", "'other.pth' is no option: upload files instead of naming them"),
        ("--arch 'cdnv2_a", 'the options "--arch \'cdnv2_a" cannot be read (No closing quotation): close every quot'),
        ("--arch cdnv2_x", "--arch: unknown model 'cdnv2_x'"),
        ("--nothing", "unrecognized arguments: --nothing"),
        ("--atol x", "argument --atol: invalid float value: 'x'"),
    ],
)
def test_options_that_read_or_write_other_files_are_refused(folder, options, sentence, capsys):
    done = convert_uploads([DIGITS], folder, options)
    assert done.error.startswith(sentence)
    assert done.files == [] and list(folder.iterdir()) == []


def test_an_image_is_what_the_command_says(folder, digit, capsys):
    found = predict_upload(digit, "cdnv2_digits", folder)
    assert predict.main([str(CONVERTED), str(digit), "--json"]) == OK
    said = json.loads(capsys.readouterr().out)["top"]
    assert found.named("en") == {entry["class"]: entry["probability"] for entry in said}
    assert found.heat.size == (256, 256) and len(found.answers) == TOP
    assert len(set(np.asarray(found.heat).reshape(-1, 3)[:, 0])) > 1


def test_weights_of_either_framework_are_taken(folder, digit, tmp_path):
    shipped = predict_upload(digit, "cdnv2_digits", folder)
    with_sidecar = predict_upload(digit, "", folder, [CONVERTED.with_suffix(".json"), CONVERTED])
    assert with_sidecar.named("en") == shipped.named("en")
    # Without what the sidecar says, both answer the same and name no class.
    shutil.copy(CONVERTED, tmp_path / "alone.pdparams")
    from_torch, alone = (predict_upload(digit, "", folder, [path]) for path in (DIGITS, tmp_path / "alone.pdparams"))
    assert next(iter(from_torch.named("en"))).startswith("class ")
    assert from_torch.answers == alone.answers


def test_what_weights_leave_open_is_noted(folder, digit, data):
    found = predict_upload(digit, "", folder, [data / "cdnv2_tiny_ema.pth.tar"])
    assert found.error is None
    noted = [note for note in found.notes if "state_dict_ema" in note]
    assert noted and str(folder) not in noted[0]


def test_a_broken_image_is_one_sentence(folder, broken):
    found = predict_upload(broken, "cdnv2_digits", folder)
    assert re.fullmatch(r"\S*broken\.png: cannot be read as an image: replace it or take it out", found.error)
    assert found.heat is None and found.named("zh") == {}


def test_an_exported_network_is_not_run(folder, digit, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"anything")
    found = predict_upload(digit, "", folder, [tmp_path / "net.onnx"])
    assert found.error.startswith("net.onnx: is exported")


def test_networks_are_those_that_ship_and_those_in_the_cache(folder, digit, tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_DENSE_HOME", str(tmp_path))
    shipped = sorted(path.stem for path in WEIGHTS.glob("*.pdparams"))
    assert list(networks()) == shipped
    assert networks()["cdnv2_digits"] == "cdnv2_digits (0, 1, 2, 3, 4 ...)"
    (tmp_path / "densenet121.tv_in1k.pdparams").touch()
    assert list(networks()) == [*shipped, "densenet121.tv_in1k"]
    unknown = "../weights/cdnv2_digits"
    assert predict_upload(digit, unknown, folder).error.startswith(f"there is no network {unknown!r}: choose one of ")


def test_imagenets_classes_have_both_languages():
    found = Prediction([(0, 0.5), (1, 0.25)], imagenet_classes())
    assert found.named("en") == dict(zip(imagenet_classes(), (0.5, 0.25)))
    assert found.named("zh") == dict(zip(imagenet_classes("zh"), (0.5, 0.25)))


def test_classes_of_one_name_have_each_their_own_bar():
    found = Prediction([(2, 0.5), (0, 0.25), (1, 0.125)], ["crane", "tench", "crane"])
    assert found.named("zh") == {"crane": 0.5, "crane (0)": 0.25, "tench": 0.125}


def test_what_a_file_says_is_harmless_on_the_page(folder, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>${alert(2)}.pth"
    path.write_bytes(DIGITS.read_bytes())
    page = conversion_html(convert_uploads([path], folder, "--no-verify"), "en")
    assert "&lt;img src=x" in page and "<img" not in page


# The words


@pytest.mark.parametrize("key", WORDS)
def test_every_text_is_there_in_both_languages(key):
    chinese, english = WORDS[key].zh, WORDS[key].en
    assert re.search(r"[\u4e00-\u9fff]", chinese)
    assert english.isascii() and english.strip()
    assert re.findall(r"\{\w+", chinese) == re.findall(r"\{\w+", english) or key == "for_size"


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("fr-FR, zh;q=0.5", "zh"),
        ("fr", "en"),
        ("", "en"),
    ],
)
def test_the_language_is_that_of_the_browser(accepted, language):
    assert preferred(accepted) == language


# The command


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--port", "0"], USAGE, "--port 0 must be from 1 to 65535"),
        (["--max-size", "5"], USAGE, "'5' is no size: give one such as 512MB or 2GB"),
        (["--share"], USAGE, "unrecognized arguments: --share"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, status, sentence, capsys):
    assert app.main(arguments) == status
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_without_gradio_one_sentence_says_what_to_install():
    script = (
        "import sys; from importlib import metadata\n"
        "class Hidden(metadata.DistributionFinder):\n"
        "    def find_distributions(self, context=None):\n"
        "        return []\n"
        "sys.meta_path[:] = [Hidden()]  # no package is installed\n"
        "from paddle_dense.commands import app\n"
    )
    # What the script imports is there already; Python 3.9's argparse imports one module when it first speaks.
    code = f"import locale\nfrom paddle_dense.commands import app\n{script}sys.exit(app.main([]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == FAILED
    assert re.fullmatch(r'error: the page needs Gradio 6\.31 .*: pip install "paddle_dense\[app\]"\n', done.stderr)


# The server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the page is served, with uploads of 1 MB at most."""
    pytest.importorskip("gradio", reason='the page is made with Gradio: pip install "paddle_dense[app]"')
    with app.serving(MAX_SIZE, server_name="127.0.0.1") as served:
        yield served


@pytest.fixture
def client(address, tmp_path) -> Any:
    """A program that uses the page."""
    from gradio_client import Client

    return Client(address, download_files=str(tmp_path / "downloads"), verbose=False)


def test_labels_are_words_of_the_page_in_both_languages(address, folder):
    """What the page shows after a switch: no label is left in the other language, and none is without words."""
    import gradio

    from paddle_dense.commands.page import Page

    with gradio.Blocks():
        page = Page(gradio, folder)
    for language in LANGUAGES:
        updates = page.speak(language, None, None)[: len(page.worded)]
        for (part, words), update in zip(page.worded, updates):
            assert words and all(update[name] == say(key, language) for name, key in words.items()), part
    labelled = {id(part) for part, _ in page.worded} | {id(page.language)}
    shown = [part for part in vars(page).values() if getattr(part, "label", None)]
    assert shown and all(id(part) in labelled for part in shown)


def test_old_files_are_deleted_and_the_examples_stay(digit, folder, monkeypatch):
    """After an hour, when Gradio deletes what is old; an example that was clicked is a file of the page like others."""
    gradio = pytest.importorskip("gradio", reason='the page is made with Gradio: pip install "paddle_dense[app]"')
    from gradio.processing_utils import move_files_to_cache
    from gradio.route_utils import delete_files_created_by_app

    from paddle_dense.commands.page import Page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    with gradio.Blocks() as blocks:
        page = Page(gradio, folder)
    other = folder / "other.png"
    shutil.copy(digit, other)
    for path in (page.pick(0)[0], other):
        move_files_to_cache(page.image.postprocess(str(path)).model_dump(), page.image)
    delete_files_created_by_app(blocks, 0)
    assert not other.exists() and Path(page.pick(0)[0]).exists()


def convert(
    client: Any, path: Path, options: str = "--no-verify", language: str = "zh"
) -> tuple[str, list[Path], str, str]:
    """What the page says of an upload, the files to download, what ``info`` says, and the report."""
    from gradio_client import handle_file

    summary, files, info, report = client.predict(
        uploads=[handle_file(str(path))], options=options, language=language, api_name="/convert"
    )
    return summary, [Path(file) for file in files["value"] or []], info, report


def ask(client: Any, image: Path, *weights: Path, language: str = "en") -> tuple[str, dict[str, float], str | None]:
    """What the page says of an image: a sentence, the classes, and the file of the heat map."""
    from gradio_client import handle_file

    message, answer, heat = client.predict(
        image=handle_file(str(image)),
        model="cdnv2_digits",
        weights=[handle_file(str(path)) for path in weights] or None,
        language=language,
        api_name="/predict",
    )
    bars = {entry["label"]: entry["confidence"] for entry in answer["confidences"]} if answer else {}
    return message["value"], bars, heat


def test_the_server_converts_an_upload(client):
    pytest.importorskip("torch", reason="the check compares with PyTorch: pip install torch")
    summary, files, info, report = convert(client, DIGITS, options="")
    assert "一致" in summary and "CondenseNetV2" in info
    assert [path.name for path in files] == ["cdnv2_digits.pdparams", "cdnv2_digits.json", "cdnv2_digits.html"]
    assert files[0].read_bytes() == CONVERTED.read_bytes()
    assert report.startswith("<iframe sandbox ")


def test_the_server_tells_what_an_image_shows(client, digit, folder):
    message, answers, heat = ask(client, digit)
    expected = predict_upload(digit, "cdnv2_digits", folder)
    assert message == "" and answers == pytest.approx(expected.named("en"), rel=1e-6)
    with Image.open(heat) as drawn:
        assert (np.asarray(drawn) == np.asarray(expected.heat)).all()
    _, answers, _ = ask(client, digit, DIGITS)
    assert next(iter(answers)) == "class 5"


def test_the_server_runs_nothing_of_an_upload(client, tmp_path, digit):
    path, canary = attack(tmp_path)
    summary, files, _, _ = convert(client, path)
    message, answers, _ = ask(client, digit, path)
    assert not canary.exists()
    assert "hostile.pth: " in summary and files == []
    assert "hostile.pth: " in message and answers == {}


def test_the_server_answers_a_broken_image_with_a_sentence(client, broken):
    message, answers, heat = ask(client, broken)
    assert "broken.png: cannot be read as an image" in message and not answers and heat is None


def test_a_file_that_is_too_large_is_not_kept(address):
    httpx = pytest.importorskip("httpx", reason="comes with Gradio")
    before = set(uploaded())
    for size, status in ((MAX_SIZE + 1, 413), (MAX_SIZE // 2, 200)):
        answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.pth", bytes(size))})
        assert answer.status_code == status
    [kept] = set(uploaded()) - before
    assert kept.stat().st_size == MAX_SIZE // 2


def uploaded() -> list[Path]:
    return [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*.pth") if path.is_file()]


@pytest.mark.parametrize("path", ["/etc/passwd", str(CONVERTED), "http://127.0.0.1:1/image.png", "data:image/png,a"])
def test_only_uploads_are_read(address, path):
    """Whatever a program asks for in place of an upload: files of this machine, addresses, which Gradio would load."""
    httpx = pytest.importorskip("httpx", reason="comes with Gradio")
    image = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    for call, data in (("predict", [image, "cdnv2_digits", None, "en"]), ("convert", [[image], "", "en"])):
        begun = httpx.post(f"{address}gradio_api/call/{call}", json={"data": data}).raise_for_status()
        said = httpx.get(f"{address}gradio_api/call/{call}/{begun.json()['event_id']}", timeout=60).text
        assert "event: error" in said and "complete" not in said


def test_files_of_this_machine_are_not_served(address):
    httpx = pytest.importorskip("httpx", reason="comes with Gradio")
    for path in (ROOT / "setup.py", CONVERTED, Path("/etc/passwd")):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)


def test_the_server_ends_with_ctrl_c_and_leaves_nothing(tmp_path):
    pytest.importorskip("gradio", reason='the page is made with Gradio: pip install "paddle_dense[app]"')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "paddle_dense", "app", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as served:
        try:
            assert served.stdout.readline() == f"http://127.0.0.1:{port}/ is the page, Ctrl-C ends it\n"
            assert list(tmp_path.glob("paddle_dense-app-*"))
            served.send_signal(signal.SIGINT)
            _, said = served.communicate(timeout=60)
        finally:
            served.kill()
    assert (served.returncode, said) == (OK, "")
    assert not list(tmp_path.glob("paddle_dense-app-*"))


def test_an_address_that_is_taken_is_one_sentence(capsys):
    pytest.importorskip("gradio", reason='the page is made with Gradio: pip install "paddle_dense[app]"')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert app.main(["--port", str(port)]) == FAILED
    said = capsys.readouterr().err
    assert (
        said
        == f"error: nothing can be served on --host 127.0.0.1 --port {port} (Address already in use): give others\n"
    )


# In a browser without a network


@pytest.fixture(params=["zh-CN", "en-US"])
def browser(request) -> Iterator[Any]:
    """Chromium in a language, which reaches this machine only."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="drives a browser: pip install selenium")
    if not (CHROMIUM and DRIVER):
        pytest.skip("opens the page in Chromium: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.add_experimental_option("prefs", {"intl.accept_languages": request.param})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1280,1000", f"--lang={request.param}", nowhere):
        options.add_argument(argument)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    found.language = request.param[:2]
    yield found
    found.quit()


def test_the_page_works_in_a_browser_offline(address, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def until(text: str) -> None:
        WebDriverWait(browser, 60).until(lambda _: text in browser.find_element(By.TAG_NAME, "body").text, text)

    def press(selector: str, text: str = "") -> None:
        found = browser.find_elements(By.CSS_SELECTOR, selector)
        next(part for part in found if part.is_displayed() and text in part.text).click()

    language, other = browser.language, {"zh": "en", "en": "zh"}[browser.language]
    browser.get(address)
    until(say("intro", language))
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(DIGITS))
    until(say("files", language))
    until(say("parameters", language))
    press(".languages label", LANGUAGES[other])
    until(say("intro", other))
    until(say("parameters", other))
    press("button[role=tab]", say("predict_tab", other))
    press(".gallery-item")
    until(say("heat", other))
    until("%")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert asked and all(url.startswith((address, "data:", "blob:", "about:")) for url in asked), asked
