"""Released checkpoints: the manifest that lists them, and the download that `pretrained=True` makes."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from paddle_dense.errors import WeightsError
from paddle_dense.files.atomic import move_together, temporary_folder


def shipped_folder() -> Path:
    """The folder with the manifest and the weights that ship: `weights/` of a checkout, or its installed copy."""
    package = Path(__file__).parent
    checkout = package.parent / "weights"
    return checkout if (checkout / "manifest.json").exists() else package / "shipped"


@cache
def manifest() -> list[dict[str, Any]]:
    """Every released checkpoint that is publicly known, see `weights/README.md` for the fields."""
    return json.loads((shipped_folder() / "manifest.json").read_text(encoding="utf-8"))["entries"]


def cache_folder() -> Path:
    """Where downloads are kept: ``$PADDLE_DENSE_HOME``, or the user's cache folder."""
    home = os.environ.get("PADDLE_DENSE_HOME")
    return Path(home or _pooch().os_cache("paddle_dense"))


def download(name: str) -> Path:
    """The Paddle weights released for a preset, downloaded once, with progress, and checked where a hash is known.

    Raises:
        WeightsError: none are released, the server does not answer, or the file is cut short or has another hash.
    """
    entries = [entry for entry in manifest() if entry["name"] == name]
    entry = next((entry for entry in entries if entry["framework"] == "paddle" and entry["url"]), None)
    if entry:
        return fetch(entry)
    elsewhere = next((entry["source"] for entry in entries), None)
    fix = f"take the PyTorch file from {elsewhere} and run python -m convert.torch2paddle on it"
    raise WeightsError(f"no Paddle weights are released for {name!r}: {fix if elsewhere else 'train it'}")


def fetch(entry: dict[str, Any]) -> Path:
    """Download one entry of the manifest into the cache, or find it there.

    Raises:
        WeightsError: as `download`.
        ImportError: what downloads is not installed.
    """
    pooch = _pooch()
    import requests

    hashes = [f"{kind}:{entry[kind]}" for kind in ("sha256", "md5") if entry.get(kind)]
    known_hash = hashes[0] if hashes else None
    target = cache_folder() / entry["file"]
    with suppress(OSError):
        if target.is_file() and pooch.hashes.hash_matches(str(target), known_hash):
            return target
    with temporary_folder(target) as folder:
        try:
            # pooch would give the file its name before the disk has all of it.
            pooch.retrieve(entry["url"], known_hash, target.name, folder, progressbar=sys.stderr.isatty())
        except (OSError, ValueError, requests.RequestException) as error:
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(
                f"{entry['file']} could not be downloaded from {entry['url']} ({reason}): try again, or give the path "
                f"of a file that you have"
            ) from error
        move_together([folder / target.name], target.parent)
    return target


def _pooch() -> ModuleType:
    try:
        import pooch
        import requests  # noqa: F401  which pooch imports when it downloads
    except ImportError as error:
        raise ImportError(
            f"downloads are made with pooch and requests ({error}): pip install pooch requests, or give the path of a "
            f"file that you have"
        ) from None
    return pooch
