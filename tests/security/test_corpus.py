"""Real small files of every format, and whatever the fuzzer has left, through every reader, without atheris."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fuzz import make_corpus
from fuzz.fuzz_readers import CORPUS, CRASHES, SHARDS, check, replay

FILES = sorted(CORPUS.iterdir())
READERS = {
    ".pth": "checkpoint",
    ".tar": "checkpoint",
    ".safetensors": "safetensors",
    ".pdparams": "pdparams",
    ".json": "sidecar",
    ".pdopt": "pdparams",
    ".gz": "checkpoint",
    ".zip": "checkpoint",
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


@pytest.mark.parametrize("name", ["packed.gz", "packed.zip", "packed.tar", "nested.gz", "nested.zip"])
def test_archives_hold_what_they_were_made_of(name):
    found, expected = (check("checkpoint", (CORPUS / file).read_bytes()) for file in (name, "views.pth"))
    assert found.keys() == expected.keys() == {"rows", "columns", "spread"}
    for tensor, array in expected.items():
        np.testing.assert_array_equal(found[tensor], array, err_msg=tensor)


def test_an_index_holds_what_its_shards_do():
    found = check("index", (CORPUS / "shards.index.json").read_bytes())
    expected = {}
    for shard in SHARDS:
        expected.update(check("checkpoint", (CORPUS / shard).read_bytes()))
    assert found.keys() == expected.keys()
    for tensor, array in expected.items():
        np.testing.assert_array_equal(found[tensor], array, err_msg=tensor)


@pytest.mark.parametrize("name", ["state_dict.pth", "without_checksums.pth", "old.pth", "numpy.safetensors"])
def test_the_numbers_are_right(name):
    found = check("checkpoint", (CORPUS / name).read_bytes())
    for tensor, array in make_corpus.arrays().items():
        expected = array.astype("f4") if array.dtype.kind == "f" else array
        assert found[tensor].dtype == expected.dtype and found[tensor].shape == expected.shape
        np.testing.assert_array_equal(found[tensor], expected, err_msg=tensor)
