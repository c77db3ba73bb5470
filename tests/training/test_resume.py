"""A run that was cut off ends exactly where the uninterrupted one ends."""

import json
import tracemalloc

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

import paddle_dense as pd_
from paddle_dense.errors import WeightsError
from paddle_dense.files.weights import read_metadata, read_weights, write_weights
from paddle_dense.training import Checkpoints, CondensationCallback, CondensationLoss, ModelEMA, WarmupCosine, resume
from paddle_dense.training.batches import TrainingBatches
from paddle_dense.training.resume import StepSeeds, load_network, newest, read_checkpoint, saved_checkpoints

EPOCHS, IMAGES, BATCH = 3, 14, 4  # three batches an epoch, two images left over


class Noise(paddle.io.Dataset):
    """Images as a function of their number."""

    def __getitem__(self, index):
        _, number = index
        random = np.random.default_rng(number)
        return random.standard_normal((3, 32, 32)).astype("f4"), np.int64(number % 4)

    def __len__(self):
        return IMAGES


def network(**config):
    # With dropout, which draws from the framework's own random numbers.
    config = {"stages": [1, 1], "growth": [8, 8], "num_classes": 4, "condensed": False, "dropout_rate": 0.2, **config}
    return pd_.CondenseNet(**config)


def fit(folder, saved=None, stop_after=None, every_steps=None, seed=0):
    """Run or continue a training; returns the arrays that it ends with and the callback that saved them."""
    paddle.seed(7 if saved is None else 12345)
    net = network()
    ema = ModelEMA(net, 0.9)
    start = saved.step if saved else 0
    batches = TrainingBatches(IMAGES, BATCH, EPOCHS, seed, start)
    model = paddle.Model(net)
    rate = WarmupCosine(0.1, batches.total_steps, 2, 0.01)
    optimizer = paddle.optimizer.Momentum(rate, 0.9, net.parameters(), use_nesterov=True, weight_decay=1e-4)
    model.prepare(optimizer, CondensationLoss(paddle.nn.CrossEntropyLoss(), 1e-3))
    if saved:
        saved.restore(model, ema)
    checkpoints = Checkpoints(folder, {"seed": seed}, start, every_steps, average=ema)

    class Stop(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            if start + step + 1 == stop_after:
                checkpoints.request_stop()

    if len(batches):
        callbacks = [
            StepSeeds(seed, start),
            paddle.callbacks.LRScheduler(),
            CondensationCallback(batches.total_steps, start, verbose=False),
            ema,
            Stop(),
            checkpoints,
        ]
        loader = paddle.io.DataLoader(Noise(), batch_sampler=batches)
        model.fit(loader, epochs=1, verbose=0, callbacks=callbacks)
    return {**arrays("network", net), **arrays("average", ema.network), "rate": np.array(rate())}, checkpoints


def arrays(prefix, net):
    return {f"{prefix}.{name}": tensor.numpy() for name, tensor in net.state_dict().items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"))[0]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 9])
def test_stopped_and_continued_is_bit_for_bit_uninterrupted(tmp_path, uninterrupted, stop_after):
    _, checkpoints = fit(tmp_path, stop_after=stop_after)
    assert checkpoints.stopped
    saved = newest(tmp_path)
    assert saved.step == stop_after
    found, checkpoints = fit(tmp_path, saved)
    assert not checkpoints.stopped
    assert found.keys() == uninterrupted.keys()
    for name, array in uninterrupted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_run_that_stops_again_and_again(tmp_path, uninterrupted):
    saved = None
    for step in range(1, 10):
        fit(tmp_path, saved, stop_after=step)
        saved = newest(tmp_path)
    found, _ = fit(tmp_path, saved)
    for name, array in uninterrupted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_last_two_are_kept(tmp_path):
    fit(tmp_path, every_steps=2)
    assert [path.name for path in saved_checkpoints(tmp_path)] == [
        "checkpoint-00000009.safetensors",
        "checkpoint-00000008.safetensors",
    ]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_dead_run_left_is_swept(tmp_path):
    (tmp_path / ".paddle_dense-0123456789abcdef.tmp").write_bytes(b"half a checkpoint")
    (tmp_path / "notes.tmp").write_bytes(b"not ours")
    fit(tmp_path, stop_after=1)
    assert not (tmp_path / ".paddle_dense-0123456789abcdef.tmp").exists()
    assert (tmp_path / "notes.tmp").exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    fit(tmp_path, every_steps=2)
    last, before = saved_checkpoints(tmp_path)
    last.write_bytes(last.read_bytes()[:1000])
    assert newest(tmp_path).path == before
    before.write_bytes(b"")
    with pytest.raises(WeightsError, match="checkpoint-00000009"):
        newest(tmp_path)


def test_no_checkpoint_at_all(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None


def test_the_network_can_be_taken_from_a_checkpoint(tmp_path, uninterrupted):
    fit(tmp_path)
    net = load_network(saved_checkpoints(tmp_path)[0])
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), uninterrupted[f"network.{name}"])


def test_another_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "checkpoint-00000001.safetensors"
    write_weights({"a": np.zeros(3, "f4")}, path)
    with pytest.raises(WeightsError, match="is no checkpoint of a training run"):
        read_checkpoint(path)
    write_weights({"a": np.zeros(3, "f4")}, path, dict.fromkeys(("step", "settings", "network", "schedule"), "[]"))
    with pytest.raises(WeightsError, match="is no checkpoint of a training run"):
        read_checkpoint(path)


def tampered(path, tensors=None, **texts):
    """A checkpoint in which some texts, and some tensors, are others."""
    entries = {
        **read_metadata(path),
        **{key: text if isinstance(text, str) else json.dumps(text) for key, text in texts.items()},
    }
    write_weights({**read_weights(path), **(tensors or {})}, path, entries)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ([], "does not say which network it holds"),
        ({"arch": "CondenseNet", "config": {"stages": {"1": 1}}}, "does not say which network it holds"),
        ({"arch": "CondenseNet", "config": {"stages": "x" * 10**6}}, "does not say which network it holds"),
        ({"arch": "CondenseNet", "config": {"stages": [10**9], "growth": [8]}}, "far more layers than the file"),
        ({"arch": "CondenseNet", "config": {"stages": [1], "growth": [10**7]}}, "far more|has no place|is missing"),
        ({"arch": "CondenseNet", "config": {"stages": [1, 1], "growth": [8, 8], "in_channels": 10**9}}, "far more"),
        ({"arch": "cdnv2_a", "config": {"pretrained": "/etc/passwd"}}, "takes no argument 'pretrained'"),
        ({"arch": "os.system", "config": {}}, "unknown network 'os.system'"),
    ],
    ids=range(8),
)
def test_a_checkpoint_that_tells_of_another_network_makes_nothing_large(tmp_path, network, message):
    """Its config had been built as it stood, before anything of it was compared with the file."""
    fit(tmp_path, stop_after=1)
    path = saved_checkpoints(tmp_path)[0]
    tampered(path, network=network)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=message) as caught:
            load_network(path)
        assert tracemalloc.get_traced_memory()[1] < 10 * path.stat().st_size + 30 * 2**20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("step", ["-1", "x", "", "9" * 10**6])
def test_a_checkpoint_of_no_step(tmp_path, step):
    fit(tmp_path, stop_after=1)
    path = saved_checkpoints(tmp_path)[0]
    tampered(path, step=step)
    if step.isdigit():
        assert read_checkpoint(path).step < 10**18  # `Run` compares it with the length of the run
        return
    with pytest.raises(WeightsError, match="is no checkpoint of a training run"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "texts",
    [
        {"schedule": {}},
        {"schedule": {"last_epoch": "1", "last_lr": 0.1}},
        {"schedule": {"last_epoch": 1, "last_lr": float("nan")}},
        {"schedule": {"last_epoch": 1, "last_lr": [0.1]}},
        {"schedule": {"last_epoch": 1, "last_lr": 0.1, "get_lr": 1}},
        {"schedule": {"last_epoch": -5, "last_lr": 0.1}},
        {"schedule": {"last_epoch": 10**400, "last_lr": 0.1}},
        {"schedule": {"last_epoch": True, "last_lr": 0.055}},
        {"schedule": {"last_epoch": 1.0, "last_lr": 0.055}},
        {"schedule": {"last_epoch": 9, "last_lr": 0.0}},
        {"schedule": {"last_epoch": 1, "last_lr": 1e30}},
        {"schedule": {"last_epoch": 1, "last_lr": -0.055}},
        {"schedule": {"last_epoch": 1, "last_lr": 0.05501}},
        {"scaler": {"scale": "x"}},
        {"scaler": {"x": 1}},
    ],
    ids=str,
)
def test_a_schedule_or_scaling_that_is_none(tmp_path, texts):
    fit(tmp_path, stop_after=1)
    tampered(saved_checkpoints(tmp_path)[0], **texts)
    with pytest.raises(WeightsError, match=r"checkpoint-00000001.safetensors: holds .*: (remove it|continue)"):
        fit(tmp_path, newest(tmp_path))


def test_momenta_that_are_no_numbers(tmp_path):
    """They would have made every weight NaN in the next step."""
    fit(tmp_path, stop_after=1)
    path = saved_checkpoints(tmp_path)[0]
    name, array = next((name, array) for name, array in read_weights(path).items() if name.startswith("optimizer."))
    tampered(path, {name: np.full_like(array, np.nan)})
    with pytest.raises(WeightsError, match=r"checkpoint-00000001.safetensors: holds NaN or infinity in 'velocity' of"):
        fit(tmp_path, newest(tmp_path))


def velocity(path):
    """The name and the array of a momentum in a checkpoint."""
    return next((name, array) for name, array in read_weights(path).items() if name.startswith("optimizer."))


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.reshape(-1)[:-1],
        lambda array: array[None],
        lambda array: array.astype(np.int64),
        lambda array: array.astype(bool),
        lambda array: array.astype(np.float64) + 1e300,
    ],
    ids=["shorter", "a dimension more", "integers", "truth values", "infinite in float32"],
)
def test_momenta_that_do_not_fit(tmp_path, change):
    """One of another shape was an AssertionError; integers were taken."""
    fit(tmp_path, stop_after=1)
    path = saved_checkpoints(tmp_path)[0]
    name, array = velocity(path)
    tampered(path, {name: change(array)})
    with pytest.raises(WeightsError, match=r"checkpoint-00000001.safetensors: holds .* 'velocity' of .*: remove it"):
        fit(tmp_path, newest(tmp_path))


@pytest.mark.parametrize("which", ["one", "all"])
def test_momenta_that_are_missing(tmp_path, which):
    """They had begun again without a word."""
    fit(tmp_path, stop_after=1)
    path = saved_checkpoints(tmp_path)[0]
    lost = velocity(path)[0]
    kept = {
        name: array
        for name, array in read_weights(path).items()
        if name != lost and not (which == "all" and name.startswith("optimizer."))
    }
    write_weights(kept, path, read_metadata(path))
    with pytest.raises(
        WeightsError, match=r"00000001.safetensors: lacks 'velocity' of .*, which would start from zero"
    ):
        fit(tmp_path, newest(tmp_path))


SCALING = {
    "scale": np.array([65536.0], "f4"),
    "incr_ratio": 2.0,
    "decr_ratio": 0.5,
    "incr_every_n_steps": 2000,
    "decr_every_n_nan_or_inf": 1,
    "incr_count": 0,
    "decr_count": 0,
    "use_dynamic_loss_scaling": True,
}


def test_a_loss_scaling_goes_on_where_it_was():
    entries = json.loads(json.dumps({**SCALING, "scale": [1024.0], "incr_count": 1999}))
    found = resume._scaling_like(SCALING, entries)
    assert {**found, "scale": found["scale"].tolist()} == entries


@pytest.mark.parametrize(
    "change",
    [
        {"scale": [0.0]},
        {"scale": [-1.0]},
        {"scale": [1e300]},
        {"scale": []},
        {"scale": [[1.0]]},
        {"incr_ratio": 1e30},
        {"decr_ratio": 0.0},
        {"incr_every_n_steps": 0},
        {"incr_count": -1},
        {"incr_count": 2000},
        {"incr_count": 0.5},
        {"decr_count": 10**30},
        {"use_dynamic_loss_scaling": False},
    ],
    ids=str,
)
def test_a_loss_scaling_that_no_run_has(change):
    with pytest.raises(WeightsError, match=r"^holds .*: remove it, and the run continues from the checkpoint before$"):
        resume._scaling_like(SCALING, {**SCALING, "scale": [65536.0], **change})


def test_another_network_or_optimizer_is_refused(tmp_path):
    fit(tmp_path, stop_after=2)
    saved = newest(tmp_path)
    other = paddle.Model(network(growth=[8, 16]))
    other.prepare(paddle.optimizer.Momentum(0.1, 0.9, other.parameters()), paddle.nn.CrossEntropyLoss())
    with pytest.raises(WeightsError, match=r"checkpoint-00000002.safetensors: tensor .* build the network"):
        saved.restore(other)
    adam = paddle.Model(network())
    adam.prepare(paddle.optimizer.Adam(0.1, parameters=adam.parameters()), paddle.nn.CrossEntropyLoss())
    with pytest.raises(
        WeightsError, match=r"checkpoint-00000002.safetensors: holds 'velocity' of .* another optimizer"
    ):
        saved.restore(adam)


def test_a_checkpoint_holds_the_settings_and_nothing_that_runs(tmp_path):
    fit(tmp_path, stop_after=2, seed=3)
    saved = newest(tmp_path)
    assert saved.settings == {"seed": 3}
    assert saved.path.read_bytes()[8:9] == b"{"  # a safetensors header, which is JSON
    assert {name.split(".")[0] for name in read_weights(saved.path)} == {"network", "average", "optimizer"}
    json.dumps(saved.schedule)


def test_every_epoch_has_its_own_order_and_devices_share_a_batch(monkeypatch):
    whole = list(TrainingBatches(IMAGES, BATCH, EPOCHS, seed=0))
    assert len(whole) == 9
    for epoch in range(EPOCHS):
        seen = [index for batch in whole[3 * epoch : 3 * epoch + 3] for index in batch]
        assert {index[0] for index in seen} == {epoch}
        assert len({index[1] for index in seen}) == 12
    assert [index[1] for index in whole[0]] != [index[1] for index in whole[3]]
    assert list(TrainingBatches(IMAGES, BATCH, EPOCHS, seed=0, start_step=4)) == whole[4:]
    assert list(TrainingBatches(IMAGES, BATCH, EPOCHS, seed=1)) != whole

    # Paddle asks the environment once; tests/training/test_devices.py starts real processes.
    monkeypatch.setattr(paddle.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(paddle.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(list(TrainingBatches(IMAGES, BATCH, EPOCHS, seed=0)))
    assert [first + second for first, second in zip(*shares)] == whole
    with pytest.raises(ValueError, match="a batch of 5 images cannot be divided among 2 devices"):
        TrainingBatches(IMAGES, 5, EPOCHS, seed=0)
    with pytest.raises(ValueError, match="a batch of 16 is more than the 14 training images"):
        TrainingBatches(IMAGES, 16, EPOCHS, seed=0)
