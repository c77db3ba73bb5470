"""A report in GitHub's Markdown, in which the words from files are harmless."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from convert.report.contents import Cell, Entry, Label, Table
from paddle_dense.errors import printable

# Whatever Markdown, or GitHub's extension of it, could take for more than itself: anywhere, and where a line begins.
_SPECIAL = re.compile(r"([\\`*_\[\]!|~^$@#])")
_AT_THE_START = re.compile(r"^(\d*)([-+.)=:])")
_PLAIN = re.compile(r"[\w .,:;/=+%()-]+")


def markdown(title: Label, when: str, overview: Table | None, entries: Sequence[Entry]) -> str:
    """The whole report, drawn up `when` and with which versions; the overview is for several files."""
    lines = [f"# {_label(title)}", "", markdown_text(when), ""]
    if overview:
        lines += [*_table(overview), ""]
    for entry in entries:
        lines += _entry(entry)
    return "\n".join(lines)


def _entry(entry: Entry) -> Iterator[str]:
    yield f"## {markdown_text(entry.name)}\n"
    yield f"**{_label(entry.said)}**" + (f": {markdown_text(entry.error)}\n" if entry.error else "\n")
    if entry.warnings:
        yield "### 警告 Warnings\n"
        yield from (f"- {markdown_text(warning)}" for warning in entry.warnings)
        yield ""
    for part in entry.parts:
        yield f"### {_label(part.title)}\n"
        for table in part.tables:
            title = _label(table.title)
            if table.folded:
                yield f"<details><summary>{title}</summary>"
            elif title:
                yield title
            yield ""
            yield from _table(table)
            yield ""
            if table.folded:
                yield "</details>\n"


def _table(table: Table) -> Iterator[str]:
    columns = table.columns or (Label("", ""),) * 2
    yield _row(columns)
    yield "|" + " --- |" * len(columns)
    for row in table.rows:
        yield _row(row)


def _row(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join(_label(cell) if isinstance(cell, Label) else markdown_code(cell) for cell in cells) + " |"


def _label(label: Label) -> str:
    return f"{label.zh} {label.en}".strip()


def markdown_text(text: object) -> str:
    """Text that Markdown shows as it is, wherever it stands, also in the cell of a table."""
    escaped = _AT_THE_START.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", printable(text)))
    unlinked = escaped.replace("://", ":\\//").replace("www.", "www\\.")
    return unlinked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_code(text: object) -> str:
    """The same for names and figures, as code where nothing in them needs care."""
    return f"`{text}`" if _PLAIN.fullmatch(str(text)) and printable(text) == str(text) else markdown_text(text)
