"""Words from files, made harmless."""

from __future__ import annotations

import re

from paddle_dense.errors import printable

# Whatever Markdown, or GitHub's extension of it, could take for more than itself: anywhere, and where a line begins.
_SPECIAL = re.compile(r"([\\`*_\[\]!|~^$@#])")
_AT_THE_START = re.compile(r"^(\d*)([-+.)=:])")
_PLAIN = re.compile(r"[\w .,:;/=+%()-]+")


def markdown_text(text: object) -> str:
    """Text that Markdown shows as it is, wherever it stands, also in the cell of a table."""
    escaped = _AT_THE_START.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", printable(text)))
    unlinked = escaped.replace("://", ":\\//").replace("www.", "www\\.")
    return unlinked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_code(text: object) -> str:
    """The same for names and figures, as code where nothing in them needs care."""
    return f"`{text}`" if _PLAIN.fullmatch(str(text)) and printable(text) == str(text) else markdown_text(text)
