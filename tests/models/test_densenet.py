"""DenseNet: its start, dropout, recomputation, and foreign names."""

from __future__ import annotations

import math
import re
from itertools import product

import numpy as np
import paddle
import pytest

from paddle_dense.errors import WeightsError
from paddle_dense.models.cspnet import CSPDenseNet
from paddle_dense.models.densenet import DenseLayer, DenseNet
from paddle_dense.models.matching import match
from paddle_dense.models.recognise import recognise
from paddle_dense.zoo import create_model
from tests.helpers import CIFAR_DENSENETS, DENSENET, answers, arrays, loaded, random_images, small


def test_starts_as_the_original():
    model = create_model("densenet121")
    for layer in (model.features.conv0, model.features.denseblock3.denselayer5.conv1):
        fan_in = np.prod(layer.weight.shape[1:])
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert np.all(model.classifier.bias.numpy() == 0)
    assert np.abs(model.classifier.weight.numpy()).max() == pytest.approx(1024**-0.5, rel=0.01)


def test_dropout_is_for_training_only(randomise):
    model = randomise(small("DenseNet", drop_rate=0.5))
    x = random_images(2, 3, 32, 32)
    assert not np.allclose(model(paddle.to_tensor(x)), model(paddle.to_tensor(x)))
    without = loaded(small("DenseNet"), arrays(model))
    np.testing.assert_array_equal(answers(model, x), answers(without, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_config": []}, r"block_config=\[\] must be a list of one number or more"),
        ({"block_config": [2, 0]}, r"block_config=\[2, 0\] must be 1 or more"),
        ({"growth_rate": 0}, "growth_rate=0 must be 1 or more"),
        ({"bn_size": -1}, "bn_size=-1 must be 0 or more"),
        ({"compression": 0.0}, "compression=0.0 must be above 0 and at most 1"),
        ({"compression": 1.01}, "compression=1.01 must be above 0 and at most 1"),
        ({"compression": 0.03}, "compression=0.03 leaves none of 28 channels: take a larger one"),
        ({"small_inputs": 1}, "small_inputs=1 must be true or false"),
    ],
)
def test_wrong_numbers_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        DenseNet(**{**DENSENET, **change})


class TestMemoryEfficient:
    """Recomputing the bottlenecks changes memory and time and nothing else."""

    @pytest.fixture
    def build(self, randomise):
        def pair(kind):
            plain = randomise(small(kind))
            frugal = loaded(small(kind, memory_efficient=True), arrays(plain))
            frugal.train()
            return plain, frugal

        return pair

    @pytest.fixture
    def pair(self, build):
        return build("DenseNet")

    @pytest.mark.parametrize("kind", ["DenseNet", *CIFAR_DENSENETS])
    def test_gradients_and_statistics_are_equal(self, kind, build):
        x = paddle.to_tensor(random_images(2, 3, 64, 64))
        pair = build(kind)
        for model in pair:
            for _ in range(2):
                model(x).square().sum().backward()
        plain, frugal = pair
        for (name, p), (_, q) in zip(plain.named_parameters(), frugal.named_parameters()):
            if not p.stop_gradient:
                assert np.array_equal(p.grad.numpy(), q.grad.numpy()), name
        before = small(kind).state_dict()["features.norm5._mean"]
        for name, value in arrays(plain).items():
            assert np.array_equal(value, frugal.state_dict()[name].numpy()), name
        assert not np.allclose(before, plain.features.norm5._mean)

    def test_bottlenecks_run_twice_and_the_rest_once(self, pair):
        calls = {"conv1": 0, "conv2": 0}
        layers = [layer for layer in pair[1].sublayers() if isinstance(layer, DenseLayer)]

        def count_calls(kind):
            def hook(*_):
                calls[kind] += 1

            return hook

        for layer in layers:
            layer.conv1.register_forward_post_hook(count_calls("conv1"))
            layer.conv2.register_forward_post_hook(count_calls("conv2"))
        loss = pair[1](paddle.to_tensor(random_images(2, 3, 64, 64))).sum()
        assert calls == {"conv1": len(layers), "conv2": len(layers)}
        loss.backward()
        assert calls == {"conv1": 2 * len(layers), "conv2": len(layers)}

    def test_holds_less_between_the_passes(self):
        allocated = getattr(paddle.base.core, "host_memory_stat_current_value", None)
        if allocated is None:
            pytest.skip("this Paddle does not tell how much memory it has allocated")
        held = {}
        for memory_efficient in (False, True):
            model = DenseNet(8, [12], 16, num_classes=5, memory_efficient=memory_efficient)
            x = paddle.to_tensor(random_images(4, 3, 64, 64))
            before = allocated("Allocated", 0)
            loss = model(x).sum()
            held[memory_efficient] = allocated("Allocated", 0) - before
            loss.backward()
        # 12 concatenations, their normalised and their rectified form, of 16 to 104 channels, stay away.
        assert held[True] < 0.5 * held[False]

    def test_frozen_stem_still_trains_the_rest(self, pair):
        frugal = pair[1]
        for p in [*frugal.features.conv0.parameters(), *frugal.features.norm0.parameters()]:
            p.stop_gradient = True
        frugal(paddle.to_tensor(random_images(2, 3, 32, 32))).sum().backward()
        assert np.abs(frugal.features.denseblock1.denselayer1.conv1.weight.grad.numpy()).max() > 0

    def test_inference_is_plain(self, pair):
        x = random_images(2, 3, 32, 32)
        np.testing.assert_array_equal(answers(pair[0], x), answers(pair[1], x))


class TestCompression:
    """The share that transitions keep, read from their widths, makes the same widths again."""

    @pytest.mark.parametrize("block_config", [[16, 16, 16], [6, 12, 24, 16], [41, 41, 41], [1, 1], [2, 3, 1, 1, 2]])
    def test_every_share(self, block_config):
        shares = [*(percent / 100 for percent in range(1, 101)), 1 / 3, 2 / 3, 5 / 7, 0.5 - 1e-9, 0.123456789]
        for growth_rate, share in product((4, 7, 12), shares):
            widths = list(transitions(growth_rate, block_config, share))
            if all(kept for _, kept in widths):
                found = DenseNet.recognise(shapes_alone(growth_rate, block_config, widths)).config["compression"]
                assert list(transitions(growth_rate, block_config, found)) == widths, share

    def test_the_plainest_share_is_said(self):
        for share in (0.5, 1.0, 0.9, 0.25):
            widths = list(transitions(12, [16, 16, 16], share))
            assert DenseNet.recognise(shapes_alone(12, [16, 16, 16], widths)).config["compression"] == share

    def test_widths_of_no_share_name_the_tensor(self, randomise):
        state = arrays(randomise(small("CIFAR DenseNet")))
        state["features.transition2.conv.weight"] = state["features.transition2.conv.weight"][:20]
        state["features.denseblock3.denselayer1.norm1.weight"] = np.ones(20, "f4")
        found = recognise(state)
        with pytest.raises(WeightsError, match=r"'features.transition1.conv.weight' is \[28, 28, 1, 1\]"):
            found.fit(state)


def transitions(growth_rate, block_config, share):
    """Channels before and after each transition, counted as the original does."""
    channels = 2 * growth_rate
    for layers in block_config[:-1]:
        before = channels + layers * growth_rate
        channels = math.floor(before * share)
        yield before, channels


def shapes_alone(growth_rate, block_config, widths):
    """What `DenseNet.recognise` looks at, without memory."""
    shapes = {
        "features.conv0.weight": (2 * growth_rate, 3, 3, 3),
        "features.denseblock1.denselayer1.norm1.weight": (2 * growth_rate,),
        "features.denseblock1.denselayer1.conv2.weight": (growth_rate, 4 * growth_rate, 3, 3),
        **{
            f"features.denseblock{block}.denselayer{layer}.conv1.weight": (4 * growth_rate, 1, 1, 1)
            for block, layers in enumerate(block_config, start=1)
            for layer in range(1, layers + 1)
        },
        **{
            f"features.transition{number}.conv.weight": (kept, before, 1, 1)
            for number, (before, kept) in enumerate(widths, start=1)
        },
    }
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_a_stem_of_some_other_code_is_refused(randomise):
    """A 3x3 convolution that a norm follows: whether it strides or pools, no tensor shows."""
    state = arrays(randomise(small("DenseNet")))
    state["features.conv0.weight"] = state["features.conv0.weight"][:, :, 2:5, 2:5]
    with pytest.raises(WeightsError, match=r"a stem of 3 x 3 pixels with a normalisation, .* 'Add a model'"):
        recognise(state).fit(state)


def test_others_are_left_alone(tiny_state):
    assert DenseNet.recognise(arrays(CSPDenseNet(**DENSENET))) is None
    assert DenseNet.recognise(tiny_state("converted.pth")) is None
    deep_stem = arrays(DenseNet(**DENSENET))
    deep_stem["features.conv1.weight"] = deep_stem["features.conv0.weight"]
    assert DenseNet.recognise(deep_stem) is None


class TestCanonical:
    def test_old_torchvision_spelling(self):
        state = arrays(small("DenseNet"))
        old = {
            re.sub(r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3.", name): value for name, value in state.items()
        }
        assert "features.denseblock1.denselayer2.norm.1.weight" in old
        assert list(match(old).state) == list(state)

    def test_drops_nothing_where_two_names_meet(self):
        state = arrays(DenseNet(**DENSENET))
        twice = "features.denseblock1.denselayer1.conv.1.weight"
        with pytest.raises(WeightsError, match="under two names"):
            match({**state, twice: np.zeros(1)})

    def test_paddle_vision(self, randomise, difference):
        theirs = randomise(paddle.vision.models.densenet121())
        state = match(arrays(theirs)).state
        found = recognise(state)
        assert found.arch == "densenet121"
        ours, x = loaded(found.build(), state), random_images(2, 3, 64, 64)
        assert difference(answers(ours, x), answers(theirs, x)) < 1e-5
