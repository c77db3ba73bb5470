"""Every CondenseNet and CondenseNet V2 preset at full size: sizes, gradients, pyramid, static graph, files.

The other families' presets are put through the same in their own files.
"""

from __future__ import annotations

import paddle
import pytest

from paddle_dense import create_model, list_models, load_model, save_weights

PRESETS = [*list_models("condensenet*"), *list_models("cdnv2*")]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_learns_and_deploys(name, randomise, difference, tmp_path):
    model = randomise(create_model(name))
    native = model.input_size
    model.eval()
    with paddle.no_grad():
        for size in (native, 32, native + 33):
            logits = model(paddle.randn([1, 3, size, size]))
            assert list(logits.shape) == [1, model.num_classes]
            assert bool(paddle.isfinite(logits).all())

    model.train()
    loss = paddle.nn.functional.cross_entropy(model(paddle.randn([2, 3, 64, 64])), paddle.to_tensor([0, 1]))
    loss.backward()
    learning = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    assert all(parameter.grad is not None for parameter in learning)

    model.eval()
    save_weights(model, tmp_path / "net.pdparams")
    x = paddle.randn([2, 3, 64, 64])
    loaded = load_model(tmp_path / "net.pdparams")
    loaded.eval()
    with paddle.no_grad():
        expected = model(x)
        assert difference(loaded(x), expected) == 0
        static = paddle.jit.to_static(model, full_graph=True)
        assert difference(static(x), expected) < 1e-5

    backbone = create_model(name, features_only=True, pretrained=tmp_path / "net.pdparams")
    backbone.eval()
    with paddle.no_grad():
        pyramid = backbone(x)
    assert [feature.shape[1] for feature in pyramid] == backbone.feature_channels
    assert [64 // feature.shape[2] for feature in pyramid] == backbone.feature_strides
