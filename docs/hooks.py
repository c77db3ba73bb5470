"""What the site is built with beyond its plugins: the version, the notebooks as pages, notes on pages in English.

mkdocs.yml names this file; mkdocs calls the functions by their names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import indent
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
NO_SITEMAP = '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"/>\n'
IN_ENGLISH = '!!! note "本页暂无中文版，以下为英文原文。"\n\n'


def on_config(config: MkDocsConfig) -> None:
    """The version, at the foot of every page, as the package says it."""
    source = (ROOT / "paddle_dense" / "__init__.py").read_text(encoding="utf-8")
    config.copyright = f"paddle_dense {re.search(r'^__version__ = .(.+).$', source, re.MULTILINE)[1]}"
    config.theme.static_templates.discard("sitemap.xml")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """A page for each notebook, whose text `on_page_read_source` makes."""
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File(f"notebooks/{notebook.stem}.md", config.docs_dir, config.site_dir, config.use_directory_urls))


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """The Markdown of a notebook's page; other pages are read from their files."""
    notebook = (ROOT / page.file.src_uri).with_suffix(".ipynb")
    return rendered(notebook) if notebook.is_file() else None


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to notebooks, and from them, lead to pages; a page without a translation says so among the others."""
    markdown = re.sub(r"\]\(\.\./((?:\.\./)*notebooks/\w+)\.ipynb\)", r"](\1.md)", markdown)
    if page.file.src_uri.startswith("notebooks/"):  # which lie next to the documents, not among them
        markdown = markdown.replace("](../docs/", "](../")
    translated = page.file.locale == page.file.locale_alternate_of
    if translated or page.file.src_uri.startswith("notebooks/"):  # which are in both languages
        return markdown
    heading = re.search(r"^# .*\n+", markdown, re.MULTILINE)
    return f"{markdown[: heading.end()]}{IN_ENGLISH}{markdown[heading.end() :]}"


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """A Chinese page searches below its own language's folder; no links for which the theme asks for site maps."""
    output = re.sub(r' *<link rel="alternate"[^>]*>\n', "", output)
    return re.sub(r'"base": "\.(?:\./)?(\.[^"]*)"', r'"base": "\1"', output) if page.url.startswith("zh/") else output


@event_priority(-200)  # after the index of both languages is written
def on_post_build(config: MkDocsConfig) -> None:
    """An index for each language, and empty site maps: the theme asks for them, and the site has no address."""
    site = Path(config.site_dir)
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    languages: dict[Path, list[dict[str, Any]]] = {site: [], site / "zh": []}
    for entry in index["docs"]:
        location = entry["location"]
        if location.startswith("zh/"):
            languages[site / "zh"].append({**entry, "location": location[len("zh/") :]})
        else:
            languages[site].append(entry)
    for folder, entries in languages.items():
        (folder / "search").mkdir(parents=True, exist_ok=True)
        text = json.dumps({**index, "docs": entries}, ensure_ascii=False, separators=(",", ":"))
        (folder / "search" / "search_index.json").write_text(text, encoding="utf-8")
        (folder / "sitemap.xml").write_text(NO_SITEMAP, encoding="utf-8")


def rendered(notebook: Path) -> str:
    """A notebook's cells and their saved outputs; images are in the text itself, nothing is run.

    The first cell of code, which is the same everywhere and long, is folded.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    setup = next(cell for cell in cells if cell["cell_type"] == "code")
    return "\n\n".join(_folded(cell) if cell is setup else _shown(cell) for cell in cells)


def _shown(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", source)
    return "\n\n".join([_fenced(source, "python"), *map(_output, cell["outputs"])])


def _folded(cell: dict[str, Any]) -> str:
    return f'??? note "准备环境 / Setup"\n\n{indent(_shown(cell), "    ")}'


def _output(output: dict[str, Any]) -> str:
    """An output in the richest of its forms that a page can show."""
    if output["output_type"] == "stream":
        return _fenced("".join(output["text"]), "text")
    data = {kind: "".join(value) for kind, value in output["data"].items()}
    if "image/png" in data:
        return f"![](data:image/png;base64,{data['image/png'].replace(chr(10), '')})"
    return data["text/markdown"] if "text/markdown" in data else _fenced(data["text/plain"], "text")


def _fenced(text: str, language: str) -> str:
    """A block in a fence that is longer than any in it."""
    lines = text.strip("\n")
    return f"`````{language}\n{lines}\n`````" if lines else ""
