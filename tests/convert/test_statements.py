"""What training scripts save next to the weights settles what the tensors do not show, or is contradicted aloud."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="writes what torch.save writes: pip install torch")

from safetensors.torch import save_file
from torch import nn

import paddle_dense
from convert.conversion import convert_checkpoint
from convert.options import Options
from convert.result import Result
from convert.torch_models import condconv, condensenetv2, densenet
from paddle_dense.errors import WeightsError
from paddle_dense.files.statements import statements
from paddle_dense.files.torch_file import read_checkpoint
from tests.convert.test_stated import DENSENET, V2, assert_same_answers, lived_in

FACTS = {"HS_start_block": 1, "init_stride": 2}


class Hydra:
    """Pickled as OmegaConf's containers are: values in nodes, nodes in a dict."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._content = {name: Node(value) for name, value in values.items()}


class Node:
    def __init__(self, value: object) -> None:
        self._val = value


HOLDERS = {
    "args, a Namespace": lambda state, facts: {"state_dict": state, "args": argparse.Namespace(lr=0.1, **facts)},
    "config": lambda state, facts: {"model": state, "config": {"optimizer": {"eps": 1e-8}, **facts}},
    "hyper_parameters, nested": lambda state, facts: {"state_dict": state, "hyper_parameters": {"model": facts}},
    "next to the weights": lambda state, facts: {"state_dict": state, "epoch": 3, **facts},
    "other letters": lambda state, facts: {"model": state, "cfg": {key.lower(): facts[key] for key in facts}},
    "OmegaConf": lambda state, facts: {"state_dict": state, "cfg": Hydra(facts)},
}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return lived_in(condensenetv2.CondenseNetV2(**{**V2, **FACTS}))


def convert(path: Path, **options: Any) -> Result:
    return convert_checkpoint(path, path.with_suffix(".pdparams"), Options(force=True, **options))


@pytest.mark.parametrize("new_form", [True, False], ids=["zip", "old form"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_what_a_script_states_is_used(net, holder, new_form, tmp_path):
    path = tmp_path / "net.pth"
    saved = HOLDERS[holder](net.state_dict(), FACTS)
    torch.save(saved, path, _use_new_zipfile_serialization=new_form)
    result = convert(path)
    assert (result.verdict, result.checked_against, result.assumed, result.warnings) == (True, "twin", {}, [])
    assert_same_answers(net, path.with_suffix(".pdparams"))


@pytest.mark.parametrize("key", ["config", "hyper_parameters", None])
def test_the_header_of_safetensors_is_read(net, key, tmp_path):
    path = tmp_path / "net.safetensors"
    texts = {key: json.dumps(FACTS)} if key else {name: str(value) for name, value in FACTS.items()}
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path, {"format": "pt", **texts})
    if key is None:  # texts, where the network wants numbers
        assert convert(path).verdict == "with assumptions"
        return
    result = convert(path)
    assert result.verdict is True and not result.warnings
    assert_same_answers(net, path.with_suffix(".pdparams"))


def test_a_whole_module_keeps_its_arguments(net, tmp_path):
    net.args = argparse.Namespace(**FACTS)
    torch.save({"model": net}, tmp_path / "net.pth")
    del net.args
    assert read_checkpoint(tmp_path / "net.pth").stated["init_stride"] == 2
    assert convert(tmp_path / "net.pth").verdict is True


def test_without_a_word_it_is_an_assumption(tmp_path):
    net = lived_in(condensenetv2.CondenseNetV2(**{**V2, "HS_start_block": 2}))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    result = convert(tmp_path / "net.pth")
    assert result.assumed == {"HS_start_block": 2, "init_stride": 1}
    for said in (result.conversion(), json.loads((tmp_path / "net.json").read_text())):
        assert said["verified"] == "with assumptions" and said["assumed"] == result.assumed
        assert said["checked_against"] == "twin"


def test_the_users_word_holds_before_the_scripts(net, tmp_path):
    torch.save({"state_dict": net.state_dict(), "args": {**FACTS, "HS_start_block": 3}}, tmp_path / "net.pth")
    assert convert(tmp_path / "net.pth").config["HS_start_block"] == 3
    result = convert(tmp_path / "net.pth", config={"HS_start_block": 1})
    assert result.config["HS_start_block"] == 1 and result.assumed == {"HS_start_block": 1}
    assert result.warnings == ["HS_start_block=1 is used as given, where the file states HS_start_block=3"]
    assert_same_answers(net, tmp_path / "net.pdparams")


def test_two_voices_are_none(net, tmp_path):
    saved = {"state_dict": net.state_dict(), "args": FACTS, "config": {"init_stride": 1}}
    torch.save(saved, tmp_path / "net.pth")
    assert convert(tmp_path / "net.pth").assumed == {"init_stride": 1}


@pytest.mark.parametrize("args", [{"model": "efficientnet_cc_b0_4e.in1k"}, {"bn_eps": 1e-5, "same_padding": False}])
def test_of_presets_with_the_same_tensors_the_stated_one_is_taken(args, tmp_path):
    net = lived_in(condconv.EfficientNetCondConv(channel_multiplier=1.0, num_experts=4))
    torch.save({"state_dict": net.state_dict(), "args": argparse.Namespace(**args)}, tmp_path / "net.pth")
    result = convert(tmp_path / "net.pth", verify=False)
    assert (result.arch, result.assumed, result.warnings) == ("efficientnet_cc_b0_4e", {}, [])
    assert_same_answers(net, tmp_path / "net.pdparams", 224, 1e-4)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"args": {"growth_rate": 12}}, "states growth_rate=12, where the tensors have growth_rate=4"),
        ({"args": {"block_config": "6-12-24-16"}}, "states block_config=[6, 12, 24, 16], where the tensors have"),
        ({"arch": "cspresnet50"}, "states arch=cspresnet50, where the tensors are those of a DenseNet"),
        ({"arch": "densenet169"}, "states arch=densenet169, which has growth_rate=32 where the tensors have"),
    ],
)
def test_what_the_tensors_contradict_is_said(stated, said, tmp_path):
    net = lived_in(densenet.DenseNet(**DENSENET))
    torch.save({"state_dict": net.state_dict(), **stated}, tmp_path / "net.pth")
    [warning] = convert(tmp_path / "net.pth").warnings
    assert said in warning and warning.endswith("the tensors decide")
    assert_same_answers(net, tmp_path / "net.pdparams")


@pytest.mark.parametrize("args", [{"num_classes": 1000, "arch": "resnet50", "drop_rate": 0.3, "growth_rate": None}])
def test_what_makes_no_difference_is_not_mentioned(args, tmp_path):
    torch.save({"state_dict": lived_in(densenet.DenseNet(**DENSENET)).state_dict(), "args": args}, tmp_path / "net.pth")
    result = convert(tmp_path / "net.pth")
    assert result.verdict is True and not result.warnings


def test_an_epsilon_that_the_network_cannot_have_is_refused(tmp_path):
    net = lived_in(densenet.DenseNet(**DENSENET))
    torch.save({"state_dict": net.state_dict(), "args": {"bn_eps": 1e-3}}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"'features.norm0' has eps=0.001, where DenseNet has eps=1e-05: "):
        convert(tmp_path / "net.pth")
    assert not (tmp_path / "net.pdparams").exists()


REFERENCE = """
from torch import nn
from convert.torch_models.condensenetv2 import CondenseNetV2

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = CondenseNetV2(**{arguments})

    def forward(self, x):
        return self.net(x)

def build():
    return Own()
"""


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    """Writes a module with the user's own network, whose names have a prefix, and returns what --reference takes."""

    def write(name: str, arguments: Mapping[str, Any]) -> str:
        (tmp_path / f"{name}.py").write_text(REFERENCE.format(arguments=dict(arguments)))
        return f"{name}:build"

    monkeypatch.chdir(tmp_path)
    return write


def test_the_users_own_network_leaves_nothing_to_assume(net, own_network, tmp_path):
    torch.save({f"net.{name}": value for name, value in net.state_dict().items()}, tmp_path / "net.pth")
    reference = own_network("own_right", {**V2, **FACTS})
    with pytest.raises(WeightsError) as error:
        convert(tmp_path / "net.pth", reference=reference)
    assert f"Paddle and {reference} differ by" in str(error.value)
    assert "first in layer features.init_conv, whose outputs have different shapes: " in str(error.value)
    assert str(error.value).endswith("HS_start_block=2, init_stride=1, with --config KEY=VALUE")
    result = convert(tmp_path / "net.pth", reference=reference, config=FACTS)
    assert (result.verdict, result.checked_against, result.assumed) == (True, reference, {})
    assert not any("does not reveal" in warning for warning in result.warnings)


def test_a_layer_that_only_one_network_has_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_poolless.py").write_text(
        "from convert.torch_models.densenet import DenseNet\n"
        f"def build():\n    net = DenseNet(**{DENSENET})\n    del net.features.pool0\n    return net\n"
    )
    torch.save(lived_in(densenet.DenseNet(**DENSENET)).state_dict(), tmp_path / "net.pth")
    with pytest.raises(WeightsError) as error:
        convert(tmp_path / "net.pth", reference="own_poolless:build")
    said = "first in layer features.denseblock1.denselayer1.norm1, whose outputs have different shapes, right after "
    assert f"{said}features.pool0, which only Paddle's network has as a layer: " in str(error.value)


def test_dicts_in_each_other_take_no_time():
    inner: dict[str, Any] = {"a": {}}
    for _ in range(50):
        inner = {f"k{number}": inner for number in range(1000)}
    inner["args"] = {"depth": 1, "again": inner}
    assert statements({"args": inner}) == {"depth": 1}
    wide = {f"k{number}": number for number in range(100_000)}
    assert len(statements({"args": wide})) == 5000


@pytest.mark.parametrize("args", [[1], "text", 3.0, pickle, {1: 2}, {"x": np.float32}], ids=str)
def test_anything_else_states_nothing(args):
    assert statements({"args": args}) in ({}, {"args": [1]}, {"args": "text"}, {"args": 3.0})


def test_load_model_says_what_the_sidecar_knows(net, tmp_path):
    torch.save({"state_dict": net.state_dict(), "args": FACTS}, tmp_path / "net.pth")
    convert(tmp_path / "net.pth", verify=False)
    assert {key: paddle_dense.load_model(tmp_path / "net.pdparams").config[key] for key in FACTS} == FACTS
