"""The heat map of a network's connections: what the numbers are, the image, and the command that draws it."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_dense import condense, save_weights
from paddle_dense.commands.plot import main
from paddle_dense.errors import WeightsError
from paddle_dense.models import CondenseNet, CondenseNetV2, CSPDenseNet, CSPNet, DenseNet
from paddle_dense.models.fitting import set_state
from paddle_dense.process import FAILED, OK, USAGE
from paddle_dense.training.plot import Connectivity, connectivity, plot_connectivity

CONDENSENET = {"stages": [2, 3], "growth": [8, 16], "num_classes": 10}
NETWORKS = {
    "V2": (CondenseNetV2, {}, 1 / 4),
    # An index with more entries than the input has channels.
    "V2, C < G in the LGC": (CondenseNetV2, {"condense_factor": 2}, None),
    "V2, C < G in the SFR": (CondenseNetV2, {"trans_factor": 2}, None),
    "CondenseNet": (CondenseNet, CONDENSENET, 1 / 4),
    "CondenseNet, C < G": (CondenseNet, {**CONDENSENET, "condense_factor": 2}, 1 / 2),
}


@pytest.fixture
def trained(tiny, randomise):
    """Makes a network in the trained form with random weights and learned masks."""

    def make(network=CondenseNetV2, **options):
        config = {**(tiny if network is CondenseNetV2 else CONDENSENET), **options}
        return randomise(network(**config, condensed=False))

    return make


def silent(model: nn.Layer) -> nn.Layer:
    """The network with every 1x1 weight of its dense layers at 0."""
    for name, tensor in model.state_dict().items():
        if name.endswith((".conv_1.conv.weight", ".sfr.conv.weight")):
            tensor.set_value(paddle.zeros_like(tensor))
    return model


def assert_same(found: Connectivity, expected: Connectivity) -> None:
    assert found.sources == expected.sources
    assert found.layers == expected.layers
    assert found.density == pytest.approx(expected.density, rel=1e-12)
    np.testing.assert_allclose(found.reads, expected.reads, rtol=1e-12, atol=0)
    assert (found.reactivates is None) == (expected.reactivates is None)
    if expected.reactivates is not None:
        # Contributions of several groups to one channel meet in float32, in another order.
        np.testing.assert_allclose(found.reactivates, expected.reactivates, rtol=1e-6, atol=0)


# The numbers


@pytest.mark.parametrize(("network", "options", "density"), list(NETWORKS.values()), ids=list(NETWORKS))
def test_the_condensed_form_gives_the_same_answer(trained, network, options, density):
    model = trained(network, **options)
    found = connectivity(model)
    assert_same(connectivity(condense(model)), found)
    assert (found.reads[np.isfinite(found.reads)] > 0).any()
    if density is not None:
        assert found.density == density


def test_what_the_original_condensed_gives_the_same_answer(tiny, tiny_state):
    model, condensed = CondenseNetV2(**tiny, condensed=False), CondenseNetV2(**tiny)
    set_state(model, tiny_state("trained_unconverted.pth.tar"))
    set_state(condensed, tiny_state("converted.pth"))
    assert_same(connectivity(condensed), connectivity(model))


def test_rows_are_sources_and_columns_layers(trained):
    found = connectivity(trained())
    assert found.sources == ("stem", "1-1", "1-2", "2-1", "2-2", "3-1")
    assert found.layers == ("1-1", "1-2", "2-1", "2-2", "3-1", "3-2")
    assert found.source_blocks == (0, 1, 1, 2, 2, 3)
    assert found.layer_blocks == (1, 1, 2, 2, 3, 3)
    for values in (found.reads, found.reactivates):
        # A layer sees the stem and every layer before it, in all blocks.
        assert np.array_equal(np.isfinite(values), np.triu(np.ones((6, 6), bool)))


def test_one_connection_by_hand(tiny):
    """Layer 2-1 has 4 * 16 outputs and reads channels 16 to 23 from layer 1-1; its SFR has 16 inputs."""
    model = silent(CondenseNetV2(**tiny, condensed=False))
    layer = model.features.denseblock_2.denselayer_1
    with paddle.no_grad():
        layer.conv_1.conv.weight[5, 17] = -3.0
        layer.sfr.conv.weight[17, 2] = -5.0
    found = connectivity(model)
    for values, expected in ((found.reads, 3 / (64 * 8)), (found.reactivates, 5 / (16 * 8))):
        assert values[1, 2] == expected
        assert np.nansum(values) == expected
    assert found.density == 1


def test_one_connection_of_the_condensed_form_by_hand(tiny):
    """The first gathered channel of group 2 and a row of the SFR, led to channels of layer 1-2 (24 to 31)."""
    model = silent(CondenseNetV2(**tiny))
    layer = model.features.denseblock_2.denselayer_1
    group, gathered, row = 2, 32 // 4, 11
    with paddle.no_grad():
        layer.conv_1.index[group * gathered] = 25
        layer.conv_1.conv.weight[group * (64 // 4) + 3, 0] = 3.0
        layer.sfr.index[row] = paddle.eye(32)[26]
        layer.sfr.conv.weight[row, 1] = 5.0
    found = connectivity(model)
    for values, expected in ((found.reads, 3 / (64 * 8)), (found.reactivates, 5 / (16 * 8))):
        assert values[2, 2] == expected
        assert np.nansum(values) == expected
    assert found.density == 1 / 4


def test_a_channel_that_several_groups_gather_counts_for_each_of_them():
    model = silent(CondenseNet(**CONDENSENET, condense_factor=2))
    conv = model.features.denseblock_1.denselayer_1.conv_1
    assert conv.index.shape[0] == 2 * 16  # channel 0 stands in it for groups 0 and 2
    with paddle.no_grad():
        for group in (0, 2):
            conv.conv.weight[group * 8, 0] = 1.0 + group
    assert connectivity(model).reads[0, 0] == (1 + 3) / (32 * 16)


def test_dropped_connections_count_as_zero_at_any_density(trained):
    model = trained()
    layers = [layer for layer in model.sublayers() if hasattr(layer, "_mask")]
    for layer in layers:
        layer._mask.set_value(paddle.ones_like(layer._mask))
    conv = model.features.denseblock_1.denselayer_2.conv_1
    conv._mask[:, 16:] = 0.0
    found = connectivity(model)
    assert found.reads[1, 1] == 0
    assert found.reads[0, 1] > 0
    assert found.density == 1 - conv._mask[:, 16:].size / sum(layer._mask.size for layer in layers)


@pytest.mark.parametrize("network", [DenseNet, CSPDenseNet, partial(DenseNet, small_inputs=True, bn_size=0)])
def test_networks_that_are_dense_within_blocks_only(network):
    model = network(growth_rate=4, block_config=[2, 3], num_init_features=8, num_classes=5)
    found = connectivity(model)
    assert found.sources == ("in 1", "1-1", "in 2", "2-1", "2-2")
    assert found.layers == ("1-1", "1-2", "2-1", "2-2", "2-3")
    assert found.source_blocks == found.layer_blocks == (1, 1, 2, 2, 2)
    seen = np.zeros((5, 5), bool)
    seen[:2, :2], seen[2:, 2:] = np.triu(np.ones((2, 2))), np.triu(np.ones((3, 3)))
    assert np.array_equal(np.isfinite(found.reads), seen)
    weight = np.abs(model.features.denseblock2.denselayer3.conv1.weight.numpy())
    assert found.reads[4, 4] == pytest.approx(weight[:, -4:].mean(), rel=1e-6)
    assert found.reads[2, 4] == pytest.approx(weight[:, :-8].mean(), rel=1e-6)
    assert found.reactivates is None
    assert found.density == 1


def test_networks_without_dense_layers_are_refused():
    with pytest.raises(ValueError, match="Sequential has no dense layers to plot: take a CondenseNet"):
        connectivity(nn.Sequential(nn.Linear(2, 2)))


def test_dense_layers_of_another_make_are_refused(trained):
    model = trained()
    model.features.denseblock_1.denselayer_1.conv_1 = nn.Sequential()
    with pytest.raises(ValueError, match="plot the network as it was before"):
        connectivity(model)


def test_weights_that_are_no_numbers_are_refused(trained):
    model = trained()
    with paddle.no_grad():
        model.features.denseblock_3.denselayer_1.sfr.conv.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="before the training diverged"):
        connectivity(model)


# The image


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib", reason='draws: pip install "paddle_dense[report]"')


def shape_of(path: Path) -> tuple[int, ...]:
    from matplotlib.image import imread

    image = imread(path)
    assert len(np.unique(image[..., 0])) > 20
    return image.shape


def test_two_maps_for_v2_and_one_for_condensenet(trained, tmp_path, matplotlib):
    """A map of a small network has sides of 4.6 inches, at 150 dots per inch, and labels around it."""
    two, one = tmp_path / "two.png", tmp_path / "one.PNG"
    plot_connectivity(trained(), two)
    plot_connectivity(trained(CondenseNet), one)
    assert np.allclose(shape_of(two)[:2], (5.7 * 150, 11.6 * 150), rtol=0, atol=1)
    assert np.allclose(shape_of(one)[:2], (5.7 * 150, 6.4 * 150), rtol=0, atol=1)


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_images_that_can_be_enlarged(trained, tmp_path, matplotlib, suffix, start):
    path = tmp_path / f"map.{suffix}"
    plot_connectivity(trained(CondenseNet), path)
    assert path.read_bytes().startswith(start)


def test_a_layer_without_weights_can_be_drawn(tiny, tmp_path, matplotlib):
    plot_connectivity(silent(CondenseNetV2(**tiny)), tmp_path / "map.png")
    assert (tmp_path / "map.png").exists()


@pytest.mark.parametrize("blocks", [(1, 1, 4, 6, 8), (30, 30, 30)])
def test_labels_do_not_overlap(matplotlib, blocks):
    from paddle_dense.training.plot import _figure

    names = tuple((f"{b}-{i}", b) for b, n in enumerate(blocks, start=1) for i in range(1, n + 1))
    layers, of = zip(*names)
    values = np.where(np.triu(np.ones((len(layers),) * 2)), 0.5, np.nan)
    found = Connectivity(("stem", *layers[:-1]), layers, (0, *of[:-1]), of, values, values, 0.125)
    figure = _figure(found, "network")
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        for axis, side in ((axes.xaxis, "x"), (axes.yaxis, "y")):
            boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
            ends = sorted((getattr(box, f"{side}0"), getattr(box, f"{side}1")) for box in boxes)
            assert len(ends) >= 15
            assert all(high < low for (_, high), (low, _) in zip(ends, ends[1:]))
        title, axis_label = axes.title.get_window_extent(), axes.xaxis.label.get_window_extent()
        assert axis_label.y1 < axes.get_window_extent().y0 < axes.get_window_extent().y1 < title.y0


@pytest.mark.parametrize("name", ["map.gif", "map"])
def test_other_suffixes_are_refused(trained, tmp_path, name):
    with pytest.raises(ValueError, match=r"end the name in .png or .svg or .pdf"):
        plot_connectivity(trained(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failing_write_leaves_what_was_there(trained, tmp_path, matplotlib):
    resource = pytest.importorskip("resource", reason="limits the size of files")
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(WeightsError, match=r"map.png: cannot be written"):
            plot_connectivity(trained(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]
    assert path.read_bytes() == b"old"


# The command


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    path = tmp_path / "net.pdparams"
    save_weights(trained(), path)
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    return (main([str(argument) for argument in arguments]), *capsys.readouterr())


def test_the_image_is_next_to_the_checkpoint(capsys, checkpoint, matplotlib):
    status, out, err = run(capsys, checkpoint)
    assert (status, err) == (OK, "")
    assert out == f"{checkpoint} -> {checkpoint.with_suffix('.png')}: CondenseNetV2\n"
    assert shape_of(checkpoint.with_suffix(".png"))


def test_an_existing_image_is_kept_unless_forced(capsys, checkpoint, tmp_path, matplotlib):
    image = tmp_path / "map.png"
    image.write_bytes(b"old")
    status, out, err = run(capsys, checkpoint, "-o", image)
    assert (status, out) == (FAILED, "")
    assert err == f"error: {image} exists already: give another name with -o, or --force to overwrite it\n"
    assert image.read_bytes() == b"old"
    assert run(capsys, checkpoint, "-o", image, "--force")[0] == OK
    assert shape_of(image)


def test_no_sidecar_and_no_warning(capsys, checkpoint, recwarn, matplotlib):
    """What the tensors leave open, as the strides, does not show in the image."""
    checkpoint.with_suffix(".json").unlink()
    assert run(capsys, checkpoint)[::2] == (OK, "")
    assert not recwarn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: CKPT"),
        (["net.pdparams", "-o", "map.gif"], "-o map.gif must end in .png or .svg or .pdf"),
        (["net.pdparams", "--big"], "unrecognized arguments: --big"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (USAGE, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_bad_checkpoints(capsys, data, tmp_path):
    network = tmp_path / "other.safetensors"
    save_weights(CSPNet("resnet", [1], [16], [1.0], [1.0], stem_channels=8, num_classes=5), network)
    for path, message in (
        (tmp_path / "no.pdparams", "cannot be read"),
        (data / "README.md", "begins with"),
        (network, "CSPNet has no dense layers to plot"),
    ):
        status, out, err = run(capsys, path, "-o", tmp_path / "map.png")
        assert (status, out) == (FAILED, "")
        assert err.startswith(f"error: {path}: ")
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "map.png").exists()


def test_without_matplotlib(capsys, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run(capsys, checkpoint)
    assert (status, out) == (FAILED, "")
    assert err == 'error: matplotlib draws the plot: pip install "paddle_dense[report]"\n'
    assert not checkpoint.with_suffix(".png").exists()


def test_the_users_figures_are_left_alone(checkpoint, matplotlib):
    """The image needs neither pyplot, which keeps figures and chooses a display, nor PyTorch."""
    code = (
        "import sys; from paddle_dense.commands.plot import main; status = main(sys.argv[1:]); "
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules); sys.exit(status)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(checkpoint)], check=True, capture_output=True)
    assert shape_of(checkpoint.with_suffix(".png"))
