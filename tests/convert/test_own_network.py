"""Networks of the user's own, by the commands and in Python: what is written, what is refused, how it is said."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")

import convert
import paddle_dense as pd_
from convert.parity.__main__ import main as parity
from convert.torch2paddle import main as torch2paddle
from paddle_dense.errors import WeightsError
from paddle_dense.files.weights import read_weights

TORCH = """
import numpy as np
from torch import nn
import torch

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8, eps=1e-3)
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.b(torch.relu(self.a(torch.relu(self.bn(self.conv(x))).mean((2, 3))))) * self.scale

def build():
    return Net()

def inputs():
    return np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype("float32")

def wrong_inputs():
    return np.zeros((2, 5, 8, 8), "float32")

def loss(outputs, inputs):
    return (outputs**2).mean()

def broken():
    raise RuntimeError("not today")

def no_network():
    return 7
"""
PADDLE = """
import paddle
from paddle import nn

class Net(nn.Layer):
    def __init__(self, epsilon=1e-3, names="ab"):
        super().__init__()
        self.conv = nn.Conv2D(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2D(8, epsilon=epsilon)
        self.names = names
        for name in names:
            self.add_sublayer(name, nn.Linear(8, 8))
        self.register_buffer("scale", paddle.to_tensor(0.0))

    def forward(self, x):
        first, second = (self._sub_layers[name] for name in self.names)
        hidden = nn.functional.relu(self.bn(self.conv(x))).mean((2, 3))
        return second(nn.functional.relu(first(hidden))) * self.scale

def build():
    return Net()

def other_epsilon():
    return Net(1e-5)

def other_names():
    return Net(names="xy")

def other_order():
    network = Net(names="yx")
    network.names = "xy"
    return network
"""
OWN = ["--network", "own_paddle:build"]
BOTH = [*OWN, "--reference", "own_torch:build", "--inputs", "own_torch:inputs"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with both networks' code and the PyTorch network's weights, its statistics lived-in."""
    (tmp_path / "own_torch.py").write_text(TORCH, encoding="utf-8")
    (tmp_path / "own_paddle.py").write_text(PADDLE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from own_torch import build

    torch.manual_seed(0)
    network = build()
    for _ in range(3):
        network(torch.randn(4, 3, 8, 8) * 2 + 1)
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, "own.pth")
    yield tmp_path
    for module in ("own_torch", "own_paddle"):
        sys.modules.pop(module, None)


def _torch_network():
    from own_torch import build

    network = build()
    network.load_state_dict(torch.load("own.pth")["state_dict"])
    return network.eval()


def _equal(network) -> float:
    from own_torch import inputs

    network.eval()
    with torch.no_grad(), paddle.no_grad():
        expected = _torch_network()(torch.from_numpy(inputs())).numpy()
        return float(np.abs(network(paddle.to_tensor(inputs())).numpy() - expected).max() / np.abs(expected).max())


# torch2paddle


def test_a_network_of_ones_own_converts(folder, capsys):
    assert torch2paddle(["own.pth", *BOTH, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["arch"], told["verified"], told["checked_against"]) == ("own_paddle:build", True, "own_torch:build")
    assert told["max_rel_diff"] < 1e-6
    assert told["params"] == 224 + 16 + 72 + 72
    sidecar = json.loads(Path("own.json").read_text(encoding="utf-8"))
    assert sidecar["network"] == "own_paddle:build"
    assert "arch" not in sidecar
    from own_paddle import build

    network = build()
    pd_.load_weights(network, "own.pdparams")
    assert _equal(network) < 1e-6
    network = build()
    network.set_state_dict(paddle.load("own.pdparams"))
    assert _equal(network) < 1e-6


def test_without_a_reference_it_is_not_checked(folder, capsys):
    assert torch2paddle(["own.pth", *OWN]) == 0
    said = capsys.readouterr()
    assert "not checked against PyTorch" in said.out
    assert "--reference MODULE:FACTORY" in said.err
    assert json.loads(Path("own.json").read_text(encoding="utf-8"))["verified"] is False


def test_a_mistake_is_located_and_named_and_nothing_written(folder, capsys):
    assert torch2paddle(["own.pth", *BOTH, "--network", "own_paddle:other_epsilon"]) == 1
    said = capsys.readouterr().err
    assert "differs first in bn; equal with epsilon 0.001" in said
    assert not list(folder.glob("own.pdparams")) + list(folder.glob("own.json"))


def test_uncertain_pairs_go_through_a_mapping_file(folder, capsys):
    other = [*BOTH, "--network", "own_paddle:other_names"]
    assert torch2paddle(["own.pth", *other]) == 1
    assert "--propose map.csv" in capsys.readouterr().err
    assert torch2paddle(["own.pth", *other, "--propose", "map.csv"]) == 0
    assert "order and shape" in capsys.readouterr().out
    assert not Path("own.pdparams").exists()
    assert torch2paddle(["own.pth", *other, "--propose", "map.csv"]) == 1
    assert "--force" in capsys.readouterr().err
    assert torch2paddle(["own.pth", *other, "--map", "map.csv"]) == 0
    swapped = Path("map.csv").read_text(encoding="utf-8").replace("a.", "z.").replace("b.", "a.").replace("z.", "b.")
    Path("swapped.csv").write_text(swapped, encoding="utf-8")
    assert torch2paddle(["own.pth", *other, "--map", "swapped.csv", "-o", "s.pdparams"]) == 1
    assert "differs first in x" in capsys.readouterr().err
    assert torch2paddle(["own.pth", *other, "--rename", "a=x", "--rename", "b=y", "-o", "r.pdparams"]) == 0
    ours, theirs = read_weights("own.pdparams"), read_weights("r.pdparams")
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_proposal_can_go_by_the_order_in_which_layers_run(folder, capsys):
    ours = ["--network", "own_paddle:other_order"]
    assert torch2paddle(["own.pth", *ours, "--propose", "names.csv"]) == 0
    assert torch2paddle(["own.pth", *BOTH, *ours, "--map", "names.csv"]) == 1
    assert "differs first in x" in capsys.readouterr().err
    assert torch2paddle(["own.pth", *BOTH, *ours, "--propose", "run.csv"]) == 0
    assert torch2paddle(["own.pth", *BOTH, *ours, "--map", "run.csv"]) == 0
    assert (read_weights("own.pdparams")["x.bias"] == torch.load("own.pth")["state_dict"]["a.bias"].numpy()).all()


@pytest.mark.parametrize("suffix", [".html", ".md", ".json"])
def test_a_report_of_ones_own_network(suffix, folder):
    pytest.importorskip("jinja2", reason="an HTML report needs Jinja: pip install jinja2")
    assert torch2paddle(["own.pth", *BOTH, "--report", f"r{suffix}"]) == 0
    text = Path(f"r{suffix}").read_text(encoding="utf-8")
    assert "own_paddle:build" in text.replace("<wbr>", "").replace("\\", "")
    assert "bn" in text


def test_the_file_is_only_read(folder):
    class Attack:
        def __reduce__(self):
            return (open, (str(folder / "canary"), "w"))

    state = torch.load("own.pth")["state_dict"]
    torch.save({"state_dict": state, "extra": Attack()}, "attack.pth")
    assert b"canary" in Path("attack.pth").read_bytes()
    assert pickle.dumps(Attack())
    torch2paddle(["attack.pth", *BOTH])
    assert not Path("canary").exists()


def test_without_pytorch(folder):
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        "from convert.torch2paddle import main\nsys.exit(main(['own.pth', '--network', 'own_paddle:build']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("own.pdparams").exists()


# What is refused

WRONG = {
    "own options alone": (["--inputs", "a:b"], 2, "give it with --network MODULE:FACTORY"),
    "map alone": (["--map", "m.csv"], 2, "give it with --network MODULE:FACTORY"),
    "propose alone": (["--propose", "m.csv"], 2, "give it with --network MODULE:FACTORY"),
    "arch": ([*OWN, "--arch", "cdnv2_a"], 2, "--arch is for networks of this package"),
    "config": ([*OWN, "--config", "a=1"], 2, "--config is for networks of this package"),
    "compact": ([*OWN, "--compact"], 2, "--compact is for networks of this package"),
    "trained form": ([*OWN, "--keep-trained-form"], 2, "--keep-trained-form is for networks of this package"),
    "form": (["--network", "own_paddle"], 2, "must have the form MODULE:FACTORY"),
    "no module": (["--network", "nowhere:build"], 2, "--network nowhere:build"),
    "no function": (["--network", "own_paddle:nothing"], 2, "--network own_paddle:nothing"),
    "no layer": (["--network", "own_torch:no_network"], 2, "return a paddle.nn.Layer"),
    "no module of PyTorch": ([*OWN, "--reference", "own_torch:no_network"], 2, "return a torch.nn.Module"),
    "raises": ([*OWN, "--reference", "own_torch:broken"], 2, "not today"),
    "inputs raise": ([*BOTH, "--inputs", "own_torch:broken"], 2, "--inputs own_torch:broken"),
    "wrong inputs of a proposal": (
        [*BOTH, "--propose", "m.csv", "--inputs", "own_torch:wrong_inputs"],
        2,
        "or leave out --reference",
    ),
    "wrong inputs": ([*BOTH, "--inputs", "own_torch:wrong_inputs"], 2, "--inputs MODULE:FUNCTION"),
    "no mapping file": ([*OWN, "--map", "m.csv"], 1, "m.csv"),
}


@pytest.mark.parametrize(("arguments", "status", "said"), WRONG.values(), ids=WRONG)
def test_what_is_refused(arguments, status, said, folder, capsys):
    assert torch2paddle(["own.pth", *arguments]) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not Path("own.pdparams").exists()


def test_two_files_have_one_proposal_each(folder, capsys):
    assert torch2paddle(["own.pth", "other.pth", *OWN, "--propose", "m.csv"]) == 2
    assert "one file" in capsys.readouterr().err


def test_the_package_cannot_rebuild_a_network_of_ones_own(folder):
    assert torch2paddle(["own.pth", *BOTH]) == 0
    with pytest.raises(WeightsError, match=r"own_paddle:build.*load_weights"):
        pd_.load_model("own.pdparams")


# parity


def test_parity_of_a_file_and_of_fresh_networks(folder, capsys):
    assert parity(["own.pth", *BOTH, "--loss", "own_torch:loss", "--steps", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] is True
    assert len(told["steps"]) == 2
    assert parity([*BOTH, "--steps", "1", "--layers"]) == 0
    assert "conv" in capsys.readouterr().out
    assert parity([*BOTH, "--network", "own_paddle:other_epsilon", "--steps", "0"]) == 1
    assert "epsilon 0.001" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is nothing to compare"),
        (OWN, "--reference MODULE:FACTORY"),
        (["own.pth", "--loss", "own_torch:loss"], "--network MODULE:FACTORY"),
        ([*BOTH, "--size", "32"], "--size is for networks of this package"),
    ],
)
def test_parity_refuses(arguments, said, folder, capsys):
    assert parity(arguments) == 2
    assert said in capsys.readouterr().err


# In Python


@pytest.mark.parametrize("kind", ["path", "state_dict", "arrays", "module"])
def test_convert_takes_what_holds_weights(kind, folder):
    from own_paddle import build
    from own_torch import build as build_torch
    from own_torch import inputs

    state = torch.load("own.pth")["state_dict"]
    arrays = {name: value.numpy() for name, value in state.items()}
    weights = {"path": "own.pth", "state_dict": state, "arrays": arrays, "module": _torch_network()}[kind]
    network = build()
    made = convert.convert(weights, network, build_torch(), inputs=inputs(), steps=1)
    assert made.result.verified
    assert made.result.training.agrees
    assert made.pairs["bn._mean"] == ("bn.running_mean",)
    assert made.left_out == ("bn.num_batches_tracked",) or not made.left_out
    assert _equal(network) < 1e-6
    convert.write_report(folder / "r.md", [made.result])
    assert "verified" in (folder / "r.md").read_text(encoding="utf-8")


def test_convert_leaves_the_network_as_it_was_after_an_error(folder):
    from own_paddle import other_epsilon

    network = other_epsilon()
    before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"equal with epsilon 0\.001"):
        convert.convert("own.pth", network, _torch_network())
    after = network.state_dict()
    assert all((after[name].numpy() == value).all() for name, value in before.items())


def test_compare_tells_of_weights_that_differ(folder):
    from own_paddle import build

    ours, theirs = build(), _torch_network()
    different = convert.compare(theirs, ours)
    assert different.difference in str(different)
    assert "differs first in conv" in different.difference
    convert.convert(theirs, ours)
    result = convert.compare(theirs, ours, steps=2)
    assert result.difference is None
    assert result.verified
    assert [layer.name for layer in result.layers][:2] == ["conv", "bn"]
    assert str(result).startswith("Net in PyTorch and Net in Paddle: the logits agree to ")
    assert str(result).endswith("in 2 training steps")
    assert (result.params, result.checked_against) == (384, "Net")


def test_weight_norm_goes_over_in_parts(folder):
    from torch.nn.utils import weight_norm

    theirs = torch.nn.Sequential(weight_norm(torch.nn.Conv2d(3, 4, 3)), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    parts = paddle.nn.Sequential(
        paddle.nn.utils.weight_norm(paddle.nn.Conv2D(3, 4, 3)), paddle.nn.Flatten(), paddle.nn.Linear(144, 2)
    )
    whole = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.Flatten(), paddle.nn.Linear(144, 2))
    inputs = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype("float32")
    for ours in (parts, whole):
        assert convert.convert(theirs, ours, theirs, inputs=inputs).result.max_rel_diff < 1e-6
    assert convert.compare(theirs, parts, inputs, steps=2).difference is None
    different = convert.compare(theirs, whole, inputs, steps=1).difference
    assert "differs first in 0; in training, its weight and what it is made of in PyTorch (magnitude" in different


def test_a_network_whose_only_weight_learns_otherwise():
    theirs = torch.nn.utils.weight_norm(torch.nn.Linear(4, 3, bias=False))
    ours, inputs = paddle.nn.Linear(4, 3, bias_attr=False), np.eye(4, dtype="float32")
    convert.convert(theirs, ours, theirs, inputs=inputs)
    assert "are not updated alike" in convert.compare(theirs, ours, inputs, steps=1).difference


def test_spectral_norm_trains_alike():
    """The vectors of both are no parameters and change in every step of training."""
    theirs = torch.nn.Sequential(torch.nn.utils.spectral_norm(torch.nn.Linear(6, 4)), torch.nn.Linear(4, 2))
    ours = paddle.nn.Sequential(paddle.nn.utils.spectral_norm(paddle.nn.Linear(6, 4)), paddle.nn.Linear(4, 2))
    inputs = np.random.default_rng(0).standard_normal((3, 6)).astype("float32")
    theirs(torch.from_numpy(inputs))  # its vectors are random before the first step, and say nothing of their axis
    convert.convert(theirs, ours, theirs, inputs=inputs)
    assert convert.compare(theirs, ours, inputs, steps=2).difference is None
