"""The command ``python -m convert.paddle2torch``: Paddle weights in, checked PyTorch checkpoints out."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    from convert import conversion
    from convert.command import (
        add_conversion_options,
        add_options,
        for_each,
        read_options,
        refuse_written,
        targets,
        tell_conversion,
    )
    from convert.conversion import Conversion, Options, origin_path
    from convert.original import recalled, restored
    from convert.parity.checkpoint import described
    from convert.report import Section
    from paddle_dense.cli import Parser, program, run
    from paddle_dense.errors import WeightsError, naming
    from paddle_dense.files.atomic import atomic_write, make_folder
    from paddle_dense.files.names import pytorch_sign, refuse_mixture
    from paddle_dense.files.sidecar import in_one_moment, sidecar_path, told_of, with_its_sidecar
    from paddle_dense.files.torch_archive import write_torch
    from paddle_dense.files.weights import read_file, read_metadata, read_weights, write_weights
    from paddle_dense.process import FAILED, OK, USAGE, as_process
except ImportError as error:  # without Paddle; the message says what to install
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}")

__all__ = ["FAILED", "OK", "USAGE", "convert_back", "main", "parser"]

FORMATS = ("pth", "safetensors")
_FUSED = (
    "is fused for inference, and fused weights are no checkpoint that PyTorch's networks could load: convert the file "
    "that it was made from"
)
# Where a fused CondenseNet has layers that a checkpoint has not. The others have biases of convolutions.
_FUSED_LAYER = re.compile(r"\.(conv_1|conv_2|sfr)\.([0-9]+\.|weight$)")


def parser() -> argparse.ArgumentParser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("paddle2torch", "convert.paddle2torch"),
        description="Convert Paddle weights to PyTorch checkpoints and check the two frameworks against each other. "
        "The network and its numbers are read from the sidecar .json, or from the tensors; its form is kept. What "
        "convert.torch2paddle converted gets the names, order and counters of the original file back.",
        epilog="Exit status: 0 everything was written and checked, 1 a file or its check is bad, 2 wrong usage, "
        "130 or 143 stopped by a signal.",
    )
    command.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help=".pdparams or .safetensors")
    add_conversion_options(command, FORMATS)
    add_options(command)
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run(parser, _run, arguments)


def _run(args: argparse.Namespace) -> int:
    outputs = targets(args, FORMATS, origin_path, sidecar_path)
    options = read_options(args, Options)

    def work(number: int, section: Section) -> int:
        refuse_written(outputs, number)
        tell_conversion(convert_back(args.checkpoints[number], outputs[number], options, section), args.json)
        return OK

    return for_each(args.checkpoints, work, {"output": None} if args.json else None, options.report, options.force)


def convert_back(path: Path, target: Path, options: Options, section: Section | None = None) -> Conversion:
    """Convert Paddle weights and check the two frameworks against each other; nothing is written if they differ.

    Args:
        path: ``.pdparams`` or ``.safetensors`` with Paddle's names, as it is or with its sidecar beside it.
        target: the file to write, ``.pth`` or ``.safetensors``; where it comes from goes to ``TARGET.json``.
        options: see `convert.conversion.Options`.
        section: of a report, to be filled in as the conversion goes.

    Raises:
        WeightsError: the file cannot be read or recognised, is fused, or the check failed.
        ValueError: an option does not fit the network.
        OSError: the target cannot be written.
    """
    start = time.perf_counter()
    section = section or Section(str(path))
    content, tensors, told = in_one_moment(path, lambda: _read(path))
    conversion.check_targets((target, origin_path(target)), with_its_sidecar(path), options)
    sha256, metadata = conversion.hashing(content), read_metadata(path, content)
    del content

    # Only now, when there is something to convert: Paddle takes seconds to load.
    with naming(path), conversion.on_cpu():
        from paddle_dense.models.fitting import check_state
        from paddle_dense.models.recognise import canonical, recognise

        remembered = recalled(path, told)
        refuse_mixture(tensors)
        if sign := pytorch_sign(tensors, metadata):
            raise WeightsError(
                f"has {sign} already, so its linear layers lie as in PyTorch: give the Paddle file, or take this one "
                f"as it is"
            )
        state = canonical(tensors)
        try:
            found = described(path, options, tensors, told) or recognise(state, options.arch, options.config)
            outline = conversion.outline_of(found, options)
            state = check_state(state, outline, allow_nonfinite=options.allow_nonfinite)
        except WeightsError:
            if _is_fused(state):
                raise WeightsError(_FUSED) from None
            raise
        section.warnings += found.warnings
        conversion.describe(section, outline, state, options)
        original = restored(state, remembered)
        conversion.verify(canonical(original), state, found, outline, options, section)

    result = conversion.conclude(section, target, sha256.result(), start)
    make_folder(target.parent)
    _write(original, target, conversion.provenance(result, path.suffix.lstrip(".")))
    return result


def _read(path: Path) -> tuple[memoryview, dict[str, np.ndarray], dict[str, Any] | None]:
    """The bytes of a file, the tensors in them, and what the sidecar tells of these."""
    with naming(path):
        content = read_file(path)
    tensors = read_weights(path, content)
    return content, tensors, told_of(path, tensors)


def _is_fused(state: Mapping[str, np.ndarray]) -> bool:
    """Whether tensors that are no network's are those of a fused one."""
    if any(_FUSED_LAYER.search(name) for name in state):
        return True
    weights = {name: value for name, value in state.items() if name.endswith(".weight") and ".se." not in name}
    return any(value.ndim == 4 and f"{name[: -len('weight')]}bias" in state for name, value in weights.items())


def _write(state: Mapping[str, np.ndarray], target: Path, told: Mapping[str, Any]) -> None:
    """Write the tensors and where they come from; what stood there stays if either cannot be written."""
    with atomic_write(origin_path(target)) as file:
        file.write((json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
        if target.suffix == ".safetensors":
            write_weights(state, target, {"format": "pt"})
        else:
            with atomic_write(target) as weights:
                write_torch(state, weights)


if __name__ == "__main__":
    as_process(main)
