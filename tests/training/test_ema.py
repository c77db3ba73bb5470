"""Averaged weights: the formula, and what must not be averaged."""

import copy

import numpy as np
import paddle
import pytest

import paddle_dense as pd_
from paddle_dense.training import ModelEMA, set_progress
from tests.helpers import arrays

SMALL = {"stages": [1, 1, 1], "growth": [8, 8, 8], "num_classes": 4}


def test_parameters_and_statistics_are_averaged(randomise):
    net = randomise(pd_.CondenseNet(**SMALL, condensed=False), seed=1)
    first = arrays(net)
    ema = ModelEMA(net, decay=0.75)
    randomise(net, seed=2)
    second = arrays(net)
    ema.update(net)
    for name, value in arrays(ema.network).items():
        if name.endswith(("_mask", "_count", "_stage")):
            np.testing.assert_array_equal(value, second[name])
        else:
            np.testing.assert_allclose(value, 0.75 * first[name] + 0.25 * second[name], rtol=2e-6, atol=1e-7)


def test_the_average_of_a_condensed_network_condenses():
    net = pd_.CondenseNet(**SMALL, condensed=False)
    ema = ModelEMA(net, decay=0.9)
    for progress in (0.1, 0.2, 0.4, 0.6):
        set_progress(net, progress)
        ema.update(net)
    pd_.condense(ema.network)


def test_indices_are_copied(randomise):
    net = pd_.CondenseNet(**SMALL)
    ema = ModelEMA(net, decay=0.5)
    randomise(net)
    ema.update(net)
    indices = {name: value for name, value in arrays(net).items() if name.endswith("index")}
    assert indices
    for name, value in indices.items():
        np.testing.assert_array_equal(arrays(ema.network)[name], value)


def test_as_a_callback_it_follows_every_update(randomise):
    net = randomise(pd_.CondenseNet(**SMALL))
    expected = ModelEMA(copy.deepcopy(net), decay=0.5)
    ema = ModelEMA(net, decay=0.5)

    class Follow(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if step in (1, 3, 4):  # two batches make an update, and the epoch's last batch ends one
                expected.update(net)

    model = paddle.Model(net)
    model.prepare(paddle.optimizer.SGD(0.05, net.parameters()), paddle.nn.CrossEntropyLoss())
    data = [[paddle.randn([2, 3, 32, 32]), paddle.to_tensor([0, 1])] for _ in range(5)]
    model.fit(data, epochs=1, verbose=0, accumulate_grad_batches=2, callbacks=[Follow(), ema])
    averaged = arrays(ema.network)
    for name, value in arrays(expected.network).items():
        np.testing.assert_array_equal(averaged[name], value)
    assert not ema.network.training
    assert all(parameter.stop_gradient for parameter in ema.network.parameters())


def test_the_decay_is_checked():
    with pytest.raises(ValueError, match=r"decay=1.0 must be in \[0, 1\)"):
        ModelEMA(pd_.CondenseNet(**SMALL), decay=1.0)


def test_the_first_updates_keep_less():
    """``min(decay, (1 + n) / (10 + n))``, as TensorFlow does with ``num_updates``; a continued average goes on so."""
    network = paddle.nn.Linear(1, 1)
    network.weight.set_value(paddle.zeros([1, 1]))
    ema, expected = ModelEMA(network, 0.5, updates=0), 0.0
    for n in range(20):
        network.weight.set_value(paddle.full([1, 1], float(n)))
        decay = min(0.5, (1 + n) / (10 + n))
        expected = expected * decay + n * (1 - decay)
        if n == 3:
            later = ModelEMA(network, 0.5, updates=4)
            ema.update(network)
            later.network.set_state_dict(ema.network.state_dict())
            ema = later
        else:
            ema.update(network)
        assert ema.network.weight.item() == pytest.approx(expected, rel=1e-6)
