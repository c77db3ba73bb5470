"""Every line of the table of layouts against PyTorch: the same layer in both, its outputs and all its gradients."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_dense.errors import WeightsError
from paddle_dense.files.layout import AS_IT_IS, LAYOUTS, layer_kind
from paddle_dense.models.fitting import set_state
from paddle_dense.models.sources import chosen, made_of, sources

torch = pytest.importorskip("torch", reason="is what the table is compared with")
spectral_norm, weight_norm = torch.nn.utils.spectral_norm, torch.nn.utils.weight_norm
new = torch.nn.utils.parametrizations

IMAGE, SEQUENCE, ROWS = (2, 4, 5, 5), (3, 5, 4), (3, 4)
# Of the largest number. In float64 all but normalisation agrees to 1e-14; of that Paddle keeps epsilon as a float32.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """A layer in both frameworks.

    Attributes:
        ours, theirs: build it.
        shapes: of its inputs.
        numbers: the inputs are whole numbers below this.
        nonlinear: ends of the names of tensors that learn otherwise than PyTorch's.
        train: compare in training mode as well.
    """

    ours: Callable[[], nn.Layer]
    theirs: Callable[[], torch.nn.Module]
    shapes: tuple[tuple[int, ...], ...] = (ROWS,)
    numbers: int = 0
    nonlinear: tuple[str, ...] = ()
    train: bool = True


class Head(nn.Layer):
    """What of Paddle's adaptive softmax is in its state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.AdaptiveLogSoftmaxWithLoss(4, 6, [3], head_bias=True)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(x, self.loss.head_weight) + self.loss.head_bias


class TorchHead(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loss = torch.nn.AdaptiveLogSoftmaxWithLoss(4, 6, [3], head_bias=True)
        del self.loss.tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loss.head(x)


class Own(nn.Layer):
    """A user's layer with a square matrix and a buffer, which lie as the user has written."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.create_parameter([4, 4])
        self.register_buffer("offset", paddle.zeros([4], self.weight.dtype))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(x, self.weight) + self.offset


class TorchOwn(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(4, 4))
        self.register_buffer("offset", torch.empty(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.offset


class Sub(nn.Linear):
    """A subclass of a Paddle layer, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.lora = self.create_parameter([4, 4])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return super().forward(x) + paddle.matmul(x, self.lora)


class TorchSub(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.lora = torch.nn.Parameter(torch.empty(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.lora


class TorchAttention(torch.nn.Module):
    """Attention as users write it, of four linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (torch.nn.Linear(4, 4) for _ in range(4))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (layer(x).unflatten(-1, (2, 2)).transpose(1, 2) for layer, x in zip(layers, inputs))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def attention(**options: Any) -> Callable[[], torch.nn.Module]:
    return lambda: torch.nn.MultiheadAttention(4, 2, batch_first=True, **options)


class LSTMCell(nn.LSTMCell):
    """Gives what PyTorch's gives."""

    def forward(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        return super().forward(x)[1]


class Deformed(paddle.vision.ops.DeformConv2D):
    """Without displacements, a convolution."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return super().forward(x, paddle.zeros([len(x), 18, *x.shape[2:]], x.dtype))


def conv_cases() -> Iterator[tuple[str, Case]]:
    for n in (1, 2, 3):
        shapes = ((2, 4, *(5,) * n),)
        for kind, theirs in (("", ""), ("Transpose", "Transpose")):
            ours, torchs = getattr(nn, f"Conv{n}D{kind}"), getattr(torch.nn, f"Conv{theirs}{n}d")
            yield f"Conv{n}D{kind}", Case(lambda o=ours: o(4, 4, 3), lambda t=torchs: t(4, 4, 3), shapes)
            yield (
                f"Conv{n}D{kind} of groups",
                Case(lambda o=ours: o(4, 4, 3, groups=2), lambda t=torchs: t(4, 4, 3, groups=2), shapes),
            )
        for kind, theirs, options in (
            ("BatchNorm", "BatchNorm", {}),
            ("InstanceNorm", "InstanceNorm", {"affine": True}),
        ):
            ours, torchs = getattr(nn, f"{kind}{n}D"), getattr(torch.nn, f"{theirs}{n}d")
            yield f"{kind}{n}D", Case(lambda o=ours: o(4), lambda t=torchs, k=options: t(4, **k), shapes)


def recurrent_cases() -> Iterator[tuple[str, Case]]:
    for ours, theirs in ((nn.SimpleRNN, torch.nn.RNN), (nn.GRU, torch.nn.GRU), (nn.LSTM, torch.nn.LSTM)):
        for layers, directions in ((1, 1), (2, 1), (2, 2)):
            yield (
                f"{ours.__name__} of {layers} layers in {directions} directions",
                Case(
                    lambda o=ours, n=layers, d=directions: o(4, 4, n, direction=("forward", "bidirect")[d - 1]),
                    lambda t=theirs, n=layers, d=directions: t(4, 4, n, batch_first=True, bidirectional=d == 2),
                    (SEQUENCE,),
                ),
            )
        cell: Any = LSTMCell if ours is nn.LSTM else getattr(nn, f"{ours.__name__}Cell")
        torch_cell = getattr(torch.nn, f"{theirs.__name__}Cell")
        yield f"{ours.__name__}Cell", Case(lambda o=cell: o(4, 4), lambda t=torch_cell: t(4, 4))
        yield (
            f"{ours.__name__}Cell without biases",
            Case(
                lambda o=cell: o(4, 4, bias_ih_attr=False, bias_hh_attr=False),
                lambda t=torch_cell: t(4, 4, bias=False),
            ),
        )
    for directions in (1, 2):
        yield (
            f"LSTM with a projection in {directions} directions",
            Case(
                lambda d=directions: nn.LSTM(3, 4, 2, direction=("forward", "bidirect")[d - 1], proj_size=3),
                lambda d=directions: torch.nn.LSTM(3, 4, 2, batch_first=True, bidirectional=d == 2, proj_size=3),
                ((3, 5, 3),),
            ),
        )


def attention_cases() -> Iterator[tuple[str, Case]]:
    three = (SEQUENCE,) * 3
    sizes = ((3, 5, 4), (3, 6, 2), (3, 6, 3))
    width = {"dim_feedforward": 4, "dropout": 0.0}
    first = {**width, "batch_first": True}
    yield "MultiHeadAttention", Case(lambda: nn.MultiHeadAttention(4, 2), attention(), three)
    yield "MultiHeadAttention of linear layers", Case(lambda: nn.MultiHeadAttention(4, 2), TorchAttention, three)
    yield (
        "MultiHeadAttention without biases",
        Case(lambda: nn.MultiHeadAttention(4, 2, bias_attr=False), attention(bias=False), three),
    )
    yield (
        "MultiHeadAttention of other sizes",
        Case(lambda: nn.MultiHeadAttention(4, 2, kdim=2, vdim=3), attention(kdim=2, vdim=3), sizes),
    )
    yield (
        "TransformerEncoderLayer",
        Case(
            lambda: nn.TransformerEncoderLayer(4, 2, **width),
            lambda: torch.nn.TransformerEncoderLayer(4, 2, **first),
            (SEQUENCE,),
        ),
    )
    yield (
        "TransformerDecoderLayer",
        Case(
            lambda: nn.TransformerDecoderLayer(4, 2, **width, normalize_before=True),
            lambda: torch.nn.TransformerDecoderLayer(4, 2, **first, norm_first=True),
            (SEQUENCE, SEQUENCE),
        ),
    )
    yield (
        "Transformer",
        Case(
            lambda: nn.Transformer(4, 2, 2, 2, **width),
            lambda: torch.nn.Transformer(4, 2, 2, 2, **first),
            (SEQUENCE, SEQUENCE),
        ),
    )


NORMED: dict[str, Any] = {
    "Linear": (lambda: nn.Linear(4, 4), lambda: torch.nn.Linear(4, 4), ROWS),
    "Conv2D": (lambda: nn.Conv2D(4, 4, 3), lambda: torch.nn.Conv2d(4, 4, 3), IMAGE),
    "Conv2DTranspose": (lambda: nn.Conv2DTranspose(4, 4, 3), lambda: torch.nn.ConvTranspose2d(4, 4, 3), IMAGE),
}


def normed_cases() -> Iterator[tuple[str, Case]]:
    forms = {
        "old ": (spectral_norm, weight_norm),
        "new ": (new.spectral_norm, new.weight_norm),
    }
    ours_spectral, ours_weight = nn.utils.spectral_norm, nn.utils.weight_norm
    for name, (ours, theirs, shape) in NORMED.items():
        plain = {"nonlinear": (".weight", "weight")}
        for form, (spectral, weight) in forms.items():
            yield (
                f"{name} with the {form}spectral_norm",
                Case(
                    lambda o=ours: ours_spectral(o()),
                    lambda t=theirs, s=spectral: s(t()),
                    (shape,),
                    nonlinear=("weight_u", "weight_v"),
                    train=form == "old ",
                ),
            )
            yield (
                f"{name}, plain, of the {form}spectral_norm",
                Case(ours, lambda t=theirs, s=spectral: s(t()), (shape,), **plain, train=False),
            )
            yield (
                f"{name}, plain, of the {form}weight_norm",
                Case(ours, lambda t=theirs, w=weight: w(t()), (shape,), **plain),
            )
            for axis in (0, 1, None):
                for torch_axis in (0, 1, None):
                    here = None if axis is None else 1 - axis if name == "Linear" else axis
                    linear = here == torch_axis != 1
                    yield (
                        f"{name} with weight_norm of axis {axis} of the {form}of axis {torch_axis}",
                        Case(
                            lambda o=ours, a=axis: ours_weight(o(), dim=a),
                            lambda t=theirs, w=weight, a=torch_axis: w(t(), dim=a),
                            (shape,),
                            nonlinear=() if linear else ("weight_g", "weight_v"),
                        ),
                    )
        for axis in (0, 1, None):
            yield (
                f"{name} with weight_norm of axis {axis} of a plain weight",
                Case(
                    lambda o=ours, a=axis: ours_weight(o(), dim=a), theirs, (shape,), nonlinear=("weight_g", "weight_v")
                ),
            )
    for ours_axis in (0, 1):
        for axis in (0, 1):
            yield (
                f"Linear with spectral_norm of axis {ours_axis} of that of axis {axis}",
                Case(
                    lambda a=ours_axis: ours_spectral(nn.Linear(4, 4), dim=a),
                    lambda a=axis: spectral_norm(torch.nn.Linear(4, 4), dim=a),
                    nonlinear=("weight_u", "weight_v"),
                    train=False,
                ),
            )


CASES = {
    "Linear": Case(lambda: nn.Linear(4, 4), lambda: torch.nn.Linear(4, 4)),
    "Bilinear": Case(lambda: nn.Bilinear(4, 4, 4), lambda: torch.nn.Bilinear(4, 4, 4), (ROWS, ROWS)),
    "Embedding": Case(lambda: nn.Embedding(4, 4), lambda: torch.nn.Embedding(4, 4), ((3, 5),), 4),
    "DeformConv2D": Case(lambda: Deformed(4, 4, 3, padding=1), lambda: torch.nn.Conv2d(4, 4, 3, padding=1), (IMAGE,)),
    **dict(conv_cases()),
    "BatchNorm": Case(lambda: nn.BatchNorm(4, dtype="float64"), lambda: torch.nn.BatchNorm2d(4), (IMAGE,)),
    "GroupNorm": Case(lambda: nn.GroupNorm(2, 4), lambda: torch.nn.GroupNorm(2, 4), (IMAGE,)),
    "LayerNorm": Case(lambda: nn.LayerNorm(4), lambda: torch.nn.LayerNorm(4)),
    "LayerNorm of two axes": Case(lambda: nn.LayerNorm([5, 4]), lambda: torch.nn.LayerNorm([5, 4]), (SEQUENCE,)),
    "PReLU": Case(nn.PReLU, torch.nn.PReLU, (IMAGE,)),
    "PReLU of channels": Case(lambda: nn.PReLU(4), lambda: torch.nn.PReLU(4), (IMAGE,)),
    **dict(recurrent_cases()),
    **dict(attention_cases()),
    **dict(normed_cases()),
    "AdaptiveLogSoftmaxWithLoss": Case(Head, TorchHead),
    "a user's layer": Case(Own, TorchOwn),
    "a subclass": Case(Sub, TorchSub),
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Everything is built in float64, in which a wrong formula cannot look like rounding."""
    paddle.set_default_dtype("float64")
    torch.set_default_dtype(torch.float64)
    yield
    paddle.set_default_dtype("float32")
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm has a successor, Paddle's BN tracks statistics
        yield


def lived_in(module: torch.nn.Module, inputs: list[Any]) -> torch.nn.Module:
    """Numbers that differ from the initial ones everywhere; the vectors of spectral_norm are those of its weight."""
    torch.manual_seed(0)
    vectors = [name for name in module.state_dict() if f"{name[:-1]}u" in module.state_dict()]
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and name not in vectors:
            tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("running_var") else torch.randn_like(tensor))
    module.train()
    for _ in range(3 * bool(vectors)):  # power iterations, too few to find the vectors to the last digit
        module(*inputs)
    return module.eval()


def arrays_of(case: Case) -> list[np.ndarray]:
    numbers = np.random.default_rng(0)
    if case.numbers:
        return [numbers.integers(0, case.numbers, shape) for shape in case.shapes]
    return [numbers.standard_normal(shape) for shape in case.shapes]


def flat(outputs: Any) -> list[Any]:
    """The tensors of an output, nested as it is in either framework; PyTorch's attention also gives its weights."""
    if isinstance(outputs, (tuple, list)):
        return [tensor for output in outputs for tensor in flat(output)]
    return [] if outputs is None else [outputs]


def assert_close(found: np.ndarray, expected: np.ndarray, what: str, scale: float = 0) -> None:
    scale = max(np.abs(expected).max(), scale)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= TOLERANCE * scale, what


def built(case: Case) -> tuple[nn.Layer, torch.nn.Module, dict[str, Any], list[np.ndarray]]:
    """The layer in both frameworks with the same numbers, and what Paddle's tensors were made of."""
    inputs = arrays_of(case)
    theirs = lived_in(case.theirs(), [torch.from_numpy(array) for array in inputs])
    ours = case.ours()
    tensors = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    taken = chosen(sources(ours), tensors)
    assert set(taken) == set(ours.state_dict())
    used = {name for source in taken.values() for name in source.names}
    assert {name for name in tensors if name not in used and not name.endswith("num_batches_tracked")} == set()
    set_state(ours, {name: value.copy() for name, value in made_of(tensors, taken).items()})
    return ours, theirs, taken, inputs


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_pytorchs(name):
    case = CASES[name]
    ours, theirs, taken, inputs = built(case)
    for training in (False, True)[: 1 + case.train]:
        ours.train() if training else ours.eval()
        theirs.train(training)
        xs = [paddle.to_tensor(array, stop_gradient=case.numbers > 0) for array in inputs]
        ts = [torch.from_numpy(array).requires_grad_(not case.numbers) for array in inputs]
        found, expected = flat(ours(*xs)), flat(theirs(*ts))
        pairs = list(zip(found, expected))
        numbers = np.random.default_rng(1)
        weights = [numbers.standard_normal(output.shape) for output, _ in pairs]
        for output, reference in pairs:
            assert_close(output.numpy(), reference.detach().numpy(), f"{name}: output")
        if case.train and not training:
            continue  # Paddle's recurrent layers have gradients only in training
        ours.clear_gradients()
        theirs.zero_grad()
        sum((o * paddle.to_tensor(w)).sum() for (o, _), w in zip(pairs, weights)).backward()
        sum((r * torch.from_numpy(w)).sum() for (_, r), w in zip(pairs, weights)).backward()
        for x, t in zip(xs, ts):
            if not case.numbers:
                assert_close(x.grad.numpy(), t.grad.numpy(), f"{name}: gradient of an input")
        gradients = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}
        scale = max(np.abs(gradient).max() for gradient in gradients.values())  # that of keys' biases is 0
        for ours_name, tensor in ours.state_dict().items():
            source = taken[ours_name]
            if case.nonlinear and ours_name.endswith(case.nonlinear):
                continue
            if tensor.stop_gradient or not set(source.names) <= set(gradients):
                assert not set(source.names) & set(gradients)
                continue
            assert source.formula.linear
            [made] = made_of(gradients, {ours_name: source}).values()
            assert_close(tensor.grad.numpy(), made, f"{name}: gradient of {ours_name}", scale)


def test_every_line_of_the_table_is_compared():
    covered: set[Any] = set()
    for case in CASES.values():
        ours, _, taken, _ = built(case)
        for path, layer in ours.named_sublayers(include_self=True):
            kind, prefix = layer_kind(type(layer).__mro__), f"{path}." if path else ""
            covered.add(kind)
            for name, source in taken.items():
                numbers = re.findall(r"(?<!\d)\d+(?=\.cell)", name[len(prefix) :])
                for row in LAYOUTS.get(kind, ()):
                    fill = [text.replace("{n}", *numbers or [""]) for text in (row.name, *row.theirs)]
                    if name.startswith(prefix) and [name, *source.names] == [prefix + text for text in fill]:
                        covered.add((kind, row.name, row.theirs))
    lines = {(kind, row.name, row.theirs) for kind, rows in LAYOUTS.items() for row in rows}
    missing = {line for line in lines if line[0] != "SyncBatchNorm"} - covered
    assert missing == set()
    own = {"LayerDict", "Sequential", "ParameterList", "ParameterDict", "SpectralNorm", "HSigmoidLoss"}
    assert set(LAYOUTS) - covered == own | {"SyncBatchNorm"}


@pytest.mark.parametrize("layer", ["Linear", "Conv2D", "Conv2DTranspose"])
@pytest.mark.parametrize("plain", [True, False])
def test_vectors_that_have_not_been_trained_yet_are_those_of_the_usual_axis(layer, plain):
    ours, theirs, _ = NORMED[layer]
    for seed in range(20):
        torch.manual_seed(seed)
        original = spectral_norm(theirs()).eval()
        x = torch.randn(ROWS if layer == "Linear" else IMAGE)
        network = ours() if plain else nn.utils.spectral_norm(ours())
        tensors = {name: tensor.numpy() for name, tensor in original.state_dict().items()}
        set_state(network, made_of(tensors, chosen(sources(network), tensors)))
        network.eval()
        assert_close(network(paddle.to_tensor(x.numpy())).numpy(), original(x).detach().numpy(), layer)


def test_tensors_of_any_shape_give_an_array_or_one_sentence():
    draw = np.random.default_rng(0)
    for case in CASES.values():
        for name, some in sources(case.ours()).items():
            for source in some * 3:
                shapes = [draw.integers(0, 6, draw.integers(0, 5)) for _ in source.names]
                kinds = draw.choice(["f4", "f2", "i8", "?"], len(shapes))
                tensors = {theirs: np.ones(s, k) for theirs, s, k in zip(source.names, shapes, kinds)}
                try:
                    assert isinstance(made_of(tensors, {name: source})[name], np.ndarray)
                except WeightsError as error:
                    assert str(error).startswith("holds ") and "\n" not in str(error)


def test_what_the_table_says_nothing_about_is_as_it_is():
    network = nn.Sequential(
        nn.SpectralNorm([4, 4]),
        nn.HSigmoidLoss(4, 4),
        nn.LayerList([nn.ParameterList([paddle.create_parameter([4, 4], "float64")])]),
        nn.LayerDict({"a": Own()}),
        paddle.vision.models.LeNet(),
        nn.Sequential(nn.RNN(nn.GRUCell(4, 4)), nn.BiRNN(nn.GRUCell(4, 4), nn.GRUCell(4, 4))),
    )
    for name, some in sources(network).items():
        is_linear = re.fullmatch(r"4\.fc\.\d\.weight", name)
        assert some[0].names == (name,) and (some[0].formula is AS_IT_IS) is not bool(is_linear), name


def test_statistics_of_every_device_are_those_of_one():
    network = nn.Sequential(nn.Conv2D(4, 4, 3), nn.BatchNorm2D(4))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert isinstance(synchronised[1], nn.SyncBatchNorm)
    for name, some in sources(synchronised).items():
        expected = sources(network)[name]
        assert [(s.names, s.formula.text) for s in some] == [(s.names, s.formula.text) for s in expected]
    assert sources(synchronised)["1._mean"][0].names == ("1.running_mean",)
