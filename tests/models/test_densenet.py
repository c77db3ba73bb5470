"""DenseNet: the numbers of torchvision's network, foreign names, recomputation."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import paddle_dense as pd_
from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_paddle
from paddle_dense.models.cspnet import CSPDenseNet
from paddle_dense.models.densenet import DenseLayer, DenseNet
from paddle_dense.models.recognise import recognise
from paddle_dense.zoo import create_model
from tests.peers import tool

PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
}
SMALL = {"growth_rate": 8, "block_config": [2, 3, 2], "num_init_features": 12, "bn_size": 2, "num_classes": 5}


def count(model):
    statistics = ("._mean", "._variance")
    return sum(int(p.size) for name, p in model.named_parameters() if not name.endswith(statistics))


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def pictures(*shape):
    return paddle.to_tensor(np.random.default_rng(1).standard_normal(shape).astype("f4"))


def full_oracle(oracles, name):
    return tool("oracle_weights").load_oracle(oracles / "full" / name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_published_size(name):
    assert count(create_model(name)) == PARAMETERS[name]


def test_answers_as_torchvision(oracles, difference):
    state, x, logits = full_oracle(oracles, "densenet121")
    found = recognise(to_paddle(state))
    assert found.arch == "densenet121"
    model = found.build()
    model.set_state_dict(to_paddle(state))
    model.eval()
    assert difference(model(paddle.to_tensor(x)), logits) < 1e-5


def test_macs_are_torchvisions():
    # 2.834 G there, without ReLU and pooling.
    assert pd_.profile(create_model("densenet121")).executed_macs / 1e9 == pytest.approx(2.834, abs=5e-4)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96)])
def test_any_size_and_any_channels(size):
    model = DenseNet(**SMALL, in_channels=4)
    assert model(pictures(2, 4, *size)).shape == [2, 5]


def test_without_classifier_and_as_pyramid(randomise):
    whole = randomise(DenseNet(**SMALL))
    pooled, pyramid = DenseNet(**{**SMALL, "num_classes": 0}), DenseNet(**SMALL, features_only=True)
    for model in (pooled, pyramid):
        model.set_state_dict(whole.state_dict())
    for model in (whole, pooled, pyramid):
        model.eval()
    x = pictures(2, 3, 64, 64)
    features = pyramid(x)
    assert [f.shape for f in features] == [
        [2, channels, 64 // stride, 64 // stride]
        for channels, stride in zip(pyramid.feature_channels, pyramid.feature_strides)
    ]
    assert pyramid.feature_channels == [12, 28, 38, 35]
    assert pyramid.feature_strides == [2, 4, 8, 16]
    last = features[-1].mean([2, 3])
    assert np.allclose(last, pooled(x), atol=1e-5)
    assert np.allclose(whole.classifier(last), whole(x), atol=1e-5)
    missing = set(whole.state_dict()) - set(pyramid.state_dict())
    assert missing == {name for name in whole.state_dict() if name.startswith(DenseNet.head_prefixes)} != set()


def test_starts_as_the_original():
    model = create_model("densenet121")
    for layer in (model.features.conv0, model.features.denseblock3.denselayer5.conv1):
        fan_in = np.prod(layer.weight.shape[1:])
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert np.all(model.classifier.bias.numpy() == 0)
    assert np.abs(model.classifier.weight.numpy()).max() == pytest.approx(1024**-0.5, rel=0.01)


def test_dropout_is_for_training_only(randomise):
    model = randomise(DenseNet(**SMALL, drop_rate=0.5))
    x = pictures(2, 3, 32, 32)
    assert not np.allclose(model(x), model(x))
    model.eval()
    without = DenseNet(**SMALL)
    without.set_state_dict(model.state_dict())
    without.eval()
    assert np.array_equal(model(x).numpy(), without(x).numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_config": []}, r"block_config=\[\] must be a list of one number or more"),
        ({"block_config": [2, 0]}, r"block_config=\[2, 0\] must be 1 or more"),
        ({"growth_rate": 0}, "growth_rate=0 must be 1 or more"),
    ],
)
def test_wrong_numbers_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        DenseNet(**{**SMALL, **change})


class TestMemoryEfficient:
    """Recomputing the bottlenecks changes memory and time and nothing else."""

    @pytest.fixture
    def pair(self, randomise):
        plain = randomise(DenseNet(**SMALL))
        frugal = DenseNet(**SMALL, memory_efficient=True)
        frugal.set_state_dict(plain.state_dict())
        return plain, frugal

    def test_gradients_and_statistics_are_equal(self, pair):
        x = pictures(2, 3, 64, 64)
        for model in pair:
            for _ in range(2):
                model(x).square().sum().backward()
        plain, frugal = pair
        for (name, p), (_, q) in zip(plain.named_parameters(), frugal.named_parameters()):
            if not p.stop_gradient:
                assert np.array_equal(p.grad.numpy(), q.grad.numpy()), name
        before = DenseNet(**SMALL).state_dict()["features.norm5._mean"]
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
        loss = pair[1](pictures(2, 3, 64, 64)).sum()
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
            x = pictures(4, 3, 64, 64)
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
        frugal(pictures(2, 3, 32, 32)).sum().backward()
        assert np.abs(frugal.features.denseblock1.denselayer1.conv1.weight.grad.numpy()).max() > 0

    def test_inference_is_plain(self, pair):
        x = pictures(2, 3, 32, 32)
        for model in pair:
            model.eval()
        with paddle.no_grad():
            assert np.array_equal(pair[0](x).numpy(), pair[1](x).numpy())


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_compiles_and_exports(memory_efficient, randomise, difference, tmp_path):
    model = randomise(DenseNet(**SMALL, memory_efficient=memory_efficient))
    model.eval()
    x = pictures(2, 3, 47, 64)
    with paddle.no_grad():
        expected = model(x).numpy()
    spec = [paddle.static.InputSpec([None, 3, None, None])]
    compiled = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    with paddle.no_grad():
        assert difference(compiled(x), expected) < 1e-5
    paddle.jit.save(compiled, str(tmp_path / "model"))
    loaded = paddle.jit.load(str(tmp_path / "model"))
    loaded.eval()
    assert difference(loaded(x), expected) < 1e-5


def test_saves_and_loads(randomise, tmp_path):
    model = randomise(DenseNet(**SMALL))
    for name in ("net.pdparams", "net.safetensors"):
        pd_.save_weights(model, tmp_path / name)
        (tmp_path / "net.json").unlink()  # so that the tensors alone must tell
        again = pd_.load_model(tmp_path / name)
        assert type(again) is DenseNet
        assert all(np.array_equal(value, arrays(again)[key]) for key, value in arrays(model).items())


class TestRecognise:
    @pytest.mark.parametrize("name", ["densenet121", "densenet161"])
    def test_names_a_preset_whatever_its_classes(self, name):
        found = recognise(arrays(create_model(name, num_classes=7, in_channels=1)))
        assert (found.arch, found.config["num_classes"], found.config["in_channels"]) == (name, 7, 1)

    def test_reads_the_numbers(self):
        found = recognise(arrays(DenseNet(**SMALL)))
        assert found.arch == "DenseNet"
        assert {key: found.config[key] for key in SMALL} == SMALL
        assert not found.warnings

    def test_leaves_others_alone(self, tiny_state):
        assert DenseNet.recognise(arrays(CSPDenseNet(**SMALL))) is None
        assert DenseNet.recognise(tiny_state("converted.pth")) is None
        deep_stem = arrays(DenseNet(**SMALL))
        deep_stem["features.conv1.weight"] = deep_stem["features.conv0.weight"]
        assert DenseNet.recognise(deep_stem) is None


class TestCanonical:
    def test_old_torchvision_spelling(self):
        state = arrays(DenseNet(**SMALL))
        old = {}
        for name, value in state.items():
            for kind in ("norm", "conv"):
                for number in "12":
                    if ".denselayer" in name:
                        name = name.replace(f".{kind}{number}.", f".{kind}.{number}.")
            old[name] = value
        assert "features.denseblock1.denselayer2.norm.1.weight" in old
        assert list(DenseNet.canonical(old)) == list(state)

    def test_keeps_its_own_and_others_names(self, tiny_state):
        for state in (arrays(DenseNet(**SMALL)), arrays(CSPDenseNet(**SMALL)), tiny_state("converted.pth")):
            assert list(DenseNet.canonical(state)) == list(state)

    def test_refuses_two_names_for_one_tensor(self):
        state = arrays(DenseNet(**SMALL))
        twice = "features.denseblock1.denselayer1.conv.1.weight"
        with pytest.raises(WeightsError, match="under two names"):
            DenseNet.canonical({**state, twice: np.zeros(1)})

    def test_paddle_vision(self, randomise, difference):
        theirs = randomise(paddle.vision.models.densenet121())
        state = DenseNet.canonical(arrays(theirs))
        found = recognise(state)
        assert found.arch == "densenet121"
        ours = found.build()
        assert set(state) == set(ours.state_dict())
        ours.set_state_dict(state)
        theirs.eval()
        ours.eval()
        x = pictures(2, 3, 64, 64)
        assert difference(ours(x), theirs(x)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_every_preset_at_work(name, randomise, difference):
    model = randomise(create_model(name))
    model.eval()
    for size in (32, 224, 250):
        with paddle.no_grad():
            y = model(pictures(1, 3, size, size))
        assert y.shape == [1, 1000]
        assert np.isfinite(y.numpy()).all()
    model.train()
    model(pictures(2, 3, 64, 64)).square().mean().backward()
    assert np.abs(model.features.conv0.weight.grad.numpy()).max() > 0
    model.eval()
    x = pictures(1, 3, 64, 64)
    with paddle.no_grad():
        expected = model(x).numpy()
        assert difference(paddle.jit.to_static(model, full_graph=True)(x), expected) < 1e-5
    pyramid = create_model(name, features_only=True)
    shapes = [f.shape for f in pyramid(x)]
    assert shapes == [[1, c, 64 // s, 64 // s] for c, s in zip(pyramid.feature_channels, pyramid.feature_strides)]
