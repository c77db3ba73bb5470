"""PaddleDetection's conventions: one registered class with `return_idx`, `freeze_at`, norms and `out_shape`."""

import paddle
import pytest


def test_out_shape_tells_channels_and_strides(paddledet):
    backbone = paddledet.PaddleDense("cdnv2_a", return_idx=[2, 3, 4])
    assert [(level.channels, level.stride) for level in backbone.out_shape] == [(96, 8), (288, 16), (800, 32)]
    features = backbone({"image": paddle.zeros([1, 3, 64, 64])})
    assert [list(feature.shape) for feature in features] == [[1, 96, 8, 8], [1, 288, 4, 4], [1, 800, 2, 2]]
    assert [level.channels for level in paddledet.PaddleDense("cdnv2_a", return_idx=4).out_shape] == [800]


def test_freeze_at_keeps_what_the_level_is_computed_from(paddledet):
    backbone = paddledet.PaddleDense("cdnv2_a", freeze_at=1)
    loss = sum(feature.mean() for feature in backbone({"image": paddle.randn([2, 3, 64, 64])}))
    loss.backward()
    learning = {name for name, parameter in backbone.network.named_parameters() if not parameter.stop_gradient}
    frozen = {name for name, parameter in backbone.network.named_parameters() if parameter.grad is None}
    below = ("features.init_conv.", "features.denseblock_1.", "features.denseblock_2.")
    assert learning
    assert frozen
    assert not any(name.startswith(below) for name in learning)
    assert {name for name in frozen if not name.endswith(("_mean", "_variance"))} == {
        name
        for name, _ in backbone.network.named_parameters()
        if name.startswith(below) and not name.endswith(("_mean", "_variance"))
    }
    assert backbone.training


@pytest.mark.parametrize("frozen", [True, False])
def test_freeze_norm_keeps_statistics_and_scales(paddledet, frozen):
    backbone = paddledet.PaddleDense("cdnv2_a", freeze_norm=frozen, norm_decay=0.5)
    norm = backbone.network.features.norm_last
    before = norm._mean.numpy().copy()
    backbone({"image": paddle.randn([2, 3, 64, 64])})[-1].mean().backward()
    assert (norm._mean.numpy() == before).all() == frozen
    assert (norm.weight.grad is None) == frozen
    assert norm.weight.regularizer is not None
    assert backbone.network.features.init_conv.weight.grad is not None


@pytest.mark.parametrize("norms", [{"norm_type": "gn"}, {"norm_type": "sync_bn", "freeze_norm": True}])
def test_norms_that_there_are_not(paddledet, norms):
    with pytest.raises(ValueError, match="PaddleDense has no norm_type"):
        paddledet.PaddleDense("cdnv2_a", **norms)


def test_levels_that_there_are_not(paddledet):
    with pytest.raises(ValueError, match="cdnv2_a has no levels"):
        paddledet.PaddleDense("cdnv2_a", freeze_at=7)


def test_the_example_builds_in_paddledetection(real, paddledet, example, tmp_path):
    """`create` resolves backbone, neck and head from the registry, and `norm_type` from the top of the file."""
    real("paddledet")
    import yaml
    from ppdet.core.workspace import create, load_config

    config = {**example(paddledet), "norm_type": "bn"}
    (tmp_path / "retinanet.yml").write_text(yaml.safe_dump(config))
    model = create(load_config(str(tmp_path / "retinanet.yml")).architecture)
    assert [level.channels for level in model.backbone.out_shape] == [96, 288, 800]
    assert [level.stride for level in model.neck.out_shape] == [8, 16, 32, 64, 128]
    model.eval()
    answer = model(
        {
            "image": paddle.zeros([1, 3, 64, 64]),
            "im_shape": paddle.to_tensor([[64.0, 64.0]]),
            "scale_factor": paddle.ones([1, 2]),
        }
    )
    assert answer["bbox"].shape[1] == 6


def test_pretrain_weights_finds_the_backbones_tensors(real, paddledet, randomise, difference, tmp_path):
    """PaddleDetection's own loader matches a whole network's file by the ends of the names."""
    real("paddledet")
    from ppdet.utils.checkpoint import load_pretrain_weight

    import paddle_dense as pd_

    saved = randomise(pd_.cdnv2_a())
    pd_.save_weights(saved, tmp_path / "cdnv2_a.pdparams")
    model = paddle.nn.Layer()
    model.backbone = paddledet.PaddleDense("cdnv2_a")
    load_pretrain_weight(model, str(tmp_path / "cdnv2_a.pdparams"))
    expected = saved.state_dict()
    for name, tensor in model.backbone.network.state_dict().items():
        assert difference(tensor, expected[name]) == 0
