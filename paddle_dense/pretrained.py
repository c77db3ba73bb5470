"""Released checkpoints: the manifest that lists them, and the downloads that `pretrained=True` makes.

What is downloaded goes to ``downloads/`` in the cache folder. A download that stops is continued by the next one, in
this process or another: next to the unfinished ``FILE.part``, ``FILE.part.json`` keeps the server's mark of the version
that it is a part of.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from paddle_dense.errors import WeightsError, listed
from paddle_dense.files.atomic import atomic_write, locked, unwritable

Entry = Mapping[str, Any]

_HUB = "https://huggingface.co"
_MOST = 1 << 31  # bytes of a file; the largest that is released has a tenth of it
_CHUNK = 1 << 16
_TIMEOUT = (15, 60)  # seconds for a connection, and between two pieces of an answer
_ATTEMPTS = 3
_WAIT = 3600.0  # seconds for another process that downloads


def shipped_folder() -> Path:
    """The folder with the manifest and the weights that ship: `weights/` of a checkout, or its installed copy."""
    package = Path(__file__).parent
    checkout = package.parent / "weights"
    return checkout if (checkout / "manifest.json").exists() else package / "shipped"


@cache
def manifest() -> list[dict[str, Any]]:
    """Every released checkpoint that is publicly known, see `weights/README.md` for the fields."""
    return json.loads((shipped_folder() / "manifest.json").read_text(encoding="utf-8"))["entries"]


def shipped_path(entry: Entry) -> Path | None:
    """Where this package has a file of the manifest that it ships itself; None for one that is elsewhere."""
    return None if entry["url"] or entry["page"] else shipped_folder() / entry["file"]


def tags(name: str) -> list[str]:
    """The released sets of weights of a preset, the one that `pretrained=True` takes first.

    That is the one released for Paddle, then those with a direct link, then those that only a page offers.
    """
    entries = [entry for entry in manifest() if entry["name"] == name]
    entries.sort(key=lambda entry: (not entry["url"], entry["framework"] != "paddle"))
    return list(dict.fromkeys(entry["tag"] for entry in entries))


def sources(name: str) -> list[dict[str, Any]]:
    """The files that hold a released set of weights, those with a direct link and a known hash first.

    Args:
        name: a preset, with or without a tag: ``"densenet121"``, ``"densenet121.ra_in1k"``.

    Raises:
        WeightsError: none are released under this name; the message says which are.
    """
    preset, _, tag = name.partition(".")
    known = tags(preset)
    if tag and known and tag not in known:
        names = (f"{preset}.{other}" for other in known)
        raise WeightsError(f"no weights are released as {name!r}: choose one of {listed(names)}")
    if not known:
        raise WeightsError(
            f"no weights are released for {preset!r}: train it, or give the path of a file that you have"
        )
    tag = tag or known[0]
    entries = [entry for entry in manifest() if (entry["name"], entry["tag"]) == (preset, tag)]
    return sorted(entries, key=lambda entry: (not entry["url"], not _known_hashes(entry)))


def cache_folder() -> Path:
    """Where downloads are kept: ``$PADDLE_DENSE_HOME``, or the user's cache folder."""
    home = os.environ.get("PADDLE_DENSE_HOME")
    return Path(home or _downloader().os_cache("paddle_dense"))


def _downloads() -> Path:
    return cache_folder() / "downloads"


def is_offline() -> bool:
    """Whether ``$PADDLE_DENSE_OFFLINE`` forbids downloads."""
    return os.environ.get("PADDLE_DENSE_OFFLINE", "").lower() not in ("", "0", "false", "no")


def url_of(entry: Entry) -> str:
    """Where a file is downloaded from: its host, or the mirror that the user names.

    ``$PADDLE_DENSE_MIRROR`` is a folder with all files under the names that the manifest gives them; ``$HF_ENDPOINT``
    stands for https://huggingface.co, as in the hub's own library.
    """
    mirror = os.environ.get("PADDLE_DENSE_MIRROR")
    if mirror:
        return f"{mirror.rstrip('/')}/{entry['file']}"
    endpoint = os.environ.get("HF_ENDPOINT")
    url = entry["url"]
    return f"{endpoint.rstrip('/')}{url[len(_HUB) :]}" if endpoint and url.startswith(f"{_HUB}/") else url


@contextmanager
def alone() -> Iterator[None]:
    """One process at a time among those that download; where no lock can be had, without one.

    Raises:
        WeightsError: the cache folder cannot be made.
    """
    folder = _downloads()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    with locked(folder, _WAIT):  # not the cache folder, whose lock writing in it takes
        yield


def fetch(name: str) -> tuple[Path, dict[str, Any]]:
    """Download a released set of weights, or find it where the user has put it; call it in `alone`.

    Args:
        name: see `sources`.

    Returns:
        The file, in the cache's ``downloads/`` if it was downloaded, and its entry of the manifest.

    Raises:
        WeightsError: none are released, only a page offers them, the server does not answer, or the file is cut short,
            has another hash, or another one than at its first download.
        ImportError: what downloads is not installed.
    """
    entries = sources(name)
    for entry in entries:
        own = cache_folder() / entry["file"]
        if own.is_file() and not _fault(entry, _digests(own)):
            return own, entry
    linked = [entry for entry in entries if entry["url"]]
    if not linked:
        first = entries[0]
        raise WeightsError(
            f"{name} is offered on a page alone, {first['page']}: download it there and give its path in place of "
            f"True, or put it into {cache_folder()} as {first['file']}"
        )
    if is_offline():
        raise WeightsError(
            f"{name} is not in {cache_folder()}, and PADDLE_DENSE_OFFLINE forbids downloads: unset it, or run "
            f"paddle-dense pull {name} where there is a network and copy that machine's folder"
        )
    failures = []
    for entry in linked:
        try:
            return _fetch(entry), entry
        except WeightsError as failure:
            failures.append(failure)
    raise failures[0]


def _fetch(entry: Entry) -> Path:
    """Download one file, checked."""
    _downloader()
    import requests

    url, part, reason = url_of(entry), _downloads() / f"{entry['file']}.part", ""
    for _ in range(_ATTEMPTS):
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            continued = _transfer(url, part, bool(_known_hashes(entry)))
            digests = _digests(part)
            reason = _fault(entry, digests) or _changed(url, digests["sha256"])
            if not reason:
                return _keep(entry, url, part, digests["sha256"])
            _forget(part)
            if not continued:
                break
        except requests.HTTPError as error:
            reason = str(error)
            break
        except (OSError, requests.RequestException) as error:
            reason = str(error)
    raise WeightsError(
        f"{entry['file']} could not be downloaded from {url} ({' '.join(reason.split())[:200]}): try again, name "
        f"another host in PADDLE_DENSE_MIRROR, or give the path of a file that you have"
    )


def _transfer(url: str, part: Path, checked: bool) -> bool:
    """Download to `part`, after what is there already; whether there was something.

    Args:
        url: of the file.
        part: the unfinished file.
        checked: a hash will tell whether two parts are of one file, so that no mark of the server is needed.
    """
    import requests

    headers = {"Accept-Encoding": "identity"}
    size, mark = _begun(part, url)
    if size and (mark or checked):
        headers["Range"] = f"bytes={size}-"
        headers.update({"If-Range": mark} if mark else {})
    with requests.get(url, stream=True, headers=headers, timeout=_TIMEOUT) as answer:
        if answer.status_code == 416:
            _forget(part)
            raise OSError("the server has another file than the one that was begun")
        answer.raise_for_status()
        continued = answer.status_code == 206
        if continued and not answer.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            _forget(part)
            raise OSError("the server answered with another part than the one asked for")
        begin = size if continued else 0
        length = answer.headers.get("Content-Length", "")
        whole = begin + int(length) if length.isdecimal() else None
        if (whole or 0) > _MOST:
            raise OSError(f"it has {whole:,} bytes, more than any weights that are released")
        etag = answer.headers.get("ETag", "")
        mark = "" if etag.startswith("W/") else etag or answer.headers.get("Last-Modified", "")
        part.with_name(f"{part.name}.json").write_text(json.dumps({"url": url, "mark": mark}), encoding="utf-8")
        with part.open("ab" if continued else "wb") as file, _progress(part.stem, begin, whole) as advance:
            reached = begin
            for chunk in answer.iter_content(_CHUNK):
                reached += len(chunk)
                if reached > _MOST:
                    raise OSError(f"it has more than {_MOST:,} bytes")
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if whole is not None and reached != whole:
        raise OSError(f"{reached:,} of {whole:,} bytes came")
    return continued


@contextmanager
def _progress(name: str, begin: int, whole: int | None) -> Iterator[Any]:
    """A bar on a terminal's stderr; what to call with each number of bytes."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    with tqdm(total=whole, initial=begin, unit="B", unit_scale=True, desc=name, file=sys.stderr, disable=quiet) as bar:
        yield bar.update


def _begun(part: Path, url: str) -> tuple[int, str]:
    """Bytes of an unfinished download, and the server's mark of the version that they are of; 0 for another one's."""
    with suppress(OSError, ValueError, AttributeError):
        told = json.loads(part.with_name(f"{part.name}.json").read_text(encoding="utf-8"))
        if told.get("url") == url:
            return part.stat().st_size, str(told.get("mark") or "")
    return 0, ""


def _forget(part: Path) -> None:
    for file in (part, part.with_name(f"{part.name}.json")):
        file.unlink(missing_ok=True)


def _keep(entry: Entry, url: str, part: Path, sha256: str) -> Path:
    """Give a whole download its name, and remember its hash where nobody has published one."""
    if not _known_hashes(entry):
        hashes = {**_first_hashes(), url: sha256}
        with atomic_write(_first_hashes_path()) as file:
            file.write(json.dumps(hashes, indent=2).encode())
    target = part.with_name(entry["file"])
    os.replace(part, target)
    _forget(part)
    return target


def _changed(url: str, sha256: str) -> str:
    """What is wrong with a file that is another one than at its first download; "" if nothing is."""
    first = _first_hashes().get(url, sha256)
    if first == sha256:
        return ""
    return (
        f"its SHA-256 is {sha256[:16]}... and was {first[:16]}... at the first download, which "
        f"{_first_hashes_path()} keeps: delete that file if the new one is known to be good"
    )


def _first_hashes_path() -> Path:
    return cache_folder() / "hashes.json"


def _first_hashes() -> dict[str, str]:
    with suppress(OSError, ValueError):
        found = json.loads(_first_hashes_path().read_text(encoding="utf-8"))
        return {str(url): str(sha256) for url, sha256 in found.items()} if isinstance(found, dict) else {}
    return {}


def _known_hashes(entry: Entry) -> dict[str, str]:
    """The published hashes of a file, the beginning of its SHA-256 among them."""
    found = {"sha256": entry.get("sha256") or entry.get("sha256_prefix"), "md5": entry.get("md5")}
    return {kind: value for kind, value in found.items() if value}


def is_published(entry: Entry, sha256: str) -> bool:
    """Whether a SHA-256 can be that of a file of the manifest."""
    return sha256.startswith(_known_hashes(entry).get("sha256", ""))


def _digests(path: Path) -> dict[str, str]:
    kinds = {kind: hashlib.new(kind, usedforsecurity=False) for kind in ("sha256", "md5")}
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in kinds.values():
                digest.update(chunk)
    return {kind: digest.hexdigest() for kind, digest in kinds.items()}


def _fault(entry: Entry, digests: Mapping[str, str]) -> str:
    """Which hash of a file is another one than was published; "" if none is."""
    for kind, value in _known_hashes(entry).items():
        if not digests[kind].startswith(value):
            return f"its {kind} hash is {digests[kind][:16]}... and {value[:16]} was published"
    return ""


def _downloader() -> ModuleType:
    try:
        import pooch
        import requests  # noqa: F401  which downloads
    except ImportError as error:
        raise ImportError(
            f"downloads are made with pooch and requests ({error}): pip install pooch requests, or give the path of a "
            f"file that you have"
        ) from None
    return pooch
