"""The command ``python -m paddle_dense.training plot``: a map of which layers read which."""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path

from paddle_dense.cli import Parser, UsageError, program, run
from paddle_dense.errors import WeightsError, printable
from paddle_dense.files.atomic import overlap, refuse_existing
from paddle_dense.files.sidecar import with_its_sidecar
from paddle_dense.process import OK, load_paddle
from paddle_dense.training import PLOT_FORMATS


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("train plot", "paddle_dense.training plot"),
        description="Draw which features each layer of a densely connected network reads and, in a CondenseNet V2, "
        "reactivates. The trained and the condensed form give the same image.",
        epilog="Exit status: 0 the image was written, 1 the checkpoint is bad or has no dense layers, 2 wrong usage.",
    )
    add = command.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help=".pdparams or .safetensors")
    image = f"the image, {' or '.join(PLOT_FORMATS)} (default: NAME.png next to CKPT)"
    add("-o", "--output", type=Path, metavar="FILE", help=image)
    add("--force", action="store_true", help="overwrite an existing image")
    return command


def _run(args: argparse.Namespace) -> int:
    target = args.output or args.checkpoint.with_suffix(".png")
    if target.suffix.lower() not in PLOT_FORMATS:
        raise UsageError(f"-o {target} must end in {' or '.join(PLOT_FORMATS)}")
    clash = overlap([target], with_its_sidecar(args.checkpoint))
    if clash:
        raise UsageError(f"{clash} with -o")
    refuse_existing(target, args.force)
    load_paddle()
    from paddle_dense.evaluation import name_of
    from paddle_dense.training.plot import plot_connectivity
    from paddle_dense.training.resume import load_network

    with warnings.catch_warnings():
        # What a file does not show, such as strides and activations, does not show in the image either.
        warnings.simplefilter("ignore")
        model = load_network(args.checkpoint)
    try:
        plot_connectivity(model, target)
    except WeightsError:
        raise
    except ValueError as error:  # the file's network has no connections to draw
        raise WeightsError(f"{args.checkpoint}: {error}") from error
    print(printable(f"{args.checkpoint} -> {target}: {name_of(model)}"))
    return OK


main = partial(run, parser, _run)
