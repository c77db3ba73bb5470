"""The documents: the site builds and works offline, its tables and figures are what the project says today."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("paddle")

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


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


def test_tables_are_what_the_project_says():
    """If this fails, run ``python docs/tables.py``."""
    tables = script("tables")
    for document in tables.TABLES:
        assert document.read_text(encoding="utf-8") == tables.written(document), f"{document}: python docs/tables.py"


def test_every_command_is_in_the_reference():
    from paddle_dense.commands import COMMANDS

    assert {module for module, _ in COMMANDS.values()} <= set(script("tables").COMMANDS.values())


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
