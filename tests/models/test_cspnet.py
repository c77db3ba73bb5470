"""CSPDenseNet in its three modes, and the CSPNets of timm."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import paddle_dense as pd_
from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_paddle
from paddle_dense.models.cspnet import MODES, CSPDenseNet, CSPNet
from paddle_dense.models.densenet import DenseLayer, DenseNet
from paddle_dense.models.recognise import recognise
from paddle_dense.zoo import create_model
from tests.peers import tool

PARAMETERS = {
    "stand": (5_646_468, 21_276_778, 10_414_340, 14_919_300),
    "fusionfirst": (6_303_812, 23_010_958, 11_347_492, 16_172_772),
    "fusionlast": (6_239_336, 23_262_088, 11_486_184, 16_292_584),
}
DENSE = ("cspdensenet121", "cspdensenet161", "cspdensenet169", "cspdensenet201")
TIMM = {"cspresnet50": 21_616_168, "cspresnext50": 20_569_896, "cspdarknet53": 27_642_184}
SMALL = {"growth_rate": 8, "block_config": [2, 3, 2], "num_init_features": 12, "bn_size": 2, "num_classes": 5}
NUMBERS = ("depths", "channels", "expand_ratio", "bottle_ratio", "stem_channels", "groups")
SMALL_NETS = {
    "resnet": dict(zip(NUMBERS, ([1, 2], [16, 24], [2.0, 2.0], [0.5, 0.5], 8, 1))),
    "resnext": dict(zip(NUMBERS, ([2, 1], [16, 32], [1.0, 1.0], [1.0, 0.5], 16, 4))),
    "darknet": dict(zip(NUMBERS, ([1, 2], [16, 24], [2.0, 1.0], [0.5, 1.0], 8, 1))),
}


def small_net(kind, **config):
    backbone = "darknet" if kind == "darknet" else "resnet"
    return CSPNet(**{"backbone": backbone, **SMALL_NETS[kind], "num_classes": 5, **config})


def count(model):
    statistics = ("._mean", "._variance")
    return sum(int(p.size) for name, p in model.named_parameters() if not name.endswith(statistics))


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def pictures(*shape):
    return paddle.to_tensor(np.random.default_rng(1).standard_normal(shape).astype("f4"))


def check_pyramid(whole, pooled, pyramid, x):
    """The last feature leads to the whole network's answer, and the shapes are those that the model announces."""
    for model in (pooled, pyramid):
        model.set_state_dict(whole.state_dict())
    for model in (whole, pooled, pyramid):
        model.eval()
    features = pyramid(x)
    batch, _, height, width = x.shape
    assert [f.shape for f in features] == [
        [batch, channels, height // stride, width // stride]
        for channels, stride in zip(pyramid.feature_channels, pyramid.feature_strides)
    ]
    last = features[-1].mean([2, 3])
    assert np.allclose(last, pooled(x), atol=1e-5)
    assert pooled(x).shape == [batch, pyramid.feature_channels[-1]]
    missing = set(whole.state_dict()) - set(pyramid.state_dict())
    assert missing == {name for name in whole.state_dict() if name.startswith(pyramid.head_prefixes)} != set()
    return last


def check_compiled(model, difference, folder):
    model.eval()
    x = pictures(2, 3, 47, 64)
    with paddle.no_grad():
        expected = model(x).numpy()
    spec = [paddle.static.InputSpec([None, 3, None, None])]
    compiled = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    with paddle.no_grad():
        assert difference(compiled(x), expected) < 1e-5
    paddle.jit.save(compiled, str(folder / "model"))
    loaded = paddle.jit.load(str(folder / "model"))
    loaded.eval()
    assert difference(loaded(x), expected) < 1e-5


def check_round_trip(model, folder):
    """Written, and rebuilt from nothing but the tensors."""
    pd_.save_weights(model, folder / "net.pdparams")
    (folder / "net.json").unlink()
    again = pd_.load_model(folder / "net.pdparams")
    assert type(again) is type(model)
    assert all(np.array_equal(value, arrays(again)[key]) for key, value in arrays(model).items())


class TestCSPDenseNet:
    @pytest.mark.parametrize("mode", MODES)
    def test_answers_as_the_original(self, mode, data, difference):
        with np.load(data / "csp_densenet_tiny.npz") as file:
            prefix = f"{mode}/state/"
            state = {key[len(prefix) :]: file[key] for key in file.files if key.startswith(prefix)}
            x, y = file[f"{mode}/x"], file[f"{mode}/y"]
        found = recognise(to_paddle(state))
        assert (found.arch, found.config["mode"]) == ("CSPDenseNet", mode)
        assert found.config["block_config"] == [2, 3, 2]
        model = found.build()
        model.set_state_dict(to_paddle(state))
        model.eval()
        assert difference(model(paddle.to_tensor(x)), y) < 1e-5

    @pytest.mark.parametrize("mode", MODES)
    def test_presets_have_the_published_size(self, mode):
        assert tuple(count(create_model(name, mode=mode)) for name in DENSE) == PARAMETERS[mode]

    def test_wrong_mode_names_the_right_ones(self):
        with pytest.raises(ValueError, match=r"'middle'.*stand, fusionfirst, fusionlast"):
            create_model("cspdensenet121", mode="middle")

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"block_config": []}, "one number or more"), ({"num_init_features": 1}, "num_init_features=1 must be 2")],
    )
    def test_wrong_numbers_are_explained(self, change, message):
        with pytest.raises(ValueError, match=message):
            CSPDenseNet(**{**SMALL, **change})

    def test_default_is_the_preset_and_other_modes_are_not(self):
        assert recognise(arrays(create_model("cspdensenet121", num_classes=3))).arch == "cspdensenet121"
        found = recognise(arrays(create_model("cspdensenet121", mode="stand", in_channels=1)))
        assert (found.arch, found.config["mode"]) == ("CSPDenseNet", "stand")
        assert found.config["in_channels"] == 1
        assert not found.warnings

    @pytest.mark.parametrize("mode", MODES)
    def test_reads_the_numbers(self, mode):
        found = recognise(arrays(CSPDenseNet(**SMALL, mode=mode)))
        assert {key: found.config[key] for key in (*SMALL, "mode")} == {**SMALL, "mode": mode}
        assert CSPDenseNet.recognise(arrays(DenseNet(**SMALL))) is None

    def test_one_block_alone(self):
        for mode, told in {"stand": "fusionlast", "fusionfirst": "fusionfirst", "fusionlast": "fusionlast"}.items():
            model = CSPDenseNet(8, [2], 12, num_classes=5, mode=mode)
            assert CSPDenseNet.recognise(arrays(model)).config["mode"] == told

    @pytest.mark.parametrize("mode", MODES)
    def test_part_1_goes_around_the_layers(self, mode, randomise):
        block = randomise(CSPDenseNet(**{**SMALL, "num_init_features": 13}, mode=mode)).features.denseblock1
        block.eval()
        x = pictures(2, 13, 8, 8)
        changed = x.clone()
        changed[:, :6] = 0.0
        y, z = block(x).numpy(), block(changed).numpy()
        assert np.array_equal(y[:, :6], x[:, :6].numpy())
        assert np.array_equal(y[:, 6:], z[:, 6:])

    @pytest.mark.parametrize(
        ("mode", "channels", "strides"),
        [
            ("stand", [12, 14, 15, 11], [2, 4, 8, 16]),
            ("fusionfirst", [12, 22, 29, 23], [2, 4, 8, 16]),
            ("fusionlast", [12, 14, 19, 17], [2, 4, 4, 4]),
        ],
    )
    def test_without_classifier_and_as_pyramid(self, mode, channels, strides, randomise):
        config = {**SMALL, "mode": mode}
        whole, pyramid = randomise(CSPDenseNet(**config)), CSPDenseNet(**config, features_only=True)
        assert (pyramid.feature_channels, pyramid.feature_strides) == (channels, strides)
        x = pictures(2, 3, 64, 64)
        last = check_pyramid(whole, CSPDenseNet(**{**config, "num_classes": 0}), pyramid, x)
        assert np.allclose(whole.classifier(last), whole(x), atol=1e-5)

    @pytest.mark.parametrize("mode", MODES)
    def test_any_size_and_any_channels(self, mode):
        model = CSPDenseNet(**SMALL, mode=mode, in_channels=4)
        for size in ((32, 32), (33, 47)):
            assert model(pictures(2, 4, *size)).shape == [2, 5]

    def test_recomputes_as_densenet_does(self, randomise):
        plain = randomise(CSPDenseNet(**SMALL))
        frugal = CSPDenseNet(**SMALL, memory_efficient=True)
        frugal.set_state_dict(plain.state_dict())
        calls = []
        for layer in frugal.sublayers():
            if isinstance(layer, DenseLayer):
                layer.conv1.register_forward_post_hook(lambda *_: calls.append(1))
        x = pictures(2, 3, 32, 32)
        for model in (plain, frugal):
            model(x).square().sum().backward()
        assert len(calls) == 2 * 7
        for (name, p), (_, q) in zip(plain.named_parameters(), frugal.named_parameters()):
            assert p.stop_gradient or np.array_equal(p.grad.numpy(), q.grad.numpy()), name

    @pytest.mark.parametrize("mode", MODES)
    def test_compiles_and_exports(self, mode, randomise, difference, tmp_path):
        check_compiled(randomise(CSPDenseNet(**SMALL, mode=mode)), difference, tmp_path)

    @pytest.mark.parametrize("mode", MODES)
    def test_saves_and_loads(self, mode, randomise, tmp_path):
        check_round_trip(randomise(CSPDenseNet(**SMALL, mode=mode)), tmp_path)


class TestCSPNet:
    @pytest.mark.parametrize("name", ["cspresnet50", "cspresnext50"])
    def test_answers_as_timm(self, name, oracles, difference):
        state, x, logits = tool("oracle_weights").load_oracle(oracles / "full" / name)
        found = recognise(to_paddle(state))
        assert (found.arch, found.warnings) == (name, ())
        model = found.build()
        model.set_state_dict(to_paddle(state))
        model.eval()
        assert difference(model(paddle.to_tensor(x)), logits) < 1e-5

    @pytest.mark.parametrize("name", TIMM)
    def test_presets(self, name):
        model = create_model(name)
        assert count(model) == TIMM[name]
        assert model.input_size == model.preprocessing.input_size == 256
        found = recognise(arrays(create_model(name, num_classes=7, in_channels=1)))
        assert (found.arch, found.config["num_classes"], found.config["in_channels"]) == (name, 7, 1)

    def test_starts_as_the_original(self):
        model = create_model("cspresnext50")
        conv = model.stages[1].conv_down.conv  # grouped: the outputs count
        assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)
        assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert np.all(model.head.fc.bias.numpy() == 0)
        assert np.all(model.stages[2].blocks[1].conv3.bn.weight.numpy() == 0)
        assert np.all(create_model("cspdarknet53").stages[2].blocks[1].conv2.bn.weight.numpy() == 0)

    @pytest.mark.parametrize("kind", SMALL_NETS)
    def test_reads_the_numbers(self, kind):
        found = recognise(arrays(small_net(kind, in_channels=2)))
        expected = {"backbone": "darknet" if kind == "darknet" else "resnet", **SMALL_NETS[kind]}
        assert found.arch == "CSPNet"
        assert {key: found.config[key] for key in expected} == expected
        assert (found.config["num_classes"], found.config["in_channels"]) == (5, 2)
        assert not found.warnings

    def test_leaves_timms_other_networks_alone(self):
        state = arrays(small_net("resnet"))
        assert CSPNet.recognise({**state, "stem.conv2.conv.weight": np.zeros([8, 8, 3, 3], "f4")}) is None
        assert CSPNet.recognise({key: v for key, v in state.items() if "transition_b" not in key}) is None
        assert CSPNet.recognise(arrays(DenseNet(**SMALL))) is None

    def test_a_missing_tensor_is_named(self):
        state = arrays(small_net("darknet"))
        del state["stages.1.conv_transition.conv.weight"]
        with pytest.raises(WeightsError, match=r"stages\.1\.conv_transition\.conv\.weight"):
            recognise(state)

    def test_paddleclas_calls_the_classifier_fc(self, randomise):
        state = arrays(randomise(small_net("darknet")))
        theirs = {name.replace("head.fc.", "fc."): value for name, value in state.items()}
        assert "fc.weight" in theirs
        assert list(CSPNet.canonical(theirs)) == list(state)

    def test_keeps_its_own_and_others_names(self, tiny_state):
        for state in (arrays(small_net("resnet")), arrays(DenseNet(**SMALL)), tiny_state("converted.pth")):
            assert list(CSPNet.canonical(state)) == list(state)

    @pytest.mark.parametrize(
        ("kind", "channels", "strides"),
        [("resnet", [8, 16, 24], [2, 4, 8]), ("resnext", [16, 16, 32], [2, 4, 8]), ("darknet", [8, 16, 24], [1, 2, 4])],
    )
    def test_without_classifier_and_as_pyramid(self, kind, channels, strides, randomise):
        whole, pyramid = randomise(small_net(kind)), small_net(kind, features_only=True)
        assert (pyramid.feature_channels, pyramid.feature_strides) == (channels, strides)
        x = pictures(2, 3, 64, 64)
        last = check_pyramid(whole, small_net(kind, num_classes=0), pyramid, x)
        assert np.allclose(whole.head.fc(last), whole(x), atol=1e-5)

    def test_a_whole_file_fits_the_pyramid(self, randomise, tmp_path):
        whole = randomise(small_net("resnet"))
        pd_.save_weights(whole, tmp_path / "net.pdparams")
        for model in (small_net("resnet", features_only=True), small_net("resnet", num_classes=0)):
            pd_.load_weights(model, tmp_path / "net.pdparams")
            assert np.array_equal(model.stem.conv1.conv.weight.numpy(), whole.stem.conv1.conv.weight.numpy())

    @pytest.mark.parametrize("kind", SMALL_NETS)
    def test_any_size_and_any_channels_and_backward(self, kind):
        model = small_net(kind, in_channels=4)
        for size in ((32, 32), (33, 47)):
            y = model(pictures(2, 4, *size))
            assert y.shape == [2, 5]
        y.square().sum().backward()
        assert np.abs(model.stem.conv1.conv.weight.grad.numpy()).max() > 0

    @pytest.mark.parametrize("kind", SMALL_NETS)
    def test_compiles_and_exports(self, kind, randomise, difference, tmp_path):
        check_compiled(randomise(small_net(kind)), difference, tmp_path)

    @pytest.mark.parametrize("kind", SMALL_NETS)
    def test_saves_and_loads(self, kind, randomise, tmp_path):
        check_round_trip(randomise(small_net(kind)), tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"backbone": "vgg"}, r"'vgg'.*resnet, darknet"),
            ({"depths": [1]}, "one number for each stage"),
            ({"depths": [], "channels": [], "expand_ratio": [], "bottle_ratio": []}, "depths=.*one number or more"),
            ({"depths": [1, 0]}, r"depths=\[1, 0\] must be 1 or more"),
            ({"channels": [16, 25], "expand_ratio": [2.0, 1.0]}, "stage 1 expands to 25 channels"),
            ({"bottle_ratio": [0.5, 0.01]}, "stage 1 convolves 0, 16, 16 channels"),
            ({"bottle_ratio": [0.5, 0.0]}, r"bottle_ratio=\[0.5, 0.0\] must be above 0 and finite"),
            ({"groups": 3}, "stage 0 convolves 8 channels, which groups=3 must divide"),
        ],
    )
    def test_wrong_arguments_are_explained(self, change, message):
        with pytest.raises(ValueError, match=message):
            small_net("resnet", **change)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DENSE, *TIMM])
def test_every_preset_at_work(name, randomise, difference):
    model = randomise(create_model(name))
    model.eval()
    for size in (32, model.input_size, 250):
        with paddle.no_grad():
            y = model(pictures(1, 3, size, size))
        assert y.shape == [1, 1000]
        assert np.isfinite(y.numpy()).all()
    model.train()
    model(pictures(2, 3, 64, 64)).square().mean().backward()
    first = model.stem.conv1.conv if name in TIMM else model.features.conv0
    assert np.abs(first.weight.grad.numpy()).max() > 0
    model.eval()
    x = pictures(1, 3, 64, 64)
    with paddle.no_grad():
        expected = model(x).numpy()
        assert difference(paddle.jit.to_static(model, full_graph=True)(x), expected) < 1e-5
    pyramid = create_model(name, features_only=True)
    shapes = [f.shape for f in pyramid(x)]
    assert shapes == [[1, c, 64 // s, 64 // s] for c, s in zip(pyramid.feature_channels, pyramid.feature_strides)]
