"""What the commands say: one line, in which nothing that a file says moves the cursor."""

from __future__ import annotations

import pytest

from paddle_dense.command import complain, warn
from paddle_dense.errors import printable


def test_printable_keeps_every_letter_and_no_command():
    assert printable("权重 é.pth") == "权重 é.pth"
    assert printable("a\x1b]0;x\x07\r\n\x9b\u200b\u2028\udcff") == "a\\x1b]0;x\\x07\\r\\n\\x9b\\u200b\\u2028\\udcff"


@pytest.mark.parametrize(("say", "begin"), [(complain, "error: "), (warn, "warning: ")])
def test_whoever_calls_it_a_line_is_one_line_without_commands(capsys, say, begin):
    say(ValueError("权重.pth: \x1b[2J\x9b31m\u202eb\a\nsays\r\n  this\udcff"))
    captured = capsys.readouterr()
    assert captured.err == f"{begin}权重.pth: \\x1b[2J\\x9b31m\\u202eb\\x07 says this\\udcff\n"
    assert captured.out == ""
