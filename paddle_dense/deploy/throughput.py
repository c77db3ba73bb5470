"""How many images a machine answers in a second, by how its cores are shared out among processes and threads."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import util
from pathlib import Path
from typing import Any, Callable

import numpy as np

from paddle_dense.deploy.exporting import Runner, load_onnx, load_openvino, load_paddle, quiet
from paddle_dense.environment import cpu_environment
from paddle_dense.errors import WeightsError

# Name -> the format that it runs, and what loads the files for so many threads.
ENGINES: dict[str, tuple[str, Callable[[Sequence[Path], int], Runner]]] = {
    "Paddle Inference": ("paddle", load_paddle),
    "ONNX Runtime": ("onnx", load_onnx),
    "OpenVINO": ("onnx", load_openvino),
}
_SECONDS, _WARM_UP = 2.0, 3


def engines_for(exports: Mapping[str, Sequence[Path]]) -> dict[str, Sequence[Path]]:
    """The installed engines that run what was exported, and the files that each of them runs."""
    return {
        name: exports[format]
        for name, (format, _) in ENGINES.items()
        if format in exports and (name != "OpenVINO" or util.find_spec("openvino"))
    }


def shares(cores: int) -> list[tuple[int, int]]:
    """Processes and threads of each: one alone, and the powers of two that divide the cores."""
    counts = [1 << power for power in range(cores.bit_length()) if cores % (1 << power) == 0]
    return sorted({(1, 1), *((count, cores // count) for count in counts), (cores, 1)})


def throughput(
    engine: str, files: Sequence[Path], shape: Sequence[int], processes: int, threads: int
) -> dict[str, Any]:
    """Run so many processes at once, each with a copy of the network and so many threads.

    Args:
        engine: one of `ENGINES`.
        files: what it runs.
        shape: of a batch, [N, C, H, W].
        processes: each answers one batch after the other, as a server's worker under full load does.
        threads: of each.

    Returns:
        The arguments, ``images_per_second`` of all together, and ``milliseconds``, the median of one batch.

    Raises:
        WeightsError: a process ended early.
    """
    command = [sys.executable, "-m", __name__, engine, str(threads), json.dumps(list(shape)), *map(os.fspath, files)]
    environment = {**os.environ, **cpu_environment(), "OMP_NUM_THREADS": str(threads)}
    with ExitStack() as stack:
        workers = list[Any]()
        for _ in range(processes):
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
            stack.callback(worker.communicate)
            stack.callback(worker.kill)
            workers.append(worker)
        _answers(workers, engine, processes)
        for worker in workers:
            worker.stdin.write(b"go\n")
            worker.stdin.flush()
        found = _answers(workers, engine, processes)
    return {
        "engine": engine,
        "processes": processes,
        "threads": threads,
        "images_per_second": sum(shape[0] * answer["passes"] / answer["seconds"] for answer in found),
        "milliseconds": statistics.median([answer["milliseconds"] for answer in found]),
    }


def _answers(workers: Sequence[Any], engine: str, processes: int) -> list[dict[str, Any]]:
    lines = [worker.stdout.readline() for worker in workers]
    if not all(lines):
        raise WeightsError(
            f"{engine} ended early in one of {processes} processes: free memory, or set OMP_NUM_THREADS to fewer cores"
        )
    return [json.loads(line) for line in lines]


def _work(engine: str, threads: int, shape: Sequence[int], files: Sequence[Path]) -> None:
    """One process: say that it is ready, wait for a line, then run for a while and tell what came of it."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    with quiet():
        run = ENGINES[engine][1](files, threads)
        for _ in range(_WARM_UP):
            run(x)
    print("{}", flush=True)
    if not sys.stdin.readline():
        return
    times = list[float]()
    start = before = time.perf_counter()
    while before - start < _SECONDS:
        run(x)
        now = time.perf_counter()
        times.append(now - before)
        before = now
    answer = {"passes": len(times), "seconds": before - start, "milliseconds": 1000 * statistics.median(times)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), [Path(name) for name in sys.argv[4:]])
