"""CondenseLGC and CondenseSFR against the products that the papers write down."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_dense.files.layout import to_paddle
from paddle_dense.layers import CondenseLGC, CondenseSFR, ShuffleLayerTrans
from tests.helpers import loaded, part, random_images


def explicit_product(layer: CondenseSFR, x: paddle.Tensor) -> paddle.Tensor:
    """The condensed SFR word for word: shuffle, grouped convolution, product with the matrix `index`."""
    x = ShuffleLayerTrans(layer.activation(layer.norm(x)), layer.groups)
    return paddle.einsum("nihw,ij->njhw", layer.conv(x), layer.index)


def one_hot(targets, columns: int) -> np.ndarray:
    return np.eye(columns, dtype="f4")[np.asarray(targets)]


def oracle_layer(data, name: str, layer):
    """A layer in the oracle's state, with the oracle's input and output."""
    oracle = part(data / "layers_v2.npz", f"{name}/")
    loaded(layer, to_paddle(part(data / "layers_v2.npz", f"{name}_condensed/state/")))
    return layer, paddle.to_tensor(oracle["x"]), oracle["y_condensed"]


# Against the original


def test_condense_lgc_answers_as_the_original(data, difference):
    layer, x, y = oracle_layer(data, "lgc", CondenseLGC(32, 32, groups=4))
    assert sorted(set(layer.index.tolist())) != list(range(32)), "the index repeats some channels and leaves some out"
    assert difference(layer(x), y) < 1e-6


def test_condense_sfr_answers_as_the_original(data, difference):
    layer, x, y = oracle_layer(data, "sfr", CondenseSFR(16, 32, groups=4, activation="HS"))
    hits = layer.index.numpy().sum(axis=0)
    assert hits.min() == 0, "the index leaves some channels out"
    assert hits.max() > 1, "the index repeats some channels"
    assert difference(layer(x), y) < 1e-6
    assert difference(explicit_product(layer, x), y) < 1e-6


# CondenseLGC


@pytest.mark.parametrize(
    ("source", "gathered", "outputs", "groups"),
    [(16, 16, 8, 4), (24, 24, 12, 6), (16, 32, 8, 4), (16, 8, 8, 4)],
    ids=["C = G = 4", "C = G = 6", "C < G", "C > G"],
)
def test_condense_lgc_gathers_convolves_and_shuffles(source, gathered, outputs, groups, randomise, difference):
    layer = randomise(CondenseLGC(gathered, outputs, groups=groups, activation="HS", source_channels=source))
    layer.eval()
    x = paddle.randn([2, source, 5, 3])
    taken = paddle.stack([x[:, channel] for channel in layer.index.tolist()], axis=1)
    active = layer.activation(layer.norm(taken)).numpy()
    weight = layer.conv.weight.numpy()[:, :, 0, 0]
    expected = np.zeros((2, outputs, 5, 3), "f8")
    for row in range(outputs):
        group, place = divmod(row, outputs // groups)
        mine = active[:, group * (gathered // groups) : (group + 1) * (gathered // groups)]
        expected[:, place * groups + group] = np.einsum("i,nihw->nhw", weight[row], mine)
    assert difference(layer(x), expected) < 1e-6


def test_a_new_condense_lgc_takes_the_channels_in_turn():
    assert CondenseLGC(12, 8, groups=4, source_channels=8).index.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [-1, 16])
def test_condense_lgc_knows_which_channels_exist(wrong):
    layer = CondenseLGC(8, 8, groups=4, source_channels=16)
    assert layer.index_fault(np.arange(8) * 2) is None
    assert str(wrong) in layer.index_fault(np.array([0, 1, 2, wrong, 4, 5, 6, 7]))


# CondenseSFR

SFRS = pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "rows"),
    [(8, 16, 4, 16), (12, 24, 6, 24), (8, 16, 4, 32), (8, 16, 4, 8), (16, 16, 1, 16)],
    ids=["C = G = 4", "C = G = 6", "C < G", "C > G", "one group"],
)


@SFRS
@pytest.mark.parametrize("training", [False, True])
def test_condense_sfr_equals_the_product_with_its_index(inputs, outputs, groups, rows, training, randomise, difference):
    """Outputs, and the gradients of everything that has one; a copy of the layer computes the product."""
    layers = [randomise(CondenseSFR(inputs, outputs, groups=groups, rows=rows, activation="HS")) for _ in range(2)]
    scale = paddle.randn([3, outputs, 5, 4])
    results = []
    for layer, forward in zip(layers, (CondenseSFR.forward, explicit_product)):
        layer.train() if training else layer.eval()
        x = paddle.to_tensor(random_images(3, inputs, 5, 4))
        x.stop_gradient = False
        y = forward(layer, x)
        (y * scale).sum().backward()
        gradients = [x.grad, layer.conv.weight.grad, layer.norm.weight.grad, layer.norm.bias.grad]
        results.append([y, *gradients, layer.norm._mean, layer.norm._variance])
    for found, expected in zip(*results):
        assert difference(found, expected) < 2e-6


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param([3, 5, 0, 7, 3, 5, 1, 2, 3, 6, 1, 4, 3, 0, 2, 7], id="a column by every group, columns by none"),
        pytest.param([9, 8, 10, 11, 9, 8, 10, 11, 9, 8, 10, 11, 9, 8, 10, 11], id="every group the same columns"),
        pytest.param([3, 3, 0, 7, 5, 5, 5, 5, 0, 15, 0, 15, 1, 2, 3, 4], id="a column more than once by one group"),
        pytest.param([6] * 16, id="one column by every row"),
    ],
)
def test_contributions_to_one_column_add_up(targets, randomise, difference):
    layer = randomise(CondenseSFR(8, 16, groups=4))
    layer.eval()
    layer.index.set_value(one_hot(targets, 16))
    x = paddle.randn([2, 8, 5, 4])
    y = layer(x)
    assert difference(y, explicit_product(layer, x)) < 1e-6
    never = sorted(set(range(16)) - set(targets))
    assert (y.numpy()[:, never] == 0).all()

    scale = paddle.randn(y.shape)
    gradients = []
    for out in (y, explicit_product(layer, x)):
        layer.clear_gradients()
        (out * scale).sum().backward()
        gradients.append(layer.conv.weight.grad.numpy())
    assert difference(*gradients) < 2e-6


def test_the_dense_weight_is_one_convolution(randomise, difference):
    layer = randomise(CondenseSFR(8, 16, groups=4))
    layer.eval()
    weight = layer.dense_weight()
    assert weight.shape == [16, 8, 1, 1]
    x = paddle.randn([2, 8, 5, 5])
    active = layer.activation(layer.norm(x)).numpy()
    assert difference(np.einsum("oi,nihw->nohw", weight.numpy()[:, :, 0, 0], active), layer(x).numpy()) < 1e-6


@pytest.mark.parametrize("change", ["set_value", "set_state_dict", "load_dict"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "to_static"])
def test_a_new_index_is_respected_after_a_forward_pass(change, static, randomise, difference):
    """Nothing derived from the index may be kept from one pass to the next."""
    layer = randomise(CondenseSFR(8, 16, groups=4))
    layer.eval()
    run = paddle.jit.to_static(layer, full_graph=True) if static else layer
    x = paddle.randn([2, 8, 5, 4])
    before = run(x).numpy()
    index = randomise(CondenseSFR(8, 16, groups=4), seed=7).index
    if change == "set_value":
        layer.index.set_value(index)
    else:
        getattr(layer, change)({**layer.state_dict(), "index": index.numpy()})
    after = run(x).numpy()
    assert np.abs(after - before).max() > 0.1
    assert difference(after, explicit_product(layer, x).numpy()) < 1e-6


def device_with_half_precision() -> str:
    return "gpu" if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() else "cpu"


@pytest.mark.filterwarnings("ignore:amp_guard")  # what Paddle says of half precision on a CPU
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_automatic_mixed_precision_does_not_confuse_the_channels(dtype, level, randomise, difference):
    """bfloat16 counts exactly to 256 and float16 to 2048: with 2500 channels a rounded number names another one.

    Paddle has mixed precision on a GPU only; what can go wrong on every machine is the subject of the next test.
    """
    paddle.set_device(device_with_half_precision())
    layer = randomise(CondenseSFR(4, 2500, groups=4))
    layer.eval()
    x = paddle.randn([1, 4, 3, 3])
    exact = layer(x)
    with paddle.amp.auto_cast(dtype=dtype, level=level):
        targets = layer.targets()
        y = layer(x)
    assert targets.dtype == paddle.int64
    assert (targets.numpy() == layer.index.numpy().argmax(axis=1)).all()
    assert difference(y.astype("float32"), exact) < 2e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_index_in_half_precision_names_the_same_channels(dtype, randomise):
    """As after model.to(dtype=...): its ones and zeros stay exact, so the numbers of the channels must too."""
    layer = randomise(CondenseSFR(4, 2500, groups=4))
    expected = layer.index.numpy().argmax(axis=1)
    layer.to(dtype=dtype)
    assert (layer.targets().numpy() == expected).all()


def test_condense_sfr_knows_a_matrix_from_an_index():
    layer = CondenseSFR(8, 16, groups=4)
    assert layer.index_fault(one_hot([5] * 16, 16)) is None
    for row, value in ((3, 0.0), (5, 0.5), (7, 2.0), (9, -1.0), (11, np.nan)):
        index = one_hot(range(16), 16)
        index[row, row] = value
        assert f"row {row}" in layer.index_fault(index)
    index = one_hot(range(16), 16)
    index[4, 0] = 1
    assert "row 4" in layer.index_fault(index)


@pytest.mark.parametrize("kind", [CondenseLGC, CondenseSFR])
def test_an_unknown_activation_is_named(kind):
    with pytest.raises(ValueError, match="'relu6'"):
        kind(8, 8, groups=4, activation="relu6")
