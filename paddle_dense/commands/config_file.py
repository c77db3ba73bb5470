"""YAML files with the options of a command: read as if they stood on the command line, and written next to a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from paddle_dense.errors import WeightsError, naming, shown
from paddle_dense.files.atomic import PathLike, atomic_write
from paddle_dense.files.weights import read_bounded

_LARGEST = 1 << 20  # bytes


def read_options(path: PathLike, parser: argparse.ArgumentParser) -> list[str]:
    """The options that a YAML file has, as a command line has them.

    Args:
        path: a mapping of the options' names, without ``--``, to their values. A list or mapping is written as it
            stands there or as on the command line.
        parser: which options there are.

    Raises:
        WeightsError: the file cannot be read, is no such mapping, or has what is no option.
        ImportError: PyYAML is not installed.
    """
    with naming(path):
        options = _parsed(read_bounded(path, _LARGEST))
        known = {string: action for action in parser._actions for string in action.option_strings}
        arguments = []
        for name, value in options.items():
            option = f"--{str(name).replace('_', '-')}"
            if option not in known or option in ("--help", "--config-file"):
                raise WeightsError(f"has {shown(name)}, which is no option of this command: see --help")
            if known[option].nargs == 0:
                if not isinstance(value, bool):
                    raise WeightsError(f"has {shown(value)} for {name}: give true or false")
                arguments += [option] if value else []
            elif value is not None:
                arguments.append(f"{option}={_text(name, value)}")
        return arguments


def write_options(path: PathLike, options: Mapping[str, Any]) -> None:
    """Write a file for `read_options`, whole or not at all."""
    # What JSON writes is YAML as well.
    lines = [f"{name.replace('_', '-')}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in options.items()]
    with atomic_write(path) as file:
        file.write("".join(lines).encode())


def _parsed(content: bytes) -> dict[Any, Any]:
    try:
        yaml = import_module("yaml")
    except ImportError:
        raise ImportError("a file of options needs PyYAML: pip install pyyaml") from None
    try:
        options = yaml.safe_load(content.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise WeightsError(f"is no YAML ({' '.join(str(error).split())[:200]}): correct it") from None
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise WeightsError("is no mapping of options to their values: write a line NAME: VALUE for each option")
    return options


def _text(name: object, value: object) -> str:
    """A value as it stands on the command line."""
    if isinstance(value, dict):
        return ",".join(f"{key}={_plain(name, one, '-')}" for key, one in value.items())
    return _plain(name, value, ",")


def _plain(name: object, value: object, between: str) -> str:
    if isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
        return between.join(map(str, value))
    if value is None or isinstance(value, (str, int, float)):
        return str(value)
    raise WeightsError(f"has a {type(value).__name__} for {shown(name)}: write it as on the command line")
