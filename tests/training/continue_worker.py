"""Trains a small network with paddle.Model and Adam in a process of its own: see test_parameter_names.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import paddle

import paddle_dense as pd_
from tests.helpers import small

STEPS = 3


def begin(kind: str, folder: Path) -> None:
    """Train six steps without a break, and again with a file after three of them; other networks came before."""
    pd_.save_weights(small(kind), folder / "released.pdparams")
    uninterrupted = prepared(built(kind, folder))
    train(uninterrupted, 0)
    train(uninterrupted, STEPS)
    pd_.save_weights(uninterrupted.network, folder / "expected.pdparams")
    del uninterrupted
    interrupted = prepared(built(kind, folder))
    train(interrupted, 0)
    interrupted.save(str(folder / "checkpoint"))


def built(kind: str, folder: Path) -> paddle.nn.Layer:
    """The network to train, with the same fresh weights each time."""
    paddle.seed(1)
    return BUILD[kind](folder)


def go_on(kind: str, folder: Path) -> None:
    """Load the file and train the other three steps."""
    model = prepared(pd_.load_model(folder / "released.pdparams", num_classes=4))
    model.load(str(folder / "checkpoint"))
    train(model, STEPS)
    pd_.save_weights(model.network, folder / "continued.pdparams")


def begin_two(kind: str, folder: Path) -> None:
    """The same with two networks of one class side by side."""
    paddle.seed(1)
    models = [prepared(small(kind)), prepared(small(kind, num_classes=4))]
    for number, model in enumerate(models):
        pd_.save_weights(model.network, folder / f"{number}.pdparams")
        train(model, 0)
        model.save(str(folder / f"checkpoint{number}"))
    for number, model in enumerate(models):
        train(model, STEPS)
        pd_.save_weights(model.network, folder / f"expected{number}.pdparams")


def go_on_with_two(kind: str, folder: Path) -> None:
    """Both loaded and trained on, in the order in which they were built."""
    models = [prepared(pd_.load_model(folder / f"{number}.pdparams")) for number in range(2)]
    for number, model in enumerate(models):
        model.load(str(folder / f"checkpoint{number}"))
        train(model, STEPS)
        pd_.save_weights(model.network, folder / f"continued{number}.pdparams")


def one_optimizer(kind: str, folder: Path) -> None:
    """Two networks of one class under one optimizer, and then each under its own."""
    paddle.seed(1)
    pd_.save_weights(small(kind), folder / "first.pdparams")
    pd_.save_weights(small(kind), folder / "second.pdparams")

    def pair() -> list[paddle.nn.Layer]:
        return [pd_.load_model(folder / "first.pdparams"), pd_.load_model(folder / "second.pdparams")]

    together, alone = pair(), pair()
    step([adam([*together[0].parameters(), *together[1].parameters()])], together)
    step([adam(network.parameters()) for network in alone], alone)
    for number in range(2):
        pd_.save_weights(together[number], folder / f"continued{number}.pdparams")
        pd_.save_weights(alone[number], folder / f"expected{number}.pdparams")


def step(optimizers: list[paddle.optimizer.Optimizer], networks: list[paddle.nn.Layer]) -> None:
    """Three batches through all networks, each with images of its own."""
    for number in range(STEPS):
        for seed, network in enumerate(networks):
            x, y = batch(10 * number + seed)
            paddle.nn.functional.cross_entropy(network(paddle.to_tensor(x)), paddle.to_tensor(y)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.clear_grad()


# The networks to train; classifiers that are not the file's start fresh.
BUILD = {
    "DenseNet": lambda folder: pd_.load_model(folder / "released.pdparams", num_classes=4),
    "CondenseNetV2, condensed": lambda folder: pd_.load_model(folder / "released.pdparams", num_classes=4),
    "CondenseNetV2, trained": lambda folder: small("CondenseNetV2, trained", num_classes=4),
    "CSP darknet": lambda folder: small("CSP darknet", num_classes=4),
    "CondConv": lambda folder: pd_.load_model(folder / "released.pdparams", num_classes=4),
}


def adam(parameters: list[paddle.Tensor]) -> paddle.optimizer.Optimizer:
    """With a rate at which a forgotten moment shows."""
    return paddle.optimizer.Adam(0.01, parameters=parameters)


def prepared(network: paddle.nn.Layer) -> paddle.Model:
    """A network that `train` can train."""
    model = paddle.Model(network)
    model.prepare(adam(network.parameters()), paddle.nn.CrossEntropyLoss())
    return model


def batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Four images and their classes."""
    random = np.random.default_rng(number)
    return random.standard_normal((4, 3, 32, 32)).astype("float32"), random.integers(0, 4, (4, 1))


def train(model: paddle.Model, start: int) -> None:
    """Three steps from this one on."""
    for number in range(start, start + STEPS):
        paddle.seed(number)  # for dropout
        x, y = batch(number)
        model.train_batch([x], [y])


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
