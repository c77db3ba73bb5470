"""The command ``python -m convert.parity``: does a checkpoint do the same in PyTorch and in Paddle?"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, cast

try:
    from convert.command import (
        add_choice_of_weights,
        add_options,
        add_own_network,
        for_each,
        read_options,
        tell_warnings,
    )
    from convert.options import ParityOptions
    from convert.pytorch import pytorch_fault
    from convert.result import Result
    from paddle_dense.cli import Parser, UsageError, check_least, program, run
    from paddle_dense.errors import printable
    from paddle_dense.files.opened import open_weights
    from paddle_dense.process import FAILED, OK, as_process, complain, importing
except ImportError as error:  # without Paddle; the message says what to install
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}")


if TYPE_CHECKING:
    from convert.parity.forward import Parity
    from convert.parity.training import Difference


def parser() -> argparse.ArgumentParser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("parity", "convert.parity"),
        description="Compare a checkpoint's network in PyTorch and in Paddle: logits, every layer, loss, every "
        "gradient, and steps of Nesterov's SGD. Nothing is written except a report, with --report. A checkpoint in the "
        "trained form is compared in the trained form, and its condensed form as well.",
        epilog="Exit status: 0 both do the same, 1 they differ or a file is bad, 2 wrong usage, 130 or 143 "
        "stopped by a signal.",
    )
    add = command.add_argument
    files = ".pth, .pt, .pth.tar, .safetensors, .index.json, or .pdparams"
    add("checkpoints", nargs="*", type=Path, metavar="CKPT", help=f"{files}; not needed with --network")
    add("--steps", type=int, default=3, help="training steps, each with loss and gradients; 0: none (default: 3)")
    add("--learning-rate", type=float, default=0.01, help="of the training steps (default: 0.01)")
    add("--batch-size", type=int, default=4, help="images in each training step (default: 4)")
    add(
        "--size",
        type=int,
        metavar="PIXELS",
        help="side of the random images (default: the network's own, but at most 64 in training)",
    )
    add("--seed", type=int, default=0, help="of the random images (default: 0)")
    add("--layers", action="store_true", help="print the difference of every layer")
    add(
        "--keep-trained-form",
        action="store_true",
        help="do not compare the condensed form of a checkpoint in the trained form",
    )
    add("--force", action="store_true", help="overwrite an existing report")
    add_choice_of_weights(command)
    add_options(command)
    add_own_network(command).add_argument(
        "--loss",
        metavar="MODULE:FUNCTION",
        help="the loss of the outputs, as both frameworks' tensors, for the training steps",
    )
    return command


def _run(args: argparse.Namespace) -> int:
    check_least(args, {"steps": 0, "batch_size": 2, "size": 32, "seed": 0})
    if not args.learning_rate >= 0:
        raise UsageError(f"--learning-rate {args.learning_rate} must be 0 or more")
    options = read_options(args, ParityOptions)
    if util.find_spec("torch") is None:
        raise ImportError("this command compares with PyTorch, which is not installed: pip install torch")

    if options.network and not options.reference:
        raise UsageError("--network is compared with the PyTorch network: give it with --reference MODULE:FACTORY")
    if not (args.checkpoints or options.network):
        raise UsageError("there is nothing to compare: give a CKPT, or --network with --reference")

    def work(number: int, result: Result) -> int:
        # Read first: a bad file is reported before Paddle is loaded, which takes seconds.
        path = args.checkpoints[number] if args.checkpoints else None
        file = open_weights(path, ema=options.ema, key=options.key) if path else None
        with importing():
            import paddle_dense.checkpoints  # noqa: F401  Paddle first: no bad file waits for PyTorch
        if fault := pytorch_fault():
            raise ImportError(f"this command compares with PyTorch, which {fault}")
        with importing():
            from convert.any_network import compare_file
            from convert.parity.checkpoint import check_checkpoint
        if options.network or file is None:
            compare_file(file, options, result)
        else:
            check_checkpoint(file, options, result)
        tell_warnings(result.input, result.warnings)
        if args.json:
            print(json.dumps(result.comparison(args.layers)))
        else:
            _print(result, args.layers)
        if result.difference:
            complain(f"{result.input}: Paddle and PyTorch differ: {result.difference}")
        return FAILED if result.difference else OK

    return for_each(
        args.checkpoints or [Path(args.reference)], work, {} if args.json else None, options.report, options.force
    )


def _print(result: Result, layers: bool) -> None:
    """What a person reads; differences are relative to the scale of what differs."""
    forward = cast("Parity", result.parity)
    forms: dict[object, str] = {True: ", condensed form", False: ", trained form"}
    form = forms.get(result.config.get("condensed"), "")
    print(printable(f"{result.input}: {result.arch}{form}, {result.seconds:.1f} s"))
    same = "top-1 equal" if forward.what == "logits" else "largest number in the same place"
    print(
        f"  {forward.what:9} {forward.max_abs_diff:.1e} apart, {forward.max_rel_diff:.1e} of their scale, "
        f"{same} on {forward.top1_agreement:.0%} of {forward.inputs} inputs"
    )
    first = result.first_layer
    largest = max((layer.float64 for layer in result.layers), default=0.0)
    where = f"first apart in {first.name}, by {first.float64:.1e}" if first else f"equal to {largest:.1e}"
    print(f"  layers    {len(result.layers)} in float64, {where}")
    if layers:
        for layer in result.layers:
            print(f"    {layer.float64:8.1e}  {layer.name}")
    if not result.training:
        return
    for precision, steps in (("float32", result.training.steps), ("float64", result.training.exact)):
        for step in steps:
            print(
                f"  {precision}   step {step.step}: loss {step.torch_loss:.6f} and {step.paddle_loss:.6f}, "
                f"{step.loss_diff:.1e} apart; masks {'equal' if step.masks_equal else 'apart'}; "
                f"gradients {_apart(step.gradient)}; updates {_apart(step.update)}"
            )


def _apart(difference: Difference) -> str:
    return f"{difference.size:.1e} apart in {difference.name}" if difference.size else "equal"


main = partial(run, parser, _run)


if __name__ == "__main__":
    as_process(main)
