"""Wrong weights are errors: one sentence with the file, the tensor, what was found and what was expected."""

from __future__ import annotations

import json
import warnings
from typing import Callable

import numpy as np
import paddle
import pytest

from convert.torch2paddle import FAILED, OK, main
from paddle_dense import CondenseNetV2, create_model, load_model, load_weights, save_weights
from paddle_dense.errors import WeightsError
from paddle_dense.files.weights import read_weights, write_weights
from paddle_dense.models.fitting import set_state

SMALL = {"stages": [1, 1, 1], "growth": [8, 8, 16], "fc_channel": 24, "SE_start_block": 1, "num_classes": 7}
SMALL.update(group_1x1=4, group_3x3=4, group_trans=4)
LAYER = "features.denseblock_1.denselayer_1"
FORMS = {"condensed": True, "trained": False}
Arrays = dict[str, np.ndarray]


def changed(state: Arrays, name: str, change: Callable[[np.ndarray], None]) -> Arrays:
    """The state with one tensor changed in place."""
    array = state[name].copy()
    change(array)
    return {**state, name: array}


def setting(value: float, *place: int) -> Callable[[np.ndarray], None]:
    """A change that puts a value at a place, by default the first."""

    def change(array: np.ndarray) -> None:
        array[place or (0,) * array.ndim] = value

    return change


# form, tensor in Paddle, change, what was found, what was expected
WRONG = {
    "NaN": ("condensed", "classifier.weight", setting(np.nan), "holds 1 NaN among 168 numbers", "finite"),
    "infinity": ("condensed", "fc.bias", setting(-np.inf), "holds 1 infinite among 24 numbers", "finite"),
    "NaN in a mean": ("trained", f"{LAYER}.sfr.norm._mean", setting(np.nan), "running_mean in PyTorch", "finite"),
    "negative variance": ("condensed", "features.norm_last._variance", setting(-0.5), "holds -0.5", "above 0"),
    "no variance": ("trained", f"{LAYER}.conv_1.norm._variance", setting(0.0), "holds 0, one of 1", "above 0"),
    "no such channel": ("condensed", f"{LAYER}.conv_1.index", setting(16), "names channel 16 of 16", "0 to 15"),
    "a negative channel": ("condensed", f"{LAYER}.conv_1.index", setting(-1), "names channel -1", "0 to 15"),
    "a row of two ones": ("condensed", f"{LAYER}.sfr.index", lambda a: a[2].fill(1), "row 2", "one 1 and zeros"),
    "a row without a one": ("condensed", f"{LAYER}.sfr.index", lambda a: a[2].fill(0), "row 2", "one 1 and zeros"),
    "NaN in an index": ("condensed", f"{LAYER}.sfr.index", setting(np.nan), "row 0", "one 1 and zeros"),
    "half a mask": ("trained", f"{LAYER}.conv_1._mask", setting(0.5), "512, 0.5 among them", "near 0 nor near 1"),
    "a mask above 1": ("trained", f"{LAYER}.sfr._mask", setting(1.04), "128, 1.04 among them", "near 0 nor near 1"),
    "a mask below 0": ("trained", f"{LAYER}.sfr._mask", lambda a: a.__isub__(0.04), "-0.04", "near 0 nor near 1"),
    "NaN in a mask": ("trained", f"{LAYER}.sfr._mask", setting(np.nan), "nan", "near 0 nor near 1"),
    "a mask of its own": ("trained", f"{LAYER}.sfr._mask", lambda a: a[:, :4].fill(0), "different", "4 groups"),
    "too many stages": ("trained", f"{LAYER}.conv_1._stage", setting(4), "is 4", "0 to 3"),
    "NaN stages": ("trained", f"{LAYER}.sfr._stage", setting(np.nan), "is nan", "0 to 3"),
    "too much dropped": ("trained", f"{LAYER}.conv_1._count", setting(17), "is 17", "0 to 16"),
    "less than nothing dropped": ("trained", f"{LAYER}.conv_1._count", setting(-1), "is -1", "0 to 16"),
}


@pytest.fixture(scope="module")
def models(randomise):
    return {form: randomise(CondenseNetV2(**SMALL, condensed=condensed)) for form, condensed in FORMS.items()}


@pytest.fixture
def state_of(models):
    return lambda form: {name: tensor.numpy() for name, tensor in models[form].state_dict().items()}


def write_checkpoint(state: Arrays, path) -> None:
    """What PyTorch would save of a network with this state of Paddle's."""
    torch = pytest.importorskip("torch", reason="writes PyTorch checkpoints: pip install torch")
    from paddle_dense.files.layout import to_torch

    torch.save({name: torch.from_numpy(np.array(array)) for name, array in to_torch(state).items()}, path)


def assert_one_sentence(message: str, *parts: str) -> None:
    assert message.count("\n") == 0 and all(part in message for part in parts), message


@pytest.mark.parametrize(("form", "name", "change", "found", "expected"), WRONG.values(), ids=WRONG)
def test_every_way_in_refuses_wrong_numbers(form, name, change, found, expected, tmp_path, state_of):
    path = tmp_path / "net.pdparams"
    wrong = CondenseNetV2(**SMALL, condensed=FORMS[form])
    set_state(wrong, changed(state_of(form), name, change))
    save_weights(wrong, path)
    other = CondenseNetV2(**SMALL, condensed=FORMS[form])
    before = {key: tensor.numpy() for key, tensor in other.state_dict().items()}
    for load in (
        lambda: load_weights(other, path),
        lambda: load_weights(other, path, strict=False),
        lambda: load_model(path),
    ):
        with pytest.raises(WeightsError) as caught:
            load()
        assert_one_sentence(str(caught.value), str(path), repr(name), found, expected)
    after = {key: tensor.numpy() for key, tensor in other.state_dict().items()}
    assert all(np.array_equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(("form", "name", "change", "found", "expected"), WRONG.values(), ids=WRONG)
@pytest.mark.filterwarnings("ignore:.*is assumed")
def test_the_converter_refuses_wrong_numbers(capsys, form, name, change, found, expected, tmp_path, state_of):
    write_checkpoint(changed(state_of(form), name, change), tmp_path / "net.pth")
    # A mask that repeats after more channels could be that of more groups, unless it is condensed.
    for options in ([], ["--keep-trained-form"]) if found != "different" else ([],):
        assert main([str(tmp_path / "net.pth"), "--no-verify", *options]) == FAILED
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "net.pth: " in err
        # What recognises the network looks at masks and stages first, and has its own words.
        if name.endswith("._mask") and found != "different":
            assert name in err and expected in err
        elif found not in ("different", "is nan"):
            assert repr(name) in err and found in err and expected in err
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_pretrained_weights_are_no_exception(tmp_path, randomise):
    source = randomise(create_model("cdnv2_a", num_classes=3))
    state = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    write_weights(changed(state, "fc.bias", setting(np.nan)), tmp_path / "a.pdparams")
    with pytest.raises(WeightsError, match=r"'fc\.bias' holds 1 NaN among 828"):
        create_model("cdnv2_a", num_classes=3, pretrained=str(tmp_path / "a.pdparams"))


def test_all_that_is_not_finite_is_counted(tmp_path, state_of, models):
    state = changed(state_of("condensed"), "classifier.weight", lambda a: a[:2].fill(np.nan))
    state = changed(changed(state, "classifier.weight", setting(np.inf, 5, 5)), "fc.bias", setting(np.inf))
    write_weights(state, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_weights(models["condensed"], tmp_path / "net.safetensors")
    assert "'fc.bias' holds 1 infinite among 24 numbers, " in str(caught.value)
    assert "(tensors with such numbers: 2)" in str(caught.value)
    state["fc.bias"][0] = 0
    write_weights(state, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"'classifier\.weight' holds 14 NaN and 1 infinite among 168 numbers, "):
        load_weights(models["condensed"], tmp_path / "net.safetensors")


def test_what_is_too_large_for_float32_is_infinite(tmp_path, state_of, models):
    state = state_of("condensed")
    state["fc.bias"] = np.full(24, 1e300)
    write_weights(state, tmp_path / "net.pdparams")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WeightsError, match="holds 24 infinite"):
            load_weights(models["condensed"], tmp_path / "net.pdparams")


# What looks wrong and is not


@pytest.mark.parametrize("decay", [3e-5, 0.03, -3e-4], ids=["released", "young", "rounded up"])
def test_averaged_masks_and_counters_are_rounded(decay, tmp_path, state_of, models):
    """An EMA that copies no buffer holds 0.99997 and 2.3e-5 for 1 and 0, and counts 11.998 channels."""
    state = state_of("trained")
    expected = {name: array.copy() for name, array in state.items()}
    for name, array in state.items():
        if name.endswith("_mask"):
            array += decay * (1 - 2 * array)
        elif name.endswith(("_count", "_stage")):
            array -= decay * array / 3  # it counted up in three steps, and only the last is missing something
    write_weights(state, tmp_path / "net.pdparams")
    model = CondenseNetV2(**SMALL, condensed=False)
    load_weights(model, tmp_path / "net.pdparams")
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), expected[name]), name


def test_an_sfr_may_reactivate_a_feature_often_or_never(tmp_path, state_of, models):
    """One group may even name a channel twice, as the original's converter does with a mask of too many ones."""
    state = changed(state_of("condensed"), f"{LAYER}.sfr.index", lambda a: (a.fill(0), a[:, 3].fill(1)))
    write_weights(state, tmp_path / "net.pdparams")
    load_weights(CondenseNetV2(**SMALL), tmp_path / "net.pdparams")


def test_the_smallest_variance_that_training_leaves_is_one(tmp_path, state_of, models):
    """What decays by a tenth a step stays at 4 times the smallest float32, where a tenth rounds to nothing."""
    norm = paddle.nn.BatchNorm2D(1)
    norm._variance.set_value(paddle.full([1], 1e-44))
    norm.train()
    norm(paddle.zeros([2, 1, 4, 4]))
    state = changed(state_of("condensed"), "features.norm_last._variance", setting(norm._variance.item()))
    assert 0 < state["features.norm_last._variance"][0] < 1e-43
    write_weights(state, tmp_path / "net.pdparams")
    load_weights(CondenseNetV2(**SMALL), tmp_path / "net.pdparams")


def test_a_counter_of_batches_may_hold_anything(capsys, tmp_path, state_of):
    """[1] is how safetensors' save_file stores what numpy's ascontiguousarray has made of it."""
    torch = pytest.importorskip("torch", reason="writes PyTorch checkpoints: pip install torch")
    write_checkpoint(state_of("condensed"), tmp_path / "net.pth")
    state = torch.load(tmp_path / "net.pth", weights_only=True)
    for value in (torch.tensor(-3), torch.tensor(float("nan")), torch.zeros(1, dtype=torch.int32)):
        state = {key: value if key.endswith("num_batches_tracked") else array for key, array in state.items()}
        torch.save(state, tmp_path / "net.pth")
        assert main([str(tmp_path / "net.pth"), "--force"]) == OK, capsys.readouterr().err


def test_numbers_that_make_no_network_are_the_files_fault(capsys, tmp_path, state_of):
    """A mask with one connection gone repeats after no number of channels that the layer could have groups of."""
    state = state_of("trained")
    mask = state[f"{LAYER}.conv_1._mask"].copy()
    mask[tuple(np.argwhere(mask)[0])] = 0
    write_checkpoint({**state, f"{LAYER}.conv_1._mask": mask}, tmp_path / "net.pth")
    assert main([str(tmp_path / "net.pth"), "--no-verify"]) == FAILED
    err = capsys.readouterr().err
    assert "net.pth: holds tensors that make no network (LGC: " in err and err.count("\n") == 1


# --allow-nonfinite


def test_a_nan_is_converted_when_asked_for(capsys, tmp_path, state_of, difference, models):
    state = changed(state_of("condensed"), "classifier.weight", lambda a: a[3].fill(np.nan))
    state = changed(state, "classifier.bias", setting(np.inf))
    write_checkpoint(changed(state, "features.norm_last._variance", setting(-1, 2)), tmp_path / "net.pth")
    assert main([str(tmp_path / "net.pth")]) == FAILED
    assert "--allow-nonfinite" in capsys.readouterr().err

    assert main([str(tmp_path / "net.pth"), "--allow-nonfinite", "--json"]) == OK
    out, err = capsys.readouterr()
    result = json.loads(out)
    # The rest was compared, and what was not is named.
    assert result["verified"] and result["max_rel_diff"] < 1e-5
    said = result["warnings"][-1]
    assert said.startswith("compared with 0 in place of NaN and infinity, and 1 for variances")
    assert all(
        f"'{name}'" in said for name in ("classifier.weight", "classifier.bias", "features.norm_last.running_var")
    )
    assert said in err

    written = read_weights(tmp_path / "net.pdparams")
    assert np.isnan(written["classifier.weight"][3]).all() and np.isfinite(written["classifier.weight"][:3]).all()
    assert written["classifier.bias"][0] == np.inf and written["features.norm_last._variance"][2] == -1

    with pytest.raises(WeightsError, match="allow_nonfinite=True"):
        load_model(tmp_path / "net.pdparams")
    loaded = load_model(tmp_path / "net.pdparams", allow_nonfinite=True)
    assert np.isnan(loaded.state_dict()["classifier.weight"].numpy()).sum() == 7
    load_weights(models["condensed"].__class__(**SMALL), tmp_path / "net.pdparams", allow_nonfinite=True)


def test_what_is_compared_without_nan_is_still_compared(capsys, tmp_path, state_of, monkeypatch):
    from paddle_dense import identifying

    write_checkpoint(changed(state_of("condensed"), "classifier.bias", setting(np.nan)), tmp_path / "net.pth")
    monkeypatch.setattr(identifying, "to_paddle", lambda state: _with_wrong_bias(to_paddle(state)))
    from paddle_dense.files.layout import to_paddle

    assert main([str(tmp_path / "net.pth"), "--allow-nonfinite"]) == FAILED
    assert "Paddle and PyTorch differ" in capsys.readouterr().err


def _with_wrong_bias(state: Arrays) -> Arrays:
    return {**state, "fc.bias": state["fc.bias"] + 1}


def test_weights_that_overflow_are_not_said_to_differ(capsys, tmp_path, state_of):
    state = state_of("condensed")
    # In float64, which has the last word, it takes many of them.
    for name in [name for name in state if name.endswith(("norm.weight", "norm_last.weight"))]:
        state = changed(state, name, lambda a: a.__imul__(1e38))
    write_checkpoint(state, tmp_path / "net.pth")
    assert main([str(tmp_path / "net.pth")]) == FAILED
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the outputs are NaN or infinite though every weight is finite" in err
    assert main([str(tmp_path / "net.pth"), "--no-verify"]) == OK


def test_parity_takes_the_same_option(capsys, tmp_path, state_of):
    from convert.parity.__main__ import main as parity

    write_checkpoint(changed(state_of("condensed"), "classifier.bias", setting(np.nan)), tmp_path / "net.pth")
    options = [str(tmp_path / "net.pth"), "--steps", "1", "--size", "32", "--batch-size", "2"]
    assert parity(options) == FAILED
    err = capsys.readouterr().err
    assert "'classifier.bias' holds 1 NaN among 7" in err and err.count("\n") == 1
    assert parity([*options, "--allow-nonfinite"]) == OK
    assert "compared with 0 in place of NaN" in capsys.readouterr().err
