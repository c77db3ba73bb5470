"""The command ``python -m paddle_dense.deploy``: from a checkpoint to files that inference engines run fast."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_dense.classes import read_labels
from paddle_dense.cli import Parser, UsageError, check_least, program, run
from paddle_dense.environment import cpu_environment
from paddle_dense.errors import WeightsError, enough_memory, naming, printable
from paddle_dense.files.atomic import overlap, refuse_existing
from paddle_dense.files.sidecar import with_its_sidecar
from paddle_dense.process import OK, as_process, load_paddle, warn

if TYPE_CHECKING:
    import numpy as np
    from paddle import nn

    from paddle_dense.deploy.exporting import Exported

FORMATS = ("paddle", "onnx")
RUNTIMES = ("compiled", "openvino")
# Of the benchmark: enough for a steady median, also of a slow network.
_WARM_UP, _LEAST_PASSES, _SECONDS = 3, 15, 2.0


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("deploy", "paddle_dense.deploy"),
        description="Make a network fast and write it for Paddle Inference or as ONNX; every file is run and compared "
        "with the network before it appears.",
        epilog="Exit status: 0 everything was written and checked, 1 a file or its check is bad, 2 wrong usage, "
        "130 or 143 stopped by a signal.",
    )
    add = command.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="converted .pdparams or .safetensors, or a PyTorch checkpoint")
    add("-o", "--output", metavar="DIR|NAME", help="where to write (default: NAME_deploy next to the input)")
    add("--format", choices=(*FORMATS, "both"), default="paddle", help="what to write (default: paddle)")
    add("--size", type=int, metavar="N", help="side of the images in pixels (default: any height and width)")
    add("--batch", type=int, metavar="N", help="images in a batch (default: any number)")
    add(
        "--runtime",
        choices=RUNTIMES,
        help="fuse for compiled: ONNX Runtime or Paddle Inference with oneDNN, or for openvino (default: onnx for "
        "compiled, paddle for Paddle's own kernels)",
    )
    add("--no-fuse", dest="fuse", action="store_false", help="write the network as it is")
    add("--labels", type=Path, metavar="FILE", help="name of each class, one a line (default: the weights' own)")
    add(
        "--benchmark",
        action="store_true",
        help="time what was written against the network in Paddle, and count images a second by processes and threads",
    )
    add("--json", action="store_true", help="print one JSON object on stdout")
    add("--force", action="store_true", help="overwrite existing files")
    return command


def _run(args: argparse.Namespace) -> int:
    check_least(args, {"size": 1, "batch": 1})
    if args.runtime and not args.fuse:
        raise UsageError("--runtime says how to fuse: leave out --no-fuse")
    if args.runtime == "openvino" and args.format != "onnx":
        raise UsageError("--runtime openvino is for ONNX files: give --format onnx")
    with enough_memory(args.checkpoint):
        load_paddle()
        try:
            return _deploy(args)
        except RuntimeError as error:  # of a fused network that differs
            raise WeightsError(f"{args.checkpoint}: {error}") from error


def _deploy(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    labels = read_labels(args.labels) if args.labels else None
    from paddle_dense.cost import check_cost
    from paddle_dense.deploy.exporting import exported_files

    target = _target(args)
    formats = FORMATS if args.format == "both" else (args.format,)
    files = [file for format in formats for file in exported_files(target, format)]
    clash = overlap(files, (*with_its_sidecar(args.checkpoint), *([args.labels] if args.labels else [])))
    if clash:
        raise UsageError(f"{clash} with -o")
    for file in files:
        refuse_existing(file, args.force)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        model = _network(args.checkpoint)
        with naming(args.checkpoint):
            check_cost(model, "take another checkpoint, or give a smaller --size", args.size)
        exports = {format: _export(model, target, format, labels, args) for format in formats}
    notes = list(dict.fromkeys(str(warning.message) for warning in said if warning.category is UserWarning))
    for note in notes:
        warn(note)
    result = {
        "input": str(args.checkpoint),
        "output": [str(file) for exported in exports.values() for file in exported],
        "arch": model.arch,
        "config": model.config,
        "fused": args.fuse,
        "size": args.size,
        "batch": args.batch,
        "max_rel_diff": {format: exported.max_rel_diff for format, exported in exports.items()},
        "seconds": time.perf_counter() - start,
        "warnings": notes,
    }
    if args.benchmark:
        result["benchmark"] = _benchmark(model, exports, args)
    print(json.dumps(result) if args.json else _report(result))
    return OK


def _target(args: Any) -> Path:
    """The files' name without suffixes."""
    name = args.checkpoint.with_name(re.sub(r"(\.pth)?\.\w+$", "", args.checkpoint.name))  # .pth.tar is one suffix
    if not args.output:
        return name.with_name(f"{name.name}_deploy")
    if os.path.isdir(args.output) or args.output.endswith(("/", "\\")):
        return Path(args.output) / name.name
    return Path(args.output)


def _network(path: Path) -> nn.Layer:
    """The network of a checkpoint of either framework, in evaluation mode and in the condensed form."""
    from paddle_dense import load_model

    model = load_model(path, condensed=True)
    model.eval()
    return model


def _export(model: nn.Layer, target: Path, format: str, labels: list[str] | None, args: Any) -> Exported:
    from paddle_dense.deploy.exporting import PROGRAM_SUFFIX, export
    from paddle_dense.deploy.fusing import fuse

    # Paddle Inference 2 cannot broadcast in the batched products that networks fused for Paddle have.
    rules = "paddle" if format == "paddle" and PROGRAM_SUFFIX != ".pdmodel" else "compiled"
    network = fuse(model, args.runtime or rules) if args.fuse else model
    return export(network, target, format, args.size, args.batch, labels, {"fused": args.fuse})


# The benchmark


def _benchmark(model: nn.Layer, exports: Mapping[str, Exported], args: Any) -> dict[str, Any]:
    """Milliseconds of one pass through the network and through each file, in every engine that is installed."""
    import numpy as np

    from paddle_dense.deploy.throughput import engines_for, shares, throughput

    batch, size = args.batch or 1, args.size or model.input_size
    threads = int(os.environ.get("OMP_NUM_THREADS") or cpu_environment()["OMP_NUM_THREADS"])
    images = np.random.default_rng(0).standard_normal((batch, model.config["in_channels"], size, size), np.float32)
    eager = _milliseconds(model, images)
    rows = [
        throughput(engine, files, images.shape, *share)
        for engine, files in engines_for(exports).items()
        for share in shares(threads)
    ]
    # Each engine in a process of its own: the threads of several in one get in each other's way.
    alone = {row["engine"]: row["milliseconds"] for row in rows if (row["processes"], row["threads"]) == (1, threads)}
    return {
        "batch": batch,
        "size": size,
        "threads": threads,
        "milliseconds": {"Paddle, not exported": eager, **alone},
        "throughput": rows,
    }


def _milliseconds(model: nn.Layer, images: np.ndarray) -> float:
    """The median of one pass through the network as it is, in Paddle and on the CPU, where the engines run."""
    import paddle

    from paddle_dense.evaluation import brought_to_cpu, on_cpu

    times = list[float]()
    with on_cpu(), paddle.no_grad():
        network, x = brought_to_cpu(model), paddle.to_tensor(images)
        for _ in range(_WARM_UP):
            network(x)
        end = time.perf_counter() + _SECONDS
        while len(times) < _LEAST_PASSES or time.perf_counter() < end:
            start = time.perf_counter()
            network(x)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _report(result: Mapping[str, Any]) -> str:
    form = "fused" if result["fused"] else "not fused"
    lines = [f"{result['input']}: {result['arch']}, {form}, {result['seconds']:.1f} s"]
    lines += [f"  {file}" for file in result["output"]]
    for format, difference in result["max_rel_diff"].items():
        lines.append(f"  {format}: run, and equal to the network to {difference:.1e} of its outputs' scale")
    if "benchmark" in result:
        timed = result["benchmark"]
        lines.append(f"  batch {timed['batch']}, {timed['size']} pixels, {timed['threads']} threads, medians:")
        first = next(iter(timed["milliseconds"].values()))
        for name, milliseconds in timed["milliseconds"].items():
            lines.append(f"    {name:<20} {milliseconds:8.2f} ms {first / milliseconds:6.2f} times as fast")
        lines.append("  images a second of all processes together, and milliseconds of one batch:")
        lines.append(f"    {'engine':<20} processes  threads  images/s        ms")
        lines += [
            f"    {row['engine']:<20} {row['processes']:9} {row['threads']:8} {row['images_per_second']:9.1f} "
            f"{row['milliseconds']:9.2f}"
            for row in timed["throughput"]
        ]
    return "\n".join(map(printable, lines))


main = partial(run, parser, _run)


if __name__ == "__main__":
    as_process(main)
