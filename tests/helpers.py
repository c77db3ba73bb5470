"""What many tests need: networks of every family in either framework, images, state, answers, and damaged files."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import paddle

from paddle_dense import models

V2 = {"stages": [1, 2, 1], "growth": [8, 8, 16], "fc_channel": 24, "SE_start_block": 1, "num_classes": 7}
V2.update(group_1x1=4, group_3x3=4, group_trans=4)
V2_VARIANTS = {  # the first is `V2` itself
    "CIFAR form": {},
    "ImageNet form": {"stages": [1, 1, 2, 1, 1], "growth": [8, 8, 8, 16, 16]},
    "six groups": {"growth": [6, 6, 12], "group_1x1": 6, "group_3x3": 6, "group_trans": 6},
    "other groups everywhere": {"group_1x1": 2, "group_3x3": 8},
    "C < G in conv_1": {"condense_factor": 2},
    "C < G in sfr": {"trans_factor": 2},
    "C > G in sfr": {"trans_factor": 8},
    "C > G in both": {"condense_factor": 8, "trans_factor": 8},
    "SE from the first block": {"SE_start_block": 0},
    "no SE in the blocks": {"SE_start_block": 3},
    "one block": {"stages": [2], "growth": [8]},
    "growth that falls": {"growth": [16, 8, 8]},
    "one channel": {"in_channels": 1},
    "four channels": {"in_channels": 4},
    "37 classes": {"num_classes": 37},
    "bottleneck 2": {"bottleneck": 2},
    "reduction 4": {"last_se_reduction": 4},
}
CONDENSENET = {"stages": [1, 2, 1], "growth": [8, 8, 16], "num_classes": 7}
DENSENET = {"growth_rate": 8, "block_config": [2, 3, 2], "num_init_features": 12, "bn_size": 2, "num_classes": 5}
CIFAR_DENSENETS = {
    "CIFAR DenseNet-BC": {**DENSENET, "num_init_features": 13, "small_inputs": True},  # 29 channels are halved to 14
    "CIFAR DenseNet": {**DENSENET, "bn_size": 0, "compression": 1.0, "small_inputs": True},
}
_CSP = ("backbone", "depths", "channels", "expand_ratio", "bottle_ratio", "stem_channels", "groups", "num_classes")
CSPNETS = {
    "resnet": dict(zip(_CSP, ("resnet", [1, 2], [16, 24], [2.0, 2.0], [0.5, 0.5], 8, 1, 5))),
    "resnext": dict(zip(_CSP, ("resnet", [2, 1], [16, 32], [1.0, 1.0], [1.0, 0.5], 16, 4, 5))),
    "darknet": dict(zip(_CSP, ("darknet", [1, 2], [16, 24], [2.0, 1.0], [0.5, 1.0], 8, 1, 5))),
}
CONDCONV = {"channel_multiplier": 0.25, "depth_multiplier": 0.5, "num_experts": 3, "num_classes": 5}
# What it is -> the class's name and the constructor's arguments.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "CondenseNetV2, condensed": ("CondenseNetV2", V2),
    "CondenseNetV2, trained": ("CondenseNetV2", {**V2, "condensed": False}),
    "CondenseNet, condensed": ("CondenseNet", CONDENSENET),
    "CondenseNet, trained": ("CondenseNet", {**CONDENSENET, "condensed": False}),
    "DenseNet": ("DenseNet", DENSENET),
    **{kind: ("DenseNet", config) for kind, config in CIFAR_DENSENETS.items()},
    **{f"CSP {mode}": ("CSPDenseNet", {**DENSENET, "mode": mode}) for mode in models.cspnet.MODES},
    **{f"CSP {kind}": ("CSPNet", config) for kind, config in CSPNETS.items()},
    "CondConv": ("EfficientNetCondConv", CONDCONV),
    "CondConv, SAME": ("EfficientNetCondConv", {**CONDCONV, "same_padding": True, "bn_eps": 1e-3}),
}


def small(kind: str, **changes: Any) -> models.Network:
    """A network of `SMALL` with some arguments changed."""
    name, config = SMALL[kind]
    return getattr(models, name)(**{**config, **changes})


def twin_class(name: str) -> Any:
    """The PyTorch twin of the class of this name."""
    module = getattr(models, name).__module__.rpartition(".")[2]
    return getattr(importlib.import_module(f"convert.torch_models.{module}"), name)


def random_images(*shape: int, seed: int = 1, dtype: str = "float32") -> np.ndarray:
    """Normal random numbers, [N, C, H, W]."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def arrays(network: Any) -> dict[str, np.ndarray]:
    """The state_dict of a network of either framework."""
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def shapes(state: Any) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a state_dict, or of a network."""
    state = state if isinstance(state, dict) else state.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def loaded(network: Any, state: dict[str, np.ndarray]) -> Any:
    """A network of either framework with this state, which must have its names and shapes and no others."""
    assert shapes(state) == shapes(network)
    if isinstance(network, paddle.nn.Layer):
        missing, unexpected = network.set_state_dict(state)
        assert not missing
        assert not unexpected
    else:
        import torch

        network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    network.eval()
    return network


def answers(network: Any, x: np.ndarray) -> Any:
    """What a network of either framework answers in evaluation mode: an array, or a list of the pyramid's."""
    network.eval()
    if isinstance(network, paddle.nn.Layer):
        with paddle.no_grad():
            y = network(paddle.to_tensor(x))
    else:
        import torch

        with torch.no_grad():
            y = network(torch.from_numpy(x))
    return [level.numpy() for level in y] if isinstance(y, (list, tuple)) else y.numpy()


def settled(network: Any, x: np.ndarray) -> Any:
    """A network of either framework with the statistics of these images in its BNs: random ones saturate its gates."""
    for layer in network.sublayers() if isinstance(network, paddle.nn.Layer) else network.modules():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._momentum = 0.0
        elif hasattr(layer, "running_var"):
            layer.momentum = 1.0
    network.train()
    if isinstance(network, paddle.nn.Layer):
        network(paddle.to_tensor(x))
    else:
        import torch

        network(torch.from_numpy(x))
    network.eval()
    return network


def amplifying(network: Any, size: int = 64) -> Any:
    """A network in Paddle whose first norm adds much that the next take away, which leaves a part of the rounding."""
    first = next(layer for layer in network.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D))
    first.bias.set_value(first.bias + 3e3)
    return settled(network, random_images(8, 3, size, size, seed=2))


def damaged(content: bytes, places: Sequence[int] = (), count: int = 300) -> Iterator[bytearray]:
    """The content with one to four wrong bytes, so often; at any of these places, or anywhere."""
    random = Random(len(content))
    for _ in range(count):
        copy = bytearray(content)
        for _ in range(random.randint(1, 4)):
            copy[random.choice(places or range(len(copy)))] = random.randrange(256)
        yield copy


def part(path: Any, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file whose names begin like this, under the rest of their names."""
    with np.load(path) as file:
        return {name[len(prefix) :]: file[name] for name in file.files if name.startswith(prefix)}
