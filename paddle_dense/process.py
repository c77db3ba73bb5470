"""How a command lives in its process: signals, loading Paddle, what it says on stderr, how it ends."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial, wraps
from typing import Any, Callable, NoReturn

from paddle_dense.environment import set_cpu_environment
from paddle_dense.errors import is_of_memory, printable

OK, FAILED, USAGE = 0, 1, 2
STOPPED = 128  # and the signal's number, as shells have it: 130 for SIGINT (Ctrl-C), 143 for SIGTERM
UNREAD = STOPPED + 13  # as if by SIGPIPE, which Python ignores
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_end: Callable[[int], NoReturn] | None = None  # how a signal ends a process that does nothing but a command
_signals: _Signals | None = None  # those that have come to it


class Stopped(KeyboardInterrupt):
    """Work that is given up because a signal, its argument, has come; the handler may only have made a note of it."""


def complain(message: object, kind: str = "error") -> None:
    """Print an error as one line on stderr, in which nothing that a file says moves the cursor."""
    print(f"{kind}: {printable(' '.join(str(message).split()))}", file=sys.stderr)


warn = partial(complain, kind="warning")


def stoppable(main: Callable[..., int]) -> Callable[..., int]:
    """A command's main that SIGINT and SIGTERM end as errors do: cleaned up, one line on stderr, status 130 or 143."""

    def stop(number: int, frame: object) -> NoReturn:
        if _end is not None and not _uninterrupted:
            _end(number)
        raise KeyboardInterrupt(number)

    @wraps(main)
    def stopping(*arguments: Any) -> int:
        if threading.current_thread() is not threading.main_thread():
            return main(*arguments)  # others get no signals
        with handling_signals(stop):
            try:
                return main(*arguments)
            except KeyboardInterrupt as stopped:
                number = stopped.args[0] if stopped.args else signal.SIGINT
                complain(_stopped_by(number))
                return STOPPED + number

    return stopping


@contextmanager
def handling_signals(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """SIGINT and SIGTERM call this inside; the handlers of before are put back afterwards."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def importing() -> Iterator[None]:
    """Import Paddle and PyTorch inside: faster, as nobody looks for garbage among a million objects that stay.

    Signals wait meanwhile: neither framework survives an exception there, and Paddle takes SIGTERM for itself. So
    whatever started a thread before must have done so in :func:`signals_waiting`: they would reach Paddle through it.

    Raises:
        ImportError: Paddle is there and cannot be imported.
    """
    enabled = gc.isenabled()
    gc.disable()
    with signals_waiting():
        try:
            yield
        except Exception as error:  # a wrong build may raise anything
            if not _is_of_paddle(error) or is_of_memory(error):
                raise
            reason = " ".join(str(error).split()) or "nothing said why"
            raise ImportError(
                f"PaddlePaddle is installed but cannot be imported ({type(error).__name__}: {reason}): install it again"
            ) from error
        finally:
            if enabled:
                gc.enable()
            keep_signals()


def _is_of_paddle(error: Exception) -> bool:
    """Whether an exception came out of Paddle while it was imported: afterwards it is among the modules."""
    if "paddle" in sys.modules:
        return False
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(str(name).partition(".")[0] == "paddle" for name in modules)


@contextmanager
def signals_waiting() -> Iterator[None]:
    """Signals wait until the end of the block; those threads that start inside never take one."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Signals:
    """Which signals have come to this process, known before Python's handlers run: they wait for C++ to return.

    Python writes the number of each into a socket at once, wherever the process is. Copies of it, such as those that
    prepare images, can look there too; only the process itself takes the numbers out, and so makes room for others.
    """

    def __init__(self) -> None:
        self.process, self.seen = os.getpid(), 0
        self.reader, self.writer = socket.socketpair()
        for end in (self.reader, self.writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)

    def stop(self) -> int:
        """The first of `SIGNALS` that has come, or 0."""
        with suppress(BlockingIOError):  # none has
            numbers = self.reader.recv(4096, 0 if os.getpid() == self.process else socket.MSG_PEEK)
            self.seen = self.seen or next((number for number in numbers if number in SIGNALS), 0)
        return self.seen


def stop_if_asked() -> None:
    """Give up what takes long if SIGINT or SIGTERM has come to the command, in copies of its process as well.

    Nothing happens where the process does something else than a command.

    Raises:
        Stopped: with the signal's number.
    """
    number = _signals.stop() if _signals else 0
    if number:
        raise Stopped(number)


def load_paddle() -> None:
    """Import Paddle in the environment that suits the processor, without its remark that there are several threads."""
    if "paddle" not in sys.modules:
        set_cpu_environment()
        with importing(), redirect_stderr(io.StringIO()):
            import paddle  # noqa: F401
    keep_signals()


def as_process(main: Callable[[], int]) -> NoReturn:
    """Run a command's main as all that this process does.

    A signal then ends the process wherever it is, once what it has begun to write is removed. An exception would come
    through the frameworks' C++, which makes other errors of it or breaks.
    """
    global _end, _signals
    _end, _signals = _ending(), _Signals()
    for number in SIGNALS:  # for after it: ending takes a while, in which nothing is left to be stopped
        signal.signal(number, signal.SIG_IGN)
    try:
        try:
            status = stoppable(main)()
        finally:
            _end = None
            atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed from the start
            stream.flush()
    except OSError as error:
        status = _unheard(error)
    # Not `sys.exit`: taking the frameworks apart takes longer, and one of several processes that trained together
    # sometimes dies of SIGSEGV by it, when all is done.
    os._exit(status)


def is_of_output(error: Exception) -> bool:
    """Whether it is stdout that cannot be written, which :func:`as_process` reports: an error of a file names it."""
    return isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC) and not error.filename


def _unheard(error: OSError) -> int:
    """The exit status of a command whose words do not arrive; it ends silently if nobody reads, as with ``| head``."""
    if isinstance(error, BrokenPipeError):
        return UNREAD
    what = f"standard output cannot be written ({error.strerror}): redirect it"
    with suppress(OSError):  # stderr may lead to the same place
        complain(what if is_of_output(error) else error)
    return FAILED


def _ending() -> Callable[[int], NoReturn]:
    """What ends this process because of a signal; a copy of it, such as one that prepares images, ends silently."""
    process = os.getpid()
    try:
        stderr = os.dup(2)  # where it leads now: what silences a framework redirects it for a while
    except OSError:
        stderr = -1  # it is closed

    def end(number: int) -> NoReturn:
        for other in SIGNALS:  # Ctrl-C twice is one message
            signal.signal(other, signal.SIG_IGN)
        if os.getpid() == process:
            remove_unfinished()
            for child in multiprocessing.active_children():
                # Paddle's processes that prepare images wait for more without end, and keep stdout open meanwhile.
                child.kill()
            with suppress(Exception):  # it may be printing, or nobody reads any more
                sys.stdout.flush()
            with suppress(OSError):
                os.write(stderr, f"error: {_stopped_by(number)}\n".encode())
        os._exit(STOPPED + number)

    return end


def _stopped_by(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}: what was written is whole, run it again for the rest"


def keep_signals() -> None:
    """Call this when Paddle has been imported: it takes SIGTERM for itself, and the handlers of Python get it back."""
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


# What this process has begun and would leave behind

_removals: list[Callable[[], None]] = []  # of what is not finished, the newest last
_uninterrupted = 0  # blocks that have to end, or to be taken back, before the process may


def remove_unfinished() -> None:
    """Remove what this process has begun to write: for one that ends at once, without leaving its blocks."""
    while _removals:
        with suppress(OSError):
            _removals.pop()()


@contextmanager
def removed_afterwards(remove: Callable[[], None]) -> Iterator[None]:
    """Call `remove` at the end of the block, or of the process if that ends before."""
    _removals.append(remove)
    try:
        yield
    finally:
        with suppress(OSError):
            remove()
        _removals.remove(remove)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that come in the block raise KeyboardInterrupt instead of ending the process where it is."""
    global _uninterrupted
    _uninterrupted += 1
    try:
        yield
    finally:
        _uninterrupted -= 1
