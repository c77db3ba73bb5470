"""Every family alike: sizes, shapes, gradients, static graphs, files, and what is recognised of its tensors."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import pytest

from paddle_dense import create_model, list_models, load_model, models, save_weights
from paddle_dense.files.layout import to_paddle, to_torch
from paddle_dense.models.matching import match
from paddle_dense.models.recognise import recognise
from tests.helpers import (
    CONDCONV,
    CONDENSENET,
    DENSENET,
    SMALL,
    V2,
    V2_VARIANTS,
    answers,
    arrays,
    loaded,
    random_images,
    settled,
    shapes,
    small,
)
from tests.peers import tool

EVERY_KIND = pytest.mark.parametrize("kind", SMALL)
LGC_FACTORS = {
    "factor 2": {"condense_factor": 2},
    "factor 8": {"condense_factor": 8},
    "two groups": {"group_1x1": 2, "group_3x3": 8},
    "one channel": {"num_classes": 37, "in_channels": 1},
    "bottleneck 2": {"bottleneck": 2},
    "six groups": {"growth": [6, 6, 12], "group_1x1": 6, "group_3x3": 6},
}
V2_FORMS = {"": {}, ", trained": {"condensed": False}}
FORMS = {**V2_FORMS, ", whole classifier": {"condense_classifier": False}}
VARIANTS = {
    **SMALL,
    **{
        f"{kind}, 2 channels": (name, {**config, "in_channels": 2})
        for kind, (name, config) in SMALL.items()
        if kind.startswith(("DenseNet", "CIFAR", "CSP"))
    },
    "CondConv, one channel": ("EfficientNetCondConv", {**CONDCONV, "in_channels": 1}),
    **{
        f"V2, {variant}{form}": ("CondenseNetV2", {**V2, **change, **trained})
        for variant, change in V2_VARIANTS.items()
        for form, trained in V2_FORMS.items()
    },
    **{
        f"CondenseNet, {variant}{form}": ("CondenseNet", {**CONDENSENET, **change, **trained})
        for variant, change in LGC_FACTORS.items()
        for form, trained in FORMS.items()
    },
    "DenseNet, memory-efficient": ("DenseNet", {**DENSENET, "memory_efficient": True}),
    "DenseNet, no bottleneck": ("DenseNet", {**DENSENET, "bn_size": 0}),
    "DenseNet, 0.7 kept": ("DenseNet", {**DENSENET, "compression": 0.7}),
    "DenseNet, one block": ("DenseNet", {**DENSENET, "block_config": [3], "small_inputs": True}),
    "DenseNet, four blocks": ("DenseNet", {**DENSENET, "block_config": [1, 2, 1, 1], "small_inputs": True}),
    "CondConv, deep": ("EfficientNetCondConv", {**CONDCONV, "channel_multiplier": 0.35, "depth_multiplier": 1.4}),
    "CondConv, one expert": ("EfficientNetCondConv", {**CONDCONV, "num_experts": 1}),
}
EVERY_VARIANT = pytest.mark.parametrize(("name", "config"), VARIANTS.values(), ids=VARIANTS)
PYRAMIDS = {  # channels and strides
    "CondenseNetV2": ([24, 40, 56], [1, 2, 4]),
    "CondenseNet": ([24, 40, 56], [1, 2, 4]),
    "DenseNet": ([12, 28, 38, 35], [2, 4, 8, 16]),
    "CIFAR DenseNet-BC": ([13, 29, 38, 35], [1, 1, 2, 4]),
    "CIFAR DenseNet": ([12, 28, 52, 68], [1, 1, 2, 4]),
    "CSP stand": ([12, 14, 15, 11], [2, 4, 8, 16]),
    "CSP fusionfirst": ([12, 22, 29, 23], [2, 4, 8, 16]),
    "CSP fusionlast": ([12, 14, 19, 17], [2, 4, 4, 4]),
    "CSP resnet": ([8, 16, 24], [2, 4, 8]),
    "CSP resnext": ([16, 16, 32], [2, 4, 8]),
    "CSP darknet": ([8, 16, 24], [1, 2, 4]),
    "CondConv": ([8, 8, 16, 32, 80], [2, 4, 8, 16, 32]),
}
GUESSED = {  # which numbers the tensors of a family do not show
    "CondenseNetV2": {"HS_start_block", "init_stride"},
    "CondenseNet": {"init_stride"},
    "EfficientNetCondConv": {"same_padding", "bn_eps"},
}
NAMED = [
    "densenet121",
    "densenet161",
    "densenet40_k12",
    "densenet_bc100_k12",
    "cspdensenet121",
    "cspresnet50",
    "cspresnext50",
    "cspdarknet53",
]
TRAINABLE = ["condensenet50", "condensenet74_c8", "cdnv2_a", "cdnv2_b", "cdnv2_c"]


@pytest.fixture
def build(randomise):
    """``build("DenseNet", config)``: a network in evaluation mode in which every tensor and the images matter."""

    def built(name, config):
        network = randomise(getattr(models, name)(**config))
        if name == "EfficientNetCondConv":
            settled(network, random_images(6, config.get("in_channels", 3), 64, 64))
        network.eval()
        return network

    return built


def rounding(name):
    return 1e-6 if name.startswith("Condense") else 1e-5


# Shapes


@EVERY_VARIANT
def test_it_answers_in_every_size(name, config, build):
    model = build(name, config)
    for height, width in ((32, 32), (33, 47), (64, 96)):
        y = answers(model, random_images(2, config.get("in_channels", 3), height, width))
        assert y.shape == (2, config["num_classes"])
        assert np.isfinite(y).all()
        assert np.abs(y[0] - y[1]).max() > 1e-3, "the images must matter"


@EVERY_KIND
def test_no_classes_means_no_classifier(kind, build, difference):
    name, config = SMALL[kind]
    whole, headless = build(name, config), small(kind, num_classes=0)
    classifier = f"{whole.classifier_name}."
    loaded(headless, {key: value for key, value in arrays(whole).items() if not key.startswith(classifier)})
    x = random_images(2, 3, 64, 64)
    features = answers(headless, x)
    logits = whole
    for part in whole.classifier_name.split("."):
        logits = getattr(logits, part)
    assert difference(answers(logits, features), answers(whole, x)) < rounding(name)


@EVERY_KIND
def test_features_only_returns_the_pyramid(kind, build, difference):
    name, config = SMALL[kind]
    whole, model = build(name, config), small(kind, features_only=True)
    left = {key for key in arrays(whole) if key.startswith(model.head_prefixes)}
    assert left
    loaded(model, {key: value for key, value in arrays(whole).items() if key not in left})
    assert (model.feature_channels, model.feature_strides) == PYRAMIDS[kind.partition(",")[0]]
    levels = list(zip(model.feature_channels, model.feature_strides))
    for height, width in ((64, 96), (32, 64)):
        pyramid = answers(model, random_images(2, 3, height, width))
        assert [level.shape for level in pyramid] == [(2, c, height // s, width // s) for c, s in levels]
    if all(prefix.startswith(("classifier", "head")) for prefix in model.head_prefixes):
        x = random_images(2, 3, 64, 64)
        headless = loaded(small(kind, num_classes=0), arrays(model))
        assert difference(answers(model, x)[-1].mean((2, 3)), answers(headless, x)) < rounding(name)


# What users do with a network


@EVERY_VARIANT
def test_backward_reaches_every_parameter(name, config, build):
    model = build(name, config)
    model.train()
    model(paddle.to_tensor(random_images(4, config.get("in_channels", 3), 64, 64))).square().sum().backward()
    for key, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            gradient = parameter.grad.numpy()
            assert np.isfinite(gradient).all(), key
            assert (gradient != 0).any(), key


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, {}) for kind in (*SMALL, "DenseNet, memory-efficient")),
        *((f"CondenseNetV2, {form}", {"features_only": True}) for form in ("condensed", "trained")),
    ],
)
def test_static_graphs_answer_the_same(kind, change, build, difference, tmp_path):
    """For any batch and size, saved and loaded again."""
    name, config = VARIANTS[kind]
    model, dtype = build(name, {**config, **change}), "float32"
    if name == "EfficientNetCondConv":  # whose rounding would hide much
        model, dtype = model.to(dtype="float64"), "float64"
    batches = [random_images(2, 3, 47, 64, dtype=dtype), random_images(3, 3, 64, 32, dtype=dtype)]
    expected = [answers(model, x) for x in batches]
    spec = [paddle.static.InputSpec([None, 3, None, None], dtype, "x")]
    static = paddle.jit.to_static(copy.deepcopy(model), input_spec=spec, full_graph=True)
    paddle.jit.save(static, str(tmp_path / "net"))
    for run in (static, paddle.jit.load(str(tmp_path / "net"))):
        for x, wanted in zip(batches, expected):
            assert difference(answers(run, x), wanted) < (1e-12 if dtype == "float64" else rounding(name))


@EVERY_KIND
@pytest.mark.parametrize("suffix", ["pdparams", "safetensors"])
def test_it_is_saved_and_rebuilt_from_its_tensors(kind, suffix, build, tmp_path):
    model = build(*SMALL[kind])
    save_weights(model, tmp_path / f"net.{suffix}")
    (tmp_path / "net.json").unlink()  # so that the tensors alone must tell
    again = load_model(tmp_path / f"net.{suffix}")
    assert type(again) is type(model)
    state = arrays(again)
    assert shapes(state) == shapes(model)
    for key, value in arrays(model).items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)


@EVERY_KIND
def test_a_deep_copy_is_independent(kind, build, randomise, difference):
    model, x = build(*SMALL[kind]), random_images(2, 3, 32, 32)
    before = answers(model, x)
    twin = copy.deepcopy(model)
    assert difference(answers(twin, x), before) == 0
    assert (twin.config, twin.arch) == (model.config, model.arch)
    randomise(twin, seed=5)
    assert difference(answers(model, x), before) == 0
    assert difference(answers(twin, x), before) > 0.01


# Recognition


@EVERY_VARIANT
def test_the_config_and_the_tensors_rebuild_the_network(name, config, build):
    model = build(name, config)
    state = arrays(model)
    assert config.items() <= model.config.items()
    again = type(model)(**model.config)
    assert again.config == model.config
    assert shapes(again) == shapes(state)

    found = recognise(state)
    assert (found.network, found.arch) == (type(model), name)
    assert shapes(found.build()) == shapes(state)
    assert {warning.partition("does not reveal ")[2].partition(":")[0] for warning in found.warnings} == GUESSED.get(
        name, set()
    )
    if name != "EfficientNetCondConv":  # several of whose multipliers round to the same numbers
        expected = {**model.config, "init_stride": 2 if len(config.get("stages", [])) >= 5 else 1}
        expected["condense_classifier"] = config.get("condense_classifier", config.get("condensed", True))
        assert found.config == {key: expected[key] for key in found.config}
        assert config.keys() - found.config.keys() <= {"memory_efficient"}


@EVERY_KIND
def test_a_network_without_classes_is_recognised(kind, randomise):
    state = arrays(randomise(small(kind, num_classes=0)))
    found = recognise(state)
    assert found.config["num_classes"] == 0
    assert shapes(found.build()) == shapes(state)


@pytest.mark.parametrize("use", [{}, {"num_classes": 37, "in_channels": 1}, {"num_classes": 0}], ids=str)
@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, {}) for name in NAMED + TRAINABLE), *((name, {"condensed": False}) for name in TRAINABLE)],
)
def test_presets_are_known_by_name_however_they_are_used(name, form, use, randomise):
    model = randomise(create_model(name, **form, **use))
    found = recognise(arrays(model))
    assert found.arch == name
    # What no tensor shows is the preset's, in one sentence.
    assert len(found.warnings) == bool(found.network.recognise(arrays(model)).guesses)
    assert all(f"--arch {name}" in warning for warning in found.warnings)
    # Whether a classifier would be condensed that is whole yet, or is not there, no tensor shows.
    read = found.config.keys() - {"condense_classifier"}
    assert {key: found.config[key] for key in read} == {key: model.config[key] for key in read}


@EVERY_KIND
def test_no_network_renames_these_tensors(kind):
    """No spelling of any network fits them better than their own, under Paddle's names or PyTorch's."""
    own = arrays(small(kind))
    for state, in_pytorch in ((own, False), (to_torch(own), True)):
        assert list(match(state, in_pytorch).state) == list(state)


# Full size


@pytest.mark.parametrize("name", ["densenet121", "cspresnet50", "cspresnext50", "tf_efficientnet_cc_b0_4e"])
def test_a_preset_answers_as_the_original(name, oracles, difference):
    state, x, logits = tool("oracle_weights").load_oracle(oracles / "full" / name)
    found = recognise(to_paddle(state))
    assert found.arch == name
    # The form that pads as PyTorch does has the same tensors.
    assert any(f"--arch {name[3:]}" in warning for warning in found.warnings) == name.startswith("tf_")
    assert difference(answers(loaded(found.build(), to_paddle(state)), x), logits) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_a_preset_learns_and_deploys(name, randomise, difference, tmp_path):
    model = create_model(name)
    native = model.input_size
    if "efficientnet" not in name:  # whose gates saturate with such weights
        randomise(model)
    for size in (native, 32, native + 33):
        logits = answers(model, random_images(1, 3, size, size))
        assert logits.shape == (1, model.num_classes)
        assert np.isfinite(logits).all()

    model.train()
    x = random_images(2, 3, 64, 64)
    paddle.nn.functional.cross_entropy(model(paddle.to_tensor(x)), paddle.to_tensor([0, 1])).backward()
    learning = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    assert all(np.isfinite(parameter.grad.numpy()).all() for parameter in learning)

    expected = answers(model, x)
    save_weights(model, tmp_path / "net.pdparams")
    assert difference(answers(load_model(tmp_path / "net.pdparams"), x), expected) == 0
    assert difference(answers(paddle.jit.to_static(model, full_graph=True), x), expected) < 1e-5

    backbone = create_model(name, features_only=True, pretrained=tmp_path / "net.pdparams")
    levels = zip(backbone.feature_channels, backbone.feature_strides)
    assert [level.shape for level in answers(backbone, x)] == [(2, c, 64 // s, 64 // s) for c, s in levels]
