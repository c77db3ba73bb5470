"""Released weights as this package's files: downloaded, fitted to their preset without PyTorch, and kept.

The cache has ``NAME.TAG.pdparams`` for each, with the SHA-256 of the file that it was made from in the sidecar. From
then on nothing is asked of a server.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from paddle_dense.data import Preprocessing
from paddle_dense.errors import WeightsError
from paddle_dense.files.atomic import PathLike
from paddle_dense.files.opened import WeightsFile, open_weights
from paddle_dense.files.sidecar import sidecar_path, write_with_sidecar
from paddle_dense.identifying import fit, identify
from paddle_dense.models import presets
from paddle_dense.pretrained import alone, cache_folder, fetch, is_published, shipped_path, sources, tags, url_of


class Released(NamedTuple):
    """A released set of weights.

    Attributes:
        name: the preset and the tag: ``"densenet121.tv_in1k"``.
        file: what is in the cache.
        entry: what the manifest says of it.
    """

    name: str
    file: WeightsFile
    entry: dict[str, Any]

    @property
    def preprocessing(self) -> Preprocessing:
        """How the images were prepared that the published error was measured on."""
        told = self.entry["preprocessing"]
        numbers = {key: tuple(told[key]) for key in ("mean", "std")}
        return Preprocessing(told["input_size"], told["resize"], told["interpolation"], **numbers)


def full_name(name: str) -> str:
    """A preset's name with the tag of its weights, which is the preferred one unless the name has one.

    Raises:
        WeightsError: none are released under this name.
    """
    first = sources(name)[0]
    return f"{first['name']}.{first['tag']}"


def cached_path(name: str) -> Path:
    """Where the cache has a released set of weights, or will have it; where this package has it, if it ships."""
    return shipped_path(sources(name)[0]) or cache_folder() / f"{full_name(name)}.pdparams"


def released(name: str) -> Released:
    """The weights released for a preset, from the cache or else downloaded into it.

    Args:
        name: a preset, with or without a tag.

    Raises:
        WeightsError: none are released, they cannot be had, or the file is not what it should be.
        ImportError: what downloads is not installed.
    """
    name, path = full_name(name), cached_path(name)
    found = _cached(path, name)
    if not found:
        with alone():
            found = _cached(path, name)  # another process may have been faster
            if not found:
                _make(path, name)
                found = _cached(path, name)
    if not found:
        raise WeightsError(f"{path} was replaced while it was read: try again")
    return Released(name, found, sources(name)[0])


def is_cached(name: str) -> bool:
    """Whether the cache has a released set of weights."""
    return cached_path(name).is_file()


def released_names(preset: str) -> list[str]:
    """The released sets of a preset's weights that ship or can be downloaded, the preferred one first."""
    names = [f"{preset}.{tag}" for tag in tags(preset)]
    return [name for name in names if sources(name)[0]["url"] or shipped_path(sources(name)[0])]


def is_released(source: PathLike) -> bool:
    """Whether this is the name of a preset, or of a released set of its weights, and not a file."""
    name, _, tag = os.fspath(source).partition(".")
    is_preset = any(entry.name == name for entry in presets())
    return is_preset and (not tag or tag in tags(name)) and not os.path.exists(source)


def _cached(path: Path, name: str) -> WeightsFile | None:
    """What the cache has under a name, if it is whole and made from the file that was published."""
    if not path.is_file():
        return None
    try:
        file = open_weights(path, "paddle")
    except WeightsError:
        return None
    told = (file.sidecar or {}).get("source")
    sha256 = told.get("sha256") if isinstance(told, dict) else None
    if not isinstance(sha256, str) or not any(is_published(entry, sha256) for entry in sources(name)):
        return None
    return file


def _make(path: Path, name: str) -> None:
    """Download a set of weights and write it as Paddle's, in the condensed form."""
    raw, entry = fetch(name)
    is_download = raw.parent != path.parent  # and not a file that the user has put there
    try:
        file = open_weights(raw, entry["framework"], hashes=("sha256",))
        found = identify(file, arch=entry["name"])
        fitted = fit(file, found)
        told = {
            "arch": entry["name"],
            "config": fitted.architecture.config,
            "source": {
                "file": entry["file"],
                "url": url_of(entry) if is_download else None,
                "sha256": file.digest(),
                "container": file.container,
            },
            "preprocessing": entry["preprocessing"],
            "warnings": [*file.warnings, *found.warnings, *fitted.warnings],
        }
        write_with_sidecar(fitted.state, path, told, force=sidecar_path(path).exists())
    finally:
        if is_download:
            raw.unlink(missing_ok=True)
