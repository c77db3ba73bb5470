"""Mixup, CutMix, weighted classes, frozen layers, optimizers, layer-wise rates: against PyTorch and timm."""

from __future__ import annotations

import copy

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

import paddle_dense as pd_
from paddle_dense.files.layout import to_torch
from paddle_dense.training.freezing import freeze
from paddle_dense.training.mixing import Mixing, SharedLoss, WeightedCrossEntropy, class_weights
from paddle_dense.training.optimizers import OPTIMIZERS, decay_rates, make_optimizer
from paddle_dense.training.recipes import recipe
from paddle_dense.training.schedule import WarmupDecay
from tests.helpers import arrays, loaded, random_images, small
from tests.peers import peer

RANDOM = np.random.default_rng(0)


def batch(images=6, size=(20, 24), classes=4):
    x = RANDOM.standard_normal((images, 3, *size)).astype("f4")
    return paddle.to_tensor(x), paddle.to_tensor(RANDOM.integers(0, classes, images))


def test_mixup_is_timms_with_the_same_share():
    torch, mixup = pytest.importorskip("torch"), peer("timm.data.mixup")

    x, labels = batch()
    mixed, targets = Mixing(4, 0.4, 0.0, seed=1)(5, x, labels)
    # One number tells the share; timm makes the rest of it.
    before, other = x.numpy()[0, 0, 0, 0], x.numpy()[-1, 0, 0, 0]
    share = float((mixed.numpy()[0, 0, 0, 0] - other) / (before - other))
    assert 0 < share < 1
    expected = torch.tensor(x.numpy())
    expected = expected * share + expected.flip(0) * (1 - share)
    np.testing.assert_allclose(mixed.numpy(), expected.numpy(), rtol=0, atol=1e-5)
    wanted = mixup.mixup_target(torch.tensor(labels.numpy()), 4, share, 0.0)
    np.testing.assert_allclose(targets.numpy(), wanted.numpy(), rtol=0, atol=1e-5)


def test_cutmix_puts_a_rectangle_of_the_other_in():
    for step in range(20):
        x, labels = batch()
        mixed, targets = (tensor.numpy() for tensor in Mixing(4, 0.0, 1.0, seed=0)(step, x, labels))
        x = x.numpy()
        kept = (mixed == x).all(axis=(0, 1))
        np.testing.assert_array_equal(mixed[:, :, ~kept], x[::-1][:, :, ~kept])
        rows, columns = np.nonzero(~kept)
        if len(rows):  # a rectangle
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        one_hot = np.eye(4, dtype="f4")[labels.numpy()]
        np.testing.assert_allclose(targets, one_hot * kept.mean() + one_hot[::-1] * (1 - kept.mean()), atol=1e-6)


def test_shares_are_those_of_the_beta_distribution():
    x, labels = paddle.to_tensor(np.float32([1, 0])).reshape([2, 1, 1, 1]), paddle.to_tensor([0, 1])
    shares = [Mixing(2, 0.4, 0.0, 0)(step, x, labels)[0][0].item() for step in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)
    both = Mixing(2, 0.4, 1.0, 0)
    pixels = paddle.to_tensor(RANDOM.standard_normal((2, 1, 8, 8)).astype("f4"))
    cut = [bool((both(step, pixels, labels)[0][0] == pixels[0]).any()) for step in range(400)]
    assert 0.4 < np.mean(cut) < 0.65


def test_a_batch_depends_on_seed_and_step_alone():
    x, labels = batch()
    first, again = (Mixing(4, 0.2, 1.0, seed=3)(7, x, labels)[0].numpy() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (Mixing(4, 0.2, 1.0, seed=3)(8, x, labels)[0].numpy() != first).any()
    assert (Mixing(4, 0.2, 1.0, seed=4)(7, x, labels)[0].numpy() != first).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_weighted_cross_entropy_is_pytorchs(smoothing, shape):
    torch = pytest.importorskip("torch")
    logits, labels = RANDOM.standard_normal((6, 4)).astype("f4"), RANDOM.integers(0, 4, 6)
    weights = [0.5, 3.0, 1.0, 0.1]
    theirs = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.CrossEntropyLoss(torch.tensor(weights), label_smoothing=smoothing)(theirs, torch.tensor(labels))
    loss.backward()
    ours = paddle.to_tensor(logits, stop_gradient=False)
    found = WeightedCrossEntropy(weights, smoothing)(ours, paddle.to_tensor(labels.reshape(shape)))
    found.backward()
    np.testing.assert_allclose(float(found), loss.item(), rtol=1e-6)
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=0, atol=1e-7)


def test_equal_weights_change_nothing_for_mixed_targets():
    torch = pytest.importorskip("torch")
    logits = RANDOM.standard_normal((6, 4)).astype("f4")
    targets = RANDOM.dirichlet(np.ones(4), 6).astype("f4")
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(torch.tensor(logits), torch.tensor(targets)).item()
    for loss in (
        WeightedCrossEntropy([2.0] * 4, 0.1),
        paddle.nn.CrossEntropyLoss(soft_label=True, label_smoothing=0.1),
    ):
        found = loss(paddle.to_tensor(logits), paddle.to_tensor(targets))
        np.testing.assert_allclose(float(found), expected, rtol=1e-6)


def test_balanced_weights_are_scikit_learns():
    utils = pytest.importorskip("sklearn.utils", reason="pip install scikit-learn")
    labels = RANDOM.integers(0, 5, 100) // 2
    expected = utils.class_weight.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights("balanced", labels.tolist(), 3), expected)
    assert class_weights("1,2.5,0", [], 3) == [1, 2.5, 0]


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "0,0,0", "1,-1,1", "nan,1,1", "", "1;2;3"])
def test_weights_that_are_none(text):
    with pytest.raises(ValueError, match="must be 'balanced', or 3 numbers from 0 with commas between, one for each"):
        class_weights(text, [0, 1, 2], 3)


def test_gradients_of_shared_losses_add_up_to_those_of_the_whole_batch():
    network = paddle.nn.Linear(5, 3)
    x = paddle.to_tensor(RANDOM.standard_normal((8, 5)).astype("f4"))
    labels = paddle.to_tensor(RANDOM.integers(0, 3, 8))
    loss = paddle.nn.CrossEntropyLoss()
    loss(network(x), labels).backward()
    whole = network.weight.grad.numpy()
    network.clear_gradients()
    for half in (slice(0, 4), slice(4, 8)):
        SharedLoss(loss, 2)(network(x[half]), labels[half]).backward()
    np.testing.assert_allclose(network.weight.grad.numpy(), whole, rtol=0, atol=1e-7)


# Optimizers


def descend(optimizer, parameter, targets):
    for target in targets:
        ((parameter - target) ** 2).sum().backward()
        optimizer.step()
        optimizer.clear_grad() if hasattr(optimizer, "clear_grad") else optimizer.zero_grad()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_optimizers_are_pytorchs(name, clip):
    torch = pytest.importorskip("torch")
    start, targets = RANDOM.standard_normal(7).astype("f4"), RANDOM.standard_normal((6, 7)).astype("f4")
    theirs = torch.nn.Parameter(torch.tensor(start))
    make = {
        "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.01),
    }[name]
    optimizer = make([theirs])
    for target in torch.tensor(targets):
        ((theirs - target) ** 2).sum().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([theirs], clip)
        optimizer.step()
        optimizer.zero_grad()
    ours = paddle.create_parameter([7], "float32", default_initializer=paddle.nn.initializer.Assign(start))
    descend(make_optimizer(name, 0.05, [ours], 0.01, clip), ours, paddle.to_tensor(targets))
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=0, atol=2e-6)


def test_an_unknown_optimizer():
    with pytest.raises(ValueError, match=f"unknown optimizer 'lion': choose one of {', '.join(OPTIMIZERS)}"):
        make_optimizer("lion", 0.1, [], 0.0)


def test_a_rate_that_decays_in_steps_is_timms():
    torch, scheduler = pytest.importorskip("torch"), peer("timm.scheduler")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.016)
    theirs = scheduler.StepLRScheduler(
        optimizer, 24, 0.97, warmup_t=30, warmup_lr_init=1e-6, t_in_epochs=False, warmup_prefix=False
    )
    ours = WarmupDecay(0.016, 0.97, 24, 30, 1e-6)
    for step in range(500):
        theirs.step_update(step)
        assert ours() == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        ours.step()


# Frozen layers


def test_a_frozen_backbone_keeps_its_weights_and_statistics():
    network = pd_.DenseNet(block_config=[1, 1], growth_rate=4, num_init_features=8, num_classes=3)
    freeze(network, "backbone")
    learning = [name for name, parameter in network.named_parameters() if not parameter.stop_gradient]
    assert learning == ["classifier.weight", "classifier.bias"]
    before = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    network.train()
    network(paddle.randn([4, 3, 64, 64])).sum().backward()
    optimizer = make_optimizer("sgd", 0.1, [p for p in network.parameters() if not p.stop_gradient], 0.1)
    optimizer.step()
    for name, tensor in network.state_dict().items():
        changed = (tensor.numpy() != before[name]).any()
        assert changed == name.startswith("classifier."), name


def test_some_layers_are_frozen():
    network = pd_.DenseNet(block_config=[1, 1], growth_rate=4, num_init_features=8, num_classes=3)
    freeze(network, "features.conv0*,features.norm0*")
    frozen = [name for name, parameter in network.named_parameters() if parameter.stop_gradient]
    statistics = [name for name in frozen if name.endswith(("._mean", "._variance"))]  # which never learn
    assert [name for name in frozen if name not in statistics] == [
        "features.conv0.weight",
        "features.norm0.weight",
        "features.norm0.bias",
    ]
    with pytest.raises(ValueError, match="--freeze 'stem' is no parameter's name: take one as features"):
        freeze(network, "stem")
    with pytest.raises(ValueError, match="leaves nothing to train: freeze less, 'backbone' for example"):
        freeze(network, "*")


# Learning rates of layers


@pytest.mark.parametrize("name", ["densenet121", "cspresnet50", "cspdarknet53", "tf_efficientnet_cc_b0_4e"])
def test_blocks_learn_at_the_rates_that_timm_gives_them(name):
    timm = peer("timm")
    from timm.optim import param_groups_layer_decay

    theirs = timm.create_model(name)
    matcher, names = theirs.group_matcher, {id(parameter): name for name, parameter in theirs.named_parameters()}
    theirs.group_matcher = lambda coarse=False: matcher(coarse=True)
    groups = param_groups_layer_decay(theirs, weight_decay=0.1, layer_decay=0.75)
    expected = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    network = pd_.create_model(name)
    decay_rates(network, 0.75)
    found = {name: parameter.optimize_attr["learning_rate"] for name, parameter in network.named_parameters()}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_every_optimizer_is_scaled_by_layer(optimizer, randomise):
    network = randomise(small("CSP resnet")).to(dtype="float64")
    x = paddle.to_tensor(random_images(4, 3, 64, 64, dtype="float64"))
    changes = []
    for decay in (1.0, 0.1):
        copied = copy.deepcopy(network)
        decay_rates(copied, decay)
        copied(x).square().sum().backward()
        learning = {name: parameter for name, parameter in copied.named_parameters() if not parameter.stop_gradient}
        before = {name: parameter.numpy() for name, parameter in learning.items()}
        make_optimizer(optimizer, 0.01, list(learning.values()), 0.0).step()
        changes.append({name: parameter.numpy() - before[name] for name, parameter in learning.items()})
    alone, scaled = changes
    shares = {name: np.abs(scaled[name]).max() / np.abs(alone[name]).max() for name in alone}
    first, *_, last = shares.values()
    assert first == pytest.approx(1e-3, rel=1e-6) and last == pytest.approx(1.0)
    assert sorted({round(share, 6) for share in shares.values()}) == [0.001, 0.01, 0.1, 1.0]


def test_rmsprop_takes_the_steps_of_timms_for_efficientnets():
    torch, timm = pytest.importorskip("torch"), peer("timm")
    from timm.optim import RMSpropTF

    assert timm
    start, gradients = RANDOM.standard_normal((5, 4)), RANDOM.standard_normal((30, 5, 4)) * 0.1
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    ours = paddle.create_parameter([5, 4], "float64", default_initializer=paddle.nn.initializer.Assign(start))
    expected = RMSpropTF([theirs], lr=0.01, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=1e-2, lr_in_momentum=True)
    found = make_optimizer("rmsprop", 0.01, [ours], 1e-2)
    for gradient in gradients:
        theirs.grad = torch.from_numpy(gradient)
        expected.step()
        (ours * paddle.to_tensor(gradient)).sum().backward()
        found.step()
        found.clear_grad()
        np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-6, atol=1e-8)


def test_the_recipe_of_condconv_takes_the_steps_of_timm():
    """The network, its gradients, mixed targets, the schedule and the optimizer together, from the same weights."""
    torch, timm = pytest.importorskip("torch"), peer("timm")
    from timm.optim import RMSpropTF

    own, size = recipe("condconv-imagenet"), {"channel_multiplier": 0.25, "depth_multiplier": 0.25}
    network = pd_.EfficientNetCondConv(**size, num_classes=4)
    theirs = timm.models.efficientnet._gen_efficientnet_condconv("efficientnet_cc_b0_4e", **size, num_classes=4)
    loaded(theirs, {**arrays(theirs), **to_torch(arrays(network))})
    network.to(dtype="float64").train()
    theirs.double().train()
    rate = own.schedule(0.002, steps_per_epoch=40, epochs=20)
    found = make_optimizer(own.optimizer, rate, network.parameters(), own.weight_decay)
    expected = RMSpropTF(theirs.parameters(), lr=1, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=own.weight_decay)
    mixing = Mixing(4, own.mixup, own.cutmix, seed=0)
    for step in range(6):
        images, targets = (tensor.astype("float64") for tensor in mixing(step, *batch(8, (32, 32))))
        ours = paddle.nn.functional.cross_entropy(
            network(images), paddle.nn.functional.label_smooth(targets, epsilon=own.label_smoothing), soft_label=True
        )
        ours.backward()
        expected.param_groups[0]["lr"] = rate()
        logits, labels = theirs(torch.from_numpy(images.numpy())), torch.from_numpy(targets.numpy())
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=own.label_smoothing)
        expected.zero_grad()
        loss.backward()
        for optimizer in (found, expected):
            optimizer.step()
        found.clear_grad()
        rate.step()
        assert ours.item() == pytest.approx(loss.item(), rel=1e-7)
    changed = to_torch(arrays(network))
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(changed[name], parameter.detach().numpy(), rtol=0, atol=1e-7, err_msg=name)
