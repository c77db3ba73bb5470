"""Two names never become one tensor, and a file of the other framework is known by its names."""

from __future__ import annotations

import json
import warnings

import numpy as np
import paddle
import pytest

from convert import paddle2torch, torch2paddle
from paddle_dense import create_model, load_model, load_weights
from paddle_dense.cli import key_values
from paddle_dense.commands.description import describe_weights
from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_paddle, to_torch
from paddle_dense.files.names import renamed
from paddle_dense.files.weights import read_metadata, write_weights
from paddle_dense.models import CondenseNet, CSPNet, DenseNet
from paddle_dense.models.matching import match
from paddle_dense.models.recognise import recognise
from paddle_dense.process import FAILED

DENSE = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8, "bn_size": 2, "num_classes": 3}
# The classifier of 6 inputs and 6 classes is square.
SQUARE = {"growth_rate": 2, "block_config": [1], "num_init_features": 4, "bn_size": 2, "num_classes": 6}
CONDENSE = {"stages": [1, 1, 1], "growth": [8, 8, 8], "num_classes": 3, "condense_classifier": False}
CSP = {
    "backbone": "darknet", "depths": [1], "channels": [8], "expand_ratio": [1.0], "bottle_ratio": [1.0],
    "stem_channels": 8, "num_classes": 3,
}  # fmt: skip
FULL_WIDTH = str.maketrans("0123456789", "".join(chr(0xFF10 + digit) for digit in range(10)))


def arrays(model: paddle.nn.Layer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def ones_like(value: np.ndarray) -> np.ndarray:
    return np.ones_like(value)


def vision() -> dict[str, np.ndarray]:
    """A DenseNet under Paddle's own names."""
    theirs = next(spelling for spelling in DenseNet.spellings if spelling.source == "paddle.vision")
    return {theirs.theirs(name): value for name, value in arrays(DenseNet(**DENSE)).items()}


# Two names


# network's own state, the name that it has, a second name for the same tensor
TWICE = {
    "PaddleClas' classifier": (lambda: arrays(CSPNet(**CSP)), "head.fc.weight", "fc.weight"),
    "pytorchcv's stem": (
        lambda: arrays(CondenseNet(**CONDENSE)),
        "features.init_conv.weight",
        "features.init_block.conv.weight",
    ),
    "torchvision's old spelling": (
        lambda: arrays(DenseNet(**DENSE)),
        "features.denseblock1.denselayer1.conv1.weight",
        "features.denseblock1.denselayer1.conv.1.weight",
    ),
    "the project's and Paddle's": (
        vision,
        "db_conv_2.conv2_1.bn_ac_func1._conv.weight",
        "features.denseblock1.denselayer1.conv1.weight",
    ),
}


MODELS = {
    "head.fc.weight": lambda: CSPNet(**CSP),
    "features.init_conv.weight": lambda: CondenseNet(**CONDENSE),
    "features.denseblock1.denselayer1.conv1.weight": lambda: DenseNet(**DENSE),
}


@pytest.mark.parametrize(("state", "name", "second"), TWICE.values(), ids=TWICE)
@pytest.mark.parametrize("first", [True, False], ids=["in front", "after"])
def test_two_names_for_one_tensor_are_refused_by_both_names(state, name, second, first):
    state = state()
    extra = {second: ones_like(state[name])}
    with pytest.raises(WeightsError) as caught:
        match({**extra, **state} if first else {**state, **extra})
    message = str(caught.value)
    assert "one tensor under two names" in message and repr(name) in message and repr(second) in message


@pytest.mark.parametrize(
    "name",
    [
        "db_conv_2.conv9_1.bn_ac_func1._conv.weight",
        "db_conv_02.conv02_1.bn_ac_func1._conv.weight",
        "db_conv_2.conv2_01.bn_ac_func1._conv.weight",
        "db_conv_2.conv2_1.bn_ac_func1._conv.weight".translate(FULL_WIDTH),
        "tr_conv02_blk.conv_ac_func._conv.weight",
        "tr_conv２_blk.conv_ac_func._conv.weight",
    ],
)
def test_what_only_resembles_paddles_names_keeps_its_own(name):
    state = vision()
    found = match({**state, name: np.ones(1, "f4")}).state
    assert found[name].tolist() == [1] and len(found) == len(state) + 1


def test_digits_are_ascii_in_every_renaming():
    odd = {"features.denseblock１.denselayer1.conv.1.weight", "features.stage１.unit1.conv1.conv.weight"}
    for model in (DenseNet(**DENSE), CondenseNet(**CONDENSE)):
        assert odd < set(match({**arrays(model), **dict.fromkeys(odd, np.ones(1))}).state)
    with pytest.raises(Exception, match="is given twice"):
        key_values("a=1,a=2")
    assert key_values("a=²-4") == {"a": "²-4"}


def test_statistics_under_both_frameworks_names_are_refused_by_both():
    for mapping in (to_paddle, to_torch):
        for names in (("n.running_mean", "n._mean"), ("n._variance", "n.running_var")):
            with pytest.raises(WeightsError, match=r"two names, 'n\.(_|r).*' and 'n\.(_|r).*'"):
                mapping({name: np.ones(2, "f4") for name in names})
    assert list(renamed({"b": 1, "a": 2}, str.upper)) == ["B", "A"]


@pytest.mark.parametrize(("state", "name", "second"), list(TWICE.values())[:3], ids=list(TWICE)[:3])
def test_no_way_in_lets_the_second_name_win(state, name, second, tmp_path, capsys):
    state = state()
    state[second] = ones_like(state[name])
    write_weights(state, tmp_path / "net.pdparams")
    write_weights(to_torch(state), tmp_path / "net.safetensors", {"format": "pt"})
    for command, file in ((paddle2torch, "net.pdparams"), (torch2paddle, "net.safetensors")):
        target = tmp_path / ("out.pth" if command is paddle2torch else "out.pdparams")
        assert command.main([str(tmp_path / file), "--no-verify", "-o", str(target)]) == FAILED
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and file in err and name in err and second in err
        assert not target.exists()
    with pytest.raises(WeightsError, match=r"net\.pdparams: holds one tensor under two names"):
        load_model(tmp_path / "net.pdparams")
    with pytest.raises(WeightsError, match=r"net\.pdparams: holds one tensor under two names"):
        load_weights(MODELS[name](), tmp_path / "net.pdparams", strict=False)
    assert any("two names" in note for note in describe_weights(tmp_path / "net.pdparams").warnings)


def test_both_names_of_an_argument_are_refused():
    with pytest.raises(ValueError, match="class_dim and num_classes are two names"):
        create_model("condensenet50", num_classes=3, class_dim=5)


# Another framework's layout


@pytest.fixture
def square(randomise):
    model = randomise(DenseNet(**SQUARE))
    assert model.classifier.weight.shape == [6, 6]
    return model


@pytest.mark.parametrize("strict", [True, False])
def test_pytorchs_names_do_not_load_untransposed(strict, square, tmp_path):
    path = tmp_path / "net.safetensors"
    write_weights(to_torch(arrays(square)), path)
    other = DenseNet(**SQUARE)
    before = other.classifier.weight.numpy()
    assert load_weights(other, path, strict=strict) == ([], [])
    for model in (other, load_model(path)):
        assert np.array_equal(model.classifier.weight.numpy(), square.classifier.weight.numpy())
    assert not np.array_equal(other.classifier.weight.numpy(), before)
    write_weights(to_torch(arrays(square)), tmp_path / "net.pdparams")
    with pytest.raises(WeightsError, match=r"has PyTorch's names.*write_weights\(read_weights\(PATH\)"):
        load_weights(other, tmp_path / "net.pdparams", strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_a_file_of_linear_layers_alone_is_known_by_its_header_or_by_one_that_is_not_square(strict, tmp_path):
    model = paddle.nn.Sequential(paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 3))
    theirs = to_torch(arrays(model))
    write_weights(theirs, tmp_path / "shape.safetensors")
    with pytest.raises(WeightsError, match=r"'1\.weight' is \[3, 4\] and \[4, 3\] in the network, so linear"):
        load_weights(model, tmp_path / "shape.safetensors", strict=strict)
    alone = {name: value for name, value in theirs.items() if name.startswith("0.")}
    write_weights(alone, tmp_path / "header.safetensors", {"format": "pt"})
    other = paddle.nn.Linear(4, 4)
    rename = {"0": ""}
    assert load_weights(other, tmp_path / "header.safetensors", strict=strict, rename=rename) == ([], [])
    assert np.array_equal(other.weight.numpy(), model[0].weight.numpy())


def test_what_is_paddles_still_loads(square, tmp_path):
    """Whatever its header says, or however one matrix that does not fit looks."""
    write_weights(arrays(square), tmp_path / "net.safetensors", {"format": "pt"})
    assert load_weights(DenseNet(**SQUARE), tmp_path / "net.safetensors") == ([], [])
    model = paddle.nn.Sequential(paddle.nn.Linear(4, 3), paddle.nn.Linear(4, 3))
    write_weights({**arrays(model), "1.weight": np.ones((3, 4), "f4")}, tmp_path / "odd.pdparams")
    assert load_weights(model, tmp_path / "odd.pdparams", strict=False) == (["1.weight"], ["1.weight"])


def test_names_that_the_paddle_network_has_itself_are_its_own(tmp_path):
    class Norm(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", paddle.ones([3]))

    write_weights({"running_mean": np.zeros(3, "f4")}, tmp_path / "net.safetensors")
    assert load_weights(Norm(), tmp_path / "net.safetensors") == ([], [])


@pytest.mark.parametrize("options", [[], ["--no-verify"]])
def test_torch2paddle_refuses_paddles_names(options, square, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="writes the checkpoint")
    state = arrays(square)
    write_weights(state, tmp_path / "net.safetensors")
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, tmp_path / "net.pth")
    for file in ("net.safetensors", "net.pth"):
        target = tmp_path / "out.pdparams"
        assert torch2paddle.main([str(tmp_path / file), "-o", str(target), *options]) == FAILED
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "has Paddle's names ('features." in err and "') already" in err
        assert "write_weights(read_checkpoint(PATH).state, " in err and not target.exists()


def test_paddle2torch_refuses_pytorchs_names_even_if_there_are_few(square, tmp_path, capsys):
    state = arrays(square)
    theirs = to_torch(state)
    mixed = {**state, "features.norm0.running_var": theirs["features.norm0.running_var"]}
    del mixed["features.norm0._variance"]
    linear = {name: value for name, value in theirs.items() if name.startswith("classifier.")}
    write_weights(theirs, tmp_path / "theirs.safetensors")
    write_weights(mixed, tmp_path / "mixed.safetensors")
    write_weights(linear, tmp_path / "linear.safetensors", {"format": "pt"})
    said = {"theirs": "has PyTorch's names", "mixed": "and Paddle's names", "linear": "has PyTorch's mark"}
    for name, sentence in said.items():
        path = tmp_path / f"{name}.safetensors"
        assert paddle2torch.main([str(path), "--no-verify", "-o", str(tmp_path / "out.pth")]) == FAILED
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and sentence in err and not (tmp_path / "out.pth").exists()
    assert torch2paddle.main([str(tmp_path / "mixed.safetensors"), "-o", str(tmp_path / "out.pdparams")]) == FAILED
    assert "and Paddle's names" in capsys.readouterr().err


def test_the_header_is_read_alone(tmp_path):
    write_weights({"w": np.ones(4, "f4")}, tmp_path / "a.safetensors", {"format": "pt", "title": "é"})
    write_weights({"w": np.ones(4, "f4")}, tmp_path / "a.pdparams")
    assert read_metadata(tmp_path / "a.safetensors") == {"format": "pt", "title": "é"}
    assert read_metadata(tmp_path / "a.pdparams") == {}


def test_several_sets_of_weights_in_one_paddle_file_are_refused(tmp_path):
    model = DenseNet(**DENSE)
    saved = {"model": model.state_dict(), "ema": model.state_dict(), "epoch": 3}
    paddle.save(saved, str(tmp_path / "net.pdparams"))
    with pytest.raises(WeightsError, match="holds weights under 'model' and, for the same network, under 'ema'"):
        load_weights(model, tmp_path / "net.pdparams")
    paddle.save({"model": model.state_dict(), "epoch": 3}, str(tmp_path / "net.pdparams"))
    assert load_weights(model, tmp_path / "net.pdparams") == ([], [])


# What a preset settles


def test_what_a_preset_settles_is_said_until_the_user_settles_it(randomise, tmp_path):
    state = arrays(randomise(create_model("cdnv2_a", num_classes=3)))
    [said] = recognise(state).warnings
    assert "does not reveal HS_start_block=2, init_stride=2, which cdnv2_a has" in said
    assert "--config KEY=VALUE" in said and "--arch cdnv2_a" in said
    [said] = recognise(state, overrides={"HS_start_block": 1}).warnings
    assert "HS_start_block" not in said and "init_stride=2" in said
    assert recognise(state, overrides={"HS_start_block": 1, "init_stride": 2}).warnings == ()
    assert recognise(state, arch="cdnv2_a").warnings == ()


def test_a_presets_file_says_so_everywhere_and_its_sidecar_settles_it(randomise, tmp_path, capsys):
    model = randomise(create_model("condensenet50"))
    path = tmp_path / "net.pdparams"
    write_weights(arrays(model), path)
    assert any("does not reveal init_stride=1" in note for note in describe_weights(path).warnings)
    assert paddle2torch.main([str(path), "--no-verify", "--json"]) == 0
    assert any("does not reveal init_stride=1" in said for said in json.loads(capsys.readouterr().out)["warnings"])
    with pytest.warns(UserWarning, match="does not reveal init_stride=1, which condensenet50 has"):
        load_model(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(path, init_stride=1).config["init_stride"] == 1
        (tmp_path / "net.json").write_text(json.dumps({"arch": "condensenet50", "config": model.config}))
        load_model(path)
