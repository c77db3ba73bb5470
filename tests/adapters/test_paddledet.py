"""PaddleDetection's conventions: a backbone with `return_idx`, `freeze_at`, norms and `out_shape`, and a neck."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import paddle
import pytest

from paddle_dense.layers import ExactFusion

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def build(real, paddledet, tmp_path) -> Iterator[Callable[..., paddle.nn.Layer]]:
    """``build(config)``: PaddleDetection's network of a configuration, which ends with the test."""
    real("paddledet")
    import yaml
    from ppdet.core.workspace import create, global_config, load_config

    before = {key: dict(value) if isinstance(value, dict) else value for key, value in global_config.items()}

    def built(config: dict[str, Any]) -> paddle.nn.Layer:
        (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
        return create(load_config(str(tmp_path / "config.yml")).architecture)

    yield built
    for key in [key for key in global_config if key not in before]:
        del global_config[key]
    for key, value in before.items():
        if isinstance(value, dict):
            global_config[key].clear()
            global_config[key].update(value)
        else:
            global_config[key] = value


def inputs(side: int) -> dict[str, paddle.Tensor]:
    """An image as PaddleDetection's networks take it for inference."""
    return {
        "image": paddle.zeros([1, 3, side, side]),
        "im_shape": paddle.to_tensor([[float(side), float(side)]]),
        "scale_factor": paddle.ones([1, 2]),
    }


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


def test_the_example_builds_in_paddledetection(build, paddledet, example):
    """`create` resolves backbone, neck and head from the registry, and `norm_type` from the top of the file."""
    model = build({**example(paddledet), "norm_type": "bn"})
    assert [level.channels for level in model.backbone.out_shape] == [96, 288, 800]
    assert [level.stride for level in model.neck.out_shape] == [8, 16, 32, 64, 128]
    model.eval()
    assert model(inputs(64))["bbox"].shape[1] == 6


def test_yolov3_with_the_exact_fusion_model_builds_in_paddledetection(build, paddledet, example):
    config = example(paddledet, 1)
    del config["PaddleDense"]["pretrained"]  # a file that takes long to make
    model = build(config)
    assert type(model.neck) is paddledet.PaddleDenseEFM
    assert [(level.channels, level.stride) for level in model.neck.out_shape] == [(1024, 32), (512, 16), (256, 8)]
    assert [layer.weight.shape[1] for layer in model.yolo_head.yolo_outputs] == [1024, 512, 256]
    model.eval()
    assert model(inputs(64))["bbox"].shape[1] == 6


def test_retinanet_with_the_exact_fusion_model_builds_in_paddledetection(build, paddledet, example):
    model = build({**example(paddledet), **example(paddledet, 2), "num_classes": 3})
    assert [(level.channels, level.stride) for level in model.neck.out_shape] == [(256, 8), (256, 16), (256, 32)]
    model.eval()
    scores, boxes = model.head(model.neck(model.backbone({"image": paddle.zeros([1, 3, 64, 96])})))
    assert [list(level.shape[2:]) for level in scores] == [[8, 12], [4, 6], [2, 3]]
    anchors = model.head.anchor_generator(scores)
    assert [len(level) for level in anchors] == [9 * 8 * 12, 9 * 4 * 6, 9 * 2 * 3]
    model.train()
    boxes, classes = paddle.to_tensor([[8.0, 8.0, 40.0, 40.0]]), paddle.to_tensor([[2]])
    model({"image": paddle.randn([1, 3, 64, 96]), "gt_bbox": [boxes], "gt_class": [classes]})["loss"].backward()
    learning = [parameter for parameter in model.neck.parameters() if not parameter.stop_gradient]
    assert len(learning) == 3 * 2 * 3
    assert all(parameter.grad.abs().sum() > 0 for parameter in learning)


def test_yolov3_with_the_exact_fusion_model_finds_boxes_and_resumes(real, tmp_path):
    """The loss falls until all boxes are found, and a checkpoint goes on in another process as if nothing had been."""
    real("paddledet")
    anchors = [[12, 12], [20, 28], [28, 20], [32, 32], [32, 48], [48, 32], [40, 56], [56, 40], [56, 56]]
    config = {
        "architecture": "YOLOv3",
        "YOLOv3": {"backbone": "PaddleDense", "neck": "PaddleDenseEFM", "post_process": "BBoxPostProcess"},
        "PaddleDense": {"arch": "cdnv2_a", "return_idx": [2, 3, 4]},
        "PaddleDenseEFM": {"out_channels": [32, 48, 64], "coarse_first": True},
        "YOLOv3Head": {"anchors": anchors, "anchor_masks": [[6, 7, 8], [3, 4, 5], [0, 1, 2]]},
        "BBoxPostProcess": {"decode": {"name": "YOLOBox"}, "nms": {"name": "MultiClassNMS"}},
        "num_classes": 2,
    }
    (tmp_path / "yolo.yml").write_text(json.dumps(config))  # which is YAML as well
    whole, resumed = (_train(tmp_path, *more) for more in ((), ("resume",)))
    assert whole["losses"][-1] < whole["losses"][0] / 10
    overlaps = [_overlap(*pair) for boxes in zip(whole["boxes"], whole["found"]) for pair in zip(*boxes)]
    assert len(overlaps) == 8
    assert min(overlaps) > 0.5
    assert resumed["losses"] == whole["losses"][-10:]
    assert resumed["found"] == whole["found"]


def _train(folder: Path, *more: str) -> dict[str, Any]:
    """What `detection_worker.py` prints, run as PaddleDetection's own scripts are."""
    worker = Path(__file__).with_name("detection_worker.py")
    done = subprocess.run(
        [sys.executable, "-m", "paddle_dense.adapters", "paddledet", worker, "yolo.yml", f"{folder}/out/half", *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def _overlap(box: list[float], other: list[float]) -> float:
    """Intersection over union of two boxes."""
    left, top, right, bottom = (f(pair) for f, pair in zip((max, max, min, min), zip(box, other)))
    both = max(right - left, 0) * max(bottom - top, 0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, other)]
    return both / (sum(areas) - both)


def test_the_neck_fuses_as_the_layer_and_says_its_order(paddledet, randomise, difference):
    backbone = randomise(paddledet.PaddleDense("cdnv2_a", return_idx=[1, 2, 3]))
    backbone.eval()
    arguments = paddledet.PaddleDenseEFM.from_config({}, backbone.out_shape)
    assert arguments == {"in_channels": [32, 96, 288], "strides": [4, 8, 16]}
    layer = randomise(ExactFusion([32, 96, 288], [16, 24, 40], 20))
    layer.eval()
    pyramid = backbone({"image": paddle.randn([1, 3, 50, 75])})
    expected = layer(pyramid)
    for coarse_first, order in ((False, 1), (True, -1)):
        neck = paddledet.PaddleDenseEFM(
            **arguments, out_channels=[16, 24, 40], maxout_channels=20, coarse_first=coarse_first
        )
        neck.set_state_dict(layer.state_dict())
        neck.eval()
        assert difference(neck(pyramid), expected[::order]) == 0
        said = [(level.channels, level.stride) for level in neck.out_shape]
        assert said == [(16, 4), (24, 8), (40, 16)][::order]


def test_the_necks_norms_decay_as_told(paddledet):
    neck = paddledet.PaddleDenseEFM([32, 96], [8, 16], norm_decay=0.5)
    norms = [layer for layer in neck.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    assert len(norms) == 4
    for norm in norms:
        assert [norm.weight.regularizer._coeff, norm.bias.regularizer._coeff] == [0.5, 0.5]
        assert not norm.weight.stop_gradient


@pytest.mark.parametrize("strides", [[8, 32], [4, 4], [32, 16]])
def test_levels_that_are_no_neighbours_are_not_fused(paddledet, strides):
    with pytest.raises(ValueError, match=r"of the strides \[\d+, \d+\], which do not double: choose"):
        paddledet.PaddleDenseEFM([32, 96], strides)


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
