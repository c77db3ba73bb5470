"""Parameters and multiply-accumulates, against sums done by hand."""

from __future__ import annotations

import paddle
import pytest
from paddle import nn

from paddle_dense import cdnv2_a, condense, create_model, profile
from paddle_dense.layers import HS, LGC, SFR, CondenseLGC, CondenseSFR, SELayer
from paddle_dense.models import CondenseNetV2
from tests.helpers import V2, arrays

# layer, shape of the image, parameters, MACs as the papers count, MACs executed
BY_HAND = {
    "convolution": (nn.Conv2D(3, 8, 3, padding=1), (3, 10, 6), 3 * 8 * 9 + 8, 3 * 8 * 9 * 60, 3 * 8 * 9 * 60),
    "stride": (nn.Conv2D(3, 8, 3, stride=2, bias_attr=False), (3, 9, 9), 216, 216 * 16, 216 * 16),
    "groups": (nn.Conv2D(8, 8, 1, groups=4, bias_attr=False), (8, 5, 5), 16, 16 * 25, 16 * 25),
    "relu": (nn.ReLU(), (4, 5, 5), 0, 100, 0),
    "relu6": (nn.ReLU6(), (4, 5, 5), 0, 100, 0),
    "hard-swish": (HS(), (4, 5, 5), 0, 100, 0),
    "sigmoid": (nn.Sigmoid(), (4, 5, 5), 0, 200, 0),
    "average pool": (nn.AvgPool2D(2, 2), (4, 6, 6), 0, 4 * 9 * 4, 0),
    "oblong average pool": (nn.AvgPool2D((3, 1)), (4, 6, 6), 0, 4 * 2 * 6 * 3, 0),
    "global average pool": (nn.AdaptiveAvgPool2D(1), (4, 6, 6), 0, 4 * 36, 0),
    "batch normalisation": (nn.BatchNorm2D(4), (4, 6, 6), 8, 0, 0),
    "squeeze and excitation": (SELayer(8, 2), (8, 3, 3), 64, 72 + 32 + 4 + 32 + 16, 64),
    # Masked dense weights run in full; the papers count 1 / C of them, and the BN and ReLU before as their own.
    "LGC": (LGC(16, 8, groups=4), (16, 3, 3), 32 + 32, 9 * (32 + 16), 9 * 128),
    "LGC, C = 2": (LGC(16, 8, groups=4, condense_factor=2), (16, 3, 3), 32 + 64, 9 * (64 + 16), 9 * 128),
    "SFR": (SFR(8, 16, groups=4), (8, 3, 3), 16 + 32, 9 * (32 + 8), 9 * 128),
    "CondenseLGC": (CondenseLGC(16, 8, groups=4), (16, 3, 3), 32 + 32, 9 * (32 + 16), 9 * 32),
    # The grouped weight is all that the papers count; one dense 1x1 convolution runs.
    "CondenseSFR": (CondenseSFR(8, 16, groups=4), (8, 3, 3), 16 + 32, 9 * (32 + 8), 9 * 128),
}


@pytest.mark.parametrize(("layer", "shape", "params", "macs", "executed"), list(BY_HAND.values()), ids=list(BY_HAND))
def test_layers_by_hand(layer, shape, params, macs, executed):
    found = profile(nn.Sequential(layer), shape)
    assert (found.params, found.macs, found.executed_macs) == (params, macs, executed)


def test_linear_layers_by_hand():
    found = profile(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    assert (found.params, found.macs, found.executed_macs) == (65, 60, 60)


def test_a_layer_that_runs_twice_costs_twice_and_weighs_once():
    layer = nn.Conv2D(4, 4, 1, bias_attr=False)
    found = profile(nn.Sequential(layer, nn.ReLU(), layer), (4, 5, 5))
    assert found.params == 16
    assert found.macs == 2 * 16 * 25 + 100


@pytest.mark.parametrize(
    "change", [{}, {"trans_factor": 2}, {"trans_factor": 8}, {"group_1x1": 2, "group_3x3": 8}], ids=str
)
def test_both_forms_count_the_same(change, randomise):
    trained = CondenseNetV2(**{**V2, **change}, condensed=False)
    fresh = profile(trained, (3, 32, 32))
    condensed = profile(condense(randomise(trained)), (3, 32, 32))
    assert (fresh.params, fresh.macs) == (condensed.params, condensed.macs)
    assert fresh.executed_macs > condensed.executed_macs


def executed_by_hand(stages, growth, groups, fc, classes, size) -> int:
    """The convolutions and matrix products of a condensed network, written out; sfr as one dense convolution."""
    channels, size = 2 * growth[0], size // 2
    total = 3 * channels * 9 * size**2
    for block, (layers, k) in enumerate(zip(stages, growth)):
        for _ in range(layers):
            gathered = channels * (4 * k // groups)
            spatial = 4 * k * (k // groups) * 9
            scattered = k * channels
            total += size**2 * (gathered + spatial + scattered) + (2 * k * k if block >= 3 else 0)
            channels += k
        size //= 2
    return total + 2 * channels * (channels // 16) + channels * fc + fc * classes


def test_executed_macs_are_the_products_that_run():
    """cdnv2_a runs 1.41 times what its paper counts; the original, by its product with `index`, 4.6 times."""
    found = profile(cdnv2_a())
    by_hand = executed_by_hand([1, 1, 4, 6, 8], [8, 8, 16, 32, 64], 8, 828, 1000, 224)
    assert found.executed_macs == by_hand
    products_with_index = round(167e6)
    assert found.executed_macs < (found.macs + products_with_index) / 3


def test_rows_add_up_to_the_whole():
    found = profile(cdnv2_a(), (3, 64, 64))
    names = [name for name, _, _ in found.layers]
    assert len(set(names)) == len(names)
    assert "features.init_conv" in names
    assert "classifier" in names
    assert sum(params for _, params, _ in found.layers) == found.params
    assert sum(macs for _, _, macs in found.layers) == found.macs
    assert all(params or macs for _, params, macs in found.layers)


def test_the_image_decides_the_cost_but_not_the_size():
    model = create_model("cdnv2_a", in_channels=1, SE_start_block=5, features_only=True)
    small, large = (profile(model, (1, size, size)) for size in (64, 128))
    assert small.params == large.params
    assert large.macs == 4 * small.macs
    assert large.executed_macs == 4 * small.executed_macs


def test_parts_of_a_network_can_be_profiled():
    whole = profile(CondenseNetV2(**V2), (3, 32, 32))
    headless = profile(CondenseNetV2(**{**V2, "num_classes": 0}), (3, 32, 32))
    backbone = profile(CondenseNetV2(**V2, features_only=True), (3, 32, 32))
    assert whole.macs - headless.macs == 24 * 7
    assert whole.params - headless.params == 24 * 7 + 7
    assert backbone.params < headless.params
    assert backbone.macs < headless.macs


def test_the_summary_reads_as_a_sentence():
    assert str(profile(cdnv2_a())).startswith("2,038,444 parameters, 45.87 M MACs as the papers count, ")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_was(training, randomise):
    model = randomise(CondenseNetV2(**V2))
    model.train() if training else model.eval()
    frozen = model.features.norm_last
    frozen.eval()
    modes = [layer.training for layer in model.sublayers(include_self=True)]
    before = {name: value.copy() for name, value in arrays(model).items()}
    first, second = profile(model, (3, 32, 32)), profile(model, (3, 32, 32))
    assert first == second
    assert [layer.training for layer in model.sublayers(include_self=True)] == modes
    for name, value in arrays(model).items():
        assert (value == before[name]).all(), name
    assert not any(layer._forward_post_hooks for layer in model.sublayers(include_self=True))


def test_an_image_that_does_not_fit_leaves_no_trace():
    model = CondenseNetV2(**V2)
    model.train()
    with pytest.raises(Exception):  # noqa: B017  what Paddle raises is Paddle's choice
        profile(model, (4, 32, 32))
    assert model.training
    assert not any(layer._forward_post_hooks for layer in model.sublayers(include_self=True))
    assert paddle.is_grad_enabled()


def test_the_image_is_the_networks_own_unless_given():
    digits = CondenseNetV2(**V2, in_channels=1)
    assert profile(digits).macs == profile(digits, (1, digits.input_size, digits.input_size)).macs
