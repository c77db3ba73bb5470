"""Reports as files: an HTML page that needs nothing else, Markdown, or JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib import util
from pathlib import Path
from typing import Any

from convert.report.contents import Label, entry, summary
from convert.report.markdown import markdown
from convert.report.plots import SIZE
from convert.result import Result, versions
from paddle_dense.errors import printable
from paddle_dense.files.atomic import atomic_write, make_folder, refuse_existing

SUFFIXES = (".html", ".md", ".json")
TITLE = Label("权重报告", "Report on weights")
_HERE = Path(__file__).parent
_NAMES_END = re.compile(r"(?<=[./])(?=[^\W\d])")


def check_report(path: Path | None, force: bool) -> None:
    """See that a report can be written, and make its folder, before hours of work go into it.

    Raises:
        WeightsError: a file stands there already, or the folder cannot be made.
        ImportError: Jinja is needed and not installed.
    """
    if path is None:
        return
    refuse_existing(path, force, "--report")
    if path.suffix.lower() == ".html" and util.find_spec("jinja2") is None:
        raise ImportError('an HTML report needs Jinja: pip install "paddle_dense[report]", or ask for .md or .json')
    make_folder(path.parent)


def write_report(path: Path | None, results: Sequence[Result]) -> None:
    """Write a report of all files, whole or not at all; its suffix says in which form.

    Raises:
        WeightsError: it cannot be written there.
    """
    if path is None:
        return
    text = {".html": html, ".md": lambda results: markdown(**_contents(results)), ".json": _json}[path.suffix.lower()](
        results
    )
    with atomic_write(path) as file:
        file.write(text.encode())


def html(results: Sequence[Result]) -> str:
    """One page without scripts, fonts or images from elsewhere, which its own policy forbids as well."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
    )
    # Long names may be broken where a person would, but not numbers.
    environment.filters["breakable"] = lambda text: Markup(_NAMES_END.sub("<wbr>", escape(printable(text))))
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        _contents(results),
        # The page's own words and no input.
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        size=SIZE,
        is_label=lambda cell: isinstance(cell, Label),
    )


def _json(results: Sequence[Result]) -> str:
    content = {"written": _now(), "versions": versions(), "inputs": [_finite(asdict(result)) for result in results]}
    return json.dumps(content, indent=1) + "\n"


def _finite(value: Any) -> Any:
    """The value as JSON takes it: NaN and infinity, which it has no words for, become null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _contents(results: Sequence[Result]) -> dict[str, Any]:
    """What a page says, as `markdown` and the template take it."""
    entries = [entry(result, number) for number, result in enumerate(results)]
    used = {**versions(), "Python": platform.python_version()}
    return {
        "title": TITLE,
        "when": f"{_now()} · {', '.join(f'{name} {version}' for name, version in used.items())}",
        "overview": summary(entries, results) if len(entries) > 1 else None,
        "entries": entries,
    }


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
