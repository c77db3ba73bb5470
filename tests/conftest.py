"""What the tests share: where the oracles are, random states worth comparing, and how to compare."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from paddle_dense.files.layout import to_paddle
from paddle_dense.files.torch_file import read_checkpoint

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True, scope="module")
def loaded_for_good() -> None:
    """Spare what is there already from being looked through wherever a second network of a class gets its name."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data() -> Path:
    """The files that the tests bring along, see the README.md there."""
    return HERE / "data"


def next_to_the_checkout(name: str) -> Path:
    """A folder of files too large to ship, which a clone alone has not."""
    folder = HERE.parents[1] / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/{name} next to the checkout: tests/data/README.md says where its files come from")
    return folder


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Answers of the original implementations that are too large to ship."""
    return next_to_the_checkout("oracles")


@pytest.fixture(scope="session")
def trained_by_others() -> Path:
    """Weights that others have trained, with the original's answers, too large to ship."""
    return next_to_the_checkout("real")


@pytest.fixture
def tiny() -> dict[str, Any]:
    """The network of the cdnv2_tiny files, as the constructor takes it (the condensed form unless told otherwise)."""
    return {
        "stages": [2, 2, 2],
        "growth": [8, 16, 32],
        "HS_start_block": 1,
        "SE_start_block": 2,
        "fc_channel": 64,
        "group_1x1": 4,
        "group_3x3": 4,
        "group_trans": 4,
        "num_classes": 10,
    }


@pytest.fixture
def tiny_state(data) -> Callable[..., dict[str, np.ndarray]]:
    """``tiny_state("converted.pth")``: one of the cdnv2_tiny files under Paddle's names and in Paddle's layout."""

    def read(name: str, **options: Any) -> dict[str, np.ndarray]:
        return to_paddle(read_checkpoint(data / f"cdnv2_tiny_{name}", **options).state)

    return read


@pytest.fixture(scope="session")
def difference() -> Callable[[Any, Any], float]:
    """``difference(y, expected)``: the largest difference relative to the scale of what is expected.

    Of arrays or tensors of either framework, or lists of them.
    """

    def of(found: Any, expected: Any) -> float:
        if isinstance(expected, list):
            assert len(found) == len(expected)
            return max(map(of, found, expected))
        found, expected = (x if isinstance(x, np.ndarray) else x.detach().numpy() for x in (found, expected))
        assert found.shape == expected.shape
        assert np.isfinite(found).all()
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    return of


@pytest.fixture(scope="session")
def randomise() -> Callable[..., Any]:
    """``randomise(network, seed=0)``: a state in which every tensor matters, for a network of either framework."""
    return _randomise


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    """The same random numbers in every test, and float32 that is float32: a GPU may round convolutions to TF32."""
    if "paddle" in sys.modules:
        import paddle

        paddle.set_device("cpu")
        paddle.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)


def _randomise(network: Any, seed: int = 0) -> Any:
    """Fill a network in place and return it: statistics and affine parts of BN, real indices, masks with 1/C left."""
    random = np.random.default_rng(seed)
    in_paddle = hasattr(network, "named_sublayers")
    layers = dict(network.named_sublayers(include_self=True) if in_paddle else network.named_modules())
    for name, tensor in network.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        value = _random_tensor(random, leaf, tuple(tensor.shape), layers[owner])
        if in_paddle:
            tensor.set_value(value)
        else:
            import torch

            tensor.copy_(torch.from_numpy(value))
    for layer in layers.values():
        if hasattr(layer, "set_progress"):
            layer.set_progress(1.0)
    return network


def _random_tensor(random: np.random.Generator, leaf: str, shape: tuple[int, ...], layer: Any) -> np.ndarray:
    if leaf in ("_mask", "_count", "_stage"):
        return np.full(shape, leaf == "_mask", "f4")  # as before training; `set_progress` does the rest
    if leaf == "index" and len(shape) == 1:
        channels = getattr(layer, "source_channels", shape[0])
        return random.permutation(max(channels, shape[0]))[: shape[0]] % channels
    if leaf == "index":
        # Every group names some of the columns once: over all groups there are repeats and gaps.
        rows, columns = shape
        groups = layer.groups if hasattr(layer, "groups") else layer.conv.groups
        named = [random.permutation(columns)[: rows // groups] for _ in range(groups)]
        return np.eye(columns, dtype="f4")[np.concatenate(named)]
    if leaf in ("running_var", "_variance"):
        return random.uniform(0.5, 1.5, shape).astype("f4")
    if leaf == "weight" and len(shape) == 1:
        return random.uniform(0.5, 1.5, shape).astype("f4")
    if leaf == "weight":
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype("f4")
    return (0.3 * random.standard_normal(shape)).astype("f4")


@pytest.fixture
def onnxruntime():
    """ONNX Runtime, where ONNX can be written as well; the test is skipped elsewhere."""
    extra = "pip install paddle_dense[deploy]"
    try:
        import paddle2onnx  # noqa: F401
    except (ImportError, ValueError):  # ValueError: it is there and for another version of Paddle
        pytest.skip(f"writes ONNX: {extra}")
    return pytest.importorskip("onnxruntime", reason=f"runs ONNX: {extra}")
