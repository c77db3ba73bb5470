"""The documents: the site builds and works offline, its tables and figures are what the project says today."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("paddle")

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CHINESE = r"[\u4e00-\u9fff]"


def script(name: str) -> ModuleType:
    """A script of the documents as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does; every warning is an error there."""
    pytest.importorskip("mkdocs", reason="builds the site: pip install '.[docs]'")
    pytest.importorskip("material", reason="builds the site: pip install '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="builds the site: pip install '.[docs]'")
    pytest.importorskip("mkdocs_static_i18n", reason="builds the site: pip install '.[docs]'")
    pytest.importorskip("jieba", reason="builds the site: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there(site):
    """As a file of its own, which a browser opens without a server, and in both languages."""
    for page in [*pages(), *(f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb"))]:
        assert (site / f"{page}.html").exists()
        assert (site / "zh" / f"{page}.html").exists()


def pages() -> set[str]:
    """The pages in English: their paths without a suffix."""
    return {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - translated()


def translated() -> set[str]:
    """The pages in Chinese, PAGE.zh."""
    return {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.zh.md")}


@pytest.mark.slow
def test_the_site_works_offline(site):
    elsewhere = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\s>]+")
    for page in site.rglob("*.html"):
        assert not elsewhere.findall(page.read_text(encoding="utf-8")), page


@pytest.mark.slow
def test_the_reference_comes_from_docstrings(site):
    page = (site / "reference" / "library.html").read_text(encoding="utf-8")
    assert "paddle_dense.checkpoints.load_model" in page
    assert "Rebuild a network from a file" in page
    assert "WeightsError" in page


LANGUAGES = ("", "zh/")


@pytest.mark.slow
@pytest.mark.parametrize("folder", LANGUAGES)
def test_every_object_is_documented_once(site, folder):
    places: dict[str, list[str]] = {}
    for page in sorted((site / folder / "reference").glob("*.html")):
        for name in re.findall(r'<h\d id="((?:paddle_dense|convert)\.[\w.]+)"', page.read_text(encoding="utf-8")):
            places.setdefault(name, []).append(page.name)
    assert len(places) > 100
    assert {name: pages for name, pages in places.items() if len(pages) > 1} == {}


@pytest.mark.slow
def test_a_page_is_in_one_language(site):
    """Its navigation and the words of the theme; the switch leads to the same page in the other language."""
    english, chinese = ((site / folder / "tutorial.html").read_text(encoding="utf-8") for folder in LANGUAGES)
    for text, language, other in ((english, "en", "zh/tutorial.html"), (chinese, "zh", "../tutorial.html")):
        assert f'<html lang="{language}"' in text
        assert re.search(rf'<a href="{other}"[^>]*class="md-select__link"', text)
    navigation = [
        re.search(r"<nav class=\"md-nav md-nav--primary.*?</nav>\s*</div>", page, re.DOTALL)[0]
        for page in (english, chinese)
    ]
    titles = [re.findall(r'<span class="md-ellipsis">\s*(.*?)\s*</span>', text) for text in navigation]
    assert len(titles[0]) == len(titles[1]) > 20
    assert not re.search(CHINESE, "".join(titles[0]))
    assert [title for title in titles[1] if not re.search(CHINESE, title)] == ["Notebook"]


@pytest.mark.slow
def test_what_has_no_translation_says_so(site):
    note = "本页暂无中文版"
    without = {page for page in pages() if note in (site / "zh" / f"{page}.html").read_text(encoding="utf-8")}
    assert without == pages() - {page.removesuffix(".zh") for page in translated()}
    assert not any(note in (site / f"{page}.html").read_text(encoding="utf-8") for page in pages())


@pytest.mark.slow
@pytest.mark.parametrize("folder", LANGUAGES)
def test_each_language_has_its_own_index(site, folder):
    """Whose entries lead to pages that are there; Chinese words are apart, and the parts of a query are found so."""
    entries = json.loads((site / folder / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    found = {entry["location"].partition("#")[0] for entry in entries}
    assert found == {path.relative_to(site / folder).as_posix() for path in pages_of(site / folder)}
    words = {word.lower() for entry in entries for word in re.split(r"[^\w]+", f"{entry['title']} {entry['text']}")}
    assert {"condensenetv2", "reactivation", "转换"} <= words
    if folder:
        assert {"骨干", "网络", "条件", "卷积", "剪枝"} <= words


def pages_of(folder: Path) -> set[Path]:
    """The pages of a language, in its folder of the site."""
    below = (path for path in folder.rglob("*.html") if path.name != "404.html")
    return {path for path in below if path.relative_to(folder).parts[0] != "zh"}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_shown_with_their_results(site, notebook):
    outputs = [
        output
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    images = [
        "".join(output["data"]["image/png"]).replace("\n", "")
        for output in outputs
        if "data" in output and "image/png" in output["data"]
    ]
    printed = [html.escape("".join(output["text"]).strip("\n"), quote=False) for output in outputs if "text" in output]
    for folder in LANGUAGES:
        page = (site / folder / "notebooks" / f"{notebook.stem}.html").read_text(encoding="utf-8")
        assert all(f'src="data:image/png;base64,{image}"' in page for image in images)
        assert all(text in page for text in printed)
        assert ".ipynb" not in "".join(re.findall(r'href="([^"]*)"', page))


@pytest.mark.slow
def test_the_version_is_on_every_page(site):
    import paddle_dense

    for page in site.rglob("*.html"):
        assert f"paddle_dense {paddle_dense.__version__}\n" in page.read_text(encoding="utf-8"), page


def test_every_preset_is_in_the_model_zoo():
    import paddle_dense

    for name in ("models.md", "models.zh.md"):
        rows = re.findall(r"^\| `(\w+)` \| [\d,]+ \|", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert sorted(rows) == sorted(paddle_dense.list_models())
        assert rows[:3] == ["cdnv2_a", "cdnv2_b", "cdnv2_c"]


def test_tables_are_what_the_project_says():
    """If this fails, run ``python docs/tables.py``."""
    tables = script("tables")
    for document in tables.TABLES:
        assert document.read_text(encoding="utf-8") == tables.written(document), f"{document}: python docs/tables.py"


def test_every_command_is_in_the_reference():
    from paddle_dense.commands import COMMANDS

    assert {module for module, _ in COMMANDS.values()} <= set(script("tables").COMMANDS.values())


def test_every_recipe_is_shown_to_learn():
    """The rows of ``python -m benchmarks.recipes``: the options, and what is right before training and after it."""
    from benchmarks.recipes import TASKS

    row = re.compile(r"^\| `([\w-]+)` \| `(--model[^`]+)` \| ([\d.]+)% \| ([\d.]+)% \|", re.MULTILINE)
    pages = ("training.md", "training.zh.md")
    english, chinese = (row.findall((DOCS / "reference" / name).read_text("utf-8")) for name in pages)
    assert english == chinese
    assert {recipe: options for recipe, options, *_ in english} == TASKS
    assert all(float(after) > float(before) + 15 for *_, before, after in english)


def test_the_figures_of_the_documents_are_there():
    shown = {
        (document.parent / figure).resolve()
        for document in (*DOCS.rglob("*.md"), DOCS.parent / "CONTRIBUTING.md")
        for figure in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", document.read_text(encoding="utf-8"))
    }
    assert shown == set((DOCS / "figures").glob("*.svg"))


@pytest.mark.slow
def test_figures_are_drawn_by_the_layers(tmp_path):
    pytest.importorskip("matplotlib")
    script("figures").draw(tmp_path)
    names = {path.name for path in (DOCS / "figures").glob("*.svg")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all("<svg" in (tmp_path / name).read_text(encoding="utf-8") for name in names)


def test_quick_figures_prove_what_they_show():
    """The figure of an SFR draws only if the condensed weight is the trained one, number for number."""
    pytest.importorskip("matplotlib")
    figures = script("figures")
    assert len(figures.sfr().axes) == 4
    assert figures.condconv().axes


def test_documents_name_no_place_of_a_machine():
    for document in [ROOT / "README.md", ROOT / "README_cn.md", ROOT / "mkdocs.yml", *DOCS.rglob("*.md")]:
        assert not re.search(r"/(home|root|work|tmp|Users)/", document.read_text(encoding="utf-8")), document
