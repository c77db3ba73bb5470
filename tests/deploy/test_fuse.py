"""Fusing: every family, every rule, equal to the network it comes from, which it leaves alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec

from paddle_dense.deploy import fusing_rules
from paddle_dense.deploy.fused_layers import (
    DepthwiseSums,
    GatheredConvolution,
    GatheredProduct,
    PartedStage,
    PoolingProduct,
    SpreadConvolution,
    affine,
    dense_lgc,
    fold_norm,
    fused_sfr,
    merged_groups,
)
from paddle_dense.deploy.fusing import RUNTIMES, fuse
from paddle_dense.layers import CondenseLGC, CondenseSFR, RoutedCondConv2D
from paddle_dense.models import CondenseNet, CondenseNetV2, CSPDenseNet, CSPNet, DenseNet, EfficientNetCondConv
from paddle_dense.models.cspnet import CrossStage
from paddle_dense.surgery import rewrite
from paddle_dense.zoo import create_model, list_models
from tests.helpers import amplifying, answers, arrays, random_images

# What float32 leaves; a rule that is wrong anywhere is wrong by a hundred times as much.
ROUNDING = 3e-6

V2 = {"stages": [2, 2, 2], "growth": [8, 16, 32], "HS_start_block": 1, "SE_start_block": 2, "fc_channel": 64}
V2_GROUPS = {"group_1x1": 4, "group_3x3": 4, "group_trans": 4, "num_classes": 10}
DENSE = {"growth_rate": 12, "block_config": [2, 2, 2], "num_init_features": 16, "drop_rate": 0.1, "num_classes": 10}
CSP = {"depths": [1, 2], "channels": [16, 32], "bottle_ratio": [0.5, 0.5], "stem_channels": 16, "num_classes": 10}
NETWORKS = {
    "V2": lambda **more: CondenseNetV2(**{**V2, **V2_GROUPS, **more}),
    "V2, C below G": lambda **more: CondenseNetV2(
        **{**V2, **V2_GROUPS, "condense_factor": 2, "trans_factor": 2, **more}
    ),
    "V2, G below C": lambda **more: CondenseNetV2(
        **{**V2, **V2_GROUPS, "condense_factor": 8, "trans_factor": 8, **more}
    ),
    "CondenseNet": lambda **more: CondenseNet(
        **{"stages": [3, 3, 3], "growth": [8, 16, 32], "num_classes": 10, **more}
    ),
    "CondenseNet, 8 groups": lambda **more: CondenseNet(
        **{"stages": [2, 3], "growth": [16, 32], "group_1x1": 8, "group_3x3": 8, "condense_factor": 4, **more}
    ),
    "DenseNet": lambda **more: DenseNet(**{**DENSE, **more}),
    "CIFAR DenseNet-BC": lambda **more: DenseNet(**{**DENSE, "small_inputs": True, **more}),
    "CIFAR DenseNet": lambda **more: DenseNet(**{**DENSE, "small_inputs": True, "bn_size": 0, **more}),
    "CSP stand": lambda **more: CSPDenseNet(**{**DENSE, "mode": "stand", **more}),
    "CSP fusionfirst": lambda **more: CSPDenseNet(**{**DENSE, "mode": "fusionfirst", **more}),
    "CSP fusionlast": lambda **more: CSPDenseNet(**{**DENSE, "mode": "fusionlast", **more}),
    "CSPResNeXt": lambda **more: CSPNet("resnet", expand_ratio=[2, 2], groups=4, **{**CSP, **more}),
    "CSPDarkNet": lambda **more: CSPNet("darknet", expand_ratio=[1, 1], **{**CSP, **more}),
    "CondConv": lambda **more: EfficientNetCondConv(
        **{"channel_multiplier": 0.25, "depth_multiplier": 0.5, "num_classes": 10, "drop_rate": 0.1, **more}
    ),
    "CondConv, SAME": lambda **more: EfficientNetCondConv(
        **{"channel_multiplier": 0.25, "depth_multiplier": 0.5, "same_padding": True, "bn_eps": 1e-3, **more}
    ),
}
EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)
EVERY_RUNTIME = pytest.mark.parametrize("runtime", RUNTIMES)


@pytest.fixture
def network(randomise):
    """``network("V2")``: a small network in evaluation mode with BN statistics, indices and weights that matter."""

    def build(name, **more):
        model = randomise(NETWORKS[name](**more))
        model.eval()
        return model

    return build


def kinds(model):
    return {type(layer) for layer in model.sublayers()}


# Networks


@EVERY_RUNTIME
@EVERY_NETWORK
def test_the_outputs_are_the_same_and_the_model_is_left_alone(network, difference, name, runtime):
    model = network(name)
    before, trainable = arrays(model), [not parameter.stop_gradient for parameter in model.parameters()]
    # Neither the batch nor the size is the one that `fuse` itself looks at; sides can be odd and differ.
    inputs = [random_images(1, 3, 64, 64), random_images(3, 3, 77, 51)]
    expected = [answers(model, x) for x in inputs]
    fused = fuse(model, runtime)
    for x, y in zip(inputs, expected):
        assert difference(answers(fused, x), y) < ROUNDING
        assert answers(model, x).tobytes() == y.tobytes()
    after = arrays(model)
    assert list(after) == list(before)
    assert all(after[key].tobytes() == value.tobytes() for key, value in before.items())
    assert [not parameter.stop_gradient for parameter in model.parameters()] == trainable


@EVERY_RUNTIME
@pytest.mark.parametrize("name", ["V2", "CondenseNet", "DenseNet", "CSP stand", "CSPResNeXt", "CondConv"])
def test_without_a_head(network, difference, name, runtime):
    x = random_images(2, 3, 96, 64)
    pyramid, features = network(name, features_only=True), network(name, num_classes=0)
    assert difference(answers(fuse(pyramid, runtime), x), answers(pyramid, x)) < ROUNDING
    assert difference(answers(fuse(features, runtime), x), answers(features, x)) < ROUNDING


@EVERY_RUNTIME
def test_other_images_than_three_channels(network, difference, runtime):
    model, x = network("V2", in_channels=1), random_images(2, 1, 32, 32)
    assert difference(answers(fuse(model, runtime), x), answers(model, x)) < ROUNDING


@EVERY_RUNTIME
@pytest.mark.parametrize("name", ["V2", "V2, C below G", "DenseNet", "CondConv"])
def test_in_double_precision_the_difference_is_nothing(network, difference, name, runtime):
    """What is left in single precision is rounding."""
    single = network(name)
    paddle.set_default_dtype("float64")
    try:
        model = NETWORKS[name]()
        for tensor, value in zip(model.state_dict().values(), arrays(single).values()):
            tensor.set_value(paddle.to_tensor(value).astype(tensor.dtype))
        model.eval()
        x = random_images(2, 3, 64, 64, dtype="float64")
        found = answers(fuse(model, runtime), x)
        assert found.dtype == np.float64
        assert difference(found, answers(model, x)) < 1e-12
    finally:
        paddle.set_default_dtype("float32")


@EVERY_RUNTIME
@pytest.mark.filterwarnings("ignore:When training, we now always track:UserWarning")
def test_it_is_for_inference_only(network, runtime):
    fused = fuse(network("V2"), runtime)
    assert all(parameter.stop_gradient for parameter in fused.parameters())
    x = random_images(2, 3, 32, 32)
    expected, before = answers(fused, x), arrays(fused)
    fused.train()
    assert fused(paddle.to_tensor(x)).numpy().tobytes() == expected.tobytes()
    assert all(value.tobytes() == before[name].tobytes() for name, value in arrays(fused).items())


@EVERY_RUNTIME
@pytest.mark.parametrize("name", ["V2, C below G", "DenseNet", "CondConv"])
def test_it_becomes_a_static_graph(network, difference, name, runtime, tmp_path):
    """For any batch and size, saved and loaded again."""
    model = network(name)
    fused = fuse(model, runtime)
    spec = InputSpec([None, 3, None, None], "float32")
    paddle.jit.save(paddle.jit.to_static(fused, input_spec=[spec], full_graph=True), str(tmp_path / "fused"))
    loaded = paddle.jit.load(str(tmp_path / "fused"))
    for x in (random_images(1, 3, 64, 64), random_images(3, 3, 45, 70)):
        assert difference(answers(loaded, x), answers(model, x)) < ROUNDING


def test_a_static_graph_of_one_size(network, difference):
    model, x = network("V2"), random_images(2, 3, 64, 64)
    static = paddle.jit.to_static(fuse(model), input_spec=[InputSpec([2, 3, 64, 64])], full_graph=True)
    assert difference(answers(static, x), answers(model, x)) < ROUNDING


@EVERY_RUNTIME
@pytest.mark.parametrize("name", ["V2", "DenseNet", "CSPResNeXt", "CondConv"])
def test_scales_can_be_negative_zero_or_tiny(network, difference, name, runtime):
    model = network(name)
    for norm in (layer for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D)):
        scale = norm.weight.numpy()
        scale[::4], scale[1::4], scale[2::8] = 0.0, -scale[1::4], 1e-30
        norm.weight.set_value(scale)
    x = random_images(2, 3, 64, 64)
    assert difference(answers(fuse(model, runtime), x), answers(model, x)) < ROUNDING


@pytest.mark.slow
@EVERY_RUNTIME
@pytest.mark.parametrize("name", list_models())
def test_every_preset(randomise, difference, name, runtime):
    model = randomise(create_model(name))
    model.eval()
    x = random_images(1, 3, model.input_size, model.input_size)
    assert difference(answers(fuse(model, runtime), x), answers(model, x)) < ROUNDING


# What is refused


def test_training_mode_is_refused(network):
    model = network("V2")
    model.features.norm_last.train()
    with pytest.raises(ValueError, match=r"^this CondenseNetV2 is in training mode: call model.eval\(\) first$"):
        fuse(model)


def test_the_trained_form_is_refused(network):
    with pytest.raises(
        ValueError, match=r"^this CondenseNet is in the trained form: fuse paddle_dense.condense\(model\)$"
    ):
        fuse(network("CondenseNet", condensed=False))


def test_a_fused_network_is_refused(network):
    with pytest.raises(ValueError, match=r"^this DenseNet is fused already: fuse the network that it was made from$"):
        fuse(fuse(network("DenseNet")))


def test_other_networks_and_runtimes_are_refused(network):
    with pytest.raises(ValueError, match=r"^Linear is no network of this package: fuse one that create_model or"):
        fuse(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^unknown runtime 'tensorrt': choose one of paddle, compiled, openvino$"):
        fuse(network("V2"), "tensorrt")


def test_the_old_name_of_a_runtime_is_accepted(network):
    model = network("V2")
    assert kinds(fuse(model, "onnx")) == kinds(fuse(model, "compiled")) != kinds(fuse(model))


def test_a_rule_that_is_not_exact_is_caught(network, monkeypatch):
    """The proof looks at the outputs, whatever the rules say."""

    def inexact(sfr):
        fused = fused_sfr(sfr)
        fused[2].weight.set_value(fused[2].weight * 1.001)
        return fused

    monkeypatch.setitem(fusing_rules.RULES["paddle"], CondenseSFR, inexact)
    with pytest.raises(RuntimeError, match=r"^the fused CondenseNetV2 differs by \d\.\de-0\d of the outputs' scale"):
        fuse(network("V2"))


@EVERY_RUNTIME
def test_amplified_rounding_is_judged_in_float64(network, difference, runtime):
    model, x = amplifying(network("V2")), random_images(2, 3, 64, 64)
    with pytest.warns(UserWarning, match=r"^this network amplifies rounding: in float32 the outputs differ by"):
        fused = fuse(model, runtime)
    assert 1e-5 < difference(answers(fused, x), answers(model, x)) < 1e-2


@EVERY_RUNTIME
def test_a_mistake_smaller_than_amplified_rounding_is_caught(network, monkeypatch, runtime):
    def inexact(sfr):
        fused = fused_sfr(sfr)
        fused[2].weight.set_value(fused[2].weight * (1 + 2e-4))
        return fused

    monkeypatch.setitem(fusing_rules.RULES[runtime], CondenseSFR, inexact)
    with pytest.raises(RuntimeError, match=r"^the fused CondenseNetV2 differs by"):
        fuse(amplifying(network("V2")), runtime)


def test_weights_that_are_no_numbers_are_caught(network):
    model = network("V2")
    model.fc.bias.set_value(model.fc.bias * float("nan"))
    with pytest.raises(RuntimeError, match=r"differs by nan .*: check the weights for extreme or undefined numbers"):
        fuse(model)


# Rules


def test_what_becomes_of_condensenet_v2(network):
    for_paddle, *for_engines = (kinds(fuse(network("V2"), runtime)) for runtime in RUNTIMES)
    assert not {CondenseLGC, CondenseSFR} & for_paddle.union(*for_engines)
    assert {GatheredProduct, SpreadConvolution} <= for_paddle
    assert not {GatheredProduct, SpreadConvolution} & set().union(*for_engines)


@pytest.mark.parametrize("name", ["DenseNet", "CIFAR DenseNet", "CSP stand"])
def test_what_becomes_of_narrow_convolutions_in_dense_layers(network, name):
    """Those with fewer outputs than inputs are spread by Paddle's own kernels, and by no engine."""
    for_paddle, *for_engines = (kinds(fuse(network(name), runtime)) for runtime in RUNTIMES)
    assert SpreadConvolution in for_paddle
    assert SpreadConvolution not in set().union(*for_engines)


@pytest.mark.parametrize("runtime", ["compiled", "openvino"])
def test_dense_or_gathered_by_width(network, monkeypatch, runtime):
    """Up to a width the dense form of an LGC is the faster one for engines."""
    model = network("CondenseNet", stages=[8, 6], growth=[8, 16])
    for lgc in (layer for layer in model.sublayers() if isinstance(layer, CondenseLGC)):
        one_bn_for_each_source(lgc)
    monkeypatch.setitem(fusing_rules.DENSE_UP_TO, runtime, 128)
    gathered = [layer for layer in fuse(model, runtime).sublayers() if isinstance(layer, GatheredConvolution)]
    assert {(layer.index.size, layer.channels_last) for layer in gathered} == {
        (144, runtime == "openvino"),
        (160, runtime == "openvino"),
    }
    monkeypatch.setitem(fusing_rules.DENSE_UP_TO, runtime, 1000)
    assert GatheredConvolution not in kinds(fuse(model, runtime))


@pytest.mark.parametrize("name", ["DenseNet", "CSPResNeXt", "CSPDarkNet", "CondConv"])
def test_no_bn_is_left_after_a_convolution(network, name):
    """For engines. Counted: as many BNs are gone as convolutions have got a bias."""
    model = network(name)
    fused = fuse(model, "compiled")

    def count(net, wanted):
        return sum(bool(wanted(layer)) for layer in net.sublayers())

    def biased(layer):
        return isinstance(layer, (nn.Conv2D, RoutedCondConv2D)) and layer.bias is not None

    def is_norm(layer):
        return isinstance(layer, nn.BatchNorm2D)

    # Of the two convolutions that a stage of a CSPNet has in parts, one gets two biases.
    stages = count(fused, lambda layer: isinstance(layer, PartedStage))
    assert stages == count(model, lambda layer: isinstance(layer, CrossStage))
    folded = count(fused, biased) - count(model, biased) - stages
    assert folded == count(model, is_norm) - count(fused, is_norm) > 0
    # DenseNet's other BNs come before activations and convolutions.
    assert count(fused, is_norm) == (6 + 2 + 1 if name == "DenseNet" else 0)


@EVERY_RUNTIME
@pytest.mark.parametrize("name", ["DenseNet", "CSP stand"])
def test_transitions_pool_first(network, name, runtime):
    features = fuse(network(name), runtime).features
    assert [part for part, _ in features.transition1.named_children()] == ["norm", "relu", "pool", "conv"]


@EVERY_RUNTIME
def test_dropout_is_left_out(network, runtime):
    assert nn.Dropout not in kinds(fuse(network("DenseNet"), runtime)) | kinds(fuse(network("CondConv"), runtime))


def test_a_layer_in_two_places_stays_one(network):
    model = network("V2")
    model.features.denseblock_1.again = model.features.denseblock_1.denselayer_1
    fused = rewrite(model, fusing_rules.RULES["paddle"])
    block = fused.features.denseblock_1
    assert block.again is block.denselayer_1
    assert isinstance(block.again.conv_1, GatheredProduct)


# Layers


def one_bn_for_each_source(lgc):
    """As condensing leaves it: what is gathered twice has the same statistics twice."""
    first = np.unique(lgc.index.numpy(), return_index=True)
    position = dict(zip(*(part.tolist() for part in first)))
    copies = [position[channel] for channel in lgc.index.numpy().tolist()]
    for tensor in (lgc.norm.weight, lgc.norm.bias, lgc.norm._mean, lgc.norm._variance):
        tensor.set_value(tensor.numpy()[copies])


def random_lgc(randomise, inputs=24, outputs=16, groups=4, source=16, activation="ReLU"):
    lgc = randomise(CondenseLGC(inputs, outputs, groups=groups, activation=activation, source_channels=source))
    lgc.eval()
    return lgc


def random_norm(randomise, channels):
    norm = randomise(nn.BatchNorm2D(channels))
    norm.eval()
    return norm


# channels gathered, out, groups, in: each gathered once, twice, some never, by some groups twice
LGCS = [(16, 8, 4, 16), (24, 12, 4, 12), (12, 12, 6, 30), (24, 6, 3, 7), (8, 8, 1, 8)]


@pytest.mark.parametrize("activation", ["ReLU", "HS"])
@pytest.mark.parametrize(("inputs", "outputs", "groups", "source"), LGCS)
@pytest.mark.parametrize(
    "form", [GatheredProduct, GatheredConvolution, partial(GatheredConvolution, channels_last=True), dense_lgc]
)
def test_lgc_in_every_form(randomise, difference, form, inputs, outputs, groups, source, activation):
    lgc = random_lgc(randomise, inputs, outputs, groups, source, activation)
    one_bn_for_each_source(lgc)
    norm, x = random_norm(randomise, outputs), random_images(2, source, 5, 7)
    expected = answers(nn.Sequential(lgc, norm), x)
    assert difference(answers(form(lgc, norm), x), expected) < 1e-6
    assert difference(answers(form(lgc), x), answers(lgc, x)) < 1e-6


def test_lgc_with_several_bns_for_one_channel_is_not_dense(randomise, difference):
    """Statistics of the copies differ once a condensed network has been trained further."""
    lgc = random_lgc(randomise)
    assert dense_lgc(lgc) is None
    x = random_images(2, 16, 5, 7)
    assert difference(answers(fusing_rules.lgc_for_engines(lgc, runtime="compiled"), x), answers(lgc, x)) < 1e-6


@pytest.mark.parametrize("activation", ["ReLU", "HS"])
@pytest.mark.parametrize(("inputs", "outputs", "groups", "rows"), [(8, 16, 4, 16), (8, 16, 4, 32), (12, 18, 6, 6)])
def test_sfr_is_one_dense_convolution(randomise, difference, inputs, outputs, groups, rows, activation):
    sfr = randomise(CondenseSFR(inputs, outputs, groups=groups, activation=activation, rows=rows))
    sfr.eval()
    x = random_images(2, inputs, 5, 7)
    fused = fused_sfr(sfr)
    assert [list(parameter.shape) for parameter in fused[2].parameters()] == [[outputs, inputs, 1, 1]]
    assert difference(answers(fused, x), answers(sfr, x)) < 1e-6


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(8, 4, 1), (16, 4, 4), (24, 12, 6)])
@pytest.mark.parametrize(
    ("form", "stride", "size"),
    [
        *((SpreadConvolution, 1, size) for size in ((7, 5), (1, 1), (1, 4))),
        *((DepthwiseSums, stride, (7, 5)) for stride in (1, 2)),
    ],
)
def test_other_forms_of_grouped_convolutions(randomise, difference, inputs, outputs, groups, form, stride, size):
    conv = randomise(nn.Conv2D(inputs, outputs, 3, stride, padding=1, groups=groups, bias_attr=False))
    x = random_images(2, inputs, *size)
    assert difference(answers(form(conv), x), answers(conv, x)) < 1e-6


@pytest.mark.parametrize("merge", [1, 2, 3, 6])
def test_groups_made_one(randomise, difference, merge):
    weight = np.random.default_rng(0).standard_normal([12, 3, 3, 3]).astype("f4")
    merged = merged_groups(weight, 6, merge)
    assert merged.shape == (12, 3 * merge, 3, 3)
    x = paddle.to_tensor(random_images(2, 18, 5, 5))
    found = nn.functional.conv2d(x, paddle.to_tensor(merged), groups=6 // merge)
    assert difference(found, nn.functional.conv2d(x, paddle.to_tensor(weight), groups=6)) < 1e-6


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "lanes", "left"),
    [
        (32, 8, 8, 8, 1),  # eight outputs fill the lanes once, in one group
        (64, 16, 8, 8, 2),  # one group would multiply 64 x 16, of which half are zeros more than in two
        (64, 16, 8, 16, 1),  # two groups would take twice 16 lanes
        (48, 12, 6, 8, 2),  # 12 outputs take 16 lanes, twice 6 take 16 as well, at half the inputs
        (128, 64, 8, 8, 8),  # every group fills its lanes
        (128, 64, 8, 16, 4),
        (16, 7, 1, 8, 1),
    ],
)
def test_groups_are_merged_for_the_fewest_products(monkeypatch, inputs, outputs, groups, lanes, left):
    monkeypatch.setattr(fusing_rules, "LANES", lanes)
    conv = nn.Conv2D(inputs, outputs, 3, padding=1, groups=groups, bias_attr=False)
    assert groups // fusing_rules._merged(conv) == left


def test_merged_groups_are_one_convolution(monkeypatch):
    monkeypatch.setattr(fusing_rules, "LANES", 8)
    conv = fusing_rules.grouped_for_engines(nn.Conv2D(128, 32, 3, padding=1, groups=8, bias_attr=False))
    assert (conv._groups, conv._in_channels, conv._out_channels) == (4, 128, 32)


@pytest.mark.parametrize("outputs", [1, 2])
def test_groups_of_one_or_two_outputs_are_sums_of_channels(outputs):
    fused = fusing_rules.grouped_for_engines(nn.Conv2D(32, 8 * outputs, 3, padding=1, groups=8, bias_attr=False))
    assert [(conv._groups, conv._out_channels) for conv in fused.maps] == [(32, 32)] * outputs
    assert [(conv._groups, conv._out_channels) for conv in fused.sums] == [(1, 8 * outputs)] * outputs


@pytest.mark.parametrize("size", [(8, 6), (2, 2), (7, 6), (6, 5)])
@pytest.mark.parametrize("small", [0, 100_000])
def test_pooling_as_a_product(difference, monkeypatch, size, small):
    monkeypatch.setattr(PoolingProduct, "SMALL", small)
    x = random_images(2, 3, *size)
    assert difference(answers(PoolingProduct(), x), nn.functional.avg_pool2d(paddle.to_tensor(x), 2)) < 1e-7


@pytest.mark.parametrize("bias", [None, False])
@pytest.mark.parametrize("groups", [1, 8])
def test_bn_folds_into_the_convolution_before_it(randomise, difference, groups, bias):
    conv = randomise(nn.Conv2D(8, 16, 3, stride=2, padding=1, groups=groups, bias_attr=bias))
    norm, x = random_norm(randomise, 16), random_images(2, 8, 7, 7)
    expected = answers(nn.Sequential(conv, norm), x)
    assert difference(answers(fold_norm(conv, norm), x), expected) < 1e-6


def test_bn_folds_into_the_kernels_that_a_condconv_mixes(randomise, difference):
    conv, norm = randomise(RoutedCondConv2D(8, 16, 3, padding=1, groups=2)), random_norm(randomise, 16)
    x, routing = paddle.to_tensor(random_images(3, 8, 5, 5)), paddle.rand([3, 4])
    with paddle.no_grad():
        expected = norm(conv(x, routing))
        assert difference(fold_norm(conv, norm)(x, routing), expected) < 1e-6


def test_affine_is_a_bn_with_nothing_to_subtract(difference):
    scale, shift = np.array([2.0, 0.0, -1.0]), np.array([0.5, 3.0, 0.0])
    x = random_images(2, 3, 4, 4)
    norm = affine(scale, shift, paddle.to_tensor(x))
    expected = x * scale[:, None, None] + shift[:, None, None]
    assert difference(answers(norm, x), expected.astype("f4")) < 1e-7
