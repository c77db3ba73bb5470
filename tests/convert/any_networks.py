"""Networks written once in each framework, as a port has them: a Transformer, a tagger, a U-Net and a generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import torch
from paddle import nn as pnn
from torch import nn as tnn

from paddle_dense.files.names import COUNTER
from paddle_dense.models.fitting import set_state
from paddle_dense.models.sources import chosen, made_of, sources


class TorchEncoder(tnn.Module):
    """Tokens and a mask of padding -> classes and the encoder's states."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = tnn.Embedding(20, 16)
        layer = tnn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = tnn.TransformerEncoder(layer, 2)
        self.norm = tnn.LayerNorm(16)
        self.head = tnn.Linear(16, 5)

    def forward(self, tokens: Any, padding: Any) -> dict[str, Any]:
        states = self.norm(self.encoder(self.embedding(tokens) * 4, src_key_padding_mask=padding))
        return {"logits": self.head(states[:, 0]), "states": states, "unused": None}


class PaddleEncoder(pnn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = pnn.Embedding(20, 16)
        layer = pnn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, activation="gelu")
        self.encoder = pnn.TransformerEncoder(layer, 2)
        self.norm = pnn.LayerNorm(16)
        self.head = pnn.Linear(16, 5)

    def forward(self, tokens: Any, padding: Any) -> dict[str, Any]:
        states = self.norm(self.encoder(self.embedding(tokens) * 4, padding.logical_not()[:, None, None]))
        return {"states": states, "logits": self.head(states[:, 0])}


class TorchTagger(tnn.Module):
    """Tokens -> tags of each, and the last states, as a tuple in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = tnn.Embedding(20, 8)
        self.lstm = tnn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.tags = tnn.Linear(12, 4)

    def forward(self, tokens: Any) -> tuple[Any, Any]:
        states, last = self.lstm(self.embedding(tokens))
        return self.tags(states), last


class PaddleTagger(pnn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = pnn.Embedding(20, 8)
        self.lstm = pnn.LSTM(8, 6, num_layers=2, direction="bidirect", dropout=0.2)
        self.tags = pnn.Linear(12, 4)

    def forward(self, tokens: Any) -> tuple[Any, Any]:
        states, last = self.lstm(self.embedding(tokens))
        return self.tags(states), last


def torch_block(inputs: int, outputs: int) -> tnn.Module:
    return tnn.Sequential(
        tnn.Conv2d(inputs, outputs, 3, padding=1, bias=False), tnn.BatchNorm2d(outputs), tnn.ReLU(inplace=True)
    )


def paddle_block(inputs: int, outputs: int) -> pnn.Layer:
    return pnn.Sequential(
        pnn.Conv2D(inputs, outputs, 3, padding=1, bias_attr=False), pnn.BatchNorm2D(outputs), pnn.ReLU()
    )


class TorchUNet(tnn.Module):
    """Images -> a map; every function between the layers is called by the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = torch_block(3, 8), torch_block(8, 16), torch_block(16, 16)
        self.up1, self.up2 = torch_block(32, 8), torch_block(16, 8)
        self.out = tnn.Conv2d(8, 2, 1)

    def forward(self, x: Any) -> Any:
        F = torch.nn.functional
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        bottom = F.leaky_relu(self.bottom(F.avg_pool2d(two, 3, 2, 1)), 0.2)
        x = self.up1(torch.cat([two, F.interpolate(bottom, scale_factor=2, mode="bilinear")], 1))
        return self.out(self.up2(torch.cat([one, F.interpolate(x, scale_factor=2, mode="bilinear")], 1)))


class PaddleUNet(pnn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = paddle_block(3, 8), paddle_block(8, 16), paddle_block(16, 16)
        self.up1, self.up2 = paddle_block(32, 8), paddle_block(16, 8)
        self.out = pnn.Conv2D(8, 2, 1)

    def forward(self, x: Any) -> Any:
        F = paddle.nn.functional
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        bottom = F.leaky_relu(self.bottom(F.avg_pool2d(two, 3, 2, 1, exclusive=False)), 0.2)
        x = self.up1(paddle.concat([two, F.interpolate(bottom, scale_factor=2, mode="bilinear")], 1))
        return self.out(self.up2(paddle.concat([one, F.interpolate(x, scale_factor=2, mode="bilinear")], 1)))


class TorchGenerator(tnn.Module):
    """Noise -> images."""

    def __init__(self) -> None:
        super().__init__()
        self.main = tnn.Sequential(
            tnn.ConvTranspose2d(10, 16, 4, bias=False),
            tnn.BatchNorm2d(16),
            tnn.LeakyReLU(0.2),
            tnn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1, bias=False),
            tnn.InstanceNorm2d(8, affine=True),
            tnn.PReLU(),
            tnn.ConvTranspose2d(8, 3, 4, 2, 1),
            tnn.Tanh(),
        )

    def forward(self, noise: Any) -> Any:
        return self.main(noise)


class PaddleGenerator(pnn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.main = pnn.Sequential(
            pnn.Conv2DTranspose(10, 16, 4, bias_attr=False),
            pnn.BatchNorm2D(16),
            pnn.LeakyReLU(0.2),
            pnn.Conv2DTranspose(16, 8, 3, 2, 1, output_padding=1, bias_attr=False),
            pnn.InstanceNorm2D(8),
            pnn.PReLU(),
            pnn.Conv2DTranspose(8, 3, 4, 2, 1),
            pnn.Tanh(),
        )

    def forward(self, noise: Any) -> Any:
        return self.main(noise)


def encoder_inputs() -> dict[str, np.ndarray]:
    padding = np.zeros((3, 7), bool)
    padding[0, 5:] = padding[2, 3:] = True
    return {"tokens": np.random.default_rng(0).integers(20, size=(3, 7)), "padding": padding}


def images(channels: int = 3, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, channels, size, size), np.float32)


NETWORKS: dict[str, tuple[Any, Any, Any]] = {
    "Transformer encoder": (TorchEncoder, PaddleEncoder, encoder_inputs()),
    "LSTM tagger": (TorchTagger, PaddleTagger, (np.random.default_rng(0).integers(20, size=(3, 7)),)),
    "U-Net": (TorchUNet, PaddleUNet, images()),
    "generator": (TorchGenerator, PaddleGenerator, images(10, 1)),
}


def lived_in(module: tnn.Module, seed: int = 0) -> tnn.Module:
    """The module with random weights, and statistics and affine parameters as training leaves them."""
    random = np.random.default_rng(seed)
    for name, value in module.state_dict().items():
        if name.endswith(COUNTER) or not value.is_floating_point():
            continue
        numbers = random.standard_normal(tuple(value.shape))
        if name.endswith("running_var"):
            numbers = np.exp(numbers * 0.5)
        elif value.ndim == 1 and name.endswith("weight"):
            numbers = 1 + 0.3 * numbers
        elif value.ndim > 1:
            numbers /= np.sqrt(max(1, np.prod(value.shape[1:])))
        value.copy_(torch.as_tensor(numbers))
    return module


def mapped(theirs: tnn.Module, ours: pnn.Layer) -> Any:
    """What makes Paddle's tensors of PyTorch's, and the weights put into the Paddle network by it."""
    state = {name: value.numpy().copy() for name, value in theirs.state_dict().items()}
    wanted = chosen(sources(ours), state)
    assert wanted.keys() == ours.state_dict().keys()

    def to_paddle(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return made_of(tensors, wanted)

    set_state(ours, to_paddle(state))
    return to_paddle


def port(torch_class: Any, paddle_class: Any) -> tuple[tnn.Module, pnn.Layer, Any]:
    """Both networks with equal lived-in weights, in evaluation mode, and what maps one's tensors to the other's."""
    theirs, ours = lived_in(torch_class()).eval(), paddle_class()
    ours.eval()
    return theirs, ours, mapped(theirs, ours)
