"""What running a network may cost: bounds for what a small file asks for, room for every network that there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddle_dense import create_model
from paddle_dense.commands.description import describe_weights
from paddle_dense.cost import CostError, affordable, check_cost
from paddle_dense.errors import WeightsError, enough_memory
from paddle_dense.files.layout import to_torch
from paddle_dense.files.weights import read_weights, write_weights
from paddle_dense.models.network import networks, presets
from tests.security.hostile import COSTLY_NETWORKS, costly_state

ROOT = Path(__file__).resolve().parents[2]
DISPROPORTIONATE = r"running this network on an image of 256 x 256 pixels takes [\d,]+ MB and more for [\d.]+ MB of"
# Runs a command and says how much memory it took, in KB. Not ru_maxrss, which begins with what the parent holds.
MEASURED = """
import re, sys
sys.argv = sys.argv[1:]
from importlib import import_module
status = import_module(sys.argv[0]).main(sys.argv[1:])
print("took", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(status)
"""


@pytest.fixture(
    params=["wide stem", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(COSTLY_NETWORKS)[1:])]
)
def costly(request, tmp_path) -> Path:
    """A small file whose network takes gigabytes, for Paddle; theirs.safetensors next to it is for PyTorch."""
    state = costly_state(request.param)
    write_weights(state, tmp_path / "ours.pdparams")
    write_weights(to_torch(state), tmp_path / "theirs.safetensors", {"format": "pt"})
    assert (tmp_path / "ours.pdparams").stat().st_size < 12_000_000
    return tmp_path / "ours.pdparams"


def run(module: str, *arguments: object, limit: int = 1_200_000) -> subprocess.CompletedProcess:
    """A command's result, which takes no more than this many KB: both frameworks by themselves take half of it."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, module, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in result.stderr, result.stderr
    assert int(result.stdout.split()[-1]) < limit, result.stdout
    return result


def test_info_leaves_out_what_would_cost_too_much(costly):
    """5.3 GB and 21 s, or 13 GB and 37 s, without bounds."""
    result = run("paddle_dense.commands.info", costly, costly.with_name("theirs.safetensors"))
    assert result.returncode == 0
    assert result.stdout.count("out of all proportion: its MACs are not counted") == 2
    info = describe_weights(costly)
    assert info.network == "CSPNet" and info.macs is None


@pytest.mark.parametrize(
    ("module", "file", "options", "fix"),
    [
        ("convert.torch2paddle", "theirs.safetensors", ["-o", "x.pdparams"], "convert it unchecked, with --no-verify"),
        ("convert.paddle2torch", "ours.pdparams", ["-o", "x.pth"], "convert it unchecked, with --no-verify"),
        ("convert.parity.__main__", "ours.pdparams", [], "compare with a smaller --size"),
        ("paddle_dense.commands.deploy", "ours.pdparams", ["-o", "x"], "give a smaller --size"),
        ("paddle_dense.commands.deploy", "theirs.safetensors", ["-o", "x"], "take another checkpoint"),
    ],
    ids=["torch2paddle", "paddle2torch", "parity", "deploy", "deploy of PyTorch's"],
)
def test_commands_refuse_what_would_cost_too_much(costly, module, file, options, fix):
    if "convert" in module or "theirs" in file:
        pytest.importorskip("torch", reason="nothing is run without it")
    options = [str(costly.parent / option) if option.startswith("x") else option for option in options]
    result = run(module, costly.with_name(file), *options)
    assert result.returncode == 1
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith(f"error: {costly.with_name(file)}: running this network") and fix in said
    assert sorted(path.name for path in costly.parent.iterdir()) == ["ours.pdparams", "theirs.safetensors"]


def test_the_ways_out_work(costly):
    """Unchecked, and with smaller images, as the errors say."""
    target = costly.with_name("x.pdparams")
    result = run("convert.torch2paddle", costly.with_name("theirs.safetensors"), "-o", target, "--no-verify")
    assert result.returncode == 0
    for name, value in read_weights(costly).items():
        np.testing.assert_array_equal(read_weights(target)[name], value)


def test_pretrained_weights_that_would_cost_too_much(costly):
    if read_weights(costly)["stem.conv1.conv.weight"].shape[1] != 3:
        pytest.skip("no data has so many channels")
    from PIL import Image

    for part in ("train", "val"):
        folder = costly.parent / "data" / part / "a"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "x.png")
    options = ["--pretrained", costly, "--data", costly.parent / "data", "-o", costly.parent / "run", "--epochs", 1]
    result = run("paddle_dense.commands.train", *options)
    assert result.returncode == 1 and f"error: {costly}: running this network" in result.stderr


# What may be


@pytest.mark.parametrize("name", ["condensenet50", "cdnv2_a", "cspdensenet121"])
def test_networks_that_there_are_cost_little_enough(name):
    check_cost(create_model(name), "no")


@pytest.mark.slow
@pytest.mark.parametrize("name", [preset.name for network in networks() for preset in presets(network)])
def test_all_networks_that_there_are_cost_little_enough(name):
    check_cost(create_model(name), "no")
    if "condensed" in create_model(name).config:
        check_cost(create_model(name, condensed=False), "no")


def test_each_pass_has_the_bounds_for_itself():
    """And after the block there are none, nor any trace of them."""
    model = create_model("condensenet50")
    model.eval()
    x = paddle.zeros([2, 3, 32, 32])
    with affordable(model, "no"):
        for _ in range(30):  # each takes 40 MB of 1 GB
            model(x)
    assert not any(layer._forward_pre_hooks for layer in model.sublayers(include_self=True))


def test_who_asks_for_larger_images_is_allowed_more():
    model = create_model("condensenet50")
    check_cost(model, "no", 256)  # 64 times 40 MB
    with pytest.raises(CostError, match="out of all proportion"), affordable(model, "no"):
        model(paddle.zeros([1, 3, 256, 256]))


def test_a_layer_has_to_fit_into_the_memory(monkeypatch):
    monkeypatch.setattr("paddle_dense.cost.free_memory", lambda: 1e6)
    with pytest.raises(CostError, match=r"takes \d+ MB of memory and 1 MB are free: take another"):
        check_cost(create_model("condensenet50"), "take another")


# Memory that is missing


ALLOCATIONS = {
    "python": "bytearray(1 << 40)",
    "numpy": "import numpy; numpy.ones(1 << 40)",
    "paddle": "import paddle; paddle.ones([1 << 40])",
    "torch": "import torch; torch.ones(1 << 40)",
    "a cause": "try:\n    bytearray(1 << 40)\nexcept MemoryError as error:\n    raise ValueError('x') from error",
}


@pytest.mark.parametrize("program", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_whoever_finds_no_memory_it_is_one_sentence(program):
    if "torch" in program:
        pytest.importorskip("torch")
    said = r"^net\.pth needs more memory than is free: end other programs, or go"
    with pytest.raises(WeightsError, match=said), enough_memory("net.pth"):
        exec(program)


def test_other_errors_are_no_matter_of_memory():
    with pytest.raises(RuntimeError, match="other"), enough_memory("net.pth"):
        raise RuntimeError("other")
