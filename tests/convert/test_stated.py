"""What a whole pickled module states of its layers: contradicted by no network that is written, and said where open."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np
import paddle
import pytest

import paddle_dense
from convert import torch2paddle
from convert.conversion import convert_checkpoint
from convert.options import Options
from convert.result import Result as Conversion
from paddle_dense.commands.description import describe_weights
from paddle_dense.errors import WeightsError
from paddle_dense.files.torch_file import read_checkpoint
from tests.helpers import answers, random_images
from tests.peers import peer

torch = pytest.importorskip("torch", reason="writes whole PyTorch modules: pip install torch")
from torch import nn

from convert.torch_models import condconv, condensenet, condensenetv2, cspnet, densenet

DENSENET = {"growth_rate": 4, "block_config": (1, 2, 1, 1), "num_init_features": 8, "bn_size": 2, "num_classes": 3}
CSP = {"depths": [1, 1], "channels": [8, 8], "expand_ratio": [2.0, 2.0], "bottle_ratio": [0.5, 0.5]}
CSP.update(backbone="resnet", stem_channels=8, num_classes=3)
V2 = {"stages": [1, 1, 1], "growth": [8, 8, 8], "fc_channel": 8, "group_1x1": 4, "group_3x3": 4, "group_trans": 4}
V2.update(HS_start_block=1, SE_start_block=2, num_classes=3)
FAMILIES = {
    "DenseNet": lambda: densenet.DenseNet(**DENSENET),
    "CIFAR DenseNet": lambda: densenet.DenseNet(**{**DENSENET, "small_inputs": True, "bn_size": 0}),
    "CSPDenseNet": lambda: cspnet.CSPDenseNet(**DENSENET, mode="stand"),
    "CSPNet": lambda: cspnet.CSPNet(**CSP),
    "CSPDarkNet": lambda: cspnet.CSPNet(**{**CSP, "backbone": "darknet"}),
    "CondenseNet": lambda: condensenet.CondenseNet([1, 1, 1], [8, 8, 8], num_classes=3),
    "CondenseNetV2": lambda: condensenetv2.CondenseNetV2(**{**V2, "HS_start_block": 2}),
}


def lived_in(net: nn.Module) -> nn.Module:
    """The network with batch normalisations that have seen data."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, (condensenetv2.CondenseLGC, condensenet.CondenseLinear)):
            module.index.copy_(torch.arange(len(module.index)) % 8)
        elif isinstance(module, condensenetv2.CondenseSFR):
            rows = torch.arange(len(module.index))
            module.index[rows, rows % module.index.shape[1]] = 1
    return net.eval()


def saved(net: object, folder: Path, **how: object) -> Path:
    path = folder / "net.pth"
    torch.save(net, path, **how)
    return path


def convert(path: Path, **options: object) -> Conversion:
    target = path.with_suffix(".pdparams")
    target.unlink(missing_ok=True)
    return convert_checkpoint(path, target, Options(force=True, **options))


def refused(net: object, folder: Path, options: Options | None = None, **how: object) -> str:
    """Why the module is refused, with and without a check; nothing is written."""
    path = saved(net, folder, **how)
    for verify in (False, True):
        with pytest.raises(WeightsError) as error:
            convert_checkpoint(path, folder / "net.pdparams", replace(options or Options(), verify=verify))
    assert [file.name for file in folder.iterdir()] == ["net.pth"]
    return str(error.value)


def assert_same_answers(net: nn.Module, path: Path, size: int = 64, tolerance: float = 1e-5) -> None:
    """The network that was converted answers what the network that was saved does."""
    x = np.random.default_rng(3).standard_normal((2, 3, size, size), np.float32)
    model = paddle_dense.load_model(path)
    model.eval()
    with torch.no_grad(), paddle.no_grad():
        expected, found = net(torch.from_numpy(x)).numpy(), model(paddle.to_tensor(x)).numpy()
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def in_each_relu(make: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    def change(net: nn.Module) -> None:
        for module in list(net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.ReLU):
                    setattr(module, name, make())

    return change


def setting(layer: str, **numbers: object) -> Callable[[nn.Module], None]:
    def change(net: nn.Module) -> None:
        for name, value in numbers.items():
            setattr(net.get_submodule(layer), name, value)

    return change


def putting(layer: str, make: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    owner, _, name = layer.rpartition(".")
    return lambda net: setattr(net.get_submodule(owner), name, make())


def inserting(owner: str, index: int, make: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    """Puts one more layer into an nn.Sequential whose layers have names."""

    def change(net: nn.Module) -> None:
        layers = net.get_submodule(owner)._modules
        order = list(layers.items())
        order.insert(index, ("extra", make()))
        layers.clear()
        layers.update(order)

    return change


def removing(layer: str) -> Callable[[nn.Module], None]:
    owner, _, name = layer.rpartition(".")
    return lambda net: delattr(net.get_submodule(owner), name)


OTHERWISE = {
    "eps": (setting("features.norm5", eps=1e-2), "'features.norm5' has eps=0.01, where DenseNet has eps=1e-05"),
    "no affine": (setting("features.norm0", affine=False), "'features.norm0' has affine=False"),
    "statistics": (setting("features.norm0", track_running_stats=False), "'features.norm0' has track_running_stats="),
    "stride": (setting("features.conv0", stride=(1, 1)), "'features.conv0' has stride=1x1, where DenseNet has stride="),
    "padding": (setting("features.conv0", padding=(2, 2)), "'features.conv0' has padding=2x2"),
    "padding mode": (
        setting("features.denseblock2.denselayer1.conv2", padding_mode="reflect"),
        "'features.denseblock2.denselayer1.conv2' has padding_mode='reflect'",
    ),
    "dilation": (
        setting("features.denseblock1.denselayer1.conv2", dilation=(2, 2), padding=(2, 2)),
        "'features.denseblock1.denselayer1.conv2' has padding=2x2",
    ),
    "dilation alone": (setting("features.conv0", dilation=(2, 2)), "'features.conv0' has dilation=2x2"),
    "groups": (setting("features.conv0", groups=2), "'features.conv0' has groups=2, where DenseNet has groups=1"),
    "no number": (setting("features.norm0", eps={"a": 1}), "has eps='a dict'"),
    "pool's class": (
        putting("features.pool0", lambda: nn.AvgPool2d(3, 2, 1)),
        "'features.pool0' computes an average pool of kernel_size=3x3, where DenseNet computes a max pool",
    ),
    "pool's size": (putting("features.pool0", lambda: nn.MaxPool2d(2, 2)), "'features.pool0' has kernel_size=2x2"),
    "pool's stride": (setting("features.pool0", stride=1), "'features.pool0' has stride=1x1"),
    "pool's padding": (setting("features.pool0", padding=0), "'features.pool0' has padding=0x0"),
    "ceil_mode": (setting("features.pool0", ceil_mode=True), "'features.pool0' has ceil_mode=True"),
    "count_include_pad": (
        putting("features.transition1.pool", lambda: nn.AvgPool2d(2, 2, 1, count_include_pad=False)),
        "'features.transition1.pool' has padding=1x1",
    ),
    "divisor": (setting("features.transition1.pool", divisor_override=3), "has divisor_override=3x3"),
    "no pool": (putting("features.pool0", nn.Identity), "'features.pool0' computes nothing, where DenseNet computes a"),
    "pool left out": (removing("features.pool0"), "'features.pool0' is not there, where DenseNet has a max pool"),
    "last layer left out": (
        putting("features.transition2", lambda: None),  # replaced below by an nn.Sequential without its pool
        "'features.transition2.pool' is not there",
    ),
    "activation": (in_each_relu(nn.SiLU), "'features.relu0' computes a SiLU, where DenseNet computes a ReLU, and 14"),
    "slope": (in_each_relu(lambda: nn.LeakyReLU(0.2)), "'features.relu0' computes a LeakyReLU"),
    "no activation": (putting("features.relu0", nn.Identity), "'features.relu0' computes nothing, where DenseNet"),
    "wrapped activation": (putting("features.relu0", lambda: nn.Sequential(nn.ELU())), "computes an ELU"),
    "empty wrapper": (putting("features.relu0", nn.Sequential), "'features.relu0' computes nothing"),
    "one activation more": (inserting("features", 3, nn.SiLU), "'features.extra' computes a SiLU, where DenseNet com"),
    "one pool more": (inserting("features", 4, lambda: nn.MaxPool2d(2)), "'features.extra' has kernel_size=2x2"),
    "another order": (
        lambda net: net.features._modules.update(norm0=net.features._modules.pop("norm0")),
        "layer 'features.relu0' stands in the place of 'features.norm0', where DenseNet computes in another order",
    ),
    "another layer": (inserting("features", 0, lambda: nn.Upsample(scale_factor=2)), "'features.extra' computes an Up"),
    "softmax": (inserting("", 99, lambda: nn.Softmax(1)), "'extra' computes a Softmax, where DenseNet computes not"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_a_module_states_otherwise_is_refused(what, tmp_path):
    change, said = OTHERWISE[what]
    net = lived_in(densenet.DenseNet(**DENSENET))
    if what == "last layer left out":
        whole = net.features.transition2
        net.features.transition2 = nn.Sequential(OrderedDict(whole.named_children()))
        change = removing("features.transition2.pool")
    change(net)
    message = refused(net, tmp_path)
    assert said in message and "net.pth: states that layer" in message and "--reference MODULE:FACTORY" in message


@pytest.mark.parametrize("container", ["zip", "legacy", "in a dict", "parallel"])
def test_in_every_container(container, tmp_path):
    net = lived_in(densenet.DenseNet(**DENSENET))
    wrapped = {
        "in a dict": lambda net: {"epoch": 3, "model": net},
        "parallel": nn.DataParallel,
    }.get(container, lambda net: net)
    how = {"_use_new_zipfile_serialization": False} if container == "legacy" else {}
    result = convert(saved(wrapped(net), tmp_path, **how))
    assert result.verified and not result.warnings
    assert_same_answers(net, tmp_path / "net.pdparams")
    (tmp_path / "net.pdparams").unlink()
    (tmp_path / "net.json").unlink()

    net.features.pool0 = nn.Identity()
    assert "layer 'features.pool0' computes nothing" in refused(wrapped(net), tmp_path, **how)


def condconv_net(**config: object) -> Callable[[], nn.Module]:
    return lambda: condconv.EfficientNetCondConv(channel_multiplier=0.2, num_classes=3, **config)


def v2_net(**config: object) -> Callable[[], nn.Module]:
    return lambda: condensenetv2.CondenseNetV2(**{**V2, **config})


def in_each_norm(eps: float) -> Callable[[nn.Module], None]:
    def change(net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = eps

    return change


def in_another_order(layer: str, order: list[str]) -> Callable[[nn.Module], None]:
    def change(net: nn.Module) -> None:
        layers = net.get_submodule(layer)._modules
        found = {name: layers[name] for name in order}
        layers.clear()
        layers.update(found)

    return change


def as_it_is(net: nn.Module) -> None:
    """No change."""


BY_REFERENCE = "--reference MODULE:FACTORY, shows that the file states it wrongly"
# A network, what is changed in it, and what is said of the file; None where the network here can be such a one.
FACTS = {
    "eps of DenseNet": (
        *(FAMILIES["DenseNet"], in_each_norm(1e-3)),
        "layer 'features.norm0' has eps=0.001, where DenseNet has eps=1e-05, and 14 more",
    ),
    "eps of CSPNet": (FAMILIES["CSPNet"], in_each_norm(1e-3), "layer 'stem.conv1.bn' has eps=0.001"),
    "eps of CondenseNetV2": (FAMILIES["CondenseNetV2"], in_each_norm(1e-3), "has eps=0.001"),
    "eps of CondConv": (
        *(condconv_net(same_padding=True, bn_eps=2e-3), as_it_is),
        None,
    ),
    "stride of DenseNet": (
        *(FAMILIES["DenseNet"], setting("features.conv0", stride=(1, 1))),
        "layer 'features.conv0' has stride=1x1",
    ),
    "stride of CSPNet": (
        *(FAMILIES["CSPNet"], setting("stem.conv1.conv", stride=(1, 1))),
        "layer 'stem.conv1.conv' has stride=1x1",
    ),
    "stride of CondenseNet": (
        *(FAMILIES["CondenseNet"], setting("features.init_conv", stride=(4, 4))),
        None,
    ),
    "stride of CondenseNetV2": (
        *(v2_net(init_stride=2, HS_start_block=3), as_it_is),
        None,
    ),
    "first pool of DenseNet": (
        *(FAMILIES["DenseNet"], putting("features.pool0", lambda: nn.AvgPool2d(3, 2, 1))),
        "layer 'features.pool0' computes an average pool",
    ),
    "later pool of DenseNet": (
        *(FAMILIES["DenseNet"], putting("features.transition1.pool", lambda: nn.MaxPool2d(2))),
        "layer 'features.transition1.pool' computes a max pool",
    ),
    "last pool of CondenseNet": (
        *(FAMILIES["CondenseNet"], putting("features.pool_last", lambda: nn.AdaptiveMaxPool2d(1))),
        "layer 'features.pool_last' computes an AdaptiveMaxPool2d",
    ),
    "activation of DenseNet": (FAMILIES["DenseNet"], in_each_relu(nn.SiLU), "computes a SiLU"),
    "activation of CondenseNet": (FAMILIES["CondenseNet"], in_each_relu(nn.GELU), "computes a GELU"),
    "activation of CSPNet": (
        *(FAMILIES["CSPNet"], setting("stages.1.blocks.0.act3", negative_slope=0.1)),
        "layer 'stages.1.blocks.0.act3' has negative_slope=0.1",
    ),
    "order in CSPNet": (
        *(FAMILIES["CSPNet"], in_another_order("stem.conv1", ["conv", "act", "bn"])),
        "layer 'stem.conv1.act' stands in the place of 'stem.conv1.bn'",
    ),
    "order in CondenseNetV2": (
        *(
            FAMILIES["CondenseNetV2"],
            in_another_order("features.denseblock_1.denselayer_1.conv_2", ["activation", "norm", "conv"]),
        ),
        "layer 'features.denseblock_1.denselayer_1.conv_2.activation' stands in the place of",
    ),
    "stride of experts": (
        *(condconv_net(same_padding=True, bn_eps=1e-3), setting("blocks.4.2.conv_dw", stride=(2, 2))),
        "layer 'blocks.4.2.conv_dw' has stride=2x2, where EfficientNetCondConv has stride=1x1",
    ),
    "padding of DenseNet": (
        *(FAMILIES["DenseNet"], setting("features.conv0", padding=(2, 2))),
        "layer 'features.conv0' has padding=2x2",
    ),
    "padding as PyTorch's": (condconv_net(bn_eps=1e-3), as_it_is, None),
    "padding and eps as PyTorch's": (condconv_net(), as_it_is, None),
    "padding as TensorFlow's": (condconv_net(same_padding=True, bn_eps=1e-3), as_it_is, None),
    "HS_start_block=1": (v2_net(), as_it_is, None),
    "HS_start_block=2": (v2_net(HS_start_block=2), as_it_is, None),
    "HS_start_block=3": (v2_net(HS_start_block=3), as_it_is, None),
}
CONTAINERS: dict[str, dict[str, object]] = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}, ".tar.gz": {}}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("fact", FACTS)
def test_a_stated_fact_ends_in_a_refusal_or_in_right_numbers(fact, container, tmp_path, capsys):
    """What the network can have is taken from the module, whose own answers are those to compare with."""
    make, change, said = FACTS[fact]
    net = lived_in(make())
    change(net)
    path = saved(net, tmp_path, **CONTAINERS[container])
    if container == ".tar.gz":  # PyTorch itself has written no .tar since 0.1.12
        with tarfile.open(tmp_path / "net.tar.gz", "w:gz") as archive:
            archive.add(path, path.name)
        path.unlink()
        path = tmp_path / "net.tar.gz"
    before = sorted(tmp_path.iterdir())
    status = torch2paddle.main([str(path)])
    message = capsys.readouterr().err
    if said is None:
        assert status == torch2paddle.OK, message
        assert_same_answers(net, tmp_path / "net.pdparams")
        return
    assert status == torch2paddle.FAILED and said in message
    assert message.endswith(f"{BY_REFERENCE}\n") and message.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_sound_modules_convert_as_before(name, tmp_path):
    net = lived_in(FAMILIES[name]())
    result = convert(saved(net, tmp_path))
    assert result.verified
    assert result.warnings == []  # what tensors alone do not show, such a file states
    assert_same_answers(net, tmp_path / "net.pdparams")


def test_numbers_that_make_no_difference_are_no_contradiction(tmp_path):
    net = densenet.DenseNet(**DENSENET)
    setting("features.denseblock1.denselayer1.conv1", padding_mode="reflect", dilation=(2, 2))(net)
    setting("features.denseblock1.denselayer1.conv2", padding="same")(net)
    setting("features.transition1.pool", count_include_pad=False)(net)
    setting("features.norm0", momentum=0.01)(net)
    putting("features.relu0", lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)))(net)
    net.features.denseblock1.denselayer1.relu = net.features.denseblock1.denselayer1.relu1
    lived_in(net)
    assert convert(saved(net, tmp_path)).verified
    assert_same_answers(net, tmp_path / "net.pdparams")


# What stands once more where the network has all of its own, and what is missing at the end of a part.
MORE_OR_LESS = {
    "a pool twice": (
        "DenseNet",
        inserting("features", 4, lambda: nn.MaxPool2d(3, 2, 1)),
        "'features.extra' computes a",
    ),
    "an activation elsewhere": (
        *("DenseNet", inserting("features.transition1", 3, nn.ReLU)),
        "'features.transition1.extra' computes a ReLU, where DenseNet computes nothing",
    ),
    "a slope twice": (
        *("CSPDarkNet", inserting("stages.1.conv_transition", 3, lambda: nn.LeakyReLU(0.01))),
        "'stages.1.conv_transition.extra' computes a LeakyReLU, where CSPNet computes nothing",
    ),
    "no activation at the end": (
        *("CSPDarkNet", removing("stages.1.conv_transition.act")),
        "'stages.1.conv_transition.act' is not there, where CSPNet has a LeakyReLU",
    ),
    "no gate at the end": (
        *("CondenseNetV2", removing("features.se_last.fc.3")),
        "'features.se_last.fc.3' is not there, where CondenseNetV2 has a Sigmoid",
    ),
}


@pytest.mark.parametrize("what", MORE_OR_LESS)
def test_one_layer_more_or_less_of_a_kind_that_the_network_has(what, tmp_path):
    family, change, said = MORE_OR_LESS[what]
    torch.manual_seed(1)
    net = lived_in(FAMILIES[family]())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = net(x)
        change(net)
        after = net(x)
    assert (after - before).abs().max() > 1e-3 * before.abs().max(), "the change makes no difference"
    assert said in refused(net, tmp_path)


def test_a_slope_of_csp_is_compared(tmp_path):
    net = lived_in(cspnet.CSPNet(**CSP))
    net.stages[1].blocks[0].act3.negative_slope = 0.1
    said = "layer 'stages.1.blocks.0.act3' has negative_slope=0.1, where CSPNet has negative_slope=0.01"
    assert said in refused(net, tmp_path)


def test_where_hard_swish_begins_is_taken_from_the_module(tmp_path):
    net = lived_in(condensenetv2.CondenseNetV2(**V2))
    result = convert(saved(net, tmp_path))
    assert result.verdict is True and not result.warnings and result.config["HS_start_block"] == 1
    assert_same_answers(net, tmp_path / "net.pdparams")


@pytest.mark.parametrize("given", [{}, {"SE_start_block": 2}])
def test_an_argument_that_the_module_contradicts_is_refused_with_the_right_one(given, tmp_path):
    net = lived_in(condensenetv2.CondenseNetV2(**V2))
    message = refused(net, tmp_path, Options(config={**given, "HS_start_block": 2}))
    assert "layer 'features.denseblock_2.denselayer_1.conv_1.activation' computes a Hardswish" in message
    option = message.rpartition("give --config ")[2]
    config = {key: int(value) for key, value in (pair.split("=") for pair in option.split(","))}
    assert config == {**given, "HS_start_block": 1}
    assert convert(tmp_path / "net.pth", config=config).verified
    assert_same_answers(net, tmp_path / "net.pdparams")


def test_the_stride_of_a_condensenet_is_taken_from_the_module(tmp_path):
    net = lived_in(condensenet.CondenseNet([1, 1, 1], [8, 8, 8], num_classes=3, init_stride=2))
    message = refused(net, tmp_path, Options(config={"init_stride": 1}))
    assert "where CondenseNet has stride=1x1: " in message and message.endswith("give --config init_stride=2")
    assert convert(tmp_path / "net.pth").config["init_stride"] == 2
    assert_same_answers(net, tmp_path / "net.pdparams")


def test_what_a_module_does_not_state_stays_a_guess(tmp_path):
    """Its tensors alone state nothing, and a block that calls its activations does not state which they are."""
    net = lived_in(FAMILIES["CondenseNetV2"]())
    [start, stride] = convert(saved(net.state_dict(), tmp_path)).warnings
    assert "HS_start_block=2 is assumed" in start
    assert "init_stride=1 is assumed" in stride
    layer = net.features.denseblock_2.denselayer_1
    for part in (layer.conv_1, layer.conv_2, layer.sfr):
        part.__class__ = Silent
        del part.activation
    [start, own] = describe_weights(saved(net, tmp_path)).warnings
    assert "HS_start_block=2 is assumed" in start
    assert "own class 'tests.convert.test_stated.Silent'" in own


class Silent(nn.Module):
    """Its `forward` may call any activation."""


def test_of_presets_with_the_same_tensors_one_is_stated(tmp_path):
    """By its epsilon; the padding stands before convolutions that have none."""
    net = condconv.EfficientNetCondConv(channel_multiplier=1.0, num_experts=4, same_padding=True, bn_eps=1e-3)
    [said] = convert(saved(lived_in(net), tmp_path), verify=False).warnings
    assert "does not reveal same_padding=True, which tf_efficientnet_cc_b0_4e has" in said


class HS(nn.Module):
    """Hard-swish as the authors of CondenseNet V2 have it."""

    def __init__(self) -> None:
        super().__init__()
        self.relu6 = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.relu6(x + 3) / 6


def test_the_authors_own_hard_swish_is_known(tmp_path):
    net = lived_in(condensenetv2.CondenseNetV2(**{**V2, "HS_start_block": 2}))
    in_block = net.features.denseblock_3.denselayer_1
    for layer in (in_block.conv_1, in_block.conv_2, in_block.sfr, net):
        setattr(layer, "fc_act" if layer is net else "activation", HS())
    assert convert(saved(net, tmp_path)).verified
    assert_same_answers(net, tmp_path / "net.pdparams")
    net.features.denseblock_1.denselayer_1.conv_2.activation = HS()
    assert "'features.denseblock_1.denselayer_1.conv_2.activation' computes a Hardswish" in refused_again(net, tmp_path)


def refused_again(net: nn.Module, folder: Path) -> str:
    for file in list(folder.iterdir()):
        file.unlink()
    return refused(net, folder)


class OwnLayer(densenet.DenseLayer):
    """What a class of somebody's own may do."""


class OwnNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = lived_in(densenet.DenseNet(**DENSENET))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def test_own_classes_are_named(tmp_path):
    net = lived_in(densenet.DenseNet(**DENSENET))
    net.features.denseblock1.denselayer1.__class__ = OwnLayer
    result = convert(saved(net, tmp_path))
    assert result.verified
    [warning] = result.warnings
    assert "own class 'tests.convert.test_stated.OwnLayer' may compute what the file does not reveal" in warning
    [note] = describe_weights(tmp_path / "net.pth").warnings
    assert note == warning


def test_what_stands_around_the_network(tmp_path):
    net = OwnNet()
    checkpoint = read_checkpoint(saved(net, tmp_path))
    assert checkpoint.layers["features.norm0"]["eps"] == 1e-5
    assert checkpoint.around[""]["class"] == "tests.convert.test_stated.OwnNet"
    assert "own class 'tests.convert.test_stated.OwnNet'" in convert(tmp_path / "net.pth").warnings[0]
    net.last = nn.Sigmoid()
    assert "layer 'last' is a Sigmoid, where DenseNet has no such layer" in refused_again(net, tmp_path)


LAST = {
    "Sigmoid": (lambda net, last: setattr(net, "classifier", nn.Sequential(net.classifier, last)), nn.Sigmoid()),
    "Softmax": (
        lambda net, last: setattr(net, "classifier", nn.Sequential(net.classifier, nn.Dropout(), last)),
        nn.Softmax(1),
    ),
    "LogSoftmax": (
        lambda net, last: setattr(net, "classifier", nn.Sequential(OrderedDict(fc=net.classifier, out=last))),
        nn.LogSoftmax(1),
    ),
    "around": (lambda net, last: nn.Sequential(net, last), nn.Softmax(1)),
    "around, wrapped": (
        lambda net, last: nn.DataParallel(nn.Sequential(OrderedDict(net=net, last=last))),
        nn.Sigmoid(),
    ),
}


@pytest.mark.parametrize(("put", "last"), LAST.values(), ids=LAST)
def test_a_last_activation_is_left_off_with_a_warning(put, last, tmp_path, difference):
    net, x = lived_in(peer("torchvision").models.DenseNet(**DENSENET)), random_images(2, 3, 64, 64)
    logits = answers(net, x)
    whole = put(net, last) or net
    expected = answers(whole.eval(), x)
    assert np.abs(expected - logits).max() > 0.1
    result = convert(saved(whole, tmp_path))
    assert result.verified
    kind = type(last).__name__
    [said] = [warning for warning in result.warnings if "ends with" in warning]
    assert f"the file ends with a {kind}, '" in said
    assert "the network returns the logits" in said
    assert said in describe_weights(tmp_path / "net.pth").warnings
    found = answers(paddle_dense.load_model(tmp_path / "net.pdparams"), x)
    assert difference(found, logits) < 1e-5
    assert difference(last(torch.from_numpy(found)), expected) < 1e-5


@pytest.mark.parametrize("head", [(nn.Sigmoid(), None), (None, nn.ReLU()), (None, nn.Sigmoid(), nn.ReLU())])
def test_other_activations_next_to_the_classifier_are_refused(head, tmp_path):
    net = lived_in(densenet.DenseNet(**DENSENET))
    net.classifier = nn.Sequential(*(layer or net.classifier for layer in head))
    assert "DenseNet computes nothing" in refused(net, tmp_path)


def test_layers_of_a_head_that_is_left_out_contradict_nothing(tmp_path, difference):
    net, x = lived_in(densenet.DenseNet(**DENSENET)), random_images(2, 3, 64, 64)
    width = net.classifier.in_features
    net.classifier = nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(1))
    path = saved(net, tmp_path)
    assert convert(path, config={"num_classes": 0}).verified
    net.classifier = nn.Identity()
    assert difference(answers(paddle_dense.load_model(tmp_path / "net.pdparams"), x), answers(net, x)) < 1e-5


def doubled(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


def test_hooks_are_named(tmp_path):
    net = lived_in(densenet.DenseNet(**DENSENET))
    net.features.norm0.register_forward_hook(doubled)
    [warning] = convert(saved(net, tmp_path)).warnings
    assert "layer 'features.norm0' may run more than their class" in warning


OWN_REFERENCE = """
from torch import nn
from convert.torch_models.densenet import DenseNet

def factory():
    net = DenseNet(4, (1, 2, 1, 1), 8, 2, num_classes=3)
    {change}
    return net
"""


@pytest.mark.parametrize("right", [True, False])
def test_a_reference_settles_it(right, tmp_path, monkeypatch):
    """The file can state what nobody computed; its own network says so, or else the check fails."""
    net = lived_in(densenet.DenseNet(**DENSENET))
    net.features.pool0 = nn.Identity()
    change = "pass" if right else "net.features.pool0 = nn.Identity()"
    name = f"own_{str(right).lower()}"
    (tmp_path / f"{name}.py").write_text(OWN_REFERENCE.format(change=change))
    monkeypatch.chdir(tmp_path)
    path = saved(net, tmp_path)
    if right:
        [warning] = convert(path, reference=f"{name}:factory").warnings
        assert "layer 'features.pool0' computes nothing" in warning and "--reference settles" in warning
        return
    with pytest.raises(WeightsError, match=f"Paddle and {name}:factory differ .* first in layer features.pool0,"):
        convert(path, reference=f"{name}:factory")
    with pytest.raises(WeightsError, match=r"layer 'features\.pool0' computes nothing"):
        convert(path, reference=f"{name}:factory", verify=False)


def test_info_and_parity_tell_of_a_contradiction(tmp_path):
    net = lived_in(densenet.DenseNet(**DENSENET))
    net.features.pool0 = nn.Identity()
    path = saved(net, tmp_path)
    [note] = describe_weights(path).warnings
    assert "the file states that layer 'features.pool0' computes nothing" in note
    command = [sys.executable, "-m", "convert.parity", str(path), "--steps", "0"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and "'features.pool0' computes nothing" in run.stderr and "Traceback" not in run.stderr


def test_old_dotted_names_of_layers_are_found(tmp_path):
    """torchvision 0.2 had layers named norm.1, relu.1 and conv.1, which PyTorch would not take any more."""
    net = lived_in(densenet.DenseNet(**DENSENET))
    for module in net.modules():
        if isinstance(module, densenet.DenseLayer):
            layers = {f"{name[:-1]}.{name[-1]}" if name[-1] in "12" else name: x for name, x in module._modules.items()}
            module._modules.clear()
            module._modules.update(layers)
    assert convert(saved(net, tmp_path)).verified
    net.features.denseblock1.denselayer1._modules["relu.1"] = nn.Identity()
    assert "'features.denseblock1.denselayer1.relu.1' computes nothing" in refused_again(net, tmp_path)


HOSTILE = {
    "sizes that are text": {"kernel_size": ["a", "b"], "stride": 1, "padding": "same", "dilation": 2**62},
    "sizes that are none": {"kernel_size": [], "stride": None, "padding": [None] * 8, "dilation": [0.5, "x"]},
    "numbers without end": {"kernel_size": 10**400, "stride": [2**63] * 2, "padding": {"a": 1}, "groups": [[1]]},
    "terminal codes": {"padding_mode": "\x1b[2J" * 30},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nonsense_is_refused_in_one_sentence(what, tmp_path):
    net = lived_in(densenet.DenseNet(**DENSENET))
    setting("features.conv0", **HOSTILE[what])(net)
    message = refused(net, tmp_path)
    assert "states that layer 'features.conv0' has" in message and message.isprintable() and len(message) < 500


def test_nonsense_in_what_an_option_could_mend(tmp_path):
    net = lived_in(condconv.EfficientNetCondConv(channel_multiplier=0.2, num_classes=3))
    for eps in ("nan", float("nan"), -1.0, True, 10**30):
        net.bn1.eps = eps
        message = refused_again(net, tmp_path)
        assert "--reference MODULE:FACTORY" in message and message.isprintable()
    for stride in (0, -2, 2**62, [], ["a"]):
        net = lived_in(condensenet.CondenseNet([1, 1, 1], [8, 8, 8], num_classes=3))
        net.features.init_conv.stride = stride
        message = refused_again(net, tmp_path)
        assert ("make no network" if stride == 2**62 else "layer 'features.init_conv' has stride=") in message


def test_more_layers_than_a_network_has(tmp_path):
    net = lived_in(densenet.DenseNet(**DENSENET))
    for number in range(20_001):
        net._modules[f"more{number}"] = net.relu5
    assert "has 20070 layers, more than any network here" in refused(net, tmp_path)


# Other libraries' own modules


def small_timm_densenet(**config: object) -> nn.Module:
    module = peer("timm.models.densenet")
    return module.DenseNet(growth_rate=4, block_config=(1, 2, 1, 1), bn_size=2, num_classes=3, **config)


def test_torchvisions_own_module(tmp_path):
    models = peer("torchvision.models")
    net = lived_in(models.DenseNet(4, (1, 2, 1, 1), 8, 2, num_classes=3))
    result = convert(saved(net, tmp_path))
    assert result.verified and not result.warnings
    assert_same_answers(net, tmp_path / "net.pdparams")
    del net.features.transition2.pool
    assert "'features.transition2.pool' is not there, where DenseNet has an average pool" in refused_again(
        net, tmp_path
    )


def test_timms_own_densenet(tmp_path):
    net = lived_in(small_timm_densenet())
    result = convert(saved(net, tmp_path))
    assert result.verified and not result.warnings
    assert_same_answers(net, tmp_path / "net.pdparams")
    net.features.norm0.act = nn.Identity()
    assert "'features.norm0' computes nothing, where DenseNet computes a ReLU" in refused_again(net, tmp_path)
    other = lived_in(small_timm_densenet(act_layer="silu"))
    assert "'features.norm0.act' computes a SiLU, where DenseNet computes a ReLU" in refused_again(other, tmp_path)
    other = lived_in(small_timm_densenet())
    other.global_pool.pool = nn.AdaptiveMaxPool2d(1)
    assert "'global_pool.pool' computes an AdaptiveMaxPool2d" in refused_again(other, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["densenet121", "cspresnet50", "cspresnext50", "cspdarknet53", "efficientnet_cc_b0_4e", "tf_efficientnet_cc_b0_4e"],
)
def test_timms_own_modules(name, tmp_path):
    net = lived_in(peer("timm").create_model(name))
    result = convert(saved(net, tmp_path), arch=name)
    assert result.verified and result.arch == name and not result.warnings
    assert_same_answers(net, tmp_path / "net.pdparams", 224)


def test_of_two_presets_the_stated_one_is_taken(tmp_path):
    net = lived_in(condconv.EfficientNetCondConv(channel_multiplier=1.0, num_experts=4))
    result = convert(saved(net, tmp_path), verify=False)
    assert result.arch == "efficientnet_cc_b0_4e" and not result.warnings and not result.assumed
    assert_same_answers(net, tmp_path / "net.pdparams", 224, 1e-4)


@pytest.mark.slow
def test_pytorchcvs_own_module(tmp_path):
    net = peer("pytorchcv.model_provider").get_model("condensenet74_c4_g4")
    for module in net.modules():
        if hasattr(module, "index") and module.index is not None:
            module.index.copy_(torch.arange(len(module.index)) % 4)
    net = lived_in(net)
    result = convert(saved(net, tmp_path))
    assert result.verified
    assert result.warnings == []
    assert_same_answers(net, tmp_path / "net.pdparams", 224)
    net.features.stage1.unit1.conv2.activ = nn.SiLU()
    assert "'features.stage1.unit1.conv2.activ' computes a SiLU" in refused_again(net, tmp_path)
