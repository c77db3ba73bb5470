"""What converting costs: time and peak memory against loading Paddle and reading the file.

python -m benchmarks.conversion
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable

import numpy as np

NETWORKS = ("cdnv2_a", "cdnv2_b", "cdnv2_c", "densenet121")
_READ = "import sys; open(sys.argv[1], 'rb').read()"
# What `pretrained=True` does with a file that is in the cache.
_LOAD = "import sys, paddle_dense; paddle_dense.load_model(sys.argv[1])"


def alone(function: Callable, *arguments: Any, **keywords: Any) -> Any:
    """What a function returns in a process of its own: this one stays small, since its children inherit its peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments, **keywords).result()


def write_checkpoint(network: str, path: Path, **config: Any) -> None:
    """A PyTorch checkpoint of a network with learned connections, as its authors' code would save it."""
    import torch

    from benchmarks.latency import prepare
    from paddle_dense.files.layout import to_torch

    with tempfile.TemporaryDirectory() as folder:
        prepare(network, Path(folder), **config)
        state = to_torch(dict(np.load(Path(folder, "weights.npz"))))
    torch.save({"state_dict": {name: torch.from_numpy(np.array(value)) for name, value in state.items()}}, path)


def cost(*command: str) -> tuple[float, float]:
    """Seconds and peak memory in MB of a Python process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed: run it by itself to see why")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def condensing_seconds(network: str, **config: Any) -> float | None:
    """How long `pd_.condense` takes on a trained network; None where there is nothing to condense."""
    import paddle_dense as pd_
    from paddle_dense.models.network import config_keys, network_class
    from paddle_dense.training import set_progress

    if "condensed" not in config_keys(network_class(network)):
        return None
    trained = pd_.create_model(network, condensed=False, **config)
    set_progress(trained, 1.0)
    start = time.perf_counter()
    pd_.condense(trained)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure what converting costs.")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    columns = (
        "file",
        "read",
        "import paddle",
        "convert, unchecked",
        "memory",
        "of which Paddle",
        "convert, checked",
        "load the result",
        "condense",
    )
    print(f"| network | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for network in options.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{network}.pth")
            alone(write_checkpoint, network, path)
            convert = ("-m", "convert.torch2paddle", str(path), "--force")
            commands = {
                "read": ("-c", _READ, str(path)),
                "nothing": ("-c", "", ""),
                "import": ("-c", "import paddle"),
                "unchecked": (*convert, "--no-verify"),
                "checked": convert,
                "load": ("-c", _LOAD, str(path.with_suffix(".pdparams"))),
            }
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
            for _ in range(options.rounds):
                for name, command in commands.items():
                    found[name].append(cost(*command))
            seconds = {name: statistics.median(second for second, _ in runs) for name, runs in found.items()}
            memory = {name: max(peak for _, peak in runs) for name, runs in found.items()}
            condensing = alone(condensing_seconds, network)
            print(
                f"| {network} | {path.stat().st_size / 1e6:.0f} MB | {seconds['read'] - seconds['nothing']:.2f} s "
                f"| {seconds['import']:.2f} s | {seconds['unchecked']:.2f} s | {memory['unchecked']:.0f} MB "
                f"| {memory['import']:.0f} MB | {seconds['checked']:.2f} s | {seconds['load']:.2f} s "
                f"| {'' if condensing is None else f'{condensing:.2f} s'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
