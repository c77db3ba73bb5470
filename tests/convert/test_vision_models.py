"""Networks that nobody here wrote: those of paddle.vision.models with weights of torchvision's of the same name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from paddle import nn

from convert.mapping import pair, refuse
from convert.mapping_file import read_mapping, write_proposal
from paddle_dense.errors import WeightsError
from paddle_dense.models.sources import made_of
from tests.helpers import random_images
from tests.peers import peer


class Row(NamedTuple):
    """How a network of Paddle's takes the weights of PyTorch's.

    Attributes:
        pairs: "names" where equal names alone pair all tensors, "only" where what is left has no other choice,
            "proposal" where the mapping file has to be read and given back as it is.
        differs: makes PyTorch's network compute what Paddle's of the same name computes, where it is another.
        size: of the images, in pixels.
        network: the name in `paddle.vision.models` and arguments, where they are others than torchvision's.
    """

    pairs: str
    differs: Callable[[Any], None] | None = None
    size: int = 64
    network: tuple[str, dict[str, Any]] | None = None


def scaling_dropout(reference: Any) -> None:
    """Paddle's have Dropout(mode="downscale_in_infer"), which in evaluation multiplies with the share that it keeps."""
    torch = pytest.importorskip("torch")
    for module in reference.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda module, inputs, output: output * (1 - module.p))


def of_squeezenet(reference: Any) -> None:
    """Paddle's also pads its first convolution, and its pooling rounds down."""
    torch = pytest.importorskip("torch")
    scaling_dropout(reference)
    reference.features[0].padding = (1, 1)
    for module in reference.modules():
        if isinstance(module, torch.nn.MaxPool2d):
            module.ceil_mode = False


def of_inception(reference: Any) -> None:
    """torchvision's normalises with an epsilon of 0.001, Paddle's with 0.00001; Paddle's also drops another share."""
    torch = pytest.importorskip("torch")
    reference.dropout.p = 0.2
    scaling_dropout(reference)
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5


def without_relu6(reference: Any) -> None:
    """timm's has ReLU6 where Paddle's has ReLU."""
    torch = pytest.importorskip("torch")
    for module in reference.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU6):
                setattr(module, name, torch.nn.ReLU())


MODELS = {
    "resnet18": Row("names"),
    "mobilenet_v2": Row("names"),
    "mobilenet_v3_small": Row("proposal"),
    "mobilenet_v3_large": Row("proposal"),
    "shufflenet_v2_x1_0": Row("proposal"),
    "squeezenet1_1": Row("proposal", of_squeezenet),
    "densenet121": Row("proposal"),
    "timm/mobilenetv1_100": Row("proposal", without_relu6, network=("mobilenet_v1", {})),  # torchvision has none
}
LARGE = {
    "resnet50": Row("names"),
    "resnext50_32x4d": Row("names"),
    "wide_resnet50_2": Row("names"),
    "vgg16_bn": Row("names", network=("vgg16", {"batch_norm": True})),
    "alexnet": Row("only", scaling_dropout, size=224),
    "inception_v3": Row("proposal", of_inception, size=107),
}


def lived_in(name: str, size: int) -> Any:
    """PyTorch's network with random weights, normalisations that have seen two batches, and no two alike."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    library, _, model = name.rpartition("/")
    if library:
        network = peer(library).create_model(model)
    else:
        # Its own initialisation takes a minute.
        quick = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
        network = getattr(peer("torchvision.models"), model)(**quick)
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.train()
    with torch.no_grad():
        for seed in (1, 2):
            network(torch.from_numpy(random_images(2, 3, size, size, seed=seed)))
    return network.eval()


def paddles(name: str, row: Row) -> nn.Layer:
    model, arguments = row.network or (name, {})
    return getattr(paddle.vision.models, model)(**arguments).eval()


def largest_difference(reference: Any, network: nn.Layer, size: int) -> float:
    """Of the outputs in float64, relative to their scale."""
    torch = pytest.importorskip("torch")
    images = random_images(2, 3, size, size, seed=3, dtype="float64")
    with torch.no_grad(), paddle.no_grad():
        expected = reference.double()(torch.from_numpy(images)).numpy()
        found = network.to(dtype="float64")(paddle.to_tensor(images)).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    "name", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)], ids=lambda name: name
)
def test_paddles_network_takes_pytorchs_weights(name, tmp_path):
    row = {**MODELS, **LARGE}[name]
    reference, network = lived_in(name, row.size), paddles(name, row)
    tensors = {key: value.numpy() for key, value in reference.state_dict().items()}
    pairing = pair(network, tensors)
    if row.pairs == "proposal":
        with pytest.raises(WeightsError, match="by order and shape only"):
            refuse(pairing)
        write_proposal(pairing, tmp_path / "map.csv")
        pairing = pair(network, tensors, given=read_mapping(tmp_path / "map.csv"))
    refuse(pairing)
    assert bool(pairing.notes) == (row.pairs == "only" or bool(pairing.left_out))
    state = made_of(tensors, pairing.chosen)
    unknown = network.set_state_dict({key: paddle.to_tensor(value) for key, value in state.items()})
    assert unknown == ([], [])
    difference = largest_difference(reference, network, row.size)
    if row.differs:
        assert difference > 1e-3, "the two agree now: the table says otherwise"
        row.differs(reference)
        difference = largest_difference(reference, network, row.size)
    assert difference < 1e-6


@pytest.mark.parametrize("name", ["googlenet"])
def test_another_architecture_is_refused(name):
    """Paddle's GoogLeNet has no normalisations and convolutions of 5x5 where torchvision's has them of 3x3."""
    quick = {"init_weights": False}
    reference = getattr(peer("torchvision.models"), name)(**quick)
    pairing = pair(paddles(name, Row("")), {key: value.numpy() for key, value in reference.state_dict().items()})
    assert "_ince3a._conv5._conv.weight" in pairing.missing and "conv1.bn.weight" in pairing.unplaced
    with pytest.raises(WeightsError, match=r"has 'conv1.bn.weight' \[64\]"):
        refuse(pairing)
