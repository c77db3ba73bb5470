"""A training in PaddleDetection: ``detection_worker.py CONFIG CHECKPOINT [resume]``, with its own parts.

Saves a checkpoint before the last 10 steps, or goes on from there. Prints the loss of each step, and then for each
image its boxes and the best found box of each class: left, top, right, bottom.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle
from ppdet.core.workspace import create, load_config
from ppdet.data.transform.batch_operators import Gt2YoloTarget
from ppdet.utils.checkpoint import load_weight, save_model

CLASSES, STEPS, RESUMED = 2, 125, 10
HEIGHT, WIDTH = 64, 96


def images_with_boxes() -> list[dict[str, np.ndarray]]:
    """Four images of noise, each with a bright rectangle of either class, as PaddleDetection's readers give them."""
    random = np.random.default_rng(0)
    samples = []
    for _ in range(4):
        image = random.normal(0, 0.3, (3, HEIGHT, WIDTH)).astype("f4")
        boxes = []
        for kind in range(CLASSES):
            width, height = random.integers(12, 40, 2)
            left, top = random.integers(0, WIDTH - width), random.integers(0, HEIGHT - height)
            image[kind, top : top + height, left : left + width] += 3
            boxes.append([(left + width / 2) / WIDTH, (top + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT])
        kinds, scores = np.arange(CLASSES), np.ones(CLASSES, "f4")
        samples.append({"image": image, "gt_bbox": np.array(boxes, "f4"), "gt_class": kinds, "gt_score": scores})
    return samples


def found_boxes(model: paddle.nn.Layer, images: paddle.Tensor) -> list[list[list[float]]]:
    """For each image and class the box with the best score."""
    model.eval()
    sizes, scale = paddle.to_tensor([[HEIGHT, WIDTH]] * len(images), "float32"), paddle.ones([len(images), 2])
    answer = model({"image": images, "im_shape": sizes, "scale_factor": scale})
    of_image = np.split(answer["bbox"].numpy(), np.cumsum(answer["bbox_num"].numpy())[:-1])
    return [[rows[rows[:, 0] == kind][:1, 2:].ravel().tolist() for kind in range(CLASSES)] for rows in of_image]


def main(path: str, checkpoint: str, resume: str = "") -> None:
    paddle.set_device("cpu")
    paddle.seed(7 if resume else 0)
    config = load_config(path)
    head = config["YOLOv3Head"]
    targets = Gt2YoloTarget(head["anchors"], head["anchor_masks"], [32, 16, 8], CLASSES)(images_with_boxes())
    batch = {key: paddle.to_tensor(np.stack([target[key] for target in targets])) for key in targets[0]}
    model = create(config["architecture"])
    model.train()
    optimizer = paddle.optimizer.Adam(5e-3, parameters=model.parameters())
    if resume:
        load_weight(model, checkpoint, optimizer)
    losses = []
    for step in range(STEPS - RESUMED if resume else 0, STEPS):
        if step == STEPS - RESUMED and not resume:
            folder, _, name = checkpoint.rpartition("/")
            save_model(model.state_dict(), optimizer, folder, name, step)
        loss = model(dict(batch))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    centre, size = np.split(batch["gt_bbox"].numpy() * [WIDTH, HEIGHT, WIDTH, HEIGHT], 2, axis=2)
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=2)
    print(json.dumps({"losses": losses, "boxes": boxes.tolist(), "found": found_boxes(model, batch["image"])}))


main(*sys.argv[1:])
