"""What each process of test_devices.py runs: a few steps of training, and what it saw, as JSON in its own file."""

import json
import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import distributed, nn

import paddle_dense as pd_
from paddle_dense.training import CondensationCallback, CondensationLoss, learned_connections
from paddle_dense.training.accuracy import measure_accuracy

STEPS, BATCH = 8, 8


class Images(paddle.io.Dataset):
    """Eleven of them, which two devices cannot share evenly."""

    def __len__(self):
        return 11

    def __getitem__(self, number):
        random = np.random.default_rng(number)
        return random.standard_normal((1, 32, 32)).astype("f4"), np.int64(number % 10)


class Watch(paddle.callbacks.Callback):
    """Records the loss over all devices, and the masks and counters of this one, after each step."""

    def __init__(self):
        super().__init__()
        self.losses, self.choices = [], []

    def on_train_batch_end(self, step, logs=None):
        loss = paddle.to_tensor(np.array(logs["loss"], "f8"))
        if distributed.get_world_size() > 1:
            distributed.all_reduce(loss)
        self.losses.append(loss.item() / distributed.get_world_size())
        layers = learned_connections(self.model.network).values()
        packed = [np.packbits(layer._mask.numpy() > 0).tobytes().hex() for layer in layers]
        self.choices.append([packed, [layer._count.item() for layer in layers], [layer.stage for layer in layers]])


def main(folder):
    """Train with frozen BN statistics, so that a batch is the same on one device and two."""
    devices, rank = distributed.get_world_size(), distributed.get_rank()
    if devices > 1:
        distributed.init_parallel_env()
    paddle.seed(0)
    net = pd_.CondenseNetV2(
        stages=[1, 1, 1],
        growth=[8, 16, 16],
        fc_channel=32,
        group_1x1=4,
        group_3x3=4,
        group_trans=4,
        num_classes=10,
        in_channels=1,
        condensed=False,
    )
    for layer in net.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._use_global_stats = True
    model, watch = paddle.Model(net), Watch()
    optimizer = paddle.optimizer.Momentum(0.05, 0.9, net.parameters(), use_nesterov=True, weight_decay=1e-4)
    model.prepare(optimizer, CondensationLoss(nn.CrossEntropyLoss(), 1e-3))
    random = np.random.default_rng(0)
    images = random.standard_normal((STEPS, BATCH, 1, 32, 32)).astype("f4")
    labels = random.integers(0, 10, (STEPS, BATCH))
    mine = slice(rank * BATCH // devices, (rank + 1) * BATCH // devices)
    data = [[paddle.to_tensor(x[mine]), paddle.to_tensor(y[mine])] for x, y in zip(images, labels)]
    model.fit(data, epochs=1, verbose=0, callbacks=[CondensationCallback(verbose=False), watch])
    accuracy = measure_accuracy(net, Images(), batch_size=4)
    said = {
        "losses": watch.losses,
        "choices": watch.choices,
        "images": accuracy.images,
        "test_loss": accuracy.loss,
        "top1": accuracy.top1,
        "weights": {name: np.asarray(tensor.numpy(), "f8").sum() for name, tensor in net.state_dict().items()},
    }
    Path(folder, f"{rank}-of-{devices}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
