"""What the commands say: one line, in which nothing that a file says moves the cursor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_dense.errors import printable
from paddle_dense.process import complain, warn

ROOT = Path(__file__).resolve().parents[1]
LIST = [sys.executable, "-W", "ignore", "-m", "paddle_dense", "list"]


def test_printable_keeps_every_letter_and_no_command():
    assert printable("权重 é.pth") == "权重 é.pth"
    assert printable("a\x1b]0;x\x07\r\n\x9b\u200b\u2028\udcff") == "a\\x1b]0;x\\x07\\r\\n\\x9b\\u200b\\u2028\\udcff"


@pytest.mark.parametrize(("say", "begin"), [(complain, "error: "), (warn, "warning: ")])
def test_whoever_calls_it_a_line_is_one_line_without_commands(capsys, say, begin):
    say(ValueError("权重.pth: \x1b[2J\x9b31m\u202eb\a\nsays\r\n  this\udcff"))
    captured = capsys.readouterr()
    assert captured.err == f"{begin}权重.pth: \\x1b[2J\\x9b31m\\u202eb\\x07 says this\\udcff\n"
    assert captured.out == ""


def test_nothing_is_said_when_nobody_reads_any_more():
    """As with ``| head``: the status is that of a process that SIGPIPE ends."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(LIST, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without space")
def test_output_on_a_full_disk_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run(LIST, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == ("error: standard output cannot be written (No space left on device): redirect it\n")
