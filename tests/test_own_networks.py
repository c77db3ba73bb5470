"""PyTorch's files go into any Paddle network by the layers that it is made of, or say in one sentence why not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_dense import load_weights
from paddle_dense.errors import WeightsError
from paddle_dense.files import write_torch, write_weights
from tests.helpers import arrays

torch = pytest.importorskip("torch", reason="has the networks that the files are of")
WIDTH = 8


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(weight_norm|nested tensor|spectral_norm|magnitude)")
        yield


class Tagger(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WIDTH, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2, direction="bidirect")
        self.tags = nn.Linear(2 * WIDTH, 3)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.tags(self.lstm(self.embedding(x))[0])


class TorchTagger(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(WIDTH, WIDTH)
        self.lstm = torch.nn.LSTM(WIDTH, WIDTH, 2, bidirectional=True, batch_first=True)
        self.tags = torch.nn.Linear(2 * WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tags(self.lstm(self.embedding(x))[0])


class Encoder(nn.Layer):
    """Its classifier is its embedding, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WIDTH, WIDTH)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, WIDTH), 2, nn.LayerNorm(WIDTH))
        self.tied = self.embedding.weight

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(self.encoder(self.embedding(x)), self.tied, transpose_y=True)


class TorchEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(WIDTH, WIDTH)
        layer = torch.nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(WIDTH))
        self.tied = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embedding(x)) @ self.tied.T


def generator(norm: Callable[[nn.Layer], nn.Layer]) -> nn.Layer:
    return nn.Sequential(
        norm(nn.Conv2DTranspose(WIDTH, WIDTH, 3)),
        nn.BatchNorm2D(WIDTH),
        nn.PReLU(WIDTH),
        nn.Flatten(),
        norm(nn.Linear(WIDTH * 25, WIDTH)),
    )


def torch_generator(norm: Callable[[torch.nn.Module], torch.nn.Module]) -> torch.nn.Module:
    return torch.nn.Sequential(
        norm(torch.nn.ConvTranspose2d(WIDTH, WIDTH, 3)),
        torch.nn.BatchNorm2d(WIDTH),
        torch.nn.PReLU(WIDTH),
        torch.nn.Flatten(),
        norm(torch.nn.Linear(WIDTH * 25, WIDTH)),
    )


def by_outputs(layer: nn.Layer) -> nn.Layer:
    """Paddle's weight_norm along the axis that is PyTorch's, for a linear layer the other one."""
    return nn.utils.weight_norm(layer, dim=int(isinstance(layer, nn.Linear)))


parametrizations = torch.nn.utils.parametrizations
NETWORKS: dict[str, Any] = {
    "LSTM tagger": (Tagger, TorchTagger, True),
    "Transformer encoder": (Encoder, TorchEncoder, True),
    "generator": (lambda: generator(lambda x: x), lambda: torch_generator(lambda x: x), False),
    "generator with spectral_norm": (
        lambda: generator(nn.utils.spectral_norm),
        lambda: torch_generator(torch.nn.utils.spectral_norm),
        False,
    ),
    "generator with the new spectral_norm, plain in Paddle": (
        lambda: generator(lambda x: x),
        lambda: torch_generator(parametrizations.spectral_norm),
        False,
    ),
    "generator with weight_norm": (
        lambda: generator(by_outputs),
        lambda: torch_generator(torch.nn.utils.weight_norm),
        False,
    ),
    "generator with the new weight_norm and Paddle's usual axes": (
        lambda: generator(nn.utils.weight_norm),
        lambda: torch_generator(parametrizations.weight_norm),
        False,
    ),
    "generator with weight_norm, plain in Paddle": (
        lambda: generator(lambda x: x),
        lambda: torch_generator(torch.nn.utils.weight_norm),
        False,
    ),
}


def lived_in(network: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """Numbers other than the initial ones, by some steps of training."""
    network.train()
    sgd = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(5):
        sgd.zero_grad()
        network(x).square().mean().backward()
        sgd.step()
    return network.eval()


def inputs(numbers: bool) -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.integers(0, WIDTH, (3, 5)) if numbers else draw.standard_normal((4, WIDTH, 3, 3)).astype("f4")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_any_layers_computes_what_pytorchs_does(name, suffix, tmp_path):
    ours, theirs, numbers = NETWORKS[name]
    x, network, path = inputs(numbers), ours(), tmp_path / f"net{suffix}"
    torch.manual_seed(0)
    original = lived_in(theirs(), torch.from_numpy(x))
    if suffix == ".pth":
        torch.save({"state_dict": original.state_dict()}, path)
    else:
        write_weights({name: t.numpy() for name, t in original.state_dict().items()}, path, {"format": "pt"})
    assert load_weights(network, path) == ([], [])
    network.eval()
    found, expected = network(paddle.to_tensor(x)).numpy(), original(torch.from_numpy(x)).detach().numpy()
    # float32 after sums of 200 products; tests/models/test_sources.py has the same in float64
    assert np.abs(found - expected).max() <= 5e-6 * np.abs(expected).max()


def test_the_parts_of_weight_norm_are_the_files(tmp_path):
    """So that the network learns on as it did: the weight alone would give another direction's length."""
    torch.manual_seed(0)
    original = lived_in(torch_generator(torch.nn.utils.weight_norm), torch.from_numpy(inputs(False)))
    torch.save(original.state_dict(), tmp_path / "net.pth")
    network = generator(by_outputs)
    load_weights(network, tmp_path / "net.pth")
    theirs, found = original.state_dict(), arrays(network)
    assert np.array_equal(found["0.weight_v"], theirs["0.weight_v"].numpy())
    assert np.array_equal(found["0.weight_g"], theirs["0.weight_g"].numpy().reshape(-1))
    assert np.array_equal(found["4.weight_v"], theirs["4.weight_v"].numpy().T)


def saved(network: torch.nn.Module, folder: Path, **changes: torch.Tensor) -> Path:
    torch.save({**network.state_dict(), **changes}, folder / "net.pth")
    return folder / "net.pth"


class Wrapped(nn.Layer):
    def __init__(self, layer: nn.Layer) -> None:
        super().__init__()
        self.layer = layer


def wrapped(layer: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.ModuleDict({"layer": layer})


def twice(framework: Any) -> Any:
    layer = framework.Linear(4, 4)
    return framework.Sequential(layer, layer)


REFUSED: dict[str, Any] = {
    "statistics of instance normalisation": (
        lambda: nn.InstanceNorm2D(4),
        lambda: torch.nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        {},
        r"'layer\.running_mean' has no place in Wrapped: .*keeps no running statistics: build BatchNorm",
    ),
    "keys and values of an attention's own": (
        lambda: nn.MultiHeadAttention(4, 2),
        lambda: torch.nn.MultiheadAttention(4, 2, add_bias_kv=True),
        {},
        r"'layer\.bias_k' has no place in Wrapped: .*appends bias_k and bias_v",
    ),
    "clusters": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 8, [4]),
        lambda: torch.nn.AdaptiveLogSoftmaxWithLoss(16, 8, [4]),
        {},
        r"'layer\.tail\.0\.0\.weight' has no place in Wrapped: .*leaves the weights of its clusters out",
    ),
    "a plain weight for spectral_norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        lambda: torch.nn.Linear(4, 4),
        {},
        r"'layer\.weight_orig' of Wrapped is missing",
    ),
    "rows that are no three": (
        lambda: nn.MultiHeadAttention(4, 2),
        lambda: torch.nn.MultiheadAttention(4, 2),
        {"layer.in_proj_weight": torch.ones(13, 4)},
        r"holds 'layer\.in_proj_weight' of the shape \[13, 4\], which is not that of a query, a key and a value",
    ),
    "magnitudes of something else": (
        lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
        lambda: torch.nn.utils.weight_norm(torch.nn.Linear(4, 4)),
        {"layer.weight_g": torch.ones(3, 1)},
        r"holds 'layer\.weight_g' of another shape than its direction",
    ),
    "vectors of something else": (
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        lambda: torch.nn.utils.spectral_norm(torch.nn.Linear(4, 4)),
        {"layer.weight_u": torch.ones(3)},
        r"holds 'layer\.weight_u' of the shape \[3\] next to \[4\], which are not the vectors of a weight \[4, 4\]",
    ),
    "spectral_norm along another axis": (
        lambda: nn.utils.spectral_norm(nn.Conv2D(4, 4, 3), dim=1),
        lambda: lived_in(torch.nn.utils.spectral_norm(torch.nn.Conv2d(4, 4, 3)), torch.ones(1, 4, 5, 5)),
        {},
        r"holds 'layer\.weight_u' of a spectral_norm along axis 0, .* with spectral_norm\(layer, dim=0\)",
    ),
    "padding that is not 0": (
        lambda: nn.Embedding(4, 4, padding_idx=1),
        lambda: torch.nn.Embedding(4, 4, padding_idx=1),
        {"layer.weight": torch.ones(4, 4)},
        r"holds 'layer\.weight' with numbers other than 0 in row 1, .*without padding_idx",
    ),
    "a shape that is as long": (
        lambda: nn.LayerNorm([3, 4]),
        lambda: torch.nn.LayerNorm([4, 3]),
        {},
        r"'layer\.weight' is \[4, 3\] and Wrapped needs \[12\]",
    ),
    "one layer that is two": (
        lambda: twice(nn),
        lambda: twice(torch.nn),
        {"layer.1.weight": torch.ones(4, 4)},
        r"'layer\.0\.weight' and tensor 'layer\.1\.weight' are one in Wrapped and differ in the file",
    ),
    "a layer of unknown layout": (
        lambda: paddle.incubate.nn.FusedLinear(4, 4),
        lambda: torch.nn.Linear(4, 4),
        {},
        r"FusedLinear 'layer' of Wrapped is a layer of Paddle's whose layout is not known here",
    ),
    "a query twice": (
        lambda: nn.MultiHeadAttention(4, 2),
        lambda: torch.nn.MultiheadAttention(4, 2),
        {"layer.q_proj.weight": torch.ones(4, 4)},
        r"holds one tensor under two names, 'layer\.in_proj_weight' and 'layer\.q_proj\.weight'",
    ),
}


@pytest.mark.parametrize(("ours", "theirs", "changes", "said"), REFUSED.values(), ids=REFUSED)
def test_what_paddle_cannot_compute_alike_is_refused_in_one_sentence(ours, theirs, changes, said, tmp_path):
    network = Wrapped(ours())
    before = arrays(network)
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(network, saved(wrapped(theirs()), tmp_path, **changes))
    assert "net.pth: " in str(caught.value) and "\n" not in str(caught.value)
    assert all(np.array_equal(value, before[name]) for name, value in arrays(network).items())


def test_what_has_no_place_is_reported_when_whatever_fits_is_loaded(tmp_path):
    theirs = wrapped(torch.nn.InstanceNorm2d(4, affine=True, track_running_stats=True))
    network = Wrapped(nn.InstanceNorm2D(4))
    with pytest.warns(UserWarning, match=r"'layer\.running_(mean|var)' has no place .* build BatchNorm"):
        missing, unused = load_weights(network, saved(theirs, tmp_path), strict=False)
    assert missing == [] and unused == ["layer.running_mean", "layer.running_var"]


def test_a_number_without_an_axis_is_loaded(tmp_path):
    class Scaled(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", paddle.zeros([]))

    network = Scaled()
    with (tmp_path / "net.pth").open("wb") as file:
        write_torch({"scale": np.array(3, "f4")}, file)
    assert load_weights(network, tmp_path / "net.pth") == ([], []) and float(network.scale) == 3


def test_linear_layers_that_lie_as_pytorchs_are_noticed_next_to_an_embedding(tmp_path):
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    state = {name: value.T if name == "2.weight" else value for name, value in arrays(network).items()}
    write_weights(state, tmp_path / "net.pdparams")
    with pytest.raises(
        WeightsError, match=r"'2\.weight' is \[3, 4\] and \[4, 3\] in the network, so linear layers lie"
    ):
        load_weights(network, tmp_path / "net.pdparams", strict=False)


@pytest.mark.parametrize("kept", ["embedding.weight", "tied"])
def test_one_name_of_a_shared_tensor_is_enough(kept, tmp_path):
    """As in the files of Hugging Face, where a shared tensor is saved once."""
    torch.manual_seed(0)
    original, network = TorchEncoder().eval(), Encoder()
    state = {name: t.numpy() for name, t in original.state_dict().items() if name not in {"embedding.weight", "tied"}}
    write_weights({**state, kept: original.tied.detach().numpy()}, tmp_path / "net.safetensors", {"format": "pt"})
    assert load_weights(network, tmp_path / "net.safetensors") == ([], [])
    network.eval()
    x = inputs(True)
    found, expected = network(paddle.to_tensor(x)).numpy(), original(torch.from_numpy(x)).detach().numpy()
    assert np.abs(found - expected).max() <= 5e-6 * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore:The program will return to single-card")
def test_a_network_in_dataparallel_has_its_layers_layouts(tmp_path):
    original, network = torch.nn.Linear(4, 4), nn.Linear(4, 4)
    assert load_weights(paddle.DataParallel(network), saved(original, tmp_path)) == ([], [])
    assert np.array_equal(network.weight.numpy(), original.weight.detach().numpy().T)


def test_a_layer_in_two_places_is_one(tmp_path):
    original, network = twice(torch.nn), twice(nn)
    assert load_weights(network, saved(original, tmp_path)) == ([], [])
    assert np.array_equal(network[1].weight.numpy(), original[0].weight.detach().numpy().T)
