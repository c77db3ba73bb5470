"""Reports: what they say, that what comes from files stays text, and what they look like in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from convert import paddle2torch, torch2paddle
from convert.conversion import convert_checkpoint
from convert.options import Options
from convert.report import summarise, write_report
from convert.report.markdown import markdown_code, markdown_text
from convert.report.page import html
from convert.report.plots import dots
from convert.result import Result as Section

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")
pytest.importorskip("jinja2", reason='draws HTML: pip install "paddle_dense[report]"')

from convert.parity.__main__ import main as parity
from convert.parity.forward import LayerPrecision, Parity
from convert.torch_models.densenet import DenseNet

# A person's name for a file, a script, an escape sequence, a mark that turns the reading direction, half a character.
HOSTILE = (
    "\"><script>alert('x')</script><img src=x onerror=alert(1)>\x1b[31m|`[a](javascript:x)`|\u202e\x9b2J\udc80\n# 你好"
)
LETTERS = "\x1b\x9b\u202e\udc80\n"
EMPTY = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr", "path"}


class Page(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open += [] if tag in EMPTY and tag != "path" else [tag]

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.elements)


@pytest.fixture(scope="module")
def section(data, tmp_path_factory) -> Section:
    """A conversion as a report tells of it."""
    section = Section(str(data / "cdnv2_tiny_trained_unconverted.pth.tar"))
    folder = tmp_path_factory.mktemp("section")
    options = Options(report=folder / "report.html")
    convert_checkpoint(Path(section.input), folder / "tiny.pdparams", options, section)
    return section


def hostile_section() -> Section:
    """Everything that a file could bring in, and numbers that no plot has a place for."""
    return Section(
        input=f"/data/{HOSTILE}.pth",
        output=HOSTILE,
        container=HOSTILE,
        arch=HOSTILE,
        config={HOSTILE: HOSTILE},
        params=1,
        parity=Parity(float("nan"), float("inf"), 0.5, 4),
        atol=0.0,
        layers=[LayerPrecision(HOSTILE, float("nan"), 0.0), LayerPrecision("b", 1e-7, float("inf"))],
        weights=summarise(
            {HOSTILE: np.array([np.nan, 1, 1], "f4"), f"{HOSTILE}.weight": np.full((2, 2), np.inf, "f4")}
        ),
        warnings=[HOSTILE],
        error=HOSTILE,
    )


def test_the_section_knows_what_a_report_shows(section):
    assert section.verified
    assert section.parity.max_rel_diff < 1e-6
    assert section.container == "state_dict"
    names = [layer.name for layer in section.layers]
    assert names[0] == "features.init_conv"
    assert names[-1] == "classifier"
    assert len(names) > 50
    # Condensed on the way: the learned layers are compared as wholes.
    assert "features.denseblock_1.denselayer_1.conv_1" in names
    assert not [n for n in names if ".conv_1." in n]
    assert max(layer.float32 for layer in section.layers) < 1e-5
    assert max(layer.float64 for layer in section.layers) < 1e-13
    kinds = {histogram.kind: histogram for histogram in section.weights.histograms}
    assert list(kinds) == [
        "convolutions", "linear layers", "biases", "BN weight", "BN bias", "BN mean", "BN variance",
    ]  # fmt: skip
    assert sum(kinds["biases"].counts) == 64 + 10
    assert kinds["BN variance"].min > 0
    parameters = sum(sum(h.counts) for kind, h in kinds.items() if kind not in ("BN mean", "BN variance"))
    assert parameters == section.params == 50_010


def test_layers_are_only_compared_for_a_report(data, tmp_path):
    section = Section("tiny")
    convert_checkpoint(data / "cdnv2_tiny_converted.pth", tmp_path / "a.pdparams", Options(), section)
    assert section.verified
    assert not section.layers
    assert section.weights is None


def test_html_says_it_and_needs_nothing_from_elsewhere(section):
    text = html([section])
    page = Page(text)
    for said in ("两个框架的一致性", "PyTorch against Paddle", "CondenseNetV2", "50,010", "一致", *section.warnings):
        assert said in page.text
    assert f"{section.parity.max_rel_diff:.2e}" in page.text
    assert page.count("html", lang="zh-CN") == 1
    assert page.count("path", **{"class": "single"}) == len(section.layers) + 1  # and the legend
    assert page.count("path", **{"class": "fill"}) == len(section.weights.histograms)
    assert not re.search(r"(https?:)?//\w|url\(|@import|<script|<[^>]*\s(on\w+|style|src)=", text)

    policy = next(found["content"] for _, found in page.elements if found.get("http-equiv"))
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_html_of_hostile_files_is_text():
    honest = replace(
        hostile_section(), input="a.pth", output="a", container="a", arch="a", config={"a": "a"}, warnings=["a"],
        layers=[LayerPrecision("a", float("nan"), 0.0), LayerPrecision("b", 1e-7, float("inf"))], error="a",
    )  # fmt: skip
    text = html([hostile_section(), hostile_section()])
    page = Page(text)
    assert not set(text) & set(LETTERS.replace("\n", ""))
    allowed = {name for name, _ in Page(html([honest, honest])).elements}
    assert {name for name, _ in page.elements} <= allowed
    assert "script" not in allowed
    assert "img" not in allowed
    assert not [name for _, found in page.elements for name in found if name.startswith("on") or name == "style"]
    assert page.text.count("<script>alert('x')</script>") >= 10
    assert "\\x1b[31m" in page.text


def test_markdown_of_hostile_files_is_text(tmp_path):
    write_report(tmp_path / "a.md", [hostile_section(), hostile_section()])
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert not set(text) & set(LETTERS.replace("\n", ""))
    assert set(re.findall(r"<[^>]*>", text)) <= {"<details>", "<summary>", "</summary>", "</details>"}
    for line in text.splitlines():
        assert not re.search(r"(?<!\\)(?:\\\\)*\[a", line)
        assert not line.startswith("# 你好")
        if line.startswith("| "):
            cells = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1
            assert cells in (2, 3, 4, 6, 7)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("features.conv_1", "`features.conv_1`"),
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("`a`", "\\`a\\`"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("x\ny", "x\\\\ny"),
    ],
)
def test_names_in_markdown(text, shown):
    assert markdown_code(text) == shown


def test_prose_in_markdown_begins_no_list_and_no_link():
    assert [markdown_text(text) for text in ("- a", "1. b", "# c", "> d", "see http://e", "*f*")] == [
        "\\- a", "1\\. b", "\\# c", "&gt; d", "see http:\\//e", "\\*f\\*",
    ]  # fmt: skip


def test_markdown_and_json_say_the_same(section, tmp_path):
    write_report(tmp_path / "a.md", [section])
    write_report(tmp_path / "a.json", [section])
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    [entries] = json.loads((tmp_path / "a.json").read_text())["inputs"]
    assert entries["parity"]["max_rel_diff"] == section.parity.max_rel_diff
    assert f"`{section.parity.max_rel_diff:.2e}`" in text
    assert len(entries["layers"]) == len(section.layers)
    assert sum(line.startswith("| `features.") for line in text.splitlines()) >= len(section.layers)
    assert entries["config"]["stages"] == [2, 2, 2]
    assert entries["error"] is None
    assert len(entries["weights"]["tensors"]) == len(section.weights.tensors)


def test_json_has_null_where_there_is_no_number(tmp_path):
    write_report(tmp_path / "a.json", [hostile_section()])
    text = (tmp_path / "a.json").read_text(encoding="ascii")
    [entries] = json.loads(text, parse_constant=pytest.fail)["inputs"]
    assert entries["parity"]["max_abs_diff"] is None
    assert entries["layers"][0]["name"] == HOSTILE
    assert entries["weights"]["tensors"][0]["nonfinite"] == 1


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([(1e-7, 1e-16)], ["1e-5", "1e-8", "1e-11", "1e-14", "1e-17"]),
        ([(0.0, 0.0)], ["1e-5", "1e-6"]),
        ([(3.0, 2e-5)], ["1e1", "1e-1", "1e-3", "1e-5"]),
    ],
)
def test_the_plots_axis(values, labels):
    plot = dots([LayerPrecision("a", *value) for value in values], 1e-5)
    assert list(plot.labels) == labels
    assert len(plot.grid) == len(labels)
    assert 0 <= plot.limit <= 1000
    assert all(0 <= dot.y <= 1000 for dot in plot.dots)
    if values == [(1e-7, 1e-16)]:
        assert plot.limit == 0
        assert [round(dot.y) for dot in plot.dots] == [917, 167]


# The commands


@pytest.fixture
def good(tmp_path, randomise) -> Path:
    config = {"growth_rate": 8, "block_config": [2, 2], "num_init_features": 8, "bn_size": 2, "num_classes": 5}
    torch.save(randomise(DenseNet(**config)).state_dict(), tmp_path / "good.pth")
    return tmp_path / "good.pth"


def test_one_report_has_a_section_for_each_input(capsys, good):
    hostile = good.with_name("bad.pth")
    torch.save({"\x1b[2J<script>": torch.zeros(2)}, hostile)
    report = good.parent / "new" / "report.html"

    status = torch2paddle.main([str(good), str(hostile), "--report", str(report)])

    out, err = capsys.readouterr()
    assert status == torch2paddle.FAILED
    assert err.count("\n") == 1
    assert "\x1b" not in err + out
    page = Page(report.read_text(encoding="utf-8"))
    assert page.count("section") == 2
    assert "none of the known networks" in page.text
    assert page.count("a", href="#file-2") == 1
    assert page.count("section", id="file-2") == 1
    assert "一致" in page.text
    assert "失败" in page.text
    assert "<script>" in page.text


def test_what_a_file_says_cannot_move_the_cursor(capsys, good):
    state = torch.load(good, weights_only=True)
    torch.save({"state_dict": state, "state_dict_ema": {**state, "\x1b[2J\x9b": torch.Size([1])}}, good)
    assert torch2paddle.main([str(good), "--no-verify"]) == torch2paddle.OK
    out, err = capsys.readouterr()
    assert "left out what is no tensor" in err
    assert not set(out + err) & set("\x1b\x9b")

    evil = good.with_name("evil\x1b[31m.pth")
    evil.write_bytes(good.read_bytes())
    assert torch2paddle.main([str(evil), "--no-verify"]) == torch2paddle.OK
    out, err = capsys.readouterr()
    assert "evil\\x1b[31m" in out + err
    assert "\x1b" not in out + err


def test_a_failed_check_is_reported_with_its_layers(capsys, good, monkeypatch):
    (good.parent / "slanted.py").write_text(
        "from convert.torch_models.densenet import DenseNet\n"
        "from torch import nn\n"
        "def build():\n"
        "    net = DenseNet(growth_rate=8, block_config=[2, 2], num_init_features=8, bn_size=2, num_classes=5)\n"
        "    net.features.relu0 = nn.SiLU()\n"
        "    return net\n"
    )
    monkeypatch.chdir(good.parent)
    status = torch2paddle.main([str(good), "--reference", "slanted:build", "--report", "report.json"])
    _, err = capsys.readouterr()
    assert status == torch2paddle.FAILED
    assert err.count("\n") == 1
    [entries] = json.loads(Path("report.json").read_text())["inputs"]
    assert entries["error"] in err
    assert not entries["verified"]
    assert entries["output"] is None
    apart = [layer["name"] for layer in entries["layers"] if layer["float64"] > 1e-5]
    assert apart[0] == "features.relu0"
    assert entries["layers"][0] == {
        "name": "features.conv0",
        "float32": pytest.approx(0, abs=1e-6),
        "float64": pytest.approx(0, abs=1e-14),
    }
    assert not good.with_suffix(".pdparams").exists()


def test_the_other_commands_report_as_well(capsys, good):
    assert torch2paddle.main([str(good), "--no-verify"]) == 0
    converted, page = good.with_suffix(".pdparams"), good.with_name("a.html")

    back = ["-o", str(good.with_name("back.pth")), "--report", str(page)]
    assert paddle2torch.main([str(converted), *back]) == 0
    assert "back.pth" in Page(page.read_text(encoding="utf-8")).text

    assert parity([str(converted), "--steps", "1", "--size", "32", "--report", str(page)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert parity([str(converted), "--steps", "1", "--size", "32", "--report", str(page), "--force"]) == 0
    text = Page(page.read_text(encoding="utf-8")).text
    assert "训练" in text
    assert "梯度差" in text
    assert "逐层差异" in text


def test_a_report_that_cannot_be_is_said_before_the_work(capsys, good, monkeypatch):
    report = good.with_name("report.html")
    report.write_text("precious")
    assert torch2paddle.main([str(good), "--report", str(report)]) == torch2paddle.FAILED
    assert "--force" in capsys.readouterr().err
    assert report.read_text() == "precious"

    assert torch2paddle.main([str(good), "--report", str(report / "below.html")]) == torch2paddle.FAILED
    assert "cannot be written" in capsys.readouterr().err

    for wrong in ("report.pdf", "good.json"):  # the second is the sidecar
        assert torch2paddle.main([str(good), "--report", str(good.with_name(wrong))]) == torch2paddle.USAGE
        assert capsys.readouterr().err.count("\n") == 1

    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)  # as if it were not installed
    assert torch2paddle.main([str(good), "--report", str(report), "--force"]) == torch2paddle.FAILED
    err = capsys.readouterr().err
    assert "paddle_dense[report]" in err
    assert err.count("\n") == 1
    assert not good.with_suffix(".pdparams").exists()


# In a browser

HEIGHT = 3400
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
GROUND = {"light": (255, 255, 255), "dark": (20, 24, 29)}
BLUE = {"light": (31, 111, 235), "dark": (108, 176, 255)}


def screenshot(page: Path, width: int, theme: str) -> np.ndarray:
    """The page as headless Chromium shows it: uint8 [height, width, 3]."""
    from PIL import Image

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("looks at the page in a browser: apt-get install chromium")
    target = page.with_suffix(".png")
    quiet = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    quiet += ["--disable-sync", "--hide-scrollbars", f"--user-data-dir={page.parent / 'profile'}"]
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", *quiet, f"--screenshot={target}", f"--window-size={width},{HEIGHT}",
         f"--blink-settings=preferredColorScheme={int(theme == 'light')}", page.as_uri()],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert target.exists(), done.stderr
    with Image.open(target) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1280, "dark")])
def test_it_fits_the_screen(section, tmp_path, width, theme):
    page = tmp_path / "report.html"
    write_report(page, [section])
    seen = screenshot(page, width, theme)
    assert seen.shape == (HEIGHT, width, 3)

    painted = np.abs(seen - GROUND[theme]).max(2) > 8
    rows = painted.any(1)
    assert rows.mean() > 0.2
    assert not painted[:, :8].any()
    assert not painted[:, -8:].any()
    blue = np.abs(seen - BLUE[theme]).max(2) < 8
    columns = blue.any(0).mean()
    assert blue.sum() > 5000
    assert columns > 0.4
