"""The PyTorch twins of every network: the originals' keys and numbers, and the Paddle networks'."""

from __future__ import annotations

import ast

import numpy as np
import paddle
import pytest

import paddle_dense as pd_
from convert.parity.forward import exact_pair
from convert.torch2paddle import OK, main
from paddle_dense import models
from paddle_dense.files.layout import to_paddle, to_torch
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.layers import LGC, SFR
from paddle_dense.layers import condconv as layers
from paddle_dense.models.cspnet import MODES
from paddle_dense.models.network import preset, presets
from tests.helpers import (
    CSPNETS,
    SMALL,
    V2,
    V2_VARIANTS,
    answers,
    arrays,
    loaded,
    part,
    random_images,
    settled,
    twin_class,
)

torch = pytest.importorskip("torch", reason="the twins are PyTorch networks: pip install torch")

from convert.torch_models import condconv as condconv_twins
from convert.torch_models.condensenetv2 import LearnedConnections
from tests.peers import peer, tool

VARIANTS = {
    **V2_VARIANTS,
    "HS in the last block": {**V2_VARIANTS["ImageNet form"], "HS_start_block": 3},
    "SE and HS from the first block": {"SE_start_block": 0, "HS_start_block": 0},
    "one channel, no classes": {"in_channels": 1, "num_classes": 0},
    "stride 2": {"init_stride": 2, "last_se_reduction": 4, "bottleneck": 2},
}
TRAINED = {variant: {**V2, **change, "condensed": False} for variant, change in VARIANTS.items()}
KINDS = {
    **SMALL,
    **{f"V2, {variant}, trained": ("CondenseNetV2", config) for variant, config in TRAINED.items()},
    **{f"V2, {variant}": ("CondenseNetV2", {**config, "condensed": True}) for variant, config in TRAINED.items()},
    **{f"{kind}, grey": (name, {**config, "in_channels": 1}) for kind, (name, config) in SMALL.items()},
    "DenseNet, linear transitions": ("DenseNet", {**SMALL["DenseNet"][1], "linear_transitions": True}),
    **{f"{kind}, pooled": (name, {**config, "num_classes": 0}) for kind, (name, config) in SMALL.items()},
    **{f"{kind}, pyramid": (name, {**config, "features_only": True}) for kind, (name, config) in SMALL.items()},
}
LEARN = {
    **SMALL,
    "V2, one block": ("CondenseNetV2", {**V2, **V2_VARIANTS["one block"]}),
    "V2, C < G in sfr": ("CondenseNetV2", {**V2, "trans_factor": 2}),
    "V2, C < G in sfr, trained": ("CondenseNetV2", {**V2, "trans_factor": 2, "condensed": False}),
    "DenseNet, memory-efficient": ("DenseNet", {**SMALL["DenseNet"][1], "memory_efficient": True}),
    "DenseNet, 0.7 kept": ("DenseNet", {**SMALL["DenseNet"][1], "compression": 0.7}),
}
QUICK = ("densenet121", "densenet40_k12", "cspresnet50", "cspresnext50", "cspdarknet53")
PRESETS = [
    pytest.param(entry, change, id="-".join([entry.name, *change.values()]), marks=[pytest.mark.slow] * slow)
    for network in (models.DenseNet, models.CSPNet, models.CSPDenseNet, models.EfficientNetCondConv)
    for entry in presets(network)
    for change in ([{"mode": mode} for mode in MODES] if network is models.CSPDenseNet else [{}])
    for slow in [entry.name not in QUICK and entry.config.get("num_experts") != 4]
]


def pair(name, config, randomise):
    """A network in both frameworks, the twin first, in the same state, in which every tensor matters."""
    ours = randomise(getattr(models, name)(**config))
    return loaded(twin_class(name)(**config), to_torch(arrays(ours))), ours


def originals(entry):
    """The networks of a preset in the libraries that the released files are for."""
    # CSPDenseNet and CIFAR's DenseNets, of whose code there are small oracles alone.
    if entry.network is models.CSPDenseNet or entry.config.get("small_inputs"):
        return []
    theirs = [peer("timm").create_model(entry.name)]
    return theirs + ([getattr(peer("torchvision").models, entry.name)()] if entry.network is models.DenseNet else [])


# Against the originals


@pytest.mark.parametrize("name", ["CondenseNetV2", "CondenseNet"])
@pytest.mark.parametrize(
    ("file", "condensed", "logits"),
    [("trained_unconverted.pth.tar", False, "logits_unconverted"), ("converted.pth", True, "logits_converted")],
)
def test_a_condensenet_answers_as_the_original(name, file, condensed, logits, data, tiny, difference):
    family = {"CondenseNetV2": "cdnv2", "CondenseNet": "condensenet"}[name]
    config = tiny if family == "cdnv2" else {"stages": [3, 3, 3], "growth": [8, 16, 32], "num_classes": 10}
    twin = twin_class(name)(**config, condensed=condensed)
    loaded(twin, read_checkpoint(data / f"{family}_tiny_{file}").state)
    oracle = np.load(data / f"{family}_tiny_io.npz")
    assert difference(answers(twin, oracle["x_eval"]), oracle[logits]) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_cspdensenet_answers_as_the_original(mode, data, difference):
    oracle = part(data / "csp_densenet_tiny.npz", f"{mode}/")
    twin = twin_class("CSPDenseNet")(8, [2, 3, 2], 16, num_classes=7, mode=mode)
    loaded(twin, part(data / "csp_densenet_tiny.npz", f"{mode}/state/"))
    assert difference(answers(twin, oracle["x"]), oracle["y"]) < 1e-6


@pytest.mark.parametrize("name", ["std", "grouped", "dw", "dil"])
def test_condconv2d_answers_as_the_articles(name, data, difference):
    oracle = part(data / "condconv2d.npz", f"{name}/")
    layer = condconv_twins.CondConv2D(**ast.literal_eval(str(oracle["config"])))
    loaded(layer, part(data / "condconv2d.npz", f"{name}/state/"))
    assert difference(answers(layer, oracle["x"]), oracle["y"]) < 1e-6


def test_cdnv2_a_answers_as_the_original(oracles, difference):
    oracle = np.load(oracles / "cdnv2_a_io.npz")
    twin = twin_class("CondenseNetV2")(**preset("cdnv2_a").config)
    loaded(twin, read_checkpoint(oracles / "cdnv2_a.pth").state)
    assert difference(answers(twin, oracle["x"]), oracle["logits"]) < 1e-6


def test_condconv_takes_the_released_networks_keys(oracles, difference):
    state, x, logits = tool("oracle_weights").load_oracle(oracles / "full" / "tf_efficientnet_cc_b0_4e")
    twin = loaded(twin_class("EfficientNetCondConv")(**preset("tf_efficientnet_cc_b0_4e").config), state)
    assert difference(answers(twin, x), logits) < 5e-6


def condconv_twin(entry, x, randomise):
    """In float64: thirty random layers multiply rounding errors, and here it is the algebra that is compared."""
    twin = randomise(twin_class("EfficientNetCondConv")(**entry.config)).double()
    for module in twin.modules():
        if isinstance(module, condconv_twins.RoutedCondConv2D):  # mixtures that neither grow nor fade
            torch.nn.init.normal_(module.weight, 0, 2 * (len(module.weight) * np.prod(module.shape[1:])) ** -0.5)
    return settled(twin, x)


@pytest.mark.parametrize(("entry", "change"), PRESETS)
def test_presets_answer_as_their_libraries_and_paddle(entry, change, randomise, difference):
    if entry.network is models.EfficientNetCondConv:
        # Sides that are odd and even on the way, where the two kinds of padding differ.
        x, ours = random_images(4, 3, 69, 66, dtype="float64"), entry.build({}).to(dtype="float64")
        # Paddle keeps a normalisation's epsilon in float32.
        twin, rounding, in_paddle = condconv_twin(entry, x, randomise), 1e-9, 1e-6
    else:
        x, ours = random_images(2, 3, 64, 64), entry.build(change)
        twin, rounding, in_paddle = randomise(twin_class(entry.network.__name__)(**entry.config, **change)), 1e-6, 1e-5
    y = answers(twin, x)
    assert np.abs(y[0] - y[1]).max() > 1e-3 * np.abs(y).max(), "the images do matter"
    for theirs in originals(entry):
        assert difference(answers(loaded(theirs.to(next(twin.parameters()).dtype), arrays(twin)), x), y) < rounding
    assert difference(answers(loaded(ours, to_paddle(arrays(twin))), x), y) < in_paddle


@pytest.mark.parametrize("name", ["densenet121", "cspresnet50", "cspresnext50", "cspdarknet53"])
def test_pyramid_is_timms(name, randomise, difference):
    theirs = randomise(peer("timm").create_model(name, features_only=True))
    # timm flattens the names here: features_denseblock1.denselayer1, stem_conv1.conv, stages_0.conv_exp ...
    state = arrays(theirs)
    for folder in ("features", "stem", "stages"):
        state = {key.replace(f"{folder}_", f"{folder}.", 1): value for key, value in state.items()}
    ours = loaded(preset(name).build({"features_only": True}), to_paddle(state))
    assert ours.feature_channels == theirs.feature_info.channels()
    assert ours.feature_strides == theirs.feature_info.reduction()
    x = random_images(1, 3, 64, 64)
    assert difference(answers(ours, x), answers(theirs, x)) < 1e-5


@pytest.mark.parametrize("name", ["densenet121", "cspresnext50"])
def test_starts_as_timms(name):
    theirs, entry = peer("timm").create_model(name), preset(name)
    starts = [
        dict(network.named_parameters())
        for network in (twin_class(entry.network.__name__)(**entry.config), entry.build({}))
    ]
    for key, expected in theirs.named_parameters():
        if expected.numel() > 10_000 or key.endswith("bn.weight"):
            for found in (start[key] for start in starts):
                assert found.std().item() == pytest.approx(expected.std().item(), rel=0.1), key
                assert found.mean().item() == pytest.approx(expected.mean().item(), abs=0.01), key


def test_condensenet_v2_starts_as_the_original():
    twin = twin_class("CondenseNetV2")(**V2, condensed=False)
    for module in twin.modules():
        if isinstance(module, torch.nn.Conv2d):
            scaled = module.weight / (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert scaled.std().item() == pytest.approx(1, abs=5 / (2 * scaled.numel()) ** 0.5)
        elif isinstance(module, LearnedConnections):
            assert (module._mask == 1).all()
            assert module._stage == 0
            assert module._count == 0


# Against Paddle


@pytest.mark.parametrize("kind", KINDS)
def test_both_frameworks_answer_the_same_in_every_size(kind, randomise, difference):
    name, config = KINDS[kind]
    twin, ours = pair(name, config, randomise)
    rounding = 1e-6 if name.startswith("Condense") else 1e-5
    if "one block" in kind:
        rounding = 1e-5  # its logits are small next to what they are sums of; its gradients are compared in float64
    for height, width in ((32, 32), (33, 47), (64, 96)):
        x = random_images(2, config.get("in_channels", 3), height, width)
        assert difference(answers(ours, x), answers(twin, x)) < rounding


@pytest.mark.parametrize("kind", LEARN)
def test_gradients_are_alike(kind, randomise):
    """In float64: one activation on the other side of a ReLU's kink moves a gradient of float32 by 1e-4."""
    twin, ours = pair(*LEARN[kind], randomise)
    x, labels = random_images(4, 3, 64, 64, dtype="float64"), np.arange(4)
    with exact_pair(twin.train(), ours) as (twin, ours):
        ours.train()
        expected = torch.nn.functional.cross_entropy(twin(torch.from_numpy(x)), torch.from_numpy(labels))
        found = paddle.nn.functional.cross_entropy(ours(paddle.to_tensor(x)), paddle.to_tensor(labels))
        expected.backward()
        found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    theirs = to_paddle({key: parameter.grad.numpy() for key, parameter in twin.named_parameters()})
    own = {key: parameter.grad for key, parameter in ours.named_parameters() if not parameter.stop_gradient}
    assert own.keys() == theirs.keys()
    scale = max(np.abs(gradient).max() for gradient in theirs.values())
    for key, gradient in theirs.items():  # some of CondConv's are 0 but for rounding: a BN takes out what they move
        assert np.abs(own[key].numpy() - gradient).max() < 1e-9 * max(np.abs(gradient).max(), 1e-3 * scale), key


@pytest.mark.parametrize("config", TRAINED.values(), ids=TRAINED)
def test_both_frameworks_drop_the_same_connections(config):
    """Masks, counters and group lasso at every point of training, from the same weights."""
    network = models.CondenseNetV2(**config)
    twin = loaded(twin_class("CondenseNetV2")(**config), to_torch(arrays(network)))
    modules = dict(twin.named_modules())
    learned = {name: layer for name, layer in network.named_sublayers() if isinstance(layer, (LGC, SFR))}
    assert len(learned) == sum(isinstance(module, LearnedConnections) for module in modules.values())
    for progress in (0.0, 0.1, 0.3, 0.45, 1.0):
        for name, layer in learned.items():
            module = modules[name]
            layer.set_progress(progress)
            module.set_progress(progress)
            for buffer in ("_mask", "_count", "_stage"):
                assert (getattr(layer, buffer).numpy() == getattr(module, buffer).numpy()).all(), (name, buffer)
            assert layer.group_lasso().item() == pytest.approx(module.group_lasso().item(), rel=1e-6)
    assert layer.density < 1


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_condconv2d_pads_alike(padding_mode, randomise, difference):
    sizes = {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2)}
    config = {**sizes, "groups": 2, "num_experts": 4, "padding_mode": padding_mode}
    twin = randomise(condconv_twins.CondConv2D(**config))
    layer = loaded(layers.CondConv2D(**config), to_paddle(arrays(twin)))
    x = random_images(3, 4, 9, 8)
    assert difference(answers(layer, x), answers(twin, x)) < 1e-6


@pytest.mark.parametrize("change", [{"same_padding": False}, {"bn_eps": 1e-5}])
def test_what_no_file_shows_changes_the_answers(change, randomise, difference):
    """So the user must hear of a guess."""
    entry, x = preset("tf_efficientnet_cc_b0_4e"), random_images(4, 3, 64, 64, dtype="float64")
    twin = condconv_twin(entry, x, randomise)
    other = loaded(twin_class("EfficientNetCondConv")(**{**entry.config, **change}).double(), arrays(twin))
    assert difference(answers(other, x), answers(twin, x)) > 1e-2


# Files


@pytest.mark.parametrize(
    "kind", ["DenseNet", "CIFAR DenseNet-BC", "CIFAR DenseNet", *(f"CSP {kind}" for kind in CSPNETS), "CondConv, SAME"]
)
def test_files_are_converted(kind, randomise, difference, tmp_path):
    """DenseNet's in the old spelling; those of the other families in `test_every_family` and its neighbours."""
    name, config = SMALL[kind]
    twin, ours = pair(name, config, randomise)
    state = twin.state_dict()
    if name == "DenseNet":
        for leaf in ("norm1", "norm2", "conv1", "conv2"):
            state = {key.replace(f".{leaf}.", f".{leaf[:-1]}.{leaf[-1]}."): value for key, value in state.items()}
        # Unknown when those files were written.
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        assert "features.denseblock1.denselayer1.norm.1.running_var" in state
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    assert main([str(tmp_path / "net.pth")]) == OK
    converted = pd_.load_model(tmp_path / "net.pdparams")
    assert type(converted) is type(ours)
    x = random_images(2, 3, 64, 64)
    assert difference(answers(converted, x), answers(twin, x)) < 1e-5
