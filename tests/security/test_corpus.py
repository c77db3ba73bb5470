"""Real small files of every format, and whatever the fuzzer has left, through every reader, without atheris."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fuzz import make_corpus
from fuzz.fuzz_readers import CORPUS, CRASHES, check, replay

FILES = sorted(CORPUS.iterdir())
READERS = {
    ".pth": "checkpoint",
    ".tar": "checkpoint",
    ".safetensors": "safetensors",
    ".pdparams": "pdparams",
    ".json": "sidecar",
    ".pdopt": "pdparams",
}


def test_there_is_one_of_every_kind():
    assert {path.suffix for path in FILES} == set(READERS)
    assert all(0 < path.stat().st_size < 16_000 for path in FILES)


@pytest.mark.parametrize("argument", ["--help", "--nonsense"])
def test_what_is_no_folder_makes_none(argument, tmp_path):
    command = [sys.executable, make_corpus.__file__, argument]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "usage: make_corpus.py" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_real_files_are_read(path):
    assert check(READERS[path.suffix], path.read_bytes()) is not None
    replay(path)


@pytest.mark.parametrize("path", [*CRASHES.glob("*")], ids=lambda path: path.name)
def test_what_the_fuzzer_left(path):
    replay(path)


@pytest.mark.parametrize("name", ["state_dict.pth", "without_checksums.pth", "old.pth", "numpy.safetensors"])
def test_the_numbers_are_right(name):
    found = check("checkpoint", (CORPUS / name).read_bytes())
    for tensor, array in make_corpus.arrays().items():
        expected = array.astype("f4") if array.dtype.kind == "f" else array
        assert found[tensor].dtype == expected.dtype and found[tensor].shape == expected.shape
        np.testing.assert_array_equal(found[tensor], expected, err_msg=tensor)
