"""How fast every network is in every runtime, next to what a user would pick instead: ``make bench``.

Each runner is a process of its own (`benchmarks.runners`). They get ready side by side and then take turns, a few runs
each, so that whatever else the machine does meets all of them alike. Every figure is a median, next to its ratio to the
best peer, the most memory that the process held, and two limits:

* arithmetic: the multiply-accumulates that the paper counts, at the speed of this machine's best matrix product;
* memory: the weights, and what every convolution and linear layer reads and writes, at the speed of its best copy, as
  if all else were fused into these and no cache were large enough to hold one's output for the next.

What is measured is kept after every network, so that a run can be stopped and continued:

    python -m benchmarks.latency                                  # all of them
    python -m benchmarks.latency --families "CSPNet,CondConv" --batches 1
    python -m benchmarks.latency --networks cdnv2_a --batches 1,8 --json out.json --plot out.png
    python -m benchmarks.latency --json out.json --continue       # what is not yet in out.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runners import ENVIRONMENT, OWN_WEIGHTS, PEERS, RUNNERS, THREADS, origin
from paddle_dense.files.atomic import atomic_write

FAMILIES = {
    "CondenseNetV2": ("cdnv2_a", "cdnv2_b", "cdnv2_c"),
    "CondenseNet": ("condensenet74_c4", "condensenet74_c8"),
    "CSPNet": ("cspresnet50", "cspresnext50", "cspdarknet53", "cspdensenet121"),
    "CondConv": ("tf_efficientnet_cc_b0_4e", "tf_efficientnet_cc_b0_8e", "tf_efficientnet_cc_b1_8e"),
    "DenseNet": ("densenet121", "densenet161", "densenet169", "densenet201"),
}
NETWORKS = tuple(network for networks in FAMILIES.values() for network in networks)
PEER_NAMES = [runner.__name__ for runner in PEERS]
_PACKAGES = ("paddlepaddle", "torch", "onnxruntime", "openvino", "timm", "torchvision")
_REFERENCE = "torch_eager"

Speeds = Sequence[float]  # multiply-accumulates and bytes, a second
_RUNS = 5
# Of a network that was never measured, on two cores: seconds that a runner takes to get ready for a batch and between
# two turns, and what a pass takes, some seconds and some times the arithmetic limit of a machine of `_GUESSED_SPEED`.
_READY, _BETWEEN, _CALL, _TIMES_THE_LIMIT, _GUESSED_SPEED = 3.0, 0.4, 0.01, 2.5, 60e9
_PATIENCE = 300  # seconds that a runner may prepare: torch.compile takes longer than all the rest


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
            env=ENVIRONMENT,
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
        self.process.kill()
        self.process.communicate()


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
    size = size or model.input_size
    described = {
        "arch": network,
        "config": model.config,
        "input_size": size,
        "macs": pd_.profile(model, (model.config["in_channels"], size, size)).macs,
        **moved(model, size),
    }
    (folder / "network.json").write_text(json.dumps(described))
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return described


def moved(model: Any, size: int) -> dict[str, int]:
    """Bytes of the weights, and of what the convolutions and linear layers read and write for one image."""
    import paddle
    from paddle import nn

    from paddle_dense import layers as kinds
    from paddle_dense.evaluation import evaluation
    from paddle_dense.layers.sfr import grouped_convolutions

    numbers = 0

    def count(layer: Any, inputs: tuple, output: Any) -> None:
        nonlocal numbers
        numbers += inputs[0].size + output.size

    wide = (kinds.CondenseSFR, kinds.CondConv2D, kinds.RoutedCondConv2D, kinds.CondConvLinear)
    inside = grouped_convolutions(model)
    layers = [
        part for part in model.sublayers() if isinstance(part, (nn.Conv2D, nn.Linear, *wide)) and part not in inside
    ]
    handles = [layer.register_forward_post_hook(count) for layer in layers]
    with evaluation(model):
        model(paddle.zeros([1, model.config["in_channels"], size, size]))
    for handle in handles:
        handle.remove()
    return {"weights": 4 * sum(parameter.size for parameter in model.parameters()), "activations": 4 * numbers}


def suits(name: str, network: str) -> bool:
    """Whether a runner knows the network."""
    if name == "ppim":
        return network.startswith("cdnv2")
    if name == "paddle_vision":
        return network.startswith("densenet")
    if name == "paddleclas":
        return network == "cspdarknet53" or network.startswith("densenet")
    return True


def measure(
    network: str, batches: Sequence[int], rounds: int, names: Sequence[str], size: int | None = None, **config: Any
) -> dict[str, Any]:
    """All runners on one network: medians in milliseconds for each batch, and how far their answers differ."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        described = prepare(network, folder, size, **config)
        workers, absent = [], {}
        for name in names:
            if not suits(name, network):
                continue
            worker = Worker(name, folder, folder / f"{name}.log")
            stack.callback(worker.close)
            if worker.answer() == "ready":
                workers.append(worker)
            else:
                absent[name] = worker.reason()
            print(f"  {name}: {absent.get(name, 'ready')}", file=sys.stderr, flush=True)
        results: dict[str, Any] = {"network": network, "origin": origin(network), "absent": absent, "batches": {}}
        results |= {key: described[key] for key in ("macs", "weights", "activations")}
        for batch in sorted(batches):
            results["batches"][str(batch)] = _measure_batch(workers, batch, rounds, folder, absent)
            workers = [worker for worker in workers if worker.name not in absent]
        return {**results, "seconds": time.perf_counter() - start}


def _measure_batch(workers: list[Worker], batch: int, rounds: int, folder: Path, absent: dict[str, str]) -> dict:
    with ThreadPoolExecutor(THREADS) as pool:
        ready = list(pool.map(lambda worker: worker.ask(f"batch {batch}"), workers))
    absent |= {worker.name: worker.reason() for worker, answer in zip(workers, ready) if answer is None}
    workers = [worker for worker in workers if worker.name not in absent]
    times: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            # The threads of the one before wait actively for a while.
            time.sleep(0.25)
            times[worker.name] += json.loads(worker.ask(f"run {_RUNS}"))
    answers, memory = {}, {worker.name: json.loads(worker.ask("memory")) for worker in workers}
    for worker in workers:
        worker.ask(f"answer {folder / worker.name}.npy")
        answers[worker.name] = np.load(folder / f"{worker.name}.npy")
    expected = answers.get(_REFERENCE)
    return {
        name: {
            "ms": statistics.median(times[name]),
            "memory": memory[name],
            "difference": None
            if expected is None or name in OWN_WEIGHTS
            else float(np.abs(answers[name] - expected).max() / np.abs(expected).max()),
        }
        for name in times
    }


_BEST = """
import sys, time
if {paddle}:
    from paddle_dense.environment import set_cpu_environment; set_cpu_environment()
    import paddle as t; x = t.randn([1536, 1536]); product = lambda: t.matmul(x, x).numpy()
    copy = product
else:
    import torch as t; t.set_num_threads({threads}); x = t.randn(1536, 1536); product = lambda: t.mm(x, x)
    a, b = t.zeros(1 << 26), t.ones(1 << 26); copy = lambda: a.copy_(b)
def best(work):
    least = 9e9
    for _ in range(25):
        s = time.perf_counter(); work(); least = min(least, time.perf_counter() - s)
    return least
print(1536**3 / best(product), 0 if {paddle} else 8 * (1 << 26) / best(copy))
"""


def best_speeds() -> tuple[float, float]:
    """What this machine can do: multiply-accumulates a second in Paddle's or PyTorch's best product of matrices, and
    bytes a second that PyTorch's copy of a large tensor reads and writes.
    """
    found = []
    for paddle in (True, False):
        command = [sys.executable, "-c", _BEST.format(paddle=paddle, threads=THREADS)]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        found += [[float(number) for number in done.stdout.split()[-2:]]] if done.returncode == 0 else []
    product, copy = (max(speeds) for speeds in zip(*found))
    return product, copy


def machine() -> str:
    """The processor and what runs on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {THREADS} threads, {platform.system()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Of what is measured, as installed."""
    return {
        name: metadata.version(name) for name in _PACKAGES if util.find_spec(name.replace("paddlepaddle", "paddle"))
    }


def limits(result: dict[str, Any], batch: int, speeds: Speeds) -> tuple[float, float]:
    """Milliseconds that arithmetic and memory take at least, see above."""
    product, copy = speeds
    return (
        1000 * batch * result["macs"] / product,
        1000 * (result["weights"] + batch * result["activations"]) / copy if copy else 0.0,
    )


def table(results: list[dict[str, Any]], speeds: Speeds) -> str:
    """The figures in Markdown."""
    lines = []
    for result in results:
        for batch, runners in result["batches"].items():
            peers = [row["ms"] for name, row in runners.items() if name in PEER_NAMES]
            best = min(peers) if peers else None
            limit, traffic = limits(result, int(batch), speeds)
            lines += [
                f"\n**{result['network']}, batch {batch}** (limits: arithmetic {limit:.1f}, memory {traffic:.1f} ms; "
                f"original: {result['origin']})\n",
                "| runner | ms | images/s | against the best peer | of the limit | memory | largest difference |",
                "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            ]
            for name, row in sorted(runners.items(), key=lambda item: item[1]["ms"]):
                ratio = f"{best / row['ms']:.2f}x" if best else ""
                shown = "" if row["difference"] is None else f"{row['difference']:.0e}"
                label = name if name in PEER_NAMES else f"**{name}**"
                lines.append(
                    f"| {label} | {row['ms']:.1f} | {1000 * int(batch) / row['ms']:.0f} | {ratio} "
                    f"| {limit / row['ms']:.0%} | {_megabytes(row['memory'])} | {shown} |"
                )
        lines += [f"\n{name} was left out: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines)


def _megabytes(memory: float | None) -> str:
    return "" if memory is None else f"{memory:.0f} MB"


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


def estimate(
    network: str, earlier: list[dict[str, Any]], batches: Sequence[int], rounds: int, names: Sequence[str]
) -> float:
    """Seconds that a network takes: as many as an earlier run of it, else from its size."""
    before = next((result for result in earlier if result["network"] == network), None)
    if before and len(before["batches"]) == len(batches):
        return before["seconds"]
    from paddle_dense.models import presets

    size = next(preset.size for preset in presets() if preset.name == network)
    macs = size.executed_macs if size else 5e8
    runners = sum(suits(name, network) for name in names)
    passes = [_CALL + _TIMES_THE_LIMIT * macs * batch / _GUESSED_SPEED for batch in batches]
    # A turn ends after a second, see `benchmarks.runners`.
    turns = [_BETWEEN + seconds + min(_RUNS * seconds, 1 + seconds) for seconds in passes]
    return runners * (_READY * len(batches) + rounds * sum(turns))


def minutes(seconds: float) -> str:
    """For people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the latency of networks in every runtime.")
    parser.add_argument("--networks", help="presets, separated by commas, or all (default: those of --families)")
    parser.add_argument("--families", default=",".join(FAMILIES), help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each runner takes")
    parser.add_argument("--runners", default=",".join(RUNNERS), help="which of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="kept after every network")
    parser.add_argument(
        "--continue", dest="resume", action="store_true", help="leave out what FILE has of this machine"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE")
    return parser


def _names(parser: argparse.ArgumentParser, given: str, known: Iterable[str], option: str) -> list[str]:
    names = given.split(",")
    for name in names:
        if name not in known:
            parser.error(f"{option} {name}: choose from {', '.join(known)}")
    return names


def main() -> None:
    """Measure, print the tables, write JSON and plot."""
    parser = _parser()
    options = parser.parse_args()
    from paddle_dense import list_models

    families = _names(parser, options.families, FAMILIES, "--families")
    networks = [network for family in families for network in FAMILIES[family]]
    if options.networks:
        known = list_models()
        networks = known if options.networks == "all" else _names(parser, options.networks, known, "--networks")
    runners = _names(parser, options.runners, RUNNERS, "--runners")
    batches = [int(batch) for batch in options.batches.split(",")]
    if options.resume and not options.json:
        parser.error("--continue needs the --json FILE of the run to continue")
    here = {
        "machine": machine(),
        "versions": versions(),
        "batches": batches,
        "rounds": options.rounds,
        "runners": runners,
    }
    earlier = json.loads(options.json.read_text()) if options.json and options.json.exists() else {"results": []}
    same = options.resume and all(earlier.get(key) == value for key, value in here.items())
    speeds = tuple(earlier["speeds"]) if same else best_speeds()
    kept = {result["network"]: result for result in earlier["results"]} if same else {}
    left = [network for network in networks if network not in kept]
    seconds = sum(estimate(network, earlier["results"], batches, options.rounds, runners) for network in left)
    print(
        f"{here['machine']}; best matrix product {speeds[0] / 1e9:.0f} GMAC/s, best copy {speeds[1] / 1e9:.0f} GB/s\n"
        f"{len(left)} networks, about {minutes(seconds)} from now" + (f"; {len(kept)} are kept" if kept else ""),
        flush=True,
    )
    if options.resume and not same and earlier["results"]:
        print(f"nothing of {options.json} is kept: its machine, versions or options are others", flush=True)
    for number, network in enumerate(left):
        print(f"{network} ({number + 1} of {len(left)})", file=sys.stderr, flush=True)
        kept[network] = measure(network, batches, options.rounds, runners)
        print(table([kept[network]], speeds), flush=True)
        if options.json:
            with atomic_write(options.json) as file:
                described = {**here, "speeds": speeds, "results": list(kept.values())}
                file.write(f"{json.dumps(described, indent=2)}\n".encode())
    results = [kept[network] for network in networks]
    print(f"\n**All of them**\n\n{overview(results)}")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped: the same command with --json FILE --continue measures what is not in FILE yet")
