"""Train `cdnv2_digits.pth`: a small CIFAR-form CondenseNet V2 (PyTorch) that reads scikit-learn's handwritten digits.

    OMP_WAIT_POLICY=passive PYTHONPATH=. python weights/train_digits.py

That takes 3 to 7 minutes on two cores; the first setting keeps two threads quick where other programs run as well.

The network loses three quarters of the connections of its 1x1 convolutions during the first half of the epochs and is
then condensed. The recipe was checked by five-fold cross-validation inside the training part (10 of 1347 wrong; 11
with 20 degrees and 20 % in the augmentation, so it stayed as it was). The last epoch's network is kept; nothing was
chosen by the held-out quarter, which is read only at the end. Of its 450 pictures the condensed network gets right,
with PyTorch 2.13.0 on two threads:

    --seed 0    449 (99.78 %)    the default, and the one that ships
    --seed 1    448 (99.56 %)
    --seed 2    449 (99.78 %)
    --seed 3    449 (99.78 %)
    --seed 4    448 (99.56 %)
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convert.torch_models.condensenetv2 import CondenseNetV2, LearnedConnections
from paddle_dense.condensing import condense_state
from paddle_dense.data import load_digits
from paddle_dense.layers.lgc import condense_lgc
from paddle_dense.layers.sfr import condense_sfr

GROUPS = 4
CONFIG = {
    "stages": [1, 2, 3],
    "growth": [8, 16, 32],
    "HS_start_block": 2,
    "fc_channel": 128,
    "group_1x1": GROUPS,
    "group_3x3": GROUPS,
    "group_trans": GROUPS,
    "num_classes": 10,
    "in_channels": 1,
    "init_stride": 1,
}
BATCH_SIZE = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
GROUP_LASSO = 1e-5
LABEL_SMOOTHING = 0.1
# Augmentation: degrees; share of the size; share of half the picture, as `affine_grid` counts.
MAX_ANGLE, MAX_SCALE, MAX_SHIFT = 12, 0.1, 0.125


def augment(images: Tensor) -> Tensor:
    """Turn, scale, shear and shift each picture of [N, 1, H, W] at random; what moves in is background."""
    angle, scale_x, scale_y, shear, shift_x, shift_y = torch.empty(6, len(images)).uniform_(-1, 1)
    cos, sin = (math.radians(MAX_ANGLE) * angle).cos(), (math.radians(MAX_ANGLE) * angle).sin()
    rows = [
        torch.stack([(1 + MAX_SCALE * scale_x) * cos, MAX_SCALE * shear - sin, MAX_SHIFT * shift_x], 1),
        torch.stack([MAX_SCALE * shear + sin, (1 + MAX_SCALE * scale_y) * cos, MAX_SHIFT * shift_y], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # grid_sample fills with 0, so the background has to be 0 meanwhile.
    background = images.min()
    return F.grid_sample(images - background, grid, align_corners=False) + background


def train(images: Tensor, labels: Tensor, epochs: int) -> CondenseNetV2:
    """Train a network that loses connections during the first half of the epochs; the last epoch's is returned."""
    # Channels last is a third faster on a CPU.
    net = CondenseNetV2(**CONFIG, condensed=False).to(memory_format=torch.channels_last)
    learned = [module for module in net.modules() if isinstance(module, LearnedConnections)]
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, 0.9, weight_decay=WEIGHT_DECAY, nesterov=True)
    steps_per_epoch = len(images) // BATCH_SIZE
    steps = epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        batches = torch.randperm(len(images)).split(BATCH_SIZE)[:steps_per_epoch]
        for number, batch in enumerate(batches):
            for layer in learned:
                layer.set_progress((epoch * steps_per_epoch + number) / steps)
            logits = net(augment(images[batch]).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            loss = loss + GROUP_LASSO * sum(layer.group_lasso() for layer in learned)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    return net.eval()


def condense(net: CondenseNetV2, config: dict[str, Any]) -> CondenseNetV2:
    """The same network, which was made with the same config, in the condensed form."""
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    arrays = condense_state(
        state, lambda name: (condense_sfr if name.endswith(".sfr") else condense_lgc, GROUPS, GROUPS)
    )
    condensed = CondenseNetV2(**config, condensed=True)
    condensed.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    return condensed.eval()


def save(
    condensed: CondenseNetV2, logits: dict[str, Tensor], labels: Tensor, most: float, told: dict[str, Any], path: Path
) -> None:
    """Report how many answers of the trained and the condensed form are right, and save the latter if they agree.

    Args:
        condensed: the network to save.
        logits: of both forms for the test images, [N, 10].
        labels: [N].
        most: the largest difference of the logits that is rounding.
        told: what the checkpoint says of the network.
        path: where it goes.
    """
    difference = (logits["trained"] - logits["condensed"]).abs().max().item()
    for form, values in logits.items():
        right = int((values.argmax(1) == labels).sum())
        print(f"{form}: {right} of {len(labels)} right, {100 * right / len(labels):.2f} %")
    print(f"largest difference between their logits: {difference:.1e}")
    if not difference <= most:
        raise SystemExit("the two forms disagree, so nothing was saved: please report this")
    torch.save({"state_dict": condensed.state_dict(), **told, "best_prec1": 100 * right / len(labels)}, path)
    print(f"saved {path}, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Train, condense, compare the two forms, report what is right and save."""
    parser = argparse.ArgumentParser(description="Train the digits checkpoint.")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("cdnv2_digits.pth"))
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}: give 1 or more")
    if not options.output.parent.is_dir():
        parser.error(f"--output: there is no directory {options.output.parent}, so make it first")

    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    # The number of threads decides the order of sums.
    torch.set_num_threads(2)
    digits = load_digits()
    start = time.perf_counter()
    net = train(torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels), options.epochs)
    print(f"trained in {time.perf_counter() - start:.0f} s")

    condensed = condense(net, CONFIG)
    images, labels = torch.from_numpy(digits.test_images), torch.from_numpy(digits.test_labels)
    with torch.no_grad():
        logits = {"trained": net(images), "condensed": condensed(images)}
    told = {"arch": "cdnv2_digits", "config": {**CONFIG, "condensed": True}, "epoch": options.epochs}
    save(condensed, logits, labels, 1e-5, told, options.output)


if __name__ == "__main__":
    main()
