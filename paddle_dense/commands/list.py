"""The command ``python -m paddle_dense list``: every preset, its size, and the weights that are released for it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

from paddle_dense.cli import Parser, program, run
from paddle_dense.errors import WeightsError
from paddle_dense.pretrained import manifest
from paddle_dense.process import OK

if TYPE_CHECKING:
    from paddle_dense.models.network import Preset, Size

# The CondenseNets' papers count activations and pooling with the products; everybody else counts the products.
COUNT_EVERYTHING = ("CondenseNet", "CondenseNetV2")


def catalogue(pattern: str = "*") -> list[dict[str, Any]]:
    """The presets that match a shell pattern, family by family.

    Args:
        pattern: for example ``"cdnv2*"``.

    Returns:
        One dict for each: `name`, `family` (the network's class), `params`, `macs` (as the family's paper counts),
        `executed_macs`, `input_size` (pixels), `note` (published figures) and `pretrained`: framework, file, source and
        note of every released checkpoint.
    """
    from paddle_dense.models import presets

    return [_entry(preset) for preset in presets() if fnmatchcase(preset.name, pattern)]


def released_catalogue(pattern: str = "*") -> list[dict[str, Any]]:
    """The sets of weights that ``pretrained=True`` or `paddle-dense pull` downloads, of the presets that match.

    Returns:
        One dict for each: `name` with its tag, `default` (whether ``pretrained=True`` takes it), `top1_error` (percent,
        as published), `megabytes` (of the weights in float32), `source` and `cached`.
    """
    from paddle_dense.models import presets
    from paddle_dense.pretrained import sources
    from paddle_dense.released import is_cached, released_names

    found = []
    for preset in presets():
        for name in released_names(preset.name):
            if not (fnmatchcase(name, pattern) or fnmatchcase(preset.name, pattern)):
                continue
            first = sources(name)[0]
            found.append(
                {
                    "name": name,
                    "default": name == released_names(preset.name)[0],
                    "top1_error": first["top1_error"],
                    "megabytes": round((preset.size or measured(preset)).params * 4 / 1e6, 1),
                    "source": first["source"],
                    "cached": is_cached(name),
                }
            )
    return found


def measured(preset: Preset) -> Size:
    """The exact size of a preset, which takes some seconds."""
    from paddle_dense.models.network import Size
    from paddle_dense.profiling import profile

    size = profile(preset.build({}))
    return Size(size.params, size.macs, size.executed_macs)


def _entry(preset: Preset) -> dict[str, Any]:
    params, macs, executed = preset.size or measured(preset)
    family = preset.network.__name__
    return {
        "name": preset.name,
        "family": family,
        "params": params,
        "macs": macs if family in COUNT_EVERYTHING else executed,
        "executed_macs": executed,
        "input_size": preset.preprocessing.input_size,
        "note": preset.note,
        "pretrained": [
            {key: entry[key] for key in ("framework", "file", "source", "note")}
            for entry in manifest()
            if entry["name"] == preset.name
        ],
    }


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("list", "paddle_dense list"),
        description="List the presets: parameters, multiply-accumulates as the family's paper counts them, side of the "
        "images, and the frameworks in whose format weights are released.",
        epilog="Exit status: 0 done, 1 no preset matches, 2 wrong usage.",
    )
    add = command.add_argument
    add("pattern", nargs="?", default="*", metavar="PATTERN", help="only names that match, such as 'cdnv2*'")
    add("--pretrained", action="store_true", help="list the weights that can be downloaded instead, set by set")
    add("--json", action="store_true", help="print one JSON object for each preset")
    return command


def _run(args: argparse.Namespace) -> int:
    entries = released_catalogue(args.pattern) if args.pretrained else catalogue(args.pattern)
    if not entries:
        what = "no released weights match" if args.pretrained else "no preset matches"
        raise WeightsError(f"{what} {args.pattern!r}: leave the pattern out to see all of them")
    if args.json:
        for entry in entries:
            print(json.dumps(entry))
    elif args.pretrained:
        _print_released(entries)
    else:
        _print_presets(entries)
    return OK


def _print_released(entries: Sequence[Mapping[str, Any]]) -> None:
    print(f"  {'name':<34}{'top-1 error':>12}{'size':>11}  {'cached':<8}source")
    for entry in entries:
        error = "-" if entry["top1_error"] is None else f"{entry['top1_error']:.2f} %"
        mark, cached = "*" if entry["default"] else " ", "yes" if entry["cached"] else "no"
        print(f"{mark} {entry['name']:<34}{error:>12}{entry['megabytes']:>8.1f} MB  {cached:<8}{entry['source']}")
    print("* is what pretrained=True takes")


def _print_presets(entries: Sequence[Mapping[str, Any]]) -> None:
    print(f"{'name':<26}{'family':<22}{'parameters':>12}{'MACs':>12}{'pixels':>8}  released for")
    for entry in entries:
        frameworks = ", ".join(dict.fromkeys(released["framework"] for released in entry["pretrained"]))
        print(
            f"{entry['name']:<26}{entry['family']:<22}{entry['params']:>12,}{entry['macs'] / 1e6:>10,.1f} M"
            f"{entry['input_size']:>8}  {frameworks or '-'}"
        )


main = partial(run, parser, _run)
