"""Recognising a CondenseNet V2 from its tensors alone."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_dense import create_model
from paddle_dense.errors import WeightsError
from paddle_dense.layers import LGC, SFR
from paddle_dense.models import CondenseNetV2
from paddle_dense.models.recognise import recognise
from tests.helpers import V2, V2_VARIANTS, arrays

FORMS = pytest.mark.parametrize("condensed", [True, False], ids=["condensed", "trained"])


@pytest.fixture
def state(randomise):
    """``state(config)``: what a file of a trained network with these numbers holds."""
    return lambda **config: arrays(randomise(CondenseNetV2(**config)))


# What the tensors show


def test_names_do_not_matter_where_the_numbers_differ(state):
    """Nearly cdnv2_a is not cdnv2_a."""
    config = {"stages": [1, 1, 4, 6, 8], "growth": [8, 8, 16, 32, 64], "fc_channel": 829}
    assert recognise(state(**config)).arch == "CondenseNetV2"


def test_what_no_tensor_shows_is_said(state):
    warnings = recognise(state(**V2)).warnings
    assert len(warnings) == 2
    assert any("HS_start_block=2 is assumed" in warning for warning in warnings)
    assert any("init_stride=1 is assumed" in warning for warning in warnings)
    assert all("--config" in warning for warning in warnings)


# Masks


def test_masks_that_are_still_all_ones_leave_the_groups_to_guess():
    config = {**V2, "group_3x3": 8}
    found = recognise(arrays(CondenseNetV2(**config, condensed=False)))
    assert found.config["group_1x1"] == found.config["group_trans"] == 8
    assert found.config["condensed"] is False
    for key in ("group_1x1", "group_trans"):
        assert any(f"{key}=8 is assumed" in warning for warning in found.warnings)


def test_the_initial_weights_of_a_preset_are_known_by_name():
    found = recognise(arrays(create_model("cdnv2_a", condensed=False)))
    assert found.arch == "cdnv2_a"
    assert found.config["condensed"] is False
    assert found.config["group_1x1"] == found.config["group_trans"] == 8


@pytest.mark.parametrize("stage", [1, 2])
def test_unfinished_masks_show_the_groups_but_not_the_factor(stage):
    model = CondenseNetV2(**{**V2, "group_3x3": 8}, condensed=False)
    for layer in model.sublayers():
        if isinstance(layer, (LGC, SFR)):
            layer.set_progress(stage / 6)
    found = recognise(arrays(model))
    assert found.config["group_1x1"] == found.config["group_trans"] == 4
    assert found.config["condense_factor"] is None
    assert found.config["trans_factor"] is None
    assert any("condense_factor" in warning for warning in found.warnings)
    assert any("trans_factor" in warning for warning in found.warnings)


def test_groups_that_happen_to_agree_are_still_told_apart(state):
    """Of six groups, every second may keep the same in one layer and every third in another: it takes both to see."""
    tensors = state(**{**V2, **V2_VARIANTS["six groups"]}, condensed=False)
    layers = [name for name in tensors if name.endswith("conv_1._mask")]
    for number, name in enumerate(layers):
        distinct = (2, 3)[number % 2]
        inputs = tensors[name].shape[1]
        keep = np.zeros((distinct, inputs), "f4")
        for group in range(distinct):
            keep[group, group * (inputs // 6) : (group + 1) * (inputs // 6)] = 1
        tensors[name] = np.tile(keep, (len(tensors[name]) // distinct, 1)).reshape(tensors[name].shape)
    assert recognise(tensors).config["group_1x1"] == 6


def test_half_of_the_connections_left_is_not_mistaken_for_a_factor_of_two():
    """Stage 2 of 4 leaves 1/2; only the counter tells it from a finished C = 2."""
    model = CondenseNetV2(**V2, condensed=False)
    for layer in model.sublayers():
        if isinstance(layer, (LGC, SFR)):
            layer.set_progress(0.34)
            assert layer.density == 0.5
            assert layer.stage == 2
    assert recognise(arrays(model)).config["condense_factor"] is None


def test_averaged_masks_show_what_the_plain_ones_show(tiny, tiny_state):
    plain, averaged = recognise(tiny_state("trained_unconverted.pth.tar")), recognise(tiny_state("ema.pth.tar"))
    assert averaged.config == plain.config
    assert averaged.config == {**averaged.config, **tiny, "condensed": False, "HS_start_block": 2}


def test_masks_that_were_changing_are_refused(state):
    tensors = state(**V2, condensed=False)
    name = "features.denseblock_2.denselayer_1.sfr"
    tensors[f"{name}._mask"] = tensors[f"{name}._mask"] * 0.7
    with pytest.raises(WeightsError, match=f"{name}._mask"):
        recognise(tensors)


# What the caller knows better


def test_overrides_settle_what_is_guessed(state):
    found = recognise(state(**V2), overrides={"HS_start_block": 0, "init_stride": 2})
    assert found.warnings == ()
    assert found.config["HS_start_block"] == 0
    assert found.config["init_stride"] == 2
    assert found.build().config["HS_start_block"] == 0


def test_overrides_are_taken_before_a_presets_numbers(state):
    found = recognise(arrays(create_model("cdnv2_a")), overrides={"HS_start_block": 1})
    assert found.config["HS_start_block"] == 1


def test_arch_names_the_preset():
    tensors = arrays(create_model("cdnv2_b", num_classes=3))
    found = recognise(tensors, arch="cdnv2_b")
    assert found.arch == "cdnv2_b"
    assert found.warnings == ()
    assert found.config["num_classes"] == 3


def test_arch_with_other_numbers_is_contradicted(state):
    with pytest.raises(WeightsError) as caught:
        recognise(state(**V2), arch="cdnv2_a")
    assert "cdnv2_a" in str(caught.value)
    assert "stages" in str(caught.value)


def test_unknown_arch_and_overrides_are_the_callers_mistake(state):
    tensors = state(**V2)
    with pytest.raises(ValueError, match="unknown model 'cdnv2_z'"):
        recognise(tensors, arch="cdnv2_z")
    with pytest.raises(ValueError, match=r"no argument 'hs_start_block'.*HS_start_block"):
        recognise(tensors, overrides={"hs_start_block": 1})


# Files of something else


def test_another_network_lists_what_is_known():
    with pytest.raises(WeightsError) as caught:
        recognise({"layer1.0.conv1.weight": np.zeros((4, 4, 3, 3), "f4"), "fc.weight": np.zeros((4, 4), "f4")})
    assert "CondenseNetV2" in str(caught.value)
    assert "layer1.0.conv1.weight" in str(caught.value)


def test_no_tensors_are_no_network():
    with pytest.raises(WeightsError, match="none of the known networks"):
        recognise({})


@pytest.mark.parametrize(
    "name",
    [
        "features.init_conv.weight",
        "features.norm_last.weight",
        "features.se_last.fc.0.weight",
        "fc.bias",
        "features.denseblock_1.denselayer_1.conv_1.conv.weight",
        "features.denseblock_1.denselayer_1.conv_1.index",
        "features.denseblock_1.denselayer_1.conv_2.norm.weight",
    ],
)
def test_a_missing_tensor_is_named(name, state):
    tensors = state(**V2)
    del tensors[name]
    with pytest.raises(WeightsError) as caught:
        recognise(tensors)
    assert name in str(caught.value)
    assert "missing" in str(caught.value)
    assert "\n" not in str(caught.value)


NONSENSE = {
    "a number": np.float32(3),
    "nothing": np.zeros((0,), "f4"),
    "one": np.ones((1,), "f4"),
    "a vector": np.ones(17, "f4"),
    "no rows": np.zeros((0, 4, 1, 1), "f4"),
    "no columns": np.zeros((8, 0, 1, 1), "f4"),
    "five dimensions": np.ones((2, 3, 2, 1, 1), "f4"),
    "not finite": np.full((8, 4, 1, 1), np.nan, "f4"),
}


@pytest.mark.parametrize("nonsense", list(NONSENSE.values()), ids=list(NONSENSE))
@FORMS
@pytest.mark.filterwarnings("error")
def test_nonsense_in_any_tensor_ends_in_a_weights_error_or_nothing(nonsense, condensed, state):
    """Whether the tensor matters or not: no traceback of another kind, no warning from numpy."""
    tensors = state(**V2, condensed=condensed)
    refused = []
    for name in tensors:
        try:
            recognise({**tensors, name: nonsense})
        except WeightsError as error:
            refused.append(name)
            assert "\n" not in str(error)
    assert refused
