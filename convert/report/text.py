"""Words from files, made harmless."""

from __future__ import annotations

import re

# Whatever Markdown, or GitHub's extension of it, could take for more than itself: anywhere, and where a line begins.
_SPECIAL = re.compile(r"([\\`*_\[\]!|~^$@#])")
_AT_THE_START = re.compile(r"^(\d*)([-+.)=:])")
_PLAIN = re.compile(r"[\w .,:;/=+%()-]+")


def printable(text: object) -> str:
    """The text on one line, with whatever does not print as an escape: control characters, direction marks and so on.

    No terminal takes anything in it for a command, and no reader sees something else than what is there.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def markdown_text(text: object) -> str:
    """Text that Markdown shows as it is, wherever it stands, also in the cell of a table."""
    escaped = _AT_THE_START.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", printable(text)))
    unlinked = escaped.replace("://", ":\\//").replace("www.", "www\\.")
    return unlinked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_code(text: object) -> str:
    """The same for names and figures, as code where nothing in them needs care."""
    return f"`{text}`" if _PLAIN.fullmatch(str(text)) and printable(text) == str(text) else markdown_text(text)
