"""Maxout as Darknet computes it, and the fusion of a pyramid's neighbours by PyTorch's own operators."""

from __future__ import annotations

import paddle
import pytest

from paddle_dense.layers import ExactFusion, Maxout
from tests.helpers import part, random_images

IN, OUT = (6, 10, 21), (8, 5, 12)
# Images of 50x75 pixels in networks that round the sides up at each level, and in ones that round them down.
ODD = ([(25, 38), (13, 19), (7, 10)], [(25, 37), (12, 18), (6, 9)])
EVEN = [(16, 24), (8, 12), (4, 6)]


def pyramid(sizes, dtype="float32"):
    return [random_images(2, channels, *size, seed=size[0], dtype=dtype) for channels, size in zip(IN, sizes)]


def gradients_of(y, x, cotangent):
    y.backward(cotangent)
    return x.grad.numpy()


@pytest.mark.parametrize("case", ["12_to_4", "11_to_3"])
def test_maxout_is_darknets(data, case):
    """Bit for bit, the gradients as well."""
    expected = part(data / "darknet_maxout.npz", f"{case}/")
    x = paddle.to_tensor(expected["x"], stop_gradient=False)
    y = Maxout(x.shape[1], expected["y"].shape[1])(x)
    assert (y.numpy() == expected["y"]).all()
    assert (gradients_of(y, x, paddle.to_tensor(expected["dy"])) == expected["dx"]).all()


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 4), (12, 12), (7, 1), (10, 4), (5, 3), (64, 16)])
def test_maxout_is_the_maximum_of_every_so_many_channels_in_pytorch(inputs, outputs):
    torch = pytest.importorskip("torch", reason="computes the same: pip install torch")
    x, cotangent = random_images(2, inputs, 3, 5), random_images(2, outputs, 3, 5, seed=2)
    t = torch.tensor(x, requires_grad=True)
    padded = torch.nn.functional.pad(t, (0, 0, 0, 0, 0, -inputs % outputs), value=-torch.inf)
    expected = torch.amax(padded.reshape(2, -1, outputs, 3, 5), dim=1)
    x = paddle.to_tensor(x, stop_gradient=False)
    y = Maxout(inputs, outputs)(x)
    assert (y.numpy() == expected.detach().numpy()).all()
    expected = gradients_of(expected, t, torch.tensor(cotangent))
    assert (gradients_of(y, x, paddle.to_tensor(cotangent)) == expected).all()


def test_equal_maxima_share_one_gradient():
    x = paddle.zeros([1, 6, 1, 1])
    x.stop_gradient = False
    found = gradients_of(Maxout(6, 2)(x), x, paddle.ones([1, 2, 1, 1])).reshape(3, 2)
    assert (found >= 0).all()
    assert (found.sum(0) == 1).all()


@pytest.mark.parametrize("outputs", [0, -1, 9])
def test_maxout_makes_at_least_one_channel_and_no_new_ones(outputs):
    with pytest.raises(ValueError, match=f"make {outputs} of 8 channels: give a number from 1 to 8$"):
        Maxout(8, outputs)


def in_torch(state, levels, compressed, training=False):
    """What the module's docstring says, in PyTorch."""
    import torch
    from torch.nn import functional as F

    def block(x, prefix, padding):
        x = F.conv2d(x, state[f"{prefix}.conv.weight"], padding=padding)
        statistics = (state[f"{prefix}.bn._mean"].clone(), state[f"{prefix}.bn._variance"].clone())
        x = F.batch_norm(x, *statistics, state[f"{prefix}.bn.weight"], state[f"{prefix}.bn.bias"], training)
        return F.leaky_relu(x, 0.1)

    def maxout(x):
        padded = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % compressed), value=-torch.inf)
        return padded.unflatten(1, (-1, compressed)).amax(1)

    fused = []
    for place, level in enumerate(levels):
        size, around = level.shape[2:], [maxout(level)]
        if place:
            # A maximum over pixels and one over channels can change places.
            finer = maxout(F.max_pool2d(levels[place - 1], 2, ceil_mode=True))
            around = [F.interpolate(finer, size=size, mode="nearest"), *around]
        if place < len(levels) - 1:
            around.append(F.interpolate(maxout(levels[place + 1]), size=size, mode="nearest"))
        fused.append(block(block(torch.cat(around, 1), f"fuse.{place}.0", 0), f"fuse.{place}.1", 1))
    return fused


@pytest.mark.parametrize("sizes", [EVEN, *ODD], ids=["even", "rounded up", "rounded down"])
@pytest.mark.parametrize("compressed", [None, 4])
def test_fusion_is_pytorchs(randomise, difference, sizes, compressed):
    torch = pytest.importorskip("torch", reason="computes the same: pip install torch")
    layer = randomise(ExactFusion(IN, OUT, compressed))
    layer.eval()
    levels = pyramid(sizes)
    state = {key: torch.tensor(tensor.numpy()) for key, tensor in layer.state_dict().items()}
    expected = in_torch(state, [torch.tensor(level) for level in levels], compressed or 6)
    found = layer([paddle.to_tensor(level) for level in levels])
    assert [tuple(level.shape) for level in found] == [(2, width, *size) for width, size in zip(OUT, sizes)]
    assert difference(found, expected) < 1e-6


@pytest.mark.parametrize("sizes", [EVEN, *ODD], ids=["even", "rounded up", "rounded down"])
def test_fusion_learns_as_in_pytorch(randomise, difference, sizes):
    """The gradients of every level and parameter, with the statistics of the batch."""
    torch = pytest.importorskip("torch", reason="computes the same: pip install torch")
    layer = randomise(ExactFusion(IN, OUT)).to(dtype="float64")
    levels = pyramid(sizes, "float64")
    state = {key: torch.tensor(tensor.numpy()) for key, tensor in layer.state_dict().items()}
    for name, _ in layer.named_parameters():
        state[name].requires_grad = "bn._" not in name
    theirs = [torch.tensor(level, requires_grad=True) for level in levels]
    ours = [paddle.to_tensor(level, stop_gradient=False) for level in levels]
    sum(level.square().mean() for level in in_torch(state, theirs, 6, training=True)).backward()
    sum(level.square().mean() for level in layer(ours)).backward()
    assert difference([level.grad for level in ours], [level.grad for level in theirs]) < 1e-6
    learning = [name for name in state if state[name].requires_grad]
    assert len(learning) == 3 * 2 * 3
    for name, parameter in layer.named_parameters():
        assert name not in learning or difference(parameter.grad, state[name].grad) < 1e-6


def test_only_the_neighbours_are_read():
    layer = ExactFusion([4, 4, 4, 4], 6)
    levels = [paddle.randn([1, 4, side, side]) for side in (16, 8, 4, 2)]
    for level in levels:
        level.stop_gradient = False
    layer(levels)[1].sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in levels[:3])
    assert levels[3].grad is None or levels[3].grad.abs().sum() == 0


def test_all_levels_are_compressed_to_the_fewest_channels():
    layer = ExactFusion([96, 288, 800], [32, 64, 128])
    convolutions = [tuple(p.shape) for name, p in layer.named_parameters() if name.endswith("conv.weight")]
    assert convolutions == [
        *((16, 192, 1, 1), (32, 16, 3, 3)),
        *((32, 288, 1, 1), (64, 32, 3, 3)),
        *((64, 192, 1, 1), (128, 64, 3, 3)),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([64], 32), "give two levels or more"),
        (([], 32), "give two levels or more"),
        (([64, 128], [32, 32, 32]), "do not fit 2 levels"),
        (([64, 128], 1), "each 2 or more"),
        (([64, 128], [32, 0]), "each 2 or more"),
        (([64, 128], 32, 65), "make 65 of 64 channels: give a number from 1 to 64"),
        (([64, 128], 32, 0), "make 0 of 64 channels"),
    ],
)
def test_arguments_that_make_no_fusion(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExactFusion(*arguments)


@pytest.mark.parametrize("channels", [[4, 8], [4, 8, 16, 32], [16, 8, 4]])
def test_a_pyramid_of_other_levels_is_refused(channels):
    pyramid = [paddle.zeros([1, count, 16 >> place, 16 >> place]) for place, count in enumerate(channels)]
    with pytest.raises(ValueError, match=r"fuses levels of \[4, 8, 16\]: give it those, finest first"):
        ExactFusion([4, 8, 16], 6)(pyramid)


@pytest.mark.parametrize("full_graph", [True, False])
def test_fusion_in_a_static_graph(randomise, difference, full_graph):
    layer = randomise(ExactFusion(IN, OUT))
    layer.eval()
    for sizes in (EVEN, *ODD):
        levels = [paddle.to_tensor(level) for level in pyramid(sizes)]
        expected = layer(levels)
        assert difference(paddle.jit.to_static(layer, full_graph=full_graph)(levels), expected) < 1e-6
