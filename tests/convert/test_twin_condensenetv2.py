"""The PyTorch twin of CondenseNet V2: it answers as the original, and the Paddle network answers as it does."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense.files.layout import to_paddle
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.layers import LGC, SFR
from paddle_dense.models import CondenseNetV2 as PaddleNetwork
from paddle_dense.zoo import cdnv2_a

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")

from convert.torch_models import condensenetv2 as twins

FORMS = pytest.mark.parametrize("condensed", [True, False], ids=["condensed", "trained"])
SMALL = {"stages": [1, 2, 1], "growth": [8, 8, 16], "fc_channel": 24, "SE_start_block": 1, "num_classes": 7}
SMALL.update(group_1x1=4, group_3x3=4, group_trans=4)
VARIANTS = {
    "CIFAR form": SMALL,
    "ImageNet form": {**SMALL, "stages": [1, 1, 2, 1, 1], "growth": [8, 8, 8, 16, 16], "HS_start_block": 3},
    "six groups": {**SMALL, "growth": [6, 6, 12], "group_1x1": 6, "group_3x3": 6, "group_trans": 6},
    "other groups everywhere": {**SMALL, "group_1x1": 2, "group_3x3": 8, "group_trans": 4},
    "C < G in conv_1": {**SMALL, "condense_factor": 2},
    "C < G in sfr": {**SMALL, "trans_factor": 2},
    "C > G in sfr": {**SMALL, "trans_factor": 8},
    "SE and HS from the first block": {**SMALL, "SE_start_block": 0, "HS_start_block": 0},
    "one channel, no classes": {**SMALL, "in_channels": 1, "num_classes": 0},
    "stride 2": {**SMALL, "init_stride": 2, "last_se_reduction": 4, "bottleneck": 2},
}
EVERY_VARIANT = pytest.mark.parametrize("config", list(VARIANTS.values()), ids=list(VARIANTS))


def load(twin: torch.nn.Module, state: dict[str, np.ndarray]) -> torch.nn.Module:
    """A PyTorch state_dict of arrays into the twin, strictly."""
    twin.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
    return twin.eval()


def as_torch(state: dict[str, paddle.Tensor]) -> dict[str, np.ndarray]:
    """A Paddle state_dict under PyTorch's names and in PyTorch's layout."""
    found = {}
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        leaf = {"_mean": "running_mean", "_variance": "running_var"}.get(leaf, leaf)
        array = tensor.numpy()
        found[f"{owner}.{leaf}"] = array.T if leaf == "weight" and array.ndim == 2 else array
        if leaf == "running_var":
            found[f"{owner}.num_batches_tracked"] = np.int64(0)
    return found


@pytest.fixture
def pair(randomise):
    """``pair(config)``: the same network in both frameworks, in the same non-trivial state."""

    def build(**config):
        network = randomise(PaddleNetwork(**config))
        network.eval()
        return network, load(twins.CondenseNetV2(**config), as_torch(network.state_dict()))

    return build


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


# Against the original


@pytest.mark.parametrize(
    ("name", "condensed", "logits"),
    [
        ("trained_unconverted.pth.tar", False, "logits_unconverted"),
        ("converted.pth", True, "logits_converted"),
    ],
)
def test_the_twin_answers_as_the_original(name, condensed, logits, data, tiny, difference):
    oracle = np.load(data / "cdnv2_tiny_io.npz")
    twin = load(twins.CondenseNetV2(**tiny, condensed=condensed), read_checkpoint(data / f"cdnv2_tiny_{name}").state)
    with torch.no_grad():
        assert difference(twin(torch.from_numpy(oracle["x_eval"])), oracle[logits]) < 1e-6


def test_the_twin_of_cdnv2_a_answers_as_the_original(oracles, difference):
    oracle = np.load(oracles / "cdnv2_a_io.npz")
    config = {key: value for key, value in cdnv2_a().config.items() if key != "features_only"}
    twin = load(twins.CondenseNetV2(**config), read_checkpoint(oracles / "cdnv2_a.pth").state)
    with torch.no_grad():
        assert difference(twin(torch.from_numpy(oracle["x"])), oracle["logits"]) < 1e-6


@FORMS
def test_the_twins_names_are_the_originals(condensed, data, tiny):
    original = read_checkpoint(data / ("cdnv2_tiny_converted.pth" if condensed else "cdnv2_tiny_init.pth")).state
    twin = twins.CondenseNetV2(**tiny, condensed=condensed).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in twin.items()} == {
        name: array.shape for name, array in original.items()
    }


# Against Paddle


@EVERY_VARIANT
@FORMS
def test_both_frameworks_answer_the_same_in_every_size(config, condensed, pair, difference):
    network, twin = pair(**config, condensed=condensed)
    for height, width in ((32, 32), (33, 33), (64, 96)):
        x = numbers(2, config.get("in_channels", 3), height, width)
        with torch.no_grad(), paddle.no_grad():
            assert difference(network(paddle.to_tensor(x)), twin(torch.from_numpy(x))) < 1e-6


@EVERY_VARIANT
@FORMS
def test_names_and_values_map_there_and_back(config, condensed, pair):
    network, twin = pair(**config, condensed=condensed)
    mapped = to_paddle({name: tensor.numpy() for name, tensor in twin.state_dict().items()})
    own = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    assert set(mapped) == set(own)
    assert all((mapped[name] == own[name]).all() for name in own)


@pytest.mark.parametrize("config", [SMALL, VARIANTS["C < G in sfr"]], ids=["C = G", "C < G"])
@FORMS
def test_both_frameworks_learn_the_same(config, condensed, pair, difference):
    """Loss and every gradient of one step in training mode."""
    network, twin = pair(**config, condensed=condensed)
    network.train(), twin.train()
    x, y = numbers(8, 3, 32, 32), np.arange(8) % 7
    loss = paddle.nn.functional.cross_entropy(network(paddle.to_tensor(x)), paddle.to_tensor(y))
    loss.backward()
    expected = torch.nn.functional.cross_entropy(twin(torch.from_numpy(x)), torch.from_numpy(y))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = to_paddle({name: tensor.grad.numpy() for name, tensor in twin.named_parameters()})
    own = {name: tensor.grad for name, tensor in network.named_parameters() if not tensor.stop_gradient}
    assert set(own) == set(gradients)
    for name, gradient in own.items():
        assert difference(gradient, gradients[name]) < 1e-4, name


@EVERY_VARIANT
def test_both_frameworks_drop_the_same_connections(config, randomise, difference):
    """Masks, counters and group lasso at every point of training, from the same weights."""
    network = PaddleNetwork(**config, condensed=False)
    twin = load(twins.CondenseNetV2(**config, condensed=False), as_torch(network.state_dict()))
    modules = dict(twin.named_modules())
    layers = {name: layer for name, layer in network.named_sublayers() if isinstance(layer, (LGC, SFR))}
    assert len(layers) == sum(isinstance(module, twins.LearnedConnections) for module in modules.values())
    for progress in (0.0, 0.1, 0.3, 0.45, 1.0):
        for name, layer in layers.items():
            module = modules[name]
            layer.set_progress(progress)
            module.set_progress(progress)
            for buffer in ("_mask", "_count", "_stage"):
                assert (getattr(layer, buffer).numpy() == getattr(module, buffer).numpy()).all(), (name, buffer)
            assert layer.group_lasso().item() == pytest.approx(module.group_lasso().item(), rel=1e-6)
    assert layers[name].density < 1


def test_the_twin_starts_as_the_original_does():
    twin = twins.CondenseNetV2(**SMALL, condensed=False)
    for module in twin.modules():
        if isinstance(module, torch.nn.Conv2d):
            scaled = module.weight / (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert scaled.std().item() == pytest.approx(1, abs=5 / (2 * scaled.numel()) ** 0.5)
        elif isinstance(module, twins.LearnedConnections):
            assert (module._mask == 1).all() and module._stage == 0 and module._count == 0
