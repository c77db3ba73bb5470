"""What can be wrong with a weight file, always said in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

AGAIN = "download or copy it again"
DAMAGED = f"so the file is damaged: {AGAIN}"


class WeightsError(ValueError):
    """A weight file cannot be used: the message names the file or tensor, what was found, and what to do."""


class DataError(WeightsError):
    """Images cannot be used: the message names the file or folder, what was found, and what to do."""


class HostileFileError(WeightsError):
    """A weight file asks to run code that no weights need."""


@contextmanager
def naming(what: str | os.PathLike, colon: str = ":") -> Iterator[None]:
    """Puts a file's name, or without a colon that of a part, before the message of any WeightsError of the block."""
    try:
        yield
    except WeightsError as error:
        raise type(error)(f"{os.fspath(what)}{colon} {error}") from error.__cause__


@contextmanager
def enough_memory(path: object) -> Iterator[None]:
    """Makes a WeightsError of whatever Python, NumPy, Paddle and PyTorch say in the block when there is no memory left.

    Args:
        path: of the file whose work it is.
    """
    try:
        yield
    except Exception as error:
        if not is_of_memory(error):
            raise
        raise WeightsError(
            f"{path} needs more memory than is free: end other programs, or go to a machine with more"
        ) from error


def is_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was made of, says that memory is missing."""
    while error is not None:
        if isinstance(error, MemoryError) or (
            isinstance(error, (RuntimeError, ImportError, OSError)) and any(said in str(error) for said in _NO_MEMORY)
        ):
            return True
        error = error.__cause__
    return False


# What is said of it: by Paddle, by C++, by PyTorch, by systems, by the loader of libraries, by Python of threads.
_NO_MEMORY = (
    "ResourceExhausted",
    "bad_alloc",
    "DefaultCPUAllocator",
    "annot allocate memory",
    "failed to map segment",
    "can't start new thread",
)


def shown(name: object, limit: int = 80) -> str:
    """A name from a file as a message may print it: quoted, escaped, shortened."""
    if isinstance(name, (str, bytes)) and len(name) > limit:
        return f"{name[:limit]!r}... ({len(name)} characters)"
    if isinstance(name, (str, bytes, int, float, type(None))):
        return repr(name)
    return f"a {type(name).__name__}"  # its repr could be without end


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What somebody may have meant by a name that is none, in brackets, with a space before it; "" for no idea.

    Args:
        name: what was given.
        known: the names that there are.
    """
    known = list(known)
    elsewhere = _ELSEWHERE.get(name)
    nearest = [elsewhere] if elsewhere in known else get_close_matches(name, known, 1, 0.75)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


# What other libraries call an argument that networks here have.
_ELSEWHERE = {
    **dict.fromkeys(("in_chans", "in_channel", "input_channels", "num_input_channels", "channels"), "in_channels"),
    **dict.fromkeys(("class_num", "class_dim", "num_class", "n_classes", "nclass", "classes"), "num_classes"),
    "drop_rate": "dropout_rate",
}


def listed(names: Iterable[str]) -> str:
    """Names as a message lists them: the first eight, and how many there are more."""
    names = list(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def printable(text: object) -> str:
    """The text on one line, with whatever does not print as an escape: control characters, direction marks and so on.

    No terminal takes anything in it for a command, and no reader sees something else than what is there.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
