"""From the trained form to the condensed form: exact, and refused where it could not be exact."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense import condense, load_weights, save_weights
from paddle_dense.condensing import condense_state
from paddle_dense.errors import WeightsError
from paddle_dense.layers import LGC, SFR, CondenseLGC, CondenseSFR
from paddle_dense.layers.choices import binary_mask, learned_layers
from paddle_dense.layers.lgc import condense_lgc
from paddle_dense.layers.sfr import condense_sfr
from paddle_dense.models import CondenseNetV2
from tests.helpers import answers, arrays, loaded, part, random_images

# channels in, channels out, groups G, condensation factor C
LGCS = [(16, 8, 4, 4), (24, 12, 6, 6), (16, 8, 4, 2), (24, 8, 4, 8), (14, 12, 6, 7)]
SFRS = [(8, 16, 4, 4), (12, 24, 6, 6), (8, 16, 4, 2), (8, 24, 4, 8), (12, 14, 6, 7)]
EVERY_LAYER = pytest.mark.parametrize(
    ("kind", "size"),
    [*((LGC, size) for size in LGCS), *((SFR, size) for size in SFRS)],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
RULES = {LGC: condense_lgc, SFR: condense_sfr}


def tiny_rule(name: str) -> tuple:
    return (condense_sfr if name.endswith(".sfr") else condense_lgc), 4, 4


def trained(kind, inputs, outputs, groups, factor, randomise, **options):
    return randomise(kind(inputs, outputs, groups=groups, condense_factor=factor, **options))


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


# Arrays


def test_the_result_is_the_originals_bit_for_bit(tiny_state):
    """Indices, weights and statistics of all twelve learned layers, and everything else."""
    found = condense_state(tiny_state("trained_unconverted.pth.tar"), tiny_rule)
    assert_identical(found, tiny_state("converted.pth"))
    assert sum(name.endswith(".index") for name in found) == 12


@pytest.mark.parametrize("name", ["lgc", "sfr"])
def test_one_layer_is_the_originals_bit_for_bit(data, name):
    rule, file = (condense_lgc if name == "lgc" else condense_sfr), data / "layers_v2.npz"
    assert_identical(rule(part(file, f"{name}/state/"), 4, 4), part(file, f"{name}_condensed/state/"))


def condense_lgc_by_hand(layer: dict[str, np.ndarray], groups: int, factor: int) -> dict[str, np.ndarray]:
    """The specification's sentences about LGC as loops."""
    weight, mask = layer["conv.weight"], layer["_mask"]
    outputs, inputs = weight.shape[:2]
    found = {"conv.weight": np.zeros((outputs, inputs // factor, 1, 1), "f4"), "index": []}
    found.update({key: [] for key in layer if key.startswith("norm.")})
    for group in range(groups):
        place = 0
        for j in range(inputs):
            if mask[group, j, 0, 0] == 1:
                found["index"].append(j)
                for key in found:
                    if key.startswith("norm."):
                        found[key].append(layer[key][j])
                for k in range(outputs // groups):
                    found["conv.weight"][group * (outputs // groups) + k, place] = weight[group + k * groups, j]
                place += 1
    return {key: np.array(value) for key, value in found.items()}


def condense_sfr_by_hand(layer: dict[str, np.ndarray], groups: int, factor: int) -> dict[str, np.ndarray]:
    """The specification's sentences about SFR as loops."""
    weight, mask = layer["conv.weight"], layer["_mask"]
    outputs, inputs = weight.shape[:2]
    room = outputs // factor
    found = {key: value for key, value in layer.items() if key.startswith("norm.")}
    found["conv.weight"] = np.zeros((groups * room, inputs // groups, 1, 1), "f4")
    found["index"] = np.zeros((groups * room, outputs), "f4")
    used = [0] * groups
    for i in range(outputs):
        for group in range(groups):
            if mask[i, group, 0, 0] == 1 and used[group] < room:
                row = group * room + used[group]
                for k in range(inputs // groups):
                    found["conv.weight"][row, k] = weight[i, group + k * groups]
                found["index"][row, i] = 1
                used[group] += 1
    return found


@EVERY_LAYER
def test_layers_with_any_g_and_c_are_what_the_loops_say(kind, size, randomise):
    layer = arrays(trained(kind, *size, randomise))
    fast, by_hand = (condense_lgc, condense_lgc_by_hand) if kind is LGC else (condense_sfr, condense_sfr_by_hand)
    assert_identical(fast(layer, *size[2:]), by_hand(layer, *size[2:]))


def test_layers_are_found_by_their_masks(tiny_state):
    names = learned_layers(tiny_state("init.pth"))
    assert len(names) == 12
    assert names[0] == "features.denseblock_1.denselayer_1.conv_1"
    assert names[-1] == "features.denseblock_3.denselayer_2.sfr"
    assert learned_layers(tiny_state("converted.pth")) == []


# Models


@EVERY_LAYER
@pytest.mark.parametrize("activation", ["ReLU", "HS"])
def test_a_condensed_layer_answers_as_the_trained_one(kind, size, activation, randomise, difference):
    net = paddle.nn.Sequential(trained(kind, *size, randomise, activation=activation))
    x = random_images(2, size[0], 5, 4)
    condensed = condense(net)
    assert isinstance(condensed[0], CondenseLGC if kind is LGC else CondenseSFR)
    assert difference(answers(condensed, x), answers(net, x)) < 1e-6


def test_the_trained_oracle_keeps_its_logits(data, tiny, tiny_state, difference):
    oracle = np.load(data / "cdnv2_tiny_io.npz")
    model = loaded(CondenseNetV2(**tiny, condensed=False), tiny_state("trained_unconverted.pth.tar"))
    before, config = arrays(model), dict(model.config)

    condensed = condense(model)

    assert difference(answers(condensed, oracle["x_eval"]), answers(model, oracle["x_eval"])) < 1e-6
    assert difference(answers(condensed, oracle["x_eval"]), oracle["logits_converted"]) < 1e-6
    assert_identical(arrays(condensed), tiny_state("converted.pth"))
    assert condensed.config == {**config, "condensed": True}
    assert_identical(arrays(model), before)
    assert model.config == config
    assert isinstance(model.features.denseblock_1.denselayer_1.sfr, SFR)


def test_the_result_shares_nothing_with_the_model(tiny, randomise):
    model = randomise(CondenseNetV2(**tiny, condensed=False))
    condensed = condense(model)
    kept = arrays(condensed)
    randomise(model, seed=1)
    assert_identical(arrays(condensed), kept)


def test_the_result_can_be_rebuilt_from_its_config(tiny, randomise, difference):
    condensed = condense(randomise(CondenseNetV2(**tiny, condensed=False, condense_factor=2, trans_factor=8)))
    again = loaded(CondenseNetV2(**condensed.config), arrays(condensed))
    x = random_images(2, 3, 32, 32)
    assert difference(answers(again, x), answers(condensed, x)) < 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_the_result_is_in_the_mode_of_the_model(training, tiny, randomise):
    model = randomise(CondenseNetV2(**tiny, condensed=False))
    model.train() if training else model.eval()
    assert {layer.training for layer in condense(model).sublayers(include_self=True)} == {training}
    assert {layer.training for layer in model.sublayers(include_self=True)} == {training}


def test_an_averaged_model_condenses_as_if_its_masks_were_whole(data, tiny, tiny_state, difference):
    """The EMA's masks are 0.99997 and 0.00002: rounding them moves the logits by less than a thousandth."""
    oracle = np.load(data / "cdnv2_tiny_io.npz")
    model = loaded(CondenseNetV2(**tiny, condensed=False), tiny_state("ema.pth.tar"))
    masks = np.unique(model.features.denseblock_1.denselayer_1.sfr._mask.numpy())
    assert len(masks) == 2
    assert 0 < masks[0] < 1e-4
    assert 0.999 < masks[1] < 1
    condensed = condense(model)
    assert 0 < difference(answers(condensed, oracle["x_eval"]), answers(model, oracle["x_eval"])) < 1e-3
    found = condense_state(tiny_state("ema.pth.tar"), tiny_rule)
    assert_identical(arrays(condensed), found)


class UsersNetwork(paddle.nn.Layer):
    """Learned layers in every kind of container, and next to layers that stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = paddle.nn.Conv2D(3, 8, 3, padding=1)
        self.listed = paddle.nn.LayerList([LGC(8, 8, groups=4), paddle.nn.Sequential(SFR(8, 8, groups=4))])
        self.named = paddle.nn.LayerDict({"one": LGC(8, 16, groups=4, activation="HS")})
        self.last = SFR(16, 8, groups=2, condense_factor=4)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.listed:
            x = x + layer(x)
        return self.last(self.named["one"](x))


def test_a_users_own_network_condenses_wherever_its_layers_are(randomise, difference):
    net = randomise(UsersNetwork())
    x = random_images(2, 3, 9, 9)
    condensed = condense(net)
    layers = (condensed.listed[0], condensed.listed[1][0], condensed.named["one"], condensed.last)
    assert [type(layer) for layer in layers] == [CondenseLGC, CondenseSFR, CondenseLGC, CondenseSFR]
    assert not any(isinstance(layer, (LGC, SFR)) for layer in condensed.sublayers())
    assert difference(answers(condensed, x), answers(net, x)) < 1e-6


@pytest.mark.parametrize("size", [*LGCS, (24, 8, 2, 8)], ids=str)
def test_a_condensed_lgc_knows_which_channels_its_input_has(size, randomise, tmp_path):
    """Its gathered channels are more (C < G) or fewer (C > G): an index must be checked against the input's."""
    condensed = condense(paddle.nn.Sequential(trained(LGC, *size, randomise)))
    assert condensed[0].source_channels == size[0]
    save_weights(condensed, tmp_path / "net.pdparams")
    assert load_weights(condensed, tmp_path / "net.pdparams") == ([], [])


@pytest.mark.parametrize("kind", [LGC, SFR])
def test_a_single_layer_is_a_model_too(kind, randomise, difference):
    layer = trained(kind, 16, 16, 4, 4, randomise)
    x = random_images(2, 16, 3, 3)
    assert difference(answers(condense(layer), x), answers(layer, x)) < 1e-6


def test_a_layer_used_in_two_places_condenses_in_both(randomise, difference):
    layer = trained(LGC, 16, 16, 4, 4, randomise)
    net = paddle.nn.Sequential(layer, paddle.nn.ReLU(), layer)
    x = random_images(2, 16, 3, 3)
    condensed = condense(net)
    assert not any(isinstance(layer, LGC) for layer in condensed.sublayers())
    assert condensed[0] is condensed[2]
    assert difference(answers(condensed, x), answers(net, x)) < 1e-6


def test_dropout_of_training_leaves_no_trace(randomise, difference):
    net = paddle.nn.Sequential(trained(LGC, 16, 16, 4, 4, randomise, dropout_rate=0.5))
    x = random_images(2, 16, 3, 3)
    assert difference(answers(condense(net), x), answers(net, x)) < 1e-6


# Refusals


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_model_that_is_not_condensed_yet_is_an_error_that_says_how_far_it_is(stage, tiny, randomise):
    model = CondenseNetV2(**tiny, condensed=False)
    for layer in model.sublayers():
        if isinstance(layer, (LGC, SFR)):
            layer.set_progress(stage / 6)
    with pytest.raises(WeightsError) as caught:
        condense(model)
    density = {0: "100.0%", 1: "75.0%", 2: "50.0%"}[stage]
    assert "features.denseblock_1.denselayer_1.conv_1" in str(caught.value)
    assert density in str(caught.value)
    assert "1/4" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_unfinished_layer_among_finished_ones_is_named(tiny, randomise):
    """As the original leaves a net whose progress jumped over a stage; its converter goes on without a word."""
    model = randomise(CondenseNetV2(**tiny, condensed=False))
    layer = model.features.denseblock_2.denselayer_2.sfr
    mask = layer._mask.numpy()
    mask[int(np.flatnonzero(mask[:, 1, 0, 0] == 0)[0]), 1::4] = 1
    layer._mask.set_value(mask)
    with pytest.raises(WeightsError, match=r"features\.denseblock_2\.denselayer_2\.sfr is not condensed yet"):
        condense(model)


@pytest.mark.parametrize("kind", [LGC, SFR])
def test_masks_of_other_groups_are_refused(kind, randomise):
    """Condensing with the wrong G would move weights to the wrong places."""
    layer = arrays(trained(kind, 24, 24, 6, 6, randomise))
    with pytest.raises(WeightsError, match=r"block\._mask does not belong to 4 groups"):
        RULES[kind](layer, 4, 6, "block")
    with pytest.raises(WeightsError, match="block is not condensed yet"):
        RULES[kind](layer, 6, 4, "block")


@pytest.mark.parametrize("kind", [LGC, SFR])
@pytest.mark.parametrize("groups", [5, 7])
def test_groups_that_do_not_divide_the_channels_are_refused(kind, groups, randomise):
    layer = arrays(trained(kind, 16, 16, 4, 4, randomise))
    with pytest.raises(WeightsError, match="block"):
        RULES[kind](layer, groups, 4, "block")


@pytest.mark.parametrize("value", [0.5, 0.1, 0.94, -0.3, 1.2, np.nan, np.inf])
@pytest.mark.parametrize("kind", [LGC, SFR])
def test_masks_in_between_are_refused(value, kind, randomise):
    layer = arrays(trained(kind, 16, 16, 4, 4, randomise))
    layer["_mask"] = layer["_mask"].copy()
    layer["_mask"][3, 5] = value
    with pytest.raises(WeightsError, match=r"block\._mask holds values that are neither near 0 nor near 1"):
        RULES[kind](layer, 4, 4, "block")


@pytest.mark.parametrize("kind", [LGC, SFR])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv.weight", None),
        ("conv.weight", np.float32(1)),
        ("conv.weight", np.ones((8, 8, 1, 1), "f4")),
        ("conv.weight", np.ones((24, 16, 1, 1), "f4")),
        ("_mask", np.float32(1)),
        ("_mask", np.ones(16, "f4")),
        ("_mask", np.ones((16, 24, 3, 3), "f4")),
    ],
    ids=["no weight", "a number", "small weight", "weight transposed", "mask a number", "mask a vector", "3x3 mask"],
)
def test_a_layer_whose_tensors_do_not_fit_together_is_named(kind, key, value, randomise):
    """As a damaged checkpoint has it: one sentence with the layer's name, never a KeyError or numpy's reshape."""
    net = {f"block.{name}": array for name, array in arrays(trained(kind, 24, 16, 4, 4, randomise)).items()}
    if value is None:
        del net[f"block.{key}"]
    else:
        net[f"block.{key}"] = value
    with pytest.raises(WeightsError, match="block") as caught:
        condense_state(net, lambda name: (RULES[kind], 4, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["norm.weight", "norm.bias", "norm._mean", "norm._variance"])
@pytest.mark.parametrize("size", [0, 4, 40])
def test_statistics_of_other_channels_are_refused(key, size, randomise):
    """An LGC gathers them: too few would end in an IndexError, too many would pass for the right ones."""
    layer = arrays(trained(LGC, 16, 16, 4, 4, randomise))
    layer[key] = np.ones(size, "f4")
    with pytest.raises(WeightsError, match=key):
        condense_lgc(layer, 4, 4, "block")


def test_masks_near_0_and_1_are_rounded():
    mask = np.float32([[0.99997, 2.3e-5], [0.04, 0.96]]).reshape(2, 2, 1, 1)
    assert binary_mask(mask, "block").tolist() == [[True, False], [False, True]]


def test_a_condensed_model_is_refused_by_its_name(tiny):
    with pytest.raises(ValueError, match="CondenseNetV2 has no LGC or SFR layer: it is condensed already"):
        condense(CondenseNetV2(**tiny))
