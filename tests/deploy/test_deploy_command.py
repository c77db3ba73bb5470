"""The command python -m paddle_dense.deploy, from checkpoints to checked files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import paddle_dense as pd_
from paddle_dense.commands.deploy import main
from paddle_dense.deploy import fusing_rules
from paddle_dense.deploy.exporting import PROGRAM_SUFFIX, load_onnx, load_openvino, load_paddle
from paddle_dense.deploy.throughput import shares, throughput
from paddle_dense.errors import WeightsError
from paddle_dense.process import FAILED, OK, USAGE

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
PADDLE_FILES = [PROGRAM_SUFFIX, ".pdiparams", ".meta.json"]


@pytest.fixture
def digits(tmp_path) -> Path:
    """A folder with the converted checkpoint of the digits, its sidecar and its origin."""
    for suffix in (".pdparams", ".json", ".pth"):
        shutil.copy(WEIGHTS / f"cdnv2_digits{suffix}", tmp_path)
    return tmp_path / "cdnv2_digits.pdparams"


@pytest.fixture
def logits():
    """``logits(x)``: what the network of the digits answers."""
    import paddle

    model = pd_.load_model(WEIGHTS / "cdnv2_digits.pdparams")
    model.eval()

    def of(x: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            return model(paddle.to_tensor(x)).numpy()

    return of


def random_digits() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 1, 32, 32), np.float32)


def test_a_converted_file_is_fused_exported_and_timed(capsys, digits, logits, difference):
    sidecar = digits.with_suffix(".json").read_bytes()
    assert main([str(digits), "--size", "32", "--benchmark", "--json"]) == OK
    result = json.loads(capsys.readouterr().out)
    files = [digits.with_name(f"cdnv2_digits_deploy{suffix}") for suffix in PADDLE_FILES]
    assert result["output"] == [str(file) for file in files]
    assert result["fused"] and result["arch"] == "CondenseNetV2" and result["max_rel_diff"]["paddle"] < 2e-6
    timed = result["benchmark"]
    assert (timed["batch"], timed["size"]) == (1, 32)
    assert all(milliseconds > 0 for milliseconds in timed["milliseconds"].values())
    assert [*timed["milliseconds"]] == ["Paddle, not exported", "Paddle Inference"]
    assert [(row["processes"], row["threads"]) for row in timed["throughput"]] == shares(timed["threads"])
    assert all(row["images_per_second"] > 0 and row["milliseconds"] > 0 for row in timed["throughput"])
    assert digits.with_suffix(".json").read_bytes() == sidecar
    x = random_digits()
    assert difference(load_paddle(files)(x)[0], logits(x)) < 2e-6


@pytest.mark.parametrize(
    "cores, found",
    [
        (1, [(1, 1)]),
        (2, [(1, 1), (1, 2), (2, 1)]),
        (6, [(1, 1), (1, 6), (2, 3), (6, 1)]),
        (3, [(1, 1), (1, 3), (3, 1)]),
    ],
)
def test_cores_are_shared_out(cores, found):
    assert shares(cores) == found


def test_throughput_of_two_processes(capsys, monkeypatch, digits):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert main([str(digits), "--size", "32", "--batch", "4", "--benchmark"]) == OK
    _, header, table = capsys.readouterr().out.partition(
        "    engine               processes  threads  images/s        ms\n"
    )
    shares = [line.split()[:4] for line in table.splitlines()]
    assert header and shares == [["Paddle", "Inference", *share] for share in (("1", "1"), ("1", "2"), ("2", "1"))]


def test_a_process_that_ends_early_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match=r"^Paddle Inference ended early in one of 2 processes: free memory, or set"):
        throughput("Paddle Inference", [tmp_path / "absent.json", tmp_path / "absent.pdiparams"], [1, 1, 32, 32], 2, 1)


def test_a_pytorch_checkpoint_is_converted_on_the_way(capsys, digits, logits, onnxruntime, difference):
    labels = digits.with_name("labels.txt")
    labels.write_text("\n".join("0123456789") + "\n")
    arguments = [str(digits.with_suffix(".pth")), "-o", f"{digits.parent}/new/", "--format", "onnx", "--batch", "3"]
    assert main([*arguments, "--labels", str(labels)]) == OK
    captured = capsys.readouterr()
    file = digits.parent / "new" / "cdnv2_digits.onnx"
    assert f"  {file}\n" in captured.out and "onnx: run, and equal to the network to" in captured.out
    assert captured.err == ""  # the file states all that its tensors do not show
    assert [*file.parent.iterdir()] == [file]
    x = random_digits()
    assert difference(load_onnx([file])(x)[0], logits(x)) < 2e-6


@pytest.mark.parametrize("sides", [["--size", "32", "--batch", "3"], []])
def test_a_network_fused_for_openvino_answers_there(digits, logits, onnxruntime, difference, monkeypatch, sides):
    """And gathers where the channels of a pixel are side by side, as wider networks do."""
    pytest.importorskip("openvino", reason="runs the file: pip install openvino")
    onnx = pytest.importorskip("onnx", reason="writes ONNX: pip install paddle_dense[deploy]")
    monkeypatch.setitem(fusing_rules.DENSE_UP_TO, "openvino", 0)
    assert main([str(digits), "--format", "onnx", "--runtime", "openvino", *sides]) == OK
    file = digits.with_name("cdnv2_digits_deploy.onnx")
    gathers = [node for node in onnx.load(str(file)).graph.node if node.op_type == "Gather" and node.attribute]
    assert 3 in {attribute.i for node in gathers for attribute in node.attribute}
    x = random_digits()[:3]
    assert difference(load_openvino([file])(x)[0], logits(x)) < 2e-6


def test_existing_files_are_replaced_only_by_force(capsys, digits):
    arguments = [str(digits), "-o", str(digits.with_name("net")), "--no-fuse", "--size", "32"]
    old = digits.with_name("net.pdiparams")
    old.write_text("older")
    assert main(arguments) == FAILED
    assert (
        capsys.readouterr().err
        == f"error: {old} exists already: give another name with -o, or --force to overwrite it\n"
    )
    assert old.read_text() == "older"
    assert main([*arguments, "--force"]) == OK
    assert old.stat().st_size > 100_000
    assert "CondenseNetV2, not fused" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        ([], USAGE, "the following arguments are required: CKPT (see --help)"),
        (["{digits}", "--size", "0"], USAGE, "--size 0 must be 1 or more"),
        (["{digits}", "--runtime", "openvino"], USAGE, "--runtime openvino is for ONNX files: give --format onnx"),
        (["{digits}", "--runtime", "compiled", "--no-fuse"], USAGE, "--runtime says how to fuse: leave out --no-fuse"),
        (["{digits}", "--format", "tflite"], USAGE, "argument --format: invalid choice: 'tflite'"),
        (
            ["{folder}/absent.pdparams"],
            FAILED,
            "absent.pdparams: cannot be read (No such file or directory): check",
        ),
        (["{folder}/absent.pth"], FAILED, "absent.pth: cannot be read (No such file or directory): check"),
        (
            ["{digits}", "--labels", "{folder}/absent"],
            FAILED,
            "absent: cannot be read (No such file or directory)",
        ),
        (["{digits}", "--labels", "{digits}"], FAILED, "cdnv2_digits.pdparams: cannot be read ("),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, digits, arguments, status, message):
    before = sorted(digits.parent.iterdir())
    named = [argument.format(digits=digits, folder=digits.parent) for argument in arguments]
    assert main(named) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err
    assert captured.out == "" and sorted(digits.parent.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder", "sparse file"])
def test_labels_that_never_end_are_not_waited_for(capsys, digits, tmp_path, kind):
    """A pipe had been waited for, and /dev/zero read until there was no memory left."""
    labels = tmp_path / "labels"
    if kind == "pipe":
        os.mkfifo(labels)
    elif kind == "/dev/zero":
        labels.symlink_to(kind)
    elif kind == "folder":
        labels.mkdir()
    else:
        with open(labels, "wb") as file:
            file.truncate(1 << 40)
    before = sorted(os.listdir(tmp_path))
    assert main([str(digits), "-o", str(tmp_path / "net"), "--labels", str(labels)]) == FAILED
    said = "has more than 16,777,216 bytes, which no such file has" if kind == "sparse file" else "is not a file"
    captured = capsys.readouterr()
    assert captured.err == f"error: {labels}: {said}: give a text file with one class a line\n" and captured.out == ""
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.slow
def test_nothing_else_is_said(digits):
    command = [sys.executable, "-m", "paddle_dense.deploy", str(digits), "--size", "32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (OK, "")
    assert len(done.stdout.splitlines()) == 5
