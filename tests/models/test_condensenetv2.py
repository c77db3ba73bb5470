"""CondenseNet V2: the original's numbers and start, its pyramid, and which arguments are refused."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense import cdnv2_a
from paddle_dense.files.layout import to_paddle
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.layers import LGC, SFR, CondenseSFR
from paddle_dense.models import CondenseNetV2
from tests.helpers import V2, V2_VARIANTS, answers, arrays, loaded, random_images

FORMS = pytest.mark.parametrize("condensed", [True, False], ids=["condensed", "trained"])


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
    model = loaded(CondenseNetV2(**tiny, condensed=condensed), tiny_state(name))
    assert difference(answers(model, oracle["x_eval"]), oracle[logits]) < 1e-6


def test_cdnv2_a_answers_as_the_original(oracles, difference):
    oracle = np.load(oracles / "cdnv2_a_io.npz")
    model = loaded(cdnv2_a(), to_paddle(read_checkpoint(oracles / "cdnv2_a.pth").state))
    y = answers(model, oracle["x"])
    # Rounding: 7.4e-7 on one processor, 1.04e-6 on another.
    assert difference(y, oracle["logits"]) < 2e-6
    assert (y.argmax(axis=1) == oracle["logits"].argmax(axis=1)).all()


def test_training_goes_in_lockstep_with_the_original(oracles, tiny, tiny_state, difference):
    """Ten steps, over the first two condensing stages; the gradients of the first one for every parameter."""
    oracle = np.load(oracles / "cdnv2_tiny_lockstep.npz")
    model = loaded(CondenseNetV2(**tiny, condensed=False), tiny_state("init.pth"))
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


# Shapes


@FORMS
def test_the_pyramid_is_what_the_blocks_answer(condensed, randomise, difference):
    config = {**V2, **V2_VARIANTS["ImageNet form"], "condensed": condensed}
    whole, model = randomise(CondenseNetV2(**config)), CondenseNetV2(**config, features_only=True)
    loaded(model, {name: value for name, value in arrays(whole).items() if name in model.state_dict()})
    seen = []
    for name, layer in whole.features.named_children():
        if name.startswith("denseblock") or name == "relu_last":
            layer.register_forward_post_hook(lambda _, inputs, output: seen.append(output))
    x = random_images(2, 3, 64, 96)
    answers(whole, x)
    assert model.feature_strides == [2, 4, 8, 16, 32]
    assert difference(answers(model, x), [*seen[:-2], seen[-1]]) == 0


@pytest.mark.parametrize("stages, expected", [([1, 1, 1], 1), ([1] * 4, 1), ([1] * 5, 2)])
def test_the_first_convolution_halves_imagenet_images_only(stages, expected):
    config = {**V2, "stages": stages, "growth": [8] * len(stages)}
    assert CondenseNetV2(**config, features_only=True).feature_strides[0] == expected
    assert CondenseNetV2(**config, init_stride=4, features_only=True).feature_strides[0] == 4


def test_activations_and_gates_begin_at_their_blocks(tiny):
    model = CondenseNetV2(**tiny)
    kinds = [type(layer.activation).__name__ for layer in model.sublayers() if isinstance(layer, CondenseSFR)]
    assert kinds == ["ReLU"] * 2 + ["HS"] * 4
    assert [bool(block[0].se) for name, block in model.features.named_children() if "block" in name] == [False] * 2 + [
        True
    ]


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
            assert layer.density == 1
            assert layer.stage == 0
            assert layer._count.item() == 0


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
        CondenseNetV2(**{**V2, **change}, condensed=condensed)
    assert "\n" not in str(caught.value).strip()
