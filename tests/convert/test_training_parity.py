"""Training in lockstep: that both frameworks do the same, that it is the original's, and that mistakes are named."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import paddle
import pytest

from paddle_dense import models
from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import to_paddle, to_torch
from paddle_dense.files.torch_file import read_checkpoint
from paddle_dense.layers import HS
from paddle_dense.models.fitting import set_state
from paddle_dense.training import learned_connections, set_progress
from tests.helpers import answers, arrays, twin_class

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")

from convert.parity import forward, training
from convert.parity.training import NO_DROPOUT

CONDENSENETV2 = {"stages": [1, 1], "growth": [8, 8], "fc_channel": 16, "HS_start_block": 1, "SE_start_block": 1}
CONDENSENETV2.update(group_1x1=4, group_3x3=4, group_trans=4, num_classes=5)
CONDENSENET = {"stages": [1, 1], "growth": [8, 16], "num_classes": 5}
DENSENET = {"growth_rate": 8, "block_config": [1, 2], "num_init_features": 12, "bn_size": 2, "num_classes": 5}
CSPNET = {"backbone": "resnet", "depths": [1, 1], "channels": [16, 24], "expand_ratio": [2.0, 2.0], "num_classes": 5}
CSPNET.update(bottle_ratio=[0.5, 0.5], stem_channels=8, groups=1)
EFFICIENTNET = {"channel_multiplier": 0.25, "depth_multiplier": 0.3, "num_experts": 2, "num_classes": 5}
FAMILIES = {
    "CondenseNetV2, trained form": ("CondenseNetV2", {**CONDENSENETV2, "condensed": False}),
    "CondenseNetV2, condensed form": ("CondenseNetV2", CONDENSENETV2),
    "CondenseNet, trained form": ("CondenseNet", {**CONDENSENET, "condensed": False}),
    "CondenseNet, condensed form": ("CondenseNet", CONDENSENET),
    "DenseNet": ("DenseNet", DENSENET),
    "DenseNet, memory-efficient": ("DenseNet", {**DENSENET, "memory_efficient": True}),
    "CIFAR DenseNet": ("DenseNet", {**DENSENET, "small_inputs": True, "bn_size": 0, "compression": 1.0}),
    "CSPDenseNet": ("CSPDenseNet", {**DENSENET, "mode": "stand"}),
    "CSPNet": ("CSPNet", CSPNET),
    "EfficientNetCondConv": ("EfficientNetCondConv", EFFICIENTNET),
}
FIRST = "features.denseblock_1.denselayer_1"


def pair(name, config):
    """The PyTorch twin and the Paddle network with the twin's fresh weights, no connection dropped yet."""
    twin, model = twin_class(name)(**config), getattr(models, name)(**config)
    set_state(model, to_paddle(arrays(twin)))
    return twin, model


def random_batches(steps, size=32, classes=5):
    random = np.random.default_rng(1)
    return [
        (random.standard_normal((4, 3, size, size), np.float32), random.integers(classes, size=4)) for _ in range(steps)
    ]


@pytest.fixture
def learning():
    """A small CondenseNet V2 before training, in both frameworks."""
    return pair(*FAMILIES["CondenseNetV2, trained form"])


# Both frameworks do the same


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_alike(name, randomise):
    """In float64, without synchronising anything: loss, masks, every gradient and every update of three steps."""
    twin, model = pair(*FAMILIES[name])
    if ", condensed" in name:
        randomise(model)  # an index that connects something
        forward.load_torch_state(twin, to_torch(arrays(model)))
    # An EfficientNet leaves one pixel of 32, too little for a BN.
    batches = random_batches(3, size=64 if name == "EfficientNetCondConv" else 32)
    with forward.exact_pair(twin, model) as exact:
        result = training.compare_training(*exact, batches, learning_rate=0.01, tolerance=1e-9)
    assert result.first_difference is None
    assert result.agrees
    assert result.exact == (), "what is in float64 already needs no second run"
    assert all(step.masks_equal for step in result.steps)
    if ", trained" in name:
        assert result.steps[0].torch_lasso > result.steps[-1].torch_lasso


def test_float32_differs_by_rounding_that_float64_settles(learning):
    loose = training.compare_training(*learning, random_batches(2), tolerance=1e-2)
    assert loose.agrees
    assert loose.exact == ()
    assert loose.warnings == ()
    tight = training.compare_training(*learning, random_batches(2), tolerance=1e-8)
    assert tight.agrees
    assert len(tight.exact) == 2
    assert tight.steps == training.compare_training(*learning, random_batches(2), tolerance=1e-8).steps
    assert max(step.gradient.size for step in tight.exact) < 1e-9
    assert len(tight.warnings) == 1
    assert "in float64 every step is the same to" in tight.warnings[0]


def test_the_networks_stay_as_they_are(learning):
    twin, model = learning
    twin.eval()
    before = {name: value.copy() for name, value in arrays(model).items()}
    training.compare_training(twin, model, random_batches(2))
    assert not twin.training
    assert model.training
    theirs = to_paddle(arrays(twin))
    for name, value in arrays(model).items():
        assert (value == before[name]).all()
        assert (theirs[name] == before[name]).all()


def test_progress_may_be_that_of_a_longer_training(learning):
    batches = random_batches(2)
    stages = []
    for steps in (None, 2, 1000):
        result = training.compare_training(*learning, batches, steps=steps)
        assert result.agrees
        stages.append(result.steps[1].torch_lasso)
    assert stages[0] == stages[1] == 0, "half of two steps: everything has been dropped, and the lasso with it"
    assert stages[2] > 0


@pytest.mark.parametrize(
    ("network", "config"),
    [
        ("CondenseNet", {**CONDENSENET, "condensed": False, "dropout_rate": 0.5}),
        ("DenseNet", {**DENSENET, "drop_rate": 0.5}),
        ("EfficientNetCondConv", {**EFFICIENTNET, "drop_rate": 0.2, "drop_path_rate": 0.2}),
    ],
)
def test_dropout_is_switched_off_and_said_so(network, config):
    twin, model = pair(network, config)
    result = training.compare_training(twin, model, random_batches(1), learning_rate=0.01)
    assert result.agrees
    assert result.warnings[0] == NO_DROPOUT
    assert any(getattr(layer, "p", 0) > 0 for layer in model.sublayers()), "the network itself keeps its dropout"


def test_gradients_of_equal_weights_differ_in_float32_only_where_an_activation_crosses_a_kink(data, tiny, difference):
    """The reason why float32 parts: see the docstring of `convert.parity.training`."""
    oracle = np.load(data / "cdnv2_tiny_lockstep.npz")
    twin, model = pair("CondenseNetV2", {**tiny, "condensed": False})
    forward.load_torch_state(twin, read_checkpoint(data / "cdnv2_tiny_init.pth").state)
    optimizer = torch.optim.SGD(twin.parameters(), 0.05, 0.9, weight_decay=1e-4, nesterov=True)
    inputs = {}

    def remember(name, framework):
        return lambda layer, x: inputs.__setitem__((framework, name), x[0].detach().numpy().copy())

    kinks = {}
    for name, layer in model.named_sublayers():
        if isinstance(layer, (HS, paddle.nn.ReLU)):
            kinks[name] = (-3, 3) if isinstance(layer, HS) else (0,)
            layer.register_forward_pre_hook(remember(name, "paddle"))
            dict(twin.named_modules())[name].register_forward_pre_hook(remember(name, "torch"))

    for step, (x, y) in enumerate(zip(oracle["X"], oracle["Y"])):
        set_state(model, to_paddle(arrays(twin)))
        for module in (*twin.modules(), *model.sublayers()):
            if hasattr(module, "set_progress"):
                module.set_progress(step / 24)
        optimizer.zero_grad()
        model.clear_gradients()
        torch.nn.functional.cross_entropy(twin(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        paddle.nn.functional.cross_entropy(model(paddle.to_tensor(x)), paddle.to_tensor(y)).backward()
        expected = to_paddle({name: value.grad.numpy() for name, value in twin.named_parameters()})
        found = {name: value.grad for name, value in model.named_parameters() if not value.stop_gradient}
        largest = max(difference(found[name], expected[name]) for name in expected)
        crossed = sum(
            int(((inputs["paddle", name] > kink) != (inputs["torch", name] > kink)).sum())
            for name in kinks
            for kink in kinks[name]
        )
        assert largest < (2e-5 if crossed == 0 else 0.05), (step, crossed)
        optimizer.step()


# Mistakes are found and named


def wrong_weight(model, monkeypatch):
    weight = model.state_dict()[f"{FIRST}.conv_2.conv.weight"]
    changed = weight.numpy()
    changed.flat[7] *= 1 + 1e-5
    weight.set_value(changed)


def wrong_mask(model, monkeypatch):
    mask = model.state_dict()[f"{FIRST}.sfr._mask"]
    changed = mask.numpy()
    changed[0, 0] = 0
    mask.set_value(changed)


def wrong_schedule(model, monkeypatch):
    learned_connections(model)[f"{FIRST}.sfr"].condense_factor = 2


def wrong_lasso(model, monkeypatch):
    layer = learned_connections(model)[f"{FIRST}.conv_1"]
    monkeypatch.setattr(type(layer), "group_lasso", lambda self: 1.001 * type(layer).__mro__[1].group_lasso(self))


def wrong_activation(model, monkeypatch):
    model.features.denseblock_2.denselayer_1.conv_2.activation = paddle.nn.ReLU()


def wrong_statistics(model, monkeypatch):
    model.features.norm_last._momentum = 0.99


def frozen_statistics(model, monkeypatch):
    model.features.denseblock_1.denselayer_1.conv_2.norm._use_global_stats = True


def frozen_weight(model, monkeypatch):
    model.fc.weight.stop_gradient = True


def wrong_backward(model, monkeypatch):
    def scale(layer, inputs, output):
        output.register_hook(lambda gradient: gradient * 1.001)

    model.features.denseblock_2.denselayer_1.conv_2.register_forward_post_hook(scale)


def wrong_optimizer(**changes):
    def change(model, monkeypatch):
        momentum = paddle.optimizer.Momentum
        monkeypatch.setattr(
            paddle.optimizer, "Momentum", lambda *args, **kwargs: momentum(*args, **{**kwargs, **changes})
        )

    return change


@pytest.mark.parametrize(
    ("mistake", "step", "what", "name"),
    [
        (wrong_weight, 0, "initial value", f"{FIRST}.conv_2.conv.weight"),
        (wrong_mask, 0, "initial value", f"{FIRST}.sfr._mask"),
        (wrong_schedule, 1, "mask", f"{FIRST}.sfr._"),
        (wrong_lasso, 0, "group lasso", f"{FIRST}.conv_1"),
        (wrong_activation, 0, "output", "features.denseblock_2.denselayer_1.conv_2.activation"),
        (frozen_statistics, 0, "output", f"{FIRST}.conv_2.norm"),
        (wrong_backward, 0, "gradient", "features.denseblock_2.denselayer_1.conv_2.conv.weight"),
        (frozen_weight, 0, "gradient", "fc.weight"),
        (wrong_statistics, 0, "update", "features.norm_last._mean"),
        (wrong_optimizer(use_nesterov=False), 0, "update", "features.init_conv.weight"),
        (wrong_optimizer(weight_decay=1.01e-4), 0, "update", ""),
    ],
)
def test_a_mistake_is_found_in_its_step_and_tensor(learning, monkeypatch, mistake, step, what, name):
    twin, model = learning
    mistake(model, monkeypatch)
    result = training.compare_training(twin, model, random_batches(6)[:2], steps=6)
    assert not result.agrees
    first = result.first_difference
    assert (first.step, first.what) == (step, what)
    assert first.name.startswith(name)
    assert name in str(first)
    assert f"step {step}, {what}" in str(first)
    assert result.steps[0].masks_equal is not (what == "initial value" and name.endswith("_mask"))


def test_a_wrong_momentum_is_found_in_the_first_update(learning, monkeypatch):
    twin, model = learning
    momentum = paddle.optimizer.Momentum
    monkeypatch.setattr(paddle.optimizer, "Momentum", lambda rate, m, **kwargs: momentum(rate, 0.899, **kwargs))
    first = training.compare_training(twin, model, random_batches(1)).first_difference
    assert (first.step, first.what, first.name) == (0, "update", "features.init_conv.weight")
    assert first.size == pytest.approx(0.001 / 1.9, rel=0.1), "the way of a first step is (1 + momentum) times gradient"


def test_networks_that_are_not_the_same_are_one_sentence(learning):
    twin, model = learning
    _, other = pair("CondenseNetV2", {**CONDENSENETV2, "condensed": False, "fc_channel": 24})
    with pytest.raises(WeightsError, match=r"fc.weight is \[32, 16\] in the PyTorch network") as error:
        training.compare_training(twin, other, random_batches(1))
    assert "\n" not in str(error.value)
    _, condensed = pair("CondenseNetV2", CONDENSENETV2)
    with pytest.raises(WeightsError, match="absent"):
        training.compare_training(twin, condensed, random_batches(1))
    with pytest.raises(ValueError, match="there is none"):
        training.compare_training(twin, model, [])
    for module in twin.modules():
        if hasattr(module, "set_progress"):
            module.__class__ = type("Unknown", (torch.nn.Module,), {"forward": type(module).forward})
    with pytest.raises(ValueError, match="give the PyTorch layer set_progress and group_lasso"):
        training.compare_training(twin, model, random_batches(1))


# The running variance


@contextmanager
def pytorch_running_variance(model):
    handles = training.follow_pytorch_variance(model)
    yield
    for handle in handles:
        handle.remove()


def test_the_running_variance_becomes_pytorchs():
    """With batches and images of different sizes, so that no one factor would do."""
    theirs, ours, plain = torch.nn.BatchNorm2d(3), paddle.nn.BatchNorm2D(3), paddle.nn.BatchNorm2D(3)
    random = np.random.default_rng(0)
    with pytorch_running_variance(ours):
        for shape in ((2, 3, 1, 1), (4, 3, 5, 5), (2, 3, 2, 3)):
            x = random.standard_normal(shape, np.float32)
            expected = theirs(torch.from_numpy(x)).detach().numpy()
            for layer in (ours, plain):
                np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, atol=1e-5)
    variance = theirs.running_var.numpy()
    np.testing.assert_allclose(ours._variance.numpy(), variance, rtol=1e-6)
    np.testing.assert_allclose(ours._mean.numpy(), theirs.running_mean.numpy(), atol=1e-6)
    assert np.abs(plain._variance.numpy() / variance - 1).max() > 0.01

    ours.eval()
    with pytorch_running_variance(ours):
        ours(paddle.to_tensor(x))
    np.testing.assert_allclose(ours._variance.numpy(), variance, rtol=1e-6)
    ours.train()
    ours(paddle.to_tensor(x))
    theirs(torch.from_numpy(x))
    assert np.abs(ours._variance.numpy() - theirs.running_var.numpy()).max() > 1e-4, "outside, it is Paddle's again"


# Against the original


def lockstep(model, batches, steps):
    """Plain Paddle: the recipe of the lockstep oracles; yields each step's numbers before its update."""
    optimizer = paddle.optimizer.Momentum(
        0.05, 0.9, parameters=model.parameters(), use_nesterov=True, weight_decay=1e-4
    )
    layers = list(learned_connections(model).values())
    model.train()
    for step, (x, y) in enumerate(batches):
        set_progress(model, step / steps)
        loss = paddle.nn.functional.cross_entropy(model(paddle.to_tensor(x, model.parameters()[0].dtype)), y)
        lasso = sum(layer.group_lasso() for layer in layers)
        (loss + 1e-5 * lasso).backward()
        gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if not p.stop_gradient}
        yield {"loss": loss.item(), "lasso": float(lasso), "count": layers[0]._count.item(), "gradients": gradients}
        optimizer.step()
        optimizer.clear_grad()


def batches_of(oracle):
    return list(zip(oracle["X"], map(paddle.to_tensor, oracle["Y"])))


def whole_training(model, oracle):
    """The steps of an oracle's training, and the state and the logits that it ends with."""
    with pytorch_running_variance(model):
        steps = list(lockstep(model, batches_of(oracle), len(oracle["X"])))
    return steps, arrays(model), answers(model, oracle["x_eval"].astype(model.parameters()[0].numpy().dtype))


def gradients_of(oracle, step):
    names = [name for name in oracle.files if name.startswith(f"grad{step}/")]
    return to_paddle({name.partition("/")[2]: oracle[name] for name in names})


def test_the_first_steps_are_the_originals(data, tiny, tiny_state, difference):
    """As far as the first connections are dropped: losses, group lasso, counters and gradients."""
    oracle = np.load(data / "cdnv2_tiny_lockstep.npz")
    model = models.CondenseNetV2(**tiny, condensed=False)
    set_state(model, tiny_state("init.pth"))
    steps = list(lockstep(model, batches_of(oracle), 24))
    np.testing.assert_allclose([step["loss"] for step in steps], oracle["losses"], atol=1e-5)
    np.testing.assert_allclose([step["lasso"] for step in steps], oracle["lasso"], rtol=1e-6)
    assert [step["count"] for step in steps] == [0, 0, 0, 0, 4] == list(oracle["count"])
    for name, gradient in gradients_of(oracle, 0).items():
        assert difference(steps[0]["gradients"][name], gradient) < 2e-5, name


def test_logits_after_training_are_pytorchs_with_its_running_variance(data, tiny):
    """In float64, where the definition of the running variance is all that is left of a difference."""
    oracle = np.load(data / "cdnv2_tiny_lockstep.npz")
    images, classes = oracle["X"][:2], oracle["Y"][:2]
    batches = list(zip(images, map(paddle.to_tensor, classes)))
    twin, model = pair("CondenseNetV2", {**tiny, "condensed": False})
    with forward.exact_pair(twin, model) as (twin, corrected):
        plain = forward.paddle_in_double_precision(corrected)
        with pytorch_running_variance(corrected):
            list(lockstep(corrected, batches, 24))
        list(lockstep(plain, batches, 24))
        momentum, decay = float(np.float32(0.9)), float(np.float32(1e-4))
        optimizer = torch.optim.SGD(twin.parameters(), 0.05, momentum, weight_decay=decay, nesterov=True)
        layers = [module for module in twin.modules() if hasattr(module, "set_progress")]
        for step, (x, y) in enumerate(zip(images, classes)):
            for layer in layers:
                layer.set_progress(step / 24)
            loss = torch.nn.functional.cross_entropy(twin(torch.from_numpy(x).double()), torch.from_numpy(y))
            optimizer.zero_grad()
            (loss + 1e-5 * sum(layer.group_lasso() for layer in layers)).backward()
            optimizer.step()
        assert forward.compare(twin, corrected, images[:1]).max_rel_diff < 1e-12
        assert forward.compare(twin, plain, images[:1]).max_rel_diff > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "network", "dtype", "losses", "logits"),
    [
        ("cdnv2", "CondenseNetV2", "float32", 1e-4, 5e-3),
        ("cdnv2", "CondenseNetV2", "float64", 1e-4, 3e-3),
        ("condensenet", "CondenseNet", "float32", 5e-3, 3e-2),
    ],
)
def test_the_whole_training_is_the_originals(oracles, difference, tiny, name, network, dtype, losses, logits):
    """Masks and counters exactly; numbers as far as float32 carries them.

    The twin in PyTorch itself, with 1, 2 or 4 threads, is as far from these oracles: the CondenseNet's losses differ by
    up to 2e-3 and its logits by up to 1e-2 of their scale, and gradients of CondenseNet V2 in step 12 by 0.05 to 0.09.
    That one's oracle, which is in float32 itself, is 2.3e-3 from float64; float32 here may be as far on the other side.
    """
    oracle = np.load(oracles / f"{name}_tiny_lockstep.npz")
    config = tiny if name == "cdnv2" else {"stages": [3, 3, 3], "growth": [8, 16, 32], "num_classes": 10}
    model = getattr(models, network)(**config, condensed=False)
    set_state(model, to_paddle(read_checkpoint(oracles / f"{name}_tiny_init.pth").state))
    if dtype == "float64":
        with forward.double_precision():
            steps, found, answer = whole_training(forward.paddle_in_double_precision(model), oracle)
    else:
        steps, found, answer = whole_training(model, oracle)

    np.testing.assert_allclose([step["loss"] for step in steps], oracle["losses"], atol=losses)
    np.testing.assert_allclose([step["loss"] for step in steps[:5]], oracle["losses"][:5], atol=1e-4)
    np.testing.assert_allclose([step["lasso"] for step in steps], oracle["lasso"], rtol=2e-6)
    if name == "cdnv2":
        assert [step["count"] for step in steps] == list(oracle["count"])
        for key, gradient in gradients_of(oracle, 0).items():
            assert difference(steps[0]["gradients"][key], gradient) < 2e-5, key
        expected = gradients_of(oracle, 12)
        squares = [
            (np.square(steps[12]["gradients"][key] - g).sum(), np.square(g).sum()) for key, g in expected.items()
        ]
        assert np.divide(*np.sum(squares, axis=0)) ** 0.5 < 0.02

    trained = to_paddle(read_checkpoint(oracles / f"{name}_tiny_trained_unconverted.pth.tar").state)
    for key in trained:
        if key.endswith(("._mask", "._count", "._stage")):
            assert (found[key] == trained[key]).all(), key
    assert difference(answer, oracle["logits_unconverted"]) < logits
    assert (answer.argmax(1) == oracle["logits_unconverted"].argmax(1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cdnv2", "condensenet"])
def test_the_whole_training_is_pytorchs(oracles, tiny, name):
    """In float64 nothing is left of float32's parting: every gradient and update of every step, unsynchronised."""
    oracle = np.load(oracles / f"{name}_tiny_lockstep.npz")
    config = tiny if name == "cdnv2" else {"stages": [3, 3, 3], "growth": [8, 16, 32], "num_classes": 10}
    network = "CondenseNetV2" if name == "cdnv2" else "CondenseNet"
    twin, model = pair(network, {**config, "condensed": False})
    state = read_checkpoint(oracles / f"{name}_tiny_init.pth").state
    forward.load_torch_state(twin, state)
    set_state(model, to_paddle(state))
    batches = list(zip(oracle["X"], oracle["Y"]))
    single = training.compare_training(twin, model, batches, tolerance=np.inf)
    assert all(step.masks_equal for step in single.steps)
    with forward.exact_pair(twin, model) as exact:
        result = training.compare_training(*exact, batches, tolerance=1e-9)
    assert result.agrees
