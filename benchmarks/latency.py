"""How fast every network is in every runtime, next to what a user would pick instead: ``make bench``.

Each runner is a process of its own (`benchmarks.runners`); they take turns, a few runs each, so that whatever else the
machine does meets all of them alike. Every figure is a median, next to its ratio to the best peer and to the arithmetic
limit: the multiply-accumulates that the paper counts, at the speed of this machine's best matrix product.

    python -m benchmarks.latency                                  # what the README shows
    python -m benchmarks.latency --networks cdnv2_a --batches 1,8 --json out.json --plot out.png
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runners import OWN_WEIGHTS, PEERS, RUNNERS, THREADS
from paddle_dense.files.atomic import atomic_write

NETWORKS = ("cdnv2_a", "cdnv2_b", "cdnv2_c", "condensenet74_c4", "densenet121")
PEER_NAMES = [runner.__name__ for runner in PEERS]
_REFERENCE = "torch_eager"
_RUNS = 5
_PATIENCE = (
    180  # seconds that a runner may prepare: compiling cdnv2_c with torch.compile takes longer than all the rest
)


class Worker:
    """A runner's process."""

    def __init__(self, name: str, folder: Path, log: Path) -> None:
        self.name = name
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.runners", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )

    def answer(self) -> str | None:
        """The next line; None if the runner has ended, because its library is not installed or it took too long."""
        impatience = threading.Timer(_PATIENCE, self._give_up)
        impatience.start()
        try:
            return self.process.stdout.readline().strip() or None
        finally:
            impatience.cancel()

    def _give_up(self) -> None:
        self.process.kill()
        with self.log.open("a") as log:
            log.write(f"\nnot ready after {_PATIENCE} s")

    def ask(self, text: str) -> str | None:
        """Say something and wait for the answer."""
        try:
            self.process.stdin.write(f"{text}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        return self.answer()

    def reason(self) -> str:
        """The last words of a runner that ended."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:160] if lines else "no reason given"

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def prepare(network: str, folder: Path, size: int | None = None, **config: Any) -> dict[str, Any]:
    """Write the network's description and weights, with learned connections, for all runners.

    Args:
        network: name of the preset.
        folder: where to.
        size: side of the images in pixels; the network's own unless given.
        config: arguments that replace the preset's.
    """
    import paddle

    import paddle_dense as pd_
    from paddle_dense.models.network import config_keys, network_class
    from paddle_dense.training import set_progress

    paddle.seed(0)
    if "condensed" in config_keys(network_class(network)):
        trained = pd_.create_model(network, condensed=False, **config)
        set_progress(trained, 1.0)
        model = pd_.condense(trained)
    else:
        model = pd_.create_model(network, **config)
    found = pd_.profile(model)
    described = {"arch": network, "config": model.config, "input_size": size or model.input_size, "macs": found.macs}
    (folder / "network.json").write_text(json.dumps(described))
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return described


def suits(name: str, network: str) -> bool:
    """Whether a runner knows the network."""
    if name == "ppim":
        return network.startswith("cdnv2")
    if name == "paddle_vision":
        return network.startswith("densenet")
    if name == "timm":
        return network.startswith(("densenet", "cspres", "cspdark", "efficientnet", "tf_efficientnet"))
    return True


def measure(
    network: str, batches: Sequence[int], rounds: int, names: Sequence[str], size: int | None = None, **config: Any
) -> dict[str, Any]:
    """All runners on one network: medians in milliseconds for each batch, and how far their answers differ."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        described = prepare(network, folder, size, **config)
        workers, absent = [], {}
        for name in names:
            if not suits(name, network):
                continue
            worker = Worker(name, folder, folder / f"{name}.log")
            if worker.answer() == "ready":
                workers.append(worker)
            else:
                absent[name] = worker.reason()
            print(f"  {name}: {absent.get(name, 'ready')}", file=sys.stderr, flush=True)
        results: dict[str, Any] = {"network": network, "macs": described["macs"], "absent": absent, "batches": {}}
        for batch in batches:
            results["batches"][batch] = _measure_batch(workers, batch, rounds, folder, absent)
            workers = [worker for worker in workers if worker.name not in absent]
        for worker in workers:
            worker.close()
        return results


def _measure_batch(workers: list[Worker], batch: int, rounds: int, folder: Path, absent: dict[str, str]) -> dict:
    for worker in workers:
        if worker.ask(f"batch {batch}") is None:
            absent[worker.name] = worker.reason()
    workers = [worker for worker in workers if worker.name not in absent]
    times: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            # The threads of the one before wait actively for a while.
            time.sleep(0.25)
            times[worker.name] += json.loads(worker.ask(f"run {_RUNS}"))
    answers = {}
    for worker in workers:
        worker.ask(f"answer {folder / worker.name}.npy")
        answers[worker.name] = np.load(folder / f"{worker.name}.npy")
    expected = answers.get(_REFERENCE)
    return {
        name: {
            "ms": statistics.median(times[name]),
            "difference": None
            if expected is None or name in OWN_WEIGHTS
            else float(np.abs(answers[name] - expected).max() / np.abs(expected).max()),
        }
        for name in times
    }


def best_product() -> float:
    """Multiply-accumulates a second of the best matrix product that NumPy, PyTorch and Paddle have here."""
    code = (
        "import sys, time\n"
        "if {paddle}:\n"
        "    from paddle_dense.environment import set_cpu_environment; set_cpu_environment()\n"
        "    import paddle as t; x = t.randn([1536, 1536]); f = lambda: t.matmul(x, x).numpy()\n"
        "else:\n"
        "    import torch as t; t.set_num_threads({threads}); x = t.randn(1536, 1536); f = lambda: t.mm(x, x)\n"
        "best = 9e9\n"
        "for _ in range(25):\n"
        "    s = time.perf_counter(); f(); best = min(best, time.perf_counter() - s)\n"
        "print(1536**3 / best)"
    )
    found = []
    for paddle in (True, False):
        command = [sys.executable, "-c", code.format(paddle=paddle, threads=THREADS)]
        done = subprocess.run(command, capture_output=True, text=True)
        found += [float(done.stdout.split()[-1])] if done.returncode == 0 else []
    return max(found)


def machine() -> str:
    """The processor and what runs on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {THREADS} threads, {platform.system()}, Python {platform.python_version()}"


def table(results: list[dict[str, Any]], speed: float) -> str:
    """The figures in Markdown."""
    lines = []
    for result in results:
        for batch, runners in result["batches"].items():
            peers = [row["ms"] for name, row in runners.items() if name in PEER_NAMES]
            best = min(peers) if peers else None
            limit = 1000 * int(batch) * result["macs"] / speed
            lines += [
                f"\n**{result['network']}, batch {batch}** (arithmetic limit {limit:.1f} ms)\n",
                "| runner | ms | images/s | against the best peer | of the limit | largest difference |",
                "| --- | ---: | ---: | ---: | ---: | ---: |",
            ]
            for name, row in sorted(runners.items(), key=lambda item: item[1]["ms"]):
                ratio = f"{best / row['ms']:.2f}x" if best else ""
                shown = "" if row["difference"] is None else f"{row['difference']:.0e}"
                label = name if name in PEER_NAMES else f"**{name}**"
                lines.append(
                    f"| {label} | {row['ms']:.1f} | {1000 * int(batch) / row['ms']:.0f} | {ratio} "
                    f"| {limit / row['ms']:.0%} | {shown} |"
                )
        lines += [f"\n{name} was left out: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines)


def overview(results: list[dict[str, Any]]) -> str:
    """All milliseconds in one table in Markdown, and below them how the best compare."""
    columns = {
        f"`{result['network']}` x{batch}": {name: row["ms"] for name, row in rows.items()}
        for result in results
        for batch, rows in result["batches"].items()
    }
    ours = [name for name in RUNNERS if name not in PEER_NAMES]
    ported = [name for name in PEER_NAMES if name.startswith(("pp", "paddle"))]
    lines = [["milliseconds", *columns], ["---", *["---:"] * len(columns)]]
    for name in sorted({name for column in columns.values() for name in column}, key=list(RUNNERS).index):
        label = name if name in PEER_NAMES else f"**{name}**"
        lines.append([label, *(f"{column[name]:.1f}" if name in column else "" for column in columns.values())])
    for label, slower, faster in (
        ("the best against the best peer", PEER_NAMES, ours),
        ("the best in Paddle against ppim, `paddle.vision`", ported, [name for name in ours if "paddle" in name]),
    ):
        lines.append([label, *(_ratio(column, slower, faster) for column in columns.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(column: dict[str, float], slower: list[str], faster: list[str]) -> str:
    """How many times as fast the fastest of some runners is as the fastest of others; empty if there is none."""
    before, after = ([column[name] for name in names if name in column] for names in (slower, faster))
    return f"{min(before) / min(after):.2f}x" if before and after else ""


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """The same as bars."""
    from matplotlib.figure import Figure

    panels = [(result["network"], batch, rows) for result in results for batch, rows in result["batches"].items()]
    figure = Figure(figsize=(11, 2.6 * len(panels)), layout="constrained")
    for axes, (network, batch, rows) in zip(np.ravel(figure.subplots(len(panels), 1)), panels):
        names = sorted(rows, key=lambda name: -rows[name]["ms"])
        colours = ["#8c8c8c" if name in PEER_NAMES else "#2a6fb0" for name in names]
        bars = axes.barh(names, [rows[name]["ms"] for name in names], color=colours)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.set_title(f"{network}, batch {batch}: milliseconds (grey: peers)", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=110)


def main() -> None:
    """Measure, print the tables, write JSON and plot."""
    parser = argparse.ArgumentParser(description="Measure the latency of networks in every runtime.")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="presets, separated by commas, or all")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each runner takes")
    parser.add_argument("--runners", default=",".join(RUNNERS), help="which of them")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.networks == "all":
        from paddle_dense import list_models

        options.networks = ",".join(list_models())
    batches = [int(batch) for batch in options.batches.split(",")]
    speed = best_product()
    print(f"{machine()}; best matrix product {speed / 1e9:.0f} GMAC/s", flush=True)
    results = []
    for network in options.networks.split(","):
        print(network, file=sys.stderr, flush=True)
        results.append(measure(network, batches, options.rounds, options.runners.split(",")))
        print(table(results[-1:], speed), flush=True)
    print(f"\n**All of them**\n\n{overview(results)}")
    if options.json:
        described = {"machine": machine(), "speed": speed, "results": results}
        with atomic_write(options.json) as file:
            file.write(f"{json.dumps(described, indent=2)}\n".encode())
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
