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
from paddle_dense.models.matching import match
from paddle_dense.models.network import presets
from paddle_dense.models.recognise import recognise
from paddle_dense.zoo import create_model
from tests.helpers import DENSENET, answers, arrays, loaded, part, random_images, small

PARAMETERS = {  # of fusionlast, the presets' own mode, in tests/test_sizes.py
    "stand": (5_646_468, 21_276_778, 10_414_340, 14_919_300),
    "fusionfirst": (6_303_812, 23_010_958, 11_347_492, 16_172_772),
}


class TestCSPDenseNet:
    @pytest.mark.parametrize("mode", MODES)
    def test_answers_as_the_original(self, mode, data, difference):
        oracle = part(data / "csp_densenet_tiny.npz", f"{mode}/")
        state = to_paddle(part(data / "csp_densenet_tiny.npz", f"{mode}/state/"))
        found = recognise(state)
        assert (found.arch, found.config["mode"]) == ("CSPDenseNet", mode)
        assert found.config["block_config"] == [2, 3, 2]
        assert difference(answers(loaded(found.build(), state), oracle["x"]), oracle["y"]) < 1e-5

    @pytest.mark.parametrize("mode", PARAMETERS)
    def test_the_other_modes_have_the_published_size(self, mode):
        models = [preset.build({"mode": mode}) for preset in presets(CSPDenseNet)]
        learning = [[p.size for p in model.parameters() if not p.stop_gradient] for model in models]
        assert tuple(map(sum, learning)) == PARAMETERS[mode]

    def test_wrong_mode_names_the_right_ones(self):
        with pytest.raises(ValueError, match=r"'middle'.*stand, fusionfirst, fusionlast"):
            create_model("cspdensenet121", mode="middle")

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"block_config": []}, "one number or more"), ({"num_init_features": 1}, "num_init_features=1 must be 2")],
    )
    def test_wrong_numbers_are_explained(self, change, message):
        with pytest.raises(ValueError, match=message):
            CSPDenseNet(**{**DENSENET, **change})

    def test_default_is_the_preset_and_other_modes_are_not(self):
        assert recognise(arrays(create_model("cspdensenet121", num_classes=3))).arch == "cspdensenet121"
        found = recognise(arrays(create_model("cspdensenet121", mode="stand", in_channels=1)))
        assert (found.arch, found.config["mode"]) == ("CSPDenseNet", "stand")
        assert found.config["in_channels"] == 1
        assert not found.warnings

    def test_one_block_alone(self):
        for mode, told in {"stand": "fusionlast", "fusionfirst": "fusionfirst", "fusionlast": "fusionlast"}.items():
            model = CSPDenseNet(8, [2], 12, num_classes=5, mode=mode)
            assert CSPDenseNet.recognise(arrays(model)).config["mode"] == told

    @pytest.mark.parametrize("mode", MODES)
    def test_part_1_goes_around_the_layers(self, mode, randomise):
        block = randomise(CSPDenseNet(**{**DENSENET, "num_init_features": 13}, mode=mode)).features.denseblock1
        block.eval()
        x = paddle.to_tensor(random_images(2, 13, 8, 8))
        changed = x.clone()
        changed[:, :6] = 0.0
        y, z = block(x).numpy(), block(changed).numpy()
        assert np.array_equal(y[:, :6], x[:, :6].numpy())
        assert np.array_equal(y[:, 6:], z[:, 6:])

    def test_recomputes_as_densenet_does(self, randomise):
        plain = randomise(CSPDenseNet(**DENSENET))
        frugal = loaded(CSPDenseNet(**DENSENET, memory_efficient=True), arrays(plain))
        frugal.train()
        calls = []
        for layer in frugal.sublayers():
            if isinstance(layer, DenseLayer):
                layer.conv1.register_forward_post_hook(lambda *_: calls.append(1))
        x = paddle.to_tensor(random_images(2, 3, 32, 32))
        for model in (plain, frugal):
            model(x).square().sum().backward()
        assert len(calls) == 2 * 7
        for (name, p), (_, q) in zip(plain.named_parameters(), frugal.named_parameters()):
            assert p.stop_gradient or np.array_equal(p.grad.numpy(), q.grad.numpy()), name


class TestCSPNet:
    def test_starts_as_the_original(self):
        model = create_model("cspresnext50")
        conv = model.stages[1].conv_down.conv  # grouped: the outputs count
        assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)
        assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert np.all(model.head.fc.bias.numpy() == 0)
        assert np.all(model.stages[2].blocks[1].conv3.bn.weight.numpy() == 0)
        assert np.all(create_model("cspdarknet53").stages[2].blocks[1].conv2.bn.weight.numpy() == 0)

    def test_leaves_timms_other_networks_alone(self):
        state = arrays(small("CSP resnet"))
        assert CSPNet.recognise({**state, "stem.conv2.conv.weight": np.zeros([8, 8, 3, 3], "f4")}) is None
        assert CSPNet.recognise({key: v for key, v in state.items() if "transition_b" not in key}) is None
        assert CSPNet.recognise(arrays(DenseNet(**DENSENET))) is None

    def test_a_missing_tensor_is_named(self):
        state = arrays(small("CSP darknet"))
        del state["stages.1.conv_transition.conv.weight"]
        with pytest.raises(WeightsError, match=r"stages\.1\.conv_transition\.conv\.weight"):
            recognise(state)

    def test_paddleclas_calls_the_classifier_fc(self, randomise):
        state = arrays(randomise(small("CSP darknet")))
        theirs = {name.replace("head.fc.", "fc."): value for name, value in state.items()}
        assert "fc.weight" in theirs
        assert list(match(theirs).state) == list(state)

    def test_a_whole_file_fits_the_pyramid(self, randomise, tmp_path):
        whole = randomise(small("CSP resnet"))
        pd_.save_weights(whole, tmp_path / "net.pdparams")
        for model in (small("CSP resnet", features_only=True), small("CSP resnet", num_classes=0)):
            pd_.load_weights(model, tmp_path / "net.pdparams")
            assert np.array_equal(model.stem.conv1.conv.weight.numpy(), whole.stem.conv1.conv.weight.numpy())

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
            small("CSP resnet", **change)
