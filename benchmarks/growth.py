"""How latency and training of CondenseNet V2 A grow with width, batch and image size, and how conversion of C does.

python -m benchmarks.growth
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.conversion import alone, condensing_seconds, cost, write_checkpoint
from benchmarks.latency import machine, measure
from benchmarks.training import compare
from paddle_dense.models.network import preset

NETWORK = "cdnv2_a"
RUNNERS = ("paddle_inference_fused", "openvino_fused", "torch_eager", "openvino_original")
STEPS = ("paddle_step", "torch_step")
WIDTHS, BATCHES, SIZES = (1, 2, 3), (1, 2, 4, 8, 16), (128, 192, 224, 320)
CONVERTED = "cdnv2_c"  # whose file is a gigabyte at the last width


def variants() -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """What is measured: a label, batch, image size and the network's arguments."""
    growth = preset(NETWORK).config["growth"]
    for times in WIDTHS:
        yield f"growth x {times}", 1, 224, {"growth": [times * channels for channels in growth]}
    for batch in BATCHES:
        yield f"batch {batch}", batch, 224, {}
    for size in SIZES:
        yield f"{size} px", 1, size, {}


def converting(rounds: int, times: int) -> str:
    """A row: size of a checkpoint, and what its unchecked conversion costs above loading Paddle; and condensing."""
    config = {"growth": [times * channels for channels in preset(CONVERTED).config["growth"]]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.pth")
        alone(write_checkpoint, CONVERTED, path, **config)
        found = [converting_cost(path) for _ in range(rounds)]
        size = path.stat().st_size / 1e6
    seconds, memory = (statistics.median(costs) for costs in zip(*found))
    above = memory - max(cost("-c", "import paddle")[1] for _ in range(rounds))
    condensing = 1000 * alone(condensing_seconds, CONVERTED, **config)
    return (
        f"| growth x {times} | {size:.0f} MB | {seconds:.2f} s | {memory:.0f} MB | {above / size:.2f} "
        f"| {condensing:.0f} ms |"
    )


def converting_cost(path: Path) -> tuple[float, float]:
    """Seconds and megabytes of an unchecked conversion."""
    return cost("-m", "convert.torch2paddle", str(path), "--force", "--no-verify")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{machine()}\n\n| {NETWORK}, milliseconds | {' | '.join((*RUNNERS, *STEPS))} |")
    print(f"| --- |{' ---: |' * len((*RUNNERS, *STEPS))}")
    for label, batch, size, config in variants():
        found = alone(measure, NETWORK, [batch], rounds, RUNNERS, size, **config)["batches"][str(batch)]
        arguments = {"network": NETWORK, "batch": batch, "size": size, **config}
        steps = compare({step: (step, arguments) for step in STEPS}, rounds)
        figures = [found[name]["ms"] if name in found else None for name in RUNNERS] + list(steps.values())
        print(f"| {label} | {' | '.join('' if ms is None else f'{ms:.1f}' for ms in figures)} |", flush=True)
    print(f"\n| {CONVERTED} | checkpoint | convert, unchecked | memory | above Paddle's, of the file | condense |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for times in WIDTHS:
        print(converting(rounds, times), flush=True)


if __name__ == "__main__":
    main()
