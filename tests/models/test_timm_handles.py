"""What timm's users call on a model, on every network here, compared with timm where it has the same network."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense import create_model, load_model, load_weights, save_weights
from tests.helpers import SMALL, arrays, random_images, small
from tests.peers import peer

EVERY = pytest.mark.parametrize("kind", SMALL)
SHARED = ("densenet121", "cspresnet50", "cspdarknet53", "tf_efficientnet_cc_b0_4e")


def answers(layer, x: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return layer(paddle.to_tensor(x)).numpy()


def evaluating(model):
    model.eval()
    return model


def images(model) -> np.ndarray:
    return random_images(2, model.config["in_channels"], 64, 64)


@EVERY
def test_the_two_halves_are_the_whole(kind, randomise, difference):
    model = randomise(small(kind))
    model.eval()
    x = images(model)
    maps = paddle.to_tensor(answers(model.forward_features, x))
    assert maps.ndim == 4
    with paddle.no_grad():
        assert np.array_equal(model.forward_head(maps).numpy(), answers(model, x))
        pooled = model.forward_head(maps, pre_logits=True)
        assert np.array_equal(model.get_classifier()(pooled).numpy(), answers(model, x))


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_a_classifier_is_taken_out_and_put_in(kind, training, randomise, tmp_path):
    model = randomise(small(kind))
    model.train() if training else model.eval()
    before, x = arrays(model), images(model)
    prefix = f"{model.classifier_name}."
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), paddle.nn.Identity)
    assert list(model.state_dict()) == list(small(kind, num_classes=0).state_dict())
    assert model.num_classes == 0 and model.config["num_classes"] == 0
    model.reset_classifier(5)
    fresh = small(kind, num_classes=5)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
    assert model.config == fresh.config
    assert all(np.array_equal(v, before[k]) for k, v in arrays(model).items() if not k.startswith(prefix))
    names = [parameter.name for parameter in model.parameters()]
    assert len(set(names)) == len(names) and all(name.startswith(model.parameter_prefix) for name in names)
    assert all(layer.training is training for layer in model.sublayers())
    model.eval()
    assert answers(model, x).shape == (2, 5)
    save_weights(model, tmp_path / "net.pdparams")
    assert np.array_equal(answers(evaluating(load_model(tmp_path / "net.pdparams")), x), answers(model, x))


def test_without_a_head_there_is_no_classifier():
    model = small("DenseNet", features_only=True)
    assert isinstance(model.get_classifier(), paddle.nn.Identity)
    with pytest.raises(ValueError, match="features_only=True has no classifier: build it without features_only"):
        model.reset_classifier(3)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("out_indices", [(1, 3), (-2, -1), (4,)])
def test_levels_are_chosen_as_timm_chooses_them(name, out_indices):
    timm = peer("timm")
    theirs = timm.create_model(name, features_only=True, out_indices=out_indices).eval()
    ours = evaluating(create_model(name, features_only=True, out_indices=out_indices))
    channels, strides = theirs.feature_info.channels(), theirs.feature_info.reduction()
    assert (ours.feature_channels, ours.feature_strides) == (channels, strides)
    shapes = [[1, channel, 64 // stride, 64 // stride] for channel, stride in zip(channels, strides)]
    assert [list(level.shape) for level in ours(paddle.zeros([1, 3, 64, 64]))] == shapes


@EVERY
def test_chosen_levels_are_those_of_the_whole_pyramid(kind, randomise):
    model = randomise(small(kind, features_only=True))
    model.eval()
    x = images(model)
    with paddle.no_grad():
        whole = [level.numpy() for level in model(paddle.to_tensor(x))]
        model.choose_levels([0, -1])
        chosen = [level.numpy() for level in model(paddle.to_tensor(x))]
    assert len(chosen) == len(model.feature_channels) == len(model.feature_strides) == 2
    assert np.array_equal(chosen[0], whole[0]) and np.array_equal(chosen[1], whole[-1])


def test_levels_are_those_of_a_pyramid_that_are_there():
    with pytest.raises(ValueError, match=r"densenet121 has no levels \[5\]: give ascending ones of \[0, 1, 2, 3, 4\]"):
        create_model("densenet121", features_only=True, out_indices=[5])
    with pytest.raises(ValueError, match="among the levels of the pyramid: give features_only=True with it"):
        create_model("cdnv2_a", out_indices=[1])


@pytest.mark.parametrize("name", ["densenet121", "cspresnet50", "cdnv2_a", "condensenet50", "tf_efficientnet_cc_b0_4e"])
def test_pretrained_cfg_is_the_presets(name):
    model = create_model(name)
    told, layers = model.pretrained_cfg, dict(model.named_sublayers())
    assert (told["architecture"], told["num_classes"], told["tag"]) == (name, model.num_classes, None)
    assert told["input_size"] == (3, model.input_size, model.input_size)
    assert layers[told["classifier"]] is model.get_classifier()
    assert layers[told["first_conv"]].weight.shape[1] == 3


@pytest.mark.parametrize("name", SHARED)
def test_halves_are_those_of_timm(name, randomise, difference, tmp_path):
    timm = peer("timm")
    import torch

    theirs = randomise(timm.create_model(name, num_classes=7)).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    ours = create_model(name, pretrained=tmp_path / "net.pth", num_classes=7)
    ours.eval()
    ours, theirs = ours.to(dtype="float64"), theirs.double()
    x = random_images(1, 3, 64, 64, dtype="float64")
    with torch.no_grad(), paddle.no_grad():
        maps, expected = ours.forward_features(paddle.to_tensor(x)), theirs.forward_features(torch.from_numpy(x))
        assert difference(maps, expected) < 1e-10
        for pre_logits in (False, True):
            found = ours.forward_head(maps, pre_logits=pre_logits)
            assert difference(found, theirs.forward_head(expected, pre_logits=pre_logits)) < 1e-10
    cfg = theirs.pretrained_cfg
    assert (ours.pretrained_cfg["first_conv"], ours.pretrained_cfg["classifier"]) == (
        cfg["first_conv"].removesuffix(".conv") + (".conv" if name.startswith("csp") else ""),
        cfg["classifier"],
    )


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["densenet121", "cspresnet50"])
def test_other_channels_get_the_weights_that_timm_gives_them(channels, name, randomise, tmp_path, difference):
    timm = peer("timm")
    import torch

    torch.save(randomise(timm.create_model(name)).state_dict(), tmp_path / "net.pth")
    overlay = {"file": str(tmp_path / "net.pth")}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=channels).eval()
    how = "summed" if channels == 1 else "repeated and scaled"
    with pytest.warns(UserWarning, match=rf"of 3 channels and the model of {channels}: .* were {how}"):
        ours = create_model(name, pretrained=tmp_path / "net.pth", in_channels=channels)
    with pytest.warns(UserWarning, match=f"were {how}"):
        rebuilt = load_model(tmp_path / "net.pth", in_channels=channels)
    first = f"{ours.pretrained_cfg['first_conv']}.weight"
    for model in (ours, rebuilt):
        assert difference(model.state_dict()[first], theirs.state_dict()[first]) < 1e-6
    with pytest.raises(ValueError, match=r"needs \[\d+, \d, "):
        load_weights(create_model(name, in_channels=channels), tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: create_model("densnet121"), "unknown model 'densnet121' (did you mean 'densenet121'?)"),
        (lambda: create_model("densenet121", in_chans=1), "no argument 'in_chans' (did you mean 'in_channels'?)"),
        (lambda: create_model("densenet121", class_num=1), "no argument 'class_num' (did you mean 'num_classes'?)"),
        (lambda: create_model("densenet121", num_clases=1), "no argument 'num_clases' (did you mean 'num_classes'?)"),
        (lambda: create_model("resnet"), "unknown model 'resnet': choose"),
    ],
)
def test_who_asks_for_what_is_not_there_is_asked_what_was_meant(call, meant):
    with pytest.raises(ValueError) as caught:
        call()
    assert meant in str(caught.value) and "\n" not in str(caught.value)
