"""What the commands on checkpoints share: their options, and how they go from file to file."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable, TypeVar

from convert import options
from convert.origin import origin_path
from convert.report import SUFFIXES, check_report, write_report
from convert.result import OWN_TWIN, Result
from paddle_dense.cli import UsageError, key_values
from paddle_dense.errors import WeightsError, enough_memory, printable
from paddle_dense.files.atomic import file_key, overlap
from paddle_dense.files.opened import Framework, WeightsFile, open_weights
from paddle_dense.files.sidecar import sidecar_path, with_its_sidecar
from paddle_dense.process import FAILED, OK, USAGE, complain, importing, is_of_output, signals_waiting, warn

# What a file of PyTorch may be called, the longest ending first.
_SUFFIXES = (".pth.tar", ".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".tar", ".pdparams")
_PACKED = re.compile(r"(?<=.)\.(zip|gz|index\.json)$", re.IGNORECASE)
_WORTH_SAVING = 1_000_000  # bytes
_OF_OWN_NETWORKS = ("inputs", "map", "propose", "loss")
_OF_THIS_PACKAGE = ("arch", "config", "images", "compact", "keep_trained_form", "condense_classifier", "size")
Options = TypeVar("Options", bound=options.Options)


def add_conversion_options(command: argparse.ArgumentParser, formats: Sequence[str]) -> None:
    """Add what says where a converted file goes; the first format is the default."""
    add = command.add_argument
    add("-o", "--output", metavar="FILE|DIR", help=f"where to write (default: NAME.{formats[0]} next to the input)")
    add("--format", choices=formats, help=f"format of the output (default: {formats[0]}, or by -o FILE)")
    add("--no-verify", dest="verify", action="store_false", help="do not run both frameworks")
    add("--force", action="store_true", help="overwrite existing files")


def add_choice_of_weights(command: argparse.ArgumentParser) -> None:
    """Add the choice between several sets of weights, which only PyTorch checkpoints leave."""
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--no-ema",
        dest="ema",
        action="store_false",
        help="take the plain weights where the file has EMA weights too",
    )
    which.add_argument("--key", metavar="NAME", help="take the weights under this key of the file; info lists the keys")


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what says which network a checkpoint is and what it is compared with."""
    add = command.add_argument
    add("--arch", metavar="NAME", help="the preset that it is, where the tensors fit several")
    add(
        "--config",
        metavar="KEY=VALUE,...",
        type=key_values,
        default={},
        help="arguments of the network that the file does not reveal",
    )
    add(
        "--drop",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out tensors of this name, such as 'loss.*'",
    )
    add(
        "--rename",
        metavar="OLD=NEW",
        action="append",
        type=_pair,
        default=[],
        help="put NEW in place of OLD at the beginning of names; {n} stands for a number: 'enc.{n}=features.{n+1}'",
    )
    add("--part", metavar="PREFIX", default="", help="convert the network under this prefix, where there are several")
    add(
        "--atol",
        type=float,
        default=1e-5,
        help="largest difference, relative to the scale of what is compared (default: 1e-5)",
    )
    add("--images", metavar="DIR", type=Path, help="compare on these images too")
    add(
        "--allow-nonfinite",
        action="store_true",
        help="take NaN, infinity, and BN variances of 0 or less; both frameworks are then compared with 0 (variances: "
        "1) in their place, since no comparison sees past a NaN",
    )
    add("--reference", metavar="MODULE:FACTORY", help="check against your own PyTorch network")
    add("--json", action="store_true", help="print one JSON object for each input on stdout")
    add("--report", metavar="FILE", type=Path, help=f"write a report: {', '.join(SUFFIXES)}")


def add_own_network(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what converts and compares a network that is not this package's."""
    group = command.add_argument_group("a network of your own", "These options run your code; the file is only read.")
    add = group.add_argument
    add("--network", metavar="MODULE:FACTORY", help="the Paddle network that the tensors are for")
    add("--inputs", metavar="MODULE:FUNCTION", help="run both networks on what this returns (default: random numbers)")
    add("--map", metavar="FILE.csv", type=Path, help="which tensor is made of which, as --propose writes it")
    return group


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not old or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must have the form OLD=NEW")
    return old, new


def read_options(args: argparse.Namespace, kind: type[Options]) -> Options:
    """What the command line says, as a dataclass whose fields are named like the options.

    Raises:
        UsageError: an option cannot be used.
    """
    if args.images and not args.images.is_dir():
        raise UsageError(f"--images {args.images} is not a folder")
    if args.report and args.report.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--report {args.report} must end in {' or '.join(SUFFIXES)}")
    inputs = [file for path in args.checkpoints for file in (*with_its_sidecar(path), origin_path(path))]
    clash = overlap([args.report], inputs) if args.report else None
    if clash:
        raise UsageError(f"--report {clash}")
    for option in ("reference", "network", "inputs", "loss"):
        name = getattr(args, option, None)
        if name and not all(name.partition(":")):
            what = "FACTORY" if option in ("reference", "network") else "FUNCTION"
            raise UsageError(f"--{option} {name} must have the form MODULE:{what}")
    _check_own_network(args)
    if not args.atol >= 0:
        raise UsageError(f"--atol {args.atol} must be 0 or more")
    if args.arch:
        from paddle_dense.models.network import preset

        try:
            preset(args.arch)
        except ValueError as error:
            raise UsageError(f"--arch: {error}") from None
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in vars(args).items() if name in names and value is not None})


def _check_own_network(args: argparse.Namespace) -> None:
    """UsageError for options that only a network of the user's own has, or only one of this package."""
    own = getattr(args, "network", None)
    for option in _OF_THIS_PACKAGE if own else _OF_OWN_NETWORKS:
        if not getattr(args, option, None):
            continue
        if own:
            raise UsageError(
                f"--{option.replace('_', '-')} is for networks of this package: leave it out with --network"
            )
        raise UsageError(f"--{option} is for a network of your own: give it with --network MODULE:FACTORY")
    if getattr(args, "propose", None) and len(args.checkpoints) > 1:
        raise UsageError(f"--propose {args.propose} is for one file: give the {len(args.checkpoints)} one at a time")


def targets(
    args: argparse.Namespace,
    formats: Sequence[str],
    beside: Callable[[Path], Path],
    beside_inputs: Callable[[Path], Path],
) -> list[Path]:
    """One target for each input, from what `add_conversion_options` added.

    Args:
        args: the command line.
        formats: of the targets; the first is the default.
        beside: where the file is that is written with a target and tells where it comes from.
        beside_inputs: where an input's own such file is.

    Raises:
        UsageError: the inputs and -o do not fit together.
    """
    if args.output and not args.format:
        args.format = next((suffix for suffix in formats[1:] if args.output.endswith(f".{suffix}")), formats[0])
    suffix = args.format or formats[0]
    found = [default_target(path, suffix) for path in args.checkpoints]
    if args.output:
        output = Path(args.output)
        if output.is_dir() or args.output.endswith(("/", "\\")):
            found = [output / target.name for target in found]
        elif len(found) > 1:
            raise UsageError(f"-o {output} is one file for {len(found)} inputs: give a folder")
        elif output.suffix != f".{suffix}":
            raise UsageError(f"-o {output} must end in .{suffix}, or be a folder that exists or ends in /")
        else:
            found = [output]
    keys = set()
    for target in found:
        if file_key(target) in keys:
            raise UsageError(f"two inputs would both be written to {target}: convert them one at a time with -o")
        keys.add(file_key(target))
        written = (target, sidecar_path(target), origin_path(target))
        if args.report and file_key(args.report) in map(file_key, written):
            raise UsageError(f"--report {args.report} is where {target} or its origin is kept: give another name")
    clash = overlap(
        # A Paddle file given to torch2paddle is its own default target: reading it says what it is.
        [
            file
            for path, target in zip(args.checkpoints, found)
            if args.output or target != path
            for file in (target, beside(target))
        ],
        # A file without a usual suffix has its origin's name in common with its target's sidecar.
        [
            file
            for path in args.checkpoints
            for file in (path, beside_inputs(path))
            if file is path or os.path.lexists(file)
        ],
    )
    if clash:
        raise UsageError(f"{clash} with -o")
    return found


def default_target(path: Path, suffix: str) -> Path:
    """Next to the input, without the suffixes of PyTorch, archives and indexes: ``a.pth.tar.gz`` -> ``a.pdparams``."""
    name = _PACKED.sub("", path.name)
    ending = next((ending for ending in _SUFFIXES if name.lower().endswith(ending) and name.lower() != ending), "")
    return path.with_name(name[: len(name) - len(ending)] + f".{suffix}")


def refuse_written(outputs: Sequence[Path], number: int) -> None:
    """See that the target of one input is not what another was converted to, as on disks that fold names' case.

    Raises:
        WeightsError: it is.
    """
    if file_key(outputs[number]) in map(file_key, outputs[:number]):
        raise WeightsError(
            f"{outputs[number]} is a file that another input has been converted to: convert this one alone with -o"
        )


def convert_each(args: argparse.Namespace, framework: Framework, formats: Sequence[str]) -> int:
    """Convert every file that the command line names, from PyTorch or from Paddle; returns the exit status."""
    beside = (sidecar_path, origin_path)
    outputs = targets(args, formats, *(beside if framework == "pytorch" else reversed(beside)))
    said = read_options(args, options.Options)

    def work(number: int, result: Result) -> int:
        refuse_written(outputs, number)
        # Read first: a bad file is told of before Paddle is loaded, which takes seconds.
        file = open_weights(args.checkpoints[number], framework, said.ema, ("sha256",), said.key)
        if said.network:
            return convert_own(file, outputs[number], said, result, args.json)
        with importing():
            from convert.conversion import convert_back, convert_checkpoint
        convert = convert_checkpoint if framework == "pytorch" else convert_back
        tell_conversion(convert(file, outputs[number], said, result), args.json)
        return OK

    return for_each(args.checkpoints, work, {"output": None} if args.json else None, said.report, said.force)


def convert_own(file: WeightsFile, output: Path, said: options.Options, result: Result, as_json: bool) -> int:
    """Convert a file for the user's own network, or propose where its tensors go; returns the exit status."""
    with importing():
        from convert.any_network import convert_file, propose
    if said.propose is None:
        tell_conversion(convert_file(file, output, said, result), as_json)
        return OK
    pairing = propose(file, said)
    print(f"{printable(str(file.path))}: wrote {printable(str(said.propose))}: {pairing.summary}")
    return OK


def for_each(
    paths: Sequence[Path],
    work: Callable[[int, Result], int],
    failure: dict[str, Any] | None,
    report: Path | None = None,
    force: bool = False,
) -> int:
    """Do one file after the other; a bad one does not stop the others.

    Args:
        paths: the files.
        work: does the file of this number, tells of it and fills in its result, and returns its exit status.
        failure: what is printed as JSON of a bad file, beside its name and the error; None to print nothing.
        report: the report to write of all of them, bad ones included.
        force: overwrite an existing report.

    Returns:
        The worst exit status.
    """
    from tqdm import tqdm

    status, results = OK, [Result(str(path)) for path in paths]
    try:
        check_report(report, force)
    except (WeightsError, ImportError) as error:
        complain(error)
        return FAILED
    # disable=None: a bar for a terminal, nothing for a file or a pipe.
    quiet = None if len(paths) > 1 else True
    with signals_waiting():  # for the bar starts a thread
        bar = tqdm(paths, unit="file", file=sys.stderr, disable=quiet)
    for number, path in enumerate(bar):
        try:
            with enough_memory(path):
                status = max(status, work(number, results[number]))
        except (OSError, ValueError) as error:
            if is_of_output(error):
                raise
            status = max(status, FAILED if isinstance(error, (WeightsError, OSError)) else USAGE)
            results[number].error = str(error)
            if failure is not None:
                print(json.dumps({"input": str(path), **failure, "verified": False, "error": str(error)}))
            complain(error if str(path) in str(error) else f"{path}: {error}")
    try:
        write_report(report, results)
    except WeightsError as error:
        status = max(status, FAILED)
        complain(error)
    return status


def tell_conversion(result: Result, as_json: bool) -> None:
    """Print what became of one input: two lines, three for a large file, or, for programs, one JSON object."""
    tell_warnings(result.input, result.warnings)
    if as_json:
        print(json.dumps(result.conversion()))
        return
    files = printable(f"{result.input} -> {result.output}")
    print(f"{files}: {result.arch}, {result.params:,} parameters, {result.seconds:.1f} s")
    print(f"  {printable(_verdict(result))}")
    if result.size and result.size_of_indices >= _WORTH_SAVING:
        indices, rest = result.size_of_indices / 1e6, (result.size - result.size_of_indices) / 1e6
        print(
            f"  {indices:.1f} MB of {indices + rest:.1f} MB are SFR's indices, matrices of 0 and 1: --compact writes a "
            f"file of {rest:.1f} MB, which only paddle_dense reads"
        )


def _verdict(result: Result) -> str:
    """What was compared with what, how far they agree, and on which assumptions."""
    if not (result.verified and result.parity):
        return "not checked against PyTorch"
    assumed = ", ".join(f"{key}={value}" for key, value in result.assumed.items())
    verified = f"verified WITH ASSUMPTIONS ({assumed})" if assumed else "verified"
    against = "its twin in PyTorch" if result.checked_against == OWN_TWIN else result.checked_against
    what = result.parity.what
    top1 = f", top-1 on {result.top1_agreement:.0%} of the inputs" if what == "logits" else ""
    return f"{verified} against {against}: the {what} agree to {result.max_rel_diff:.1e} of their scale{top1}"


def tell_warnings(path: str, warnings: Sequence[str]) -> None:
    """Print what the user should know of a file on stderr, a line each."""
    for warning in warnings:
        warn(f"{path}: {warning}")
