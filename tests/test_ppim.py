"""The weights of CondenseNet V2 that Paddle users already have are ppim's: they load, and they answer the same."""

from __future__ import annotations

import paddle
import pytest

from convert.parity.forward import double_precision, paddle_in_double_precision
from paddle_dense import create_model, load_model, load_weights
from tests.helpers import answers, arrays, loaded, random_images

ppim = pytest.importorskip("ppim", reason="compares with ppim's networks: pip install ppim")

IMAGE = random_images(1, 3, 224, 224)


def assert_same_answers(ours, theirs, difference):
    """In float64, where rounding cannot be taken for a difference: in float32 Paddle 2.6.2 showed 1.15e-6."""
    with double_precision():
        found, expected = (answers(paddle_in_double_precision(net), IMAGE.astype("f8")) for net in (ours, theirs))
    assert expected.dtype == "f8"
    assert difference(found, expected) < 1e-12


NAMES = pytest.mark.parametrize("name", ["cdnv2_a", "cdnv2_b", "cdnv2_c"])


@NAMES
def test_our_weights_load_into_ppim(name, randomise, difference):
    ours, theirs = randomise(create_model(name)), getattr(ppim, name)()
    loaded(theirs, arrays(ours))
    assert_same_answers(ours, theirs, difference)


@NAMES
def test_their_files_load_into_ours(name, randomise, difference, tmp_path):
    """As a plain file of paddle.save, into a network that we built and as one that we recognise."""
    theirs = randomise(getattr(ppim, name)(class_dim=10), seed=3)
    paddle.save(theirs.state_dict(), str(tmp_path / "theirs.pdparams"))
    ours = create_model(name, class_dim=10)
    load_weights(ours, tmp_path / "theirs.pdparams")
    recognised = load_model(tmp_path / "theirs.pdparams")
    assert recognised.arch == name
    for found in (ours, recognised):
        assert_same_answers(found, theirs, difference)


def test_pretrained_takes_their_files(randomise, difference, tmp_path):
    theirs = randomise(ppim.cdnv2_a())
    paddle.save(theirs.state_dict(), str(tmp_path / "cdnv2_a.pdparams"))
    ours, transforms = create_model("cdnv2_a", pretrained=str(tmp_path / "cdnv2_a.pdparams"), return_transforms=True)
    assert_same_answers(ours, theirs, difference)
    assert callable(transforms)
