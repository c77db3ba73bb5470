"""Files under other names, through every way in: with prefixes, next to strangers, as other libraries write them."""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest

import paddle_dense as pd_
from convert.parity.__main__ import main as parity
from convert.torch2paddle import FAILED, OK, main
from paddle_dense.commands.description import describe_weights
from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_torch
from paddle_dense.files.weights import read_weights, write_weights
from tests.helpers import SMALL, answers, arrays, loaded, random_images, small, twin_class

torch = pytest.importorskip("torch", reason="runs the conversion: pip install torch")

from tests.peers import peer

PREFIXES = ("module.densenet121.", "net.", "_module.", "0.", "features.module.", "_layers.")
DENSE = {"growth_rate": 8, "block_config": (2, 3, 2), "num_init_features": 12, "bn_size": 2, "num_classes": 5}
# Arguments that no tensor shows.
HIDDEN = ("HS_start_block", "init_stride", "same_padding", "bn_eps", "mode")


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def save(state, path):
    """As PyTorch does, or as safetensors for it."""
    if path.suffix == ".safetensors":
        write_weights({name: value.numpy() for name, value in state.items()}, path, {"format": "pt"})
    else:
        torch.save({"state_dict": dict(state)}, path)
    return path


def lived_in(network, seed=0):
    """A PyTorch network with statistics and affine parts of BN of which every one matters."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.6, 1.4)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.6, 1.4)
    return network.eval()


@pytest.fixture
def densenet():
    """torchvision's, small."""
    return lived_in(peer("torchvision").models.DenseNet(**DENSE))


def convert(path, *options):
    """The converted network, as `load_model` reads it."""
    target = path.parent / "converted" / "net.pdparams"
    target.parent.mkdir(exist_ok=True)
    assert main([str(path), "-o", str(target), "--force", *options]) == OK
    return pd_.load_model(target)


def refusal(path, capsys, *options):
    """What is said of a file that is refused: one sentence, and nothing is written."""
    capsys.readouterr()
    target = path.with_name("refused.pdparams")
    assert main([str(path), "-o", str(target), *options]) == FAILED
    assert not target.exists()
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}: ")
    assert err.count("\n") == 1
    return err


# Prefixes


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_in_pytorchs_files(prefix, suffix, densenet, difference, tmp_path):
    path, x = save(prefixed(prefix, densenet.state_dict()), tmp_path / f"net{suffix}"), random_images(2, 3, 64, 64)
    assert difference(answers(convert(path), x), answers(densenet, x)) < 1e-6
    assert describe_weights(path).arch == "DenseNet"
    assert parity([str(path), "--size", "32"]) == OK


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.filterwarnings("ignore:.*does not reveal")
def test_prefixes_in_paddles_files(kind, prefix, randomise, tmp_path):
    model, x = randomise(small(kind)), random_images(2, 3, 64, 64)
    paddle.save(prefixed(prefix, model.state_dict()), str(tmp_path / "net.pdparams"))
    expected = answers(model, x)
    hidden = {key: model.config[key] for key in HIDDEN if key in model.config}
    np.testing.assert_array_equal(answers(pd_.load_model(tmp_path / "net.pdparams", **hidden), x), expected)
    other = small(kind)
    assert pd_.load_weights(other, tmp_path / "net.pdparams") == ([], [])
    np.testing.assert_array_equal(answers(other, x), expected)
    assert describe_weights(tmp_path / "net.pdparams").network == SMALL[kind][0]


# Strangers


@pytest.mark.filterwarnings("ignore:.*left out")
def test_strangers_are_refused_until_they_are_dropped(densenet, difference, tmp_path, capsys):
    state = {**prefixed("backbone.", densenet.state_dict()), "neck.conv.weight": torch.ones(4, 4, 1, 1)}
    path, x = save(state, tmp_path / "detector.pth"), random_images(2, 3, 64, 64)
    assert "next to the DenseNet under 'backbone.', 'neck.conv.weight'" in refusal(path, capsys)
    for option in (["--drop", "neck.*"], ["--part", "backbone."]):
        assert difference(answers(convert(path, *option), x), answers(densenet, x)) < 1e-6
    paddles = tmp_path / "detector.pdparams"
    ours = read_weights(tmp_path / "converted" / "net.pdparams")
    write_weights({**prefixed("backbone.", ours), "neck.conv.weight": np.ones((4, 4, 1, 1), "f4")}, paddles)
    with pytest.raises(WeightsError, match=r"detector\.pdparams: has a tensor next to the DenseNet under 'backbone\.'"):
        pd_.load_model(paddles)
    for said in ({"drop": ["neck.*"]}, {"part": "backbone."}):
        assert difference(answers(pd_.load_model(paddles, **said), x), answers(densenet, x)) < 1e-6
        model = pd_.models.DenseNet(**{**DENSE, "block_config": [2, 3, 2]})
        pd_.load_weights(model, paddles, **said)
        assert difference(answers(model, x), answers(densenet, x)) < 1e-6


def test_of_two_networks_either_is_converted(densenet, difference, tmp_path, capsys):
    other = lived_in(peer("torchvision").models.DenseNet(**{**DENSE, "block_config": (1, 1)}), seed=1)
    state = {**prefixed("student.", other.state_dict()), **prefixed("teacher.", densenet.state_dict())}
    path, x = save(state, tmp_path / "both.pth"), random_images(2, 3, 64, 64)
    assert "holds several networks, under 'teacher.', 'student.': choose one with --part" in refusal(path, capsys)
    for network, one, rest in ((other, "student.", "teacher.*"), (densenet, "teacher.", "student.*")):
        for option in (["--part", one], ["--drop", rest]):
            assert difference(answers(convert(path, *option), x), answers(network, x)) < 1e-6


def test_own_names_are_renamed(densenet, difference, tmp_path, capsys):
    state = {
        re.sub(r"features\.denseblock(\d)\.denselayer(\d+)", lambda m: f"trunk.{int(m[1]) - 1}.unit{m[2]}", name): value
        for name, value in densenet.state_dict().items()
    }
    path, x = save(state, tmp_path / "fork.pth"), random_images(2, 3, 64, 64)
    said = refusal(path, capsys)
    assert "the nearest, DenseNet, has none like 'trunk.0.unit1.norm1.weight' [12]" in said
    rule = "trunk.{b-1}.unit{l}=features.denseblock{b}.denselayer{l}"
    assert difference(answers(convert(path, "--rename", rule), x), answers(densenet, x)) < 1e-6


@pytest.mark.filterwarnings("ignore:.*left out")
def test_several_heads_are_left_out_by_num_classes_0(densenet, difference, tmp_path, capsys):
    densenet.classifier = torch.nn.Sequential(
        torch.nn.Linear(densenet.classifier.in_features, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5)
    )
    path, x = save(densenet.state_dict(), tmp_path / "heads.pth"), random_images(2, 3, 64, 64)
    said = refusal(path, capsys)
    assert "several linear layers, 'classifier.0', 'classifier.2'" in said
    assert "--config num_classes=0" in said
    densenet.classifier = torch.nn.Identity()
    assert difference(answers(convert(path, "--config", "num_classes=0"), x), answers(densenet, x)) < 1e-6
    ours = read_weights(tmp_path / "converted" / "net.pdparams")
    heads = {f"classifier.{i}.weight": np.ones((5, 6), "f4") for i in (0, 2)}
    write_weights({**ours, **heads}, tmp_path / "heads.pdparams")
    with pytest.raises(WeightsError, match="several linear layers"):
        pd_.load_model(tmp_path / "heads.pdparams")
    model = pd_.load_model(tmp_path / "heads.pdparams", num_classes=0)
    assert difference(answers(model, x), answers(densenet, x)) < 1e-6


# Biases before normalisations


def densenet_with_biases():
    network = peer("torchvision").models.DenseNet(**DENSE)
    return network, ["features.conv0", *(f"features.denseblock{b}.denselayer1.conv1" for b in (1, 2, 3))]


def cspnet_with_biases():
    network = peer("timm").create_model("cspresnet50", num_classes=5)
    return network, [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]


def condconv_with_biases():
    network = peer("timm").create_model("efficientnet_cc_b0_4e", num_classes=5)
    modules = network.named_modules()
    return network, [name for name, module in modules if isinstance(module, torch.nn.Conv2d) and ".se." not in name]


@pytest.mark.parametrize("make", [densenet_with_biases, cspnet_with_biases, condconv_with_biases])
def test_biases_before_a_normalisation_go_into_its_mean(make, difference, tmp_path, capsys):
    """In float64: that of the sum in the mean is the only rounding, and thirty layers multiply it."""
    network, layers = make()
    lived_in(network)
    torch.manual_seed(2)
    for name in layers:
        convolution = network.get_submodule(name)
        convolution.bias = torch.nn.Parameter(0.3 * torch.randn(convolution.out_channels))
    path = save(network.state_dict(), tmp_path / "net.pth")
    options = ["--config", "same_padding=false,bn_eps=1e-5"] if make is condconv_with_biases else []
    found = convert(path, *options)
    assert f"subtracted the biases '{layers[0]}.bias'" in capsys.readouterr().err
    x = random_images(2, 3, 64, 64, dtype="float64")
    assert difference(answers(found.to(dtype="float64"), x), answers(network.double(), x)) < 1e-6


# Other libraries

RENAMED = {
    "torchvision, before 2018": (r"(norm|conv)([12])\.", r"\1.\2."),
    "MONAI": (r"(denselayer\d+)\.|^classifier\.", lambda m: f"{m[1]}.layers." if m[1] else "class_layers.out."),
    "base": (r"^features\.", "base."),
    "norm_final": (r"norm5", "norm_final"),
    "features alone": (r"^features\.", ""),
}


@pytest.mark.parametrize("old", [False, True], ids=["", "old names too"])
@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize(("pattern", "new"), RENAMED.values(), ids=RENAMED)
def test_torchvisions_densenet_in_other_spellings(pattern, new, prefix, old, densenet, difference, tmp_path):
    state = {prefix + re.sub(pattern, new, name): value for name, value in densenet.state_dict().items()}
    if old:
        state = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name): value for name, value in state.items()}
    x = random_images(2, 3, 64, 64)
    assert difference(answers(convert(save(state, tmp_path / "net.pth")), x), answers(densenet, x)) < 1e-6


@pytest.mark.parametrize("name", ["densenet121", "cspresnet50", "cspdarknet53", "tf_efficientnet_cc_b0_4e"])
def test_timms_pyramids(name, difference, tmp_path):
    network = lived_in(peer("timm").create_model(name, features_only=True))
    path, x = save(network.state_dict(), tmp_path / "net.pth"), random_images(1, 3, 64, 64)
    found = convert(path, "--config", "features_only=true")
    assert found.arch == name
    assert difference(answers(found, x), answers(network, x)) < 1e-5


@pytest.mark.parametrize("option", [[], ["--config", "num_classes=0"], ["--config", "features_only=true"]])
def test_a_condconv_without_its_head_returns_the_pyramid(option, difference, tmp_path, capsys):
    """All that timm's features_only leaves: a head is more than the classifier there."""
    network = lived_in(peer("timm").create_model("efficientnet_cc_b0_4e", features_only=True))
    path, x = save(network.state_dict(), tmp_path / "net.pth"), random_images(1, 3, 64, 64)
    found = convert(path, "--arch", "efficientnet_cc_b0_4e", *option)
    said = "the file has no head, so the network returns its feature maps, as features_only=True"
    assert (said in capsys.readouterr().err) is (option[-1:] != ["features_only=true"])
    assert difference(answers(found, x), answers(network, x)) < 1e-5


@pytest.mark.parametrize("name", ["densenet121", "cspdarknet53", "efficientnet_cc_b0_4e"])
def test_timms_networks_without_a_classifier(name, difference, tmp_path):
    network = lived_in(peer("timm").create_model(name, num_classes=0))
    path, x = save(network.state_dict(), tmp_path / "net.pth"), random_images(1, 3, 64, 64)
    arch = ["--arch", name] if name.startswith("efficientnet") else []
    for option in ([], ["--config", "num_classes=0"]):
        assert difference(answers(convert(path, *arch, *option), x), answers(network, x)) < 1e-5


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.filterwarnings("ignore:.*does not reveal")
def test_features_only_leaves_out_the_head(kind, randomise, difference, tmp_path, capsys):
    """Of a whole network's file, checked against the twin; and what was converted so is read without its sidecar."""
    model, x = randomise(small(kind)), random_images(1, 3, 64, 64)
    name, path = SMALL[kind][0], tmp_path / "net.pth"
    save({key: torch.from_numpy(np.array(value)) for key, value in to_torch(arrays(model)).items()}, path)
    whole = SMALL[kind][1] | {"features_only": True}
    hidden = {key: model.config[key] for key in HIDDEN if key in model.config}
    told = ",".join(f"{key}={value}" for key, value in {**hidden, "features_only": True}.items())
    found = convert(path, "--config", told, *(["--keep-trained-form"] if "trained" in kind else []))
    assert "left out what is no part of the network" in capsys.readouterr().err
    body = getattr(pd_.models, name)(**whole)
    pd_.load_weights(body, tmp_path / "converted" / "net.pdparams")
    expected = answers(body, x)
    assert difference(answers(found, x), expected) == 0
    twin = loaded(twin_class(name)(**whole), to_torch(arrays(body)))
    assert difference(expected, answers(twin, x)) < 1e-5
    assert parity([str(path), "--size", "32", "--config", told]) == OK
    (tmp_path / "converted" / "net.json").unlink()
    again = pd_.load_model(tmp_path / "converted" / "net.pdparams", **hidden, features_only=True)
    assert difference(answers(again, x), expected) == 0


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("densenet121", 224),
        ("densenet40_k12_cifar10", 32),
        ("densenet100_k12_bc_cifar10", 32),
        ("condensenet74_c4_g4", 224),
    ],
)
def test_pytorchcvs_networks(name, size, difference, tmp_path):
    network = lived_in(peer("pytorchcv.model_provider").get_model(name, pretrained=False))
    x = random_images(1, 3, size, size)
    found = convert(save(network.state_dict(), tmp_path / "net.pth"))
    assert difference(answers(found, x), answers(network, x)) < 1e-5


def test_thresholds_are_named_that_turn_logits_into_probabilities(densenet, difference, tmp_path, capsys):
    state = {"op_threshs": torch.tensor([0.1, float("nan"), 0.3, 0.2, 0.5]), **densenet.state_dict()}
    x = random_images(2, 3, 64, 64)
    assert difference(answers(convert(save(state, tmp_path / "net.pth")), x), answers(densenet, x)) < 1e-6
    assert "the thresholds 'op_threshs': the network here returns the logits" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["0", "fc", "1", ""])
def test_what_may_follow_the_classifier_is_named(head, densenet, difference, tmp_path, capsys):
    """A state_dict of a Sequential of Linear and Sigmoid is one of Linear: the Sigmoid has no tensors."""
    place = f"classifier.{head}".rstrip(".")
    state = {name.replace("classifier", place): value for name, value in densenet.state_dict().items()}
    x = random_images(2, 3, 64, 64)
    assert difference(answers(convert(save(state, tmp_path / "net.pth")), x), answers(densenet, x)) < 1e-6
    said = f"took '{place}' for the classifier: the outputs are its own, without whatever activation"
    assert (said in capsys.readouterr().err) is (head in ("0", "fc"))


# What is none of them


def test_volumes_are_refused_as_such(densenet, tmp_path, capsys):
    """As MONAI's DenseNet has them with spatial_dims=3."""
    state = {name: value[..., None] if value.dim() == 4 else value for name, value in densenet.state_dict().items()}
    said = refusal(save(state, tmp_path / "net.pth"), capsys)
    assert "has a convolution of 3-D inputs, 'features.denseblock1.denselayer1.conv1.weight' [16, 12, 1, 1, 1]" in said


@pytest.mark.parametrize("kind", ["CondenseNet, condensed", "CondenseNet, trained"])
def test_the_condensenet_authors_densenets_are_refused_by_name(kind, tmp_path, capsys):
    """`DenseNet_LGC`: the learned layers of CondenseNet, and transitions that have weights as well."""
    state = {name: value for name, value in arrays(small(kind)).items() if not name.endswith(("_mean", "_variance"))}
    for leaf in ("norm.weight", "conv.weight"):
        state[f"features.transition_1.conv.{leaf}"] = state[f"features.denseblock_1.denselayer_1.conv_1.{leaf}"]
    path = save({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, tmp_path / "net.pth")
    assert "'features.transition_1.conv.norm.weight', so it is a DenseNet_LGC" in refusal(path, capsys)


@pytest.mark.parametrize(
    ("library", "name"), [("timm", "efficientnet_b0"), ("timm", "resnet18"), ("torchvision", "squeezenet1_1")]
)
def test_other_networks_are_refused_in_one_sentence(library, name, tmp_path, capsys):
    make = peer("timm").create_model if library == "timm" else peer("torchvision").models.get_model
    said = refusal(save(make(name, num_classes=2).state_dict(), tmp_path / "net.pth"), capsys)
    assert "holds none of the known networks" in said
    assert "'Add a model' in the documentation" in said
