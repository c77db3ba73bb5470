"""Condensing through `paddle.Model`: the schedule and the lasso, with few steps, continued runs and accumulation."""

import numpy as np
import paddle
import pytest

import paddle_dense as pd_
from paddle_dense.training import CondensationCallback, CondensationLoss, learned_connections, set_progress
from tests.helpers import answers, arrays

SMALL = {"stages": [1, 1, 1], "growth": [8, 8, 8], "num_classes": 4, "condensed": False}


def network(factor=4, **config):
    groups = {"group_1x1": factor, "group_3x3": factor}
    return pd_.CondenseNet(**{**SMALL, **groups, **config})


def batches(count, size=4):
    random = np.random.default_rng(0)
    return [
        [
            paddle.to_tensor(random.standard_normal((size, 3, 32, 32)).astype("f4")),
            paddle.to_tensor(random.integers(0, 4, size)),
        ]
        for _ in range(count)
    ]


def prepared(net, weight=1e-5, learning_rate=0.05):
    model = paddle.Model(net)
    optimizer = paddle.optimizer.Momentum(learning_rate, 0.9, net.parameters())
    model.prepare(optimizer, CondensationLoss(paddle.nn.CrossEntropyLoss(), weight))
    return model


def densities(net):
    return {layer.density for layer in learned_connections(net).values()}


def test_a_network_condenses_while_it_is_fitted():
    net, seen = network(), []

    class Watch(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            seen.append(densities(net))

    callback = CondensationCallback(verbose=False)
    prepared(net).fit(batches(6), epochs=2, verbose=0, callbacks=[callback, Watch()])
    # Stages end at 1/6, 2/6 and 3/6 of the twelve steps.
    assert seen == [{1.0}] * 2 + [{0.75}] * 2 + [{0.5}] * 2 + [{0.25}] * 6
    assert [step for step, _ in callback.history] == [0, 2, 4, 6]
    assert set(callback.history[-1][1]) == set(learned_connections(net))

    condensed = pd_.condense(net)
    x = batches(1)[0][0].numpy()
    np.testing.assert_allclose(answers(condensed, x), answers(net, x), atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_few_steps_still_end_at_one_over_c(steps, factor):
    net = network(factor)
    prepared(net).fit(batches(steps, size=2), epochs=1, verbose=0, callbacks=[CondensationCallback(verbose=False)])
    assert densities(net) == {1 / factor}
    pd_.condense(net)


def test_progress_past_one_half_at_once():
    net = network(8)
    assert set_progress(net, 0.51)
    assert densities(net) == {1 / 8}
    assert not set_progress(net, 0.1)
    assert densities(net) == {1 / 8}


def test_num_iters_is_the_length_of_the_training():
    net = network()
    callback = CondensationCallback(verbose=False)
    prepared(net).fit(batches(5), epochs=99, num_iters=8, verbose=0, callbacks=[callback])
    assert [step for step, _ in callback.history] == [0, 2, 3, 4]
    assert densities(net) == {0.25}


def test_a_continued_run_goes_on_where_it_stopped():
    whole, parts = network(), network()
    parts.set_state_dict(whole.state_dict())
    expected = CondensationCallback(verbose=False)
    prepared(whole, learning_rate=0.0).fit(batches(8), epochs=1, verbose=0, callbacks=[expected])
    history = []
    for start, end in ((0, 3), (3, 8)):
        callback = CondensationCallback(total_steps=8, start_step=start, verbose=False)
        data = batches(8)[start:end]
        prepared(parts, learning_rate=0.0).fit(data, epochs=1, verbose=0, callbacks=[callback])
        history += callback.history if start == 0 else callback.history[1:]
    assert history == expected.history


def test_gradient_accumulation_drops_between_updates_only():
    net, dropped = network(), []

    class Watch(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            dropped.append(densities(net))

    prepared(net).fit(
        batches(9),
        epochs=1,
        verbose=0,
        accumulate_grad_batches=4,
        callbacks=[CondensationCallback(verbose=False), Watch()],
    )
    assert dropped == [{1.0}] * 4 + [{0.5}] * 4 + [{0.25}]


def test_what_was_dropped_stays_dropped_while_training_goes_on():
    net = network()
    set_progress(net, 1.0)
    masks = {name: layer._mask.numpy() for name, layer in learned_connections(net).items()}
    prepared(net).fit(batches(3), epochs=1, verbose=0, callbacks=[CondensationCallback(verbose=False)])
    for name, layer in learned_connections(net).items():
        np.testing.assert_array_equal(layer._mask.numpy(), masks[name])


def test_a_condensed_network_trains_on_with_its_index_fixed():
    net = network()
    set_progress(net, 1.0)
    condensed = pd_.condense(net)
    before = arrays(condensed)
    model = paddle.Model(condensed)
    model.prepare(paddle.optimizer.Momentum(0.05, 0.9, condensed.parameters()), paddle.nn.CrossEntropyLoss())
    model.fit(batches(3), epochs=1, verbose=0)
    after = arrays(condensed)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.endswith(".index")}


def test_loss_is_base_plus_weighted_lasso_in_training_and_base_in_evaluation():
    net = network()
    logits, labels = paddle.randn([4, 4]), paddle.to_tensor([0, 1, 2, 3])
    base = paddle.nn.CrossEntropyLoss()
    loss = CondensationLoss(base, 0.5, net)
    lasso = sum(layer.group_lasso() for layer in learned_connections(net).values())
    assert lasso.item() > 1
    net.train()
    np.testing.assert_allclose(loss(logits, labels).item(), (base(logits, labels) + 0.5 * lasso).item(), rtol=1e-6)
    net.eval()
    assert loss(logits, labels).item() == base(logits, labels).item()
    assert loss.parameters() == []


def test_lasso_ends_with_the_last_stage():
    net = network()
    set_progress(net, 1.0)
    net.train()
    logits, labels = paddle.randn([4, 4]), paddle.to_tensor([0, 1, 2, 3])
    base = paddle.nn.CrossEntropyLoss()
    assert CondensationLoss(base, 0.5, net)(logits, labels).item() == base(logits, labels).item()


def test_v2_learns_with_both_kinds_of_layers(tiny):
    net = pd_.CondenseNetV2(**tiny, condensed=False)
    assert {type(layer) for layer in learned_connections(net).values()} == {pd_.LGC, pd_.SFR}
    set_progress(net, 0.35)
    assert densities(net) == {0.5}


def test_wrong_use_is_said_in_one_sentence():
    condensed = pd_.CondenseNet(**{**SMALL, "condensed": True})
    model = paddle.Model(condensed)
    model.prepare(paddle.optimizer.SGD(0.1, condensed.parameters()), paddle.nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="no LGC or SFR layer to condense: build it with condensed=False"):
        model.fit(batches(1), epochs=1, verbose=0, callbacks=[CondensationCallback()])
    with pytest.raises(ValueError, match="does not know the network"):
        CondensationLoss(paddle.nn.CrossEntropyLoss())(paddle.randn([1, 4]), paddle.to_tensor([0]))
    with pytest.raises(ValueError, match="weight=-1"):
        CondensationLoss(paddle.nn.CrossEntropyLoss(), -1)
    with pytest.raises(ValueError, match="leave no step to do"):
        CondensationCallback(total_steps=5, start_step=5)
    with pytest.raises(ValueError, match="give total_steps"):
        prepared(network()).fit(iter(batches(1)), epochs=1, verbose=0, callbacks=[CondensationCallback()])


def test_it_says_when_connections_went(capsys):
    prepared(network()).fit(batches(4), epochs=1, verbose=0, callbacks=[CondensationCallback()])
    assert "step 2 of 4: 25.0% of the learned connections are left" in capsys.readouterr().out
