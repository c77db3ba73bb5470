"""A training with paddle.Model goes on in another process: Paddle files an optimizer's tensors by parameters' names."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

import paddle_dense as pd_
from paddle_dense.files.weights import read_weights
from tests.helpers import SMALL, small
from tests.training.continue_worker import BUILD

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
}


def work(name, kind, folder):
    """Run one function of the worker in a process of its own."""
    command = [sys.executable, HERE / "continue_worker.py", name, kind, folder]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def assert_equal(folder, found, expected):
    found, expected = read_weights(folder / found), read_weights(folder / expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.parametrize("kind", BUILD)
def test_adam_goes_on_in_another_process(tmp_path, kind):
    work("begin", kind, tmp_path)
    work("go_on", kind, tmp_path)
    assert_equal(tmp_path, "continued.pdparams", "expected.pdparams")


@pytest.mark.parametrize("steps", [("begin_two", "go_on_with_two"), ("one_optimizer",)], ids=["two", "one optimizer"])
def test_two_networks_of_one_class_are_kept_apart(tmp_path, steps):
    for step in steps:
        work(step, "DenseNet", tmp_path)
    for number in range(2):
        assert_equal(tmp_path, f"continued{number}.pdparams", f"expected{number}.pdparams")


@pytest.mark.parametrize("kind", SMALL)
def test_names_tell_of_the_network_alone(tmp_path, kind):
    network = small(kind)
    form = "." if SMALL[kind][1].get("condensed", True) else ".trained."
    expected = [f"{SMALL[kind][0]}{form}{name}" for name, _ in network.named_parameters()]
    assert names(network) == expected
    pd_.save_weights(network, tmp_path / "net.pdparams")
    del network
    assert names(pd_.load_model(tmp_path / "net.pdparams")) == expected
    (tmp_path / "net.json").unlink()
    assert names(pd_.load_model(tmp_path / "net.pdparams", num_classes=9)) == expected


def names(network):
    return [parameter.name for parameter in network.parameters()]


def test_condensing_gives_the_names_of_the_condensed_form(tiny, tiny_state):
    trained = pd_.CondenseNetV2(**tiny, condensed=False)
    trained.set_state_dict(tiny_state("trained_unconverted.pth.tar"))
    condensed = names(pd_.condense(trained))
    assert set(condensed) == set(names(pd_.CondenseNetV2(**tiny)))
    assert not set(condensed) & set(names(trained))


def test_a_network_within_another_shares_no_names_with_it():
    pair = paddle.nn.Sequential(small("DenseNet"), small("DenseNet"), paddle.nn.Linear(5, 5), paddle.nn.Linear(5, 5))
    assert len(set(names(pair))) == len(names(pair))


def test_help_shows_the_constructor():
    parameters = list(inspect.signature(pd_.DenseNet).parameters)
    assert parameters == list(inspect.signature(pd_.DenseNet.__init__).parameters)[1:]
