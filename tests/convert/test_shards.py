"""Checkpoints in several files and their index, as huggingface_hub writes them: read as the one file they were."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from convert import torch2paddle
from convert.command import default_target
from convert.parity import __main__ as parity
from paddle_dense.commands import info
from paddle_dense.errors import HostileFileError, WeightsError
from paddle_dense.files import open_weights, read_checkpoint, read_weights, write_weights
from tests.security import hostile

CHECKPOINT = Path(__file__).resolve().parents[1] / "data" / "cdnv2_tiny_converted.pth"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def write_shards(folder: Path, index: str) -> Path:
    """The checkpoint, from DataParallel, as the real libraries split and write it."""
    torch = pytest.importorskip("torch", reason="writes the files")
    hub = pytest.importorskip("huggingface_hub", reason="splits the checkpoint: pip install huggingface_hub")
    arrays = read_checkpoint(CHECKPOINT).state
    state = {f"module.{name}": torch.from_numpy(array.copy()) for name, array in arrays.items()}
    pattern = {INDEXES[0]: "model{suffix}.safetensors", INDEXES[1]: "pytorch_model{suffix}.bin"}[index]
    split = hub.split_torch_state_dict_into_shards(state, filename_pattern=pattern, max_shard_size=20_000)
    assert len(split.filename_to_tensors) >= 3
    for shard, names in split.filename_to_tensors.items():
        tensors = {name: state[name].contiguous() for name in names}
        if index == INDEXES[0]:
            pytest.importorskip("safetensors.torch", reason="writes the file: pip install safetensors").save_file(
                tensors, folder / shard, {"format": "pt"}
            )
        else:
            torch.save(tensors, folder / shard)
    entries = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / index).write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder / index


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("index", INDEXES)
def test_they_are_read_as_one_file(tmp_path, index):
    path = write_shards(tmp_path, index)
    expected = read_checkpoint(CHECKPOINT)
    assert_same(read_checkpoint(path).state, expected.state)
    file = open_weights(path, hashes=("sha256",))
    assert_same(file.tensors, expected.state)
    shards = sorted(shard for shard in tmp_path.iterdir() if shard != path)
    content = b"".join(part.read_bytes() for part in [path, *shards])
    assert file.size == len(content) and file.digest() == hashlib.sha256(content).hexdigest()
    assert file.format == f"PyTorch, in {len(shards)} shards" and file.shards == shards


@pytest.mark.parametrize("index", INDEXES)
def test_they_are_converted_as_one_file(tmp_path, capsys, index):
    path = write_shards(tmp_path, index)
    target = default_target(path, "pdparams")
    assert target == tmp_path / f"{index.partition('.')[0]}.pdparams"
    assert torch2paddle.main([str(path)]) == torch2paddle.OK, capsys.readouterr().err
    assert torch2paddle.main([str(CHECKPOINT), "-o", str(tmp_path / "whole.pdparams")]) == torch2paddle.OK
    assert target.read_bytes() == (tmp_path / "whole.pdparams").read_bytes()
    source = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))["source"]
    assert source["sha256"] == open_weights(path, hashes=("sha256",)).digest()
    assert parity.main([str(path), "--steps", "0"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert info.main([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == source["sha256"]


def test_as_huggingface_hub_keeps_them(tmp_path):
    """In a folder of links into another one, in which the index is, too."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    path = write_shards(blobs, INDEXES[0])
    for number, blob in enumerate(sorted(blobs.iterdir())):
        blob.rename(blobs / f"{number}")
        (snapshot / blob.name).symlink_to(f"../../blobs/{number}")
    assert_same(read_checkpoint(snapshot / path.name).state, read_checkpoint(CHECKPOINT).state)


def test_no_shard_is_overwritten(tmp_path, capsys):
    path = write_shards(tmp_path, INDEXES[0])
    shard = min(entry for entry in tmp_path.iterdir() if entry != path)
    before = shard.read_bytes()
    assert torch2paddle.main([str(path), "-o", str(shard), "--force"]) == torch2paddle.FAILED
    assert capsys.readouterr().err.count("\n") == 1 and shard.read_bytes() == before


def test_a_shard_alone(tmp_path, capsys):
    path = write_shards(tmp_path, INDEXES[0])
    for shard in (entry for entry in tmp_path.iterdir() if entry != path):
        for command in (torch2paddle.main, info.main, parity.main):
            assert command([str(shard)]) == 1
            said = capsys.readouterr().err
            assert said.startswith(f"error: {shard}: is one of several shards of a checkpoint: give the index")
            assert said.count("\n") == 1


def test_the_only_shard_needs_no_index(tmp_path):
    path = tmp_path / "model-00001-of-00001.safetensors"
    write_weights({"w": np.ones(3, "f4")}, path)
    assert list(read_checkpoint(path).state) == ["w"]


def test_an_index_in_an_archive(tmp_path):
    index = write_shards(tmp_path, INDEXES[0])
    path = tmp_path / f"{index.name}.gz"
    path.write_bytes(gzip.compress(index.read_bytes()))
    with pytest.raises(WeightsError, match="an archive with an index of shards: unpack it next to the shards"):
        read_checkpoint(path)


def test_what_is_asked_of_other_files(tmp_path):
    path = write_shards(tmp_path, INDEXES[0])
    for read in (lambda path: open_weights(path, "paddle"), read_weights):
        with pytest.raises(WeightsError, match=r"index of a PyTorch checkpoint: .* python -m convert\.torch2paddle"):
            read(path)
    with pytest.raises(WeightsError, match="none under 'model': leave the key out"):
        open_weights(path, key="model")


@pytest.mark.parametrize("kind", hostile.INDEXES)
def test_bad_indexes_are_refused_in_a_sentence(tmp_path, kind):
    folder = tmp_path / "net"
    folder.mkdir()
    message = hostile.INDEXES[kind](folder)
    path = folder / INDEXES[0]
    for read in (read_checkpoint, open_weights):
        with pytest.raises(WeightsError, match=message) as caught:
            read(path)
        said = str(caught.value)
        assert said.startswith(f"{path}: ") and "\n" not in said and len(said) < 1000
    before = sorted(os.listdir(folder))
    assert torch2paddle.main([str(path)]) == torch2paddle.FAILED
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("name", ["REDUCE", "STACK_GLOBAL from the memo", "INST"])
def test_a_hostile_shard_runs_nothing(tmp_path, name):
    canary = tmp_path / "canary"
    attack = hostile.attacks(canary)[name]
    (tmp_path / "a.bin").write_bytes(hostile.zipped(attack))
    path = tmp_path / INDEXES[1]
    path.write_text(json.dumps({"weight_map": {"w": "a.bin"}}), encoding="utf-8")
    with pytest.raises(HostileFileError, match=r"shard 'a\.bin' asks to run"):
        read_checkpoint(path)
    assert not canary.exists()
