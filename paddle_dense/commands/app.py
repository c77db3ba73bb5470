"""The command ``python -m paddle_dense app``: a page that converts weights and tells what images show."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from paddle_dense.cli import Parser, UsageError, program, run
from paddle_dense.process import OK, handling_signals, importing, load_paddle, removed_afterwards

PORT, MAX_SIZE = 7860, 512 << 20
_GRADIO = "6.31"  # the oldest that the page is tested with; 6.0 loads a script from elsewhere
_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_HIGHEST_PORT = 65535
_MOST_SESSIONS = 200  # whose results are kept
_PATIENCE = 1.0  # seconds


def parser() -> Parser:
    """The command line, as ``--help`` shows it."""
    command = Parser(
        prog=program("app", "paddle_dense app"),
        description="Serve a page that converts checkpoints and tells what images show, in Chinese and English. "
        "Nothing in an uploaded file is executed; it stays on this machine and is deleted when the server stops.",
        epilog="Exit status: 0 stopped with Ctrl-C, 1 the page cannot be served, 2 wrong usage.",
    )
    add = command.add_argument
    add("--host", default="127.0.0.1", help="address to serve on; 0.0.0.0: reachable by others (default: 127.0.0.1)")
    add("--port", type=int, default=PORT, help=f"port to serve on (default: {PORT})")
    add("--max-size", type=_size, default=MAX_SIZE, metavar="SIZE", help="of an uploaded file (default: 512MB)")
    return command


def _size(text: str) -> int:
    """``"512MB"`` in bytes."""
    found = re.fullmatch(r"([0-9]{1,9})([KMG]?B)", text.strip().upper())
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give one such as 512MB or 2GB")
    return int(found[1]) * _UNITS[found[2]]


def _run(args: argparse.Namespace) -> int:
    if not 0 < args.port <= _HIGHEST_PORT:
        raise UsageError(f"--port {args.port} must be from 1 to {_HIGHEST_PORT}")
    _check_gradio()
    _check_address(args.host, args.port)
    launch(args.max_size, server_name=args.host, server_port=args.port)
    return OK


main = partial(run, parser, _run)


def launch(max_size: int = MAX_SIZE, **options: Any) -> None:
    """Serve the page until the process is stopped, as ``demo.launch()`` does: for a file such as ``app.gradio.py``.

    Args:
        max_size: of an uploaded file, in bytes.
        options: of Gradio's `launch`; without `server_name` and `server_port`, GRADIO_SERVER_NAME and
            GRADIO_SERVER_PORT are followed, which hosts of such pages set.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the page cannot be served there.
    """

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    with serving(max_size, **options) as address, handling_signals(stop), suppress(KeyboardInterrupt):
        print(f"{address} is the page, Ctrl-C ends it", flush=True)
        while True:
            time.sleep(_PATIENCE)


@contextmanager
def serving(max_size: int = MAX_SIZE, **options: Any) -> Iterator[str]:
    """Serve the page inside the block, and delete what was uploaded and written afterwards; arguments as `launch`.

    Yields:
        Its address.
    """
    _check_gradio()
    folder = Path(tempfile.mkdtemp(prefix="paddle_dense-app-")).resolve()
    with removed_afterwards(lambda: shutil.rmtree(folder, ignore_errors=True)):
        # What Gradio would otherwise tell its makers, and keep in browsers.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", GRADIO_TEMP_DIR=str(folder))
        load_paddle()
        with importing():  # all that a request needs: those run in threads of their own, where signals do not wait
            import gradio

            from convert.pytorch import pytorch_fault
            from paddle_dense.commands.page import build_page

            pytorch_fault()
        page = build_page(folder)
        _, address, _ = page.launch(**{**_fixed(gradio, max_size), **options})
        try:
            yield address
        finally:
            page.close(verbose=False)


def _check_address(host: str, port: int) -> None:
    """See that the page can be served there, before the frameworks take their seconds.

    Raises:
        OSError: it cannot.
    """
    try:
        [family, *_], *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"nothing can be served on --host {host} --port {port} ({reason}): give others") from error


def _fixed(gradio: Any, max_size: int) -> dict[str, Any]:
    """What Gradio is asked for wherever the page is served: nothing from elsewhere, and nothing sent there."""
    font = ["system-ui", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    return {
        "max_file_size": max_size,
        "theme": gradio.themes.Default(primary_hue="indigo", font=font, font_mono=mono),
        "css_paths": Path(__file__).with_name("page.css"),
        "footer_links": ["gradio"],
        "state_session_capacity": _MOST_SESSIONS,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "share": False,
        "pwa": False,
        "quiet": True,
        "prevent_thread_lock": True,
    }


def _check_gradio() -> None:
    """See that Gradio is there, before the frameworks take their seconds.

    Raises:
        ImportError: it is not, or is too old.
    """
    try:
        found = metadata.version("gradio")
    except metadata.PackageNotFoundError:
        found = ""
    if not found or _numbers(found) < _numbers(_GRADIO):
        what = f"and {found} is installed" if found else "on Python 3.10 or newer"
        raise ImportError(f'the page needs Gradio {_GRADIO} or newer, {what}: pip install "paddle_dense[app]"')


def _numbers(version: str) -> list[int]:
    """``"6.31.0"`` as ``[6, 31]``, to be compared."""
    return [int(number) for number in re.findall(r"[0-9]+", version)[:2]]
