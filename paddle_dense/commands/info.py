"""The command ``python -m paddle_dense info``: what a file of weights is, read without running anything in it."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_dense.cli import Parser, program, run
from paddle_dense.errors import WeightsError, enough_memory, listed, printable, shown
from paddle_dense.files.opened import open_weights
from paddle_dense.process import FAILED, OK, complain, importing

if TYPE_CHECKING:
    from paddle_dense.commands.description import Info

HASHES = ("sha256", "md5")
_PLAIN = re.compile(r"[\w.+/ -]{1,80}", re.ASCII)
_LINES, _LONGEST_LINE = 40, 500  # of what a sidecar or header says


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("info", "paddle_dense info"),
        description="Describe weight files: network and hyperparameters, form, size, where they come from. PyTorch is "
        "not needed, and nothing in a file is executed.",
        epilog="Exit status: 0 every file could be read, 1 one could not, 2 wrong usage.",
    )
    add = command.add_argument
    formats = ".pth, .pth.tar, .pt, .safetensors, .index.json or .pdparams"
    add("files", nargs="+", type=Path, metavar="FILE", help=formats)
    add("--json", action="store_true", help="print one JSON object for each file")
    return command


def _run(args: argparse.Namespace) -> int:
    status = OK
    for path in args.files:
        try:
            with enough_memory(path):
                file = open_weights(path, hashes=HASHES)
                with importing():
                    from paddle_dense.commands.description import describe_weights
                info = describe_weights(file)
        except (WeightsError, OSError) as error:
            status = FAILED
            if args.json:
                print(json.dumps({"file": str(path), "error": str(error)}))
            complain(error)
            continue
        # JSON in ASCII, since a terminal would obey some of what stands beyond it.
        print(json.dumps(asdict(info)) if args.json else report(info))
    return status


main = partial(run, parser, _run)


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
    averaged = ", EMA weights" if info.averaged else ""
    add("tensors", f"{info.tensors:,} with {info.numbers:,} numbers{place}{averaged}")
    if len(info.sets) > 1:
        add("other sets", f"{listed(map(shown, info.sets[1:]))} (torch2paddle --key NAME takes another)")
    for entry in info.released:
        add("released", f"{entry['name']} from {entry['source']}: {entry['note']}")
    for label, entries in (("sidecar", info.sidecar), ("header", info.metadata)):
        for key, value in _entry_lines(entries or {}):
            add(label, f"{key}: {value}")
    add("sha256", info.sha256)
    for warning in info.warnings:
        add("note", warning)
    return "\n".join(map(printable, lines))


def _entry_lines(entries: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a file says of itself, one line for each entry."""
    lines = []
    for key, value in entries.items():
        if key == "classes" and isinstance(value, list):
            value = [listed(_value(name) for name in value)]
        elif isinstance(value, dict):
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
