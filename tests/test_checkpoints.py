"""Weights into models and back, and models out of weight files."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddle_dense import cdnv2_a, create_model, load_model, load_weights, save_weights
from paddle_dense.errors import WeightsError
from paddle_dense.files.sidecar import write_with_sidecar
from paddle_dense.files.weights import read_weights, write_weights
from paddle_dense.models import CondenseNetV2
from paddle_dense.models.fitting import check_state
from paddle_dense.models.recognise import Architecture

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
FORMS = pytest.mark.parametrize("condensed", [True, False], ids=["condensed", "trained"])
SMALL = {"stages": [1, 2, 1], "growth": [8, 8, 16], "fc_channel": 24, "SE_start_block": 1, "num_classes": 7}
SMALL.update(group_1x1=4, group_3x3=4, group_trans=4)
LAYER = "features.denseblock_1.denselayer_1"


def arrays_of(model: paddle.nn.Layer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def same_part(whole: paddle.nn.Layer, part: paddle.nn.Layer) -> dict[str, np.ndarray]:
    """The tensors of a network that a part of it has, too."""
    arrays = arrays_of(whole)
    return {name: arrays[name] for name in part.state_dict()}


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name


@pytest.fixture
def model(randomise):
    return randomise(CondenseNetV2(**SMALL, HS_start_block=1))


# There and back


@SUFFIXES
@FORMS
def test_what_is_saved_is_what_is_loaded(suffix, condensed, tmp_path, randomise):
    model = randomise(CondenseNetV2(**SMALL, condensed=condensed))
    other = randomise(CondenseNetV2(**SMALL, condensed=condensed), seed=1)
    save_weights(model, tmp_path / f"net{suffix}")
    assert load_weights(other, tmp_path / f"net{suffix}") == ([], [])
    assert_identical(arrays_of(other), arrays_of(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["net.json", f"net{suffix}"])


@SUFFIXES
def test_the_sidecar_says_what_the_tensors_cannot(suffix, tmp_path, model):
    path = tmp_path / f"net{suffix}"
    save_weights(model, path, {"trained_on": "digits", "accuracy": 0.99})
    sidecar = json.loads((tmp_path / "net.json").read_text(encoding="utf-8"))
    assert sidecar["arch"] == "CondenseNetV2"
    assert sidecar["config"]["HS_start_block"] == 1 and sidecar["config"]["stages"] == [1, 2, 1]
    assert sidecar["trained_on"] == "digits" and sidecar["accuracy"] == 0.99
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_model(path)
    assert loaded.config == model.config
    assert_identical(arrays_of(loaded), arrays_of(model))


def test_a_network_is_built_once(tmp_path, model, monkeypatch):
    """Building is most of what loading costs beside reading."""
    save_weights(model, tmp_path / "net.pdparams")
    built, build = [], Architecture.build
    monkeypatch.setattr(Architecture, "build", lambda found: built.append(found) or build(found))
    assert_identical(arrays_of(load_model(tmp_path / "net.pdparams")), arrays_of(model))
    assert len(built) == 1
    load_model(tmp_path / "net.pdparams", num_classes=0)
    assert [found.config["num_classes"] for found in built] == [7, 7, 0]


@SUFFIXES
@FORMS
def test_without_a_sidecar_the_tensors_are_asked(suffix, condensed, tmp_path, randomise):
    model = randomise(CondenseNetV2(**SMALL, condensed=condensed))
    path = tmp_path / f"net{suffix}"
    write_weights(arrays_of(model), path)
    with pytest.warns(UserWarning, match="HS_start_block=2 is assumed"):
        loaded = load_model(path)
    assert {**loaded.config, "init_stride": None} == model.config
    assert_identical(arrays_of(loaded), arrays_of(model))


def test_a_preset_needs_no_sidecar(tmp_path, randomise, difference):
    model = randomise(create_model("cdnv2_a", num_classes=3))
    write_weights(arrays_of(model), tmp_path / "net.pdparams")
    with pytest.warns(UserWarning, match="HS_start_block=2, init_stride=2, which cdnv2_a has"):
        loaded = load_model(tmp_path / "net.pdparams")
    assert loaded.arch == "cdnv2_a" and loaded.preprocessing == model.preprocessing
    model.eval(), loaded.eval()
    x = paddle.randn([1, 3, 64, 64])
    assert difference(loaded(x), model(x)) == 0


def test_what_paddle_saves_loads(tmp_path, model, randomise):
    paddle.save(model.state_dict(), str(tmp_path / "net.pdparams"))
    other = randomise(CondenseNetV2(**SMALL), seed=1)
    load_weights(other, tmp_path / "net.pdparams")
    assert_identical(arrays_of(other), arrays_of(model))


def test_what_is_saved_paddle_loads(tmp_path, model, randomise):
    save_weights(model, tmp_path / "net.pdparams")
    other = randomise(CondenseNetV2(**SMALL), seed=1)
    missing, unexpected = other.set_state_dict(paddle.load(str(tmp_path / "net.pdparams")))
    assert not missing and not unexpected
    assert_identical(arrays_of(other), arrays_of(model))


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_other_precisions_become_the_models(dtype, tmp_path, model):
    state = arrays_of(model)
    stored = {name: array.astype(dtype) if array.dtype == "f4" else array for name, array in state.items()}
    write_weights(stored, tmp_path / "net.safetensors")
    other = CondenseNetV2(**SMALL)
    load_weights(other, tmp_path / "net.safetensors")
    expected = {name: array.astype(state[name].dtype) for name, array in stored.items()}
    assert_identical(arrays_of(other), expected)


def test_any_network_can_be_saved_and_loaded(tmp_path, randomise):
    """One that is not of this package has no sidecar, and an old one of other weights must not stay."""
    net, other = (paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4)) for _ in range(2))
    randomise(net)
    write_with_sidecar({"w": np.ones(1, "f4")}, tmp_path / "net.pdparams", {"arch": "cdnv2_a", "config": {}})
    save_weights(net, tmp_path / "net.pdparams")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pdparams"]
    load_weights(other, tmp_path / "net.pdparams")
    assert_identical(arrays_of(other), arrays_of(net))


def test_a_failed_save_leaves_what_was_there(tmp_path, model):
    path = tmp_path / "net.pdparams"
    save_weights(model, path, {"note": "the good one"})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model.register_buffer("odd", paddle.zeros([2], "complex64"))
    with pytest.raises(WeightsError, match="odd"):
        save_weights(model, path)
    with pytest.raises(WeightsError, match="suffix"):
        save_weights(model, tmp_path / "net.bin")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_that_is_not_there_is_named(tmp_path, model):
    with pytest.raises(WeightsError, match="nowhere"):
        save_weights(model, tmp_path / "nowhere" / "net.pdparams")
    assert list(tmp_path.iterdir()) == []


# Parts of a network


@FORMS
def test_a_backbone_takes_a_whole_networks_file(condensed, tmp_path, randomise, difference):
    whole = randomise(CondenseNetV2(**SMALL, condensed=condensed))
    save_weights(whole, tmp_path / "net.pdparams")
    backbone = CondenseNetV2(**SMALL, condensed=condensed, features_only=True)
    assert load_weights(backbone, tmp_path / "net.pdparams") == ([], [])
    assert_identical(arrays_of(backbone), same_part(whole, backbone))
    headless = CondenseNetV2(**{**SMALL, "num_classes": 0}, condensed=condensed)
    assert load_weights(headless, tmp_path / "net.pdparams") == ([], [])
    whole.eval(), headless.eval()
    x = paddle.randn([2, 3, 32, 32])
    assert difference(whole.classifier(headless(x)), whole(x)) < 1e-6


def test_backbones_can_be_saved_and_rebuilt(tmp_path, randomise):
    for use in ({"features_only": True}, {"num_classes": 0}):
        model = randomise(CondenseNetV2(**{**SMALL, **use}))
        save_weights(model, tmp_path / "part.pdparams")
        loaded = load_model(tmp_path / "part.pdparams")
        assert loaded.config == model.config
        assert_identical(arrays_of(loaded), arrays_of(model))


def test_a_whole_network_does_not_take_a_backbones_file(tmp_path, randomise):
    save_weights(randomise(CondenseNetV2(**SMALL, features_only=True)), tmp_path / "part.pdparams")
    with pytest.raises(WeightsError, match="missing"):
        load_weights(CondenseNetV2(**SMALL), tmp_path / "part.pdparams")


# Files that do not fit


def one_hot(rows: int, columns: int) -> np.ndarray:
    return np.eye(columns, dtype="f4")[np.arange(rows) % columns]


def with_row(row: int, values: dict[int, float]) -> np.ndarray:
    index = one_hot(16, 16)
    index[row] = 0
    for column, value in values.items():
        index[row, column] = value
    return index


WRONG = {
    "missing": ("fc.bias", None, "is missing"),
    "missing buffer": (f"{LAYER}.sfr.index", None, "is missing"),
    "extra": ("features.denseblock_9.weight", np.zeros(3, "f4"), "no place in CondenseNetV2: .* if the original"),
    "misshapen": ("fc.bias", np.zeros(25, "f4"), r"is \[25\] and CondenseNetV2 needs \[24\]"),
    "another rank": ("fc.weight", np.zeros((56, 24, 1, 1), "f4"), r"needs \[56, 24\]"),
    "as PyTorch lies": ("fc.weight", np.zeros((24, 56), "f4"), r"is \[24, 56\]"),
    "a number": ("fc.bias", np.zeros((), "f4"), r"is \[\]"),
    "whole numbers": ("fc.bias", np.zeros(24, "i8"), "int64.*needs floats"),
    "true or false": ("fc.bias", np.zeros(24, "?"), "bool.*needs floats"),
    "an index of floats": (f"{LAYER}.conv_1.index", np.zeros(16, "f4"), "float32.*needs integers"),
    "a channel below 0": (f"{LAYER}.conv_1.index", np.arange(16) - 1, "names channel -1 of 16"),
    "a channel above": (f"{LAYER}.conv_1.index", np.arange(16) + 1, "names channel 16 of 16"),
    "a row of zeros": (f"{LAYER}.sfr.index", with_row(3, {}), "row 3"),
    "two in a row": (f"{LAYER}.sfr.index", with_row(5, {1: 1, 2: 1}), "row 5"),
    "a half": (f"{LAYER}.sfr.index", with_row(7, {1: 0.5}), "row 7"),
    "two halves": (f"{LAYER}.sfr.index", with_row(7, {1: 0.5, 2: 0.5}), "row 7"),
    "minus one": (f"{LAYER}.sfr.index", with_row(9, {1: -1}), "row 9"),
    "not a number": (f"{LAYER}.sfr.index", with_row(11, {1: np.nan}), "row 11"),
}


@pytest.mark.parametrize(("name", "value", "said"), list(WRONG.values()), ids=list(WRONG))
@SUFFIXES
def test_what_does_not_fit_is_refused_in_one_sentence(name, value, said, suffix, tmp_path, model, randomise):
    state = arrays_of(model)
    state[name] = value
    path = tmp_path / f"net{suffix}"
    write_weights({key: array for key, array in state.items() if array is not None}, path)
    other = randomise(CondenseNetV2(**SMALL), seed=1)
    before = arrays_of(other)
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(other, path)
    assert repr(name) in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_identical(arrays_of(other), before)


def test_check_state_gives_the_models_order_and_types(model):
    state = {name: array.astype("f8") if array.dtype == "f4" else array for name, array in arrays_of(model).items()}
    checked = check_state(dict(reversed(list(state.items()))), model)
    assert list(checked) == list(model.state_dict())
    assert {str(array.dtype) for array in checked.values()} == {"float32", "int64"}


def test_not_strict_loads_what_fits_and_reports_the_rest(tmp_path, model, randomise):
    state = arrays_of(model)
    del state["fc.bias"]
    state["classifier.weight"] = np.zeros((24, 9), "f4")
    state["extra"] = np.zeros(3, "f4")
    write_weights(state, tmp_path / "net.pdparams")
    other = randomise(CondenseNetV2(**SMALL), seed=1)
    before = arrays_of(other)
    missing, unused = load_weights(other, tmp_path / "net.pdparams", strict=False)
    assert sorted(missing) == ["classifier.weight", "fc.bias"]
    assert sorted(unused) == ["classifier.weight", "extra"]
    expected = {**arrays_of(model), **{name: before[name] for name in missing}}
    assert_identical(arrays_of(other), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{LAYER}.conv_1.index", np.arange(16) + 1),
        (f"{LAYER}.conv_1.index", np.full(16, np.nan, "f4")),
        (f"{LAYER}.conv_1.index", np.full(16, 0.5, "f4")),
        (f"{LAYER}.sfr.index", with_row(3, {})),
    ],
    ids=["no such channel", "not numbers", "halves", "no one"],
)
def test_not_strict_is_still_strict_about_channels(name, value, tmp_path, model):
    """Loading part of a file is a wish; computing with the wrong channels never is."""
    write_weights({**arrays_of(model), name: value}, tmp_path / "net.safetensors")
    before = arrays_of(model)
    with pytest.raises(WeightsError, match=name):
        load_weights(model, tmp_path / "net.safetensors", strict=False)
    assert_identical(arrays_of(model), before)


def test_a_file_of_another_network_is_no_model(tmp_path):
    write_weights({"conv1.weight": np.zeros((4, 3, 3, 3), "f4")}, tmp_path / "net.pdparams")
    with pytest.raises(WeightsError, match="none of the known networks"):
        load_model(tmp_path / "net.pdparams")


@pytest.mark.parametrize(
    "value",
    [
        None,
        np.ones((), "f4"),
        np.zeros((0, 8, 3, 3), "f4"),
        np.ones((9, 8, 3, 3), "f4"),
        np.ones((1, 1, 1, 1), "f4"),
        np.ones(17, "f4"),
    ],
    ids=["missing", "a number", "nothing", "nine rows", "one", "a vector"],
)
@FORMS
@pytest.mark.filterwarnings("ignore:.*is assumed")
def test_a_damaged_file_is_refused_whichever_tensor_is_damaged(value, condensed, tmp_path, randomise):
    state = arrays_of(randomise(CondenseNetV2(**SMALL, condensed=condensed)))
    path = tmp_path / "net.safetensors"
    for name in state:
        damaged = {key: array for key, array in {**state, name: value}.items() if array is not None}
        write_weights(damaged, path)
        with pytest.raises(WeightsError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value), name


def test_shapes_that_claim_a_giant_network_are_refused():
    """A few bytes can claim a block of a million channels; nothing of that size may be built to find out."""
    script = f"""
        import resource
        import warnings
        import numpy as np
        from paddle_dense import CondenseNetV2, load_model
        from paddle_dense.errors import WeightsError
        from paddle_dense.files.weights import write_weights
        import os, tempfile

        model = CondenseNetV2(**{SMALL})
        state = {{name: tensor.numpy() for name, tensor in model.state_dict().items()}}
        state["features.denseblock_2.denselayer_1.conv_2.conv.weight"] = np.zeros((1_000_000, 0, 3, 3), "f4")
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "net.safetensors")
            write_weights(state, path)
            try:
                load_model(path)
            except WeightsError as error:
                print("refused:", error)
    """
    pytest.importorskip("resource", reason="limits the memory of a process, which only POSIX systems can")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-500:]
    assert run.stdout.startswith("refused:") and run.stdout.count("\n") == 1


# pretrained=


@pytest.mark.parametrize("as_type", [str, Path])
@SUFFIXES
def test_pretrained_takes_a_path(suffix, as_type, tmp_path, randomise):
    source = randomise(cdnv2_a(num_classes=3))
    save_weights(source, tmp_path / f"a{suffix}")
    path = as_type(tmp_path / f"a{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for build in (cdnv2_a, lambda **config: create_model("cdnv2_a", **config)):
            assert_identical(arrays_of(build(pretrained=path, num_classes=3)), arrays_of(source))
        headless = cdnv2_a(pretrained=path, num_classes=0)
        backbone = cdnv2_a(pretrained=path, features_only=True)
    for part in (headless, backbone):
        assert_identical(arrays_of(part), same_part(source, part))


def test_another_number_of_classes_starts_a_fresh_classifier_and_says_so(tmp_path, randomise):
    source = randomise(cdnv2_a(num_classes=3))
    save_weights(source, tmp_path / "a.pdparams")
    with pytest.warns(UserWarning, match="does not have the model's 5 classes: the classifier is newly initialised"):
        model = cdnv2_a(pretrained=str(tmp_path / "a.pdparams"), num_classes=5)
    found, expected = arrays_of(model), arrays_of(source)
    assert found["classifier.weight"].shape == (828, 5)
    assert np.abs(found["classifier.weight"]).max() <= 828**-0.5, "as a new layer starts"
    assert_identical(
        {name: array for name, array in found.items() if not name.startswith("classifier")},
        {name: array for name, array in expected.items() if not name.startswith("classifier")},
    )


def test_pretrained_is_strict_about_everything_else(tmp_path, model):
    save_weights(model, tmp_path / "small.pdparams")
    with pytest.raises(WeightsError, match=r"small\.pdparams: tensor '.*' "):
        cdnv2_a(pretrained=str(tmp_path / "small.pdparams"))


def test_pretrained_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pdparams.*No such file"):
        cdnv2_a(pretrained=str(tmp_path / "nowhere.pdparams"))


@pytest.mark.parametrize("name", ["cdnv2_tiny_converted.pth", "cdnv2_tiny_trained_unconverted.pth.tar"])
def test_pretrained_is_strict_about_pytorchs_files(name, data):
    with pytest.raises(WeightsError, match=rf"{name}: tensor '.*' "):
        cdnv2_a(pretrained=str(data / name))


# The sidecar


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "null",
        "{",
        '{"arch": "CondenseNetV2"}',
        '{"arch": "CondenseNetV2", "config": 3}',
        '{"arch": "CondenseNetV2", "config": [1]}',
        '{"arch": "NoNet", "config": {}}',
        '{"arch": ["CondenseNetV2"], "config": {}}',
        '{"arch": "CondenseNetV2", "config": {}}',
        '{"arch": "CondenseNetV2", "config": {"stages": [1], "growth": [8], "no_such_argument": 1}}',
        '{"arch": "CondenseNetV2", "config": {"stages": [1, 1], "growth": [8]}}',
        '{"arch": "CondenseNetV2", "config": {"stages": [], "growth": []}}',
        '{"arch": "CondenseNetV2", "config": {"stages": "many", "growth": [8]}}',
        '{"arch": "CondenseNetV2", "config": {"stages": [1], "growth": [8], "group_1x1": 0}}',
        '{"arch": "CondenseNetV2", "config": {"stages": [1], "growth": [-8]}}',
        '{"arch": "CondenseNetV2", "config": {"stages": [1], "growth": [8], "num_classes": -3}}',
        "[" * 100_000,
        "\ufeff{}x",
    ],
    ids=lambda text: repr(text[:90]),
)
def test_a_bad_sidecar_is_one_sentence(text, tmp_path, model):
    save_weights(model, tmp_path / "net.pdparams")
    (tmp_path / "net.json").write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError) as caught:
        load_model(tmp_path / "net.pdparams")
    assert "net." in str(caught.value) and "\n" not in str(caught.value)


def test_a_sidecar_in_another_encoding_is_one_sentence(tmp_path, model):
    save_weights(model, tmp_path / "net.pdparams")
    (tmp_path / "net.json").write_bytes(b'\xff\xfe{"arch": 1}')
    with pytest.raises(WeightsError, match=r"net\.json is not a readable sidecar"):
        load_model(tmp_path / "net.pdparams")


@pytest.mark.parametrize("change", [{"num_classes": 8}, {"stages": [1, 1, 1]}, {"condensed": False}], ids=str)
def test_a_sidecar_of_other_weights_is_found_out(change, tmp_path, model):
    save_weights(model, tmp_path / "net.pdparams")
    sidecar = json.loads((tmp_path / "net.json").read_text())
    sidecar["config"].update(change)
    (tmp_path / "net.json").write_text(json.dumps(sidecar))
    with pytest.raises(WeightsError, match="tensor '"):
        load_model(tmp_path / "net.pdparams")


@pytest.mark.filterwarnings("ignore:.*is assumed")
def test_a_json_file_that_says_nothing_of_a_network_is_no_sidecar(tmp_path, model):
    save_weights(model, tmp_path / "net.pdparams")
    (tmp_path / "net.json").write_text('{"epoch": 3}')
    assert load_model(tmp_path / "net.pdparams").config["stages"] == [1, 2, 1]


def test_files_are_read_in_full_by_their_content(tmp_path, model):
    """Whatever the name says: nothing but the content decides."""
    save_weights(model, tmp_path / "net.safetensors")
    (tmp_path / "net.pdparams").write_bytes((tmp_path / "net.safetensors").read_bytes())
    assert_identical(read_weights(tmp_path / "net.pdparams"), arrays_of(model))
