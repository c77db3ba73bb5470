"""What training costs: a step next to PyTorch's, CondConv for a batch next to a loop, memory-efficient DenseNet.

python -m benchmarks.training
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Callable

import numpy as np

from benchmarks.runners import ENVIRONMENT, THREADS

NETWORKS = ("cdnv2_a", "cdnv2_b", "cdnv2_c", "condensenet74_c4", "densenet121")


def paddle_step(network: str, batch: int, size: int | None = None, **config: object) -> Callable[[], None]:
    """One step of SGD on the trained form in Paddle, on a batch of images of `size`, or of the network's own."""
    import paddle

    import paddle_dense as pd_
    from paddle_dense.models.network import config_keys, network_class

    if "condensed" in config_keys(network_class(network)):
        config["condensed"] = False
    model = pd_.create_model(network, **config)
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, model.parameters(), use_nesterov=True, weight_decay=1e-4)
    x = paddle.to_tensor(_images(batch, size or model.input_size))
    labels = paddle.to_tensor(np.arange(batch))

    def step() -> None:
        loss = paddle.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        loss.item()

    return step


def torch_step(network: str, batch: int, size: int | None = None, **config: object) -> Callable[[], None]:
    """The same in PyTorch, on the twin."""
    import torch

    import paddle_dense as pd_
    from convert.verification import build_twin
    from paddle_dense.models.network import config_keys, network_class
    from paddle_dense.models.recognise import Architecture

    torch.set_num_threads(THREADS)
    ours = pd_.create_model(network, **config)
    config = dict(ours.config)
    if "condensed" in config_keys(network_class(network)):
        config["condensed"] = False
    model = build_twin(Architecture(network, network_class(network), config)).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, weight_decay=1e-4)
    x = torch.from_numpy(_images(batch, size or ours.input_size))
    labels = torch.arange(batch)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def condconv(batch: int, loop: bool) -> Callable[[], None]:
    """A mixed 3x3 convolution of 64 channels on 28 x 28, a batch at once or image by image."""
    import paddle

    import paddle_dense as pd_

    layer = pd_.CondConv2D(64, 64, 3, padding=1, num_experts=4)
    layer.eval()
    x = paddle.to_tensor(_images(batch, 28, 64))

    def run() -> None:
        with paddle.no_grad():
            if loop:
                paddle.concat([layer(x[number : number + 1]) for number in range(batch)]).numpy()
            else:
                layer(x).numpy()

    return run


def _images(batch: int, size: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, channels, size, size), np.float32)


def serve(what: str, arguments: dict) -> None:
    """In a process of its own: say what a run costs, in milliseconds, whenever a line comes in."""
    if what != "torch_step":
        from paddle_dense.environment import set_cpu_environment

        set_cpu_environment()
    run = {"paddle_step": paddle_step, "torch_step": torch_step, "condconv": condconv}[what](**arguments)
    run(), run()
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(f"answer {1000 * (time.perf_counter() - start)}", flush=True)


def compare(tasks: dict[str, tuple[str, dict]], rounds: int) -> dict[str, float]:
    """Medians in milliseconds of tasks that take turns."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training", "--serve", what, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=ENVIRONMENT,
        )
        for name, (what, arguments) in tasks.items()
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, process in processes.items():
            process.stdin.write("run\n")
            process.stdin.flush()
            line = next(line for line in process.stdout if line.startswith("answer"))
            if turn:  # in the first turn, the others were still being built
                times[name].append(float(line.split()[1]))
            time.sleep(0.25)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return {name: statistics.median(found) for name, found in times.items()}


def peak_memory(memory_efficient: bool) -> float:
    """Peak memory in MB of a process that does three training steps of DenseNet-121 with 8 images."""
    code = (
        "import resource\n"
        "from benchmarks.training import paddle_step\n"
        f"step = paddle_step('densenet121', 8, memory_efficient={memory_efficient})\n"
        "step(), step(), step()\n"
        "print('answer', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return float(done.stdout.rpartition("answer")[2])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Measure what training costs.")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], json.loads(options.serve[1]))
        return
    print(f"| training step, {options.batch} images | Paddle | PyTorch twin | ratio |\n| --- | ---: | ---: | ---: |")
    for network in options.networks.split(","):
        arguments = {"network": network, "batch": options.batch}
        found = compare({name: (name, arguments) for name in ("paddle_step", "torch_step")}, options.rounds)
        ours, theirs = found["paddle_step"], found["torch_step"]
        print(f"| {network} | {ours:.0f} ms | {theirs:.0f} ms | {ours / theirs:.2f} |", flush=True)
    print("\n| CondConv2D, 64 channels, 28 px | batch at once | one by one | ratio |\n| --- | ---: | ---: | ---: |")
    for batch in (1, 2, 4, 8, 16, 32):
        tasks = {name: ("condconv", {"batch": batch, "loop": name == "loop"}) for name in ("batch", "loop")}
        found = compare(tasks, 3 * options.rounds)
        ratio = found["loop"] / found["batch"]
        print(f"| batch of {batch} | {found['batch']:.1f} ms | {found['loop']:.1f} ms | {ratio:.2f} |", flush=True)
    plain, efficient = peak_memory(False), peak_memory(True)
    print(f"\nDenseNet-121, training with 8 images: {plain:.0f} MB, with memory_efficient {efficient:.0f} MB")


if __name__ == "__main__":
    main()
