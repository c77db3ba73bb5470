"""Both CondenseNets learned from scratch on the handwritten digits, condensed on the way: the table of the README.

python -m benchmarks.digits
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

# Paddle's convolutions gain nothing from a second thread when they are as small as here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import paddle

import paddle_dense as pd_
from paddle_dense.data import load_digits
from paddle_dense.evaluation import evaluation
from paddle_dense.files.atomic import atomic_write
from paddle_dense.training.run import Run, Settings

GROUPS = {"group_1x1": 4, "group_3x3": 4}
NETWORKS = {
    "CondenseNetV2": {"stages": [1, 2, 3], "growth": [8, 16, 32], "fc_channel": 128, "group_trans": 4, **GROUPS},
    "CondenseNet": {"stages": [1, 2, 3], "growth": [8, 16, 32], **GROUPS},
}


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """What the network of a weight file answers."""
    network = pd_.load_model(path)
    with evaluation(network):
        return network(paddle.to_tensor(images)).numpy()


def learn(name: str, epochs: int, seed: int, folder: Path) -> dict[str, object]:
    """Train one network and compare its trained and condensed forms on every test image."""
    start = time.perf_counter()
    settings = Settings("digits", "digits", name, NETWORKS[name], epochs=epochs, seed=seed)
    run = Run(settings, folder / name)
    result = run.train(condense_at_end=True)
    minutes = (time.perf_counter() - start) / 60
    digits = load_digits()
    trained, condensed = (
        logits(folder / name / f"{form}.pdparams", digits.test_images) for form in ("model", "model_condensed")
    )
    return {
        "network": name,
        "parameters": pd_.profile(pd_.load_model(folder / name / "model_condensed.pdparams")).params,
        "epochs": epochs,
        "seed": seed,
        "trained": result.accuracies["model"].top1,
        "condensed": result.accuracies["model_condensed"].top1,
        "images": len(digits.test_labels),
        "agree": float((trained.argmax(1) == condensed.argmax(1)).mean()),
        "difference": float(np.abs(trained - condensed).max()),
        "minutes": minutes,
    }


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description="Train both CondenseNets on the digits.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [learn(name, options.epochs, options.seed, Path(folder)) for name in NETWORKS]
    print("\n| network | parameters | trained | condensed | same answer | largest difference of logits | minutes |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['network']} | {row['parameters']:,} | {row['trained']:.2%} | {row['condensed']:.2%} "
            f"| {row['agree']:.0%} | {row['difference']:.1e} | {row['minutes']:.1f} |"
        )
    if options.json:
        with atomic_write(options.json) as file:
            file.write(f"{json.dumps(rows, indent=2)}\n".encode())


if __name__ == "__main__":
    main()
