"""LGC and SFR in training: when connections are dropped, which ones, and what the group lasso adds."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import paddle
import pytest

from paddle_dense.files.layout import to_paddle
from paddle_dense.layers import LGC, SFR
from paddle_dense.layers.learned import due_stage
from tests.helpers import answers, arrays, loaded, part, random_images

# channels in, channels out, groups G, condensation factor C
SIZES = {
    LGC: [(16, 8, 4, 4), (24, 12, 6, 6), (16, 8, 4, 2), (24, 8, 4, 8), (14, 12, 6, 7)],
    SFR: [(8, 16, 4, 4), (12, 24, 6, 6), (8, 16, 4, 2), (8, 24, 4, 8), (12, 14, 6, 7)],
}
CASES = [pytest.param(kind, *size, id=f"{kind.__name__}{size}") for kind in SIZES for size in SIZES[kind]]
KINDS = pytest.mark.parametrize("kind", [LGC, SFR])


def build(kind, inputs=16, outputs=16, groups=4, factor=4, seed=0):
    """A layer before training, with weights that differ from each other."""
    layer = kind(inputs, outputs, groups=groups, condense_factor=factor)
    weight = np.random.default_rng(seed).standard_normal(layer.conv.weight.shape)
    layer.conv.weight.set_value(weight.astype("f4"))
    return layer


def mask_of(layer) -> np.ndarray:
    return layer._mask.numpy()[:, :, 0, 0]


def weights_of_group(layer, group: int) -> np.ndarray:
    """The weights that belong to one group, [candidates, weights they share]."""
    weight = layer.conv.weight.numpy()[:, :, 0, 0]
    return weight[group :: layer.groups].T if isinstance(layer, LGC) else weight[:, group :: layer.groups]


def kept_by_group(layer, group: int) -> np.ndarray:
    """Which candidates a group keeps, [candidates]; its rows (LGC) or columns (SFR) must agree about that."""
    mask = mask_of(layer)
    mask = mask[group :: layer.groups].T if isinstance(layer, LGC) else mask[:, group :: layer.groups]
    assert (mask == mask[:, :1]).all()
    assert set(np.unique(mask)) <= {0, 1}
    return mask[:, 0].astype(bool)


def candidates(layer) -> int:
    return layer.in_channels if isinstance(layer, LGC) else layer.out_channels


# The schedule


@pytest.mark.parametrize("factor", range(1, 9))
def test_the_stages_are_spread_evenly_over_the_first_half_of_training(factor):
    """840 is a common multiple of all the edges' denominators, so every edge itself is among the points."""
    for n in range(841):
        progress = Fraction(n, 840)
        open_stages = [i for i in range(factor - 1) if 2 * progress < Fraction(i + 1, factor - 1)]
        assert due_stage(float(progress), factor) == min(open_stages, default=factor - 1), progress


def test_four_stages_begin_at_a_sixth_a_third_and_a_half():
    points = [0, 0.166, 0.167, 0.333, 0.334, 0.499, 0.5, 0.7, 1]
    assert [due_stage(progress, 4) for progress in points] == [0, 0, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(("kind", "inputs", "outputs", "groups", "factor"), CASES)
@pytest.mark.parametrize(
    "steps",
    [[1.0], [0.5], [0.5005], [0.51, 1.0], [0.3, 0.9], [n / 40 for n in range(41)]],
    ids=["at once", "at half", "just past half", "late", "over several stages", "step by step"],
)
def test_every_way_through_training_ends_at_exactly_one_in_c(kind, inputs, outputs, groups, factor, steps):
    layer = build(kind, inputs, outputs, groups, factor)
    for progress in steps:
        layer.set_progress(progress)
    left = candidates(layer) // factor
    assert [kept_by_group(layer, group).sum() for group in range(groups)] == [left] * groups
    assert layer.density == pytest.approx(1 / factor)
    assert layer.stage == factor - 1
    assert layer._count.item() == candidates(layer) - left


@pytest.mark.parametrize(("kind", "inputs", "outputs", "groups", "factor"), CASES)
def test_each_stage_drops_what_matters_least_to_its_group(kind, inputs, outputs, groups, factor):
    """Against a plain reading of the paper, with weights that change from stage to stage as in training."""
    layer = build(kind, inputs, outputs, groups, factor)
    kept = [set(range(candidates(layer))) for _ in range(groups)]
    for stage in range(1, factor):
        layer.conv.weight.set_value(np.random.default_rng(stage).standard_normal(layer.conv.weight.shape).astype("f4"))
        layer.set_progress(stage / (2 * (factor - 1)))
        for group in range(groups):
            importance = np.abs(weights_of_group(layer, group)).sum(axis=1)
            least = sorted(kept[group], key=lambda candidate: importance[candidate])
            kept[group] -= set(least[: candidates(layer) // factor])
            assert set(np.flatnonzero(kept_by_group(layer, group))) == kept[group]
        assert layer._count.item() == stage * (candidates(layer) // factor)
        assert layer.stage == stage


@KINDS
def test_nothing_is_dropped_before_the_first_stage_is_over(kind):
    layer = build(kind)
    layer.set_progress(0.16)
    assert (mask_of(layer) == 1).all()
    assert layer.density == 1
    assert layer.stage == 0


@KINDS
def test_progress_that_goes_back_changes_nothing(kind):
    layer = build(kind)
    layer.set_progress(0.4)
    before = mask_of(layer)
    layer.set_progress(0.2)
    assert (mask_of(layer) == before).all()
    assert layer.stage == 2


@KINDS
@pytest.mark.parametrize("later", ["other weights", "all weights zero", "dropped weights large"])
def test_what_is_dropped_never_comes_back(kind, later):
    layer = build(kind, 16, 16, 4, 4)
    layer.set_progress(0.2)
    gone = mask_of(layer) == 0
    assert gone.any()
    weight = np.random.default_rng(9).standard_normal((16, 16, 1, 1))
    if later == "all weights zero":
        weight[:] = 0
    elif later == "dropped weights large":
        weight[gone] = 1e6
    layer.conv.weight.set_value(weight.astype("f4"))
    for progress in (0.4, 1.0):
        layer.set_progress(progress)
        assert (mask_of(layer)[gone] == 0).all()
    assert [kept_by_group(layer, group).sum() for group in range(4)] == [4] * 4


@KINDS
def test_two_models_in_one_process_do_not_disturb_each_other(kind):
    first, second = build(kind), build(kind)
    first.set_progress(1.0)
    assert first.density == 0.25
    assert second.density == 1
    assert second.stage == 0
    second.set_progress(0.2)
    assert second.density == 0.75
    assert first.density == 0.25


@KINDS
def test_training_goes_on_from_a_checkpoint_where_it_stopped(kind):
    """The buffers are the whole memory: a new layer with the old state drops what the old one would have dropped."""
    layer, resumed = build(kind), build(kind, seed=1)
    layer.set_progress(0.4)
    resumed.set_state_dict(layer.state_dict())
    for one in (layer, resumed):
        one.set_progress(1.0)
    assert (mask_of(layer) == mask_of(resumed)).all()
    assert resumed._count.item() == 12
    assert resumed.stage == 3


@KINDS
def test_the_counters_of_averaged_weights_count_as_whole_stages(kind):
    """An EMA leaves 2.9997 stages; the last one is done and nothing more may be dropped."""
    layer = build(kind)
    layer.set_progress(1.0)
    layer._stage.set_value(np.float32([2.9997]))
    before = mask_of(layer)
    assert layer.stage == 3
    assert layer.group_lasso().item() == 0
    layer.set_progress(1.0)
    assert (mask_of(layer) == before).all()


# Forward


@pytest.mark.parametrize(("kind", "name", "activation"), [(LGC, "lgc", "ReLU"), (SFR, "sfr", "HS")])
def test_the_trained_layer_answers_as_the_original(data, difference, kind, name, activation):
    oracle = part(data / "layers_v2.npz", f"{name}/")
    state = to_paddle(part(data / "layers_v2.npz", f"{name}/state/"))
    outputs, inputs = state["conv.weight"].shape[:2]
    layer = loaded(kind(inputs, outputs, groups=4, activation=activation), state)
    assert difference(answers(layer, oracle["x"]), oracle["y"]) < 1e-6
    assert layer.density == 0.25


@pytest.mark.parametrize(("kind", "name"), [(LGC, "lgc"), (SFR, "sfr")])
def test_the_masks_are_what_the_original_would_drop(data, kind, name):
    """The oracle's weights did not change while its mask was learned, so all stages at once find the same mask."""
    state = part(data / "layers_v2.npz", f"{name}/state/")
    outputs, inputs = state["conv.weight"].shape[:2]
    layer = kind(inputs, outputs, groups=4)
    layer.conv.weight.set_value(state["conv.weight"])
    layer.set_progress(1.0)
    for buffer in ("_mask", "_count", "_stage"):
        assert (getattr(layer, buffer).numpy() == state[buffer]).all(), buffer


@KINDS
@pytest.mark.parametrize("activation", ["ReLU", "HS"])
def test_forward_is_bn_activation_and_the_masked_matrix(kind, activation, randomise, difference):
    layer = randomise(kind(12, 24, groups=6, activation=activation))
    layer.eval()
    x = random_images(2, 12, 5, 3)
    state = {name: value.astype("f8") for name, value in arrays(layer).items()}
    mean, variance, weight, bias = (
        state[f"norm.{name}"][:, None, None] for name in ("_mean", "_variance", "weight", "bias")
    )
    normed = (x - mean) / np.sqrt(variance + 1e-5) * weight + bias
    active = np.maximum(normed, 0) if activation == "ReLU" else normed * np.clip(normed + 3, 0, 6) / 6
    matrix = (state["conv.weight"] * state["_mask"])[:, :, 0, 0]
    assert difference(layer(paddle.to_tensor(x)), np.einsum("oi,nihw->nohw", matrix, active)) < 1e-6


@KINDS
def test_dropped_connections_get_no_gradient(kind, randomise):
    layer = randomise(kind(16, 16, groups=4))
    layer(paddle.randn([2, 16, 4, 4])).square().sum().backward()
    gradient = layer.conv.weight.grad.numpy()[:, :, 0, 0]
    assert (gradient[mask_of(layer) == 0] == 0).all()
    assert (gradient[mask_of(layer) == 1] != 0).all()


@KINDS
def test_dropout_acts_in_training_only(kind, randomise):
    layer = randomise(kind(16, 16, groups=4, dropout_rate=0.5))
    x = paddle.randn([2, 16, 4, 4])
    assert (layer(x) != layer(x)).any()
    layer.eval()
    assert (layer(x) == layer(x)).all()


# Group lasso


def lasso_in_numpy(layer) -> float:
    total = 0.0
    mask = mask_of(layer)
    weight = layer.conv.weight.numpy()[:, :, 0, 0].astype("f8") * mask
    for group in range(layer.groups):
        for candidate in range(candidates(layer)):
            if isinstance(layer, LGC):
                shared = weight[group :: layer.groups, candidate]
            else:
                shared = weight[candidate, group :: layer.groups]
            total += np.sqrt(max((shared**2).sum(), 1e-6))
    return total


@pytest.mark.parametrize(("kind", "inputs", "outputs", "groups", "factor"), CASES)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_group_lasso_against_a_plain_loop(kind, inputs, outputs, groups, factor, stage):
    layer = build(kind, inputs, outputs, groups, factor)
    layer.set_progress(stage / (2 * (factor - 1)))
    assert layer.stage == min(stage, factor - 1) < groups - 1
    assert layer.group_lasso().item() == pytest.approx(lasso_in_numpy(layer), rel=1e-6)


@KINDS
def test_group_lasso_is_bounded_below_by_a_thousandth_for_each_candidate(kind):
    layer = build(kind, 16, 8, 4, 4)
    layer.conv.weight.set_value(np.full(layer.conv.weight.shape, 1e-9, "f4"))
    lasso = layer.group_lasso()
    assert lasso.item() == pytest.approx(4 * candidates(layer) * 1e-3, rel=1e-5)


@KINDS
@pytest.mark.parametrize(("groups", "factor", "stage"), [(4, 4, 3), (4, 8, 3), (2, 8, 1)])
def test_group_lasso_ends_with_stage_g_minus_1(kind, groups, factor, stage):
    layer = build(kind, 16, 16, groups, factor)
    layer.set_progress((stage - 0.5) / (2 * (factor - 1)))
    assert layer.stage == stage - 1
    assert layer.group_lasso().item() > 1
    layer.set_progress(stage / (2 * (factor - 1)))
    assert layer.stage == stage
    assert layer.group_lasso().item() == 0


@KINDS
@pytest.mark.parametrize("progress", [0.0, 0.2, 1.0])
def test_gradients_of_the_group_lasso_are_finite_and_right(kind, progress):
    """d/dw of the norm of what a group shares is w / norm; 0 below the bound, where 1 / norm would be infinite."""
    layer = build(kind, 16, 16, 4, 4)
    weight = layer.conv.weight.numpy()
    weight[:4] = 0
    weight[:, :4] *= 1e-7
    layer.conv.weight.set_value(weight)
    layer.set_progress(progress)
    (layer.group_lasso() + 0 * layer.conv.weight.sum()).backward()
    gradient = layer.conv.weight.grad.numpy()[:, :, 0, 0]

    masked = (weight[:, :, 0, 0] * mask_of(layer)).astype("f8")
    expected = np.zeros_like(masked)
    for group in range(4 if progress < 0.5 else 0):
        rows_or_columns = slice(group, None, 4)
        where, axis = ((rows_or_columns,), 0) if kind is LGC else ((slice(None), rows_or_columns), 1)
        squares = (masked[where] ** 2).sum(axis=axis, keepdims=True)
        expected[where] = np.where(squares > 1e-6, masked[where] / np.sqrt(np.maximum(squares, 1e-6)), 0)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient - expected).max() < 1e-6
    assert (np.abs(expected).max() > 0.1) == (progress < 0.5)


# Wrong use


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (LGC, {"out_channels": 18, "groups": 4}, "out_channels=18"),
        (LGC, {"in_channels": 18, "groups": 4}, "in_channels=18"),
        (LGC, {"groups": 4, "condense_factor": 3}, "condense_factor=3"),
        (SFR, {"in_channels": 18, "groups": 4}, "in_channels=18"),
        (SFR, {"out_channels": 18, "groups": 4}, "out_channels=18"),
        (SFR, {"groups": 4, "condense_factor": 5}, "condense_factor=5"),
        (LGC, {"activation": "relu"}, "'relu'"),
        (SFR, {"activation": "Swish"}, "'Swish'"),
    ],
)
def test_wrong_arguments_are_named_in_one_sentence(kind, arguments, said):
    with pytest.raises(ValueError) as caught:
        kind(**{"in_channels": 16, "out_channels": 16, **arguments})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
