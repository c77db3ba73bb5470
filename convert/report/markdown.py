"""A report in GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from convert.report.contents import Cell, Entry, Label, Table
from convert.report.text import markdown_code, markdown_text


def markdown(title: Label, told: str, overview: Table | None, entries: Sequence[Entry]) -> str:
    """The whole report.

    Args:
        title: of the report.
        told: when and with which versions it was made.
        overview: one line for each file, where there are several.
        entries: the files.
    """
    lines = [f"# {_label(title)}", "", markdown_text(told), ""]
    if overview:
        lines += [*_table(overview), ""]
    for entry in entries:
        lines += _entry(entry)
    return "\n".join(lines)


def _entry(entry: Entry) -> Iterator[str]:
    yield f"## {markdown_text(entry.name)}"
    yield ""
    yield f"**{_label(entry.said)}**" + (f": {markdown_text(entry.error)}" if entry.error else "")
    yield ""
    if entry.warnings:
        yield "### 警告 Warnings"
        yield ""
        yield from (f"- {markdown_text(warning)}" for warning in entry.warnings)
        yield ""
    for part in entry.parts:
        yield f"### {_label(part.title)}"
        yield ""
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
                yield "</details>"
                yield ""


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
