"""The command ``python -m paddle_dense info``: what a file of weights is, read without running anything in it."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_dense.cli import Parser, program, run
from paddle_dense.errors import WeightsError, enough_memory, naming, printable, shown
from paddle_dense.files.names import AVERAGED, pytorch_sign
from paddle_dense.files.sidecar import described_network, in_one_moment, told_of
from paddle_dense.files.weights import PYTORCH_MAGIC, ZIP_MAGIC, is_safetensors, read_file, read_metadata, read_weights
from paddle_dense.pretrained import manifest
from paddle_dense.process import FAILED, OK, complain

if TYPE_CHECKING:
    from paddle import nn

    from paddle_dense.files.torch_file import Checkpoint
    from paddle_dense.models.recognise import Architecture

_HEAD = 32  # bytes from the beginning that tell one format from another
_PLAIN = re.compile(r"[\w.+/ -]{1,80}", re.ASCII)
_LINES, _LONGEST_LINE = 40, 500  # of what a sidecar or header says


@dataclass(frozen=True)
class Info:
    """What a file of weights is; the fields of ``--json``.

    Attributes:
        file: its path.
        format: how it is written, in words.
        bytes: its size.
        sha256: of the file.
        container: where in the file the tensors were, such as "state_dict_ema"; None in a Paddle file.
        averaged: whether these are averaged weights (EMA).
        tensors: how many there are.
        numbers: how many they hold together.
        arch: preset, or the network's class where no preset has these numbers; None for a network of another package.
        network: the network's class.
        config: the network's arguments.
        condensed: in the condensed form, or in the trained one; None for a network that has no such forms.
        connections: share of the learned layers' connections that are left, in the trained form.
        condensable: whether `condense` takes it, in the trained form.
        params, macs, executed_macs: as `paddle_dense.profile` counts, for a picture of `input_size`.
        input_size: side of the pictures in pixels.
        released: names and sources of the released checkpoints that this file is, by its hash.
        sidecar: where it came from, as the file ``NAME.json`` beside it tells.
        metadata: the texts in the header of a .safetensors file.
        warnings: what the user should know, one sentence each.
    """

    file: str
    format: str
    bytes: int
    sha256: str
    container: str | None
    averaged: bool
    tensors: int
    numbers: int
    arch: str | None = None
    network: str | None = None
    config: Mapping[str, Any] | None = None
    condensed: bool | None = None
    connections: float | None = None
    condensable: bool | None = None
    params: int | None = None
    macs: int | None = None
    executed_macs: int | None = None
    input_size: int | None = None
    released: Sequence[Mapping[str, Any]] = ()
    sidecar: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] | None = None
    warnings: Sequence[str] = ()


def describe_weights(path: Path) -> Info:
    """Find out what a PyTorch or Paddle file of weights is.

    Args:
        path: ``.pth``, ``.pth.tar``, ``.pt``, ``.safetensors`` or ``.pdparams``; its content decides.

    Raises:
        WeightsError: the file cannot be read.
    """
    files: list[tuple[dict[str, np.ndarray], Info, Checkpoint | None]] = []

    def read() -> dict[str, Any] | None:
        files.clear()  # before memory is needed for it again
        files.append(_read(path))
        [(state, info, _)] = files
        return told_of(path, state) if info.container is None else None

    described, sidecar, faults = None, None, []
    try:
        told = in_one_moment(path, read)
        described, sidecar = described_network(path, told), _provenance(told) if told else None
    except WeightsError as error:
        if not files:
            raise
        faults.append(str(error))
    state, info, checkpoint = files.pop()
    info, notes = replace(info, sidecar=sidecar), [*info.warnings, *faults]
    from paddle_dense.models.recognise import canonical

    try:
        state = canonical(state)
        if info.container is not None:
            from paddle_dense.files.layout import to_paddle

            state = to_paddle(state)
        found = _architecture(state, described, notes)
        info = _with_network(info, state, found, notes, checkpoint)
    except (WeightsError, ValueError) as error:
        notes.append(str(error))
    return replace(info, warnings=notes)


def _read(path: Path) -> tuple[dict[str, np.ndarray], Info, Checkpoint | None]:
    """The tensors under the file's own names, what can be said of any file, and what PyTorch's reader said of its."""
    with naming(path):
        content = read_file(path)
    magic, head = PYTORCH_MAGIC.to_bytes(10, "little"), bytes(content[:_HEAD])
    metadata = read_metadata(path, content)
    container, warnings, checkpoint = None, [], None
    if is_safetensors(content):
        format, state = "safetensors", read_weights(path, content)
        if pytorch_sign(state, metadata):
            format, container = "safetensors, from PyTorch", "bare"
    elif head[:1] == b"\x80" and magic not in head:
        format, state = "pdparams", read_weights(path, content)
    else:
        format = "PyTorch" if head[:4] == ZIP_MAGIC else "PyTorch, before 1.6"
    if "PyTorch" in format:
        from paddle_dense.files.torch_file import read_checkpoint

        checkpoint = read_checkpoint(path, content=content)
        state, container, warnings = checkpoint.state, checkpoint.container, checkpoint.warnings
    digests = {name: hashlib.new(name, content, usedforsecurity=False).hexdigest() for name in ("sha256", "md5")}
    info = Info(
        file=str(path),
        format=format,
        bytes=len(content),
        sha256=digests["sha256"],
        container=container,
        averaged=bool(container and AVERAGED.search(container)),
        tensors=len(state),
        numbers=sum(value.size for value in state.values()),
        released=[entry for entry in manifest() if _is_released(entry, digests)],
        metadata=metadata or None,
        warnings=warnings,
    )
    return state, info, checkpoint


def _is_released(entry: Mapping[str, Any], digests: Mapping[str, str]) -> bool:
    prefix = entry.get("sha256") or entry.get("sha256_prefix")
    return digests["sha256"].startswith(prefix) if prefix else entry.get("md5") == digests["md5"]


def _provenance(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a sidecar tells beside the network and the checks on itself, without the long lists of names."""
    kept = {
        key: value
        for key, value in told.items()
        if key not in ("arch", "config", "params", "tensors_sha256", "previous")
    }
    source = kept.get("source")
    if isinstance(source, dict):
        kept["source"] = {key: value for key, value in source.items() if not isinstance(value, (dict, list))}
    return kept


# The network


def _architecture(
    state: Mapping[str, np.ndarray], described: tuple[str, dict[str, Any]] | None, notes: list[str]
) -> Architecture:
    """What the sidecar describes, if the tensors are those of such a network, or else what the tensors show."""
    from paddle_dense.layers.budget import Room
    from paddle_dense.models.fitting import check_state
    from paddle_dense.models.network import network_class
    from paddle_dense.models.recognise import Architecture, recognise

    if described:
        try:
            arch, config = described
            found = Architecture(arch, network_class(arch), config, room=Room.of(state))
            check_state(state, found.outline())
            return found
        except ValueError as error:
            notes.append(f"the sidecar .json describes another network: {error}")
    found = recognise(state)
    notes += found.warnings
    return found


def _with_network(
    info: Info,
    state: Mapping[str, np.ndarray],
    found: Architecture,
    notes: list[str],
    checkpoint: Checkpoint | None,
) -> Info:
    """Add what network it is and, if the tensors are all of such a network's, its size."""
    from paddle_dense.cost import affordable
    from paddle_dense.models.fitting import check_state
    from paddle_dense.models.recognise import give_memory
    from paddle_dense.profiling import profile

    info = replace(info, arch=found.arch, network=found.network.__name__, config=found.config)
    info = replace(info, condensed=found.config.get("condensed"))
    try:
        if info.condensed is False:
            info = _with_connections(info, state, found, notes)
        outline = found.outline()
        check_state(state, outline)
        if checkpoint and checkpoint.layers:
            notes += _stated_otherwise(checkpoint, found, outline)
        model = give_memory(outline)
    except (WeightsError, ValueError) as error:
        notes.append(str(error))
        return info
    info = replace(info, config=model.config)
    try:
        with affordable(model, "its MACs are not counted"):
            size = profile(model)
    except WeightsError as error:
        notes.append(str(error))
        return info
    except MemoryError:
        raise
    except Exception:  # whatever Paddle raises for a stride, say, that no tensor shows and no network has
        notes.append(f"the network does not run on {model.input_size} x {model.input_size} pixels: mend its numbers")
        return info
    return replace(
        info,
        params=size.params,
        macs=size.macs,
        executed_macs=size.executed_macs,
        input_size=model.input_size,
    )


def _stated_otherwise(checkpoint: Checkpoint, found: Architecture, outline: nn.Layer) -> list[str]:
    """What a whole pickled module states that this network does not compute, and what it leaves open."""
    from paddle_dense.models.stated import compare, remedy

    file = (checkpoint.layers, checkpoint.around, checkpoint.state)
    compared = compare(*file, outline)
    fault = compared.fault(found.arch)
    if not fault:
        return compared.warnings()
    option = remedy(*file, found, {})
    advice = f"convert it with {option}" if option else f"it is another network than {found.arch}"
    return [f"the file {fault}: {advice}"]


def _with_connections(info: Info, state: Mapping[str, np.ndarray], found: Architecture, notes: list[str]) -> Info:
    """Add how far a network in the trained form has been condensed."""
    from paddle_dense.condensing import condense_state
    from paddle_dense.layers.choices import binary_mask, learned_layers

    masks = [binary_mask(state[f"{layer}._mask"], layer) for layer in learned_layers(state)]
    info = replace(info, connections=sum(int(m.sum()) for m in masks) / max(sum(m.size for m in masks), 1))
    try:
        condense_state(state, lambda layer: found.network.condensing(layer, found.config))
    except WeightsError as error:
        notes.append(str(error))
        return replace(info, condensable=False)
    return replace(info, condensable=True)


# The command


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("info", "paddle_dense info"),
        description="Say what files of weights are: network and numbers, form, size, where they come from. PyTorch is "
        "not needed, and nothing in a file is executed.",
        epilog="Exit status: 0 every file could be read, 1 one could not, 2 wrong usage.",
    )
    add = command.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help=".pth, .pth.tar, .pt, .safetensors or .pdparams")
    add("--json", action="store_true", help="print one JSON object for each file")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run(parser, _run, arguments)


def _run(args: argparse.Namespace) -> int:
    status = OK
    for path in args.files:
        try:
            with enough_memory(path):
                info = describe_weights(path)
        except (WeightsError, OSError) as error:
            status = FAILED
            if args.json:
                print(json.dumps({"file": str(path), "error": str(error)}))
            complain(error)
            continue
        # JSON in ASCII, since a terminal would obey some of what stands beyond it.
        print(json.dumps(asdict(info)) if args.json else report(info))
    return status


def report(info: Info) -> str:
    """The description as lines of text, safe for a terminal whatever the file holds."""
    lines = [f"{info.file}: {info.format}, {info.bytes / 1e6:.1f} MB"]

    def add(label: str, text: str) -> None:
        lines.append(f"  {label:<12}{text}")

    if info.arch:
        forms = {True: ", condensed form", False: ", trained form", None: ""}
        network = "" if info.arch == info.network else f" ({info.network})"
        add("network", f"{info.arch}{network}{forms[info.condensed]}")
        numbers = ", ".join(f"{key}={_value(value)}" for key, value in (info.config or {}).items() if value is not None)
        lines.extend(textwrap.wrap(numbers, 106, initial_indent="  numbers     ", subsequent_indent=" " * 14))
    if info.connections is not None:
        can = "can be condensed" if info.condensable else "cannot be condensed"
        add("connections", f"{info.connections:.1%} are left, {can}")
    if info.params is not None and info.macs is not None and info.executed_macs is not None:
        add("parameters", f"{info.params:,}" + (" once condensed" if info.condensed is False else ""))
        add(
            "MACs",
            f"{info.macs / 1e6:,.1f} M as the papers count, {info.executed_macs / 1e6:,.1f} M executed, for "
            f"{info.input_size} x {info.input_size} pixels",
        )
    place = f", in {shown(info.container)}" if info.container not in (None, "bare", "module") else ""
    averaged = ", averaged (EMA)" if info.averaged else ""
    add("tensors", f"{info.tensors:,} with {info.numbers:,} numbers{place}{averaged}")
    for entry in info.released:
        add("released", f"{entry['name']} from {entry['source']}: {entry['note']}")
    for label, told in (("sidecar", info.sidecar), ("header", info.metadata)):
        for key, value in _told_lines(told or {}):
            add(label, f"{key}: {value}")
    add("sha256", info.sha256)
    for warning in info.warnings:
        add("note", warning)
    return "\n".join(map(printable, lines))


def _told_lines(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a file tells of itself, one line for each entry."""
    lines = []
    for key, value in told.items():
        if isinstance(value, dict):
            value = [", ".join(f"{_value(name)} {_value(part)}" for name, part in value.items() if part is not None)]
        elif not isinstance(value, list):
            value = [_value(value)]
        lines += [(_value(key), item if isinstance(item, str) else _value(item)) for item in value]
    return [(key, text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}...") for key, text in lines[:_LINES]]


def _value(value: object) -> str:
    """An argument as ``--config`` takes it; a text from a file quoted, unless it is a plain word."""
    if isinstance(value, (list, tuple)):
        return "-".join(_value(item) for item in value[:100])
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else shown(value)
