"""What ``MODULE:FUNCTION`` on a command line names: the user's own code, which runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Callable


def call(option: str, name: str, returns: str) -> Any:
    """What the user's function returns, called without arguments.

    Args:
        option: the option that names it, for messages.
        name: ``MODULE:FUNCTION``; the module is looked for in the current folder first.
        returns: what the function should return, in words.

    Raises:
        ValueError: the module cannot be imported, has no such function, or that raises something.
    """
    with _own_code(option, name, f"a function without arguments that returns {returns}"):
        return _found(name)()


def function(option: str, name: str, what: str) -> Callable[..., Any]:
    """The user's function itself.

    Args:
        option: the option that names it, for messages.
        name: ``MODULE:FUNCTION``; the module is looked for in the current folder first.
        what: the function in words, from the article on.

    Raises:
        ValueError: the module cannot be imported or has no such function.
    """
    with _own_code(option, name, what):
        return _found(name)


def _found(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not callable(found):
        raise TypeError(f"{attribute} is no function")
    return found


@contextmanager
def _own_code(option: str, name: str, what: str) -> Iterator[None]:
    """The current folder's modules can be imported, and what they print goes to stderr."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:  # the user's code may raise anything
        raise ValueError(
            f"{option} {name} could not be built ({type(error).__name__}: {error}): name a module and {what}"
        ) from error
    finally:
        sys.path.pop(0)
