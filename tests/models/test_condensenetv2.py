"""CondenseNet V2: the original's numbers, the papers' figures, and every shape that users ask for."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import pytest

from paddle_dense import cdnv2_a, create_model, profile
from paddle_dense.files.layout import to_paddle
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.layers import LGC, SFR, CondenseLGC, CondenseSFR
from paddle_dense.models import CondenseNetV2

FORMS = pytest.mark.parametrize("condensed", [True, False], ids=["condensed", "trained"])
SMALL = {"stages": [1, 2, 1], "growth": [8, 8, 16], "fc_channel": 24, "SE_start_block": 1, "num_classes": 7}
SMALL.update(group_1x1=4, group_3x3=4, group_trans=4)
FIVE_BLOCKS = {**SMALL, "stages": [1, 1, 2, 1, 1], "growth": [8, 8, 8, 16, 16]}
SIX_GROUPS = {**SMALL, "growth": [6, 6, 12], "group_1x1": 6, "group_3x3": 6, "group_trans": 6}
VARIANTS = {
    "CIFAR form": SMALL,
    "ImageNet form": FIVE_BLOCKS,
    "six groups": SIX_GROUPS,
    "two numbers of groups": {**SMALL, "group_1x1": 2, "group_3x3": 8, "group_trans": 4},
    "C < G in conv_1": {**SMALL, "condense_factor": 2},
    "C < G in sfr": {**SMALL, "trans_factor": 2},
    "C > G in sfr": {**SMALL, "trans_factor": 8},
    "SE from the first block": {**SMALL, "SE_start_block": 0},
    "no SE in the blocks": {**SMALL, "SE_start_block": 3},
    "one block": {**SMALL, "stages": [2], "growth": [8]},
    "one input channel": {**SMALL, "in_channels": 1},
    "four input channels": {**SMALL, "in_channels": 4},
    "37 classes": {**SMALL, "num_classes": 37},
    "bottleneck 2": {**SMALL, "bottleneck": 2},
    "reduction 4": {**SMALL, "last_se_reduction": 4},
}
EVERY_VARIANT = pytest.mark.parametrize("config", list(VARIANTS.values()), ids=list(VARIANTS))


def with_state(model: paddle.nn.Layer, state: dict[str, np.ndarray]) -> paddle.nn.Layer:
    missing, unexpected = model.set_state_dict(state)
    assert not missing and not unexpected
    model.eval()
    return model


def answer(model, x) -> paddle.Tensor:
    with paddle.no_grad():
        return model(x if isinstance(x, paddle.Tensor) else paddle.to_tensor(x))


# Against the original


@pytest.mark.parametrize(
    ("name", "condensed", "logits"),
    [
        ("trained_unconverted.pth.tar", False, "logits_unconverted"),
        ("converted.pth", True, "logits_converted"),
    ],
)
def test_tiny_answers_as_the_original(data, tiny, tiny_state, difference, name, condensed, logits):
    oracle = np.load(data / "cdnv2_tiny_io.npz")
    model = with_state(CondenseNetV2(**tiny, condensed=condensed), tiny_state(name))
    assert difference(answer(model, oracle["x_eval"]), oracle[logits]) < 1e-6


def test_cdnv2_a_answers_as_the_original(oracles, difference):
    oracle = np.load(oracles / "cdnv2_a_io.npz")
    model = with_state(cdnv2_a(), to_paddle(read_checkpoint(oracles / "cdnv2_a.pth").state))
    y = answer(model, oracle["x"])
    # Rounding: 7.4e-7 on one processor, 1.04e-6 on another.
    assert difference(y, oracle["logits"]) < 2e-6
    assert (y.numpy().argmax(axis=1) == oracle["logits"].argmax(axis=1)).all()


def test_training_goes_in_lockstep_with_the_original(oracles, tiny, tiny_state, difference):
    """Ten steps, over the first two condensing stages; the gradients of the first one for every parameter."""
    oracle = np.load(oracles / "cdnv2_tiny_lockstep.npz")
    model = with_state(CondenseNetV2(**tiny, condensed=False), tiny_state("init.pth"))
    model.train()
    learned = [layer for layer in model.sublayers() if isinstance(layer, (LGC, SFR))]
    optimizer = paddle.optimizer.Momentum(0.05, 0.9, model.parameters(), use_nesterov=True, weight_decay=1e-4)
    for step in range(10):
        for layer in learned:
            layer.set_progress(step / 24)
        logits = model(paddle.to_tensor(oracle["X"][step]))
        loss = paddle.nn.functional.cross_entropy(logits, paddle.to_tensor(oracle["Y"][step]))
        lasso = sum(layer.group_lasso() for layer in learned)
        (loss + 1e-5 * lasso).backward()
        if step == 0:
            expected = to_paddle({key[6:]: oracle[key] for key in oracle if key.startswith("grad0/")})
            gradients = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
            assert set(gradients) == set(expected)
            for name, gradient in gradients.items():
                assert difference(gradient, expected[name]) < 1e-4, name
        optimizer.step()
        optimizer.clear_grad()
        assert loss.item() == pytest.approx(oracle["losses"][step], rel=1e-5)
        assert lasso.item() == pytest.approx(oracle["lasso"][step], rel=1e-6)
        assert learned[0]._count.item() == oracle["count"][step]
    assert learned[0].stage == 2


# The papers' figures


@pytest.mark.parametrize(
    ("name", "params", "millions"),
    [("cdnv2_a", 2_038_444, 45.87), ("cdnv2_b", 3_592_662, 146.47), ("cdnv2_c", 6_177_512, 309.74)],
)
@FORMS
def test_presets_have_the_published_size_and_cost(name, params, millions, condensed):
    model = create_model(name, condensed=condensed)
    found = profile(model, (3, 224, 224))
    assert found.params == params
    assert round(found.macs / 1e6, 2) == millions
    if condensed:
        assert sum(parameter.size for parameter in model.parameters() if not parameter.stop_gradient) == params


# Shapes


@EVERY_VARIANT
@FORMS
def test_every_variant_answers_in_every_size(config, condensed, randomise):
    model = randomise(CondenseNetV2(**config, condensed=condensed))
    model.eval()
    channels = config.get("in_channels", 3)
    for height, width in ((32, 32), (33, 33), (64, 96)):
        y = answer(model, paddle.randn([2, channels, height, width]))
        assert y.shape == [2, config["num_classes"]]
        assert paddle.isfinite(y).all()
        assert (y[0] - y[1]).abs().max() > 1e-3, "the picture must matter"


@pytest.mark.parametrize("size", [32, 33, 97, 224])
def test_a_preset_takes_any_picture_of_32_pixels_or_more(size):
    model = cdnv2_a(num_classes=5)
    model.eval()
    assert answer(model, paddle.randn([1, 3, size, size])).shape == [1, 5]


def test_no_classes_means_no_classifier(randomise, difference):
    model = randomise(CondenseNetV2(**{**SMALL, "num_classes": 0}))
    whole = CondenseNetV2(**SMALL)
    whole.set_state_dict({**whole.state_dict(), **model.state_dict()})
    model.eval(), whole.eval()
    x = paddle.randn([2, 3, 32, 32])
    features = answer(model, x)
    assert features.shape == [2, 24]
    assert not any(name.startswith("classifier") for name in model.state_dict())
    assert difference(whole.classifier(features), answer(whole, x)) < 1e-6


@pytest.mark.parametrize(
    ("config", "strides"), [(SMALL, [1, 2, 4]), (FIVE_BLOCKS, [2, 4, 8, 16, 32])], ids=["CIFAR form", "ImageNet form"]
)
@FORMS
def test_features_only_returns_the_pyramid(config, strides, condensed, randomise, difference):
    whole = randomise(CondenseNetV2(**config, condensed=condensed))
    model = CondenseNetV2(**config, condensed=condensed, features_only=True)
    backbone = {name: value for name, value in whole.state_dict().items() if name in model.state_dict()}
    with_state(model, backbone)
    whole.eval()
    seen = []
    for name, layer in whole.features.named_children():
        if name.startswith("denseblock") or name == "relu_last":
            layer.register_forward_post_hook(lambda _, inputs, output: seen.append(output))
    x = paddle.randn([2, 3, 64, 96])
    answer(whole, x)
    pyramid = answer(model, x)

    assert model.feature_strides == strides
    assert [level.shape[1] for level in pyramid] == model.feature_channels
    assert [level.shape[2:] for level in pyramid] == [[64 // stride, 96 // stride] for stride in strides]
    for found, expected in zip(pyramid, [*seen[:-2], seen[-1]]):
        assert difference(found, expected) == 0
    left = set(whole.state_dict()) - set(model.state_dict())
    assert left == {name for name in whole.state_dict() if name.startswith(("features.se_last.", "fc.", "classifier."))}


@pytest.mark.parametrize("stages, expected", [([1, 1, 1], 1), ([1] * 4, 1), ([1] * 5, 2)])
def test_the_first_convolution_halves_imagenet_pictures_only(stages, expected):
    config = {**SMALL, "stages": stages, "growth": [8] * len(stages)}
    assert CondenseNetV2(**config, features_only=True).feature_strides[0] == expected
    assert CondenseNetV2(**config, init_stride=4, features_only=True).feature_strides[0] == 4


def test_activations_and_gates_begin_at_their_blocks(tiny):
    model = CondenseNetV2(**tiny)
    kinds = [type(layer.activation).__name__ for layer in model.sublayers() if isinstance(layer, CondenseSFR)]
    assert kinds == ["ReLU"] * 2 + ["HS"] * 4
    assert [bool(block[0].se) for name, block in model.features.named_children() if "block" in name] == [False] * 2 + [
        True
    ]


# The two frameworks' habits


@FORMS
def test_names_are_those_of_the_original_checkpoints(condensed, tiny, tiny_state):
    state = tiny_state("converted.pth" if condensed else "init.pth")
    model = CondenseNetV2(**tiny, condensed=condensed)
    assert set(model.state_dict()) == set(state)
    assert all(tuple(tensor.shape) == state[name].shape for name, tensor in model.state_dict().items())


@FORMS
@pytest.mark.parametrize("features_only", [False, True], ids=["logits", "features"])
def test_static_graphs_answer_the_same(condensed, features_only, tmp_path, randomise, difference):
    model = randomise(CondenseNetV2(**SMALL, condensed=condensed, features_only=features_only))
    model.eval()
    batches = [paddle.randn([2, 3, 32, 32]), paddle.randn([3, 3, 40, 64])]
    expected = [answer(model, x) for x in batches]
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32", "x")]
    static = paddle.jit.to_static(copy.deepcopy(model), input_spec=spec, full_graph=True)
    paddle.jit.save(static, str(tmp_path / "net"))
    loaded = paddle.jit.load(str(tmp_path / "net"))
    loaded.eval()
    for run in (static, loaded):
        for x, wanted in zip(batches, expected):
            found = answer(run, x)
            for one, other in zip(found, wanted) if features_only else [(found, wanted)]:
                assert difference(one, other) < 1e-6


@EVERY_VARIANT
@FORMS
def test_backward_reaches_every_parameter(config, condensed, randomise):
    model = randomise(CondenseNetV2(**config, condensed=condensed))
    model.train()
    model(paddle.randn([4, config.get("in_channels", 3), 32, 32])).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            assert parameter.grad is not None and (parameter.grad != 0).any(), name
            assert paddle.isfinite(parameter.grad).all(), name


@FORMS
def test_a_deep_copy_is_independent(condensed, randomise, difference):
    model = randomise(CondenseNetV2(**SMALL, condensed=condensed))
    model.eval()
    x = paddle.randn([2, 3, 32, 32])
    before = answer(model, x)
    twin = copy.deepcopy(model)
    assert difference(answer(twin, x), before) == 0
    assert twin.config == model.config and twin.arch == model.arch
    randomise(twin, seed=5)
    assert difference(answer(model, x), before) == 0
    assert difference(answer(twin, x), before) > 0.01


@FORMS
def test_weights_start_as_in_the_original(condensed):
    """Convolutions N(0, sqrt(2 / (k*k*out))), batch normalisation 1 and 0, linear layers U(-b, b)."""
    model = cdnv2_a(condensed=condensed)
    for name, layer in model.named_sublayers():
        if isinstance(layer, paddle.nn.Conv2D):
            outputs, _, height, width = layer.weight.shape
            scaled = layer.weight.numpy() / np.sqrt(2 / (height * width * outputs))
            assert layer.bias is None
            assert scaled.std() == pytest.approx(1, abs=5 / np.sqrt(2 * scaled.size)), name
            assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size), name
        elif isinstance(layer, paddle.nn.BatchNorm2D):
            values = [layer.weight, layer.bias, layer._mean, layer._variance]
            assert [np.unique(value.numpy()).tolist() for value in values] == [[1], [0], [0], [1]], name
        elif isinstance(layer, paddle.nn.Linear):
            bound = layer.weight.shape[0] ** -0.5
            assert 0.98 * bound < np.abs(layer.weight.numpy()).max() <= bound, name
            assert layer.bias is None or 0.9 * bound < np.abs(layer.bias.numpy()).max() <= bound, name
        elif isinstance(layer, (LGC, SFR)):
            assert layer.density == 1 and layer.stage == 0 and layer._count.item() == 0


@EVERY_VARIANT
@FORMS
def test_the_config_rebuilds_the_network(config, condensed):
    model = CondenseNetV2(**config, condensed=condensed)
    again = CondenseNetV2(**model.config)
    assert again.config == model.config
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (model, again)]
    assert shapes[0] == shapes[1]
    assert all(model.config[key] == value for key, value in config.items())
    kinds = (CondenseLGC, CondenseSFR) if condensed else (LGC, SFR)
    assert sum(isinstance(layer, kinds) for layer in model.sublayers()) == 2 * sum(config["stages"])


# Wrong use


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages": [1, 2]}, r"stages \[1, 2\] and growth"),
        ({"growth": [8, 8, 16, 32]}, "must have the same length"),
        ({"stages": [], "growth": []}, "stages"),
        ({"growth": [6, 8, 16]}, "6"),
        ({"group_1x1": 5}, "5"),
        ({"group_3x3": 5}, "5"),
        ({"group_3x3": 8, "growth": [12, 8, 16]}, "12"),
        ({"group_trans": 5}, "5"),
        ({"condense_factor": 3}, "3"),
        ({"trans_factor": 3}, "3"),
    ],
    ids=str,
)
@FORMS
def test_numbers_that_do_not_fit_are_refused_at_once(change, said, condensed):
    with pytest.raises(ValueError, match=said) as caught:
        CondenseNetV2(**{**SMALL, **change}, condensed=condensed)
    assert "\n" not in str(caught.value).strip()
